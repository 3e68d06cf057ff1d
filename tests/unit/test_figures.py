"""`make bench` fails when a claim does not hold, and writes every figure all the same."""

from __future__ import annotations

import json

import pytest

from tests.bench import __main__ as bench
from tests.bench.figure import Figure


def fast() -> Figure:
    return Figure("start", 2.5, "s", 8.0)


def fat() -> Figure:
    return Figure("memory", 400.0, "MiB", 400.0)


def unclaimed() -> Figure:
    return Figure("length", 7.0, "m")


@pytest.fixture(autouse=True)
def figures(monkeypatch):
    monkeypatch.setattr(bench, "FIGURES", (fast, fat, unclaimed))


def test_a_claim_that_does_not_hold_fails_the_run_and_its_figure_is_there(tmp_path, capsys):
    out = tmp_path / "out" / "bench.json"
    assert bench.main(["--out", str(out)]) == 1
    written = json.loads(out.read_text())["figures"]
    assert [(each["name"], each["holds"]) for each in written] == [("start", True), ("memory", False), ("length", True)]
    assert "DOES NOT HOLD" in capsys.readouterr().out


def test_one_figure_can_be_asked_for_by_name(tmp_path):
    out = tmp_path / "bench.json"
    assert bench.main(["fast", "--out", str(out)]) == 0
    assert [each["name"] for each in json.loads(out.read_text())["figures"]] == ["start"]


def test_an_unknown_figure_is_refused_with_the_known_ones(capsys):
    with pytest.raises(SystemExit):
        bench.main(["weight"])
    assert "fast, fat, unclaimed" in capsys.readouterr().err
