"""The stand-in for a model is the same model wherever it runs, unless a fault makes it another."""

from __future__ import annotations

from math import exp

import pytest

from sandbox.engine.language import WORDS, LanguageModel, piece, tokenize


def kl_and_agreement(one: LanguageModel, other: LanguageModel, text: list[int]) -> tuple[float, float]:
    total, same = 0.0, 0
    for position in range(2, len(text)):
        left = one.top(text[position - 2], text[position - 1], position)
        right = dict(other.top(text[position - 2], text[position - 1], position))
        total += sum(exp(logprob) * (logprob - right.get(token, -20.0)) for token, logprob in left)
        same += left[0][0] == max(right, key=right.get)
    return total / (len(text) - 2), same / (len(text) - 2)


@pytest.fixture
def models():
    return LanguageModel("gemma", "h100-fp8"), LanguageModel("gemma", "v5e-bf16")


def test_a_word_is_a_token_and_generated_text_reads_back_as_the_same_tokens(models):
    assert len(tokenize("the quick brown fox")) == 4
    assert len(set(WORDS)) == 1024
    tokens = models[0].generate(1, 2, 0, 500, None)
    assert tokenize("".join(map(piece, tokens))) == tokens


def test_what_was_generated_greedily_ranks_first_in_its_own_prompt_logprobs(models):
    prompt = tokenize("the quick brown fox")
    tokens = prompt + models[0].generate(prompt[-2], prompt[-1], 4, 400, None)
    ranks = [models[0].score(tokens[i - 2], tokens[i - 1], i, tokens[i])[1] for i in range(4, len(tokens))]
    assert set(ranks) == {1}


def test_two_accelerators_agree_within_the_limits_of_quality_parity(models):
    text = models[0].generate(1, 2, 0, 3000, None)
    kl, agreement = kl_and_agreement(*models, text)
    assert kl <= 0.01
    assert 0.97 <= agreement < 1.0


def test_wrong_answers_are_far_outside_the_limits_of_quality_parity(models):
    text = models[0].generate(1, 2, 0, 500, None)
    models[1].wrong = True
    kl, agreement = kl_and_agreement(*models, text)
    assert kl > 1
    assert agreement < 0.1
    right, wrong = (model.natural_length(text, None) for model in models)
    assert wrong < 0.9 * right
