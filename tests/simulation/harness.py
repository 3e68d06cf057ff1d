"""Drive the very stages, the guard and the restore on a virtual world, and kill them where a test says."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from random import Random
from typing import Any

from sandbox.workload import NAMESPACE, WORKLOAD
from sandbox.world import CLUSTER, LOCATION, PROJECT, World
from tests.simulation.together import Together
from tpu_migration.clients.gke import NodePools
from tpu_migration.clients.kubernetes import WATCH_CALL_TIMEOUT_S, Kubernetes
from tpu_migration.domain.phases import AFTER_COMMIT, ENDED, Phase
from tpu_migration.domain.plan import Plan
from tpu_migration.drive import drive
from tpu_migration.guard import Guard
from tpu_migration.lease import Holder
from tpu_migration.record import Record
from tpu_migration.records import Records
from tpu_migration.stages import STAGES
from tpu_migration.stages.base import Context, Done, Failed, Outcome
from tpu_migration.stages.run import StageRun

FORWARD = [name for name in STAGES if name != "restore"]
# For gc.set_threshold: a world is a heap of small dicts that all die at its end, so it is collected less often.
COLLECT = (50_000, 20, 100)
_Z99 = 2.326  # the standard normal's 99th percentile
GUARD = f"system:serviceaccount:{NAMESPACE}:tpu-migration-guard"


class Killed(BaseException):
    """The process ends here, as by SIGKILL: nothing that runs may catch it."""


@dataclass(frozen=True)
class Latency:
    """How long the API takes for a call, in seconds: log-normal, half of it before the server acts."""

    median_s: float = 0.03
    p99_s: float = 0.3

    def draw(self, chance: Random) -> float:
        """Draw one call's time; one beyond the client's patience would be no answer, and is another fault."""
        sigma = math.log(self.p99_s / self.median_s) / _Z99
        return min(self.median_s * math.exp(chance.gauss(0.0, sigma)), WATCH_CALL_TIMEOUT_S)


@dataclass
class Calls:
    """Count the orchestrator's API calls, and kill it at one of them."""

    kill_at: int | None = None
    after: bool = False  # kill once the server has done it, but before the answer is seen
    count: int = 0
    trace: list[str] = field(default_factory=list)

    def before(self, method: str, path: str) -> None:
        self.count += 1
        self.trace.append(f"{method} {path}")
        if self.count == self.kill_at and not self.after:
            raise Killed(self.trace[-1])

    def done(self, method: str, path: str) -> None:
        if self.count == self.kill_at and self.after:
            raise Killed(self.trace[-1])


class SlowCalls(Calls):
    """Let each call take its time, while others of the round go on."""

    def __init__(self, together: Together, latency: Latency, seed: int) -> None:
        super().__init__()
        self._together, self._latency = together, latency
        self._chance = Random(f"latency/{seed}")
        self.slow = True

    def before(self, method: str, path: str) -> None:
        super().before(method, path)
        self._spend()

    def done(self, method: str, path: str) -> None:
        self._spend()
        super().done(method, path)

    def _spend(self) -> None:
        if self.slow:
            self._together.sleep(self._latency.draw(self._chance) / 2)


class Airflow:
    """What Airflow does, and no more: run the stages in order, then the teardown, whatever happened.

    In a round (`together`) its calls and waits go on beside what else is in it; else time stands still in a call.
    """

    def __init__(self, world: World, plan: Plan, run_id: str, calls: Calls | None = None) -> None:
        self.world, self.plan, self.run_id = world, plan, run_id
        self.calls = calls or Calls()
        self.wait: Callable[[float], None] = self._advance
        self.attempt = 0
        self.ended: dict[str, Outcome] = {}
        self.current: StageRun | None = None
        self.said: list[str] = []
        self.monitoring: Any = None
        self.together: Together | None = None
        self.joined = False  # another worker has the same task now, and its outcome is the one that counts

    @property
    def green(self) -> bool:
        """Tell the DAG run's state as Airflow does: by its leaf, the teardown, alone."""
        return isinstance(self.ended.get("restore"), Done)

    def run(self) -> Airflow:
        """Go on where the tasks' states say that it stopped; raises Killed where the calls say so."""
        for name in FORWARD:
            if isinstance(self.ended.get(name), Failed):
                break
            if name in self.ended:
                continue
            self.ended[name] = self._task(name)
            if self.joined:
                return self
            if isinstance(self.ended[name], Failed):
                break
        if "restore" not in self.ended:
            self.ended["restore"] = self._task("restore")
        return self

    def _task(self, name: str) -> Outcome:
        self.attempt += 1
        transport = self.world.transport(self.calls.before, self.calls.done)
        kube = Kubernetes(transport, sleep=self.wait)
        pools = NodePools(self.world.cluster_manager(self.calls.before, self.calls.done), PROJECT, LOCATION, CLUSTER)
        holder = Holder(self.run_id, name, self.attempt, f"worker-{self.attempt}")  # the same in each run of a test
        context = Context.create(self.plan, holder, kube, pools, self.world.clock)
        context.monitoring = self.monitoring
        self.current = StageRun(STAGES[name], context)
        if self.together:
            context.together = self.together.all
            return drive(self.current, sleep=self.together.sleep, say=self.said.append, keeping=self.together.renewing)

        def pause(seconds: float) -> None:
            self.wait(seconds)
            context.lease.renew_if_due()

        return drive(self.current, sleep=pause, say=self.said.append, keeping=lambda lease: nullcontext())

    def _advance(self, seconds: float) -> None:
        self.world.advance(seconds, tick_s=1.0 if seconds <= 3.0 else 5.0)

    def reasons(self) -> str:
        """Return why it failed, for a test's message."""
        return "; ".join(f"{n}: {o.reason}" for n, o in self.ended.items() if isinstance(o, Failed))


class Scene:
    """A world, its guards, and a plan that takes minutes of virtual time; without `guard` they stand still."""

    def __init__(
        self, *, seed: int = 0, guard: bool = True, guards: int = 2, world: dict[str, Any] | None = None, **plan: Any
    ) -> None:
        self.world = World(seed=seed, **(world or {}))
        self.replicas: int = (world or {}).get("replicas", 2)
        kube = self.client(GUARD)
        self.guards = [Guard(kube, NAMESPACE, self.world.clock, f"guard-{number}") for number in range(guards)]
        self.rescued: list[str] = []
        if guard:
            for each in self.guards:
                self.world.on_tick.append(lambda each=each: self.rescued.extend(each.tick()))
                self.world.advance(3.0)
        defaults: dict[str, Any] = {
            "project_id": PROJECT,
            "location": LOCATION,
            "cluster": CLUSTER,
            "namespace": NAMESPACE,
            "workload": WORKLOAD,
            "peak_rps": 4,
            "source_peak_replicas": 2,
            "policy": "demo",
            "steps": [10, 50, 100],
            "bake_s": 20,
            "soak_s": 60,
            "source_release": "delete-pool",
            "approvals": [],
        }
        self.plan = Plan.from_params({**defaults, **plan})

    def guard_beats_on(self) -> Callable[[], None]:
        """Have heartbeats without a guard that acts, and return what makes them."""

        def beat() -> None:
            for each in self.guards:
                each._beat()

        self.world.on_tick.append(beat)
        self.world.advance(6.0)
        return beat

    def airflow(self, run_id: str = "run-1", calls: Calls | None = None, **changes: Any) -> Airflow:
        plan = Plan.from_params({**self.plan.to_dict(), **changes})
        return Airflow(self.world, plan, run_id, calls)

    def client(self, user: str) -> Kubernetes:
        """Return a client of this cluster."""
        return Kubernetes(self.world.transport(lambda *_: None, lambda *_: None, user))

    def again(self, killed: Airflow, calls: Calls | None = None) -> Airflow:
        """Return Airflow started again: it knows which tasks had ended, and nothing of the one that ran."""
        again = Airflow(self.world, killed.plan, killed.run_id, calls)
        again.ended, again.attempt = dict(killed.ended), killed.attempt
        return again

    def goes_on(self, killed: Airflow) -> Airflow:
        """Start Airflow again, and let it run to its end."""
        return self.again(killed).run()

    @property
    def record(self) -> Record:
        found = Records(self.client("admin"), NAMESPACE, WORKLOAD).read()
        assert found is not None
        return found

    def when(self, condition: Callable[[], bool], act: Callable[[], None]) -> None:
        """Do something once, at the first tick at which a condition holds."""
        done: list[bool] = []

        def look() -> None:
            if not done and condition():
                done.append(True)
                act()

        self.world.on_tick.append(look)

    def when_percent(self, percent: int, act: Callable[[], None]) -> None:
        """Do something once the Gateway gives the target this share."""
        self.when(lambda: self.weights().get(f"{WORKLOAD}-tpu", 0) >= percent, act)

    def weights(self) -> dict[str, int]:
        return self.world.traffic.weights()

    def pools(self) -> set[str]:
        return set(self.world.gke.state["pools"])

    def assert_nobody_noticed(self) -> None:
        assert self.world.traffic.violations == []

    def assert_users_on_gpu(self) -> None:
        self.world.advance(15.0)
        weights = self.weights()
        assert weights.get(f"{WORKLOAD}-tpu", 0) == 0, weights
        assert weights[WORKLOAD] > 0
        assert len(self.world.traffic.ready_engines(WORKLOAD)) == 2

    def assert_users_on_tpu(self) -> None:
        self.world.advance(15.0)
        weights = self.weights()
        assert weights.get(WORKLOAD, 0) == 0, weights
        assert weights[f"{WORKLOAD}-tpu"] > 0
        assert len(self.world.traffic.ready_engines(f"{WORKLOAD}-tpu")) == 2

    def assert_nothing_left(self) -> None:
        """Only what was there before, the record and the snapshot are left; and an idle Lease."""
        assert self.pools() == {"default-pool", "h100-pool"}, self.pools()
        assert self.leftovers() == []

    def problems_at_rest(self) -> list[str]:
        """Say what is wrong once a run has ended: where users are, what is left over, how the source is."""
        entry = self.world.api.store.get("configmaps", NAMESPACE, f"tpu-migration-{WORKLOAD}")
        phase = str(entry.obj["data"]["phase"]) if entry else ""
        found = [] if phase in ("", *ENDED) else [f"the run ended in phase {phase}"]
        weights = {name: weight for name, weight in self.weights().items() if weight}
        if set(weights) != {f"{WORKLOAD}-tpu" if phase in AFTER_COMMIT else WORKLOAD}:
            found.append(f"users are on {weights} in phase {phase or 'none'}")
        found += [
            f"{name} has weight and no ready engine" for name in weights if not self.world.traffic.ready_engines(name)
        ]
        if phase in (Phase.FALLEN_BACK, Phase.PROVEN):
            if extra := self.pools() - {"default-pool", "h100-pool"}:
                found.append(f"node pools left: {extra}")
            if left := self.leftovers():
                found.append(f"objects left: {left}")
        if phase in ("", Phase.FALLEN_BACK, Phase.PROVEN, Phase.HELD):
            found += self.source_changes()
        return found

    def source_changes(self) -> list[str]:
        """Say what of the source is not as it was before the run."""
        found = []
        hpa = self.world.client.list("horizontalpodautoscalers", NAMESPACE)[0]
        if hpa["spec"]["minReplicas"] != self.replicas:
            found.append(f"the source's autoscaler is left at a minimum of {hpa['spec']['minReplicas']}")
        pins = [each["metadata"]["name"] for each in self.world.client.list("poddisruptionbudgets", NAMESPACE)]
        if f"tpu-migration-{WORKLOAD}-pin" in pins:
            found.append("the source is still pinned")
        return found

    def leftovers(self) -> list[str]:
        found = []
        for resource in ("deployments", "services", "httproutes", "jobs", "poddisruptionbudgets", "healthcheckpolicies",
                         "gcpbackendpolicies", "horizontalpodautoscalers", "podmonitorings"):  # fmt: skip
            for each in self.world.client.list(resource, NAMESPACE):
                if "tpu-migration/run" in (each["metadata"].get("labels") or {}):
                    found.append(f"{resource}/{each['metadata']['name']}")
        return found


__all__ = ["Airflow", "Calls", "Killed", "Phase", "Scene"]
