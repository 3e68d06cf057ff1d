"""Keep what the canaries of a workload saw in the cluster: it outlives Airflow's database, and a migration's record."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace

import msgspec

from tpu_migration.clients.kubernetes import CONFIG_MAPS, Kubernetes
from tpu_migration.errors import ConflictError, PermanentError, TransientError
from tpu_migration.names import MANAGED_BY, WORKLOAD_LABEL, history_name

SCHEMA_VERSION = 1
_MOST = 200  # seven weeks at four a day
_MAX_BYTES = 256 * 1024
_CAS_TRIES = 8


@dataclass(frozen=True)
class Figure:
    """One measured value and the limit that it was held to, in the check's own unit; None: not known."""

    value: float | None
    limit: float | None


@dataclass(frozen=True)
class Identity:
    """What served: compared from canary to canary, for a tag can be moved and a file edited."""

    template: str  # digest of the pod template
    images: tuple[str, ...]  # with their digests, as the kubelets report them
    version: str  # vLLM's own word
    models: tuple[str, ...]


@dataclass(frozen=True)
class Canary:
    """One look at a workload. Unix seconds; `run` is the canary's, `proof` the run whose verdict it was held to."""

    at: float
    run: str
    proof: str
    outcome: str  # pass, warn, fail, undecided
    sentence: str
    findings: tuple[str, ...]
    figures: Mapping[str, Figure]
    identity: Identity | None
    usd_per_hour: float | None
    usd_per_million: float | None  # output tokens, at the rate that was proven


@dataclass(frozen=True)
class Question:
    """Whether to go back: when and by which canary people were asked, and their answer, None until there is one.

    `back` is the run of `gpu_fallback` that waits for it. Unix seconds.
    """

    at: float
    run: str
    back: str = ""
    approved: bool | None = None
    by: str = ""
    reason: str = ""
    answered: float | None = None

    @property
    def told(self) -> str:
        """Say the answer as a person reads it."""
        if self.approved is None:
            return "not answered yet"
        return f"{'approved' if self.approved else 'rejected'} by {self.by}{f': {self.reason}' if self.reason else ''}"


@dataclass(frozen=True)
class History:
    """All canaries of a workload, the oldest first, and what its engines had counted at the last one."""

    workload: str
    canaries: tuple[Canary, ...] = ()
    engines: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    asked: Question | None = None
    schema_version: int = SCHEMA_VERSION

    def of(self, run: str) -> Canary | None:
        """Return what a run concluded, None if it has not."""
        return next((each for each in self.canaries if each.run == run), None)

    def since(self, proof: str) -> tuple[Canary, ...]:
        """Return the canaries that were held to one proof."""
        return tuple(each for each in self.canaries if each.proof == proof)

    def asking(self, back: str, now: float) -> History:
        """Return the history with the question of a run of `gpu_fallback`, unless it is there."""
        if self.asked is not None and self.asked.back == back:
            return self
        return replace(self, asked=Question(now, "", back))

    def answered(self, back: str, *, approved: bool, by: str, reason: str, now: float) -> History:
        """Return the history with people's answer to that run; PermanentError if there is one: the first counts."""
        asked = self.asked
        if asked is None or asked.back != back:
            raise PermanentError(f"run {back} of gpu_fallback asks nobody about {self.workload} any more")
        if asked.approved is not None:
            raise PermanentError(f"the way back of {self.workload} is {asked.told} already")
        return replace(self, asked=replace(asked, approved=approved, by=by, reason=reason, answered=now))

    def with_canary(self, canary: Canary, engines: Mapping[str, Mapping[str, float]]) -> History:
        """Return the history with one canary more; the oldest go where there are too many."""
        return replace(self, canaries=(*self.canaries, canary)[-_MOST:], engines=engines)


class Histories:
    """Read and write the history of one workload, by compare-and-swap."""

    def __init__(self, kube: Kubernetes, namespace: str, workload: str) -> None:
        self._kube = kube
        self._namespace = namespace
        self._workload = workload
        self.name = history_name(workload)

    def read(self) -> History:
        """Return the history, an empty one where there is none yet; PermanentError for one that cannot be read."""
        return self._read()[0]

    def update(self, change: Callable[[History], History]) -> History:
        """Change the history and return it as written."""
        for _ in range(_CAS_TRIES):
            history, version = self._read()
            changed = change(history)
            if changed == history:
                return history
            metadata = {
                "name": self.name,
                "namespace": self._namespace,
                # No run's label: no run's clean-up takes it away.
                "labels": {**MANAGED_BY, WORKLOAD_LABEL: self._workload},
            }
            body = {
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": metadata,
                "data": {"history.json": _text(changed)},
            }
            try:
                if version:
                    self._kube.replace({**body, "metadata": {**metadata, "resourceVersion": version}})
                else:
                    self._kube.create(body)
            except ConflictError:
                continue
            return changed
        raise TransientError(f"{self.name} is written by others all the time: lost {_CAS_TRIES} times")

    def _read(self) -> tuple[History, str]:
        found = self._kube.get(CONFIG_MAPS, self.name, self._namespace)
        if found is None:
            return History(self._workload), ""
        try:
            return _parse((found.get("data") or {}).get("history.json", "")), found["metadata"]["resourceVersion"]
        except (msgspec.MsgspecError, ValueError) as error:
            raise PermanentError(
                f"ConfigMap {self.name} in namespace {self._namespace} cannot be read ({error}): use the version of "
                "tpu-migration that wrote it, or delete it: the canaries then begin a history anew"
            ) from error


def _parse(text: str) -> History:
    data = msgspec.json.decode(text)
    if not isinstance(data, dict):
        raise ValueError("it is no object")
    if (version := data.get("schema_version")) != SCHEMA_VERSION:
        raise ValueError(f"it has schema version {version}, this program knows {SCHEMA_VERSION}")
    if unknown := set(data) - {f.name for f in fields(History)}:
        raise ValueError(f"it has unknown fields {sorted(unknown)}")
    return msgspec.convert(data, History)


def _text(history: History) -> str:
    """Write it, without the oldest canaries where all together would be too large for an object."""
    while len(text := msgspec.json.encode(history, order="sorted")) > _MAX_BYTES and len(history.canaries) > 1:
        history = replace(history, canaries=history.canaries[len(history.canaries) // 10 + 1 :])
    return text.decode()
