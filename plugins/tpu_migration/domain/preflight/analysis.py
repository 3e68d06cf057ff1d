"""Take over what the plan's analysis says of fit, lost features and cost."""

from __future__ import annotations

from collections.abc import Iterator

from tpu_migration.domain.assessment import SOURCE, Assessment
from tpu_migration.domain.fit import DOES_NOT_FIT, TIGHT
from tpu_migration.domain.preflight.findings import BLOCKER, NOTE, WARNING, Finding, Observed


def fit(observed: Observed) -> Iterator[Finding]:
    """Take over what the plan's analysis says of the model on the target."""
    plan, found = observed.plan, observed.assessment
    if found is None:
        yield Finding(
            WARNING,
            "fit-unknown",
            f"target {plan.target}",
            f"fit unknown: {observed.unassessed}",
            "see whether it fits with `tpu-migration plan --model-config FILE`",
        )
        return
    title = f"{found.model} on {plan.target}"
    if found.target_fit.verdict == DOES_NOT_FIT:
        yield Finding(BLOCKER, "fit", title, f"does not fit: {'; '.join(found.target_fit.reasons)}", _best(found))
    elif found.target_fit.verdict == TIGHT:
        left = f"{found.target_fit.head_room_gib:.1f} GiB left"
        yield Finding(
            WARNING, "fit-tight", title, f"tight, {left}: {'; '.join(found.target_fit.reasons)}", _best(found)
        )


def lost_features(observed: Observed) -> Iterator[Finding]:
    """Take over what the target's users lose."""
    for gap in observed.assessment.gaps if observed.assessment else ():
        yield Finding(gap.severity, f"feature-{gap.key}", gap.title, gap.effect, gap.remedy)


def _best(found: Assessment) -> str:
    return f"recommended is {found.recommendation}"


def cost(observed: Observed) -> Iterator[Finding]:
    """Say what the target costs beside the source, as far as there are prices for the region."""
    if (found := observed.assessment) is None:
        return
    rows = {row.name: row for row in found.costs}
    before, after = rows.get(SOURCE), rows.get(found.target)
    label = before.label if before else SOURCE
    now, then = (_money(row.usd_per_month if row else None) for row in (before, after))
    both = _money(found.overlap.usd if found.overlap else None)
    state = f"a month {now} on {label}, {then} on {found.target}; {both} while both run"
    priced = "unknown" not in (now, then)
    remedy = "" if priced else "give prices of the region to `tpu-migration plan --prices FILE`"
    yield Finding(NOTE, "cost", "cost", state, remedy)


def _money(usd: float | None) -> str:
    return "unknown" if usd is None else f"${usd:,.0f}"
