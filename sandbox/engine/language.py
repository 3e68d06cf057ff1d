"""Stand in for a tokenizer and a language model: deterministic words, cheap to make.

A word is a token. The next token depends on the two before it and on the position, so the
same model continues the same text alike on every engine, and `prompt_logprobs` agree with
what was generated. About one token in 150 is a near tie that another accelerator may break
the other way, as real kernels do; an engine with `wrong-answers` is another model altogether.
"""

from __future__ import annotations

import re
import zlib
from math import exp, log, log2
from random import Random

VOCABULARY_SIZE = 1024
_MASK = (1 << 64) - 1
_PIECES = re.compile(r" ?[^\W\d_]+| ?\d+| ?[^\w\s]+|_+|\s+")
_TOKEN_ID = re.compile(r" ?t(\d+)")
_ONSETS = "bdfghklmnprstvwz"
_VOWELS = "aeio"
# A word of two syllables each from 16 × 4 would give 4096; 1024 are enough and stay short.
WORDS = tuple(
    f" {first}{_VOWELS[n % 4]}{_ONSETS[n // 4]}{_VOWELS[(n // 4 + n) % 4]}" for first in _ONSETS for n in range(64)
)
_IDS = {word: index + 256 for index, word in enumerate(WORDS)}
_TOP = 4  # candidates with a probability of their own; the rest share what is left


def tokenize(text: str) -> list[int]:
    """Return the ids of a text: words of the model's own vocabulary first, else a hash of the piece."""
    return [_token_id(piece) for piece in _PIECES.findall(text)]


def _token_id(piece: str) -> int:
    known = _IDS.get(piece) or _IDS.get(" " + piece)
    if known:
        return known
    numbered = _TOKEN_ID.fullmatch(piece)
    if numbered:
        return int(numbered[1])
    return 2048 + zlib.crc32(piece.encode()) % 260_000


def piece(token: int) -> str:
    """Return a token's text; ids outside the vocabulary have a made-up one."""
    index = token - 256
    return WORDS[index] if 0 <= index < VOCABULARY_SIZE else f" t{token}"


class LanguageModel:
    """The distribution over the next token, as one engine computes it."""

    def __init__(self, model_name: str, arm: str) -> None:
        self._model = zlib.crc32(model_name.encode())
        self._arm = zlib.crc32(arm.encode())
        self.wrong = False

    def _context(self, before: int, last: int, position: int) -> int:
        model = self._model ^ 0x5BD1E995 if self.wrong else self._model
        mixed = (before * 0x9E3779B1 + last * 0x85EBCA77 + position * 0xC2B2AE3D + model) & _MASK
        mixed ^= mixed >> 29
        mixed = (mixed * 0xBF58476D1CE4E5B9) & _MASK
        return mixed ^ (mixed >> 32)

    def next_token(self, before: int, last: int, position: int, draw: float | None = None) -> int:
        """Return the next token: the likeliest, or for a `draw` in [0, 1) a sampled one."""
        context = self._context(before, last, position)
        choice = 0
        if draw is not None:
            first = 0.55 + (context >> 17 & 255) / 255 * 0.4
            if draw >= first:
                # The rest halves from candidate to candidate, as in `top`.
                choice = min(62, int(log2((1 - first) / max(1e-9, 1 - draw))) + 1)
        elif context % 150 == 0 and (self._arm ^ context >> 8) & 1:
            choice = 1  # a near tie, broken the other way on this accelerator
        return 256 + ((context >> 7) + choice * 331) % VOCABULARY_SIZE

    def generate(self, before: int, last: int, position: int, count: int, random: Random | None) -> list[int]:
        """Return `count` more tokens after `last` at `position` (the count of tokens so far)."""
        tokens = []
        for offset in range(count):
            token = self.next_token(before, last, position + offset, random.random() if random else None)
            tokens.append(token)
            before, last = last, token
        return tokens

    def top(self, before: int, last: int, position: int) -> list[tuple[int, float]]:
        """Return the likeliest tokens with their log probabilities, best first."""
        context = self._context(before, last, position)
        base = context >> 7
        first = 0.55 + (context >> 17 & 255) / 255 * 0.4
        # Each accelerator's arithmetic shifts every probability a little.
        first *= 1 + ((self._arm ^ context) % 17 - 8) * 1e-4
        rest = 1 - first
        shares = [first, rest * 0.5, rest * 0.25, rest * 0.12]
        order = list(range(_TOP))
        if context % 150 == 0:
            shares[0] = shares[1] = (shares[0] + shares[1]) / 2
            if (self._arm ^ context >> 8) & 1:
                order[0], order[1] = 1, 0
        return [(256 + (base + choice * 331) % VOCABULARY_SIZE, log(shares[slot])) for slot, choice in enumerate(order)]

    def score(self, before: int, last: int, position: int, token: int) -> tuple[float, int]:
        """Return the log probability and the rank of `token` as the next one."""
        best = self.top(before, last, position)
        for rank, (candidate, logprob) in enumerate(best, start=1):
            if candidate == token:
                return logprob, rank
        left = 1 - sum(exp(logprob) for _, logprob in best)
        return log(left / 260_000), _TOP + 1 + zlib.crc32(token.to_bytes(4, "little")) % 200_000

    def natural_length(self, prompt: list[int], random: Random | None) -> int:
        """Return after how many tokens the answer ends by itself (median 160, right-skewed)."""
        seed = zlib.crc32(repr(prompt[-64:]).encode()) ^ self._model
        length = (random or Random(seed)).lognormvariate(log(160), 0.5)
        return max(4, int(length * (0.6 if self.wrong else 1.0)))
