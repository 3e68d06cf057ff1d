"""Hold the embedded API server to what a real kube-apiserver 1.36 answered, scene by scene."""

from __future__ import annotations

import copy
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest

from sandbox.api import Api, Request, Response
from sandbox.clock import VirtualClock
from sandbox.controllers import Manager

RECORDINGS = Path(__file__).resolve().parents[3] / "shared" / "recordings" / "kubernetes-1.36"
pytestmark = pytest.mark.skipif(not RECORDINGS.is_dir(), reason="the recordings of ../shared are not on this machine")
SCENES = ("namespace", "apply", "invalid", "optimistic-lock", "scale", "httproute", "lease", "pending-pod")
OWN_MANAGER = {"kube-controller-manager": "kcp-lab"}
# What the recorded cluster added to pods by an admission plugin that has no use here: a token volume.
TOKEN_VOLUME = "kube-api-access-"


@dataclass
class Exchange:
    """One recorded request with its answer."""

    file: str
    title: str
    method: str
    path: str
    headers: dict[str, str]
    sent: Any
    status: int
    answer: Any
    lines: list[str] = field(default_factory=list)


def read(name: str) -> list[Exchange]:
    """Read the exchanges of one file of recordings."""
    text = (RECORDINGS / f"{name}.txt").read_text()
    exchanges = []
    for part in re.split(r"^## ", text, flags=re.MULTILINE)[1:]:
        title, *lines = part.splitlines()
        sent = [line[2:] for line in lines if line.startswith("> ")]
        got = [line[2:] for line in lines if line.startswith("< ")]
        method, path = sent[0].split(" ", 1)
        headers = dict(line.split(": ", 1) for line in sent[1:] if re.match(r"^[A-Z][\w-]+: ", line))
        body = "\n".join(line for line in sent[1 + len(headers) :])
        text = "\n".join(got[1:])
        exchanges.append(
            Exchange(
                name,
                title,
                method,
                path,
                headers,
                json.loads(body) if body else None,
                int(got[0].split()[0]),
                json.loads(text) if text.startswith("{") and name != "watch" else text,
                got[1:],
            )
        )
    return exchanges


class World:
    """Our API with its controllers, and what stands here for the recorded ids and versions."""

    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.api = Api(self.clock)
        self.manager = Manager(self.api, self.clock)
        self.ours: dict[str, str] = {}

    def send(self, exchange: Exchange, user: str = "admin") -> Response:
        """Replay one request, with our ids in the place of the recorded ones."""
        url = urlsplit(exchange.path)
        headers = {name.lower(): value for name, value in exchange.headers.items()}
        body = b"" if exchange.sent is None else json.dumps(self._translated(exchange.sent)).encode()
        request = Request(exchange.method, url.path, dict(parse_qsl(url.query)), headers, body, user)
        # The recording client called itself "recorder"; appliers name themselves in the query.
        request.headers["user-agent"] = "recorder/1.0"
        self._meet(exchange, request)
        response = self.api.handle(request)
        if isinstance(exchange.answer, dict):
            self._learn(exchange.answer, response.json())
        return response

    def _meet(self, exchange: Exchange, request: Request) -> None:
        """Take a version that is new to us for the current one of the object."""
        meta = (exchange.sent or {}).get("metadata", {}) if isinstance(exchange.sent, dict) else {}
        version = meta.get("resourceVersion")
        if not version or version in self.ours:
            return
        current = self.api.handle(Request("GET", request.path)).json()
        self.ours[version] = current["metadata"]["resourceVersion"]
        sent = self._translated(json.loads(request.body))
        request.body = json.dumps(sent).encode()

    def _translated(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {name: self._translated(each) for name, each in value.items()}
        if isinstance(value, list):
            return [self._translated(each) for each in value]
        return self.ours.get(value, value) if isinstance(value, str) else value

    def _learn(self, recorded: dict[str, Any], ours: dict[str, Any]) -> None:
        for name in ("uid", "resourceVersion"):
            theirs = recorded.get("metadata", {}).get(name)
            if theirs and ours.get("metadata", {}).get(name):
                self.ours[theirs] = ours["metadata"][name]


def comparable(value: Any, name: str = "") -> Any:
    """Return an answer without what differs from run to run: ids, versions, times, status."""
    if isinstance(value, dict):
        hidden = {"resourceVersion", "time", "creationTimestamp", "lastUpdateTime", "lastTransitionTime"}
        return {_plain(key): comparable(each, key) for key, each in value.items() if key not in hidden and key != "uid"}
    if isinstance(value, list):
        return [comparable(each) for each in value if not _is_token_volume(each)]
    return _plain(value) if isinstance(value, str) and name != "renewTime" else value


def _plain(text: str) -> str:
    text = re.sub(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", "UID", text)
    text = re.sub(r"vllm-tpu-[0-9a-z]{8,10}(-[0-9a-z]{5})?", "vllm-tpu-HASH", text)
    text = re.sub(r"^[0-9a-z]{8,10}$", lambda m: "HASH" if re.search(r"\d", m[0]) else m[0], text)
    return OWN_MANAGER.get(text, text)


def _is_token_volume(value: Any) -> bool:
    return isinstance(value, dict) and str(value.get("name", "")).startswith(TOKEN_VOLUME)


def tidy(answer: dict[str, Any]) -> dict[str, Any]:
    """Drop a workload's status, and who wrote it: where controllers were at that moment is chance."""
    answer = copy.deepcopy(answer)
    if answer.get("kind") == "Deployment":
        answer.pop("status", None)
        answer["metadata"].pop("generation", None)
        entries = answer["metadata"].get("managedFields", [])
        answer["metadata"]["managedFields"] = [e for e in entries if "subresource" not in e]
    for item in answer.get("items", ()):
        item.pop("status", None)
        for container in item.get("spec", {}).get("containers", ()):
            if all(_is_token_volume(m) for m in container.get("volumeMounts", ())):
                container.pop("volumeMounts", None)
        if all(_is_token_volume(v) for v in item.get("spec", {}).get("volumes", ())):
            item.get("spec", {}).pop("volumes", None)
    return answer


@pytest.fixture(scope="module")
def world() -> World:
    """The one cluster that the scenes were recorded on, in their order."""
    return World()


EXCHANGES = [exchange for name in SCENES for exchange in read(name)] if RECORDINGS.is_dir() else []


@pytest.mark.parametrize("exchange", EXCHANGES, ids=lambda e: f"{e.file}: {e.title}")
def test_answers_as_the_real_server_did(world: World, exchange: Exchange) -> None:
    if exchange is next(e for e in EXCHANGES if e.file == "pending-pod"):
        # Not in the recordings: between the two scenes the Deployment was scaled from 0 to 1 again.
        scaled = Request("PATCH", "/apis/apps/v1/namespaces/inference/deployments/vllm-tpu/scale")
        scaled.headers["content-type"] = "application/merge-patch+json"
        scaled.body = b'{"spec":{"replicas":1}}'
        assert world.api.handle(scaled).status == 200
        world.manager.settle()
    response = world.send(exchange)
    assert response.status == exchange.status, response.body
    answer = response.json()
    if "without microseconds" in exchange.title:
        check_lease_refusal(answer, exchange.answer)
    elif exchange.path.endswith("events?fieldSelector=involvedObject.kind%3DPod"):
        # The recorded scheduler had not looked yet; ours has, and says so.
        assert {item["reason"] for item in answer["items"]} == {"FailedScheduling"}
    else:
        assert comparable(tidy(answer)) == comparable(tidy(exchange.answer))
    # The controllers get their turn between two requests, as they did.
    world.manager.settle()


def check_lease_refusal(answer: dict[str, Any], recorded: dict[str, Any]) -> None:
    """Compare a refusal that quotes the whole patched object, the order of whose fields is free."""
    tail = recorded["message"][recorded["message"].index(': parsing time "') :]
    assert answer["message"].startswith(' "" is invalid: patch: Invalid value: "{')
    assert answer["message"].endswith(tail)
    assert (answer["reason"], answer["code"]) == (recorded["reason"], recorded["code"])
    (cause,) = answer["details"]["causes"]
    (expected,) = recorded["details"]["causes"]
    assert (cause["reason"], cause["field"]) == (expected["reason"], expected["field"])
    assert cause["message"].endswith(tail)


def test_applying_the_same_again_leaves_the_resource_version_as_it_was() -> None:
    world = World()
    world.send(read("namespace")[0])
    create, again = read("apply")[:2]
    first = world.send(create).json()
    second = world.send(again).json()
    assert second["metadata"]["resourceVersion"] == first["metadata"]["resourceVersion"]


def test_a_rollout_in_flight_grows_in_proportion_when_the_size_is_forced_up() -> None:
    world = World()
    for exchange in [*read("namespace")[:1], *read("apply")]:
        world.send(exchange)
        world.manager.settle()
    recorded = read("optimistic-lock")[0].answer["status"]
    ours = world.api.handle(Request("GET", "/apis/apps/v1/namespaces/inference/deployments/vllm-tpu")).json()
    for count in ("replicas", "updatedReplicas", "unavailableReplicas", "terminatingReplicas"):
        assert ours["status"][count] == recorded[count], count


def test_an_unschedulable_deployment_reports_the_recorded_status() -> None:
    world = World()
    world.send(read("namespace")[0])
    world.send(read("apply")[0])
    world.manager.settle()
    recorded = read("pending-pod")[-1].answer["status"]
    ours = world.api.handle(Request("GET", "/apis/apps/v1/namespaces/inference/deployments/vllm-tpu")).json()
    for name, value in recorded.items():
        if name not in ("conditions", "observedGeneration"):
            assert ours["status"][name] == value, name
    available = next(c for c in recorded["conditions"] if c["type"] == "Available")
    assert comparable(available) in comparable(ours["status"]["conditions"])


def test_refuses_and_finds_nothing_as_recorded() -> None:
    world = World()
    for exchange in [read("namespace")[0], read("apply")[0]]:
        world.send(exchange)
    nobody = "system:serviceaccount:inference:nobody"
    for exchange in read("forbidden"):
        user = nobody if "rights" in exchange.title or "may I" in exchange.title else "admin"
        if "wrong token" in exchange.title:
            continue  # the HTTP server's: test_api_http.py
        response = world.send(exchange, user)
        assert response.status == exchange.status, exchange.title
        if isinstance(exchange.answer, dict):
            assert comparable(response.json()) == comparable(exchange.answer)
        else:
            assert response.body.decode().strip() == exchange.answer.strip()


def test_deletes_as_recorded() -> None:
    world = World()
    for exchange in [read("namespace")[0], read("apply")[0]]:
        world.send(exchange)
    world.manager.settle()
    for exchange in read("delete"):
        response = world.send(exchange)
        assert response.status == exchange.status, exchange.title
        assert comparable(response.json())["status"] == exchange.answer["status"]
        recorded = re.sub(r"record \([^)]*\)", "record (UID)", exchange.answer.get("message", ""))
        ours = re.sub(r"record \([^)]*\)", "record (UID)", response.json().get("message", ""))
        assert ours == recorded
        assert comparable(response.json().get("details")) == comparable(exchange.answer.get("details"))
    world.manager.settle()
    pods = world.api.handle(Request("GET", "/api/v1/namespaces/inference/pods")).json()
    assert pods["items"] == []


def test_a_watch_sees_what_the_recorded_watch_saw() -> None:
    world = World()
    world.send(read("namespace")[0])
    exchange = read("watch")[0]
    recorded = [json.loads(line) for line in exchange.lines if line.startswith("{")]
    url = urlsplit(exchange.path)
    query = {**dict(parse_qsl(url.query)), "resourceVersion": str(world.api.store.version)}
    watch = world.api.watch(Request("GET", url.path, query), lambda: None)
    rule = {"backendRefs": [{"name": "a", "port": 80, "weight": 1}]}
    route = {"metadata": {"name": "w"}, "spec": {"rules": [rule]}}
    world.api.handle(Request("POST", url.path, body=json.dumps(route).encode()))
    change = [{"op": "replace", "path": "/spec/rules/0/backendRefs/0/weight", "value": 2}]
    patch = Request("PATCH", f"{url.path}/w", body=json.dumps(change).encode())
    patch.headers["content-type"] = "application/json-patch+json"
    world.api.handle(patch)
    world.api.handle(Request("DELETE", f"{url.path}/w"))
    watch.bookmark()
    ours = [json.loads(line) for line in watch.pending]
    assert comparable(ours) == comparable(recorded)
    versions = [int(event["object"]["metadata"]["resourceVersion"]) for event in ours]
    theirs = [int(event["object"]["metadata"]["resourceVersion"]) for event in recorded]
    assert [v - versions[0] for v in versions] == [v - theirs[0] for v in theirs]


def test_a_watch_from_a_version_that_is_not_there_yet_stays_silent() -> None:
    world = World()
    world.send(read("namespace")[0])
    exchange = read("watch")[1]
    url = urlsplit(exchange.path)
    watch = world.api.watch(Request("GET", url.path, dict(parse_qsl(url.query))), lambda: None)
    world.api.handle(Request("POST", url.path, body=b'{"metadata":{"name":"w"},"spec":{}}'))
    assert not watch.pending
