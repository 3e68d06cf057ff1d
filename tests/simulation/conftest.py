"""A world is a heap of small dicts that all die at its end: collect them less often."""

from __future__ import annotations

import gc

import pytest


@pytest.fixture(autouse=True, scope="session")
def fewer_collections():
    before = gc.get_threshold()
    gc.set_threshold(50_000, 20, 100)
    yield
    gc.set_threshold(*before)
