"""docker-compose.yaml and the Dockerfile: valid, without a default secret, each image with what it needs."""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
from fnmatch import fnmatch
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from deployment import make_env
from tests.compose_file import COMPOSE, ROOT, NotSet, copied_into, image_stages, read, services
from tpu_migration.operators.urgent import QUEUE_VARIABLE

VALUES = make_env.values()
SECRETS = VALUES.keys() - {"COMPOSE_PROFILES"}
PROFILES = ("cluster", "sandbox")
# The toolbox image: what it may weigh installed, which is more than its wheels (150 MB).
INSTALLED_LIMIT_MB = 250


def test_the_file_is_what_compose_specifies():
    command = [str(Path(sys.executable).parent / "check-jsonschema"), "--builtin-schema", "vendor.compose-spec"]
    shown = subprocess.run([*command, str(COMPOSE)], capture_output=True, text=True, check=False)
    assert shown.returncode == 0, shown.stdout + shown.stderr


# ----------------------------------------------------------------------------------- secrets


@pytest.mark.parametrize("name", sorted(SECRETS))
def test_without_a_secret_nothing_starts_and_the_message_names_the_remedy(name):
    with pytest.raises(NotSet, match=f"{name} is not set: run `make up`"):
        read({**VALUES, name: ""})


def test_no_secret_has_a_default_and_no_variable_is_without_a_maker():
    used = set(re.findall(r"(?<!\$)\$\{(\w+)", COMPOSE.read_text()))
    assert used == SECRETS
    assert not re.search(r"\$\{\w+:?-", COMPOSE.read_text()), "a default would be known to everybody"


def test_secrets_are_drawn_anew_and_long_enough_for_what_they_guard():
    again = make_env.values()
    for name in SECRETS:
        assert again[name] != VALUES[name]
        assert len(VALUES[name]) >= 16
    from cryptography.fernet import Fernet

    Fernet(VALUES["FERNET_KEY"])


def test_the_file_of_secrets_is_for_its_owner_alone_and_is_never_written_again(tmp_path, capsys):
    path = tmp_path / ".env"
    assert make_env.main(["--out", str(path)]) == 0
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    before = path.read_text()
    assert make_env.main(["--out", str(path)]) == 0
    assert path.read_text() == before
    shown = capsys.readouterr().out
    assert not any(
        VALUES[name] in shown or value in shown for name, value in _parsed(before).items() if name in SECRETS
    )
    assert _parsed(before).keys() == VALUES.keys()


def _parsed(text: str) -> dict[str, str]:
    return dict(line.split("=", 1) for line in text.splitlines() if line and not line.startswith("#"))


def test_the_file_of_secrets_gets_into_no_image_and_no_commit():
    ignored = (ROOT / ".dockerignore").read_text().split("\n")
    assert "*" in ignored, "only what is named gets in"
    assert not any(fnmatch(".env", line.removeprefix("!")) for line in ignored if line.startswith("!"))
    assert ".env" in (ROOT / ".gitignore").read_text().split()


# ------------------------------------------------------------------------------------ services


@pytest.mark.parametrize("profile", PROFILES)
def test_every_part_of_airflow_is_there_with_a_health_check_and_a_limit(profile):
    found = services(VALUES, profile)
    commands = [" ".join(each.command) for each in found.values()]
    for part in ("db migrate", "api-server", "scheduler", "dag-processor", "triggerer", "celery worker"):
        assert any(part in command for command in commands), part
    for name, each in found.items():
        if name not in ("airflow-init", "sandbox"):
            assert each.health, name
        if name != "airflow-init":
            limits = each.body["deploy"]["resources"]["limits"]
            assert limits["memory"], name
            assert float(limits["cpus"]) <= 2, f"{name}: Docker refuses more than the machine has"
    assert {"postgres", "redis", "airflow-apiserver"} <= found.keys()


@pytest.mark.parametrize("profile", PROFILES)
def test_each_queue_has_a_worker_and_the_way_home_one_of_its_own(profile):
    found = services(VALUES, profile)
    queues = {
        each.command[each.command.index("--queues") + 1]: name
        for name, each in found.items()
        if "--queues" in each.command
    }
    urgent = {each.environment.get(QUEUE_VARIABLE) for each in found.values() if "airflow" in each.name}
    assert urgent == {"tpu-migration-urgent"}
    assert queues.keys() == {"default", "tpu-migration-urgent"}
    assert len(set(queues.values())) == 2, "one worker for both would let a restore wait behind a stage"


@pytest.mark.parametrize("profile", PROFILES)
def test_nothing_listens_for_others_than_this_machine(profile):
    for each in services(VALUES, profile).values():
        for port in each.body.get("ports", []):
            assert str(port).startswith("127.0.0.1:"), each.name


def test_what_must_reach_the_sandbox_shares_its_network_for_its_servers_are_on_loopback():
    found = services(VALUES, "sandbox")
    joined = {name for name, each in found.items() if each.body.get("network_mode") == "service:sandbox"}
    runs_stages = {n for n, each in found.items() if {"triggerer", "worker"} & set(each.command)}
    assert joined == runs_stages
    for name in joined:
        assert found[name].environment["GRPC_DEFAULT_SSL_ROOTS_FILE_PATH"].startswith("/sandbox/")


def test_the_profiles_differ_in_nothing_but_the_place():
    cluster, sandbox = services(VALUES, "cluster"), services(VALUES, "sandbox")
    for ours in ("triggerer", "worker", "worker-urgent"):
        assert cluster[f"airflow-{ours}"].command == sandbox[f"sandbox-{ours}"].command
    shared = {name for name in cluster if not name.startswith(("airflow-triggerer", "airflow-worker"))}
    assert shared == {name for name in sandbox if not name.startswith("sandbox")}


# -------------------------------------------------------------------------------------- images


def test_a_triggerer_that_dies_has_another_beside_it():
    assert services(VALUES, "cluster")["airflow-triggerer"].body["deploy"]["replicas"] == 2


def test_the_images_are_those_that_compose_and_the_manifests_name():
    stages = image_stages()
    built = {each.body["build"]["target"] for each in services(VALUES, "sandbox").values() if "build" in each.body}
    assert built <= stages.keys()
    assert list(stages)[-1] == "toolbox", "a build without a target makes the last"
    guard = (ROOT / "include" / "manifests" / "guard.yaml").read_text()
    assert re.search(r"image: tpu-migration-toolbox:", guard)


def test_airflow_in_the_image_is_the_one_that_the_constraints_pin():
    (tag,) = re.findall(r"^ARG AIRFLOW=(\S+)$", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    assert f"apache-airflow=={tag}" in (ROOT / "constraints.txt").read_text().split("\n")


def test_the_toolbox_runs_as_nobody_as_its_manifests_demand():
    (user,) = re.findall(r"^USER (\d+)", image_stages()["toolbox"], flags=re.MULTILINE)
    assert user == "65532"
    for manifest in ("guard.yaml", "prober.yaml", "bench-job.yaml"):
        assert f"runAsUser: {user}" in (ROOT / "include" / "manifests" / manifest).read_text(), manifest


def test_a_folder_of_a_volume_is_in_the_image_and_airflows_own_or_docker_would_give_it_to_root():
    made = re.search(r"install --directory --owner=airflow .*", image_stages()["airflow"])
    for profile in PROFILES:
        for each in services(VALUES, profile).values():
            volumes = [volume.split(":") for volume in each.body.get("volumes", []) if not volume.startswith(".")]
            for _, path, *_mode in volumes:
                assert each.name == "postgres" or path in made[0].split(), f"{each.name}: {path}"


def test_every_file_that_the_images_copy_gets_past_the_ignore_file():
    kept = {line.removeprefix("!") for line in (ROOT / ".dockerignore").read_text().split() if line.startswith("!")}
    for stage in image_stages():
        for source, _ in copied_into(stage):
            assert any(fnmatch(source, each) for each in kept), source
            assert (ROOT / source).exists(), source


def _toolbox_packages() -> dict[str, metadata.Distribution]:
    """Return what `pip install tpu-migration[toolbox]` brings, from what is installed here."""
    found: dict[str, metadata.Distribution] = {}
    waiting = [Requirement("tpu-migration[toolbox]")]
    while waiting:
        wanted = waiting.pop()
        distribution = metadata.distribution(wanted.name)
        found[wanted.name.lower()] = distribution
        extras = [{"extra": each} for each in (*wanted.extras, "")]
        for text in distribution.requires or []:
            needed = Requirement(text)
            applies = needed.marker is None or any(needed.marker.evaluate(extra) for extra in extras)
            if applies and needed.name.lower() not in found:
                waiting.append(needed)
    return found


def test_the_toolbox_is_small_and_knows_neither_airflow_nor_google():
    packages = _toolbox_packages()
    assert {"kubernetes", "aiohttp", "numpy", "scipy", "msgspec"} <= packages.keys()
    assert not {name for name in packages if re.match(r"apache-airflow|google-|grpc|matplotlib", name)}
    size = sum(os.path.getsize(path) for each in packages.values() for path in _files(each))
    assert size < INSTALLED_LIMIT_MB * 1e6, f"{size / 1e6:.0f} MB installed"


def _files(distribution: metadata.Distribution) -> list[Path]:
    paths = [Path(str(distribution.locate_file(each))) for each in distribution.files or []]
    return [path for path in paths if path.suffix != ".pyc" and path.is_file()]


def test_bench_prober_and_guard_run_on_what_the_toolbox_has(tmp_path):
    """In an interpreter that sees those packages, the package itself, and nothing else of this environment."""
    packages = _toolbox_packages()
    del packages["tpu-migration"]  # installed here as a link to the checkout
    for distribution in packages.values():
        for each in distribution.files or []:
            top = each.parts[0]
            if top not in ("..", "__pycache__") and not (tmp_path / top).exists():
                (tmp_path / top).symlink_to(Path(str(distribution.locate_file(top))))
    (tmp_path / "tpu_migration").symlink_to(ROOT / "plugins" / "tpu_migration")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "import tpu_migration.bench.loadgen, tpu_migration.bench.prober, tpu_migration.guard\n"
        "import tpu_migration.domain.gate, tpu_migration.clients.kubernetes, tpu_migration.judge_cli\n"
        "from tpu_migration.cli import main\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    for command in ("bench", "prober", "guard", "judge", "restore"):
        argv = [sys.executable, "-I", "-S", "-B", "-c", code, command, "--help"]
        shown = subprocess.run(argv, capture_output=True, text=True, check=False)
        assert shown.returncode == 0, shown.stderr
        assert f"tpu-migration {command}" in shown.stdout
