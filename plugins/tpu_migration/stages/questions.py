"""Put what people are to decide into words: what happens at a yes and at a no, and on which evidence."""

from __future__ import annotations

from tpu_migration.domain.plan import Plan
from tpu_migration.record import Record
from tpu_migration.stages.approval import SHIFT


def question(plan: Plan, record: Record, what: str) -> tuple[str, str]:
    """Return the headline, and the text (Markdown) that gives what is needed to decide."""
    lines = [f"**{record.workload}** in namespace {record.namespace}, run {record.run_id}.", ""]
    if record.verdict:
        lines += [f"Gate: **{record.verdict['outcome']}**. {record.verdict['sentence']}", ""]
    silence = f"Without an answer within {plan.approval_timeout_s / 3600:.3g} hours it is rejected."
    if what == SHIFT:
        headline = f"Move users of {record.workload} to {plan.target}?"
        steps = ", ".join(f"{step} %" for step in plan.steps)
        lines += [
            f"- **Approve**: users move step by step ({steps}), each watched for {plan.bake_s:.0f} s.",
            f"- **Reject**: users stay on {record.source.accelerator}, the TPU is released, the run ends green.",
        ]
    else:
        headline = f"Give up the GPUs of {record.workload}?"
        pools = ", ".join(record.source.node_pools) or "the cluster"
        given_up = {
            "scale-to-zero": f"{record.source.deployment} is scaled to 0; the machines of {pools} stay, and cost",
            "delete-pool": f"{record.source.deployment} is scaled to 0, and node pool {pools} is deleted",
        }[plan.source_release]
        lines += [
            f"All users are on {plan.target} since the commit.",
            "",
            f"- **Approve**: {given_up}. {record.source.scarcity}.",
            "- **Reject**: the GPUs stay as they are, users stay on the TPU, the run ends green.",
        ]
    return headline, "\n".join([*lines, "", f"{silence} At a terminal: `tpu-migration approve {record.workload}`"])
