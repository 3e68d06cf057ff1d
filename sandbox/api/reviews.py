"""Answer what somebody asks about itself: what it may do, and who it is. Nothing of it is stored."""

from __future__ import annotations

from typing import Any

from . import ownership
from .decode import deep_copy
from .kinds import Options, schema_of
from .messages import Object
from .rbac import Action, Authorizer, groups_of
from .resources import Resource
from .writes import Writer


def answer(
    authorizer: Authorizer, writer: Writer, resource: Resource, user: str, body: Any, options: Options
) -> Object:
    """Return a review with its status filled in."""
    review = writer.decode(resource, body, options)
    spec = review.get("spec", {})
    manager = ownership.Manager(options.manager, "Update", resource.api_version)
    out = deep_copy(review)
    owned = ownership.after_update(schema_of(resource), {"metadata": {}, "spec": {}}, review, {}, manager, writer.now())
    ownership.write(out, owned)
    if resource.kind == "SelfSubjectAccessReview":
        out["status"] = {"allowed": _allowed(authorizer, user, spec)}
    elif resource.kind == "SelfSubjectRulesReview":
        rules = authorizer.rules(user, spec.get("namespace", ""))
        out["status"] = {"resourceRules": rules, "nonResourceRules": [], "incomplete": False}
    else:
        out["status"] = {"userInfo": {"username": user, "groups": sorted(groups_of(user))}}
    return out


def _allowed(authorizer: Authorizer, user: str, spec: Object) -> bool:
    if "nonResourceAttributes" in spec:
        return True
    asked = spec.get("resourceAttributes") or {}
    name = asked.get("resource", "")
    if asked.get("subresource"):
        name = f"{name}/{asked['subresource']}"
    where = asked.get("namespace", ""), asked.get("name", "")
    return authorizer.allows(user, Action(asked.get("verb", ""), asked.get("group", ""), name, *where))
