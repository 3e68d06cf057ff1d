"""Keep some of the baseline's answers, so that the candidate can be held to them once the baseline is gone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tpu_migration.bench.completions import Greedy
from tpu_migration.bench.sealed import ResultCorrupt, encode, read_object, seal, unseal
from tpu_migration.domain.gate.parity import Answer, PromptParity

# As many as a ConfigMap takes with ease (about 100 KB), and as a canary compares beside users in half a minute.
MOST_ANSWERS, MOST_TOKENS = 16, 64
_DECIMALS = 6


def kept(asked: Sequence[str], answers: Sequence[Greedy], noise: Sequence[PromptParity]) -> tuple[Answer, ...]:
    """Return what is worth keeping of a comparison; nothing of a baseline that tells no log probabilities."""
    return tuple(
        Answer(prompt, each.tokens[:MOST_TOKENS], each.tops[:MOST_TOKENS], seen.noise_kl, seen.noise_agree)
        for prompt, each, seen in zip(asked, answers, noise, strict=True)
        if each.tops
    )[:MOST_ANSWERS]


def written(answers: Sequence[Answer]) -> list[dict[str, Any]]:
    """Return the answers as JSON values; tokens are the keys of no JSON object, which would make them text."""
    return [
        {
            "prompt": each.prompt,
            "tokens": each.tokens,
            "tops": [[[token, round(value, _DECIMALS)] for token, value in top.items()] for top in each.tops],
            "noise_kl": [round(value, _DECIMALS) for value in each.noise_kl[:MOST_TOKENS]],
            "noise_agree": each.noise_agree[:MOST_TOKENS],
        }
        for each in answers
    ]


def read(data: Mapping[str, Any]) -> Answer:
    """Read one of what `written` made; TypeError, KeyError or ValueError on a foreign shape."""
    return Answer(
        str(data["prompt"]),
        tuple(int(token) for token in data["tokens"]),
        tuple({int(token): float(value) for token, value in top} for top in data["tops"]),
        tuple(float(value) for value in data["noise_kl"]),
        tuple(bool(value) for value in data["noise_agree"]),
    )


def render(answers: Sequence[Answer]) -> str:
    """Write the answers to a file, sealed."""
    return seal([encode(each) for each in written(answers)], {})


def parse(text: str) -> tuple[Answer, ...]:
    """Read the file back; raises ResultCorrupt for one that is not whole."""
    lines, _ = unseal(text)
    try:
        return tuple(read(read_object(line)) for line in lines)
    except (TypeError, KeyError, ValueError) as error:
        raise ResultCorrupt(f"a line is no answer: {error}") from error
