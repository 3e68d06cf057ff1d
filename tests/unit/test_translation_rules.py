"""The rules table, row by row: what a GPU server has, what the TPU server must have in its place.

Rows follow vLLM and tpu-inference 0.32; docs/translation.md is checked against this file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.unit.translation_builders import config_map, deployment, env_of, line_of, only, pod_of, run, server_of
from tpu_migration.domain.translation import Sizing, Translation
from tpu_migration.domain.translation.flags import REMOVED

MODEL = "Qwen/Qwen3-8B"
SERVE = ["vllm", "serve"]
GEMMA = "google/gemma-3-27b-it"
DOCS = Path(__file__).resolve().parents[2] / "docs" / "translation.md"


def flags(*args: str, model: str = MODEL, **options: Any) -> Translation:
    return run(deployment([model, *args], SERVE), **options)


# flag as given → value on TPU; None: the flag is gone.
REWRITTEN = [
    (("--quantization", "fp8"), "quantization", None),
    (("--quantization=compressed-tensors",), "quantization", "compressed-tensors"),
    (("--quantization=auto_awq",), "quantization", "auto_awq"),
    (("--quantization=gpt_oss_mxfp4",), "quantization", "gpt_oss_mxfp4"),
    (("--quantization=modelopt_fp4",), "quantization", "modelopt_fp4"),
    (("--quantization=deepseek_v4_fp8",), "quantization", "deepseek_v4_fp8"),
    (("--speculative-config", '{"method":"eagle"}'), "speculative-config", None),
    (("--spec-method=ngram",), "spec-method", None),
    (("--spec-model", "a/draft"), "spec-model", None),
    (("--spec-tokens=3",), "spec-tokens", None),
    (("--speculative-model", "a/draft"), "speculative-model", None),
    (("--num-speculative-tokens", "3"), "num-speculative-tokens", None),
    (("--attention-backend", "FLASHINFER"), "attention-backend", None),
    (("--kv-cache-dtype", "fp8"), "kv-cache-dtype", "auto"),
    (("--kv-cache-dtype=fp8_e5m2",), "kv-cache-dtype", "auto"),
    (("--dtype=half",), "dtype", "bfloat16"),
    (("--dtype", "auto"), "dtype", "bfloat16"),
    ((), "dtype", "bfloat16"),
    (("--enforce-eager",), "enforce-eager", None),
    (("--gpu-memory-utilization=0.97",), "gpu-memory-utilization", "0.90"),
    (("--gpu-memory-utilization=0.5",), "gpu-memory-utilization", "0.85"),
    (("--gpu-memory-utilization=0.87",), "gpu-memory-utilization", "0.87"),
    (("--tensor-parallel-size=2",), "tensor-parallel-size", "8"),
    ((), "tensor-parallel-size", "8"),
    (("--pipeline-parallel-size=2",), "pipeline-parallel-size", None),
    (("--data-parallel-size", "4"), "data-parallel-size", None),
    (("--distributed-executor-backend", "ray"), "distributed-executor-backend", None),
    (("--max-model-len=4096",), "max-model-len", "4096"),
    ((), "max-model-len", "40960"),
    (("--max-num-seqs=32",), "max-num-seqs", "32"),
    ((), "max-num-seqs", "256"),
    (("--max-num-batched-tokens=4096",), "max-num-batched-tokens", "4096"),
    ((), "max-num-batched-tokens", "2048"),
    (("--enable-sleep-mode",), "enable-sleep-mode", None),
    (("--compilation-config", '{"level":3}'), "compilation-config", None),
    (("--cudagraph-capture-sizes", "1", "2", "4"), "cudagraph-capture-sizes", None),
    (("--cudagraph-metrics",), "cudagraph-metrics", None),
    (("--swap-space=4",), "swap-space", None),
    (("--device", "cuda"), "device", None),
    (("--num-scheduler-steps=8",), "num-scheduler-steps", None),
    (("--max-seq-len-to-capture=8192",), "max-seq-len-to-capture", None),
    (("--task=generate",), "task", None),
    (("--rope-scaling", '{"type":"linear","factor":8}'), "rope-scaling", None),
    (("--use-v2-block-manager",), "use-v2-block-manager", None),
    (("--disable-frontend-multiprocessing",), "disable-frontend-multiprocessing", None),
    (("--kv-transfer-config", '{"kv_connector":"LMCacheConnectorV1","kv_role":"kv_both"}'), "kv-transfer-config", None),
    (
        ("--kv-transfer-config", '{"kv_connector":"TPUConnector"}'),
        "kv-transfer-config",
        '{"kv_connector":"TPUConnector"}',
    ),
    (("--guided-decoding-backend=xgrammar",), "guided-decoding-backend", None),
    (("--guided-decoding-backend=xgrammar",), "structured-outputs-config", '{"backend": "xgrammar"}'),
]


@pytest.mark.parametrize(("given", "name", "expected"), REWRITTEN, ids=lambda value: str(value)[:60])
def test_a_flag_becomes_what_the_tpu_needs(given, name, expected):
    result = flags(*given)
    line = line_of(result)
    assert line.value(name) == expected
    assert (line.get(name) is None) == (expected is None)
    assert len(line.positionals) == 1, "a value without its flag would be taken for a second model"
    if not given or not set(given) <= set(server_of(result)["args"]):
        said = [change.why for change in result.changes if f"--{name}" in f"{change.path} {change.old} {change.new}"]
        assert said, "a difference without its reason"
        assert all(said)


@pytest.mark.parametrize("name", sorted(REMOVED))
def test_every_removed_flag_is_gone_with_its_value_and_says_why(name):
    from tpu_migration.domain.translation.vocabulary import is_switch

    given = [f"--{name}"] if is_switch(name) else [f"--{name}", "x1"]
    result = flags(*given)
    assert line_of(result).get(name) is None
    assert "x1" not in str(server_of(result)["args"])
    assert [change.why for change in result.changes if change.new is None and f"--{name}" in str(change.old)]


KEPT = [
    "--enable-prefix-caching",
    "--no-enable-prefix-caching",
    "--enable-chunked-prefill",
    "--no-enable-chunked-prefill",
    "--enable-lora",
    "--trust-remote-code",
    "--enable-auto-tool-choice",
]


@pytest.mark.parametrize("flag", KEPT)
def test_a_flag_that_holds_on_both_stays(flag):
    assert flag in server_of(flags(flag))["args"]


def test_lora_stays_with_a_warning():
    assert any("v6e and v7x only" in warning.message for warning in flags("--enable-lora").warnings)


def test_a_log_switch_that_is_gone_gets_its_new_name():
    args = server_of(flags("--disable-log-requests"))["args"]
    assert "--no-enable-log-requests" in args
    assert "--disable-log-requests" not in args


@pytest.mark.parametrize("method", ["gptq", "gptq_marlin", "bitsandbytes", "marlin", "gguf", "experts_int8"])
def test_a_quantization_that_the_tpu_does_not_take_blocks(method):
    result = flags(f"--quantization={method}")
    assert method in result.blockers[0].message
    assert line_of(result).get("quantization") is None


def test_an_fp8_checkpoint_becomes_the_bf16_one_and_its_quantization_flag_goes():
    result = flags("--quantization=compressed-tensors", model="RedHatAI/Meta-Llama-3.1-8B-Instruct-FP8")
    line = line_of(result)
    assert line.model()[1] == "meta-llama/Llama-3.1-8B-Instruct"
    assert line.get("quantization") is None, "vLLM refuses a quantization that the weights do not have"
    assert line.served_names() == ["RedHatAI/Meta-Llama-3.1-8B-Instruct-FP8"]
    assert result.blockers == []


def test_a_search_path_in_a_script_loses_the_gpus_directories_only():
    script = (
        "export A=1 LD_LIBRARY_PATH=/opt/a:/usr/local/nvidia/lib64 NCCL_DEBUG=INFO\nexec vllm serve Qwen/Qwen3-8B\n"
    )
    text = server_of(run(deployment(command=["sh", "-c", script])))["command"][2]
    assert text.startswith("export A=1 LD_LIBRARY_PATH=/opt/a\nexec vllm serve Qwen/Qwen3-8B --")


@pytest.mark.parametrize(
    ("script", "told"),
    [
        ("vllm serve Qwen/Qwen3-8B", False),
        ("exec vllm serve Qwen/Qwen3-8B", False),
        ("sleep 1; exec vllm serve Qwen/Qwen3-8B", False),
        ("sleep 1; vllm serve Qwen/Qwen3-8B", True),
        ("vllm serve Qwen/Qwen3-8B | tee /tmp/log", True),
    ],
)
def test_a_shell_that_would_swallow_the_sigterm_is_told_of(script, told):
    result = run(deployment(command=["sh", "-c", script]))
    assert any("SIGTERM" in warning.message for warning in result.warnings) is told


def test_an_fp8_checkpoint_without_a_known_bf16_one_blocks():
    assert "no BF16 one is known" in flags(model="acme/ours-FP8").blockers[0].message


def test_images_are_left_out_only_if_somebody_says_that_users_send_none():
    assert line_of(flags(model=GEMMA, sizing=Sizing(text_only=True))).value("limit-mm-per-prompt") == '{"image":0}'
    whole = flags(model=GEMMA)
    assert line_of(whole).get("disable-chunked-mm-input") is not None
    assert any("prompt_logprobs" in warning.message for warning in whole.warnings)


def test_the_served_name_is_always_written_and_keeps_every_name():
    assert line_of(flags()).value("served-model-name") == MODEL
    assert line_of(flags("--served-model-name", "a", "b")).served_names() == ["a", "b"]


def test_a_variable_of_a_configmap_is_patched_in_a_copy_and_the_flag_stays():
    source = deployment(["--model=$(M)", "--tensor-parallel-size=$(TP)"], SERVE)
    source["spec"]["template"]["spec"]["containers"][0]["envFrom"] = [{"configMapRef": {"name": "run"}}]
    result = run(source, config_map("run", M="Qwen/Qwen3-8B-FP8", TP="1"))
    assert only(result, "ConfigMap")["data"] == {"M": "Qwen/Qwen3-8B", "TP": "8"}
    assert server_of(result)["args"][:2] == ["--model=$(M)", "--tensor-parallel-size=$(TP)"]


# variable as given → value on TPU; None: gone.
ENVIRONMENT = [
    ("CUDA_VISIBLE_DEVICES", "0", None),
    ("CUDA_LAUNCH_BLOCKING", "1", None),
    ("NCCL_DEBUG", "INFO", None),
    ("NVIDIA_DRIVER_CAPABILITIES", "all", None),
    ("UCX_TLS", "tcp", None),
    ("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True", None),
    ("LD_LIBRARY_PATH", "/usr/local/nvidia/lib64", None),
    ("LD_LIBRARY_PATH", "/opt/a:/usr/local/nvidia/lib64", "/opt/a"),
    ("VLLM_ATTENTION_BACKEND", "FLASH_ATTN", None),
    ("VLLM_USE_V1", "1", None),
    ("VLLM_TPU_MOST_MODEL_LEN", "2048", None),
    ("VLLM_XLA_CHECK_RECOMPILATION", "1", None),
    ("TPU_MULTIHOST_BACKEND", "ray", None),
    ("SKIP_JAX_PRECOMPILE", "1", "0"),
    ("VLLM_ENGINE_READY_TIMEOUT_S", "600", "3600"),
    ("VLLM_ENGINE_READY_TIMEOUT_S", "7200", "7200"),
    ("VLLM_TARGET_DEVICE", "cuda", "tpu"),
    ("MODEL_IMPL_TYPE", "vllm", "vllm"),
    ("VLLM_TPU_BUCKET_PADDING_GAP", "64", "64"),
    ("MIN_TOKEN_BUCKET", "16", "16"),
    ("NUM_PRECOMPILE_WORKERS", "4", "4"),
    ("VLLM_XLA_CACHE_PATH", "/cache/xla", "/cache/xla"),
    ("HF_HOME", "/cache", "/cache"),
]


@pytest.mark.parametrize(("name", "given", "expected"), ENVIRONMENT)
def test_a_variable_becomes_what_the_tpu_needs(name, given, expected):
    assert env_of(run(deployment([MODEL], SERVE, env=[{"name": name, "value": given}]))).get(name) == expected


@pytest.mark.parametrize(
    ("slice_name", "label", "topology", "chips"),
    [
        ("tpu-v5e-4", "tpu-v5-lite-podslice", "2x2", 4),
        ("tpu-v5e-8", "tpu-v5-lite-podslice", "2x4", 8),
        ("tpu-v6e-4", "tpu-v6e-slice", "2x2", 4),
        ("tpu-v6e-8", "tpu-v6e-slice", "2x4", 8),
    ],
)
def test_a_slice_gets_both_selectors_its_taint_tolerated_and_all_its_chips(slice_name, label, topology, chips):
    result = flags(target=slice_name)
    pod = pod_of(result)
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": label,
        "cloud.google.com/gke-tpu-topology": topology,
    }
    taint = {"key": "google.com/tpu", "operator": "Equal", "value": "present", "effect": "NoSchedule"}
    assert pod["tolerations"] == [taint]
    for part in ("requests", "limits"):
        assert server_of(result)["resources"][part] == {"google.com/tpu": chips}
    assert line_of(result).integer("tensor-parallel-size") == chips


@pytest.mark.parametrize(
    "key",
    [
        "cloud.google.com/gke-accelerator",
        "cloud.google.com/gke-gpu-driver-version",
        "cloud.google.com/compute-class",
        "nvidia.com/gpu.product",
    ],
)
def test_a_selector_of_gpu_nodes_is_gone(key):
    assert key not in pod_of(run(deployment([MODEL], SERVE, pod={"nodeSelector": {key: "x"}})))["nodeSelector"]


@pytest.mark.parametrize("args", [[MODEL], ["--model", MODEL], ["serve", MODEL]])
def test_a_command_is_always_written_for_the_tpu_image_has_no_program_of_its_own(args):
    server = server_of(run(deployment(args)))
    assert server["command"][0] == "vllm"
    assert [*server["command"], *server["args"]][:2] == ["vllm", "serve"]


@pytest.mark.parametrize(
    "lost",
    ["seed", "min_p", "penalties", "logit_bias", "bad_words", "allowed_token_ids", "min_tokens", "guided_"],
)
def test_what_clients_lose_is_said(lost):
    assert any(lost in warning.message for warning in flags().warnings)


def test_a_model_that_cannot_fit_blocks_with_both_figures_and_a_larger_slice_takes_it():
    model = "meta-llama/Llama-3.3-70B-Instruct"
    (blocker,) = flags(model=model).blockers
    assert "130 GiB" in blocker.message
    assert "115 GiB" in blocker.message
    assert flags(model=model, target="tpu-v6e-8").blockers == []


@pytest.mark.parametrize(
    "model",
    ["Qwen/Qwen3-30B-A3B", "mistralai/Mixtral-8x7B-v0.1", "acme/llama-70b-AWQ", "openai/gpt-oss-120b", "acme/x"],
)
def test_the_bound_refuses_nothing_that_may_fit(model):
    assert not any("cannot fit" in blocker.message for blocker in flags(model=model).blockers)


def test_the_reference_names_every_rule():
    text = DOCS.read_text()
    missing = [name for _, name, _ in REWRITTEN if f"`--{name}`" not in text]
    missing += [name for name in REMOVED if f"`--{name}`" not in text]
    missing += [name for name, _, _ in ENVIRONMENT if f"`{name}`" not in text]
    assert sorted(set(missing)) == []
