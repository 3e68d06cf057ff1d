"""Be the benchmark Jobs of a virtual world: what they measure follows from the engines that they reach."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sandbox.virtual_engine import EnginePod
from sandbox.virtual_pods import PodState, VirtualPod
from tpu_migration.bench.results import render
from tpu_migration.domain.gate import RequestResult

if TYPE_CHECKING:
    from sandbox.world import World

_TTFT_S, _TPOT_S, _TOKENS = 0.15, 0.02, 64
_E2E_S = _TTFT_S + _TPOT_S * _TOKENS
_START_S = 5.0
_GIVE_UP_S = 60.0  # when the load generator calls a stream that stands still failed
_HEALTH: dict[str, Any] = {
    "void": False,
    "void_reasons": [],
    "loop_lag_p99_ms": 1.0,
    "schedule_delay_p99_ms": 1.0,
    "achieved_rate_ratio": 1.0,
}


class BenchPod(VirtualPod):
    """One block of load: straight to a pod (a warm-up's shapes), or through the Gateway to an arm or as users come."""

    def __init__(self, world: World, obj: dict[str, Any], node_labels: dict[str, str], address: str) -> None:
        super().__init__(world, obj, node_labels, address)
        asked = dict(each.removeprefix("--").partition("=")[::2] for each in self.container.get("args") or [])
        headers = [each for each in self.container.get("args") or [] if each.startswith("--header=x-tpu")]
        self._arm = headers[0].rpartition("=")[2] if headers else None
        self._host = asked["url"].removeprefix("http://").rpartition(":")[0]
        self._through_gateway = world.pod_at(self._host) is None
        self._every = int(asked.get("write-every", 1))
        self._shapes: list[str] = asked["shapes"].split(",") if "shapes" in asked else []
        self._broken = False
        if shapes := asked.get("shapes", ""):
            self._count, self._rate = 12, 10.0
            self._seconds = _START_S / world.speed
            self._broken = not all([engine.compile(shapes) for engine in self._engines()])
        else:
            self._count, self._rate = int(asked["requests"]), float(asked["rate"])
            self._seconds = self._count / self._rate + _START_S / world.speed
        if any(not engine.computes() for engine in self._engines()):
            self._seconds += _GIVE_UP_S

    def _engines(self) -> list[EnginePod]:
        if self._through_gateway:
            return [each for _, ready in self.world.traffic.backends(self._arm).values() for each in ready]
        pod = self.world.pod_at(self._host)
        return [pod] if isinstance(pod, EnginePod) else []

    def state(self, now: float) -> PodState:
        if now - self.started >= self.boot_s + self._seconds:
            return PodState(False, "Succeeded")
        return super().state(now)

    def log(self) -> list[str]:
        engines = self._engines()
        engine = engines[0] if engines else None
        results = [self._result(index, engine) for index in range(0, self._count, self._every)]
        summary = {"requests": self._count, **_HEALTH}
        if self._shapes:
            slower = ((engine.fault("slow-tpu") if engine else None) or {"factor": 1.0})["factor"]
            summary["shapes"] = [self._figures(shape, slower) for shape in self._shapes]
        return render(results, summary).splitlines()

    def _figures(self, shape: str, slower: float) -> dict[str, Any]:
        """Return a shape's medians, which scatter by some per cent from one pass to the next."""
        scatter = slower * (1 + 0.02 * self.world.random.random())
        return {"shape": shape, "ttft_p50_s": _TTFT_S * scatter, "tpot_p50_s": _TPOT_S * scatter}

    def _result(self, index: int, engine: EnginePod | None) -> RequestResult:
        at_s = index / self._rate
        if error := self._error(engine):
            return RequestResult(
                id=str(index), scheduled_s=at_s, sent_s=at_s, ttft_s=None, tpot_s=None, e2e_s=None,
                prompt_tokens=128, output_tokens=0, ok=False, error=error, finish_reason=None,
            )  # fmt: skip
        factor = ((engine.fault("slow-tpu") if engine else None) or {"factor": 1.0})["factor"]
        noise = self.world.random.random()
        ttft, tpot = _TTFT_S * factor * (1 + 0.2 * noise), _TPOT_S * factor * (1 + 0.1 * noise)
        recompile = engine.fault("recompile") if engine else None
        if recompile and self.world.random.random() < recompile["stall_s"] / recompile["every_s"]:
            ttft += recompile["stall_s"] * noise
        return RequestResult(
            id=str(index), scheduled_s=at_s, sent_s=at_s, ttft_s=ttft, tpot_s=tpot, e2e_s=ttft + tpot * (_TOKENS - 1),
            prompt_tokens=128, output_tokens=_TOKENS, ok=True, finish_reason="length",
        )  # fmt: skip

    def _error(self, engine: EnginePod | None) -> str:
        """Say why a request fails; empty for one that does not."""
        if self._through_gateway and self.world.traffic.balancer_fails():
            return "HTTP 502"
        if engine is None:
            return "HTTP 503"
        if self._broken:
            return "truncated: ClientPayloadError: the connection was closed"
        if not engine.computes():
            return f"no token for {_GIVE_UP_S:.0f} s"
        overload = engine.fault("errors-under-load")
        if overload and self._rate * _E2E_S >= overload["at"] and self.world.random.random() < overload["rate"]:
            return "HTTP 500"
        return ""
