"""Answers that differ never reach users: how two arms' answers are compared, and how that is judged."""

from __future__ import annotations

import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpu_migration.bench.completions import Greedy
from tpu_migration.bench.parity import Task, compared, parse, read_tasks, render
from tpu_migration.bench.questions import MOST, questions
from tpu_migration.bench.sealed import ResultCorrupt
from tpu_migration.domain.gate.parity import FeatureParity, Parity, PromptParity, TaskParity, divergence, likeliest
from tpu_migration.domain.gate.quality import checks
from tpu_migration.domain.gate.sections import Quality

QUALITY = Quality()
SEED_LOST = FeatureParity("seed", "honoured", "refused", "JAX does not support per-request seed.")


def prompt(number=0, kl=1e-5, agree=64, of=64, noise=1e-5, theirs=64, ours=64):
    """One question: `agree` of its `of` positions hold the same likeliest token."""
    told = tuple(index < agree for index in range(of))
    return PromptParity(str(number), (kl,) * of, told, (noise,) * of, (True,) * of, theirs, ours)


def prompts(count=64, **each):
    return tuple(prompt(number, **each) for number in range(count))


def judged(parity, needed=()):
    """The outcome of each check, by name."""
    return {each.name: each.outcome for each in checks(QUALITY, parity, 0.05, needed)}


# ------------------------------------------------------------------------------ distances


def logs(*shares):
    return {token: math.log(share) for token, share in enumerate(shares)}


def test_the_same_distribution_is_no_distance_apart():
    assert divergence(logs(0.6, 0.3), logs(0.6, 0.3)) == pytest.approx(0.0, abs=1e-12)


def test_the_distance_over_listed_tokens_and_the_rest_is_exact():
    expected = 0.5 * math.log(0.5 / 0.25) + 0.3 * math.log(0.3 / 0.5) + 0.2 * math.log(0.2 / 0.25)
    assert divergence(logs(0.5, 0.3), logs(0.25, 0.5)) == pytest.approx(expected)


def test_two_lists_without_a_token_in_common_are_far_apart_not_equal():
    other = {token + 100: value for token, value in logs(0.7, 0.2).items()}
    assert divergence(logs(0.7, 0.2), other) > 0.5


@given(
    st.lists(st.floats(0.01, 1.0), min_size=1, max_size=6),
    st.lists(st.floats(0.01, 1.0), min_size=1, max_size=6),
    st.integers(0, 5),
)
def test_a_distance_is_finite_and_never_negative(ours, theirs, shift):
    def top(weights, first):
        total = sum(weights) * 1.1
        return {first + index: math.log(weight / total) for index, weight in enumerate(weights)}

    found = divergence(top(theirs, 0), top(ours, shift))
    assert math.isfinite(found)
    assert found >= 0


def test_only_positions_behind_the_same_tokens_are_compared_for_the_noise():
    tops = (logs(0.9), logs(0.8), logs(0.7))
    alone = Greedy((0, 0, 0), tops, "")
    again = Greedy((0, 1, 0), (logs(0.9), {1: math.log(0.8)}, logs(0.1)), "")
    found = compared("q", alone, again, {0: logs(0.9), 2: logs(0.7)}, 5)
    assert len(found.noise_kl) == 2  # up to and with the first token that differs, not what follows it
    assert found.noise_agree == (True, False)
    assert (len(found.kl), found.agree, found.candidate_tokens) == (2, (True, True), 5)
    assert likeliest(logs(0.2, 0.7)) == 1


# ------------------------------------------------------------------------------ judgement


def test_equal_answers_pass_every_check():
    outcomes = judged(Parity(prompts(), tasks=(TaskParity("1", True, True),) * 80, features=(SEED_LOST,)))
    assert set(outcomes.values()) == {"pass"}
    assert len(outcomes) == 6


@pytest.mark.parametrize(
    ("change", "failed"),
    [
        ({"kl": 0.05}, "quality_kl_mean"),
        ({"kl": 0.5}, "quality_kl_p99"),
        ({"agree": 60}, "quality_top1"),
        ({"ours": 52}, "quality_output_length"),
        ({"ours": 76}, "quality_output_length"),
    ],
)
def test_answers_that_differ_fail_by_the_check_that_sees_it(change, failed):
    assert judged(Parity(prompts(**change)))[failed] == "fail"


def test_a_limit_is_never_stricter_than_twice_the_baselines_own_noise():
    assert judged(Parity(prompts(kl=0.015, noise=0.01)))["quality_kl_mean"] == "pass"
    assert judged(Parity(prompts(kl=0.025, noise=0.01)))["quality_kl_mean"] == "fail"


@pytest.mark.parametrize(
    "parity", [None, Parity(), Parity(prompts(8)), Parity(prompts(of=0)), Parity(prompts(theirs=0))]
)
def test_missing_answers_never_pass(parity):
    assert "inconclusive" in judged(parity).values()


def test_without_log_probabilities_the_verdict_says_that_the_evidence_is_reduced():
    bare = tuple(dataclasses.replace(each, kl=(), noise_kl=(), noise_agree=()) for each in prompts())
    made = checks(QUALITY, Parity(bare, reduced=("the baseline tells none",), distributions=False), 0.05)
    assert {each.outcome for each in made} == {"pass"}
    assert any("reduced evidence: the baseline tells none" in each.sentence for each in made)
    assert judged(Parity(bare))["quality_kl_mean"] == "inconclusive"  # nobody said why there are none


@pytest.mark.parametrize(
    ("lost", "won", "of", "outcome"),
    [(0, 0, 80, "pass"), (0, 0, 20, "inconclusive"), (30, 0, 80, "fail"), (6, 0, 80, "inconclusive")],
)
def test_right_answers_that_are_lost_are_counted_task_by_task(lost, won, of, outcome):
    tasks = [TaskParity(str(i), True, i >= lost) for i in range(of - won)]
    tasks += [TaskParity(f"w{i}", False, True) for i in range(won)]
    assert judged(Parity(prompts(), tasks=tuple(tasks)))["quality_tasks"] == outcome


def test_a_feature_that_clients_need_and_the_tpu_loses_fails_and_else_is_told():
    parity = Parity(prompts(), features=(SEED_LOST, FeatureParity("tools", "ignored", "ignored")))
    (told,) = [each for each in checks(QUALITY, parity, 0.05) if each.name == "quality_features"]
    assert told.outcome == "pass"
    assert "seed (refused)" in told.sentence
    assert judged(parity, ["seed"])["quality_features"] == "fail"
    assert judged(parity, ["tools"])["quality_features"] == "inconclusive"
    assert judged(parity, ["min_p"])["quality_features"] == "inconclusive"


# ------------------------------------------------------------------------------ files


def test_evidence_survives_its_file_and_a_cut_one_is_refused():
    parity = Parity(prompts(3), (TaskParity("t", True, False),), (SEED_LOST,), ("why",), False)
    text = f"a line of the pod's own\n{render(parity)}"
    assert parse(text) == parity
    lines = text.splitlines(keepends=True)
    with pytest.raises(ResultCorrupt):
        parse("".join(lines[:2] + lines[3:]))
    with pytest.raises(ResultCorrupt):
        parse("".join(lines[:-1]))


def test_tasks_are_read_line_by_line_and_a_bad_one_is_named():
    first, second = read_tasks('{"prompt": "2+2?", "expected": "4"}\n\n{"id": "x", "prompt": "p", "pattern": "^a+$"}\n')
    assert first == Task("1", "2+2?", "4")
    assert first.is_right("It is 4.")
    assert second.is_right("aaa")
    assert not second.is_right("b")
    for bad in ('{"prompt": "p"}', "[1]", "no json", '{"prompt": "p", "pattern": "("}'):
        with pytest.raises(ValueError, match="task line 2"):
            read_tasks(f'{{"prompt": "p", "expected": "e"}}\n{bad}')


def test_questions_are_different_ones_and_the_same_for_the_same_seed():
    assert questions(64, 1) == questions(64, 1)
    assert questions(64, 1) != questions(64, 2)
    assert len(set(questions(MOST, 3))) == MOST
