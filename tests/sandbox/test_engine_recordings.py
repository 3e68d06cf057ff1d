"""Hold the simulated engine to what a real vLLM 0.32 answered: every recorded exchange, none left out."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any

import pytest
from engine_harness import (
    H100,
    H100_FLAGS,
    RECORDINGS,
    Running,
    child,
    events,
    needs_recordings,
    recorded,
    running,
)
from test_engine_process import serve, stream_until_terminated

pytestmark = needs_recordings
FLAGS = [*H100_FLAGS, "--served-model-name", "tiny", "--max-model-len", "2048"]
# Not a request with an answer, but a story; and what all other requests leave behind. Each has a test of its own.
SIGTERM, METRICS = "completion-stream-sigterm.http", "metrics.http"
FILES = sorted(file.name for file in RECORDINGS.glob("*")) if RECORDINGS.is_dir() else []
REQUESTS = [name for name in FILES if name not in (SIGTERM, METRICS)]
_CURL = re.compile(
    r"^\$ curl -i(?: -N)?(?P<typed> -H content-type: application/json -d (?P<body>.*))? \$BASE(?P<path>\S+)$"
)
# What depends on the model, or is drawn anew: of these the type is compared, of lists also the length.
OF_THE_MODEL = {"root", "text", "content", "token", "logprob", "rank", "decoded_token"}
OF_THE_MODEL |= {"text_offset", "token_logprobs", "tokens"}
DRAWN = {"id", "created", "system_fingerprint"}
# Objects whose keys are tokens.
BY_TOKEN = {"top_logprobs", "prompt_logprobs"}


async def replay(engine: Running, name: str) -> tuple[int, dict[str, str], str]:
    """Send a recorded request; return status, headers (names in lower case) and body."""
    first = (RECORDINGS / name).read_text().splitlines()[0]
    curl = _CURL.match(first)
    assert curl, f"{name} begins with no curl that this test can send: {first}"
    method = "POST" if curl["typed"] else "GET"
    headers = {"content-type": "application/json"} if curl["typed"] else {}
    data = (curl["body"] or "").encode() or None
    async with engine.session.request(method, engine.base + curl["path"], data=data, headers=headers) as response:
        sent = {name.lower(): value for name, value in response.headers.items()}
        return response.status, sent, await response.text()


def comparable(value: Any, name: str = "") -> Any:
    """Return a JSON value with types in the place of what depends on the model or is drawn anew; key order kept."""
    if name == "bytes":
        return "bytes of a token"
    if isinstance(value, list):
        return [comparable(each, name) for each in value]
    if isinstance(value, dict):
        if name in BY_TOKEN and "token" not in value:
            return sorted((comparable(each, "logprob") for each in value.values()), key=str)
        return [(key, comparable(each, key)) for key, each in value.items()]
    if name in OF_THE_MODEL | DRAWN and value is not None:
        return type(value).__name__
    return value


def check_headers(ours: dict[str, str], real: dict[str, str], body: str) -> None:
    assert ours.keys() == real.keys()
    for name in ("server", "content-type", "vary", "transfer-encoding"):
        assert ours.get(name) == real.get(name)
    assert ours.get("content-length", str(len(body.encode()))) == str(len(body.encode()))
    assert re.fullmatch(r"\w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT", ours["date"])


@pytest.mark.parametrize("name", REQUESTS)
async def test_answers_as_the_real_vllm_did(name: str) -> None:
    status, headers, body = recorded(name)
    async with running(FLAGS, H100) as engine:
        ours = await replay(engine, name)
    assert ours[0] == status
    check_headers(ours[1], headers, ours[2])
    if headers.get("content-type", "").startswith("text/event-stream"):
        # Chunk by chunk: who speaks first, a chunk for each token though its text is empty, usage without choices.
        assert comparable(events(ours[2])) == comparable(events(body))
        assert ours[2].endswith("data: [DONE]\n\n")
        assert "simulated" in events(ours[2])[-2]["system_fingerprint"]
    elif status >= 400 or not body.strip():
        assert ours[2] == body.rstrip("\n")
    else:
        assert comparable(json.loads(ours[2])) == comparable(json.loads(body))


def test_sigterm_ends_a_stream_with_abort_usage_and_a_clean_done(tmp_path: Any) -> None:
    _, _, body = recorded(SIGTERM)
    # The recording is cut in its middle, and in the middle of two chunks.
    whole = [part.removeprefix("data: ") for part in body.split("\n\n") if re.match(r"data: (\{.*\}|\[DONE\])$", part)]
    real = [part if part == "[DONE]" else json.loads(part) for part in whole]
    argv, base = serve([*H100_FLAGS, "--served-model-name", "google/gemma-3-27b-it"])
    with child(argv, H100, tmp_path) as engine:
        engine.wait_for("Application startup complete.")
        ours = asyncio.run(stream_until_terminated(engine, base))
        assert engine.exit_status() == 0
    head, tail = real[:-3], real[-3:]
    assert len(head) == 3
    for chunk in (*head, *tail[:2]):
        chunk["model"] = "google/gemma-3-27b-it"
    for chunk in ours[:-3]:
        assert comparable(chunk) == comparable(head[0])
    assert ours[-3]["choices"][0]["finish_reason"] == "abort"
    assert comparable(ours[-3]) == comparable(tail[0])
    usage, recorded_usage = ours[-2].pop("usage"), tail[1].pop("usage")
    assert comparable(ours[-2]) == comparable(tail[1])
    assert list(usage) == list(recorded_usage)
    assert usage["prompt_tokens"] == recorded_usage["prompt_tokens"]
    assert usage["total_tokens"] - usage["prompt_tokens"] == usage["completion_tokens"] < 1800
    assert ours[-1] == tail[2] == "[DONE]"


def families(text: str) -> list[tuple[str, str]]:
    """Return name and type of each metric, in order."""
    return re.findall(r"^# TYPE (\S+) (\w+)$", text, re.MULTILINE)


def series(text: str) -> list[str]:
    """Return each sample's name and labels; of what describes the machine or the model, the labels' names only."""
    names = [line.rpartition(" ")[0] for line in text.splitlines() if line and not line.startswith("#")]
    described = re.compile(r"(?:vllm:cache_config_info|python_info)\{")
    return sorted(re.sub(r'="[^"]*"', "", name) if described.match(name) else name for name in names)


async def test_metrics_have_every_recorded_name_type_label_and_bucket_and_no_other() -> None:
    status, headers, real = recorded(METRICS)
    async with running(FLAGS, H100) as engine:
        # The HTTP series come with the requests that were sent, so all of them are.
        for name in REQUESTS:
            await replay(engine, name)
        ours = await replay(engine, METRICS)
    assert ours[0] == status
    check_headers(ours[1], headers, ours[2])
    assert families(ours[2]) == families(real)
    assert series(ours[2]) == series(real)


async def test_http_metrics_count_as_the_recording_says() -> None:
    _, _, real = recorded(METRICS)
    async with running(FLAGS, H100) as engine:
        for name in REQUESTS:
            await replay(engine, name)
        _, _, ours = await replay(engine, METRICS)

    def counts(text: str) -> dict[str, float]:
        found = re.findall(r"^(http_request(?:s_total|_size_bytes_sum)\{\S+) (\S+)$", text, re.MULTILINE)
        return {name: float(value) for name, value in found}

    # Two requests of the recorder's are not among its recordings: it saw that the server was up, and warmed it up.
    more = {
        'http_requests_total{handler="/v1/models",method="GET",status="2xx"}': 1,
        'http_requests_total{handler="/v1/completions",method="POST",status="2xx"}': 1,
        'http_request_size_bytes_sum{handler="/v1/completions"}': 126,
    }
    assert {name: value + more.get(name, 0) for name, value in counts(ours).items()} == counts(real)
