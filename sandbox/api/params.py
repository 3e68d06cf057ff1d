"""Read the parameters of a request: verb, body, patch type, write and delete options."""

from __future__ import annotations

from typing import Any

import msgspec
import yaml

from . import protobuf
from .kinds import Options
from .messages import Cause, Object, Request, bad_request, invalid_of, unsupported_media
from .patch import APPLY, JSON_PATCH, MERGE, STRATEGIC
from .resources import Resource
from .routes import Route

_VERBS = {"POST": "create", "PUT": "update", "PATCH": "patch", "GET": "get", "HEAD": "get"}


def verb(request: Request, route: Route) -> str:
    """Return the RBAC verb of a request."""
    if request.method == "DELETE":
        return "delete" if route.name else "deletecollection"
    if request.method == "GET" and not route.subresource:
        if wants_watch(request):
            return "watch"
        return "get" if route.name else "list"
    return _VERBS.get(request.method, request.method.lower())


def wants_watch(request: Request) -> bool:
    """Tell whether a GET asks to watch."""
    return request.query.get("watch") in ("1", "true")


def dry(request: Request, delete_options: Object | None = None) -> bool:
    """Tell whether a write is only to be tried; a deletion may say so in its body, too."""
    return request.query.get("dryRun") == "All" or "All" in ((delete_options or {}).get("dryRun") or ())


def options(request: Request) -> Options:
    """Return the parameters of a write."""
    query = request.query
    manager = query.get("fieldManager") or request.headers.get("user-agent", "").partition("/")[0]
    return Options(
        manager=manager[:128] or "unknown",
        dry_run=dry(request),
        force=query.get("force") == "true",
        strict=query.get("fieldValidation") == "Strict",
    )


def body(request: Request) -> Any:
    """Decode the body of a request: JSON, or YAML where it says so."""
    kind = request.headers.get("content-type", "application/json").partition(";")[0].strip()
    if kind.endswith("protobuf"):
        try:
            if (found := protobuf.decode(request.body)) is not None:
                return found
        except (LookupError, UnicodeDecodeError) as error:
            raise bad_request(f"the object provided is unrecognized: {error}") from None
    if kind.endswith("protobuf") or kind.endswith("cbor"):
        raise unsupported_media(["application/json", "application/yaml"])
    try:
        if kind.endswith("yaml") and not request.body.lstrip().startswith(b"{"):
            return yaml.load(request.body, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        return msgspec.json.decode(request.body)
    except (msgspec.DecodeError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise bad_request(f"the object provided is unrecognized: {error}") from None


def patch_type(request: Request, resource: Resource) -> str:
    """Return the type of a patch; 415 where the resource does not take it."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip()
    accepted = [JSON_PATCH, MERGE, APPLY] if resource.custom else [JSON_PATCH, MERGE, STRATEGIC, APPLY]
    if kind not in accepted:
        raise unsupported_media(accepted)
    return kind


def check_applier(request: Request) -> None:
    """Refuse an apply that does not say who applies."""
    if request.query.get("fieldManager"):
        return
    cause = Cause("fieldManager", "Required value: is required for apply patch", "FieldValueRequired")
    details = {"group": "meta.k8s.io", "kind": "PatchOptions"}
    raise invalid_of('PatchOptions.meta.k8s.io ""', details, [cause])


def delete_options(request: Request) -> Object:
    """Return DeleteOptions, from the body and the query."""
    found: Object = {}
    if request.body:
        given = body(request)
        if not isinstance(given, dict):
            raise bad_request("the body of a DELETE is not DeleteOptions")
        found.update(given)
    query = request.query
    if query.get("propagationPolicy"):
        found["propagationPolicy"] = query["propagationPolicy"]
    if query.get("gracePeriodSeconds"):
        if not query["gracePeriodSeconds"].isdigit():
            raise bad_request(f'invalid gracePeriodSeconds "{query["gracePeriodSeconds"]}"')
        found["gracePeriodSeconds"] = int(query["gracePeriodSeconds"])
    return found
