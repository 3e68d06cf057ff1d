"""Talk to a Kubernetes API, the embedded one or any other: what the sandbox's own parts use."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Any
from urllib.parse import urlencode

import aiohttp

from sandbox.api.resources import BY_PLURAL
from sandbox.kubeconfig import Access

Object = dict[str, Any]
MERGE, APPLY = "application/merge-patch+json", "application/apply-patch+yaml"
_MAX_PAUSE_S = 5.0


class KubeError(Exception):
    """A refusal of the API server: `code` is the HTTP status, `reason` the Status' reason."""

    def __init__(self, code: int, reason: str, message: str) -> None:
        super().__init__(f"{code} {reason}: {message}")
        self.code = code
        self.reason = reason


class KubeClient:
    """An asynchronous client by plural names; use it as a context manager, or close() it."""

    def __init__(self, access: Access, timeout_s: float = 10.0) -> None:
        self._access = access
        self._base = access.url.rstrip("/")
        self._headers = {"User-Agent": "sandbox"}
        if access.token:
            self._headers["Authorization"] = f"Bearer {access.token}"
        self._timeout = aiohttp.ClientTimeout(total=timeout_s)
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> KubeClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        if self._session:
            await self._session.close()
            self._session = None

    async def list(self, resource: str, namespace: str | None = None, labels: str | None = None) -> list[Object]:
        """Return the objects of a resource, in one namespace or in all."""
        return (await self._list(resource, namespace, labels))[0]

    async def get(self, resource: str, namespace: str | None, name: str) -> Object | None:
        """Return an object, or None where there is none."""
        return await self._or_none("GET", self.path(resource, namespace, name))

    async def create(self, resource: str, namespace: str | None, obj: Object) -> Object:
        """Create an object; KubeError 409 if it is there."""
        return await self.call("POST", self.path(resource, namespace), obj)

    async def update(
        self, resource: str, namespace: str | None, name: str, obj: Object, subresource: str | None = None
    ) -> Object:
        """Replace an object; KubeError 409 if its resourceVersion is stale."""
        return await self.call("PUT", self.path(resource, namespace, name, subresource), obj)

    async def patch(
        self,
        resource: str,
        namespace: str | None,
        name: str,
        body: Any,
        content_type: str = MERGE,
        subresource: str | None = None,
        manager: str = "sandbox",
    ) -> Object:
        """Patch an object; an apply takes fields from other managers."""
        query = {"fieldManager": manager}
        if content_type == APPLY:
            query["force"] = "true"
        path = self.path(resource, namespace, name, subresource) + _query(query)
        return await self.call("PATCH", path, body, content_type)

    async def delete(
        self,
        resource: str,
        namespace: str | None,
        name: str,
        grace_period_s: int | None = None,
        propagation: str | None = None,
        uid: str | None = None,
    ) -> Object | None:
        """Delete an object; None where there was none. `uid` spares a successor of the same name."""
        options: Object = {"kind": "DeleteOptions", "apiVersion": "v1"}
        if grace_period_s is not None:
            options["gracePeriodSeconds"] = grace_period_s
        if propagation:
            options["propagationPolicy"] = propagation
        if uid:
            options["preconditions"] = {"uid": uid}
        return await self._or_none("DELETE", self.path(resource, namespace, name), options)

    async def watch(
        self, resource: str, namespace: str | None = None, labels: str | None = None
    ) -> AsyncIterator[tuple[str, Object | None]]:
        """Yield (event type, object) for ever, over lost connections and expired versions.

        First ADDED for each object there is, then ("SYNC", None), then what changes. After a relist
        what vanished meanwhile comes as DELETED with its last known state.
        """
        known: dict[str, Object] = {}
        version = ""
        synced = False
        pause = 0.0
        while True:
            try:
                if not version:
                    items, version = await self._list(resource, namespace, labels)
                    for event in _relisted(known, items):
                        yield event
                    if not synced:
                        synced = True
                        yield "SYNC", None
                quiet = True
                async for kind, obj in self._events(resource, namespace, labels, version):
                    pause, quiet = 0.0, False
                    if kind == "ERROR":
                        version = ""
                        break
                    version = obj["metadata"]["resourceVersion"]
                    if kind == "BOOKMARK":
                        continue
                    if kind == "DELETED":
                        known.pop(_key(obj), None)
                    else:
                        known[_key(obj)] = obj
                    yield kind, obj
                # A server that ends streams at once must not be asked in a busy loop.
                pause = max(pause, 0.1) if quiet else pause
            except KubeError as error:
                if error.code in (401, 403, 404):
                    raise
                version = ""
                pause = min(_MAX_PAUSE_S, pause * 2 or 0.1)
            except (aiohttp.ClientError, TimeoutError, OSError, ValueError):
                pause = min(_MAX_PAUSE_S, pause * 2 or 0.1)
            await asyncio.sleep(pause)

    async def request_token(self, namespace: str, account: str, lifetime_s: int) -> str:
        """Return a token of a service account (TokenRequest); KubeError 404 if there is no such account."""
        body = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": {"expirationSeconds": lifetime_s},
        }
        made = await self.call("POST", self.path("serviceaccounts", namespace, account, "token"), body)
        return str(made["status"]["token"])

    async def call(self, method: str, path: str, body: Any = None, content_type: str = "application/json") -> Any:
        """Make one call and return its JSON; KubeError if it is refused."""
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": content_type} if data is not None else {}
        async with self._open().request(
            method, self._base + path, data=data, headers=headers, timeout=self._timeout
        ) as answer:
            text = await answer.text()
            if answer.status >= 400:
                raise _refusal(answer.status, text)
            return json.loads(text)

    # Underneath

    @staticmethod
    def path(resource: str, namespace: str | None, name: str | None = None, subresource: str | None = None) -> str:
        """Return the URL path of a collection, an object or a subresource."""
        kind = BY_PLURAL[resource]
        path = f"/apis/{kind.group}/{kind.version}" if kind.group else f"/api/{kind.version}"
        if kind.namespaced and namespace:
            path += f"/namespaces/{namespace}"
        return "/".join([path, resource, *filter(None, (name, subresource))])

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            tls = self._access.tls() if self._base.startswith("https:") else True
            connector = aiohttp.TCPConnector(ssl=tls, limit=0)
            self._session = aiohttp.ClientSession(connector=connector, headers=self._headers)
        return self._session

    async def _or_none(self, method: str, path: str, body: Any = None) -> Any:
        try:
            return await self.call(method, path, body)
        except KubeError as error:
            if error.code == 404:
                return None
            raise

    async def _list(self, resource: str, namespace: str | None, labels: str | None) -> tuple[list[Object], str]:
        query = _query({"labelSelector": labels} if labels else {})
        answer = await self.call("GET", self.path(resource, namespace) + query)
        kind = BY_PLURAL[resource]
        items = answer["items"]
        for item in items:
            item.setdefault("kind", kind.kind)
            item.setdefault("apiVersion", kind.api_version)
        return items, answer["metadata"]["resourceVersion"]

    async def _events(
        self, resource: str, namespace: str | None, labels: str | None, version: str
    ) -> AsyncIterator[tuple[str, Object]]:
        query = {"watch": "1", "resourceVersion": version, "allowWatchBookmarks": "true"}
        if labels:
            query["labelSelector"] = labels
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=self._timeout.total, sock_read=180)
        url = self._base + self.path(resource, namespace) + _query(query)
        async with self._open().get(url, timeout=timeout) as answer:
            if answer.status >= 400:
                raise _refusal(answer.status, await answer.text())
            rest = b""
            async for chunk in answer.content.iter_any():
                *lines, rest = (rest + chunk).split(b"\n")
                for line in filter(None, lines):
                    event = json.loads(line)
                    yield event["type"], event["object"]


def _query(values: dict[str, str]) -> str:
    return f"?{urlencode(values)}" if values else ""


def _refusal(status: int, text: str) -> KubeError:
    try:
        body = json.loads(text)
        return KubeError(status, body.get("reason", ""), body.get("message", text))
    except ValueError:
        return KubeError(status, "", text.strip())


def _key(obj: Object) -> str:
    return f"{obj['metadata'].get('namespace', '')}/{obj['metadata']['name']}"


def _relisted(known: dict[str, Object], items: list[Object]) -> list[tuple[str, Object]]:
    """Bring `known` up to a fresh list, and return the events in between."""
    events: list[tuple[str, Object]] = []
    listed = {_key(item): item for item in items}
    for key in [key for key in known if key not in listed]:
        events.append(("DELETED", known.pop(key)))
    for key, item in listed.items():
        old = known.get(key)
        if old is None or old["metadata"]["uid"] != item["metadata"]["uid"]:
            events.append(("ADDED", item))
        elif old["metadata"]["resourceVersion"] != item["metadata"]["resourceVersion"]:
            events.append(("MODIFIED", item))
        known[key] = item
    return events
