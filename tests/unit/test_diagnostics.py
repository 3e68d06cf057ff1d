"""What is kept for a diagnosis tells enough, and no secret."""

from __future__ import annotations

import pytest

from tpu_migration.stages.diagnostics import described, masked


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Authorization: Bearer abc.def", "Authorization: Bearer ***"),
        ("curl -H 'x' bearer eyJhbGci.x.y ok", "curl -H 'x' bearer *** ok"),
        ("HF_TOKEN=hf_abcdefgh12345 started", "HF_TOKEN=*** started"),
        ("downloading with hf_abcdefgh12345", "downloading with ***"),
        ("vllm serve m --api-key sk-1234 --port 8000", "vllm serve m --api-key *** --port 8000"),
        ("{'api_key': 's3cret', 'port': 1}", "{'api_key': '***', 'port': 1}"),
        ("token=abc&x=1", "token=***"),
        ("Prepared token paddings: [16, 32]", "Prepared token paddings: [16, 32]"),
    ],
)
def test_tokens_and_keys_are_masked(text, shown):
    assert masked(text) == shown


def test_a_pod_is_described_without_its_environment():
    pod = {
        "metadata": {"name": "tpu-0"},
        "spec": {"nodeName": "n1", "containers": [{"name": "vllm", "env": [{"name": "HF_TOKEN", "value": "secret"}]}]},
        "status": {
            "phase": "Running",
            "conditions": [{"type": "Ready", "status": "False", "reason": "ContainersNotReady"}],
            "containerStatuses": [{"name": "vllm", "state": {"waiting": {"reason": "CrashLoopBackOff"}},
                                   "restartCount": 3, "lastState": {"terminated": {"exitCode": 1}}}],
        },
    }  # fmt: skip
    told = described(pod)
    for words in (
        "tpu-0: Running n1",
        "Ready=False ContainersNotReady",
        "CrashLoopBackOff",
        "restarts 3",
        '"exitCode": 1',
    ):
        assert words in told
    assert "secret" not in told
