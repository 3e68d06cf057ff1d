"""The reference says what the code says; what the code does not explain is an error."""

from __future__ import annotations

import ast
import functools
import importlib
import re

import pytest

from sandbox.fault_table import TABLE
from tests.docs.accelerator_page import rows
from tests.docs.markdown import ROOT
from tests.docs.messages import sources
from tests.docs.reference import FOLDER, PAGES
from tpu_migration import settings
from tpu_migration.cli import COMMANDS

# Read by libraries, on our behalf; nothing of ours names them.
BY_LIBRARIES = {"KUBECONFIG", "GOOGLE_APPLICATION_CREDENTIALS"}


page = functools.cache(lambda name: PAGES[name]())


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch):
    """Defaults that come from the environment are those of an empty one."""
    for name in ("NAMESPACE", "POD_IP", "TPU_MIGRATION_URGENT_QUEUE"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("name", sorted(PAGES))
def test_a_page_is_as_the_code_has_it(name):
    path = FOLDER / f"{name}.md"
    assert path.exists(), f"{path.relative_to(ROOT)} is missing: run `make docs` and commit it"
    assert path.read_text() == page(name), f"{path.relative_to(ROOT)} is stale: run `make docs` and commit it"


def test_there_is_no_page_that_nothing_makes():
    assert {path.stem for path in FOLDER.glob("*.md")} == set(PAGES)


@pytest.mark.parametrize("name", sorted(PAGES))
def test_every_line_of_a_table_explains_itself(name):
    rows = re.findall(r"^\| .*\|  \|$", page(name), re.MULTILINE)
    assert not rows, f"say in the code, beside the field or as help, what these are: {rows}"


# ---------------------------------------------------------------- settings


def _read_from_the_environment() -> dict[str, str | None]:
    """Return each variable that the product and its DAGs read, with its default where that is written there."""
    found: dict[str, str | None] = {}
    for file, nodes in sources().items():
        named = {
            node.targets[0].id: node.value.value
            for node in nodes
            if isinstance(node, ast.Assign)
            and isinstance(node.targets[0], ast.Name)
            and isinstance(node.value, ast.Constant)
        }
        for node in nodes:
            if not (
                isinstance(node, ast.Call) and ast.unparse(node.func) in ("os.environ.get", "environ.get", "os.getenv")
            ):
                if isinstance(node, ast.Subscript):
                    assert ast.unparse(node.value) != "os.environ", f"{file}: not understood by this test"
                continue
            name = node.args[0].value if isinstance(node.args[0], ast.Constant) else named[node.args[0].id]
            found[name] = node.args[1].value if len(node.args) > 1 else None
    return found


def test_the_table_of_settings_has_what_is_read_and_nothing_else():
    assert {each.name for each in settings.ENVIRONMENT} - BY_LIBRARIES == _read_from_the_environment().keys()


def test_the_defaults_of_the_settings_are_those_of_the_code():
    told = {each.name: each.default for each in settings.ENVIRONMENT}
    for name, default in _read_from_the_environment().items():
        assert default is None or told[name] == default


def test_the_airflow_variables_and_connections_are_those_of_the_code():
    nodes = [node for file, each in sources().items() if file != "settings.py" for node in each]
    texts = {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    assert {each.name for each in (*settings.VARIABLES, *settings.CONNECTIONS)} <= texts
    calls = [node for node in nodes if isinstance(node, ast.Call)]
    named = {ast.unparse(node.args[0]) for node in calls if ast.unparse(node.func) in ("Variable.get", "Variable.set")}
    assert len(named) == len(settings.VARIABLES), f"settings.VARIABLES does not have all of {named}"


# ---------------------------------------------------------------- exit statuses


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_each_command_says_what_0_and_bad_usage_mean(command):
    each = COMMANDS[command]
    assert {0, each.usage_status} <= each.exits.keys()


@pytest.mark.parametrize(
    ("command", "module"),
    [(name, f"{name}_cli.py") for name in ("plan", "preflight", "deploy", "janitor", "translate", "judge")]
    + [
        ("bench", "bench/loadgen.py"),
        ("parity", "bench/parity.py"),
        ("prober", "bench/prober.py"),
        ("guard", "guard.py"),
    ],
)
def test_no_command_ends_with_a_status_that_is_not_explained(command, module):
    """Numbers, and names that stand for some, in the `return`s of what runs the command."""
    loaded = importlib.import_module(f"tpu_migration.{module.removesuffix('.py').replace('/', '.')}")
    tree = ast.parse((ROOT / "plugins" / "tpu_migration" / module).read_text())
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name in ("main", "run")]
    assert functions
    ended = set()
    for node in (each for function in functions for each in ast.walk(function) if isinstance(each, ast.Return)):
        for part in ast.walk(node.value) if node.value else ():
            if isinstance(part, ast.Constant) and type(part.value) is int:
                ended.add(part.value)
            elif isinstance(part, ast.Name) and type(getattr(loaded, part.id, None)) is int:
                ended.add(getattr(loaded, part.id))
    assert ended <= COMMANDS[command].exits.keys()


# ---------------------------------------------------------------- numbers in prose


@pytest.mark.parametrize("page", ["README.md", "docs/tutorial.md"])
def test_the_pages_count_the_faults_right(page):
    others = len(TABLE) - 1
    assert re.search(rf"\[{others} (other faults|others)\]", (ROOT / page).read_text()), f"there are {others} others"


def test_why_tpu_quotes_the_prices_and_rates_of_the_data():
    """A table of the explanation repeats some rows: they must not grow old apart from the data."""
    told = (ROOT / "docs" / "explanation" / "why-tpu.md").read_text()
    listed = {row[0].strip("`"): row for row in rows()}
    for name, shown in (
        ("tpu-v5e-8", "TPU v5e-8"),
        ("tpu-v6e-8", "TPU v6e-8"),
        ("h100 x1", "one H100"),
        ("l4 x4", "four L4"),
    ):
        _, hbm, _, _, price, spot, speed, on_spot, _ = listed[name]
        assert f"| {shown} | {price} | {spot} | {speed} | {on_spot} | {hbm} GiB |" in told
    dearer = 1 - float(listed["tpu-v5e-8"][4]) / float(listed["h100 x1"][4])
    assert f"costs {dearer:.0%} less".replace("%", " %") in told
    assert f"less than {1 - dearer:.0%} of".replace("%", " %") in told
