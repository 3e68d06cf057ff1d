"""Probe what a server makes of the fields that clients put into requests: honoured, ignored or refused."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable

from tpu_migration.bench.completions import RefusedError, Server
from tpu_migration.domain.gate.parity import HONOURED, FeatureParity

IGNORED, REFUSED = "ignored", "refused"
_PROMPT = "Say something about the weather."
_HOT = {"temperature": 2.0, "max_tokens": 16}  # so hot that two answers of a kind are no accident


async def _text(server: Server, **fields: object) -> str:
    return str((await server.complete(prompt=_PROMPT, **fields))["choices"][0].get("text"))


async def _seed(server: Server) -> bool:
    return await _text(server, seed=7, **_HOT) == await _text(server, seed=7, **_HOT)


async def _min_p(server: Server) -> bool:
    """With min_p=1 only the likeliest token is left, however hot it is."""
    return await _text(server, min_p=1.0, **_HOT) == await _text(server, temperature=0, max_tokens=16)


async def _logit_bias(server: Server) -> bool:
    token = (await server.tokenize(" cheese", special=False))[-1]
    answer = await server.greedy(_PROMPT, 1, 1)
    if answer.tokens and answer.tokens[0] == token:
        return False  # it would have come anyway: nothing is shown
    body = await server.complete(
        prompt=_PROMPT, max_tokens=1, temperature=0, logit_bias={str(token): 100}, logprobs=1,
        return_tokens_as_token_ids=True,
    )  # fmt: skip
    return (body["choices"][0]["logprobs"] or {}).get("tokens") == [f"token_id:{token}"]


async def _allowed_token_ids(server: Server) -> bool:
    token = (await server.tokenize(" cheese", special=False))[-1]
    body = await server.complete(
        prompt=_PROMPT, max_tokens=2, temperature=1.0, allowed_token_ids=[token], ignore_eos=True, logprobs=1,
        return_tokens_as_token_ids=True,
    )  # fmt: skip
    return set((body["choices"][0]["logprobs"] or {}).get("tokens") or ["-"]) == {f"token_id:{token}"}


async def _structured(server: Server) -> bool:
    choices = ["qu1et", "l0ud"]  # no model says these of itself
    return await _text(server, structured_outputs={"choice": choices}, temperature=0, max_tokens=16) in choices


async def _json_schema(server: Server) -> bool:
    schema = {
        "type": "object",
        "properties": {"qz": {"type": "integer"}},
        "required": ["qz"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    message = await server.chat("Give any answer.", response_format=form, temperature=0, max_tokens=32)
    try:
        return set(json.loads(message.get("content") or "")) == {"qz"}
    except (ValueError, TypeError):
        return False


async def _tools(server: Server) -> bool:
    tool = {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}
    message = await server.chat(
        "What is the weather in Paris?", tools=[{"type": "function", "function": tool}], tool_choice="required",
        temperature=0, max_tokens=64,
    )  # fmt: skip
    return bool(message.get("tool_calls"))


_PROBES: dict[str, Callable[[Server], Awaitable[bool]]] = {
    "seed": _seed,
    "min_p": _min_p,
    "logit_bias": _logit_bias,
    "allowed_token_ids": _allowed_token_ids,
    "structured_outputs": _structured,
    "json_schema": _json_schema,
    "tools": _tools,
}


async def compare(baseline: Server, candidate: Server) -> list[FeatureParity]:
    """Probe every feature on both servers; raises NoAnswerError if one does not answer at all."""
    found = []
    for name, probe in _PROBES.items():
        (theirs, _), (ours, detail) = await _probed(baseline, probe), await _probed(candidate, probe)
        found.append(FeatureParity(name, theirs, ours, detail))
    return found


async def _probed(server: Server, probe: Callable[[Server], Awaitable[bool]]) -> tuple[str, str]:
    try:
        return (HONOURED, "") if await probe(server) else (IGNORED, "")
    except RefusedError as error:
        return REFUSED, str(error)
