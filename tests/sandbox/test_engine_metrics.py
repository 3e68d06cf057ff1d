"""What the engine counts, and how it writes numbers; names and labels are held to the recording elsewhere."""

from __future__ import annotations

from sandbox.engine.metrics import Metrics, number


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
