"""The engine as a process: boot order, refusals, faults at boot, SIGTERM."""

from __future__ import annotations

import asyncio
import json
import signal

import aiohttp
import pytest
from engine_harness import (
    DEADLINE_S,
    H100,
    H100_FLAGS,
    TPU,
    TPU_FLAGS,
    child,
    events,
    free_port,
)

from tpu_migration.domain.compile_log import read_compile_log

STREAM = {
    "model": "google/gemma-3-27b-it",
    "prompt": "the quick brown fox",
    "max_tokens": 1800,
    "ignore_eos": True,
    "temperature": 0,
    "stream": True,
    "stream_options": {"include_usage": True},
}

BOOT_ORDER = (
    "Prepared token paddings: [16, 32, ",
    "Prepared request paddings: [8, 16, ",
    "Enabling JAX compile cache.",
    "Init model | hbm=",
    "Memory statistics | total_hbm_limit_gb=",
    "KV cache size: ",
    "Precompile all the subgraphs with possible input shapes.",
    "Precompile worker0 backbone --> {",
    "finished in",
    "init engine (profile, create kv cache, warmup model) took",
    "Starting vLLM server on",
    "Application startup complete.",
)


def serve(flags):
    port = str(free_port())
    return ["vllm", "serve", *flags, "--port", port], f"http://127.0.0.1:{port}"


async def stream_until_terminated(engine, base, grace=None):
    """Start a stream, terminate the engine at its first chunk, return the events."""
    timeout = aiohttp.ClientTimeout(DEADLINE_S)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        body = {**STREAM, "max_tokens": grace} if grace else STREAM
        async with session.post(f"{base}/v1/completions", json=body) as response:
            first = await response.content.readuntil(b"\n\n")
            engine.terminate()
            return events(first.decode() + await response.text())


def test_a_tpu_boot_logs_in_the_order_of_the_real_one_and_then_answers(tmp_path):
    argv, _ = serve(TPU_FLAGS)
    with child(argv, {**TPU, "JAX_LOG_COMPILES": "1"}, tmp_path) as engine:
        engine.wait_for("Application startup complete.")
        log = engine.log
        places = [log.index(words) for words in BOOT_ORDER]
        assert places == sorted(places)
        assert "simulated" in log
        assert "Finished XLA compilation of jit(backbone) in" in log
        # What SIGTERM before any request does: a clean end.
        engine.terminate()
        assert engine.exit_status() == 0


def test_a_second_boot_finds_the_compile_cache(tmp_path):
    cache = tmp_path / "cache" / "xla"
    cache.parent.mkdir()
    env = {**TPU, "JAX_LOG_COMPILES": "1", "VLLM_XLA_CACHE_PATH": str(cache)}
    for hits in (False, True):
        argv, _ = serve(TPU_FLAGS)
        with child(argv, env, tmp_path) as engine:
            engine.wait_for("Application startup complete.")
            log = read_compile_log(engine.log)
        assert (log.cache_hits == log.programs) is hits
        assert (log.cache_hits > 0) is hits


def test_a_shutdown_timeout_lets_streams_end(tmp_path):
    argv, base = serve([*H100_FLAGS, "--shutdown-timeout", "30"])
    with child(argv, H100, tmp_path) as engine:
        engine.wait_for("Application startup complete.")
        ours = asyncio.run(stream_until_terminated(engine, base, grace=30))
        assert engine.exit_status() == 0
    assert ours[-3]["choices"][0]["finish_reason"] == "length"
    assert ours[-2]["usage"]["completion_tokens"] == 30


@pytest.mark.parametrize(
    ("argv", "env", "status", "words"),
    [
        (["vllm", "serve", *TPU_FLAGS, "--swap-space", "16"], TPU, 2, "unrecognized arguments: --swap-space 16"),
        (["vllm", "serve", *TPU_FLAGS, "--quantization", "fp8"], TPU, 1, "no FP8 units"),
        (TPU_FLAGS, TPU, 127, "not found"),
        (["vllm", "serve", *H100_FLAGS], {}, 1, "Failed to infer device type"),
    ],
    ids=["gone flag", "fp8 on v5e", "args without command", "no accelerator"],
)
def test_an_engine_that_cannot_start_says_why_and_exits(tmp_path, argv, env, status, words):
    with child(argv, env, tmp_path) as engine:
        assert engine.exit_status() == status
        assert words in engine.log


@pytest.mark.parametrize(
    ("fault", "words"),
    [("oom", "RESOURCE_EXHAUSTED: Error loading program"), ("crash-loop", "TPU initialization failed")],
)
def test_faults_at_boot_end_the_process_with_status_1(tmp_path, fault, words):
    faults = tmp_path / "faults.json"
    faults.write_text(json.dumps({fault: {"workload": "vllm-tpu"}}))
    argv, _ = serve(TPU_FLAGS)
    env = {**TPU, "SANDBOX_FAULTS": str(faults), "POD_NAME": "vllm-tpu-0"}
    with child(argv, env, tmp_path) as engine:
        assert engine.exit_status() == 1
        assert words in engine.log


def test_an_engine_that_uses_up_the_host_s_memory_is_killed_in_the_middle_of_its_compiles(tmp_path):
    faults = tmp_path / "faults.json"
    faults.write_text('{"host-oom": {}}')
    argv, _ = serve(TPU_FLAGS)
    with child(argv, {**TPU, "SANDBOX_FAULTS": str(faults)}, tmp_path) as engine:
        assert engine.exit_status() == -signal.SIGKILL
        assert "Compilation of worker0 backbone" in engine.log


def test_a_hanging_compile_goes_on_once_the_fault_is_gone(tmp_path):
    faults = tmp_path / "faults.json"
    faults.write_text('{"compile-hang": {}}')
    argv, _ = serve(TPU_FLAGS)
    with child(argv, {**TPU, "SANDBOX_FAULTS": str(faults)}, tmp_path) as engine:
        engine.wait_for("Precompile all the subgraphs")
        assert "Application startup complete." not in engine.log
        faults.write_text("{}")
        engine.wait_for("Application startup complete.")


def test_an_engine_that_dies_takes_its_process_along(tmp_path):
    argv, base = serve(TPU_FLAGS)
    with child(argv, TPU, tmp_path) as engine:
        engine.wait_for("Application startup complete.")

        async def ask():
            body = {"model": STREAM["model"], "prompt": "a b c", "max_tokens": 1, "prompt_logprobs": 1}
            async with aiohttp.ClientSession() as session, session.post(f"{base}/v1/completions", json=body) as got:
                return got.status

        assert asyncio.run(ask()) == 500
        assert engine.exit_status() == 1
