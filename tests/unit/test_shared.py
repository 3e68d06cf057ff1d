"""All threads of a process that need a client of the same cluster make it once."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from tpu_migration.hooks.shared import Shared


def test_a_thing_is_made_once_for_each_key_and_anew_once_it_is_old():
    now, made = [0.0], []
    shared = Shared(600.0, lambda: now[0])

    def make():
        made.append(now[0])
        return len(made)

    assert [shared.get("a", make), shared.get("a", make), shared.get("b", make)] == [1, 1, 2]
    now[0] = 601.0
    assert [shared.get("a", make), shared.get("a", make)] == [3, 3]


def test_who_asks_while_it_is_made_waits_for_that_attempt_and_gets_its_error():
    begun, asked, go_on = threading.Event(), threading.Event(), threading.Event()

    def clock():
        if begun.is_set():  # the second one has found what is being made
            asked.set()
        return 0.0

    shared = Shared(600.0, clock)

    def hang():
        begun.set()
        assert go_on.wait(30.0)
        raise TimeoutError("no answer")

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(shared.get, "a", hang)
        assert begun.wait(30.0)
        second = pool.submit(shared.get, "a", lambda: pytest.fail("a server that hangs is asked once"))
        assert asked.wait(30.0)
        go_on.set()
        for each in (first, second):
            with pytest.raises(TimeoutError, match="no answer"):
                each.result()
    assert shared.get("a", lambda: "made") == "made", "an error is not kept"
