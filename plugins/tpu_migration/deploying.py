"""Decide from what stands in the cluster what `deploy_all` does, and do it: a few stages, one after the other."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from tpu_migration.clients import kubernetes as k8s
from tpu_migration.clients.gke import NodePools
from tpu_migration.clients.iam import Permissions
from tpu_migration.clients.kubernetes import Kubernetes
from tpu_migration.clients.prometheus import Prometheus
from tpu_migration.clock import Clock
from tpu_migration.domain.phases import Phase
from tpu_migration.domain.plan import Plan
from tpu_migration.drive import drive
from tpu_migration.errors import MigrationError, PermanentError
from tpu_migration.guard import IDLE_LIMIT_S
from tpu_migration.lease import Holder
from tpu_migration.record import Record
from tpu_migration.records import Records
from tpu_migration.stages import STAGES
from tpu_migration.stages.base import Context, Done, Failed, Outcome, Stage
from tpu_migration.stages.cleanup import remove_scaffolding
from tpu_migration.stages.left_behind import wait_for_dead_lease
from tpu_migration.stages.release_stack import is_of_stack, is_pool_of_stack, releasing
from tpu_migration.stages.run import StageRun
from tpu_migration.stages.stack import Stack
from tpu_migration.stages.way_back import CLOSED, way_back

RUN_ID = "deploy_all"
_TPU_STAGES = ("preflight", "provision", "deploy", "warm_up")


@dataclass(frozen=True)
class Tools:
    """What the command works with; a simulation gives its own."""

    kube: Kubernetes
    pools: NodePools
    clock: Clock
    driving: Mapping[str, Any]  # how `drive` sleeps and keeps the lease
    permissions: Permissions | None = None
    monitoring: Prometheus | None = None


class StageFailedError(PermanentError):
    """Report the stage that did not come to a good end, and why."""


class Deploying:
    """One call of `deploy_all`; `target` is the stack on TPUs, `source` the one on GPUs."""

    def __init__(self, tools: Tools, plan: Plan, source: Stack, target: Stack) -> None:
        self.tools, self.plan = tools, plan
        self.source, self.target = source, target
        self.run_id = f"{RUN_ID}-{tools.clock.now():.0f}"
        self.working: Context | None = None

    def to_tpu(self) -> None:
        """Set up the TPU stack where nobody is served, else a warm TPU side beside the GPUs; raises what stops it."""
        record = self._record()
        if self._live(self.plan.workload) is not None:
            self._prepare_target(record)
            return
        if record is not None:
            raise PermanentError(
                f"{record.workload} is {record.phase} by run {record.run_id}, and its GPU Deployment is gone: "
                f"see `tpu-migration status {record.workload}`; nothing was changed"
            )
        self._set_up(self.target)

    def to_gpu(self) -> None:
        """Bring users and workload back to GPUs, release what this product has on TPUs; raises what stops it."""
        record = self._record()
        if record is not None and record.phase not in CLOSED:
            self._run("way_back", way_back(self.source), self.plan, self.run_id)
            say(f"users are on {record.source.accelerator}, the TPUs are given back")
        live, service = self._live(self.plan.workload), self.source.service
        if live is None or (record is None and is_of_stack(live, service)):
            self._set_up(self.source)
        else:
            ready, wanted = (live.get("status") or {}).get("readyReplicas", 0), live["spec"].get("replicas", 1)
            told = f"Deployment {self.plan.workload} stands on GPUs: {ready} of {wanted} replicas are ready"
            if not wanted or ready < wanted:
                raise PermanentError(f"{told}; see `kubectl describe pods`, then call again")
            say(told)
        pool = self.tools.pools.get(self.target.pool.name)
        if is_of_stack(self._live(self.target.service), self.target.service) or is_pool_of_stack(
            pool, self.target.pool
        ):
            stage = releasing(self.target.service, self.source.route["metadata"]["name"], self.target.pool)
            self._run("release", stage, self.plan, self.run_id)
            say(f"the TPU stack {self.target.service} is taken down")

    def stopped(self) -> str:
        """Give the lease back after Ctrl-C; return what stands and how to go on."""
        found, left = [], ""
        try:
            self._give_lease_back()
            found += [f"Deployment {each}" for each in self._names() if self._live(each) is not None]
            record = self._record()
            pools = {self.source.pool.name, self.target.pool.name, record.pool if record else self.target.pool.name}
            found += [f"node pool {each}" for each in sorted(pools) if self.tools.pools.get(each) is not None]
            if record is not None and record.active:
                left = (
                    f" {record.workload} is {record.phase}; the guard takes the TPU pods away if nobody goes on within "
                    f"{IDLE_LIMIT_S / 60:.0f} minutes, and users stay on the safe route."
                )
        except MigrationError as error:
            left = f" What stands could not be read: {error}."
        return (
            f"stopped. There are now: {', '.join(found) or 'neither Deployment nor node pool'}.{left} The same command "
            "goes on from there; `--accelerator gpu` goes back and releases the TPUs"
        )

    def _prepare_target(self, record: Record | None) -> None:
        """Run a migration's stages up to a warm target beside the GPUs; no user is moved."""
        plan, run_id = self.plan, self.run_id
        if record is not None and record.run_id.startswith(RUN_ID):
            if record.stands_unjudged:
                say(f"{record.target} stands warm already, by run {record.run_id}")
                return self._tell_what_next()
            if record.active and record.phase is not Phase.FALLING_BACK:
                self._run("lease", _nobody_works_on(record), plan, run_id)
                run_id, plan = record.run_id, Plan.from_params(record.plan)  # it was cut off: go on
        for name in _TPU_STAGES:
            outcome = self._drive(name, STAGES[name], plan, run_id)
            if isinstance(outcome, Failed):
                if outcome.kind != "superseded":
                    self._drive("restore", STAGES["restore"], plan, run_id)
                    after = self._record()
                    if after is not None and after.run_id == run_id:
                        say(f"{after.workload} is {after.phase}")
                raise StageFailedError(f"{name} failed: {outcome.reason}")
        self._hold(plan, run_id)
        say(f"{self.target.service} is warm beside the GPUs; no user was moved, and the GPUs serve as before")
        return self._tell_what_next()

    def _hold(self, plan: Plan, run_id: str) -> None:
        """End the run as held: no traffic moved, the TPU is kept, and the guard leaves it alone."""

        def step(ctx: Context) -> Outcome:
            if ctx.expect(Phase.WARM) is not None:
                remove_scaffolding(ctx)
                ctx.update(lambda r: replace(r.moved_to(Phase.GATED).moved_to(Phase.HELD), waiting=""))
            return Done()

        self._run("hold", Stage("hold", step, lambda plan: 600.0, gives_lease_back=True), plan, run_id)

    def _tell_what_next(self) -> None:
        say("a migration proves the TPU before it moves anybody, and makes a target of its own:")
        say(f"  {trigger_line(self.plan)}")
        say("to give the TPUs back: the same command with --accelerator gpu")

    def _set_up(self, stack: Stack) -> None:
        result = self._run("stack", stack.stage(), self.plan, self.run_id)
        say(f"{result['deployment']} serves {', '.join(result['models'])}")
        if result["users"] == stack.service:
            say(f"users are served by {stack.service}")
        else:
            say(f"users stay where HTTPRoute {stack.route['metadata']['name']} sends them: {result['users']}")

    # -------------------------------------------------------------------- stages

    def _run(self, name: str, stage: Stage, plan: Plan, run_id: str) -> dict[str, Any]:
        outcome = self._drive(name, stage, plan, run_id)
        if isinstance(outcome, Failed):
            self._give_lease_back()
            raise StageFailedError(f"{name} failed: {outcome.reason}")
        return outcome.result

    def _drive(self, name: str, stage: Stage, plan: Plan, run_id: str) -> Done | Failed:
        say(f"{name}:")
        tools = self.tools
        asked: dict[str, Any] = {"permissions": tools.permissions, "monitoring": tools.monitoring}
        self.working = Context.create(plan, Holder(run_id, stage.name), tools.kube, tools.pools, tools.clock, **asked)
        return drive(StageRun(stage, self.working), say=lambda text: say(f"  {text}"), **tools.driving)

    def _give_lease_back(self) -> None:
        """Release the lease of whatever this call was at, unless somebody else has it by now."""
        if self.working is None:
            return
        taken_on = [each for each in self.working.memory.values() if isinstance(each, Context)]
        for context in (self.working, *taken_on):
            if context.lease.is_mine():
                context.lease.release()

    def _names(self) -> tuple[str, str]:
        return self.plan.workload, self.target.service

    def _record(self) -> Record | None:
        return Records(self.tools.kube, self.plan.namespace, self.plan.workload).read()

    def _live(self, deployment: str) -> dict[str, Any] | None:
        return self.tools.kube.get(k8s.DEPLOYMENTS, deployment, self.plan.namespace)


def _nobody_works_on(record: Record) -> Stage:
    """Return a stage that ends once a run that was cut off is surely dead."""

    def step(ctx: Context) -> Outcome:
        return wait_for_dead_lease(ctx, record.run_id, ctx.lease.look()) or Done()

    return Stage("lease", step, lambda plan: 600.0, False)


def trigger_line(plan: Plan) -> str:
    """Return the command that migrates with this plan; what the plan has by default is left out."""
    default = Plan().to_dict()
    conf = {name: value for name, value in plan.to_dict().items() if value != default[name]}
    return shlex.join(["airflow", "dags", "trigger", "tpu_migration", "--conf", json.dumps(conf)])


def say(text: str) -> None:
    """Tell how it goes."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
