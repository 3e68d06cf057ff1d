"""`tpu-migration parity` between a simulated H100 and a simulated TPU, over HTTP."""

from __future__ import annotations

import argparse
import asyncio
import json

import pytest
from engine_harness import H100, H100_FLAGS, TPU, TPU_FLAGS, running

from tpu_migration.bench import answers, parity
from tpu_migration.domain.gate.quality import checks
from tpu_migration.domain.gate.sections import Quality

QUALITY = Quality(prompts=8, tokens=16, kl_quantile=0.95)
TEXT_ONLY = [*TPU_FLAGS, '--limit-mm-per-prompt={"image":0}']


def options(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parity.add_arguments(parser)
    return parser.parse_args(list(words))


async def compare(theirs, ours, out, *more) -> parity.Parity:
    args = options(
        f"--url={theirs.base}", f"--candidate-url={ours.base}", "--model=google/gemma-3-27b-it",
        f"--prompts={QUALITY.prompts}", f"--tokens={QUALITY.tokens}", f"--out={out}", *more,
    )  # fmt: skip
    assert await asyncio.to_thread(parity.main, args) == 0
    return parity.parse(out.read_text())


def outcomes(found):
    return {each.name: each.outcome for each in checks(QUALITY, found, 0.05)}


async def test_the_same_model_on_a_tpu_answers_alike_and_loses_the_seed(tmp_path):
    tasks = tmp_path / "tasks.jsonl"
    tasks.write_text(json.dumps({"prompt": "Say anything.", "pattern": r"\w"}) + "\n")
    async with running(H100_FLAGS, H100) as gpu, running(TEXT_ONLY, TPU) as tpu:
        found = await compare(gpu, tpu, tmp_path / "out", f"--tasks={tasks}", "--forced")
    assert outcomes(found)["quality_kl_mean"] == "pass"
    assert outcomes(found)["quality_kl_p95"] == "pass"
    assert outcomes(found)["quality_top1"] == "pass"
    assert (found.distributions, found.reduced) == (True, ())
    assert [(each.baseline, each.candidate) for each in found.tasks] == [(True, True)]
    seed = next(each for each in found.features if each.id == "seed")
    assert (seed.baseline, seed.candidate, seed.lost) == ("honoured", "refused", True)
    assert "JAX does not support per-request seed" in seed.detail


async def test_a_tpu_that_gives_other_answers_is_found_out(tmp_path):
    faults = tmp_path / "faults.json"
    faults.write_text(json.dumps({"wrong-answers": {}}))
    async with (
        running(H100_FLAGS, H100) as gpu,
        running(TEXT_ONLY, {**TPU, "SANDBOX_FAULTS": str(faults)}) as tpu,
    ):
        tpu.core.apply_faults()
        found = await compare(gpu, tpu, tmp_path / "out", "--forced")
    assert outcomes(found)["quality_kl_mean"] == "fail"
    assert outcomes(found)["quality_top1"] == "fail"


async def test_answers_that_were_kept_stand_in_for_a_gpu_that_is_gone(tmp_path):
    kept, faults = tmp_path / "answers", tmp_path / "faults.json"
    async with running(H100_FLAGS, H100) as gpu, running(TPU_FLAGS, TPU) as tpu:
        kept.write_text(answers.render((await compare(gpu, tpu, tmp_path / "out")).answers))
        live = await compare(gpu, tpu, tmp_path / "live", "--answers-only")
    async with running(TPU_FLAGS, {**TPU, "SANDBOX_FAULTS": str(faults)}) as tpu:
        alike = await hold(tpu, kept, tmp_path / "alike")
        faults.write_text(json.dumps({"wrong-answers": {}}))
        tpu.core.apply_faults()
        other = await hold(tpu, kept, tmp_path / "other")
    for found in (live, alike):
        assert len(found.prompts) == QUALITY.prompts
        assert all(each.kl for each in found.prompts)
        assert "fail" not in outcomes(found).values()
        assert (found.tasks, found.features) == ((), ()), "users are there: nothing odd is asked"
    assert outcomes(other)["quality_kl_mean"] == "fail"
    assert outcomes(other)["quality_top1"] == "fail"


async def hold(tpu, kept, out) -> parity.Parity:
    args = options(
        f"--answers={kept}", f"--candidate-url={tpu.base}", "--model=google/gemma-3-27b-it", "--prompts=16",
        "--tokens=16", f"--out={out}", "--answers-only",
    )  # fmt: skip
    assert await asyncio.to_thread(parity.main, args) == 0
    return parity.parse(out.read_text())


def test_answers_that_were_cut_end_with_2(tmp_path, capsys):
    (tmp_path / "answers").write_text("{}\n")
    words = [f"--answers={tmp_path / 'answers'}", "--candidate-url=u", "--model=m", "--out=-"]
    assert parity.main(options(*words)) == 2
    assert "the run did not end" in capsys.readouterr().err


async def test_a_tpu_that_takes_images_is_never_asked_for_prompt_logprobs(tmp_path):
    async with running(H100_FLAGS, H100) as gpu, running(TPU_FLAGS, TPU) as tpu:
        found = await compare(gpu, tpu, tmp_path / "out")
    assert "every 8th position" in found.reduced[0]
    assert outcomes(found)["quality_kl_mean"] == "pass"


async def test_a_candidate_that_takes_no_prompt_logprobs_is_compared_where_it_goes_on(tmp_path):
    draft = ['--speculative-config={"model":"google/gemma-3-1b-it","num_speculative_tokens":4}']
    async with running(H100_FLAGS, H100) as gpu, running([*H100_FLAGS, *draft], H100) as other:
        found = await compare(gpu, other, tmp_path / "out", "--forced")
    assert "prompt_logprobs" in found.reduced[0]
    assert all(len(each.kl) == -(-each.baseline_tokens // 8) for each in found.prompts)
    assert outcomes(found)["quality_kl_mean"] == "pass"


def test_a_server_that_is_not_there_is_named(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("tpu_migration.bench.completions._PAUSE_S", 0.0)
    args = options("--url=http://127.0.0.1:9", "--candidate-url=http://127.0.0.1:9", "--model=m", "--out=-")
    assert parity.main(args) == 1
    assert "no answer from http://127.0.0.1:9" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--prompts=100000"], ["--tasks=/nowhere"]])
def test_options_that_cannot_be_end_with_2(words, capsys):
    assert parity.main(options("--url=u", "--candidate-url=u", "--model=m", "--out=-", *words)) == 2
    assert "parity:" in capsys.readouterr().err
