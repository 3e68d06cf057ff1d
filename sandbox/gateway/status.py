"""Write the conditions that GKE's controller writes."""

from __future__ import annotations

import datetime
from typing import Any

CONTROLLER = "networking.gke.io/gateway"
Object = dict[str, Any]


def condition(kind: str, ok: bool, reason: str, message: str = "") -> Object:
    """Return a condition without its time and generation."""
    return {"type": kind, "status": "True" if ok else "False", "reason": reason, "message": message}


def stamped(conditions: list[Object], before: list[Object] | None, generation: int, now: float) -> list[Object]:
    """Return conditions with generation and lastTransitionTime, which moves only when the status does."""
    known = {entry["type"]: entry for entry in before or []}
    stamp = datetime.datetime.fromtimestamp(now, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    result = []
    for entry in conditions:
        old = known.get(entry["type"])
        same = old is not None and old["status"] == entry["status"]
        since = old["lastTransitionTime"] if same and old is not None else stamp
        result.append({**entry, "observedGeneration": generation, "lastTransitionTime": since})
    return result


def route_status(route: Object, verdicts: list[tuple[Object, list[Object]]], now: float) -> Object:
    """Return an HTTPRoute's status: our parents anew, those of other controllers as they are."""
    before = (route.get("status") or {}).get("parents") or []
    parents = [parent for parent in before if parent.get("controllerName") != CONTROLLER]
    for parent_ref, conditions in verdicts:
        old = [p for p in before if p.get("parentRef") == parent_ref and p.get("controllerName") == CONTROLLER]
        entry = {
            "parentRef": parent_ref,
            "controllerName": CONTROLLER,
            "conditions": stamped(
                conditions, old[0]["conditions"] if old else None, route["metadata"].get("generation", 1), now
            ),
        }
        parents.append(entry)
    return {"parents": parents}


def policy_status(policy: Object, conditions: list[Object], gateways: list[Object], now: float) -> Object:
    """Return a GKE policy's status: conditions, and the same under each Gateway it acts through."""
    before = (policy.get("status") or {}).get("conditions")
    done = stamped(conditions, before, policy["metadata"].get("generation", 1), now)
    ancestors = [
        {
            "ancestorRef": {
                "group": "gateway.networking.k8s.io",
                "kind": "Gateway",
                "namespace": gateway["metadata"]["namespace"],
                "name": gateway["metadata"]["name"],
            },
            "controllerName": CONTROLLER,
            "conditions": done,
        }
        for gateway in gateways
    ]
    return {"conditions": done, "ancestors": ancestors}


def gateway_status(
    gateway: Object, address: str, attached: dict[str, int], problem: tuple[str, str] | None, now: float
) -> Object:
    """Return a Gateway's status; `problem` (reason, message) is why it is not programmed."""
    before = gateway.get("status") or {}
    generation = gateway["metadata"].get("generation", 1)
    programmed = condition("Programmed", problem is None, *(problem or ("Programmed", "")))
    accepted = condition("Accepted", True, "Accepted")
    listeners = []
    for listener in gateway["spec"].get("listeners", []):
        old = [entry for entry in before.get("listeners") or [] if entry["name"] == listener["name"]]
        if listener.get("protocol") == "HTTP":
            conditions = [accepted, programmed, condition("ResolvedRefs", True, "ResolvedRefs")]
        else:
            why = f"protocol {listener.get('protocol')} is not served here; use HTTP"
            conditions = [
                condition("Accepted", False, "UnsupportedProtocol", why),
                condition("Programmed", False, "Invalid", why),
            ]
        listeners.append(
            {
                "name": listener["name"],
                "supportedKinds": [{"group": "gateway.networking.k8s.io", "kind": "HTTPRoute"}],
                "attachedRoutes": attached.get(listener["name"], 0),
                "conditions": stamped(conditions, old[0]["conditions"] if old else None, generation, now),
            }
        )
    return {
        "addresses": [{"type": "IPAddress", "value": address}] if problem is None else [],
        "conditions": stamped([accepted, programmed], before.get("conditions"), generation, now),
        "listeners": listeners,
    }
