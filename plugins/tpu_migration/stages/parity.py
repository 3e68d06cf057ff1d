"""Have both arms' answers compared by a Job, before load is put on the candidate."""

from __future__ import annotations

from tpu_migration.bench.parity import parse
from tpu_migration.clients import kubernetes as k8s
from tpu_migration.clients.kubernetes import Object
from tpu_migration.domain.gate.parity import Parity
from tpu_migration.domain.gate.sections import Quality
from tpu_migration.domain.translation import command_line
from tpu_migration.errors import PermanentError, TransientError
from tpu_migration.names import SOURCE_ARM
from tpu_migration.record import Record
from tpu_migration.stages.base import Context
from tpu_migration.stages.load import TASKS, run_job, through_gateway
from tpu_migration.stages.objects import is_ready, pods_of

_FILE = "tasks.jsonl"


def compare_answers(ctx: Context, record: Record, quality: Quality, look: str) -> Parity | None:
    """Return what one look showed, or None while its Job runs.

    The baseline is asked for a few ordinary completions, the way users come; the candidate, which has no users, by
    its pod's own address. Raises PermanentError where a server does not answer.
    """
    deadline_s = 900.0 + quality.prompts * quality.tokens * 0.5

    def arguments() -> list[str]:
        target = ctx.kube.get(k8s.DEPLOYMENTS, record.target, ctx.plan.namespace)
        if target is None:
            raise PermanentError(f"Deployment {record.target} is gone: somebody deleted it")
        return [
            *through_gateway(record.source, SOURCE_ARM),
            f"--candidate-url=http://{_address(ctx, target)}:{record.source.port}",
            f"--prompts={quality.prompts}",
            f"--tokens={quality.tokens}",
            f"--top={quality.top}",
            f"--seed={int(look[:-1])}",  # a look that is made again for a void asks the same
            *(["--forced"] if _takes_no_images(target) else []),
            *([f"--tasks={TASKS}/{_FILE}"] if ctx.plan.quality_tasks else []),
        ]

    return run_job(ctx, f"parity-{look}", "parity", arguments, deadline_s, parse, ctx.plan.quality_tasks)


def pooled(looks: list[Parity]) -> Parity:
    """Put the looks' evidence together; tasks and features are the same in each, so the last one counts."""
    prompts = tuple(each for look in looks for each in look.prompts)
    reduced = tuple(dict.fromkeys(text for look in looks for text in look.reduced))
    last = looks[-1]
    told = all(look.distributions for look in looks)
    return Parity(prompts, last.tasks, last.features, reduced, told, last.answers)


def check_tasks(ctx: Context) -> None:
    """Raise PermanentError if the plan names tasks that are not there."""
    name = ctx.plan.quality_tasks
    if not name:
        return
    found = ctx.kube.get(k8s.CONFIG_MAPS, name, ctx.plan.namespace)
    if found is None or _FILE not in (found.get("data") or {}):
        raise PermanentError(
            f"quality_tasks={name!r}: there is no ConfigMap of that name with a key {_FILE} in namespace "
            f"{ctx.plan.namespace}: kubectl create configmap {name} --from-file={_FILE}"
        )


def _takes_no_images(target: Object) -> bool:
    """Tell whether `prompt_logprobs` are safe: with images allowed, the TPU build raises inside its model runner."""
    line = command_line(target)
    limits = (line.value("limit-mm-per-prompt") or "").replace(" ", "") if line else ""
    return '"image":0' in limits or "image=0" in limits or bool(line and line.get("language-model-only"))


def _address(ctx: Context, target: Object) -> str:
    ready = [each for each in pods_of(ctx.kube, ctx.plan.namespace, target) if is_ready(each)]
    if not ready:
        raise TransientError(f"no replica of {target['metadata']['name']} is ready")
    return str(min(ready, key=lambda pod: str(pod["metadata"]["name"]))["status"]["podIP"])
