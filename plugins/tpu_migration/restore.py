"""Send users to the safe route, now: the one call that anyone can make at any time.

It needs no lease, no current record, no Airflow and no answer from the candidate. The stage
that sees a breach calls it, the DAG's teardown, the guard, and a person at a terminal.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from dataclasses import dataclass, replace

from tpu_migration.clients.kubernetes import ENDPOINT_SLICES, HTTP_ROUTES, Kubernetes, Object
from tpu_migration.clock import Clock
from tpu_migration.domain.phases import AFTER_COMMIT, ENDED, Phase
from tpu_migration.domain.routing import (
    RouteError,
    SafeRoute,
    epoch_annotation,
    epoch_of,
    restored,
    rules_of,
    safe_route,
    target_percent,
    with_target,
)
from tpu_migration.errors import ConflictError, MigrationError, PermanentError, TransientError
from tpu_migration.record import Fallback, Record, Source
from tpu_migration.records import Records
from tpu_migration.snapshot import Snapshots

log = logging.getLogger(__name__)

_ROUTE_TRIES = 50  # others may write the route too; each try is one read and one write


@dataclass(frozen=True)
class Restored:
    """What a restore did."""

    epoch: int
    target_percent: int
    reason: str


def ready_endpoints(kube: Kubernetes, namespace: str, service: str) -> int:
    """Count the Service's endpoints that are ready to serve."""
    (endpoints,) = _endpoints(kube, namespace, service)
    return _ready(endpoints)


def _endpoints(kube: Kubernetes, namespace: str, *services: str) -> list[list[Object]]:
    """Return the endpoints of each Service, ready or not, by one call: each call makes users wait for the way home."""
    found: dict[str, list[Object]] = {service: [] for service in services}
    label = "kubernetes.io/service-name"
    for each in kube.list(ENDPOINT_SLICES, namespace, labels=f"{label} in ({','.join(services)})"):
        found[each["metadata"]["labels"][label]] += each.get("endpoints") or []
    return list(found.values())


def _ready(endpoints: list[Object]) -> int:
    """Count those that are ready, each once: slices may repeat one, as for its other address family."""
    ready = [each for each in endpoints if (each.get("conditions") or {}).get("ready")]
    return len({(each.get("targetRef") or {}).get("name") or tuple(each.get("addresses") or ()) for each in ready})


def observed_percent(kube: Kubernetes, record: Record) -> int:
    """Return the share in per cent that the users' route gives the target right now."""
    route = kube.get(HTTP_ROUTES, record.source.route, record.namespace)
    return target_percent(rules_of(route), record.source.service, record.target) if route else 0


def observed_safe_route(kube: Kubernetes, record: Record) -> SafeRoute:
    """Return the safe route, computed from the record and the endpoints that are ready right now."""
    on_source, on_target = _endpoints(kube, record.namespace, record.source.service, record.target)
    stays = stays_of(record)
    return safe_route(record.phase, _ready(on_source), _ready(on_target), record.source_capacity, stays=stays)


def stays_of(record: Record) -> int:
    """Return the share in per cent that a keeper left on a target that was well, while the source lacked replicas."""
    return record.fallback.stays if record.fallback and record.phase is Phase.FALLING_BACK else 0


def restore(
    kube: Kubernetes, namespace: str, workload: str, *, actor: str, reason: str, clock: Clock, stays: int = 0
) -> Restored:
    """Write the safe route and epoch + 1 in one call, retried until it wins, then tell the record.

    `stays` is what of its users in per cent a target may keep that the caller has seen to be well, where the source
    lacks replicas: all users on half a source would be what they notice. It never gets more than it has.

    It writes even if the weights are already right: the raised epoch is what stops a writer
    that is still on its way. Raises PermanentError if neither record nor snapshot is left.
    """
    detected = clock.now()
    records = Records(kube, namespace, workload)
    record = _readable_record(records)
    if record is not None:
        source, target, phase = record.source, record.target, record.phase
    else:
        # Without a record nobody knows of a commit: what is ready to serve decides.
        snapshot = Snapshots(kube, namespace, workload).newest()
        if snapshot is None:
            raise PermanentError(
                f"{workload} in {namespace} has neither a record nor a snapshot: nothing was ever moved by "
                "this product, or somebody deleted both; set the HTTPRoute's backendRefs by hand"
            )
        source, target, phase = snapshot[1], f"{workload}-tpu", Phase.SHIFTING
    capacity = record.source_capacity if record else source.replicas
    safe, streaming = _safe_route(kube, namespace, phase, source=source, target=target, capacity=capacity, stays=stays)
    aim = _Aim(namespace, workload, source, target, safe.target_percent, streaming, record.epoch if record else 0)
    epoch, before, percent = _write_route(kube, aim)
    written = clock.now()
    log.warning("%s: users are sent to the safe route (%s) by %s: %s", workload, safe.reason, actor, reason)
    if record is not None:
        left = percent if 0 < percent < 100 else 0
        why = f"{reason}; {safe.reason}" if left else reason

        def note(current: Record) -> Record:
            changed = replace(current, epoch=max(epoch, current.epoch))
            if {phase, current.phase} & (AFTER_COMMIT | ENDED - {Phase.HELD}):
                return changed
            fallback = current.fallback or Fallback(why, actor, detected, written)
            if percent != before:  # the Gateway begins to follow anew
                fallback = replace(fallback, route_written=written)
            return replace(changed, phase=Phase.FALLING_BACK, fallback=replace(fallback, stays=left), waiting="")

        records.force(note)
    return Restored(epoch, percent, safe.reason)


@dataclass(frozen=True)
class _Aim:
    """What the route shall say, whatever it says now."""

    namespace: str
    workload: str
    source: Source
    target: str
    target_percent: int
    target_may_stream: bool
    record_epoch: int


def _readable_record(records: Records) -> Record | None:
    try:
        return records.read()
    except PermanentError as error:
        log.error("restoring without the record: %s", error)
        return None


def _safe_route(
    kube: Kubernetes, namespace: str, phase: Phase, *, source: Source, target: str, capacity: int, stays: int
) -> tuple[SafeRoute, bool]:
    """Return the safe route, and whether the target has endpoints, ready or not, on which streams may still run.

    They also say that its Service is there: a Gateway may refuse a route over a ref to one that is gone.
    """
    try:
        on_source, on_target = _endpoints(kube, namespace, source.service, target)
    except MigrationError as error:
        if phase in AFTER_COMMIT:
            raise  # which side is safe depends on what is ready: guessing could send users to nobody
        return SafeRoute(0, f"{phase}: the source, though its endpoints could not be read ({error})"), False
    return safe_route(phase, _ready(on_source), _ready(on_target), capacity, stays=stays), bool(on_target)


def _write_route(kube: Kubernetes, aim: _Aim) -> tuple[int, int, int]:
    """Return the epoch, and the target's share in per cent before and after."""
    source = aim.source
    for _ in range(_ROUTE_TRIES):
        route = kube.get(HTTP_ROUTES, source.route, aim.namespace)
        if route is None:
            with suppress(ConflictError):  # somebody else was quicker: the next look finds it
                _recreate_route(kube, aim)
            continue
        epoch = max(_epoch_or_zero(route, aim.workload), aim.record_epoch) + 1
        live = rules_of(route)
        before = target_percent(live, source.service, aim.target)
        # A share that may stay is never more than the target has by now.
        percent = aim.target_percent if aim.target_percent == 100 else min(aim.target_percent, before)
        if percent:
            rules = with_target(live, source.rules, source.service, aim.target, percent)
        else:
            streaming = aim.target_may_stream
            rules = restored(live, source.rules, source.service, aim.target, streaming=streaming)
        changed = {**route, "spec": {**route["spec"], "rules": rules}}
        try:
            kube.replace(with_epoch(changed, aim.workload, epoch))
        except ConflictError:
            continue
        return epoch, before, percent
    raise TransientError(
        f"HTTPRoute {source.route} is written by somebody else all the time: lost {_ROUTE_TRIES} times; "
        "stop the other controller (see the route's managedFields)"
    )


def _epoch_or_zero(route: Object, workload: str) -> int:
    try:
        return epoch_of(route, workload)
    except RouteError as error:
        log.warning("%s; writing over it", error)  # nothing that somebody wrote there may block the way back
        return 0


def _recreate_route(kube: Kubernetes, aim: _Aim) -> None:
    snapshot = Snapshots(kube, aim.namespace, aim.workload).newest()
    saved = next((o for o in snapshot[0] if o.get("kind") == "HTTPRoute"), None) if snapshot else None
    if saved is None:
        raise PermanentError(f"HTTPRoute {aim.source.route} is gone and the snapshot has none: create it by hand")
    log.warning("HTTPRoute %s is gone; creating it again from the snapshot", aim.source.route)
    kube.create(saved)


def with_epoch(route: Object, workload: str, epoch: int) -> Object:
    """Return the route carrying a workload's epoch."""
    metadata = dict(route["metadata"])
    metadata["annotations"] = {**(metadata.get("annotations") or {}), epoch_annotation(workload): str(epoch)}
    return {**route, "metadata": metadata}
