"""Carry requests, responses and refusals between the pure API and whoever speaks HTTP."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import msgspec

from .resources import Resource

JSON = {"content-type": "application/json"}
Object = dict[str, Any]


def dumps(value: Any) -> bytes:
    """Encode `value` the way the API server does: compact JSON in UTF-8."""
    return msgspec.json.encode(value)


@dataclass(slots=True)
class Request:
    """One HTTP request, already authenticated: `user` is who sends it."""

    method: str
    path: str
    query: dict[str, str] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    user: str = "admin"


@dataclass(slots=True)
class Response:
    """One HTTP response with its whole body."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        """Decode the body as JSON."""
        return msgspec.json.decode(self.body)


@dataclass(frozen=True, slots=True)
class Cause:
    """One field that is wrong: its path, the kind of error and what is said about it."""

    field: str
    message: str
    reason: str = "FieldValueInvalid"


class ApiError(Exception):
    """A refusal, as the Status object that the client gets."""

    def __init__(self, code: int, reason: str, message: str, details: Object | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.message = message
        self.details = details

    def status(self) -> Object:
        """Return the Status object of this refusal."""
        body: Object = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
        }
        if self.reason:
            body["reason"] = self.reason
        if self.details is not None:
            body["details"] = self.details
        body["code"] = self.code
        return body

    def response(self) -> Response:
        """Return the HTTP response of this refusal."""
        return Response(self.code, dict(JSON), dumps(self.status()))


class DecodeError(Exception):
    """A body whose types do not fit its kind; who decodes says what that means to the client."""


def _details(resource: Resource, name: str, kind: str) -> Object:
    details = {"name": name} if name else {}
    if resource.group:
        details["group"] = resource.group
    details["kind"] = kind
    return details


def not_found(resource: Resource, name: str) -> ApiError:
    """Refuse: no such object."""
    message = f'{resource.group_resource} "{name}" not found'
    return ApiError(404, "NotFound", message, _details(resource, name, resource.plural))


def already_exists(resource: Resource, name: str) -> ApiError:
    """Refuse: the name is taken."""
    message = f'{resource.group_resource} "{name}" already exists'
    return ApiError(409, "AlreadyExists", message, _details(resource, name, resource.plural))


def conflict(resource: Resource, name: str, why: str, by_kind: bool = False) -> ApiError:
    """Refuse: the object is not the one that the client has seen."""
    title = resource.group_kind if by_kind else resource.group_resource
    message = f'Operation cannot be fulfilled on {title} "{name}": {why}'
    kind = resource.kind if by_kind else resource.plural
    return ApiError(409, "Conflict", message, _details(resource, name, kind))


STALE = "the object has been modified; please apply your changes to the latest version and try again"


def invalid(resource: Resource, name: str, causes: list[Cause]) -> ApiError:
    """Refuse: the object breaks rules of its kind."""
    details = _details(resource, name, resource.kind)
    return invalid_of(f'{resource.group_kind} "{name}"', details, causes)


def invalid_of(title: str, details: Object, causes: list[Cause]) -> ApiError:
    """Refuse with the given causes, about something that `title` names."""
    lines = [f"{cause.field}: {cause.message}" for cause in causes]
    text = lines[0] if len(lines) == 1 else "[" + ", ".join(lines) + "]"
    listed = [{"reason": c.reason, "message": c.message, "field": c.field} for c in causes]
    return ApiError(422, "Invalid", f"{title} is invalid: {text}", {**details, "causes": listed})


def bad_request(message: str) -> ApiError:
    """Refuse: the request cannot be understood."""
    return ApiError(400, "BadRequest", message)


def unauthorized() -> ApiError:
    """Refuse: nobody knows this token."""
    return ApiError(401, "Unauthorized", "Unauthorized")


def forbidden(resource: Resource, name: str, why: str) -> ApiError:
    """Refuse: known, but not allowed."""
    subject = f'{resource.group_resource} "{name}"' if name else resource.group_resource
    message = f"{subject} is forbidden: {why}"
    return ApiError(403, "Forbidden", message, _details(resource, name, resource.plural))


def unsupported_media(accepted: list[str]) -> ApiError:
    """Refuse: a body format that this resource does not take."""
    message = "the body of the request was in an unknown format - accepted media types include: " + ", ".join(accepted)
    return ApiError(415, "UnsupportedMediaType", message)


def rejected_patch() -> ApiError:
    """Refuse a JSON patch that does not apply; like the real server, without saying why."""
    message = "the server rejected our request due to an error in our request"
    return ApiError(422, "Invalid", message, {})


def method_not_allowed() -> ApiError:
    """Refuse: the resource has no such verb."""
    message = "the server does not allow this method on the requested resource"
    return ApiError(405, "MethodNotAllowed", message, {})
