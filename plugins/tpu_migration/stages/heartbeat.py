"""See that the guard in the cluster is alive, before anything leans on it."""

from __future__ import annotations

from tpu_migration.clients.kubernetes import LEASES
from tpu_migration.clock import micro_time
from tpu_migration.errors import PermanentError
from tpu_migration.names import GUARD_LEASE, SCHEMA_ANNOTATION
from tpu_migration.record import SCHEMA_VERSION
from tpu_migration.stages.base import Context, Waiting

_PATIENCE_S = 20.0  # four beats of the guard


def guard_heartbeat(ctx: Context, *, early_look: bool = False) -> Waiting | None:
    """Return None once the guard's heartbeat was seen to move, Waiting until then.

    The change is what counts, seen on this worker's own clock: two machines' clocks need not
    agree. `early_look` believes a heartbeat that is young by the wall clock, long before anything
    leans on it. Raises PermanentError when it stands still or is of another schema.
    """
    namespace = ctx.plan.namespace
    remedy = f"kubectl apply --namespace {namespace} --filename include/manifests/guard.yaml"
    lease = ctx.kube.get(LEASES, GUARD_LEASE, namespace)
    if lease is None:
        raise PermanentError(
            f"no guard runs in namespace {namespace} (Lease {GUARD_LEASE} is missing): with Airflow dead nobody "
            f"would send users back; install it: {remedy}"
        )
    schema = (lease["metadata"].get("annotations") or {}).get(SCHEMA_ANNOTATION)
    if schema != str(SCHEMA_VERSION):
        raise PermanentError(
            f"the guard in namespace {namespace} knows record schema {schema}, this program writes "
            f"{SCHEMA_VERSION}: install the guard of this version: {remedy}"
        )
    beat = lease["spec"].get("renewTime")
    if early_look and beat and beat > micro_time(ctx.clock.now() - _PATIENCE_S):
        return None
    first, since = ctx.memory.setdefault("guard_beat", (beat, ctx.clock.monotonic()))
    if beat != first:
        del ctx.memory["guard_beat"]
        return None
    if ctx.clock.monotonic() - since > _PATIENCE_S:
        raise PermanentError(
            f"the guard in namespace {namespace} has not beaten for {_PATIENCE_S:.0f} s (last: {beat}): look at "
            f"`kubectl get pods --namespace {namespace} --selector app=tpu-migration-guard`"
        )
    return Waiting(1.0, "waiting for the guard's next heartbeat")
