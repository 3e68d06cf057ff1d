"""Answer Kubernetes API requests from a store in memory, without any I/O."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable

from sandbox.clock import Clock

from . import deletes, discovery, params, reviews, subresources, tables
from .definitions import Registry
from .kinds import Options
from .messages import (
    JSON,
    ApiError,
    Object,
    Request,
    Response,
    bad_request,
    dumps,
    forbidden,
    method_not_allowed,
    not_found,
)
from .patch import APPLY
from .rbac import Action, Authorizer
from .resources import BY_PLURAL, Resource
from .routes import Route, parse
from .selectors import fields_match, labels_match
from .store import Change, Entry, Store
from .strategy import Names
from .watch import Watch
from .writes import Writer

PodProxy = Callable[[str, str, int, Request], Response]
PodLogs = Callable[[str, str, str, dict[str, str]], bytes]
# (user, seconds) → a bearer token, and the Unix time when it ends.
TokenIssuer = Callable[[str, float], tuple[str, float]]
Subscriber = Callable[[str, str, Object], None]

_BOOTSTRAP = ("default", "kube-node-lease", "kube-public", "kube-system")


class Api:
    """The API server: objects, their rules and their history.

    `pod_proxy` and `pod_logs` answer the two subresources that lead out of the store; the HTTP
    server streams them itself instead.
    """

    def __init__(self, clock: Clock, seed: int = 0, superusers: Iterable[str] = ("admin",)) -> None:
        self.clock = clock
        self.store = Store()
        self.registry = Registry(self.store)
        self.names = Names(seed)
        self.writer = Writer(self.store, clock, self.names)
        self.authorizer = Authorizer(self.store, superusers)
        self.pod_proxy: PodProxy | None = None
        self.pod_logs: PodLogs | None = None
        self.issue_token: TokenIssuer | None = None
        for name in _BOOTSTRAP:
            body = {"metadata": {"name": name}}
            self.writer.create(BY_PLURAL["namespaces"], "", body, Options("sandbox"))

    def subscribe(self, callback: Subscriber) -> Callable[[], None]:
        """Call `callback(event_type, resource, object)` after each change; return what ends that.

        The object is shared with the store: look, do not change.
        """

        def notify(change: Change) -> None:
            callback(change.type, change.resource, change.entry.obj)

        return self.store.listen(notify)

    def handle(self, request: Request) -> Response:
        """Answer one request; a refusal is an answer, too."""
        try:
            route = self.route(request.path)
            if route is None:
                return discovery.answer(request, self.registry.resources)
            self.authorize(request, route)
            return self._dispatch(request, route)
        except ApiError as error:
            return error.response()

    def route(self, path: str) -> Route | None:
        """Return what a path names, among the resources that are served now."""
        return parse(path, self.registry.installed)

    def watch(self, request: Request, on_event: Callable[[], None]) -> Watch:
        """Open a watch for a request that asks for one; raises ApiError as handle() would answer."""
        route = self.route(request.path)
        if route is None:
            raise method_not_allowed()
        self.authorize(request, route)
        resource = route.resource

        def row(entry: Entry) -> bytes:
            return self._table(request, resource, [entry], entry.version)

        encode = row if tables.wanted(request) else None
        return Watch(self.store, resource, route.namespace, route.name, request.query, on_event, encode)

    def _table(self, request: Request, resource: Resource, entries: list[Entry], version: int) -> bytes:
        whole = request.query.get("includeObject") == "Object"
        return dumps(tables.table(resource, entries, version, self.clock.now(), whole))

    def authorize(self, request: Request, route: Route) -> None:
        """Refuse with 403 what RBAC does not allow."""
        if request.user in self.authorizer.superusers:
            return
        resource = route.resource
        if resource.is_review:
            return
        full = f"{resource.plural}/{route.subresource}" if route.subresource else resource.plural
        name = route.name.split(":")[0] if route.subresource == "proxy" else route.name
        action = Action(params.verb(request, route), resource.group, full, route.namespace, name)
        if not self.authorizer.allows(request.user, action):
            raise forbidden(resource, route.name, self.authorizer.denial(request.user, action))

    def _dispatch(self, request: Request, route: Route) -> Response:
        method = request.method
        if route.subresource:
            return self._subresource(request, route)
        if route.resource.is_review and method != "POST":
            raise method_not_allowed()
        if method in ("GET", "HEAD"):
            return self._get(request, route) if route.name else self._list(request, route)
        if method == "POST" and not route.name:
            return self._create(request, route)
        if method == "PUT" and route.name:
            return self._update(request, route)
        if method == "PATCH" and route.name:
            return self._patch(request, route)
        if method == "DELETE":
            return self._delete(request, route) if route.name else self._delete_all(request, route)
        raise method_not_allowed()

    # Reading

    def entry(self, route: Route) -> Entry:
        """Return the object that a route names; 404 where there is none."""
        entry = self.store.get(route.resource.plural, route.namespace, route.name)
        if entry is None:
            raise not_found(route.resource, route.name)
        return entry

    def _get(self, request: Request, route: Route) -> Response:
        entry = self.entry(route)
        if tables.wanted(request):
            return _ok(self._table(request, route.resource, [entry], self.store.version))
        return _ok(entry.json)

    def select(self, resource: Resource, namespace: str, query: dict[str, str]) -> list[Entry]:
        """Return the objects that a list request asks for."""
        entries: Iterable[Entry] = self.store.list(resource.plural, namespace or None)
        if query.get("labelSelector"):
            matches = labels_match(query["labelSelector"])
            entries = [e for e in entries if matches(e.obj["metadata"].get("labels") or {})]
        if query.get("fieldSelector"):
            chosen = fields_match(query["fieldSelector"])
            entries = [e for e in entries if chosen(e.obj)]
        return list(entries)

    def _list(self, request: Request, route: Route) -> Response:
        resource = route.resource
        entries = self.select(resource, route.namespace, request.query)
        if tables.wanted(request):
            return _ok(self._table(request, resource, entries, self.store.version))
        head = {
            "kind": f"{resource.kind}List",
            "apiVersion": resource.api_version,
            "metadata": {"resourceVersion": str(self.store.version)},
        }
        items = b",".join(entry.json if resource.custom else entry.item for entry in entries)
        return _ok(dumps(head)[:-1] + b',"items":[' + items + b"]}")

    # Writing

    def _create(self, request: Request, route: Route) -> Response:
        options = params.options(request)
        body = params.body(request)
        if route.resource.is_review:
            review = reviews.answer(self.authorizer, self.writer, route.resource, request.user, body, options)
            return _ok(dumps(review), 201)
        if route.resource.namespaced and not route.namespace:
            raise method_not_allowed()
        entry = self.writer.create(route.resource, route.namespace, body, options)
        return _written(entry, 201, options)

    def _update(self, request: Request, route: Route) -> Response:
        options = params.options(request)
        entry, created = self.writer.update(
            route.resource, route.namespace, route.name, params.body(request), options, route.subresource
        )
        return _written(entry, 201 if created else 200, options)

    def _patch(self, request: Request, route: Route) -> Response:
        resource = route.resource
        kind = params.patch_type(request, resource)
        options = params.options(request)
        where = (resource, route.namespace, route.name)
        if kind == APPLY:
            params.check_applier(request)
            entry, created = self.writer.apply(*where, params.body(request), options, route.subresource)
            return _written(entry, 201 if created else 200, options)
        entry = self.writer.patch(*where, params.body(request), kind, options, route.subresource)
        return _written(entry, 200, options)

    def _delete(self, request: Request, route: Route) -> Response:
        options = params.delete_options(request)
        dry = params.dry(request, options)
        entry, gone = self.delete(route.resource, route.namespace, route.name, options, dry)
        if gone and route.resource.plural not in deletes.RETURNS_OBJECT:
            return _ok(dumps(deletes.success(route.resource, entry)))
        return _ok(entry.json)

    def delete(
        self, resource: Resource, namespace: str, name: str, options: Object, dry_run: bool = False
    ) -> tuple[Entry, bool]:
        """Delete an object by DeleteOptions; return its last version and whether it is gone already."""
        return deletes.delete(self.store, self.clock, resource, (namespace, name), options, dry_run)

    def _delete_all(self, request: Request, route: Route) -> Response:
        options = params.delete_options(request)
        for entry in self.select(route.resource, route.namespace, request.query):
            meta = entry.obj["metadata"]
            self.delete(route.resource, meta.get("namespace", ""), meta["name"], options, params.dry(request, options))
        status = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"}
        details: Object = {"group": route.resource.group} if route.resource.group else {}
        return _ok(dumps({**status, "details": {**details, "kind": route.resource.plural}}))

    # Subresources

    def _subresource(self, request: Request, route: Route) -> Response:
        method, name = request.method, route.subresource
        if name == "status" and method in ("GET", "PUT", "PATCH"):
            handlers = {"GET": self._get, "PUT": self._update, "PATCH": self._patch}
            return handlers[method](request, route)
        if name == "scale" and method in ("GET", "PUT", "PATCH"):
            return self._scale(request, route)
        if name == "eviction" and method == "POST":
            options = (params.body(request) or {}).get("deleteOptions") or {}
            dry = params.dry(request, options)
            subresources.evict(self.store, route.namespace, route.name, dry)
            self.delete(route.resource, route.namespace, route.name, options, dry)
            return _ok(dumps(_SUCCESS), 201)
        if name == "binding" and method == "POST":
            subresources.bind(self.store, route.namespace, route.name, params.body(request))
            return _ok(dumps(_SUCCESS), 201)
        if name == "token" and method == "POST" and self.issue_token is not None:
            account = self.entry(route)
            return _ok(dumps(subresources.request_token(account, params.body(request), self.issue_token)), 201)
        if name == "log" and method == "GET" and self.pod_logs is not None:
            container = log_container(self.entry(route), request.query)
            text = self.pod_logs(route.namespace, route.name, container, request.query)
            return Response(200, {"content-type": "text/plain"}, text)
        if name == "proxy" and self.pod_proxy is not None:
            pod, port = proxy_target(self, route)
            inner = Request(
                request.method, route.rest or "/", request.query, request.headers, request.body, request.user
            )
            return self.pod_proxy(route.namespace, pod.obj["metadata"]["name"], port, inner)
        raise method_not_allowed()

    def _scale(self, request: Request, route: Route) -> Response:
        entry = self.entry(route)
        if request.method != "GET":
            kind = params.patch_type(request, route.resource) if request.method == "PATCH" else None
            entry = subresources.write_scale(
                self.writer, route.resource, entry, params.body(request), kind, params.options(request)
            )
        return _ok(dumps(subresources.scale_of(entry.obj)))


_SUCCESS = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201}


def _ok(body: bytes, status: int = 200) -> Response:
    return Response(status, dict(JSON), body)


def _written(entry: Entry, status: int, options: Options) -> Response:
    response = _ok(entry.json, status)
    if options.warnings:
        response.headers["warning"] = ", ".join(f"299 - {json.dumps(text)}" for text in options.warnings)
    return response


def log_container(entry: Entry, query: dict[str, str]) -> str:
    """Return the container whose log is asked for; 400 where that is not clear."""
    name = entry.obj["metadata"]["name"]
    spec = entry.obj["spec"]
    containers = [c["name"] for c in spec["containers"]]
    known = containers + [c["name"] for c in spec.get("initContainers", ())]
    wanted = query.get("container", "")
    if wanted:
        if wanted not in known:
            raise bad_request(f"container {wanted} is not valid for pod {name}")
        return wanted
    if len(known) > 1:
        listed = " ".join(containers)
        raise bad_request(f"a container name must be specified for pod {name}, choose one of: [{listed}]")
    return containers[0]


def proxy_target(api: Api, route: Route) -> tuple[Entry, int]:
    """Return the pod and the port that a proxy path "[scheme:]name[:port]" names."""
    parts = route.name.split(":")
    name = parts[1] if len(parts) == 3 else parts[0]
    port = parts[-1] if len(parts) > 1 else ""
    entry = api.entry(Route(route.resource, route.namespace, name))
    ports = [p for c in entry.obj["spec"]["containers"] for p in c.get("ports", ())]
    if not port:
        return entry, ports[0]["containerPort"] if ports else 80
    if port.isdigit():
        return entry, int(port)
    for each in ports:
        if each.get("name") == port:
            return entry, each["containerPort"]
    raise bad_request(f'no port named "{port}" in pod "{name}"')
