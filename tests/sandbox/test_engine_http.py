"""What the engine answers over HTTP, beyond the recorded exchanges."""

from __future__ import annotations

import asyncio
import json

import pytest
from engine_harness import (
    H100,
    H100_FLAGS,
    TPU,
    TPU_FLAGS,
    events,
    needs_recordings,
    recorded,
    running,
    until,
)

TINY = ["--served-model-name", "tiny"]
GREEDY = {"model": "tiny", "temperature": 0, "ignore_eos": True}
COMPLETION = {**GREEDY, "prompt": "the quick brown fox", "max_tokens": 12}
CHAT = {**GREEDY, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 6}
USAGE = {"stream": True, "stream_options": {"include_usage": True}}


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_tokens": "many"},
        {"max_tokens": 0},
        {"temperature": "hot"},
        {"temperature": -1},
        {"prompt": {"a": 1}},
        {"prompt": ["a", "b"]},
        {"logprobs": 99},
        {"n": 2},
        {"stream_options": {"include_usage": True}},
        {"stream": True, "stream_options": "usage"},
        {"stream": True, "prompt_logprobs": 1},
        {"prompt": "word " * 9000},
    ],
    ids=lambda wrong: str(wrong)[:40],
)
async def test_requests_that_make_no_sense_are_answered_400_in_vllms_form(wrong):
    async with running([*H100_FLAGS, *TINY], H100) as engine:
        status, text = await engine.post("/v1/completions", {**COMPLETION, **wrong})
    assert status == 400
    assert list(json.loads(text)["error"]) == ["message", "type", "param", "code"]


@needs_recordings
async def test_completion_logprobs_have_the_recorded_fields():
    _, _, recorded_body = recorded("completion-logprobs.http")
    body = {**COMPLETION, "max_tokens": 3, "logprobs": 3, "return_tokens_as_token_ids": True}
    async with running([*H100_FLAGS, *TINY], H100) as engine:
        _, text = await engine.post("/v1/completions", body)
    ours = json.loads(text)["choices"][0]["logprobs"]
    real = json.loads(recorded_body)["choices"][0]["logprobs"]
    assert list(ours) == list(real)
    assert [len(ours[key]) for key in ours] == [3, 3, 3, 3]
    assert all(token.startswith("token_id:") for token in ours["tokens"])
    assert all(
        len(top) == 3 and chosen in top for top, chosen in zip(ours["top_logprobs"], ours["tokens"], strict=True)
    )


@needs_recordings
async def test_prompt_logprobs_have_the_recorded_fields():
    _, _, recorded_body = recorded("completion-prompt-logprobs.http")
    body = {"model": "tiny", "prompt": "the quick brown", "max_tokens": 1, "temperature": 0, "prompt_logprobs": 1}
    async with running([*H100_FLAGS, *TINY], H100) as engine:
        _, text = await engine.post("/v1/completions", body)
    ours = json.loads(text)["choices"][0]["prompt_logprobs"]
    real = json.loads(recorded_body)["choices"][0]["prompt_logprobs"]
    assert ours[0] is real[0] is None
    assert len(ours) == len(real) == 3
    assert all(sorted(entry) == ["decoded_token", "logprob", "rank"] for row in ours[1:] for entry in row.values())


async def test_stream_interval_puts_many_tokens_in_a_chunk_and_usage_still_counts_them():
    async with running([*H100_FLAGS, *TINY, "--stream-interval", "10"], H100) as engine:
        _, text = await engine.post("/v1/completions", {**COMPLETION, "max_tokens": 25, **USAGE})
        _, whole = await engine.post("/v1/completions", {**COMPLETION, "max_tokens": 25})
    *chunks, usage, done = events(text)
    assert len(chunks) == 4
    assert (usage["usage"]["completion_tokens"], done) == (25, "[DONE]")
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == json.loads(whole)["choices"][0]["text"]


async def test_without_ignore_eos_an_answer_ends_by_itself_and_always_at_the_same_place():
    body = {"model": "tiny", "prompt": "the quick brown fox", "max_tokens": 4000, "temperature": 0}
    async with running([*H100_FLAGS, *TINY], H100) as engine:
        first, second = await asyncio.gather(*(engine.post("/v1/completions", body) for _ in range(2)))
    answers = [json.loads(text) for _, text in (first, second)]
    assert answers[0]["choices"][0]["finish_reason"] == "stop"
    assert answers[0]["usage"] == answers[1]["usage"]
    assert answers[0]["usage"]["completion_tokens"] < 4000


async def test_every_served_name_is_answered_with_itself():
    async with running([*H100_FLAGS, "--served-model-name", "a", "b"], H100) as engine:
        _, models = await engine.get("/v1/models")
        _, answer = await engine.post("/v1/completions", {**COMPLETION, "model": "b", "max_tokens": 1})
    assert [card["id"] for card in json.loads(models)["data"]] == ["a", "b"]
    assert json.loads(answer)["model"] == "b"


async def test_a_per_request_seed_is_an_error_on_tpu_and_fine_on_a_gpu():
    body = {**COMPLETION, "max_tokens": 2, "temperature": 1, "seed": 7}
    async with running([*TPU_FLAGS, *TINY], TPU) as engine:
        status, text = await engine.post("/v1/completions", body)
        assert status == 400
        assert json.loads(text)["error"]["message"] == "JAX does not support per-request seed."
    async with running([*H100_FLAGS, *TINY], H100) as engine:
        answers = [json.loads((await engine.post("/v1/completions", body))[1]) for _ in range(2)]
    assert answers[0]["choices"][0]["text"] == answers[1]["choices"][0]["text"]


async def test_prompt_logprobs_kill_a_multimodal_tpu_engine_unless_its_limits_are_0():
    body = {**COMPLETION, "max_tokens": 1, "prompt_logprobs": 1}
    async with running([*TPU_FLAGS, *TINY], TPU) as engine:
        status, _ = await engine.post("/v1/completions", body)
        assert status == 500
        assert (await engine.get("/health"))[0] == 503
    async with running([*TPU_FLAGS, *TINY, "--limit-mm-per-prompt", '{"image":0}'], TPU) as engine:
        assert (await engine.post("/v1/completions", body))[0] == 200


async def test_a_first_warm_up_pass_meets_compiles_and_a_second_none():
    env = {**TPU, "JAX_LOG_COMPILES": "1"}
    async with running([*TPU_FLAGS, *TINY], env, cold=True) as engine:
        body = {**COMPLETION, "max_tokens": 2}
        await engine.post("/v1/completions", body)
        met = sum("Finished XLA compilation of" in line for line in engine.log)
        assert met > 0
        await engine.post("/v1/completions", body)
        assert sum("Finished XLA compilation of" in line for line in engine.log) == met


async def test_a_recompile_check_kills_the_engine_at_its_first_late_compile():
    env = {**TPU, "VLLM_XLA_CHECK_RECOMPILATION": "1"}
    async with running([*TPU_FLAGS, *TINY], env, cold=True) as engine:
        assert (await engine.post("/v1/completions", COMPLETION))[0] == 500
        assert engine.core.dead


async def test_a_client_that_hangs_up_frees_its_place_in_the_batch():
    async with running([*H100_FLAGS, *TINY], H100) as engine:
        for stream in (False, True):
            body = {**COMPLETION, "max_tokens": 4000, "stream": stream}
            request = asyncio.create_task(engine.post("/v1/completions", body))
            await until(lambda: engine.core.metrics.running == 1, "the request runs")
            request.cancel()
            await until(lambda: engine.core.unfinished == 0, "the request is dropped")
        assert engine.core.metrics.finished["abort"] == 2


async def test_a_draining_engine_ends_new_requests_at_once_with_abort():
    async with running([*H100_FLAGS, *TINY], H100) as engine:
        engine.core.draining = True
        _, text = await engine.post("/v1/completions", {**COMPLETION, **USAGE})
    *_, last, usage, done = events(text)
    assert last["choices"][0]["finish_reason"] == "abort"
    assert (usage["usage"]["completion_tokens"], done) == (0, "[DONE]")


async def test_a_request_id_of_the_client_names_the_answer():
    async with running([*H100_FLAGS, *TINY], H100) as engine:
        _, text = await engine.post("/v1/completions", {**COMPLETION, "max_tokens": 1}, **{"X-Request-Id": "r-1"})
    assert json.loads(text)["id"] == "cmpl-r-1"


async def test_an_api_key_guards_v1_only():
    async with running([*H100_FLAGS, *TINY, "--api-key", "k"], H100) as engine:
        assert (await engine.get("/health"))[0] == 200
        assert (await engine.get("/v1/models"))[0] == 401
        headers = {"Authorization": "Bearer k"}
        async with engine.session.get(engine.base + "/v1/models", headers=headers) as response:
            assert response.status == 200


async def test_metrics_show_what_was_served_and_are_parsed_by_name():
    async with running([*H100_FLAGS, *TINY], H100) as engine:
        await engine.post("/v1/completions", COMPLETION)
        await engine.post("/v1/completions", {"model": "nope"})
        _, text = await engine.get("/metrics")
    for line in (
        'vllm:prompt_tokens_total{engine="0",model_name="tiny"} 4.0',
        'vllm:generation_tokens_total{engine="0",model_name="tiny"} 12.0',
        'vllm:request_success_total{engine="0",finished_reason="length",model_name="tiny"} 1.0',
        'http_requests_total{handler="/v1/completions",method="POST",status="4xx"} 1.0',
    ):
        assert line in text
