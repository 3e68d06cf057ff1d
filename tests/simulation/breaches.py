"""Measure how fast users are home: from the moment that the keeper sees a breach to 100 % source observed.

Each API call takes its time here, drawn by a seed. A breach of a drawn kind comes at a drawn moment of the shift or the
soak; when the Gateway follows is the world's own truth, which the product's observation is held to.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from sandbox.virtual_traffic import DELAY_S
from sandbox.workload import NAMESPACE, WORKLOAD
from tests.simulation.crash_points import PLAN
from tests.simulation.harness import Latency, Phase, Scene, SlowCalls
from tests.simulation.together import Together
from tests.simulation.witness import TARGET, Witness

SPEED = 8.0
PROPAGATION_S = DELAY_S / SPEED
LIMIT_S = 2.0  # from the breach seen to 100 % source observed, the Gateway's delay left out
_STEPS = (10, 50, 100)
_TICK_S = 0.1
_LONGEST_S = 20.0  # until the breach comes, from the first weight on a step


@dataclass(frozen=True)
class Breach:
    """One breach; seconds. `seen_s` from the cause, the others from the moment that the keeper saw it."""

    cause: str
    percent: int
    seen_s: float
    written_s: float
    observed_s: float | None  # None: the keeper gave up watching, and said so
    followed_s: float  # when the Gateway in truth sent nobody to the target any more


def _edit_route(scene: Scene) -> None:
    route = scene.world.client.get("httproutes", NAMESPACE, WORKLOAD)
    for rule in route["spec"]["rules"]:
        for ref in rule["backendRefs"]:
            ref["weight"] = 61 if ref["name"] == TARGET else 39
    scene.world.client.update("httproutes", route)


def _change_template(scene: Scene) -> None:
    annotation = {"metadata": {"annotations": {"example.com/touched": "yes"}}}
    change = {"spec": {"template": annotation, "strategy": {"type": "Recreate", "rollingUpdate": None}}}
    scene.world.client.patch("deployments", NAMESPACE, TARGET, change)


def _fault(name: str, **options: Any) -> Callable[[Scene], None]:
    return lambda scene: scene.world.faults.set(name, options)


_DIED, _CHANGED, _BALANCER = "a target's machine died", "the target's template was changed", "the load balancer fails"
_NOBODY_CAN_BEGIN = frozenset({_DIED, _CHANGED, _BALANCER})
CAUSES: Mapping[str, Callable[[Scene], None]] = {
    "the route was edited": _edit_route,
    _CHANGED: _change_template,
    _BALANCER: _fault("lb-errors", percent=100),
    "the target is slow": _fault("slow-tpu"),
    "the target hangs": _fault("hang-mid-stream"),
    _DIED: _fault("node-lost"),
    "a source replica hangs": _fault("gpu-hung"),
}


@dataclass(frozen=True)
class Figures:
    """What many breaches say together; seconds, quantiles of those that each figure is of.

    `early` were called observed before the Gateway had followed: nothing could begin on the target any more, for it
    had no endpoint left or the load balancer let nobody through, though its share was still there. Of any other cause
    they are `wrong`, if early by more than the world's own tick. A target on a dead machine does not answer, which is
    no evidence: `dead_p99_s` is of those, apart.
    """

    breaches: int
    written_p99_s: float
    observed_p50_s: float
    observed_p99_s: float  # the Gateway's delay left out
    dead_p99_s: float | None
    early: int
    wrong: int
    unobserved: int
    seen_p50_s: Mapping[str, float]

    @classmethod
    def of(cls, breaches: Sequence[Breach]) -> Figures:
        """Sum up."""
        told = [each for each in breaches if each.observed_s is not None]
        true = [each for each in told if each.observed_s >= each.followed_s]  # type: ignore[operator]
        answering, dead = (
            [each.observed_s - PROPAGATION_S for each in true if (each.cause == _DIED) is died]  # type: ignore[operator]
            for died in (False, True)
        )
        causes = sorted({each.cause for each in breaches})
        return cls(
            breaches=len(breaches),
            written_p99_s=_quantile([each.written_s for each in breaches], 0.99),
            observed_p50_s=_quantile(answering, 0.5),
            observed_p99_s=_quantile(answering, 0.99),
            dead_p99_s=_quantile(dead, 0.99) if dead else None,
            early=len(told) - len(true),
            wrong=sum(
                each.followed_s - each.observed_s > _TICK_S and each.cause not in _NOBODY_CAN_BEGIN  # type: ignore[operator]
                for each in told
            ),
            unobserved=len(breaches) - len(told),
            seen_p50_s={c: _quantile([each.seen_s for each in breaches if each.cause == c], 0.5) for c in causes},
        )


def _quantile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that a share of all do not exceed."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def breach(seed: int, latency: Latency | None = None) -> Breach:
    """Play the migration of a seed until its keeper has restored, or given up watching."""
    chance = Random(f"breach/{seed}")
    cause = chance.choice(list(CAUSES))
    percent, after_s = chance.choice(_STEPS), chance.uniform(0.0, _LONGEST_S)
    plan = {"steps": list(_STEPS), "bake_s": 60, "soak_s": 60}
    scene = Scene(seed=seed, **{**PLAN, **plan, "world": {**PLAN["world"], "speed": SPEED}})
    witness = Witness(scene.world)
    together = Together(scene.world)
    calls = SlowCalls(together, latency or Latency(), seed)
    calls.slow = False
    airflow = scene.airflow(calls=calls)
    airflow.together = together
    struck: list[float] = []
    followed: list[float] = []

    def watch() -> None:
        now, record = scene.world.clock.now(), witness.record
        if record is None:
            return
        if record.phase is Phase.GATED and not calls.slow:  # what comes before is of no interest here
            calls.slow, together.tick_s = True, _TICK_S
        if not struck and record.shift.percent == percent and record.shift.written is not None:
            if now >= record.shift.written + after_s:
                struck.append(now)
                CAUSES[cause](scene)
        elif record.phase is Phase.FALLING_BACK and not followed and not scene.weights().get(TARGET):
            followed.append(now)

    scene.world.on_tick.append(watch)
    together.start(airflow.run)
    together.run()
    fallback = scene.record.fallback
    if not struck or fallback is None or not followed:
        raise AssertionError(
            f"seed {seed}: {cause} at {percent} % was no breach: {airflow.reasons() or 'it ended well'}"
        )
    detected = fallback.detected
    return Breach(
        cause,
        percent,
        detected - struck[0],
        fallback.route_written - detected,
        None if fallback.observed is None else fallback.observed - detected,
        followed[0] - detected,
    )
