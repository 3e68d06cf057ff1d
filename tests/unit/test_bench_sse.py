"""Streams arrive cut anywhere; what is counted is what the server meant."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpu_migration.bench.chunks import Answer
from tpu_migration.bench.sse import SseError, SseReader

RECORDINGS = Path(__file__).parents[2].parent / "shared" / "recordings" / "vllm-0.32"
recorded = pytest.mark.skipif(not RECORDINGS.is_dir(), reason="the recordings of vLLM are not here")


def read(*parts):
    reader = SseReader()
    return [payload for part in parts for payload in reader.feed(part)]


def chunk(text="", tokens=None, finish=None, choices=True):
    data = {"id": "x", "choices": [{"index": 0, "text": text, "finish_reason": finish}] if choices else []}
    if tokens is not None:
        data["usage"] = {"prompt_tokens": 4, "completion_tokens": tokens}
    return json.dumps(data).encode()


def answer(*events):
    found = Answer()
    for now, payload in events:
        found.add(payload, now)
    return found


def recorded_answer(name):
    raw = (RECORDINGS / name).read_bytes()
    payloads = read(raw[raw.index(b"data: ") :])
    # The long recording leaves out its middle, and with it the half of a chunk on either side.
    return answer(*enumerate(p for p in payloads if p.endswith((b"}", b"[DONE]")) and b"more chunks" not in p))


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_every_line_end_of_the_specification_ends_a_line(end):
    stream = end.join([b": hello", b"event: x", b"data: one", b"data:two", b"", b"data: three", b"", b""])
    assert read(stream) == [b"one\ntwo", b"three"]


@given(st.data())
def test_a_stream_cut_anywhere_gives_the_same_events(data):
    end = data.draw(st.sampled_from([b"\n", b"\r\n"]))
    stream = end.join([b'data: {"text":"\xc3\xa9\xe2\x82\xac"}', b"", b": ping", b"", b"data: [DONE]", b"", b""])
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=12)))
    parts = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    assert read(*parts) == ['{"text":"é€"}'.encode(), b"[DONE]"]


def test_half_a_character_at_the_end_of_a_read_is_not_lost():
    assert read(b"data: \xe2\x82", b"\xac\n\n") == ["€".encode()]


def test_an_event_is_handed_out_as_soon_as_a_carriage_return_ends_it():
    reader = SseReader()
    assert reader.feed(b"data: x\r\n\r") == [b"x"]
    assert reader.feed(b"\ndata: y\r\n\r\n") == [b"y"]


def test_empty_events_comments_and_a_byte_order_mark_are_no_payload():
    assert read(b"\xef\xbb", b"\xbf\n\n\n\n: ping\n\nid: 7\n\ndata: x\n\n") == [b"x"]
    assert read(b"data:\n\n") == [b""]


def test_an_unfinished_event_is_never_handed_out():
    assert read(b"data: x\n\ndata: cut") == [b"x"]


def test_an_event_without_an_end_is_refused_before_it_eats_the_memory():
    reader = SseReader()
    for _ in range(4):
        assert reader.feed(b"x" * 1_000_000) == []
    with pytest.raises(SseError, match="no end"):
        reader.feed(b"x" * 1_000_000)


def test_several_tokens_in_a_chunk_are_counted_by_usage():
    found = answer((1.0, chunk("a b c", 3)), (2.0, chunk("d", 5)), (3.0, chunk("", 6, "length")), (4.0, b"[DONE]"))
    assert (found.first_at, found.last_at, found.output_tokens()) == (1.0, 3.0, 6)
    assert found.tpot_s() == pytest.approx((3.0 - 1.0) / (6 - 3))
    assert found.failure(6) is None


def test_a_role_chunk_and_an_empty_chunk_without_a_token_are_not_the_first_token():
    role = (
        b'{"choices":[{"delta":{"role":"assistant","content":""}}],"usage":{"prompt_tokens":4,"completion_tokens":0}}'
    )
    found = answer((1.0, role), (2.0, chunk("", 0)), (3.0, chunk("", 1)), (4.0, chunk("x", 2)))
    assert found.first_at == 3.0


def test_a_finish_chunk_without_a_token_does_not_stretch_the_answer():
    found = answer((1.0, chunk("a", 1)), (2.0, chunk("b", 2)), (9.0, chunk("", 2, "stop")), (9.1, b"[DONE]"))
    assert found.last_at == 2.0
    assert found.failure(None) is None


def test_without_usage_in_the_chunks_text_tells_and_the_summary_counts():
    found = answer(
        (1.0, chunk("")),
        (2.0, chunk("a")),
        (3.0, chunk("b")),
        (4.0, chunk("", None, "length")),
        (4.1, chunk(tokens=5, choices=False)),
        (4.2, b"[DONE]"),
    )
    assert (found.first_at, found.last_at, found.output_tokens()) == (2.0, 3.0, 5)
    assert found.tpot_s() == pytest.approx(1.0 / 4)
    assert found.failure(5) is None
    assert found.prompt_tokens == 4


def test_generated_text_that_looks_like_protocol_fools_nobody():
    text = '"completion_tokens":99,"finish_reason":"abort","choices":[],"error":{"message":"x"}'
    found = answer((1.0, chunk(text, 1)), (2.0, chunk("", 2, "length")), (3.0, b"[DONE]"))
    assert found.output_tokens() == 2
    assert found.failure(2) is None


def test_one_token_has_no_tpot():
    assert answer((1.0, chunk("a", 1, "length")), (2.0, b"[DONE]")).tpot_s() is None


@pytest.mark.parametrize(
    ("events", "asked", "said"),
    [
        ([], None, "empty"),
        ([b"[DONE]"], None, "empty"),
        ([chunk("a", 1), b"[DONE]"], None, "truncated: no end after 1"),
        ([chunk("a", 1), chunk("b", 2, "stop")], None, "truncated: no end after 2"),
        ([chunk("a", 1), chunk("b", 2, "abort"), b"[DONE]"], None, "truncated: aborted after 2"),
        ([chunk("a", 1), chunk("b", 2, "length"), b"[DONE]"], 12, "truncated: 2 tokens of 12"),
        ([chunk("a", 1), b'{"error":{"message":"engine died"}}', b"[DONE]"], None, "server: engine died"),
        ([chunk("a", 1), b"<html>", b"[DONE]"], None, "server: no JSON"),
    ],
)
def test_an_answer_that_is_not_whole_says_why(events, asked, said):
    assert answer(*enumerate(events)).failure(asked).startswith(said)


@recorded
@pytest.mark.parametrize(
    ("name", "tokens", "asked", "failure"),
    [
        ("completion-stream.http", 12, 12, None),
        ("chat-stream.http", 6, 6, None),
        ("completion-stream-sigterm.http", 523, 1800, "truncated: aborted after 523 tokens"),
    ],
)
def test_recorded_answers_of_vllm_are_read_as_they_were_meant(name, tokens, asked, failure):
    found = recorded_answer(name)
    assert found.output_tokens() == tokens
    assert found.failure(asked) == failure
    assert found.fingerprint.startswith("vllm-0.32")


@recorded
def test_the_first_token_of_a_recorded_answer_is_its_first_chunk_even_without_text():
    found = recorded_answer("completion-stream.http")
    assert (found.first_at, found.last_at, found.first_tokens, found.tpot_s()) == (0, 11, 1, 1.0)
