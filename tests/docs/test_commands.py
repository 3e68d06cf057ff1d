"""The commands of the documents are such that there are: parsed by the real parsers, and run where that is possible."""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import re
import shlex

import pytest

from sandbox.__main__ import _parser as sandbox_parser
from sandbox.fault_table import TABLE
from sandbox.workload import NAMESPACE, WORKLOAD
from sandbox.world import CLUSTER, LOCATION, PROJECT
from tests.docs.markdown import ROOT, Command, commands, documents
from tests.simulation.harness import Scene
from tpu_migration import settings
from tpu_migration.cli import COMMANDS, main
from tpu_migration.domain.fleet import parse_fleet
from tpu_migration.domain.plan import Plan
from tpu_migration.errors import PermanentError

GENERATED = {ROOT / "docs" / "reference", ROOT / "docs" / "adr"}
EVERY = [each for path in documents() if path.parent not in GENERATED for each in commands(path)]
# Of others, or of the system: nothing of ours says how they are called. Each is in a page as its maker documents it.
FOREIGN = {
    "gcloud",
    "docker",
    "twine",
    "pip",
    "vllm-env/bin/pip",
    "vllm-env/bin/python",
    "python3",
    "ip",
    "jq",
    "export",
    "rm",
}


def words_of(command: Command) -> list[str]:
    """Return a command's words, without what stands before the program and behind a pipe.

    `[--optional a|b]` is taken with its first choice.
    """
    text = re.sub(r"(?<!\S)\[([^\]'\"]+)\](?!\S)", r"\1", command.text.replace("\\|", "|"))
    text = re.sub(r"(?<=[\w-])\|[\w|-]+", "", text)
    words = shlex.split(text, comments=True)
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0], re.DOTALL):
        words = words[1:]
    if words[:4] == ["ip", "netns", "exec", "cloud"]:
        words = words[4:]
    if "|" in words:
        words = words[: words.index("|")]
    return [words[0].removeprefix(".venv/bin/"), *words[1:]] if words else []


def parsed(parser: argparse.ArgumentParser, words: list[str]) -> argparse.Namespace:
    """Parse as the command would; its refusal is this test's."""
    try:
        return parser.parse_args(words)
    except SystemExit as error:
        raise AssertionError(f"{parser.prog} does not take {words}") from error


def tpu_migration(words: list[str]) -> None:
    """Check a call of the product."""
    words = words[1:] if words[:1] == ["--verbose"] else words
    assert words[0] in COMMANDS, f"there is no command {words[0]}"
    parser = argparse.ArgumentParser(prog=words[0])
    COMMANDS[words[0]].add_arguments(parser)
    parsed(parser, ["2" if word == "N" else word for word in words[1:]])  # a number, where it must be one


def make(words: list[str]) -> None:
    """Check a target and its variables."""
    text = (ROOT / "Makefile").read_text()
    for word in words:
        name, is_variable, _ = word.partition("=")
        assert re.search(rf"^{name} \?=" if is_variable else rf"^{name}:", text, re.MULTILINE), f"make knows no {name}"


def python(words: list[str]) -> None:
    """Check a module or a file, and what the sandbox is asked."""
    if words[0] == "-m":
        module = words[1]
        assert importlib.util.find_spec(module), f"there is no module {module}"
        if module == "sandbox":
            options = parsed(sandbox_parser(), words[2:])
            if getattr(options, "name", None) not in (None, "NAME"):
                assert options.name in {fault.name for fault in TABLE}
    else:
        assert (ROOT / words[0]).exists()


def airflow(words: list[str]) -> None:
    """Check DAGs, parameters, variables and connections by name and value."""
    what, name = words[:2], words[2]
    if what[0] == "dags":
        source = (ROOT / "dags" / f"{name}.py").read_text()
        if "--conf" in words:
            conf = json.loads(words[words.index("--conf") + 1])
            if name == "tpu_migration":
                Plan.from_params(conf)
            assert all(f'"{key}": Param(' in source for key in conf)
    elif what == ["variables", "set"]:
        assert name in {each.name for each in settings.VARIABLES}
        value = json.loads(words[3])
        if name == "tpu_migration_fleet":
            parse_fleet(value)
    elif what == ["connections", "add"]:
        assert name in {each.name for each in settings.CONNECTIONS}
        json.loads(words[words.index("--conn-extra") + 1])
    else:
        assert what == ["celery", "worker"], words


def kubectl(words: list[str]) -> None:
    """Check that the files are there, and that records are looked for under their name."""
    for flag, value in itertools.pairwise(words):
        if flag == "--filename":
            assert (ROOT / value).exists()
    assert (
        words[0] in ("apply", "delete", "describe", "edit", "get", "logs", "rollout", "scale")
        or "--kubeconfig" in words
    )


CHECKS = {
    "tpu-migration": tpu_migration,
    "deployment/deploy_all.py": lambda words: tpu_migration(["deploy", *words]),
    "make": make,
    "python": python,
    "airflow": airflow,
    "kubectl": kubectl,
}


def _is_command(command: Command) -> bool:
    """Tell a command from the diagrams and files that other blocks hold, and from the names that prose does."""
    first = (command.text.split() or [""])[0].removeprefix(".venv/bin/")
    if command.marker == "prose":
        whole = "…" not in command.text and len(command.text.split()) > 1
        return whole and first in ("tpu-migration", "make", "deployment/deploy_all.py")
    return first in CHECKS or first in FOREIGN or "bash" in command.marker


def test_there_are_as_many_commands_as_the_documents_must_have():
    assert sum(map(_is_command, EVERY)) > 100, "the documents' blocks are not understood any more"


@pytest.mark.parametrize("command", [each for each in EVERY if _is_command(each)], ids=lambda each: each.where)
def test_a_command_is_one_that_there_is(command):
    words = words_of(command)
    if command.marker == "prose" and words[0] == "tpu-migration" and len(words) == 2:
        assert words[1] in COMMANDS  # its name alone
    elif words and words[0] in CHECKS:
        CHECKS[words[0]](words[1:])
    else:
        assert not words or words[0] in FOREIGN, f"{command.where}: what is {words[0]}?"


def test_every_line_of_a_bash_block_is_a_command():
    for path in documents():
        for block in re.findall(r"^```bash.*?\n(.*?)^```", path.read_text(), re.MULTILINE | re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                first = line.split()[0].removeprefix(".venv/bin/")
                assert first in CHECKS or first in FOREIGN, f"{path.name}: {line}"


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("tpu-migration restore", "does not take"),
        ("tpu-migration migrate W", "no command"),
        ("make demon", "knows no demon"),
        ("make demo FAULTS=x", "knows no FAULTS"),
        ("python -m sandbox upp", "does not take"),
    ],
)
def test_sees_a_command_that_there_is_not(text, wrong):
    words = words_of(Command("here", text, ""))
    with pytest.raises(AssertionError, match=wrong):
        CHECKS[words[0]](words[1:])


# ---------------------------------------------------------------- run


def _filled(words: list[str]) -> list[str]:
    """Fill a page's placeholders with what the sandbox has."""
    names = {"PROJECT": PROJECT, "P": PROJECT, "LOCATION": LOCATION, "L": LOCATION, "CLUSTER": CLUSTER, "C": CLUSTER}
    names |= {"NAMESPACE": NAMESPACE, "N": NAMESPACE, "WORKLOAD": WORKLOAD, "W": WORKLOAD, "DEPLOYMENT": WORKLOAD}
    return [names.get(word, word) for word in words]


def _calls(*names: str) -> list[Command]:
    blocks = [each for each in EVERY if _is_command(each) and each.marker != "prose"]
    calls = [each for each in blocks if words_of(each)[:1] == ["tpu-migration"]]
    return [each for each in calls if words_of(each)[1] in names]


@pytest.fixture
def run(monkeypatch, capsys):
    """Run a command line on a scene, as a person would who has its kubeconfig and no Google credentials."""

    def call(scene, words):
        kube = scene.client("admin")
        for module in ("tpu_migration.clients.kubernetes", "tpu_migration.preflight_cli"):
            monkeypatch.setattr(f"{module}.from_environment", lambda: kube)
        monkeypatch.setattr("tpu_migration.preflight_cli.SystemClock", lambda: scene.world.clock)

        def nobody(*_, **__):
            raise PermanentError("no Google credentials")

        monkeypatch.setattr("tpu_migration.preflight_cli.cluster_manager", nobody)
        status = main(_filled(words)[1:])
        return status, capsys.readouterr()

    return call


@pytest.fixture(scope="module")
def migrated():
    scene = Scene()
    scene.airflow().run()
    return scene


@pytest.mark.parametrize("command", _calls("status", "restore", "approve"), ids=lambda each: each.where)
def test_what_is_asked_of_a_cluster_gets_an_answer(command, migrated, run):
    words = words_of(command)
    status, shown = run(migrated, words)
    assert status in COMMANDS[words[1]].exits
    if words[1] != "approve":  # nothing waits for people any more
        assert status == 0, shown.err
        assert WORKLOAD in shown.out


@pytest.mark.parametrize("command", _calls("preflight"), ids=lambda each: each.where)
def test_preflight_prints_its_page(command, run):
    words = words_of(command)
    status, shown = run(Scene(), words)
    assert status in (0, 1), shown.err
    assert shown.out.startswith(("READY:", "BLOCKED:")), shown.err
    assert "live peak" in shown.out


@pytest.mark.parametrize("command", _calls("plan"), ids=lambda each: each.where)
def test_plan_prints_its_page(command, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    manifest = str(ROOT / "sandbox" / "manifests" / "vllm-h100.yaml")
    words = [manifest if word in ("source.yaml", "FILE") else word for word in words_of(command)]
    assert main(words[1:]) in (0, 1)
    assert "Will it fit?" in capsys.readouterr().out


# ---------------------------------------------------------------- promises


def test_a_newcomer_needs_two_commands_to_a_finished_demo():
    (first, *_) = [each for each in commands(ROOT / "README.md") if each.marker != "prose"]
    assert first.text == "make demo", "cloning is the first of the two"


def test_a_user_with_a_cluster_needs_five_commands_to_a_preflight_page():
    text = (ROOT / "README.md").read_text()
    start = text[: text.index("## On your own cluster")].count("\n")
    here = [each for each in commands(ROOT / "README.md") if int(each.where.rpartition(":")[2]) > start]
    block = [each for each in here if each.marker == "real"]
    assert words_of(block[-1])[:2] == ["tpu-migration", "preflight"]
    assert 1 + len(block) <= 5, "cloning is the first"
