"""Write answers: whole bodies with json, stream chunks from pieces made once a request."""

from __future__ import annotations

import json
from random import Random
from typing import Any

from sandbox.engine.config import VERSION
from sandbox.engine.language import LanguageModel, piece
from sandbox.engine.protocol import Generation

FINGERPRINT = f"vllm-{VERSION}-simulated"
DONE = b"data: [DONE]\n\n"


class Answer:
    """The text of one request, made as far as it has been asked for."""

    def __init__(self, request: Generation, answer_id: str, created: int, model: LanguageModel) -> None:
        self._request = request
        self._language = model
        self._id = answer_id
        self._created = created
        self.tokens: list[int] = []
        kind = "chat.completion.chunk" if request.chat else "text_completion"
        self._head = (
            f'data: {{"id":"{answer_id}","object":"{kind}","created":{created},'
            f'"model":{json.dumps(request.model)},"choices":['
        )
        self._open = self._head + ('{"index":0,"delta":{"content":"' if request.chat else '{"index":0,"text":"')

    def grow(self, total: int) -> list[int]:
        """Generate up to `total` tokens; return the new ones."""
        have = len(self.tokens)
        prompt = self._request.prompt
        context = [0, 0, *prompt[-2:], *self.tokens[-2:]]
        new = self._language.generate(context[-2], context[-1], len(prompt) + have, total - have, self._request.random)
        self.tokens += new
        return new

    def role_chunk(self) -> str:
        """Return the first chunk of a chat stream, which carries no token."""
        return (
            f'{self._head}{{"index":0,"delta":{{"role":"assistant","content":""}},"logprobs":null,'
            f'"finish_reason":null}}]{self._running_usage(0)},"prompt_token_ids":null,"prompt_text":null}}\n\n'
        )

    def chunk(self, total: int, reason: str | None) -> str:
        """Return the chunk that brings the stream to `total` tokens."""
        start = len(self.tokens)
        new = self.grow(total)
        text = "".join(map(piece, new))
        logprobs = "null"
        if self._request.logprobs is not None and new:
            logprobs = json.dumps(self.logprobs(start, total), separators=(",", ":"), ensure_ascii=False)
        finish = "null" if reason is None else f'"{reason}"'
        if self._request.chat:
            stop = "" if reason is None else ',"stop_reason":null'
            tail = f'"}},"logprobs":{logprobs},"finish_reason":{finish}{stop},"token_ids":null}}]'
        else:
            tail = (
                f'","logprobs":{logprobs},"finish_reason":{finish},"stop_reason":null,'
                f'"prompt_token_ids":null,"token_ids":null}}]'
            )
        return f"{self._open}{text}{tail}{self._running_usage(total)}}}\n\n"

    def usage_chunk(self) -> str:
        usage = self._usage(len(self.tokens))
        return f'{self._head}],"usage":{usage},"system_fingerprint":"{FINGERPRINT}"}}\n\n'

    def _usage(self, total: int) -> str:
        prompt = len(self._request.prompt)
        return f'{{"prompt_tokens":{prompt},"total_tokens":{prompt + total},"completion_tokens":{total}}}'

    def _running_usage(self, total: int) -> str:
        return f',"usage":{self._usage(total)}' if self._request.continuous_usage else ""

    def body(self, reason: str) -> dict[str, Any]:
        """Return the whole answer of a request without a stream."""
        request = self._request
        prompt, total = len(request.prompt), len(self.tokens)
        logprobs = self.logprobs(0, total) if request.logprobs is not None else None
        choice: dict[str, Any] = {"index": 0}
        text = "".join(map(piece, self.tokens))
        if request.chat:
            message = dict.fromkeys(
                ("role", "content", "refusal", "annotations", "audio", "function_call", "reasoning")
            )
            choice["message"] = {**message, "role": "assistant", "content": text}
        else:
            choice["text"] = text
        choice |= {"logprobs": logprobs, "finish_reason": reason, "stop_reason": None, "token_ids": None}
        prompt_logprobs = self._prompt_logprobs()
        if not request.chat:
            choice |= {"prompt_logprobs": prompt_logprobs, "prompt_token_ids": None}
        choice["routed_experts"] = None
        usage = {
            "prompt_tokens": prompt,
            "total_tokens": prompt + total,
            "completion_tokens": total,
            "prompt_tokens_details": None,
            "completion_tokens_details": None,
        }
        body = {
            "id": self._id,
            "object": "chat.completion" if request.chat else "text_completion",
            "created": self._created,
            "model": request.model,
            "choices": [choice],
            "service_tier": None,
            "system_fingerprint": FINGERPRINT,
            "usage": usage,
        }
        if request.chat:
            body |= {"prompt_logprobs": prompt_logprobs, "prompt_token_ids": None, "prompt_text": None}
        return {**body, "kv_transfer_params": None, "ec_transfer_params": None, "metrics": None}

    def _shown(self, token: int) -> str:
        return f"token_id:{token}" if self._request.tokens_as_ids else piece(token)

    def _scores(self, everything: list[int], position: int) -> tuple[float, int, list[tuple[int, float]]]:
        """Return a token's log probability, its rank and the best candidates in its place."""
        before = everything[position - 2] if position > 1 else 0
        last = everything[position - 1]
        logprob, rank = self._language.score(before, last, position, everything[position])
        return logprob, rank, self._language.top(before, last, position)

    def logprobs(self, start: int, end: int) -> dict[str, Any]:
        """Return the logprobs object for tokens `start` to `end` of the answer."""
        everything = [*self._request.prompt, *self.tokens]
        count = self._request.logprobs or 0
        offset = len(self._request.prompt)
        rows = []
        for index in range(start, end):
            logprob, _, top = self._scores(everything, offset + index)
            rows.append((self.tokens[index], logprob, top[:count]))
        if self._request.chat:
            return {"content": [self._chat_logprob(*row) for row in rows]}
        offsets, length = [], len("".join(map(self._shown, self.tokens[:start])))
        for token, _, _ in rows:
            offsets.append(length)
            length += len(self._shown(token))
        return {
            "text_offset": offsets,
            "token_logprobs": [logprob for _, logprob, _ in rows],
            "tokens": [self._shown(token) for token, _, _ in rows],
            "top_logprobs": [
                {self._shown(token): value for token, value in [(chosen, logprob), *top]}
                for chosen, logprob, top in rows
            ],
        }

    def _chat_logprob(self, token: int, logprob: float, top: list[tuple[int, float]]) -> dict[str, Any]:
        entries = [
            {"token": self._shown(item), "logprob": value, "bytes": list(piece(item).encode())}
            for item, value in [(token, logprob), *top]
        ]
        return {**entries[0], "top_logprobs": entries[1:]}

    def _prompt_logprobs(self) -> list[dict[str, Any] | None] | None:
        count = self._request.prompt_logprobs
        if count is None:
            return None
        prompt = self._request.prompt
        rows: list[dict[str, Any] | None] = [None]
        for position in range(1, len(prompt)):
            logprob, rank, top = self._scores(prompt, position)
            token = prompt[position]
            row = {str(token): {"logprob": logprob, "rank": rank, "decoded_token": piece(token)}}
            for place, (candidate, value) in enumerate(top[:count], start=1):
                entry = {"logprob": value, "rank": place, "decoded_token": piece(candidate)}
                row.setdefault(str(candidate), entry)
            rows.append(row)
        return rows


def natural_length(request: Generation, model: LanguageModel) -> int | None:
    """Return where the answer ends by itself; None where ignore_eos forbids it."""
    if request.ignore_eos:
        return None
    # A length of its own generator, so that asking for it changes no token.
    random = Random(request.random.random()) if request.random else None
    return model.natural_length(request.prompt, random)
