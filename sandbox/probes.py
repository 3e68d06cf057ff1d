"""Probe a container: over HTTP, by a TCP connection, or with a command.

Delays, timeouts and thresholds are what the manifest says, whatever the sandbox's speed. One thing is
shortened when the speed is above 1, so that a demo moves: the period of readiness and startup probes, to
at most two seconds, with a failure threshold raised to cover the same time as before. A liveness probe
keeps its period: killing an engine sooner than its manifest says, on a machine that is merely busy,
would be a fault that nobody asked for.
"""

from __future__ import annotations

import asyncio
import math
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import aiohttp

MAX_FAST_PERIOD_S = 2.0
# Runs a command in the container and returns its exit code.
Execute = Callable[[list[str]], Awaitable[int]]


@dataclass(frozen=True)
class Timing:
    """When a probe is made and how many answers in a row decide."""

    delay_s: float
    period_s: float
    timeout_s: float
    failures: int
    successes: int

    @classmethod
    def of(cls, probe: dict[str, Any], *, cap_s: float | None = None) -> Timing:
        """Read a probe's timing with the API's defaults.

        `cap_s` bounds the period; the failure threshold then grows, so that failing takes as long as before.
        """
        wanted = float(probe.get("periodSeconds") or 10)
        period = wanted if cap_s is None else min(wanted, cap_s)
        return cls(
            delay_s=float(probe.get("initialDelaySeconds") or 0),
            period_s=period,
            timeout_s=float(probe.get("timeoutSeconds") or 1),
            failures=math.ceil(int(probe.get("failureThreshold") or 3) * wanted / period),
            successes=int(probe.get("successThreshold") or 1),
        )


@dataclass(frozen=True)
class Target:
    """What is probed: where the pod listens, the container's named ports, and how to run a command in it."""

    ip: str
    ports: dict[str, int]
    execute: Execute

    def port(self, value: int | str) -> int:
        """Return a port's number, given as a number or as the name of a container port."""
        if isinstance(value, int) or value.isdigit():
            return int(value)
        if value not in self.ports:
            raise ProbeFailed(f"couldn't find port {value!r} among {sorted(self.ports)}")
        return self.ports[value]


class ProbeFailed(Exception):
    """The probe got no good answer; the message is the one for the event."""


async def check(probe: dict[str, Any], target: Target) -> None:
    """Make one probe; raises ProbeFailed if it fails or takes longer than its timeout."""
    timeout = Timing.of(probe).timeout_s
    try:
        await asyncio.wait_for(_once(probe, target), timeout)
    except TimeoutError:
        raise ProbeFailed(f"no answer within {timeout:g} s") from None
    except (OSError, aiohttp.ClientError) as error:
        raise ProbeFailed(str(error)) from None


async def _once(probe: dict[str, Any], target: Target) -> None:
    if "httpGet" in probe:
        await http_get(probe["httpGet"], target)
    elif "tcpSocket" in probe:
        spec = probe["tcpSocket"]
        _, writer = await asyncio.open_connection(spec.get("host") or target.ip, target.port(spec["port"]))
        writer.close()
    elif "exec" in probe:
        code = await target.execute(list(probe["exec"]["command"]))
        if code != 0:
            raise ProbeFailed(f"command exited with {code}")
    else:
        raise ProbeFailed(f"the sandbox knows no such probe: {sorted(probe)}")


async def http_get(spec: dict[str, Any], target: Target) -> None:
    """Make the GET of a probe or hook; raises ProbeFailed unless the status is 200 to 399."""
    scheme = str(spec.get("scheme") or "HTTP").lower()
    path = spec.get("path") or "/"
    url = f"{scheme}://{spec.get('host') or target.ip}:{target.port(spec['port'])}{path}"
    headers = {header["name"]: header["value"] for header in spec.get("httpHeaders") or []}
    insecure = ssl.create_default_context()
    insecure.check_hostname = False
    insecure.verify_mode = ssl.CERT_NONE  # as the kubelet does
    connector = aiohttp.TCPConnector(force_close=True, ssl=insecure if scheme == "https" else True)
    async with (
        aiohttp.ClientSession(connector=connector) as session,
        session.get(url, headers={"User-Agent": "kube-probe/1.36", **headers}) as answer,
    ):
        if not 200 <= answer.status < 400:
            raise ProbeFailed(f"HTTP probe failed with statuscode: {answer.status}")


async def watch(
    probe: dict[str, Any],
    timing: Timing,
    target: Target,
    changed: Callable[[bool, str], None],
    *,
    until_first_success: bool = False,
) -> None:
    """Probe for ever (or until the first success), and report each change that the thresholds make certain.

    `changed(good, message)` is called when `successes` or `failures` answers in a row are in and say
    something else than what was reported last; nothing is reported before.
    """
    reported: bool | None = None
    streak, last = 0, None
    await asyncio.sleep(timing.delay_s)
    while True:
        message = ""
        try:
            await check(probe, target)
        except ProbeFailed as error:
            message = str(error)
        good = not message
        streak, last = (streak + 1 if good == last else 1), good
        if good != reported and streak >= (timing.successes if good else timing.failures):
            reported = good
            changed(good, message)
            if good and until_first_success:
                return
        await asyncio.sleep(timing.period_s)
