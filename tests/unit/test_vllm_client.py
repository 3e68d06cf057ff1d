"""vLLM's counters are read from its real page, and what is no such page is never taken for zero traffic."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from cluster import NAMESPACE, Cluster

from sandbox.api import Response
from tpu_migration.clients.vllm import Vllm, parse_lengths, parse_metrics, parse_stalls, parse_stay
from tpu_migration.errors import TransientError

RECORDINGS = Path(__file__).parents[2].parent / "shared" / "recordings" / "vllm-0.32"

# As vLLM 0.6 wrote it: no engine label, other values for the reasons, and no start time under gVisor.
OLD = """\
# HELP vllm:num_requests_running Number of requests currently running on GPU.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{model_name="m"} 3.0
vllm:num_requests_waiting{model_name="m"} 1.0
vllm:num_preemptions_total{model_name="m"} 2.0
vllm:time_to_first_token_seconds_sum{model_name="m"} 4.2
vllm:time_to_first_token_seconds_bucket{le="0.1",model_name="m"} 5.0
vllm:time_to_first_token_seconds_bucket{le="+Inf",model_name="m"} 9.0
vllm:time_to_first_token_seconds_count{model_name="m"} 9.0
vllm:request_success_total{finished_reason="stop",model_name="m"} 6.0
vllm:request_success_total{finished_reason="length",model_name="m"} 1.0
"""


@pytest.fixture(scope="module")
def recorded():
    def read(name):
        path = RECORDINGS / f"{name}.http"
        if not path.is_file():
            pytest.skip(f"the recording {name}.http of vLLM 0.32 is not beside this checkout")
        # "$ curl -i …", the head, an empty line, the body.
        return path.read_text().replace("\r\n", "\n").partition("\n\n")[2]

    return read


# --------------------------------------------------------------------------------- the page


def test_the_real_page_is_read(recorded):
    metrics = parse_metrics(recorded("metrics"))
    assert (metrics.running, metrics.waiting, metrics.preemptions) == (0, 0, 0)
    assert metrics.first_tokens == 8
    assert metrics.finished == {"stop": 0, "length": 8, "abort": 0, "error": 0, "repetition": 0}
    assert metrics.started_at == 1.79530903277e9


def test_the_lengths_of_a_real_servers_requests_are_read_from_its_histograms(recorded):
    lengths = parse_lengths(recorded("metrics"))
    for kind in ("prompt", "generation"):
        counts = [lengths[kind][bound] for bound in sorted(lengths[kind])]
        assert counts == sorted(counts)
        assert counts[-1] == 8
    assert parse_lengths("nothing") == {"prompt": {}, "generation": {}}


def test_how_long_requests_stayed_and_how_many_tokens_stalled_is_read_from_the_real_page(recorded):
    page = recorded("metrics")
    seconds, finished = parse_stay(page)
    assert finished == 8
    assert 0 < seconds < 8 * 60
    assert parse_stalls(page) == 0
    head = 'vllm:inter_token_latency_seconds_{}{{engine="0",{}model_name="m"}} {}\n'
    told = head.format("bucket", 'le="1.0",', "7.0") + head.format("count", "", "9.0")
    assert parse_stalls(told * 2) == 4  # two engines of one server


def test_a_server_that_has_no_such_histogram_has_not_told_that_nothing_stalled():
    assert parse_stalls(OLD) is None
    assert parse_stay(OLD) == (0.0, 0.0)


def test_the_real_page_s_buckets_rise_to_the_count(recorded):
    metrics = parse_metrics(recorded("metrics"))
    bounds = sorted(metrics.ttft_buckets)
    counts = [metrics.ttft_buckets[bound] for bound in bounds]
    assert counts == sorted(counts)
    assert bounds[-1] == math.inf
    assert counts[-1] == metrics.first_tokens
    assert metrics.ttft_buckets[0.02] == 6


def test_of_names_that_begin_alike_only_the_one_that_is_meant_counts(recorded):
    page = recorded("metrics").replace(
        'vllm:num_requests_waiting_by_reason{engine="0",model_name="tiny",reason="capacity"} 0.0',
        'vllm:num_requests_waiting_by_reason{engine="0",model_name="tiny",reason="capacity"} 77.0',
    )
    assert "77.0" in page
    assert parse_metrics(page) == parse_metrics(recorded("metrics"))


def test_several_engines_of_one_server_are_added_up(recorded):
    page = recorded("metrics")
    second = "\n".join(line.replace('engine="0"', 'engine="1"') for line in page.splitlines() if 'engine="0"' in line)
    one, both = parse_metrics(page), parse_metrics(f"{page}\n{second}\n")
    assert both.first_tokens == 2 * one.first_tokens
    assert both.finished["length"] == 2 * one.finished["length"]
    assert both.ttft_buckets[0.02] == 2 * one.ttft_buckets[0.02]
    assert both.started_at == one.started_at


def test_an_old_server_s_page_is_read_too():
    metrics = parse_metrics(OLD)
    assert (metrics.running, metrics.waiting, metrics.preemptions, metrics.first_tokens) == (3, 1, 2, 9)
    assert metrics.finished == {"stop": 6, "length": 1}
    assert metrics.ttft_buckets == {0.1: 5, math.inf: 9}
    assert metrics.started_at is None


def test_a_model_s_name_may_hold_what_looks_like_a_label():
    name = r"org/m,le=\"0.5\",finished_reason=x"
    metrics = parse_metrics(OLD.replace('model_name="m"', f'model_name="{name}"'))
    assert metrics.first_tokens == 9
    assert metrics.finished == {"stop": 6, "length": 1}


@pytest.mark.parametrize(
    "page",
    [
        "",
        "<html><body>404 Not Found</body></html>",
        'sglang:num_running_reqs{model_name="m"} 1.0\n',
        "# TYPE vllm:num_requests_running gauge\n",
        '{"error": {"message": "not ready"}}',
        OLD.replace("vllm:num_requests_running", "x:num_requests_running"),
    ],
    ids=["empty", "html", "sglang", "only-help", "json", "another-prefix"],
)
def test_what_is_no_vllm_page_is_an_error_and_never_an_idle_server(page):
    with pytest.raises(TransientError, match="not vLLM, or not started yet"):
        parse_metrics(page)


# ------------------------------------------------------------------------- through the proxy


class Pod:
    """One pod behind the API server's proxy, which answers what a test says."""

    def __init__(self):
        self.cluster = Cluster()
        spec = {"containers": [{"name": "vllm", "image": "vllm/vllm-tpu:v0.32.0"}]}
        self.cluster.client.create("pods", {"metadata": {"name": "p0", "namespace": NAMESPACE}, "spec": spec})
        self.cluster.api.pod_proxy = self._answer
        self.vllm = Vllm(self.cluster.kube, NAMESPACE, 8000)
        self.status, self.body, self.asked = 200, b"", []

    def _answer(self, namespace, name, port, request):
        self.asked.append((request.method, port, request.path, request.body))
        return Response(self.status, {}, self.body)


@pytest.fixture
def pod():
    return Pod()


def test_the_served_names_and_their_context_are_read(pod, recorded):
    pod.body = recorded("models").encode()
    assert pod.vllm.models("p0") == {"tiny": 2048}
    assert pod.asked == [("GET", 8000, "/v1/models", b"")]


def test_a_completion_proves_that_the_engine_answers(pod, recorded):
    pod.body = recorded("completion").encode()
    assert pod.vllm.complete("p0", "tiny", "hi", 6) == 6
    [(method, port, path, body)] = pod.asked
    assert (method, port, path) == ("POST", 8000, "/v1/completions")
    sent = json.loads(body)
    assert (sent["model"], sent["max_tokens"], sent["ignore_eos"]) == ("tiny", 6, True)


def test_the_counters_are_read_through_the_proxy(pod):
    pod.body = OLD.encode()
    assert pod.vllm.metrics("p0").running == 3


@pytest.mark.parametrize("status", [404, 500, 502, 503])
def test_a_server_that_does_not_answer_yet_is_waited_for(pod, status):
    pod.status, pod.body = status, b'{"detail":"starting"}'
    for call in (pod.vllm.models, pod.vllm.metrics, lambda name: pod.vllm.complete(name, "tiny", "hi", 2)):
        with pytest.raises(TransientError, match=f"pod p0 answers .* with {status}.*starting"):
            call("p0")


def test_a_pod_that_is_gone_is_waited_for_and_is_no_idle_server(pod):
    with pytest.raises(TransientError, match="gone"):
        pod.vllm.metrics("gone")


def test_an_answer_that_is_cut_short_is_never_counted(pod):
    pod.body = b'{"object":"list","data":[{"id":"ti'
    with pytest.raises((TransientError, ValueError)):
        pod.vllm.models("p0")
