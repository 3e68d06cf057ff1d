"""Name every fault that the sandbox can make, with its options, when it begins, and how a migration ends under it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from tpu_migration.domain.phases import Phase


@dataclass(frozen=True)
class Fault:
    """One fault: its name, what it does, its options with their defaults, and the module that does it.

    `begins` is the phase of the record at which the demo switches it on, None: before users come.
    `ends` is how a migration must end under the fault as it is by default. For `hurts_s` after it
    begins the fault itself may fail or cut requests, whatever anybody does (a machine that dies
    takes its streams along); infinity: as long as it is on. `takes_s` is how long the demo may
    need at most: where nothing but a stage's own time limit ends the wait, that is hours.
    """

    name: str
    what: str
    options: dict[str, Any]
    module: str
    begins: Phase | None = None
    ends: Phase = Phase.FALLEN_BACK
    hurts_s: float = 0.0
    takes_s: float = 600.0


_ENGINE = {"workload": ""}  # only pods whose name starts so
_PRODUCT = {"user": "airflow@", "seed": 1}  # only requests of users whose name starts so
_MACHINES = {"count": 1, "seed": 1, "returns_after_s": None}
_FOREVER = math.inf

TABLE = (
    # The GKE API
    Fault(
        "stockout",
        "machines that match are not to be had: a create retries about 35 min with the cluster locked,"
        " then ends DONE with an error, and the pool stays behind in ERROR",
        {"machine": "ct", "zone": None, "capacity": None, "appears_after_s": None},
        "sandbox.gke.fleet",
    ),
    Fault(
        "late-stockout",
        "capacity runs out while the nodes boot: the operation takes its usual time, then ends DONE with an"
        " error; the nodes turn up all the same `appears_after_s` later",
        {"machine": "ct", "zone": None, "capacity": None, "appears_after_s": 60},
        "sandbox.gke.operations",
    ),
    Fault(
        "quota",
        "the project's quota does not cover the machines: the operation ends DONE with an error",
        {"machine": "ct", "zone": None, "capacity": None, "metric": "TPU_LITE_PODSLICE_V5", "limit": 0.0},
        "sandbox.gke.fleet",
    ),
    Fault(
        "pool-stuck",
        "node pool operations of that kind make no progress and hold the cluster's lock until cancelled",
        {"machine": "ct", "operation": "CREATE_NODE_POOL"},
        "sandbox.gke.operations",
        takes_s=4500.0,
    ),
    # Machines
    Fault(
        "node-lost",
        "a TPU machine dies: its pods stop answering at once, its node becomes NotReady some 40 s later, and its"
        " pods are evicted once their tolerations run out",
        {"machine": "ct", **_MACHINES},
        "sandbox.gke.losses",
        begins=Phase.SHIFTING,
        hurts_s=60.0,
        takes_s=900.0,
    ),
    Fault(
        "gpu-gone",
        "an H100 machine dies, as under `node-lost`, and its pool makes another one",
        {"machine": "a3", **_MACHINES, "returns_after_s": 600.0},
        "sandbox.gke.losses",
        begins=Phase.SHIFTING,
        hurts_s=60.0,
        takes_s=900.0,
    ),
    Fault(
        "spot-notice",
        "a TPU machine is preempted: `notice_s` earlier its node gets a taint and its pods end gracefully, then it"
        " is gone; the pool makes another one `returns_after_s` later",
        {"machine": "ct", **_MACHINES, "returns_after_s": 120.0, "notice_s": 30.0},
        "sandbox.gke.losses",
        begins=Phase.SHIFTING,
        ends=Phase.MIGRATED,
    ),
    # The Kubernetes API
    Fault(
        "api-throttled",
        "the Kubernetes API answers 429 with Retry-After to a share of the requests of users whose name begins so",
        {**_PRODUCT, "share": 0.1, "retry_after_s": 1},
        "sandbox.api.trouble",
        ends=Phase.MIGRATED,
    ),
    Fault(
        "api-down",
        "the Kubernetes API cuts the connections of users whose name begins so, or answers `status` if one is"
        " given, for `for_s` (null: as long as the fault is on)",
        {"user": "airflow@", "for_s": 25.0, "status": None},
        "sandbox.api.trouble",
        begins=Phase.SHIFTING,
    ),
    Fault(
        "watch-cut",
        "watches of users whose name begins so are cut after at most `every_s`; a share `expired` of those that"
        " go on from a version they know is told 410",
        {"user": "", "seed": 1, "every_s": 5.0, "expired": 0.3},
        "sandbox.api.trouble",
        ends=Phase.MIGRATED,
    ),
    # Other hands
    Fault(
        "conflict",
        "another controller annotates the routes every `every_s` under a field manager of its own, so that writes"
        " which are stale by then get 409",
        {"workload": "", "every_s": 0.5, "manager": "route-annotator"},
        "sandbox.others",
        ends=Phase.MIGRATED,
    ),
    Fault(
        "gitops",
        "a controller puts a route that differs from what is in git back, `after_s` after it began to differ",
        {"workload": "", "after_s": 0.0, "manager": "argocd-controller"},
        "sandbox.others",
        begins=Phase.SHIFTING,
    ),
    # The Gateway
    Fault(
        "gateway-slow",
        "changes of routes and endpoints take `factor` times as long to take effect",
        {"factor": 10},
        "sandbox.gateway.delays",
        ends=Phase.MIGRATED,
    ),
    Fault(
        "lb-errors",
        "the load balancer itself answers `status` to `percent` of the requests; no pod sees them",
        {"percent": 20, "status": 502},
        "sandbox.gateway.controller",
        hurts_s=_FOREVER,
    ),
    # Pods and engines
    Fault(
        "image-pull",
        "images whose name contains `image` cannot be pulled",
        {"image": ""},
        "sandbox.pods",
        takes_s=1500.0,
    ),
    Fault("oom", "a TPU engine runs out of HBM while it compiles and exits", _ENGINE, "sandbox.engine.boot"),
    Fault(
        "late-oom",
        "a TPU engine runs out of HBM when it loads a program that its start left out, and exits",
        _ENGINE,
        "sandbox.engine.core",
    ),
    Fault(
        "host-oom",
        "a TPU engine is killed for the host memory that it uses while it compiles",
        _ENGINE,
        "sandbox.engine.boot",
    ),
    Fault("crash-loop", "a TPU engine exits as soon as it looks for its chips", _ENGINE, "sandbox.engine.boot"),
    Fault("compile-hang", "a TPU engine never ends its precompile", _ENGINE, "sandbox.engine.boot", takes_s=1800.0),
    Fault(
        "slow-compile",
        "a TPU engine takes `each_s` to compile each program, however fast the cloud is made",
        {**_ENGINE, "each_s": 300.0},
        "sandbox.engine.core",
        takes_s=5400.0,
    ),
    Fault(
        "recompile",
        "a TPU engine that serves stops for `stall_s` every `every_s` to compile",
        {**_ENGINE, "every_s": 10, "stall_s": 3},
        "sandbox.engine.core",
    ),
    Fault(
        "slow-tpu",
        "every step of a TPU engine takes `factor` times as long",
        {**_ENGINE, "factor": 4},
        "sandbox.engine.core",
    ),
    Fault(
        "errors-under-load",
        "a TPU engine with `at` unfinished requests fails new ones at `rate`",
        {**_ENGINE, "at": 8, "rate": 0.3, "seed": 1},
        "sandbox.engine.core",
    ),
    Fault(
        # The policy `demo` compares no answers, to stay short: under it, nothing meets this fault. All others do.
        "wrong-answers",
        "a TPU engine gives other answers",
        _ENGINE,
        "sandbox.engine.core",
        ends=Phase.MIGRATED,
    ),
    Fault(
        "hang-mid-stream",
        "a TPU engine stops in the middle of streams",
        _ENGINE,
        "sandbox.engine.core",
        takes_s=900.0,
    ),
    Fault(
        "gpu-hung",
        "a GPU engine computes nothing any more; HTTP still answers",
        _ENGINE,
        "sandbox.engine.core",
        begins=Phase.SHIFTING,
        hurts_s=_FOREVER,
    ),
)
