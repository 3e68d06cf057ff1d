"""What holds for every file that mixes styles at random: what moves, what stays, and what is never crossed."""

from __future__ import annotations

import copy
import json
import shlex
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.kubernetes_schemas import problems
from tests.unit.translation_builders import IMAGE, config_map, deployment, line_of, service, slice_of
from tpu_migration.domain.translation import Translation, dump, load, translate_documents
from tpu_migration.domain.translation.environment import why_removed
from tpu_migration.domain.translation.flags import REMOVED
from tpu_migration.domain.translation.labels import selects
from tpu_migration.domain.translation.vocabulary import is_switch

# Derandomized: the same examples on each run, so that a failure is the change's and can be repeated.
MANY = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
MODELS = ["Qwen/Qwen3-8B", "google/gemma-3-27b-it", "RedHatAI/Meta-Llama-3.1-8B-Instruct-FP8", "/models/mine", "phi-4"]
GPU_FLAGS = sorted(name for name in REMOVED if name not in {"task", "quantization-config"})
GPU_NAMES = ["CUDA_HOME", "NCCL_DEBUG", "NVIDIA_VISIBLE_DEVICES", "UCX_TLS", "VLLM_USE_V1", "PYTORCH_CUDA_ALLOC_CONF"]
LABELS = st.dictionaries(
    st.sampled_from(["app", "team", "tier", "app.kubernetes.io/name", "version"]),
    st.sampled_from(["a", "b", "chat", "chat-tpu"]),
    min_size=1,
)
OTHERS: list[dict[str, Any]] = [
    {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "llm"}},
    {
        "apiVersion": "acme.io/v1",
        "kind": "Widget",
        "metadata": {"name": "w"},
        "spec": {"a": [1, "1e3", None, True, 1.5]},
    },
    {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s", "namespace": "llm"}, "stringData": {"k": "a\nb "}},
    {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "sa", "namespace": "llm"}},
    config_map("alerts", text="{{ range .Alerts }}\n", date="2024-01-01", cuda="CUDA_HOME=/x"),
    deployment(["--port=80"], ["router"], name="router", container={"image": "nginx:1", "resources": {}}, pod={}),
]


def spell(draw: st.DrawFn, name: str, value: str | None) -> list[str]:
    """Write an option in one of the ways that people do."""
    flag = f"--{name.replace('-', '_')}" if draw(st.booleans()) else f"--{name}"
    if value is None:
        return [flag]
    return [f"{flag}={value}"] if draw(st.booleans()) else [flag, value]


@st.composite
def files(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Draw a file: a GPU workload in a random style, Services, and others around it in random order."""
    model = draw(st.sampled_from(MODELS))
    served = draw(st.sampled_from([[], ["one"], ["one", "two"]]))
    words = [
        spell(draw, name, None if is_switch(name) else "1")
        for name in draw(st.sets(st.sampled_from(GPU_FLAGS), max_size=5))
    ]
    words += [spell(draw, "max-model-len", "4096"), spell(draw, "port", draw(st.sampled_from(["8000", "9001"])))]
    if served:
        words.append(["--served-model-name", *served])
    if draw(st.booleans()):
        words.append(spell(draw, "chat-template", "{{ m }} 'x' \"y\""))
    in_variable = draw(st.booleans())
    given_model = "$(MODEL)" if in_variable else model
    flat = [word for option in draw(st.permutations(words)) for word in option]
    env = [{"name": name, "value": "x"} for name in draw(st.sets(st.sampled_from(GPU_NAMES)))]
    configs = [config_map("settings", MODEL=model, NCCL_DEBUG="INFO", OTHER="kept")] if in_variable else []
    container = {"envFrom": [{"configMapRef": {"name": "settings"}}]} if in_variable else {}
    labels = draw(LABELS)
    style = draw(st.sampled_from(["serve", "image", "module", "sh", "bash", "chain"]))
    positional = [given_model, *flat]
    named = ["--model", given_model, *flat]
    script = " ".join(
        word if word == "$(MODEL)" else shlex.quote(word) for word in (named if style == "bash" else positional)
    )
    command, args = {
        "serve": (["vllm", "serve"], positional),
        "image": (None, named),
        "module": (["python3", "-m", "vllm.entrypoints.openai.api_server"], named),
        "sh": (["/bin/sh", "-c", f"exec vllm serve {script}"], None),
        "bash": (
            ["bash", "-exc"],
            [f"# start\nexport NCCL_P2P_DISABLE=1\nexec python3 -m vllm.entrypoints.openai.api_server {script}\n"],
        ),
        "chain": (["sh", "-ec", f"nvidia-smi && mkdir -p /tmp/x && exec vllm serve {script} 2>&1"], None),
    }[style]
    source = deployment(args, command, env=env, labels=labels, container=container)
    around = draw(st.lists(st.sampled_from(OTHERS), unique_by=lambda document: document["metadata"]["name"]))
    # Other people's Services, and one that asks for just what the target would be called.
    like_target = {key: f"{value}-tpu" for key, value in labels.items()}
    selectors = draw(st.lists(st.one_of(LABELS, st.just(labels), st.just(like_target)), max_size=3))
    fronts = [service(f"front-{index}", selector) for index, selector in enumerate(selectors)]
    return draw(st.permutations([source, *configs, *fronts, *copy.deepcopy(around)]))


def translated(documents: list[dict[str, Any]]) -> Translation:
    return translate_documents(dump(documents), target=slice_of(), image=IMAGE)


def is_gpu(document: dict[str, Any]) -> bool:
    return document["kind"] == "Deployment" and document["metadata"]["name"] == "chat"


def alone(result: Translation) -> Translation:
    """Leave the pass-through Deployment out, for the helpers that expect one."""
    kept = [m for m in result.manifests if m["kind"] != "Deployment" or m["metadata"]["name"] == "chat-tpu"]
    return Translation(kept, result.changes, result.warnings, result.blockers)


@MANY
@given(files())
def test_no_gpu_resource_flag_or_variable_survives(documents):
    result = alone(translated(documents))
    line = line_of(result)
    assert [option.written for option in line.options if option.name in REMOVED] == []
    target = next(m for m in result.manifests if m["metadata"]["name"] == "chat-tpu" and m["kind"] == "Deployment")
    assert "nvidia" not in json.dumps(target)
    assert "NCCL" not in json.dumps(target["spec"]["template"]["spec"])
    for container in target["spec"]["template"]["spec"]["containers"]:
        assert [entry["name"] for entry in container["env"] if why_removed(entry["name"])] == []


@MANY
@given(files())
def test_every_name_that_the_source_answers_to_is_served(documents):
    source = next(filter(is_gpu, documents))
    text = json.dumps(source)
    expected = (
        ["one", "two"]
        if '"two"' in text or " one two" in text
        else ["one"]
        if '"one"' in text or " one" in text
        else None
    )
    names = line_of(alone(translated(documents))).served_names()
    if expected is None:
        settings_map = [d["data"]["MODEL"] for d in documents if d["metadata"]["name"] == "settings"]
        expected = settings_map or [model for model in MODELS if model in text]
    assert names == expected


@MANY
@given(files())
def test_no_service_ever_selects_the_other_sides_pods(documents):
    source = next(filter(is_gpu, documents))
    gpu_labels = source["spec"]["template"]["metadata"]["labels"]
    result = translated(documents)
    target = next(m for m in result.manifests if m["kind"] == "Deployment" and m["metadata"]["name"] == "chat-tpu")
    tpu_labels = target["spec"]["template"]["metadata"]["labels"]
    for front in (d for d in documents if d["kind"] == "Service"):
        assert not selects({"matchLabels": front["spec"]["selector"]}, tpu_labels)
    own = next(m for m in result.manifests if m["kind"] == "Service" and m["metadata"]["name"] == "chat-tpu")
    assert selects({"matchLabels": own["spec"]["selector"]}, tpu_labels)
    assert not selects({"matchLabels": own["spec"]["selector"]}, gpu_labels)
    assert not selects(target["spec"]["selector"], gpu_labels)


@MANY
@given(files())
def test_nothing_unrelated_changes_and_its_order_stays(documents):
    names = {document["metadata"]["name"] for document in OTHERS} | {"settings"}
    before = [document for document in load(dump(documents))[0] if document["metadata"]["name"] in names]
    after = [manifest for manifest in translated(documents).manifests if manifest["metadata"]["name"] in names]
    assert after == before


@MANY
@given(files())
def test_the_translation_given_again_comes_back_unchanged(documents):
    once = translated(documents)
    again = translated(once.manifests)
    assert again.manifests == once.manifests
    assert again.changes == []


@settings(MANY, max_examples=20)
@given(files())
def test_an_api_server_would_accept_whatever_comes_out(documents):
    assert [problem for manifest in translated(documents).manifests for problem in problems(manifest)] == []
