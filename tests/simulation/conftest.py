"""Collect garbage less often than Python would, here alone."""

from __future__ import annotations

import gc

import pytest

from tests.simulation.harness import COLLECT


@pytest.fixture(autouse=True, scope="session")
def fewer_collections():
    before = gc.get_threshold()
    gc.set_threshold(*COLLECT)
    yield
    gc.set_threshold(*before)
