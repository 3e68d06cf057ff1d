"""A chunk's time is when its bytes came, not when the loop found time for the task that reads them."""

from __future__ import annotations

import time

from bench_fakes import serving

from tpu_migration.bench import stream
from tpu_migration.bench.stream import body, exchange, session


async def test_a_busy_loop_does_not_make_the_server_look_slow(monkeypatch):
    """Between the read and the task that takes it, somebody blocks the loop."""
    plain = stream._Stamping.data_received
    seen = []

    def slow(self, data):
        plain(self, data)
        seen.append(self.received_at)
        time.sleep(0.005)  # it is the loop itself that is blocked

    monkeypatch.setattr(stream._Stamping, "data_received", slow)
    async with serving(token_s=0.03) as server, session(10.0) as client:
        done = await exchange(
            client,
            f"{server.url}/v1/completions",
            body("completions", "m", "a", 4, ignore_eos=True),
            {},
            asked_tokens=4,
        )
    assert done.error is None
    assert done.answer.first_at in seen
    assert done.answer.last_at in seen
