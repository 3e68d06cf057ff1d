"""What is kept for a diagnosis tells enough, and nothing of the environment."""

from __future__ import annotations

from tpu_migration.stages.diagnostics import described


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
