"""Replay the recordings of a real kube-apiserver on the embedded one, over HTTP, and compare the answers."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from yarl import URL

from sandbox.api import Api
from sandbox.api.http import Server, serve
from sandbox.api.messages import Object
from sandbox.api.routes import parse
from sandbox.api.store import Change
from sandbox.api.times import seconds
from sandbox.clock import VirtualClock
from sandbox.controllers import Manager
from sandbox.controllers.manager import CONTROLLERS
from sandbox.controllers.scheduler import Scheduler

RECORDINGS = Path(__file__).resolve().parents[3] / "shared" / "recordings" / "kubernetes-1.36"
CRDS = RECORDINGS.parents[1] / "crds"
RECORDED_AT = "2026-11-22T01:03:55Z"
# All scenes come from one cluster, in this order (their resourceVersions tell); files not named here come last.
ORDER = ("namespace", "apply", "invalid", "optimistic-lock", "scale", "httproute", "lease", "forbidden", "pending-pod")
ORDER += ("delete", "watch")

# What must differ from run to run: drawn at random, or hashed from Go's own memory layout. Ours has to stand in the
# same places (see Twins); everything else must be equal. A version may also stand in an object that a message quotes.
_DRAWN = re.compile(
    r"(?P<uid>[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12})"
    r"|(?:vllm-tpu-|pod-template-hash\":\")(?P<hash>[0-9a-z]{7,10}(?:-[0-9a-z]{5})?)\b"
    r"|resourceVersion\W+(?P<version>\d+)"
)


def _drawn(text: str) -> list[tuple[str, str]]:
    return [(found.lastgroup or "", found[found.lastgroup or ""]) for found in _DRAWN.finditer(text)]


def _redraw(text: str, twin: Callable[[str], str]) -> str:
    def swap(found: re.Match[str]) -> str:
        token = found[found.lastgroup or ""]
        return found[0].removesuffix(token) + twin(token)

    return _DRAWN.sub(swap, text)


@dataclass(frozen=True)
class Exchange:
    """One recorded request with its answer; `answer` is its text."""

    file: str
    title: str
    method: str
    path: str
    headers: dict[str, str] = field(hash=False)
    sent: str
    status: int
    answer_headers: str
    answer: str

    def __str__(self) -> str:
        return f"{self.file}: {self.title}"


def read(file: Path) -> list[Exchange]:
    """Read the exchanges of one file of recordings."""
    exchanges = []
    for part in re.split(r"^## ", file.read_text(), flags=re.MULTILINE)[1:]:
        title, *lines = part.splitlines()
        request, *sent = [line[2:] for line in lines if line.startswith("> ")]
        status, *got = [line[2:] for line in lines if line.startswith("< ")]
        method, path = request.split(" ", 1)
        headers = dict(line.split(": ", 1) for line in sent if re.match(r"^[A-Z][\w-]+: ", line))
        code, _, answer_headers = status.partition(" ")
        body = "\n".join(sent[len(headers) :])
        answer = "\n".join(line for line in got if not line.startswith("(the "))
        exchanges.append(Exchange(file.stem, title, method, path, headers, body, int(code), answer_headers, answer))
    return exchanges


def all_exchanges() -> list[Exchange]:
    """Read every recording there is, in the order in which the recorded cluster answered."""
    rank = {name: i for i, name in enumerate(ORDER)}
    files = sorted(RECORDINGS.glob("*"), key=lambda file: (rank.get(file.stem, len(rank)), file.name))
    return [exchange for file in files for exchange in read(file)]


class Twins:
    """Which of our ids and versions stands for which recorded one."""

    def __init__(self) -> None:
        self.ours: dict[str, str] = {}
        self._theirs: dict[str, str] = {}
        self._versions: dict[str, list[tuple[int, int]]] = {}

    def translate(self, text: str) -> str:
        """Put our ids and versions in the place of the recorded ones."""
        return _redraw(text, lambda token: self.ours.get(token, token))

    def pair(self, recorded: Any, ours: Any) -> None:
        """Hold what is drawn in two answers that are else equal to its recorded places and relations."""
        for (kind, theirs), (same, mine) in zip(_drawn(_canonical(recorded)), _drawn(_canonical(ours)), strict=True):
            assert kind == same
            if kind != "version":
                assert self.ours.setdefault(theirs, mine) == mine, theirs
                assert self._theirs.setdefault(mine, theirs) == theirs, mine
        for one, other in zip(_objects(recorded), _objects(ours), strict=True):
            self._follow(one, other)

    def _follow(self, recorded: Object, ours: Object) -> None:
        """Hold an object's versions to their recorded relation: the same again, or newer."""
        theirs, mine = recorded.get("resourceVersion"), ours.get("resourceVersion")
        if theirs is None:
            return
        self.ours[theirs] = mine
        seen = self._versions.setdefault(recorded.get("uid", ""), [])
        for before_theirs, before_mine in seen:
            assert _sign(int(theirs) - before_theirs) == _sign(int(mine) - before_mine), (recorded, ours)
        seen.append((int(theirs), int(mine)))


def _sign(number: int) -> int:
    return (number > 0) - (number < 0)


def blanked(value: Any) -> Any:
    """Return an answer with nothing in the place of what is drawn."""
    return json.loads(_redraw(_canonical(value), lambda _: "…"))


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def _objects(value: Any) -> list[Object]:
    """Return the metadata of each object in an answer: itself, then its items."""
    if not isinstance(value, dict) or "metadata" not in value:
        return []
    return [value["metadata"], *(each for item in value.get("items", ()) for each in _objects(item))]


def settled(_: Object) -> bool:
    """Let the controllers finish."""
    return False


def at_once(_: Object) -> bool:
    """Give the controllers no turn."""
    return True


# Where the recorder caught the controllers before these requests: right after they had written this of the Deployment.
CAUGHT: dict[str, Callable[[Object], bool]] = {
    "apply: apply the same again (200, resourceVersion unchanged)": lambda deployment: any(
        condition["type"] == "Available" for condition in deployment["status"].get("conditions", ())
    ),
    "apply: another manager applies a field that is owned: 409 Conflict": lambda made: _revision(made) == "2",
    "apply: the same with force=true (200)": lambda made: _revision(made) == "2",
    "optimistic-lock: merge patch that names a stale resourceVersion: 409": at_once,
    "scale: get": at_once,
}


def _revision(deployment: Object) -> str:
    return str(deployment["metadata"].get("annotations", {}).get("deployment.kubernetes.io/revision", ""))


# Who sent what the recordings show without its credentials.
TOKENS = {
    "forbidden: a service account without rights: 403": "nobody",
    "forbidden: what may I do: SelfSubjectAccessReview": "nobody",
    "forbidden: a wrong token: 401": "wrong",
}
DEFINITIONS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
USERS = {"admin": "admin", "nobody": "system:serviceaccount:inference:nobody"}


class Caught(Exception):
    """The controllers have written what they are to be stopped at."""


class RecordedCluster:
    """The embedded API server over HTTP, with controllers that get their turn between two requests."""

    def __init__(self) -> None:
        # Every time in the recordings but the watch's is this one: so it is here, and times compare as they are.
        self.clock = VirtualClock(seconds(RECORDED_AT))
        self.api = Api(self.clock)
        self.twins = Twins()
        self.replayed = 0
        self._server: Server | None = None
        self._session: aiohttp.ClientSession | None = None

    async def start(self, definitions: bool = False) -> None:
        """Begin to serve, with the recorded cluster's CustomResourceDefinitions or without any."""
        self._server = await serve(self.api, "127.0.0.1", 0, None, None, lambda token: USERS.get(token or ""))
        self._session = aiohttp.ClientSession(f"http://127.0.0.1:{self._server.port}")
        for file in sorted(CRDS.glob("*.yaml")) if definitions else ():
            created = await self.send("POST", DEFINITIONS, file.read_text(), {"Content-Type": "application/yaml"})
            assert created[0] == 201, created

    async def close(self) -> None:
        """Stop serving."""
        if self._session and self._server:
            await self._session.close()
            await self._server.close()

    def turn(self, until: Callable[[Object], bool] = settled) -> None:
        """Run the controllers until nothing is left to do, or stop them dead once the Deployment is as `until` says.

        The next turn starts them anew. The scheduler gets none: the recorded one had not looked at any pod.
        """

        def look(change: Change) -> None:
            if change.resource == "deployments" and until(change.entry.obj):
                raise Caught

        if any(until(entry.obj) for entry in self.api.store.list("deployments")):
            return
        manager = Manager(self.api, self.clock, controllers=[c for c in CONTROLLERS if c is not Scheduler])
        stop = self.api.store.listen(look)
        try:
            manager.settle()
            assert until is settled, "the controllers never wrote what they were to be stopped at"
        except Caught:
            pass
        finally:
            stop()
            manager.close()

    async def send(
        self, method: str, path: str, body: str = "", headers: dict[str, str] | None = None, token: str = "admin"
    ) -> tuple[int, str, str]:
        """Send one request; return status, headers as the recordings write them, and body."""
        assert self._session is not None
        sent = {"User-Agent": "recorder/1.0", **(headers or {}), "Authorization": f"Bearer {token}"}
        data = body.encode() or None
        async with self._session.request(method, URL(path, encoded=True), data=data, headers=sent) as answer:
            shown = [f"{name}: {answer.headers.get(name)}" for name in ("Content-Type", "Transfer-Encoding")]
            return answer.status, "  ".join(shown), await answer.text()

    async def replay(self, exchange: Exchange) -> tuple[int, str, str]:
        """Send a recorded request, with our ids and versions in the place of the recorded ones."""
        self._meet(exchange)
        token = TOKENS.get(str(exchange), "admin")
        sent = self.twins.translate(_compact(exchange.sent))
        return await self.send(exchange.method, exchange.path, sent, exchange.headers, token)

    def _meet(self, exchange: Exchange) -> None:
        """Take a version that no recorded answer has shown for the current one of its object."""
        versions = [token for kind, token in _drawn(_compact(exchange.sent)) if kind == "version"]
        route = parse(exchange.path.partition("?")[0])
        for version in versions:
            if version not in self.twins.ours and route is not None:
                current = self.api.entry(route).obj["metadata"]
                self.twins.ours[version] = current["resourceVersion"]


def _compact(text: str) -> str:
    return json.dumps(json.loads(text), separators=(",", ":"), ensure_ascii=False) if text else ""


def comparable(answer: Any) -> Any:
    """Return an answer without what differs by the design of the two clusters."""
    if isinstance(answer, list):
        # The recorded cluster's admission mounts an API token into each pod; here a pod's process gets a kubeconfig.
        return [comparable(each) for each in answer if not _is_token_volume(each)]
    if isinstance(answer, dict):
        kept = {name: comparable(each) for name, each in answer.items()}
        for name in ("volumes", "volumeMounts"):
            if answer.get(name) and not kept[name]:
                del kept[name]
        return kept
    if isinstance(answer, str):
        # Its controller manager wrote under a name of its own.
        return "kube-controller-manager" if answer == "kcp-lab" else _reordered(answer)
    return answer


def _is_token_volume(value: Any) -> bool:
    return isinstance(value, dict) and str(value.get("name", "")).startswith("kube-api-access-")


def _reordered(message: str) -> str:
    """Sort the fields of an object that a refusal quotes: Go writes them in the order of its structs."""
    found = re.match(r'(.*Invalid value: )("\{.*\}")(: .*)', message)
    if found is None:
        return message
    return found[1] + json.dumps(_canonical(json.loads(json.loads(found[2])))) + found[3]
