"""Be the comparison Jobs of a virtual world: both arms answer from the sandbox's own language model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sandbox.engine.language import LanguageModel, tokenize
from sandbox.virtual_engine import EnginePod
from sandbox.virtual_pods import PodState, VirtualPod
from tpu_migration.bench.completions import Greedy
from tpu_migration.bench.parity import compared, render
from tpu_migration.bench.questions import questions
from tpu_migration.domain.gate.parity import HONOURED, FeatureParity, Parity

if TYPE_CHECKING:
    from sandbox.world import World

_SECONDS = 10.0
_MODEL = "google/gemma-3-27b-it"


class ParityPod(VirtualPod):
    """One comparison of both arms' answers."""

    def __init__(self, world: World, obj: dict[str, Any], node_labels: dict[str, str], address: str) -> None:
        super().__init__(world, obj, node_labels, address)
        asked = dict(each.removeprefix("--").partition("=")[::2] for each in self.container.get("args") or [])
        self._prompts = questions(int(asked["prompts"]), int(asked["seed"]))
        self._tokens, self._top = int(asked["tokens"]), int(asked["top"])
        self._candidate = asked["candidate-url"].removeprefix("http://").rpartition(":")[0]

    def state(self, now: float) -> PodState:
        if now - self.started >= self.boot_s + _SECONDS / self.world.speed:
            return PodState(False, "Failed" if self._engine() is None else "Succeeded")
        return super().state(now)

    def _engine(self) -> EnginePod | None:
        pod = self.world.pod_at(self._candidate)
        return pod if isinstance(pod, EnginePod) and pod.computes() else None

    def log(self) -> list[str]:
        engine = self._engine()
        if engine is None:
            return ["parity: no answer from the candidate"]
        gpu, tpu = LanguageModel(_MODEL, "gpu"), LanguageModel(_MODEL, "tpu")
        tpu.wrong = engine.fault("wrong-answers") is not None
        prompts = []
        for index, prompt in enumerate(map(tokenize, self._prompts)):
            theirs = self._greedy(gpu, prompt)
            everything = [*prompt, *theirs.tokens]
            seen = {i: self._at(tpu, everything, len(prompt) + i) for i in range(len(theirs.tokens))}
            ours = min(self._tokens, tpu.natural_length(prompt, None))
            prompts.append(compared(str(index), theirs, theirs, seen, ours))
        lost = FeatureParity("seed", HONOURED, "refused", "JAX does not support per-request seed.")
        return render(Parity(tuple(prompts), features=(lost,))).splitlines()

    def _greedy(self, model: LanguageModel, prompt: list[int]) -> Greedy:
        count = min(self._tokens, model.natural_length(prompt, None))
        tokens = model.generate(prompt[-2], prompt[-1], len(prompt), count, None)
        everything = [*prompt, *tokens]
        tops = tuple(self._at(model, everything, len(prompt) + i) for i in range(count))
        return Greedy(tuple(tokens), tops, "")

    def _at(self, model: LanguageModel, everything: list[int], position: int) -> dict[int, float]:
        return dict(model.top(everything[position - 2], everything[position - 1], position)[: self._top])
