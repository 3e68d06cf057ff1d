"""The table of faults, the file that switches them on, and the command that writes it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sandbox.__main__ import main
from sandbox.faults import Faults, describe
from sandbox.state import FAULTS_FILE, write_state

ROOT = Path(__file__).resolve().parents[2]


def test_faults_are_read_again_when_another_process_changes_the_file(tmp_path):
    mine, other = Faults(tmp_path / "faults.json"), Faults(tmp_path / "faults.json")
    assert mine.get("stockout") is None
    other.set("stockout", {"zone": "us-west4-a"})
    assert mine.get("stockout") == {"machine": "ct", "zone": "us-west4-a", "capacity": None, "appears_after_s": None}
    other.set("lb-errors")
    assert mine.get("lb-errors") == {"percent": 20, "status": 502}
    other.clear("stockout")
    assert mine.get("stockout") is None
    other.clear()
    assert mine.active() == {}


def test_a_half_written_fault_file_leaves_on_what_was_on(tmp_path, capsys):
    path = tmp_path / "faults.json"
    faults = Faults(path)
    faults.set("quota")
    assert faults.get("quota")
    path.write_text('{"quota": ')
    assert faults.get("quota")
    assert "must hold one JSON object" in capsys.readouterr().err
    path.write_text("{}")
    assert faults.get("quota") is None


def test_every_fault_in_the_table_is_made_by_the_module_that_it_names():
    for fault in describe():
        path = ROOT / f"{fault.module.replace('.', '/')}.py"
        assert f'"{fault.name}"' in path.read_text(), f"{fault.name} is described but {path} never reads it"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["no-such-fault"], "no fault 'no-such-fault'; there are stockout"),
        (["oom", "{"], "must be a JSON object"),
        (["oom", "[]"], "must be a JSON object"),
        (["slow-tpu", '{"facto": 2}'], "slow-tpu has no option facto; there are workload, factor"),
    ],
)
def test_a_fault_that_would_do_nothing_is_refused(arguments, words, tmp_path, capsys):
    up(tmp_path)
    assert main(["fault", "--dir", str(tmp_path), *arguments]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / FAULTS_FILE).exists()


def test_the_command_switches_a_fault_on_and_off_in_mid_run(tmp_path, capsys):
    up(tmp_path)
    assert main(["fault", "--dir", str(tmp_path), "node-lost", '{"seed": 7}']) == 0
    faults = Faults(tmp_path / FAULTS_FILE)
    assert faults.get("node-lost") == {"machine": "ct", "count": 1, "seed": 7, "returns_after_s": None}
    assert main(["fault", "--dir", str(tmp_path), "node-lost", "--off"]) == 0
    assert faults.get("node-lost") is None
    capsys.readouterr()


def up(directory: Path) -> None:
    """Leave what a running sandbox leaves."""
    write_state(directory, {"id": "s", "pid": os.getpid()})
