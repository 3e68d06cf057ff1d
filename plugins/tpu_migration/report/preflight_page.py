"""Write what preflight found as one page for people, 100 columns wide: blockers first."""

from __future__ import annotations

import textwrap

from tpu_migration.domain.plan import Plan
from tpu_migration.domain.preflight import SEVERITIES, Finding, Report

WIDTH = 100
_INDENT = " " * 11


def render(report: Report, plan: Plan) -> str:
    """Write the page."""
    counts = {name: sum(each.severity == name for each in report.findings) for name in SEVERITIES}
    told = ", ".join(f"{count} {name}{'' if count == 1 else 's'}" for name, count in counts.items())
    verdict = "BLOCKED" if report.blockers else "READY"
    lines = textwrap.wrap(f"{verdict}: {plan.workload} in {plan.namespace}, to {plan.target}: {told}", WIDTH)
    for finding in report.findings:
        lines += _item(finding)
    lines += _wrap(f"  passed   {', '.join(report.passed)}") if report.passed else []
    for each in report.unchecked:
        lines += _wrap(f"  not checked: {each}")
    return "\n".join(lines) + "\n"


def _item(finding: Finding) -> list[str]:
    lines = _wrap(f"  {finding.severity:<8} {finding.thing}  [{finding.code}]")
    lines += _wrap(f"{_INDENT}{finding.state}")
    return lines + (_wrap(f"{_INDENT}→ {finding.remedy}", more="  ") if finding.remedy else [])


def _wrap(text: str, more: str = "") -> list[str]:
    return textwrap.wrap(text, WIDTH, subsequent_indent=_INDENT + more, break_on_hyphens=False)
