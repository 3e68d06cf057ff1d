"""Be the comparison Jobs of a virtual world: both arms answer from the sandbox's own language model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sandbox.engine.language import LanguageModel, tokenize
from sandbox.virtual_engine import EnginePod
from sandbox.virtual_pods import PodState, VirtualPod
from tpu_migration.bench.answers import kept, parse
from tpu_migration.bench.completions import Greedy
from tpu_migration.bench.parity import compared, render
from tpu_migration.bench.questions import questions
from tpu_migration.bench.sealed import ResultCorrupt
from tpu_migration.domain.gate.parity import HONOURED, Answer, FeatureParity, Parity

if TYPE_CHECKING:
    from sandbox.world import World

_SECONDS = 10.0
_STRIDE = 8
_MODEL = "google/gemma-3-27b-it"


class ParityPod(VirtualPod):
    """One comparison of both arms' answers."""

    def __init__(self, world: World, obj: dict[str, Any], node_labels: dict[str, str], address: str) -> None:
        super().__init__(world, obj, node_labels, address)
        asked = dict(each.removeprefix("--").partition("=")[::2] for each in self.container.get("args") or [])
        self._tokens, self._top = int(asked["tokens"]), int(asked["top"])
        self._beside_users = "answers-only" in asked
        self._problem = ""
        self._known = self._mounted(obj) if "answers" in asked else None
        self._prompts = questions(int(asked["prompts"]), int(asked.get("seed", 1)))
        self._candidate = asked["candidate-url"].removeprefix("http://").rpartition(":")[0]

    def state(self, now: float) -> PodState:
        if now - self.started >= self.boot_s + _SECONDS / self.world.speed:
            return PodState(False, "Failed" if self._problem or self._engine() is None else "Succeeded")
        return super().state(now)

    def _engine(self) -> EnginePod | None:
        pod = self.world.pod_at(self._candidate)
        return pod if isinstance(pod, EnginePod) and pod.computes() else None

    def log(self) -> list[str]:
        engine = self._engine()
        if engine is None:
            return ["parity: no answer from the candidate"]
        if self._problem:
            return [f"parity: {self._problem}"]
        gpu, tpu = LanguageModel(_MODEL, "gpu"), LanguageModel(_MODEL, "tpu")
        tpu.wrong = engine.fault("wrong-answers") is not None
        if self._known is not None:
            asked = [each.prompt for each in self._known]
            answers = [Greedy(each.tokens, each.tops, "") for each in self._known]
        else:
            asked, answers = self._prompts, [self._greedy(gpu, tokenize(each)) for each in self._prompts]
        prompts = []
        for index, (text, theirs) in enumerate(zip(asked, answers, strict=True)):
            prompt = tokenize(text)
            everything = [*prompt, *theirs.tokens]
            positions = range(0, len(theirs.tokens), _STRIDE if self._beside_users else 1)
            seen = {i: self._at(tpu, everything, len(prompt) + i) for i in positions}
            ours = min(self._tokens, tpu.natural_length(prompt, None))
            prompts.append(compared(str(index), theirs, theirs, seen, ours))
        if self._beside_users:
            return render(Parity(tuple(prompts))).splitlines()
        lost = FeatureParity("seed", HONOURED, "refused", "JAX does not support per-request seed.")
        return render(Parity(tuple(prompts), features=(lost,), answers=kept(asked, answers, prompts))).splitlines()

    def _mounted(self, obj: dict[str, Any]) -> tuple[Answer, ...]:
        """Read the file that the Job mounts."""
        (volume,) = obj["spec"]["volumes"]
        found = self.world.client.get("configmaps", obj["metadata"]["namespace"], volume["configMap"]["name"])
        try:
            return parse(found["data"]["answers.jsonl"])
        except ResultCorrupt as error:
            self._problem = str(error)
            return ()

    def _greedy(self, model: LanguageModel, prompt: list[int]) -> Greedy:
        count = min(self._tokens, model.natural_length(prompt, None))
        tokens = model.generate(prompt[-2], prompt[-1], len(prompt), count, None)
        everything = [*prompt, *tokens]
        tops = tuple(self._at(model, everything, len(prompt) + i) for i in range(count))
        return Greedy(tuple(tokens), tops, "")

    def _at(self, model: LanguageModel, everything: list[int], position: int) -> dict[int, float]:
        return dict(model.top(everything[position - 2], everything[position - 1], position)[: self._top])
