"""Fixtures of the tests of the embedded API without HTTP."""

from __future__ import annotations

import pytest
from api_objects import NS

from sandbox.api import Api, LocalClient
from sandbox.clock import VirtualClock


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


@pytest.fixture
def api(clock: VirtualClock) -> Api:
    api = Api(clock)
    LocalClient(api).create("namespaces", {"metadata": {"name": NS}})
    return api


@pytest.fixture
def client(api: Api) -> LocalClient:
    return LocalClient(api)
