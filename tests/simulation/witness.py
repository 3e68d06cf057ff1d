"""Look at every change of a virtual cluster, in the instant in which it is made, and keep account of broken promises.

The traffic of a virtual world tells what users noticed, once a second. This tells what they could have noticed: at no
instant may a backend with weight be without a ready endpoint, may the record say what is not so, or may a weight have
moved without its proof.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sandbox.virtual_traffic import Violation
from sandbox.workload import NAMESPACE, WORKLOAD
from sandbox.world import World
from tpu_migration.domain.phases import AFTER_COMMIT, USERS_MAY_BE_ON_TARGET, Phase
from tpu_migration.domain.routing import epoch_of, rules_of, target_percent
from tpu_migration.names import record_name
from tpu_migration.record import Record, RecordError

TARGET = f"{WORKLOAD}-tpu"
# What a promise is made of: a change of any other resource cannot break one.
_WATCHED = frozenset(
    {"httproutes", "endpointslices", "configmaps", "deployments", "horizontalpodautoscalers", "poddisruptionbudgets"}
)
_ON_SOURCE = frozenset(Phase) - USERS_MAY_BE_ON_TARGET - AFTER_COMMIT
_HAS_POOL = frozenset({Phase.PROVISIONED, Phase.DEPLOYED, Phase.WARM, Phase.GATED}) | USERS_MAY_BE_ON_TARGET
_HAS_TARGET = _HAS_POOL - {Phase.PROVISIONED} | AFTER_COMMIT

Object = dict[str, Any]


class Witness:
    """Watch one world from now on; `broken` are the promises that were not kept, each told once."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.broken: list[Violation] = []
        self._told: set[str] = set()
        self._percent = self.written_percent
        self.source_pools: tuple[str, ...] = ()  # that a decommission deletes; set by whoever knows the plan
        world.api.subscribe(self._observe)
        world.on_tick.append(self._look_at_users)

    @property
    def written_percent(self) -> int:
        """The share of the users' traffic that the route, as it is written, gives the target."""
        route = self._get("httproutes", WORKLOAD)
        return target_percent(rules_of(route), WORKLOAD, TARGET) if route else 0

    @property
    def record(self) -> Record | None:
        """The record as it is in the cluster right now; None if it is missing or cannot be read."""
        found = self._get("configmaps", record_name(WORKLOAD))
        try:
            return Record.from_json(found["data"]["record.json"]) if found else None
        except RecordError:
            return None

    def ready(self, service: str) -> int:
        """Count a Service's endpoints that are ready."""
        return sum(
            bool((endpoint.get("conditions") or {}).get("ready"))
            for one in self._world.objects("endpointslices")
            if one["metadata"]["labels"].get("kubernetes.io/service-name") == service
            for endpoint in one.get("endpoints") or []
        )

    def _observe(self, event: str, resource: str, obj: Object) -> None:
        if resource not in _WATCHED or obj["metadata"].get("namespace") != NAMESPACE:
            return
        if resource == "httproutes" and obj["metadata"]["name"] == WORKLOAD:
            self._look_at_proof()
        self._look_at_users()
        self._note(self._untrue())

    def _look_at_users(self) -> None:
        route = self._get("httproutes", WORKLOAD)
        written = [ref for rule in (rules_of(route) if route else []) for ref in rule.get("backendRefs") or []]
        for where, weights in (
            ("as written", {ref["name"]: ref.get("weight", 1) for ref in written}),
            ("in force", self._world.traffic.weights()),
        ):
            self._note(
                f"{name} has weight {weight} in the route {where}, and no ready endpoint"
                for name, weight in weights.items()
                if weight > 0 and not self.ready(name)
            )

    def _look_at_proof(self) -> None:
        """See that more weight for the target has its proof: the verdict and the shift's intent, or the safe route."""
        before, self._percent = self._percent, self.written_percent
        if self._percent <= before:
            return
        record, route = self.record, self._get("httproutes", WORKLOAD)
        assert route is not None
        if not self.ready(WORKLOAD) or (record and record.phase in AFTER_COMMIT):
            return
        proven = (
            record is not None
            and record.phase in USERS_MAY_BE_ON_TARGET
            and (record.verdict or {}).get("outcome") == "pass"
            and record.shift.percent == self._percent
            and record.epoch == epoch_of(route, WORKLOAD)
        )
        if not proven:
            told = f"phase {record.phase}, shift {record.shift}, epoch {record.epoch}" if record else "none"
            self._note([f"the target went from {before} to {self._percent} % without proof; record: {told}"])

    def _untrue(self) -> Iterator[str]:
        """Say what the record tells that is not so."""
        record, route = self.record, self._get("httproutes", WORKLOAD)
        if record is None or route is None or epoch_of(route, WORKLOAD) > record.epoch:
            return  # restored, and the record is not told yet
        phase, percent = record.phase, self.written_percent
        if percent not in self._expected_percent(record):
            yield f"the record says {phase}, {record.shift}, and the route gives the target {percent} %"
        yield from self._untrue_of_source(record)
        pools = self._world.gke.state["pools"]
        if phase is Phase.GATED and record.plan["stop_after"] == "gate":
            return  # proven, and the target is being released
        if phase in _HAS_POOL and record.pool not in pools:
            yield f"the record says {phase}, and node pool {record.pool} is not there"
        if phase in _HAS_TARGET and self._get("deployments", TARGET) is None:
            yield f"the record says {phase}, and Deployment {TARGET} is not there"
        if phase in (Phase.FALLEN_BACK, Phase.PROVEN) and (record.pool in pools or self._get("deployments", TARGET)):
            yield f"the record says {phase}, and something of the target is left"

    def _untrue_of_source(self, record: Record) -> Iterator[str]:
        deployment = self._get("deployments", WORKLOAD)
        replicas = deployment["spec"].get("replicas", 1) if deployment else 0
        pinned = record.phase in USERS_MAY_BE_ON_TARGET
        if (pinned or record.phase in AFTER_COMMIT) and replicas < record.source_capacity:
            yield f"the record counts on {record.source_capacity} source replicas, and {replicas} are asked for"
        if pinned:
            hpas = self._world.objects("horizontalpodautoscalers")
            least = next((each["spec"].get("minReplicas", 1) for each in hpas), record.source.replicas)
            if (
                least < record.source.replicas
                or self._get("poddisruptionbudgets", f"{record_name(WORKLOAD)}-pin") is None
            ):
                yield f"the record says {record.phase}, and the source is not pinned"
        if record.phase is Phase.MIGRATED:
            pools = self._world.gke.state["pools"]
            yield from (
                f"the record says migrated, and {each} is still there" for each in self.source_pools if each in pools
            )

    def _expected_percent(self, record: Record) -> set[int]:
        """Return the shares that the route may give the target while the record says so."""
        phase, shift, steps = record.phase, record.shift, list(record.plan["steps"])
        if phase in _ON_SOURCE:
            # Users go where somebody serves: to the target, once the source has no ready endpoint.
            return {0} if self.ready(WORKLOAD) else {0, 100}
        if phase in AFTER_COMMIT:
            return {100} if self.ready(TARGET) else {0, 100}
        before = {0} if shift.step < 1 else {steps[shift.step - 1]}
        return {shift.percent} if shift.written is not None else {shift.percent} | before

    def _get(self, resource: str, name: str) -> Object | None:
        entry = self._world.api.store.get(resource, NAMESPACE, name)
        return entry.obj if entry else None

    def _note(self, findings: Any) -> None:
        for what in findings:
            if what not in self._told:
                self._told.add(what)
                self.broken.append(Violation(self._world.clock.now(), what))
