"""Step times and memory follow from the hardware, near what the facts give for it."""

from __future__ import annotations

import pytest
from engine_harness import H100, H100_FLAGS, MODEL, TPU, TPU_FLAGS, config_of

from sandbox.engine.compilation import LATE, Cache, Compiled, bucket, programs
from sandbox.engine.config import Refused, check_fit
from sandbox.engine.hardware import ACCELERATORS, GIB, find_model, weight_format
from sandbox.engine.timing import build_timing

GEMMA = find_model("google/gemma-3-27b-it")


@pytest.mark.parametrize(("flags", "env"), [(H100_FLAGS, H100), (TPU_FLAGS, TPU)])
def test_32_concurrent_streams_of_gemma_27b_take_15_to_25_ms_a_token(flags, env):
    timing = config_of(flags, env).timing
    assert 0.015 < timing.step_s(0, 32, 32 * 600) < 0.025


def test_a_v5e_8_holds_the_kv_cache_that_the_facts_give():
    timing = config_of([*TPU_FLAGS, "--gpu-memory-utilization", "0.9"], TPU).timing
    assert timing.weight_bytes / GIB == pytest.approx(51, rel=0.01)
    assert timing.kv_capacity_tokens == pytest.approx(131_000, rel=0.02)


def test_fp8_halves_the_weights_on_a_gpu_and_long_prompts_stall_running_streams():
    h100 = ACCELERATORS["nvidia-h100-80gb"]
    bf16, fp8 = (build_timing(h100, 1, GEMMA, kind) for kind in ("bf16", "fp8"))
    assert fp8.weights_s == pytest.approx(bf16.weights_s / 2)
    assert fp8.step_s(2048, 32, 16_000) > 3 * fp8.step_s(0, 32, 16_000)


def test_the_format_of_weights_follows_from_flag_then_name():
    assert weight_format("google/gemma-3-27b-it", None) == "bf16"
    assert weight_format("google/gemma-3-27b-it", "fp8") == "fp8"
    assert weight_format("RedHatAI/gemma-3-27b-it-FP8-dynamic", None) == "fp8"
    assert weight_format("m/x-AWQ", "compressed-tensors") == "int4"


def test_an_unknown_model_is_scaled_from_its_size():
    assert find_model("acme/thing-13b-chat").parameters == pytest.approx(13e9)
    assert find_model("models/tiny").parameters < 1e9


L4 = {**H100, "SANDBOX_ACCELERATOR": "nvidia-l4"}
A100 = {**H100, "SANDBOX_ACCELERATOR": "nvidia-tesla-a100"}
FP8_CHECKPOINT = "RedHatAI/gemma-3-27b-it-FP8-dynamic"


@pytest.mark.parametrize(
    ("flags", "env", "words"),
    [
        ([MODEL, "--max-model-len", "8192"], L4, "CUDA"),
        ([MODEL, "--max-model-len", "512"], A100, "CUDA"),
        ([MODEL, "--max-model-len", "512", "-tp", "1"], TPU, "RESOURCE_EXHAUSTED"),
        ([*TPU_FLAGS, "--quantization", "fp8"], TPU, "no FP8 units"),
        ([FP8_CHECKPOINT, "-tp", "8", "--max-model-len", "8192"], TPU, "no FP8 units"),
        ([MODEL, "-tp", "4", "--max-model-len", "32768"], TPU, "is larger than the available KV cache"),
    ],
)
def test_a_model_that_does_not_fit_is_refused_after_its_weights_are_loaded(flags, env, words):
    with pytest.raises(Refused) as caught:
        check_fit(config_of(flags, env))
    assert words in str(caught.value)
    assert caught.value.late


def test_the_boot_compiles_all_programs_but_a_few_and_more_shapes_take_longer():
    few, many = programs(62, 64, 2048), programs(62, 256, 8192)
    assert 7 * 60 < sum(program.seconds for program in few) < 20 * 60
    assert sum(p.seconds for p in many) > sum(p.seconds for p in few)
    compiled = Compiled(few, Cache(None, ""))
    assert {p.name for p in few} - {p.name for p in compiled.boot_list(skip=False)} == LATE
    assert compiled.boot_list(skip=True) == []


def test_a_compile_cache_makes_the_next_boot_three_times_as_fast(tmp_path):
    listed = programs(62, 64, 2048)
    first = Compiled(listed, Cache(str(tmp_path / "xla"), "gemma v5e-8"))
    before = first.seconds(listed[0])
    first.add(listed[0])
    second = Compiled(listed, Cache(str(tmp_path / "xla"), "gemma v5e-8"))
    assert second.seconds(listed[0]) == pytest.approx(before / 3)
    other_model = Compiled(listed, Cache(str(tmp_path / "xla"), "llama v5e-8"))
    assert other_model.seconds(listed[0]) == before


@pytest.mark.parametrize("path", ["gs://bucket/cache", "/no-such-volume", None])
def test_a_cache_path_without_a_volume_is_never_made_on_the_host(path):
    assert not Cache(path, "k").usable


def test_shapes_are_padded_to_powers_of_two():
    assert [bucket(n, 16) for n in (1, 16, 17, 512, 513)] == [16, 16, 32, 512, 1024]
