"""Read requests and say what is wrong with them, in vLLM 0.32's words."""

from __future__ import annotations

import json
from dataclasses import dataclass
from random import Random
from typing import Any

from sandbox.engine.config import EngineConfig
from sandbox.engine.language import tokenize


class ApiError(Exception):
    """An answer other than 200, with the body that vLLM gives."""

    def __init__(self, status: int, message: str, kind: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": status}}


def invalid(message: str, param: str | None = None, value: object = None) -> ApiError:
    """Return a 400 as vLLM words it: the parameter and its value in brackets at the end."""
    if param is not None:
        message += f" (parameter={param}" + (f", value={value})" if value is not None else ")")
    return ApiError(400, message, "BadRequestError", param)


@dataclass(frozen=True)
class Generation:
    """One request, checked."""

    chat: bool
    model: str
    prompt: list[int]
    max_tokens: int
    ignore_eos: bool
    stream: bool
    include_usage: bool
    continuous_usage: bool
    random: Random | None  # None: greedy
    logprobs: int | None
    prompt_logprobs: int | None
    tokens_as_ids: bool


def parse_json(body: bytes) -> dict[str, Any]:
    """Return the body's object, or the 400 of FastAPI as vLLM rewrites it."""
    try:
        data = json.loads(body)
    except UnicodeDecodeError as error:
        raise ApiError(400, f"There was an error parsing the body: {error}", "Bad Request") from error
    except json.JSONDecodeError as error:
        location = f"body.{error.pos}"
        message = (
            f"1 validation error:\n  {{'type': 'json_invalid', 'loc': '{location}', "
            f"'msg': 'JSON decode error', 'input': '<dict of 0 items>', 'ctx': {{'error': '{error.msg}'}}}}"
        )
        raise ApiError(400, message, "Bad Request", location) from error
    if not isinstance(data, dict):
        raise _mistyped("body", "model_attributes_type", "Input should be a valid dictionary", data)
    return data


def parse_generation(data: dict[str, Any], chat: bool, config: EngineConfig) -> Generation:
    """Return the checked request; raises ApiError in the order in which vLLM looks."""
    if chat and "messages" not in data:
        raise _mistyped("messages", "missing", "Field required", data)
    max_tokens = _integer(data, "max_completion_tokens") if chat else None
    if max_tokens is None:
        max_tokens = _integer(data, "max_tokens")
    seed = _integer(data, "seed")
    temperature = _temperature(data)
    logprobs = _logprobs(data, chat)
    prompt_logprobs = _integer(data, "prompt_logprobs")
    options = data.get("stream_options") or {}
    if not isinstance(options, dict):
        raise _mistyped("body.stream_options", "model_type", "Input should be a valid dictionary", options)
    if options and not data.get("stream"):
        raise invalid("Stream options can only be defined when `stream=True`.", "stream_options")
    if prompt_logprobs is not None and data.get("stream"):
        raise invalid("`prompt_logprobs` are not available when `stream=True`.", "prompt_logprobs")
    model = check_model(data.get("model"), config)
    prompt = _chat_tokens(data["messages"]) if chat else _prompt(data)
    _check_lengths(len(prompt), max_tokens, config)
    if max_tokens is None and not chat:
        max_tokens = 16
    if (data.get("n") or 1) != 1:
        raise invalid("The simulated engine serves n=1 only.", "n", data["n"])
    for name, asked in (("sample", logprobs), ("prompt", prompt_logprobs)):
        if asked is not None and not 0 <= asked <= config.flags.max_logprobs:
            raise invalid(
                f"Requested {name} logprobs of {asked}, which is greater than max allowed: {config.flags.max_logprobs}",
                "logprobs" if name == "sample" else "prompt_logprobs",
                asked,
            )
    if config.flags.speculative and prompt_logprobs is not None:
        raise invalid("prompt_logprobs are not yet supported with speculative decoding", "prompt_logprobs")
    if config.tpu and seed is not None:
        raise ApiError(400, "JAX does not support per-request seed.", "BadRequestError")
    greedy = temperature is not None and temperature < 1e-5
    room = config.max_model_len - len(prompt)
    return Generation(
        chat=chat,
        model=model,
        prompt=prompt,
        max_tokens=max(1, min(room, max_tokens if max_tokens is not None else room)),
        ignore_eos=bool(data.get("ignore_eos")),
        stream=bool(data.get("stream")),
        include_usage=bool(options.get("include_usage")),
        continuous_usage=bool(options.get("include_usage") and options.get("continuous_usage_stats")),
        random=None if greedy else Random(seed),
        logprobs=logprobs,
        prompt_logprobs=prompt_logprobs,
        tokens_as_ids=bool(data.get("return_tokens_as_token_ids")),
    )


def check_model(model: object, config: EngineConfig) -> str:
    """Return the name to answer with: no name means the first one that is served."""
    names = config.flags.served_names
    if not model:
        return names[0]
    if model not in names:
        aliases = ", ".join(names)
        message = f"The model `{model}` does not exist. Valid aliases: {aliases}."
        raise ApiError(404, message, "NotFoundError", "model")
    return str(model)


def tokens_of(data: dict[str, Any]) -> list[int]:
    """Return the tokens that /tokenize is asked about: a prompt's or a conversation's."""
    return _chat_tokens(data["messages"]) if "messages" in data else _prompt(data)


def _mistyped(location: str, kind: str, message: str, value: object) -> ApiError:
    text = f"1 validation error:\n  {{'type': '{kind}', 'loc': '{location}', 'msg': '{message}', "
    shown = f"<dict of {len(value)} items>" if isinstance(value, dict) else repr(value)[:80]
    return ApiError(400, f"{text}'input': {shown!r}}}", "Bad Request", location)


def _integer(data: dict[str, Any], name: str) -> int | None:
    value = data.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        raise _mistyped(f"body.{name}", "int_parsing", "Input should be a valid integer", value)
    return value


def _temperature(data: dict[str, Any]) -> float | None:
    value = data.get("temperature")
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _mistyped("body.temperature", "float_parsing", "Input should be a valid number", value)
    if value < 0:
        raise invalid(f"temperature must be non-negative, got {value}.", "temperature", value)
    return float(value)


def _logprobs(data: dict[str, Any], chat: bool) -> int | None:
    if not chat:
        return _integer(data, "logprobs")
    if not data.get("logprobs"):
        return None
    return _integer(data, "top_logprobs") or 0


def _prompt(data: dict[str, Any]) -> list[int]:
    prompt = data.get("prompt")
    if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int):
        if len(prompt) > 1:
            raise invalid("The simulated engine takes one prompt a request.", "prompt")
        prompt = prompt[0]
    if not prompt:
        raise invalid("Either prompt or prompt_embeds must be provided and non-empty.", "prompt")
    if isinstance(prompt, str):
        return tokenize(prompt)
    if isinstance(prompt, list) and all(isinstance(token, int) and token >= 0 for token in prompt):
        return prompt
    raise _mistyped("body.prompt", "string_type", "Input should be a valid string", prompt)


def _contents(messages: object) -> list[tuple[str, str]]:
    """Return (role, text) of each message; parts other than text count for nothing."""
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise _mistyped("body.messages", "list_type", "Input should be a valid list", messages)
    pairs = []
    for message in messages:
        content = message.get("content") or ""
        if isinstance(content, list):
            content = " ".join(part.get("text", "") for part in content if isinstance(part, dict))
        pairs.append((str(message.get("role")), str(content)))
    return pairs


def _chat_tokens(messages: object) -> list[int]:
    """Return the tokens behind a chat template: two for the frame and three a message."""
    tokens = [2]
    for role, content in _contents(messages):
        tokens += [106, 1645 if role == "user" else 2516, *tokenize(content), 107]
    return [*tokens, 2516]


def _check_lengths(prompt: int, max_tokens: int | None, config: EngineConfig) -> None:
    limit = config.max_model_len
    if max_tokens is not None and max_tokens > limit:
        raise invalid(
            f"max_tokens={max_tokens} cannot be greater than max_model_len={limit}. "
            "Please request fewer output tokens.",
            "max_tokens",
            max_tokens,
        )
    if max_tokens is not None and max_tokens < 1:
        raise invalid(f"max_tokens must be at least 1, got {max_tokens}.", "max_tokens", max_tokens)
    if prompt >= limit:
        raise invalid(
            f"This model's maximum context length is {limit} tokens. However, your prompt contains {prompt} "
            "input tokens, which exceeds this limit even without any output tokens. "
            "Please reduce the length of the input prompt.",
            "input_tokens",
            prompt,
        )
