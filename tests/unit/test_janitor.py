"""How the janitor tells what it found, and what alone decides."""

from __future__ import annotations

import argparse

import pytest

from tpu_migration import janitor_cli
from tpu_migration.cli import main
from tpu_migration.domain.node_pools import Pool
from tpu_migration.janitor import GOES, GONE, REMAINS, STAYS, UNKNOWN, Verdict, judge
from tpu_migration.names import POOL_EXPIRES_LABEL, POOL_RUN_LABEL, POOL_WORKLOAD_LABEL
from tpu_migration.record import RecordError

LABELS = {POOL_RUN_LABEL: "12345678", POOL_WORKLOAD_LABEL: "vllm", POOL_EXPIRES_LABEL: "1000"}
POOL = Pool("tpu-vllm", "RUNNING", "ct5lp-hightpu-8t", 2, LABELS)


def test_only_a_pool_for_which_nothing_speaks_goes():
    assert judge(POOL, {}, [], 2000.0)[0] == GOES
    assert judge(POOL, {}, ["ns/pod"], 2000.0) == (STAYS, "in use: ns/pod")
    assert judge(POOL, {"vllm": RecordError("damaged")}, [], 2000.0)[0] == UNKNOWN
    stopping = Pool("tpu-vllm", "STOPPING", "ct5lp-hightpu-8t", 2, LABELS)
    assert judge(stopping, {}, [], 2000.0) == (STAYS, "is being deleted already")


def test_many_pods_on_a_pool_are_counted_rather_than_listed():
    assert judge(POOL, {}, [f"ns/{n}" for n in range(9)], 2000.0)[1] == "in use: ns/0, ns/1, ns/2 and 6 more"


def test_the_table_says_what_each_is_how_old_and_why():
    found = [
        Verdict("tpu-a", "llm", "vllm", "12345678", GOES, "no record", 7200.0, 5 * 86_400.0),
        Verdict("tpu-long-name", "llm", "vllm", "87654321", STAYS, "its run may take", None, -60.0),
    ]
    headings, first, second = janitor_cli.table(found).splitlines()
    assert headings.startswith("POOL ")
    assert first.split() == ["tpu-a", "llm/vllm", "12345678", "2.0", "h", "5.0", "d", "goes", "no", "record"]
    assert second.split()[:6] == ["tpu-long-name", "llm/vllm", "87654321", "-", "no", "stays"]
    assert first.index("llm/vllm") == second.index("llm/vllm"), "columns are aligned"


class Told:
    def __init__(self, *states):
        self._found = [Verdict(f"p{n}", "n", "w", "r", state, "") for n, state in enumerate(states)]

    def look(self):
        return self._found


@pytest.mark.parametrize(
    ("states", "code"),
    [((), 0), ((STAYS, GONE), 0), ((STAYS, GOES), 1), ((UNKNOWN,), 1), ((REMAINS,), 1)],
)
def test_the_exit_status_says_whether_anything_is_left_to_do(states, code, capsys):
    args = argparse.Namespace(delete=False, format="text")
    assert janitor_cli.main(args, lambda _: Told(*states)) == code
    assert capsys.readouterr().out


def test_without_credentials_it_says_so_in_one_line(monkeypatch, capsys):
    for name in ("GOOGLE_APPLICATION_CREDENTIALS", "CLOUDSDK_CONFIG"):
        monkeypatch.setenv(name, "/nonexistent")
    words = ["janitor", "--project-id=p", "--location=l", "--cluster=c", "--key-file=/nonexistent"]
    assert main(words) == 1
    assert "tpu-migration janitor: no Google credentials in /nonexistent" in capsys.readouterr().err
