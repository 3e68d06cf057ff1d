"""Whole files: documents in order, Lists, errors with their place, and the command line's exit codes."""

from __future__ import annotations

import argparse
import io
import json
from itertools import pairwise

import pytest
import yaml

from tests.unit.translation_builders import IMAGE, config_map, deployment, only, run, service, slice_of
from tpu_migration import translate_cli
from tpu_migration.domain.translation import (
    InputError,
    Translation,
    dump,
    find_vllm_workload,
    load,
    translate_documents,
)

SERVE = ["vllm", "serve"]
GPU = deployment(["Qwen/Qwen3-32B"], SERVE)


def translated(text: str) -> Translation:
    return translate_documents(text, target=slice_of(), image=IMAGE)


def kinds(result: Translation) -> list[str]:
    return [f"{m['kind']}/{m['metadata']['name']}" for m in result.manifests]


def test_every_other_document_is_passed_through_in_order():
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "llm"}}
    custom = {
        "apiVersion": "acme.io/v1",
        "kind": "Widget",
        "metadata": {"name": "w"},
        "spec": {"size": "1e3", "on": "yes"},
    }
    other = deployment(["--v=2"], ["router"], name="router", container={"image": "nginx", "resources": {}})
    settings = config_map("other", text="a\nb\n", date="2024-01-01", octal="0755", y="y")
    result = translated(dump([namespace, GPU, custom, service(), other, settings]))
    order = [name for name in kinds(result) if not name.endswith("-tpu")]
    assert order == ["Namespace/llm", "Widget/w", "Deployment/router", "ConfigMap/other"]
    assert kinds(result).index("Deployment/chat-tpu") == 1
    for document in (namespace, custom, other, settings):
        assert document in result.manifests
    assert load(dump(result.manifests))[0] == result.manifests


def test_strings_that_look_like_numbers_are_written_so_that_kubectl_reads_strings():
    text = dump([config_map("c", sha="12e5678", version="1.10", yes="yes", letter="y", hexed="0x1F")])
    assert "'12e5678'" in text
    assert "'1.10'" in text
    assert "'0x1F'" in text
    assert "letter: 'y'" in text


def test_a_list_is_opened():
    result = translated(yaml.safe_dump({"apiVersion": "v1", "kind": "List", "items": [GPU, service()]}))
    assert {"Deployment/chat-tpu", "Service/chat-tpu"} <= set(kinds(result))


def test_several_workloads_are_translated_each_with_its_own_objects():
    two = deployment(["Qwen/Qwen3-8B"], SERVE, name="small")
    result = translated(dump([GPU, service(), two, service("small")]))
    assert {"Deployment/chat-tpu", "Deployment/small-tpu", "Service/chat-tpu", "Service/small-tpu"} <= set(
        kinds(result)
    )
    lengths = [w.path for w in result.warnings if w.path.endswith("--max-model-len")]
    assert [path.split(" spec.")[0] for path in lengths] == ["Deployment chat", "Deployment small"]
    with pytest.raises(InputError, match="several vLLM workloads"):
        find_vllm_workload([GPU, two])


def test_a_file_that_holds_source_and_target_gives_the_same_target_again():
    once = run(GPU, service())
    text = dump([GPU, service(), *once.manifests])
    again = translated(text)
    assert sorted(kinds(again)) == sorted(kinds(once))
    assert only(again, "Deployment") == only(once, "Deployment")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("a: [1, 2\nb: 3\n", "line 2.*malformed YAML"),
        ("a: b\n\tc: d\n", "line 2"),
        ("kind: Deployment\nmetadata:\n  name: {{ .Values.name }}\n", "line 3.*template"),
        ("apiVersion: v1\nkind: Service\nmetadata: {name: '{{ include \"x\" . }}'}\n", "line 3.*template"),
        ("apiVersion: v1\nkind: Service\nmetadata: {name: '${NAME}'}\n", "template"),
        ("", "no Kubernetes YAML"),
        ("---\n---\n", "no Kubernetes YAML"),
        ("just a sentence\n", "line 1.*mapping"),
        ("- 1\n- 2\n", "mapping"),
        ("a: b\n", "no apiVersion and no kind"),
        ("apiVersion: v1\nkind: Service\nmetadata: {name: x}\n", "no vLLM workload"),
        ("apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: x}\nspec: wrong\n", "spec: a mapping is needed"),
        (
            "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: x}\n"
            "spec: {template: {spec: {containers: {name: x}}}}\n",
            "containers: a list is needed",
        ),
        ("apiVersion: v1\nkind: Service\nmetadata: {}\n", "metadata.name is missing"),
        ("? [a]\n: b\n", "malformed YAML|mapping|apiVersion"),
        ("a: \x00", "malformed YAML"),
    ],
)
def test_input_that_is_no_kubernetes_yaml_is_refused_with_its_place(text, complaint):
    with pytest.raises(InputError, match=complaint):
        translated(text)


BOMB = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{key}: &{key} [{','.join([f'*{before}'] * 10)}]\n" for before, key in pairwise("abcdefghij")
)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("kind: Deployment\nkind: Service\n", "line 2: .*'kind' is given twice"),
        ("metadata:\n\tname: x\n", "line 2: .*with spaces, not with tabs"),
        ("a: *nobody\n", "line 1: .*undefined alias"),
        ("a: 1\nb: &b [*b]\n", "line 2: .*refers to what it is in|line 1: .*refers to what it is in"),
        (BOMB, "aliases repeat too much"),
        ("x: " + "[" * 100_000, "nests more than 100 deep"),
        ("- " * 100_000, "nests more than 100 deep"),
        ("apiVersion: v1\nkind: Secret\nmetadata: {name: \x00}\n", "line 3: .*not allowed"),
        ("a: \ud800\n", "malformed YAML"),
        ("a: !Ref x\n", "line 1: .*!Ref"),
        (
            "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: x}\nspec:\n  replicas: {{ n }}\n",
            "line 5.*template",
        ),
        ("apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: '{{ n }}'}\n", "line 1.*template"),
        ("{{- if .Values.gpu }}\napiVersion: v1\n{{- end }}\n", "line 1.*template"),
        (dump([GPU]).replace("Qwen/Qwen3-32B", "'{{ .Values.model }}'"), "line 3.*template"),
    ],
)
def test_each_kind_of_malformed_input_gets_one_error_that_says_where(text, complaint):
    with pytest.raises(InputError, match=complaint) as caught:
        translated(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "\ufeff" + dump([GPU]),
        dump([GPU]) + "---\n\ufeffapiVersion: v1\nkind: Namespace\nmetadata: {name: llm}\n",
        dump([GPU]).replace("\n", "\r\n"),
        "---\n---\n# nothing here\n---\n" + dump([GPU]) + "\n---\n...\n---\n",
        "%YAML 1.1\n---\n" + dump([GPU]),
        "# rendered from {{ .Values.model }}\n" + dump([GPU]),
        dump([GPU]) + "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\ndata: {t: '{{ .Labels.x }}'}\n",
    ],
)
def test_unusual_but_legal_yaml_is_translated_as_ever(text):
    assert only(translated(text), "Deployment") == only(translated(dump([GPU])), "Deployment")


def test_other_documents_mean_to_kubectl_what_they_meant_before():
    odd = "t: 12:30, e: 1e3, d: 2024-01-01, eq: =, octal: 0644, v: 1.10, s: '1e3', yes: 'yes', n: '012'"
    custom = f"apiVersion: acme.io/v1\nkind: Widget\nmetadata: {{name: w}}\nspec: {{{odd}}}\n"
    result = translated(dump([GPU]) + "---\n" + custom)
    spec = {"t": "12:30", "e": 1000.0, "d": "2024-01-01", "eq": "=", "octal": 420, "v": 1.1, "s": "1e3", "n": "012"}
    assert only(result, "Widget")["spec"] == {**spec, True: "yes"}
    assert load(dump(result.manifests))[0] == result.manifests


def test_merge_keys_override_without_being_duplicates():
    text = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\ndata: &d {x: '1', y: '2'}\n---\n"
    text += "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: b}\ndata: {<<: {x: '1', y: '2'}, y: '3'}\n"
    assert [document["data"] for document in load(text)[0]] == [{"x": "1", "y": "2"}, {"x": "1", "y": "3"}]


def _wrapped(kind: str, api_version: str, **spec: object) -> dict:
    return {"apiVersion": api_version, "kind": kind, "metadata": {"name": "w"}, "spec": spec}


@pytest.mark.parametrize(
    "document",
    [
        _wrapped("Pod", "v1", **GPU["spec"]["template"]["spec"]),
        _wrapped("Rollout", "argoproj.io/v1alpha1", template=GPU["spec"]["template"]),
        _wrapped("CronJob", "batch/v1", jobTemplate={"spec": {"template": GPU["spec"]["template"]}}),
        _wrapped("RayService", "ray.io/v1", serveConfigV2="import_path: ray.serve.llm:build_openai_app"),
        _wrapped("InferenceService", "serving.kserve.io/v1beta1", predictor={"model": {"runtime": "kserve-vllm"}}),
        _wrapped("LLMInferenceService", "serving.kserve.io/v1alpha1", model={"uri": "hf://a/b"}, router="vllm"),
        _wrapped("SomethingNew", "acme.io/v1", parts=[{"pod": GPU["spec"]["template"]["spec"]}]),
    ],
)
def test_a_workload_of_a_kind_that_cannot_move_is_named_and_left_as_it_is(document):
    result = translated(dump([document]))
    assert result.blockers[0].path == f"{document['kind']} w"
    assert result.manifests == [document]
    assert result.changes == []


def test_a_jinja_chat_template_is_no_helm_template():
    source = deployment(["Qwen/Qwen3-32B", "--chat-template={{ messages }}{% if x %}"], SERVE)
    assert translated(dump([source])).blockers == []


@pytest.mark.parametrize("kind", ["StatefulSet", "DaemonSet", "Job"])
def test_other_workloads_are_refused_with_the_reason_and_passed_through(kind):
    other = {**deployment(["Qwen/Qwen3-32B"], SERVE), "kind": kind}
    result = translated(dump([other]))
    assert kind in result.blockers[0].message
    assert result.manifests == [other]


def test_a_leader_worker_set_is_refused():
    template = deployment(["Qwen/Qwen3-32B"], SERVE)["spec"]["template"]
    group = {
        "apiVersion": "leaderworkerset.x-k8s.io/v1",
        "kind": "LeaderWorkerSet",
        "metadata": {"name": "big"},
        "spec": {"leaderWorkerTemplate": {"leaderTemplate": template, "workerTemplate": template}},
    }
    assert "LeaderWorkerSet" in translated(dump([group])).blockers[0].message


def test_a_vllm_router_is_not_taken_for_a_server():
    router = deployment(
        ["--port=80"], name="router", container={"image": "lmcache/lmstack-vllm-router:v1", "resources": {}}
    )
    with pytest.raises(InputError, match="no vLLM workload"):
        translated(dump([router]))


def _cli(monkeypatch, capsys, text: str, *arguments: str) -> tuple[int, str, str]:
    parser = argparse.ArgumentParser()
    translate_cli.add_arguments(parser)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    code = translate_cli.main(parser.parse_args(["-f", "-", *arguments]))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_the_command_prints_manifests_and_says_what_changed_beside_them(monkeypatch, capsys):
    small = deployment(["Qwen/Qwen3-8B"], SERVE)
    code, out, err = _cli(monkeypatch, capsys, dump([small]), "--target", "tpu-v5e-4")
    assert code == 0
    assert only(Translation(load(out)[0], [], [], []), "Deployment")["metadata"]["name"] == "chat-tpu"
    assert "--tensor-parallel-size: - -> 4" in err
    assert "0 blockers" in err


def test_the_command_gives_everything_as_json(monkeypatch, capsys):
    code, out, err = _cli(monkeypatch, capsys, dump([GPU]), "--format", "json")
    assert (code, err) == (0, "")
    assert set(json.loads(out)) == {"manifests", "changes", "warnings", "blockers"}


def test_the_command_exits_1_on_a_blocker_and_2_on_what_is_no_manifest(monkeypatch, capsys):
    blocked = deployment(["deepseek-ai/DeepSeek-V3"], SERVE)
    assert _cli(monkeypatch, capsys, dump([blocked]))[0] == 1
    code, out, err = _cli(monkeypatch, capsys, "x: [\n")
    assert (code, out) == (2, "")
    assert err.startswith("error: stdin: line ")
    assert _cli(monkeypatch, capsys, dump([GPU]), "--target", "tpu-v9-8")[0] == 2


def test_a_file_that_is_not_there_is_exit_2(tmp_path, capsys):
    parser = argparse.ArgumentParser()
    translate_cli.add_arguments(parser)
    assert translate_cli.main(parser.parse_args(["-f", str(tmp_path / "none.yaml")])) == 2
    assert "cannot be read" in capsys.readouterr().err
