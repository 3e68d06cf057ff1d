"""Hold what was seen of both arms' answers, and measure how far two distributions over the next token are apart.

Greedy texts are not compared: batching alone changes tokens (vllm#7779). The baseline's own greedy answers are
forced on the candidate, and at each position the two distributions are compared. What the baseline differs from
itself by, at another batch size, is the noise floor.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

Top = Mapping[int, float]  # the likeliest next tokens and their log probabilities
_LEAST = 1e-9  # a probability that a finite list of candidates leaves nothing of
HONOURED = "honoured"


@dataclass(frozen=True)
class PromptParity:
    """One prompt: what was seen at each position of the baseline's answer, and how long both answers were.

    `kl` is in nats; `agree` tells whether both arms hold the same token for the likeliest. The `noise_` twins
    compare the baseline with itself. Positions that could not be compared are left out.
    """

    id: str
    kl: tuple[float, ...]
    agree: tuple[bool, ...]
    noise_kl: tuple[float, ...]
    noise_agree: tuple[bool, ...]
    baseline_tokens: int
    candidate_tokens: int


@dataclass(frozen=True)
class TaskParity:
    """One task of the user's own set: whether each arm gave the expected answer."""

    id: str
    baseline: bool
    candidate: bool


@dataclass(frozen=True)
class FeatureParity:
    """What each arm makes of a field of a request: honoured, ignored, refused or failed."""

    id: str
    baseline: str
    candidate: str
    detail: str = ""

    @property
    def lost(self) -> bool:
        """Tell whether clients that use it lose something."""
        return self.baseline == HONOURED and self.candidate != HONOURED


@dataclass(frozen=True)
class Answer:
    """What the baseline answered to one prompt: its tokens, the likeliest ones at each, and its noise as above."""

    prompt: str
    tokens: tuple[int, ...]
    tops: tuple[Top, ...]
    noise_kl: tuple[float, ...] = ()
    noise_agree: tuple[bool, ...] = ()


@dataclass(frozen=True)
class Parity:
    """All evidence on quality; `reduced` says what could not be measured, in words for people.

    `answers` are some of the baseline's, to hold the candidate to once the baseline is gone.
    """

    prompts: tuple[PromptParity, ...] = ()
    tasks: tuple[TaskParity, ...] = ()
    features: tuple[FeatureParity, ...] = ()
    reduced: tuple[str, ...] = ()
    distributions: bool = True  # False: the baseline tells no log probabilities, only its tokens are compared
    answers: tuple[Answer, ...] = ()


def divergence(baseline: Top, candidate: Top) -> float:
    """Return KL(baseline || candidate) in nats over the baseline's listed tokens and all the rest together.

    A token that the candidate does not list gets the most that it can have there, the least of those listed: the
    result is a lower bound, exact where both list the same.
    """
    floor = min(candidate.values(), default=math.log(_LEAST))
    ours = {token: math.exp(candidate.get(token, floor)) for token in baseline}
    theirs = {token: math.exp(value) for token, value in baseline.items()}
    listed = sum(ours.values())
    if listed > 1:
        ours = {token: value / listed for token, value in ours.items()}
    pairs = [*((p, ours[token]) for token, p in theirs.items()), (1 - sum(theirs.values()), 1 - sum(ours.values()))]
    return max(0.0, sum(p * math.log(p / max(q, _LEAST)) for p, q in pairs if p > _LEAST))


def likeliest(top: Top) -> int:
    """Return the token with the highest probability."""
    return max(top, key=lambda token: top[token])
