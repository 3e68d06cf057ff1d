"""Whatever a name or a parameter holds, no shell, template, path or parser ever takes it for its own."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from tests.unit.cluster import record
from tpu_migration.clients.kubernetes import CONFIG_MAPS, PODS
from tpu_migration.domain.fleet import EXAMPLE, FleetError, parse_fleet
from tpu_migration.domain.phases import Phase
from tpu_migration.domain.plan import Plan, PlanError
from tpu_migration.domain.translation import InputError, dump, translate_documents
from tpu_migration.notices import notices
from tpu_migration.report.preflight_page import render
from tpu_migration.resources import INCLUDE, manifests
from tpu_migration.stages.load import through_gateway
from tpu_migration.stages.objects import target_slice

ROOT = Path(__file__).parents[2]
HOSTILE = (
    "$(id)", "`id`", "${IFS}", "; rm -rf /", "\"; rm -rf /; \"", "' || true #", "a b", "a\nb", "a\x00b", "a\u2028b",
    "{{ 7*7 }}", "{% raw %}", "{{ conn.google_cloud_default.password }}", "<script>alert(1)</script>",
    "*[x](javascript:alert(1))*", "!!python/object/apply:os.system [id]", "&a [*a]", "../../secrets/hf", "..", "%2e%2e",
    "-x", "--flag", "a;b", "a|b", "a&b", "名", "",
)  # fmt: skip
TEXTS = [each.name for each in fields(Plan) if isinstance(each.default, str)]
LISTS = ["client_features", "capacity_plan", "approvals"]
# An address may hold what a name may not; none of these is one.
EMPTY_IS_NONE = {each.name for each in fields(Plan) if each.default == ""}


@pytest.mark.parametrize("name", TEXTS)
def test_no_text_of_a_plan_may_be_anything_but_what_it_names(name):
    for hostile in HOSTILE:
        if hostile == "" and name in EMPTY_IS_NONE:
            continue
        for value in (hostile, f"{getattr(Plan(), name) or 'vllm'}{hostile}"):
            if re.fullmatch(r"[a-z0-9][a-z0-9_.-]*|[a-z0-9][a-z0-9/-]*:[a-z0-9.-]+", value):
                continue  # "vllm--flag" is a name like another, and a tag may have dots
            with pytest.raises(PlanError) as refused:
                Plan.from_params({name: value})
            assert name in str(refused.value)
            assert str(refused.value).isprintable(), "one line, without a control character"


@pytest.mark.parametrize(
    "url", ["https://me:s3cretKEY@prometheus.example", "https://prometheus.example/?token=s3cretKEY"]
)
def test_an_address_with_a_key_in_it_is_refused_and_not_repeated(url):
    """Parameters are kept in plain text: by Airflow, in the record, in a report."""
    with pytest.raises(PlanError) as refused:
        Plan.from_params({"prometheus_url": url})
    assert "without user, password and query" in str(refused.value)
    assert "s3cretKEY" not in str(refused.value)


@pytest.mark.parametrize("name", ["tpu_image", "toolbox_image"])
def test_an_image_is_kept_by_its_digest(name):
    image = "europe-docker.pkg.dev/p/r/vllm@sha256:" + "0a" * 32
    for each in (image, image.replace("@", ":v0.32.0@")):
        assert getattr(Plan.from_params({name: each}), name) == each
    for wrong in (image[:-1], image.replace("sha256", "md5")):
        with pytest.raises(PlanError, match=name):
            Plan.from_params({name: wrong})


@pytest.mark.parametrize("name", LISTS)
def test_no_entry_of_a_list_may_be_anything_but_what_it_names(name):
    for hostile in HOSTILE:
        with pytest.raises(PlanError, match=name):
            Plan.from_params({name: [hostile]})


def test_a_fleet_with_a_hostile_name_is_refused():
    place = json.loads(EXAMPLE)[0]
    for hostile in HOSTILE:
        for name in ("project_id", "location", "cluster"):
            with pytest.raises(FleetError):
                parse_fleet([{**place, name: hostile}])
        with pytest.raises(FleetError):
            parse_fleet([{**place, "namespaces": [hostile]}])


def test_no_name_reaches_another_object():
    for hostile in HOSTILE:
        for path in (CONFIG_MAPS.path("inference", hostile or "x"), PODS.path(hostile, "x")):
            assert re.fullmatch(r"/api/v1/namespaces/[^/?#\s]*/(configmaps|pods)/[^/?#\s]+", path), path


# ------------------------------------------------------------------------------- what runs in the cluster


def test_nothing_of_ours_in_the_cluster_runs_by_a_shell():
    """An argument of a Job is one word to its program, whatever is in it."""
    seen = 0
    for name in ("bench-job.yaml", "prober.yaml", "guard.yaml"):
        for each in manifests(name):
            for container in each.get("spec", {}).get("template", {}).get("spec", {}).get("containers", ()):
                seen += 1
                assert container["command"][0] == "tpu-migration"
                assert all(isinstance(word, str) for word in [*container["command"], *container["args"]])
    assert seen == 3


def test_a_model_name_of_the_source_is_one_word_of_a_jobs_arguments():
    for hostile in HOSTILE:
        words = through_gateway(_serving(hostile), "target")
        assert f"--model={hostile}" in words, "one argument, so that a dash does not make it a flag"


def _serving(name: str):
    from dataclasses import replace

    return replace(record().source, served_names=(name,))


# ------------------------------------------------------------------------------- documents


def _deployment(name: str, **container: object) -> str:
    pod = {
        "containers": [
            {
                "name": "vllm",
                "image": "vllm/vllm-openai:v0.32.0",
                "args": ["--model=google/gemma-3-27b-it", "--served-model-name", name],
                "resources": {"limits": {"nvidia.com/gpu": "2"}},
                **container,
            }
        ],
        "nodeSelector": {"cloud.google.com/gke-accelerator": "nvidia-h100-80gb"},
    }
    return yaml.safe_dump(
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": "vllm", "annotations": {"note": name}},
            "spec": {
                "selector": {"matchLabels": {"app": "vllm"}},
                "template": {"metadata": {"labels": {"app": "vllm"}}, "spec": pod},
            },
        }
    )


def translated(text: str):
    return translate_documents(text, target=target_slice("tpu-v5e-8"), image="vllm/vllm-tpu:v0.32.0")


@pytest.mark.parametrize("hostile", [each for each in HOSTILE if each and "\x00" not in each])
def test_a_hostile_value_comes_out_of_a_translation_as_it_went_in(hostile):
    made = translated(_deployment(hostile, env=[{"name": "NOTE", "value": hostile}])).manifests
    again = list(yaml.safe_load_all(dump(made)))
    assert again == made, "written YAML reads as what was meant, by any parser without tags"
    (deployment,) = [each for each in again if each["kind"] == "Deployment"]
    container = deployment["spec"]["template"]["spec"]["containers"][0]
    assert {"name": "NOTE", "value": hostile} in container["env"]
    assert any(hostile in word for word in container["args"])


@pytest.mark.parametrize("tag", ["!!python/object/apply:os.system ['id']", "!!python/name:os.system", "!Sub '${x}'"])
def test_a_document_with_a_tag_that_makes_objects_is_refused(tag):
    with pytest.raises(InputError):
        translated(f"apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: {tag}}}\n")


# ------------------------------------------------------------------------------- what people read


def test_a_notice_of_a_hostile_reason_has_a_title_of_our_own():
    """A title is what a phone shows: nothing in it comes from a log or an answer."""
    before = record(Phase.SHIFTING)
    for hostile in HOSTILE:
        after = record(Phase.HELD, verdict={"outcome": "inconclusive", "sentence": hostile})
        (told,) = [each for each in notices(before, after) if each.title.endswith("held")]
        assert told.title == f"{before.workload}: held"


def test_the_page_of_preflight_keeps_to_its_lines():
    from tpu_migration.domain.preflight import BLOCKER, Finding, Report

    for hostile in HOSTILE:
        page = render(Report((Finding(BLOCKER, "code", f"Secret {hostile}", "is gone", "create it"),), (), ()), Plan())
        lines = page.splitlines()
        assert lines[0].startswith("BLOCKED")
        assert sum(line.startswith("  blocker") for line in lines) == 1


# ------------------------------------------------------------------------------- shells that there are


def test_the_scripts_of_the_compose_file_take_values_from_the_environment_alone():
    """A value that compose puts into a script's text would be read by the shell as its own."""
    services = yaml.safe_load((ROOT / "docker-compose.yaml").read_text())["services"]
    scripts = [
        word
        for each in services.values()
        for command in (each.get("command"), each.get("entrypoint"), (each.get("healthcheck") or {}).get("test"))
        if isinstance(command, list) and {"bash", "sh", "CMD-SHELL"} & set(command)
        for word in command
    ]
    assert scripts
    for script in scripts:
        assert "$" not in script.replace("$$", ""), script
        for found in re.finditer(r"\$\$\{?\w+\}?", script):
            quotes = script[: found.start()].rpartition("\n")[2].count('"')
            assert quotes % 2 == 1, f"unquoted {found[0]} in: {script}"


def test_a_command_that_is_shown_to_people_is_quoted():
    """The way back, and the command for the next step, are pasted into a shell."""
    source = "".join((ROOT / "plugins" / "tpu_migration" / file).read_text() for file in (
        "stages/decommission.py", "deploying.py", "domain/node_pools.py"))  # fmt: skip
    assert source.count("shlex.join") >= 3
    for hostile in HOSTILE:
        assert shlex.split(shlex.join(["--conf", hostile])) == ["--conf", hostile]


def test_no_code_of_ours_calls_a_shell_or_evaluates_text():
    forbidden = re.compile(r"\bsubprocess\b|os\.system|\beval\(|\bexec\(|yaml\.(?:unsafe_)?load\(|pickle|Template\(")
    files = [file for folder in ("plugins", "dags", "deployment") for file in (ROOT / folder).rglob("*.py")]
    found = [f"{file}: {line}" for file in files for line in file.read_text().splitlines() if forbidden.search(line)]
    assert found == []
    assert not any("{{" in file.read_text() for file in (INCLUDE / "manifests").rglob("*.yaml"))
