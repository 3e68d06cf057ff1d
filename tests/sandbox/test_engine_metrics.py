"""/metrics has the names, types, labels and buckets of the recording."""

from __future__ import annotations

import re

from engine_harness import H100, H100_FLAGS, config_of, needs_recordings, recorded

from sandbox.engine.metrics import Metrics, number

_SAMPLE = re.compile(r"([\w:]+)(?:\{(.*)\})? (\S+)$")
_LABEL = re.compile(r'(\w+)="([^"]*)"')


def series(text: str) -> dict[tuple[str, tuple[str, ...], str], int]:
    """Return every vllm: sample's name, label names and `le`, with the labels that tell series apart."""
    found: dict[tuple[str, tuple[str, ...], str], int] = {}
    for line in text.splitlines():
        sample = _SAMPLE.match(line)
        if line.startswith("vllm:") and sample:
            labels = dict(_LABEL.findall(sample[2]))
            apart = "".join(labels.get(k, "") for k in ("le", "source", "reason", "sleep_state", "finished_reason"))
            key = (sample[1], tuple(_LABEL.sub(r"\1", sample[2]).split(",")), apart)
            found[key] = found.get(key, 0) + 1
    return found


def types(text: str) -> dict[str, str]:
    return dict(re.findall(r"# TYPE (vllm:\S+) (\w+)", text))


@needs_recordings
def test_every_series_of_the_recording_is_there_and_no_other():
    _, _, real = recorded("metrics.http")
    ours = Metrics("tiny", config_of(H100_FLAGS, H100).cache_labels()).render()
    assert types(ours) == types(real)
    assert list(series(ours)) == list(series(real))


def test_histograms_are_cumulative_and_count_equals_the_last_bucket():
    metrics = Metrics("m", {})
    metrics.histograms["inter_token_latency_seconds"].observe(0.02, 5)
    metrics.histograms["inter_token_latency_seconds"].observe(100.0)
    text = metrics.render()
    bucket = 'vllm:inter_token_latency_seconds_bucket{{engine="0",le="{}",model_name="m"}} {}'
    for line in (bucket.format("0.01", "0.0"), bucket.format("0.025", "5.0"), bucket.format("+Inf", "6.0")):
        assert line in text
    assert 'vllm:inter_token_latency_seconds_count{engine="0",model_name="m"} 6.0' in text


def test_numbers_look_as_prometheus_clients_write_them():
    assert [number(v) for v in (0, 44, 123456.5, 1234567, 1795309062.5)] == [
        "0.0",
        "44.0",
        "123456.5",
        "1.234567e+06",
        "1.7953090625e+09",
    ]
