"""Keep the baseline of a proof of concept, and judge by it later: policies with `baseline: recorded`."""

from __future__ import annotations

import base64
import gzip
import json
from dataclasses import dataclass

from tpu_migration.bench.results import BenchRun, parse, render
from tpu_migration.bench.sealed import ResultCorrupt
from tpu_migration.clients import kubernetes as k8s
from tpu_migration.clock import iso
from tpu_migration.errors import PermanentError
from tpu_migration.names import MANAGED_BY, WORKLOAD_LABEL, record_name
from tpu_migration.record import Record
from tpu_migration.stages.base import Context
from tpu_migration.stages.peak import peak_rps

_OLDEST_S = 30 * 86_400.0
_NEAR = 1.1  # a peak that is read from monitoring moves a little from week to week


@dataclass(frozen=True)
class Recorded:
    """A baseline, and the lengths that it was measured with: the candidate must be given the same work."""

    run: BenchRun
    lengths: dict[str, str]


def keep(ctx: Context, record: Record, baseline: BenchRun) -> None:
    """Write the baseline beside the record, in place of an older one; no run's clean-up removes it."""
    name = _name(ctx)
    about = {
        "model": record.source.model, "accelerator": record.source.accelerator, "peak_rps": peak_rps(ctx, record),
        "at": ctx.clock.now(), "lengths": record.notes["lengths"],
    }  # fmt: skip
    text = render(baseline.results, baseline.summary)
    ctx.kube.apply(
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {
                "name": name,
                "namespace": ctx.plan.namespace,
                "labels": {**MANAGED_BY, WORKLOAD_LABEL: ctx.plan.workload},
            },
            "data": {"about.json": json.dumps(about)},
            "binaryData": {"results.jsonl.gz": base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode()},
        }
    )


def read(ctx: Context, record: Record) -> Recorded:
    """Return the kept baseline; PermanentError if there is none, or one of something else, or one too old."""
    where = f"ConfigMap {_name(ctx)} in namespace {ctx.plan.namespace}"
    remedy = "measure the source anew: a run with `stop_after: gate` and a policy whose baseline is `probe`"
    found = ctx.kube.get(k8s.CONFIG_MAPS, _name(ctx), ctx.plan.namespace)
    if found is None:
        raise PermanentError(f"the policy wants a recorded baseline, and there is no {where}; {remedy}")
    try:
        about = json.loads(found["data"]["about.json"])
        text = gzip.decompress(base64.b64decode(found["binaryData"]["results.jsonl.gz"])).decode()
        run = parse(text)
        told, peak = (about["model"], about["accelerator"]), float(about["peak_rps"])
        lengths, at = dict(about["lengths"]), float(about["at"])
    except (KeyError, TypeError, ValueError, OSError, ResultCorrupt) as error:
        raise PermanentError(f"{where} cannot be read ({type(error).__name__}: {error}); {remedy}") from error
    wanted, need = (record.source.model, record.source.accelerator), peak_rps(ctx, record)
    if told != wanted or not need / _NEAR <= peak <= need * _NEAR:
        raise PermanentError(
            f"{where} is of {' on '.join(told)} at {peak:.4g} requests/s, this migration is of "
            f"{' on '.join(wanted)} at {need:.4g}; {remedy}"
        )
    if ctx.clock.now() - at > _OLDEST_S:
        raise PermanentError(f"{where} is of {iso(at)}, older than {_OLDEST_S / 86_400:.0f} days; {remedy}")
    return Recorded(run, {**lengths, "origin": f"the baseline of {iso(at)}"})


def _name(ctx: Context) -> str:
    return f"{record_name(ctx.plan.workload)}-baseline"
