"""Faults strike the engines that they name, and end when they are taken away."""

from __future__ import annotations

import asyncio
import json
import os

import pytest
from engine_harness import H100, H100_FLAGS, TPU, TPU_FLAGS, events, running

from sandbox.engine.faults import Faults
from tpu_migration.domain.compile_log import programs_in

BODY = {
    "model": "google/gemma-3-27b-it",
    "prompt": "the quick brown fox",
    "max_tokens": 6,
    "ignore_eos": True,
    "temperature": 0,
}
STREAM = {**BODY, "max_tokens": 40, "stream": True, "stream_options": {"include_usage": True}}


@pytest.fixture
def switch(tmp_path):
    """Write faults.json; each write looks newer than the one before."""
    path = tmp_path / "faults.json"
    writes = 0

    def write(**faults):
        nonlocal writes
        writes += 1
        path.write_text(json.dumps({name.replace("_", "-"): options for name, options in faults.items()}))
        os.utime(path, ns=(writes * 10**9, writes * 10**9))

    write.path = str(path)
    write()
    return write


def test_a_fault_is_for_its_own_kind_of_engine_and_the_pods_it_names(switch):
    switch(slow_tpu={"factor": 3, "workload": "vllm-tpu"}, gpu_hung={}, oom=None)
    tpu = Faults(switch.path, "tpu", "vllm-tpu-7d9f-x2")
    other = Faults(switch.path, "tpu", "other-7d9f-x2")
    gpu = Faults(switch.path, "gpu", "vllm-gpu-5c-1")
    assert tpu.get("slow-tpu") == {"factor": 3, "workload": "vllm-tpu"}
    assert tpu.get("oom") == {}
    assert (tpu.get("gpu-hung"), other.get("slow-tpu"), gpu.get("slow-tpu")) == (None, None, None)
    assert gpu.get("gpu-hung") == {}


def test_a_changed_file_is_read_again_a_broken_one_is_not_and_a_missing_one_clears(switch, capsys):
    faults = Faults(switch.path, "tpu", "")
    switch(oom={})
    faults.refresh()
    assert faults.get("oom") == {}
    with open(switch.path, "w", encoding="utf-8") as file:
        file.write("{")
    faults.refresh()
    assert faults.get("oom") == {}
    assert "cannot read" in capsys.readouterr().err
    os.unlink(switch.path)
    faults.refresh()
    assert faults.get("oom") is None


async def test_slow_tpu_stretches_the_steps_until_it_is_taken_away(switch):
    async with running(TPU_FLAGS, {**TPU, "SANDBOX_FAULTS": switch.path}) as engine:
        switch(slow_tpu={"factor": 4})
        engine.core.apply_faults()
        _, text = await engine.post("/v1/completions", BODY)
        gaps = engine.core.metrics.histograms["inter_token_latency_seconds"]
        base = engine.core.config.timing.step_s(0, 1, 10)
        assert json.loads(text)["usage"]["completion_tokens"] == 6
        assert gaps.sum / 5 > 3.5 * base


@pytest.mark.parametrize(
    ("fault", "flags", "env"),
    [({"hang_mid_stream": {}}, TPU_FLAGS, TPU), ({"gpu_hung": {}}, H100_FLAGS, H100)],
    ids=["hang-mid-stream", "gpu-hung"],
)
async def test_a_hung_engine_stops_mid_stream_while_health_stays_green(switch, fault, flags, env):
    async with (
        running(flags, {**env, "SANDBOX_FAULTS": switch.path}) as engine,
        engine.session.post(engine.base + "/v1/completions", json=STREAM) as response,
    ):
        first = await response.content.readuntil(b"\n\n")
        switch(**fault)
        engine.core.apply_faults()
        assert engine.core.hung
        generated = engine.core.metrics.generation_tokens
        assert (await engine.get("/health"))[0] == 200
        assert engine.core.unfinished == 1
        switch()
        engine.core.apply_faults()
        rest = await response.text()
        assert generated < 40
        assert events(first.decode() + rest)[-1] == "[DONE]"


async def test_errors_under_load_answer_500_only_to_some_of_many(switch):
    switch(errors_under_load={"at": 4, "rate": 0.5})
    async with running(TPU_FLAGS, {**TPU, "SANDBOX_FAULTS": switch.path}) as engine:
        engine.core.apply_faults()
        assert (await engine.post("/v1/completions", BODY))[0] == 200
        answers = await asyncio.gather(*(engine.post("/v1/completions", BODY) for _ in range(40)))
    statuses = [status for status, _ in answers]
    assert 0 < statuses.count(500) < 40
    errors = [json.loads(text)["error"]["type"] for status, text in answers if status == 500]
    assert set(errors) == {"InternalServerError"}


async def test_wrong_answers_come_at_full_speed_and_differ(switch):
    async with running(TPU_FLAGS, {**TPU, "SANDBOX_FAULTS": switch.path}) as engine:
        right = json.loads((await engine.post("/v1/completions", BODY))[1])
        switch(wrong_answers={})
        engine.core.apply_faults()
        wrong = json.loads((await engine.post("/v1/completions", BODY))[1])
    assert right["usage"] == wrong["usage"]
    assert right["choices"][0]["text"] != wrong["choices"][0]["text"]


async def test_an_engine_that_has_no_hbm_left_dies_at_its_first_late_compile(switch):
    switch(late_oom={})
    async with running(TPU_FLAGS, {**TPU, "SANDBOX_FAULTS": switch.path}, cold=True) as engine:
        engine.core.apply_faults()
        assert (await engine.post("/v1/completions", BODY))[0] == 500
        assert "RESOURCE_EXHAUSTED: Error loading program" in (engine.core.dead or "")
    switch(late_oom={})
    async with running(TPU_FLAGS, {**TPU, "SANDBOX_FAULTS": switch.path}) as engine:
        engine.core.apply_faults()
        assert (await engine.post("/v1/completions", BODY))[0] == 200


async def test_a_slow_compile_takes_as_long_however_fast_the_cloud_is(switch):
    switch(slow_compile={"each_s": 0.2})
    env = {**TPU, "SANDBOX_FAULTS": switch.path, "JAX_LOG_COMPILES": "1"}
    async with running(TPU_FLAGS, env, cold=True) as engine:
        engine.core.apply_faults()
        await engine.post("/v1/completions", {**BODY, "max_tokens": 1})
        programs = programs_in("\n".join(engine.log))
        assert programs > 0
        assert engine.core.metrics.histograms["e2e_request_latency_seconds"].sum >= 0.2 * programs


async def test_recompile_stalls_running_engines_and_logs_it(switch):
    switch(recompile={"every_s": 60, "stall_s": 0.3})
    env = {**TPU, "SANDBOX_FAULTS": switch.path, "JAX_LOG_COMPILES": "1"}
    async with running(TPU_FLAGS, env) as engine:
        engine.core.apply_faults()
        await engine.post("/v1/completions", BODY)
        latency = engine.core.metrics.histograms["e2e_request_latency_seconds"]
        assert latency.sum > 0.3
        assert any("Finished XLA compilation of" in line for line in engine.log)
