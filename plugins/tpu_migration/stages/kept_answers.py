"""Keep answers of the source that a gate passed by; hold what serves users to them, and to a source that is live."""

from __future__ import annotations

import json

from tpu_migration.bench.answers import MOST_ANSWERS, MOST_TOKENS, render
from tpu_migration.bench.parity import parse
from tpu_migration.clients import kubernetes as k8s
from tpu_migration.domain.gate.parity import Parity
from tpu_migration.domain.gate.sections import Quality
from tpu_migration.errors import PermanentError
from tpu_migration.names import MANAGED_BY, WORKLOAD_LABEL, answers_name
from tpu_migration.record import Record
from tpu_migration.stages.base import Context
from tpu_migration.stages.load import TASKS, run_job
from tpu_migration.stages.objects import is_ready, pods_of

THE_PASS, THE_SOURCE = "the source's at the pass", "the live source's"
_FILE = "answers.jsonl"
_BLOCKS = {THE_PASS: "kept", THE_SOURCE: "live"}
_DEADLINE_S = 1800.0


def keep(ctx: Context, record: Record, parity: Parity) -> None:
    """Write some of the source's answers beside the record, over an older pass's; no run's clean-up takes them."""
    ctx.kube.apply(
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {
                "name": answers_name(record.workload),
                "namespace": record.namespace,
                "labels": {**MANAGED_BY, WORKLOAD_LABEL: record.workload},
            },
            "data": {"about.json": json.dumps({"run": record.run_id}), _FILE: render(parity.answers)},
        }
    )


def known_answers(ctx: Context, record: Record) -> list[str]:
    """Return what the target's answers can be held to right now: the pass, if it was kept, and a source that serves."""
    found = ctx.kube.get(k8s.CONFIG_MAPS, answers_name(record.workload), record.namespace)
    about = json.loads((found.get("data") or {}).get("about.json", "{}")) if found else {}
    kept = [THE_PASS] if about.get("run") == record.run_id else []
    return [*kept, THE_SOURCE] if _address(ctx, record, record.source.deployment) else kept


def compare(ctx: Context, record: Record, quality: Quality, against: str, name: str) -> Parity | None:
    """Return how the target's answers compare with those of one side, or None while the Job runs.

    The target has users: it is asked for ordinary completions alone, one at a time. Raises PermanentError where a
    server does not answer.
    """

    def arguments() -> list[str]:
        target, source = _address(ctx, record, record.target), _address(ctx, record, record.source.deployment)
        if not target or (against == THE_SOURCE and not source):
            # Nothing to wait for here: the canary's next look, or `tpu_watch`, says who is gone.
            raise PermanentError(f"no replica of {record.source.deployment if target else record.target} is ready")
        baseline = f"--answers={TASKS}/{_FILE}" if against == THE_PASS else f"--url=http://{source}"
        return [
            baseline,
            f"--candidate-url=http://{target}",
            f"--model={record.source.served_names[0]}",
            f"--prompts={MOST_ANSWERS}",
            f"--tokens={min(MOST_TOKENS, quality.tokens)}",
            f"--top={quality.top}",
            "--answers-only",
        ]

    mounted = answers_name(record.workload) if against == THE_PASS else ""
    return run_job(ctx, f"{name}-{_BLOCKS[against]}", "parity", arguments, _DEADLINE_S, parse, mounted)


def _address(ctx: Context, record: Record, deployment: str) -> str:
    """Return host and port of a replica that is ready; empty for none."""
    live = ctx.kube.get(k8s.DEPLOYMENTS, deployment, record.namespace)
    ready = [pod for pod in pods_of(ctx.kube, record.namespace, live) if is_ready(pod)] if live else []
    return f"{ready[0]['status']['podIP']}:{record.source.port}" if ready else ""
