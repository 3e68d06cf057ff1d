"""Follow one streamed answer chunk by chunk: when tokens came, how many, and how it ended.

Almost every chunk is only searched, never parsed: at ten thousand chunks a second, parsing JSON would
make the client the bottleneck. The searches cannot be fooled by generated text, since a quote inside
a JSON string is escaped and the patterns need a bare one.
"""

from __future__ import annotations

import json
import re
from typing import Any

_TOKENS = re.compile(rb'"completion_tokens"\s*:\s*(\d+)')
_TEXT = re.compile(rb'"(?:text|content|reasoning|reasoning_content|refusal)"\s*:\s*"(?!")|"tool_calls"\s*:\s*\[\s*\{')
_FINISH = re.compile(rb'"finish_reason"\s*:\s*"(\w+)"')
_NO_CHOICES = re.compile(rb'"choices"\s*:\s*\[\s*\]')


class Answer:
    """What is known of a streamed answer so far. Times are the caller's clock, in seconds."""

    __slots__ = (
        "done",
        "error",
        "fingerprint",
        "finish_reason",
        "first_at",
        "first_tokens",
        "last_at",
        "prompt_tokens",
        "text_chunks",
        "tokens",
    )

    def __init__(self) -> None:
        self.first_at: float | None = None
        self.last_at: float | None = None
        self.first_tokens = 1
        self.tokens: int | None = None  # from usage; None until a chunk carries it
        self.text_chunks = 0
        self.prompt_tokens: int | None = None
        self.finish_reason: str | None = None
        self.fingerprint: str | None = None
        self.error: str | None = None
        self.done = False

    def add(self, payload: bytes, now: float) -> None:
        """Take in one event's data.

        A chunk counts as content if its usage says that tokens came (`continuous_usage_stats`: a token
        without text still makes a chunk, a role chunk has none), else if it carries text.
        """
        if payload == b"[DONE]":
            self.done = True
            return
        if b'"choices"' not in payload:
            self._other(payload)
            return
        found = _TOKENS.search(payload)
        if found:
            tokens = int(found[1])
            # The summary chunk repeats the count; where it is the only usage, text chunks gave the times.
            if tokens > (self.tokens or 0):
                if not _NO_CHOICES.search(payload):
                    self._content(now, tokens)
                self.tokens = tokens
        elif _TEXT.search(payload):
            self._content(now, 1)
            self.text_chunks += 1
        finish = _FINISH.search(payload)
        if finish:
            self.finish_reason = finish[1].decode()
        if found and (self.prompt_tokens is None or _NO_CHOICES.search(payload)):
            self._usage(payload)

    def output_tokens(self) -> int:
        """Return the tokens by usage, else the chunks with text."""
        return self.tokens if self.tokens is not None else self.text_chunks

    def tpot_s(self) -> float | None:
        """Return (t_last - t_first) / (n - n_first), or None where no token followed the first chunk."""
        following = self.output_tokens() - self.first_tokens
        if self.first_at is None or self.last_at is None or self.output_tokens() < 2:
            return None
        # Every token in one chunk: they cost nothing after the first, and that is what users saw.
        return (self.last_at - self.first_at) / following if following > 0 else 0.0

    def failure(self, asked_tokens: int | None) -> str | None:
        """Say why this answer is no good one, or None; `asked_tokens` is what ignore_eos must give."""
        if self.error:
            return self.error
        if self.first_at is None:
            return "empty: the stream ended without a token"
        if self.finish_reason == "abort":
            return f"truncated: aborted after {self.output_tokens()} tokens"
        if not self.done or self.finish_reason is None:
            return f"truncated: no end after {self.output_tokens()} tokens"
        if asked_tokens is not None and self.output_tokens() < asked_tokens:
            return f"truncated: {self.output_tokens()} tokens of {asked_tokens}"
        return None

    def _content(self, now: float, tokens: int) -> None:
        if self.first_at is None:
            self.first_at = now
            self.first_tokens = tokens
        self.last_at = now

    def _usage(self, payload: bytes) -> None:
        chunk = _parse(payload)
        usage = chunk.get("usage")
        if isinstance(usage, dict) and isinstance(usage.get("prompt_tokens"), int):
            self.prompt_tokens = usage["prompt_tokens"]
        if isinstance(chunk.get("system_fingerprint"), str):
            self.fingerprint = chunk["system_fingerprint"]

    def _other(self, payload: bytes) -> None:
        error = _parse(payload).get("error")
        if error:
            message = error.get("message") if isinstance(error, dict) else error
            self.error = f"server: {str(message)[:200]}"


def _parse(payload: bytes) -> dict[str, Any]:
    try:
        chunk = json.loads(payload)
    except ValueError:
        return {"error": f"no JSON in the stream: {payload[:80]!r}"}
    return chunk if isinstance(chunk, dict) else {"error": f"no object in the stream: {payload[:80]!r}"}
