"""Time a TPU pod's life: a start that compiles for an hour, a stop that lets streams end."""

from __future__ import annotations

import re
from typing import Any

from tpu_migration.domain.translation.model import Manifest, Notes
from tpu_migration.domain.translation.rules import Serving
from tpu_migration.domain.values import copied

# The longest cold start seen took 58 minutes; half as much again.
START_LIMIT_S = 5400
PERIOD_S = 10
# Load balancers take 18 to 60 s to learn that an endpoint leaves; until then they send to it.
PRE_STOP_S = 60
GRACE_RESERVE_S = 30
_SLEEP = re.compile(r"\bsleep\s+(\d+)")
_ACTIONS = ("httpGet", "tcpSocket", "exec", "grpc")


def rewrite(container: Manifest, pod: Manifest, serving: Serving, notes: Notes, path: str) -> None:
    """Set probes, preStop and the grace period."""
    health: dict[str, Any] = {"path": "/health", "port": _port(container, serving, notes, path)}
    if serving.https:
        health["scheme"] = "HTTPS"
    _startup(container, health, notes, path)
    _readiness(container, health, notes, path)
    _liveness(container, health, notes, path)
    _stop(container, pod, serving, notes, path)


def _port(container: Manifest, serving: Serving, notes: Notes, path: str) -> int:
    """Declare vLLM's port."""
    ports = container.setdefault("ports", [])
    for port in ports:
        if port.get("containerPort") == serving.port:
            return serving.port
    taken = {port.get("name") for port in ports}
    ports.append({"containerPort": serving.port, **({} if "http" in taken else {"name": "http"})})
    notes.change(f"{path}.ports", None, ports[-1], "the port that vLLM listens on, for people and scrapers to see")
    return serving.port


def _startup(container: Manifest, health: dict[str, Any], notes: Notes, path: str) -> None:
    old = container.get("startupProbe")
    probe = {
        "httpGet": dict(health),
        "periodSeconds": PERIOD_S,
        "timeoutSeconds": 5,
        "failureThreshold": START_LIMIT_S // PERIOD_S,
    }
    if old and int(old.get("failureThreshold", 3)) * int(old.get("periodSeconds", 10)) > START_LIMIT_S:
        probe["failureThreshold"] = -(-int(old["failureThreshold"]) * int(old.get("periodSeconds", 10)) // PERIOD_S)
    container["startupProbe"] = probe
    notes.change(f"{path}.startupProbe", old, probe, "a cold start compiles for 10 to 58 minutes before it answers")


def _readiness(container: Manifest, health: dict[str, Any], notes: Notes, path: str) -> None:
    old = container.get("readinessProbe")
    probe = {key: value for key, value in (old or {}).items() if key not in {*_ACTIONS, "initialDelaySeconds"}}
    probe = {"httpGet": dict(health), "periodSeconds": 5, "timeoutSeconds": 5, "failureThreshold": 3, **probe}
    # An allowance for the start, as some give here, would keep a dead replica in rotation.
    if int(probe["failureThreshold"]) * int(probe["periodSeconds"]) > 60:
        probe["failureThreshold"] = max(1, 60 // int(probe["periodSeconds"]))
    probe["timeoutSeconds"] = max(int(probe["timeoutSeconds"]), 5)
    probe["failureThreshold"] = max(int(probe["failureThreshold"]), 3)
    if old and {"path", "port"} <= set(old.get("httpGet") or {}) and old["httpGet"]["path"] == "/health":
        probe["httpGet"] = copied(old["httpGet"])
    container["readinessProbe"] = probe
    notes.change(f"{path}.readinessProbe", old, probe, "/health answers once the engine is up, and 503 when it is dead")


def _liveness(container: Manifest, health: dict[str, Any], notes: Notes, path: str) -> None:
    old = container.get("livenessProbe")
    if not old:
        return
    probe = copied(old)
    probe.pop("initialDelaySeconds", None)
    if "httpGet" in probe and probe["httpGet"].get("path") != "/health":
        probe["httpGet"] = dict(health)
    probe["timeoutSeconds"] = max(int(probe.get("timeoutSeconds", 1)), 5)
    probe["periodSeconds"] = max(int(probe.get("periodSeconds", 10)), 10)
    probe["failureThreshold"] = max(int(probe.get("failureThreshold", 3)), 6)
    container["livenessProbe"] = probe
    notes.change(f"{path}.livenessProbe", old, probe, "a restart costs tens of minutes: never for one slow answer")


def _stop(container: Manifest, pod: Manifest, serving: Serving, notes: Notes, path: str) -> None:
    lifecycle = container.setdefault("lifecycle", {})
    old = copied(lifecycle.get("preStop"))
    given = _pre_stop_seconds(old)
    if given is None or given < PRE_STOP_S:
        if old and "sleep" not in old and given is None:
            notes.warn(
                f"{path}.lifecycle.preStop", "how long the preStop hook takes is not known", "keep it under 60 s"
            )
        else:
            lifecycle["preStop"] = {"sleep": {"seconds": PRE_STOP_S}}
        given = PRE_STOP_S
    why = "load balancers send on for up to 60 s after an endpoint leaves"
    notes.change(f"{path}.lifecycle.preStop", old, lifecycle.get("preStop"), why)
    grace = given + serving.shutdown_timeout_s + GRACE_RESERVE_S
    before = pod.get("terminationGracePeriodSeconds")
    pod["terminationGracePeriodSeconds"] = max(int(before or 0), grace)
    notes.change(
        "spec.template.spec.terminationGracePeriodSeconds",
        before,
        pod["terminationGracePeriodSeconds"],
        f"longer than preStop ({given} s) and --shutdown-timeout ({serving.shutdown_timeout_s} s), or streams are cut",
    )


def _pre_stop_seconds(hook: Manifest | None) -> int | None:
    """Read how long a preStop hook waits; None where it does not say."""
    if not hook:
        return None
    if "sleep" in hook:
        return int((hook["sleep"] or {}).get("seconds", 0))
    command = " ".join(str(part) for part in (hook.get("exec") or {}).get("command") or [])
    match = _SLEEP.search(command)
    return int(match[1]) if match else None
