"""What the guard tells Prometheus of the records: gauges that a parser reads, and nothing that is not known."""

from __future__ import annotations

import socket
import urllib.error
import urllib.request

import pytest
from cluster import record
from prometheus_client.parser import text_string_to_metric_families

from tpu_migration.domain.phases import Phase
from tpu_migration.domain.warmth import WarmUp
from tpu_migration.exposition import render, serve
from tpu_migration.record import RecordError

WARM = WarmUp(
    "384x1", "the plan", (16, 32), (8,), passes=2, settled=True, compiled_at_start=48, compiled_by_requests=4,
    compile_s=509.6, cache_hits=7, stalls=None,
)  # fmt: skip


def samples(page: str) -> dict[tuple[str, str], float]:
    """Return name and the label that tells apart → value."""
    found = {}
    for family in text_string_to_metric_families(page):
        assert family.type == "gauge"
        assert family.documentation
        for each in family.samples:
            rest = {key: value for key, value in each.labels.items() if key not in ("workload", "run")}
            found[each.name, "".join(rest.values())] = each.value
    return found


def test_compiles_hits_and_buckets_of_the_warm_up_are_gauges_and_what_is_unknown_has_no_line():
    page = render({"vllm": record(Phase.WARM, notes={"warm_up": WARM.to_dict()})})
    assert samples(page) == {
        ("tpu_migration_phase_info", "warm"): 1,
        ("tpu_migration_warm_up_passes", ""): 2,
        ("tpu_migration_warm_up_settled", ""): 1,
        ("tpu_migration_warm_up_compiled_programs", "start"): 48,
        ("tpu_migration_warm_up_compiled_programs", "requests"): 4,
        ("tpu_migration_warm_up_compile_seconds", ""): 509.6,
        ("tpu_migration_warm_up_cache_hits", ""): 7,
        ("tpu_migration_warm_up_buckets", "tokens"): 2,
        ("tpu_migration_warm_up_buckets", "requests"): 1,
    }
    assert 'workload="vllm",run="run-1"' in page


@pytest.mark.parametrize("notes", [{}, {"warm_up": "12 shapes"}, {"warm_up": {"shapes": "1x1"}}])
def test_a_run_that_is_not_warm_or_was_by_another_version_has_its_phase_only(notes):
    assert set(samples(render({"vllm": record(notes=notes)}))) == {("tpu_migration_phase_info", "shifting")}


def test_a_warm_up_under_way_tells_nothing_yet():
    begun = WarmUp("384x1", "the plan").to_dict()
    assert set(samples(render({"vllm": record(notes={"warm_up": begun})}))) == {
        ("tpu_migration_phase_info", "shifting")
    }


def test_a_damaged_record_is_seen_and_hides_no_other():
    damaged = RecordError("damaged")
    damaged.phase = "soaking"
    found = samples(render({"a": damaged, "b": record(run_id='say "hi"\n\\')}))
    assert found == {("tpu_migration_phase_info", "soaking"): 1, ("tpu_migration_phase_info", "shifting"): 1}


def test_the_page_is_served_and_nothing_else_is():
    server = serve("127.0.0.1", 0, lambda: "tpu_migration_up 1\n")
    assert server is not None
    try:
        url = f"http://127.0.0.1:{server.server_address[1]}"
        with urllib.request.urlopen(f"{url}/metrics", timeout=10) as answer:
            assert answer.read() == b"tpu_migration_up 1\n"
            assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"{url}/", timeout=10)
    finally:
        server.shutdown()
        server.server_close()


def test_a_port_that_is_taken_does_not_keep_the_guard_from_its_work(caplog):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert serve("127.0.0.1", port, lambda: "") is None
    assert f"cannot listen on 127.0.0.1:{port}" in caplog.text
