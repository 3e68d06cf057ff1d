"""The public manifests of ../shared/manifests: what their translation must do."""

from __future__ import annotations

import pytest

from tests.unit.translation_builders import IMAGE, SHARED, env_of, line_of, only, pod_of, server_of, slice_of
from tpu_migration.domain.translation import Translation, dump, load, translate_documents

FOLDER = SHARED / "manifests"
GEMMA = "gke-samples-vllm-3-27b-it.yaml"
LLAMA = "production-stack-gpu-deployment.yaml"
MISTRAL = "vllm-docs-nvidia.yaml"

pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="../shared/manifests is not here")


def translated(name: str) -> Translation:
    return translate_documents((FOLDER / name).read_text(), target=slice_of(), image=IMAGE)


@pytest.mark.parametrize("name", [GEMMA, LLAMA, MISTRAL])
def test_public_manifests_translate_without_a_blocker_and_without_a_gpu_left(name):
    result = translated(name)
    assert result.blockers == []
    assert "nvidia" not in dump(result.manifests)
    line = line_of(result)
    assert line.integer("tensor-parallel-size") == 8
    for flag in ("max-model-len", "max-num-seqs", "max-num-batched-tokens"):
        assert line.integer(flag), flag
    assert server_of(result)["command"]
    assert server_of(result)["resources"]["limits"]["google.com/tpu"] == 8


@pytest.mark.parametrize("name", [GEMMA, LLAMA, MISTRAL])
def test_translating_the_translation_changes_nothing(name):
    once = translated(name)
    again = translate_documents(dump(once.manifests), target=slice_of(), image=IMAGE)
    assert again.manifests == once.manifests
    assert again.changes == []
    assert "already" in again.warnings[0].message


def test_gemma_keeps_its_limits_and_its_name_and_loses_what_its_server_would_refuse():
    result = translated(GEMMA)
    line = line_of(result)
    assert line.get("swap-space") is None
    assert (line.integer("max-model-len"), line.integer("max-num-seqs")) == (32768, 4)
    assert line.value("gpu-memory-utilization") == "0.90"
    assert line.served_names() == ["google/gemma-3-27b-it"]
    assert "LD_LIBRARY_PATH" not in env_of(result)
    assert {"name": "dshm", "emptyDir": {"medium": "Memory"}} in pod_of(result)["volumes"]


def test_gemma_may_be_served_for_text_only():
    from tpu_migration.domain.translation import Sizing

    text = (FOLDER / GEMMA).read_text()
    result = translate_documents(text, target=slice_of(), image=IMAGE, sizing=Sizing(text_only=True))
    assert line_of(result).value("limit-mm-per-prompt") == '{"image":0}'
    assert line_of(result).get("disable-chunked-mm-input") is None


def test_the_lora_side_car_its_volume_and_its_config_stay():
    result = translated(LLAMA)
    pod = pod_of(result)
    assert [c["name"] for c in pod["initContainers"]] == ["lora-adapter-syncer"]
    assert pod["initContainers"][0]["restartPolicy"] == "Always"
    assert only(result, "ConfigMap") == load((FOLDER / LLAMA).read_text())[0][1]
    line = line_of(result)
    assert line.get("enable-lora") is not None
    assert line.get("compilation-config") is None
    assert "3" not in [token.text for token in line.positionals], "the removed flag's value must go with it"


def test_an_abbreviated_flag_is_written_in_full():
    args = server_of(translated(LLAMA))["args"]
    assert "--max-num-seq" not in args
    assert args[args.index("--max-num-seqs") + 1] == "1024"


def test_a_shell_string_is_kept_but_for_its_flags():
    server = server_of(translated(MISTRAL))
    assert server["command"] == ["/bin/sh", "-c"]
    before = "vllm serve mistralai/Mistral-7B-Instruct-v0.3 --trust-remote-code --enable-chunked-prefill "
    assert server["args"][0].startswith(before)
    assert len(server["args"]) == 1


def test_an_autoscaler_on_a_vllm_metric_follows_the_target():
    hpa = load((FOLDER / "ref-tpu-gke-samples-hpa.yaml").read_text())[0][0]
    text = (FOLDER / GEMMA).read_text()
    hpa["spec"]["scaleTargetRef"]["name"] = "vllm-gemma-deployment"
    result = translate_documents(f"{text}\n---\n{dump([hpa])}", target=slice_of(), image=IMAGE)
    copy = only(result, "HorizontalPodAutoscaler")
    assert copy["spec"]["scaleTargetRef"]["name"] == only(result, "Deployment")["metadata"]["name"]
    assert copy["spec"]["metrics"] == hpa["spec"]["metrics"]
