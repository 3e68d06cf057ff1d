"""Ask one server for whole answers with log probabilities, and read what it says."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp

from tpu_migration.domain.gate.parity import Top

_TRIES, _PAUSE_S = 3, 2.0


class NoAnswerError(Exception):
    """Report a server that gave no answer, also when asked again."""


class RefusedError(Exception):
    """Report a request that the server does not take, in its own words."""


@dataclass(frozen=True)
class Greedy:
    """A greedy answer: its tokens, the likeliest ones at each (empty where the server tells none), its text."""

    tokens: tuple[int, ...]
    tops: tuple[Top, ...]
    text: str


class Server:
    """Talk to one OpenAI-compatible vLLM server under one model name."""

    def __init__(self, client: aiohttp.ClientSession, url: str, model: str, headers: Mapping[str, str]) -> None:
        self._client, self._model, self._headers = client, model, dict(headers)
        self._url = url.rstrip("/").removesuffix("/v1")

    async def greedy(self, prompt: str | list[int], max_tokens: int, top: int) -> Greedy:
        """Return the greedy answer; raises RefusedError where log probabilities are not to be had."""
        body = await self.complete(
            prompt=prompt, max_tokens=max_tokens, temperature=0, logprobs=top, return_tokens_as_token_ids=True
        )
        choice = body["choices"][0]
        told = choice.get("logprobs") or {}
        tokens = tuple(_token_id(each) for each in told.get("tokens") or ())
        tops = tuple({_token_id(k): v for k, v in each.items()} for each in told.get("top_logprobs") or ())
        return Greedy(tokens, tops, choice.get("text") or "")

    async def forced(self, prompt: list[int], answer: list[int], top: int) -> list[Top]:
        """Return the distribution at each position of an answer that is put after the prompt, without generating it.

        At most 1,024 tokens in all, and one at a time: `prompt_logprobs` take gigabytes beside vLLM's budget
        (vllm#5907). Raises RefusedError where the server has none.
        """
        body = await self.complete(prompt=[*prompt, *answer], max_tokens=1, temperature=0, prompt_logprobs=top)
        rows = (body["choices"][0].get("prompt_logprobs") or [])[len(prompt) :]
        if len(rows) != len(answer):
            raise RefusedError(f"{len(rows)} prompt_logprobs for {len(answer)} tokens")
        return [{int(token): float(entry["logprob"]) for token, entry in row.items()} for row in rows]

    async def tokenize(self, text: str, *, special: bool = True) -> list[int]:
        """Return a text's tokens, as the server would read it."""
        asked = {"model": self._model, "prompt": text, "add_special_tokens": special}
        return [int(each) for each in (await self._post("/tokenize", asked))["tokens"]]

    async def complete(self, **fields: Any) -> dict[str, Any]:
        """Return the body of a completion."""
        return await self._post("/v1/completions", {"model": self._model, **fields})

    async def chat(self, prompt: str, **fields: Any) -> dict[str, Any]:
        """Return the message of a chat completion."""
        asked = {"model": self._model, "messages": [{"role": "user", "content": prompt}], **fields}
        message: dict[str, Any] = (await self._post("/v1/chat/completions", asked))["choices"][0]["message"]
        return message

    async def _post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        problem = ""
        for attempt in range(_TRIES):
            if attempt:
                await asyncio.sleep(_PAUSE_S)
            try:
                async with self._client.post(self._url + path, json=body, headers=self._headers) as response:
                    if response.status == 200:
                        answer: dict[str, Any] = await response.json(content_type=None)
                        return answer
                    problem = f"{response.status}: {' '.join((await response.text()).split())[:200]}"
                    if 400 <= response.status < 500 and response.status != 429:
                        raise RefusedError(problem)
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                problem = f"{type(error).__name__}: {error}"
        raise NoAnswerError(f"{self._url}{path}: {problem}")


def _token_id(text: str) -> int:
    """Read `token_id:17`, which `return_tokens_as_token_ids` gives."""
    return int(text.removeprefix("token_id:"))
