"""Watch Gateways and all that belongs to them, program one Envoy each, and write their status."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from sandbox.clock import Clock
from sandbox.faults import FaultSource
from sandbox.gateway.backends import Backends, attachment, target_of
from sandbox.gateway.delays import Propagation
from sandbox.gateway.envoy import EnvoyProcess, UnusableAddressError
from sandbox.gateway.status import gateway_status, policy_status, route_status
from sandbox.gateway.translate import Translation, is_ours, translate

RESOURCES = ("gateways", "httproutes", "services", "endpointslices", "healthcheckpolicies", "gcpbackendpolicies")
POLL_S = 0.1  # how often faults, draining and Envoy's health are looked at
RETRY_S = 1.0
Object = dict[str, Any]
Key = tuple[str, str]


class _Gateway:
    """One Gateway's Envoy and the changes on their way to it."""

    def __init__(self, envoy: EnvoyProcess, propagation: Propagation, address: str) -> None:
        self.envoy = envoy
        self.propagation = propagation
        self.address = address
        self.applied: object = None
        self.problem: tuple[str, str] | None = ("Pending", "Envoy is being started")


class GatewayController:
    """All Gateways of a cluster; the first one gets `address`, further ones the addresses after it."""

    def __init__(
        self, client: Any, directory: Path, address: str, clock: Clock, speed: float, faults: FaultSource
    ) -> None:
        self._client = client
        self._directory = directory
        self._first_address = ip_address(address)
        self._clock = clock
        self._speed = speed
        self._faults = faults
        self._store: dict[str, dict[Key, Object]] = {resource: {} for resource in RESOURCES}
        self._synced = {resource: asyncio.Event() for resource in RESOURCES}
        self._changed = asyncio.Event()
        self._gateways: dict[Key, _Gateway] = {}
        self._offsets: dict[Key, int] = {}

    async def run(self) -> None:
        """Work until cancelled; every Envoy is ended on the way out."""
        try:
            async with asyncio.TaskGroup() as group:  # a watch that is refused for good ends everything
                for resource in RESOURCES:
                    group.create_task(self._watch(resource))
                group.create_task(self._work())
        finally:
            await asyncio.gather(*(gateway.envoy.stop() for gateway in self._gateways.values()))

    async def _work(self) -> None:
        for event in self._synced.values():
            await event.wait()
        self._changed.set()
        while True:
            await self._step()

    async def _step(self) -> None:
        try:
            if self._changed.is_set():
                self._changed.clear()
                await self._reconcile()
            await self._apply()
        except Exception as error:  # noqa: BLE001  an API server that is away must not end the data plane
            print(f"gateway: {type(error).__name__}: {error}; will repeat", file=sys.stderr, flush=True)
            self._changed.set()
            await asyncio.sleep(RETRY_S)
        # Not wait_for: before Python 3.12 it loses a cancellation that comes together with the event.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(POLL_S):
                await self._changed.wait()

    # ----------------------------------------------------------------- watch

    async def _watch(self, resource: str) -> None:
        store = self._store[resource]
        async for kind, item in self._client.watch(resource):
            if kind == "SYNC":
                self._synced[resource].set()
            elif kind == "DELETED":
                store.pop(_key(item), None)
            else:
                store[_key(item)] = item
            self._changed.set()

    def _items(self, resource: str) -> list[Object]:
        return list(self._store[resource].values())

    # ------------------------------------------------------------- reconcile

    async def _reconcile(self) -> None:
        now = self._clock.now()
        backends = Backends(
            self._items("services"),
            self._items("endpointslices"),
            self._items("healthcheckpolicies"),
            self._items("gcpbackendpolicies"),
        )
        wanted = {key: gateway for key, gateway in self._store["gateways"].items() if is_ours(gateway)}
        for gone in self._gateways.keys() - wanted.keys():
            await self._gateways.pop(gone).envoy.stop()
            del self._offsets[gone]
        translations: dict[Key, Translation] = {}
        for key, spec in wanted.items():
            translations[key] = translate(spec, self._items("httproutes"), backends)
            self._gateway(key).propagation.ask(translations[key].program, now)
        await self._apply()
        await self._write_route_status(translations, now)
        await self._write_policy_status(translations, backends, now)
        for key, spec in wanted.items():
            running = self._gateways[key]
            status = gateway_status(spec, running.address, translations[key].attached, running.problem, now)
            await self._write_status("gateways", spec, status)

    def _gateway(self, key: Key) -> _Gateway:
        if key not in self._gateways:
            taken = set(self._offsets.values())
            self._offsets[key] = next(n for n in range(len(taken) + 1) if n not in taken)
            address = str(self._first_address + self._offsets[key])
            envoy = EnvoyProcess(self._directory / f"{key[0]}-{key[1]}", address, self._speed)
            self._gateways[key] = _Gateway(envoy, Propagation(self._speed, self._faults), address)
        return self._gateways[key]

    async def _apply(self) -> None:
        """Bring every Envoy to what is in force now; restart one that died."""
        now, lb_errors = self._clock.now(), self._faults.get("lb-errors")
        for gateway in self._gateways.values():
            program = gateway.propagation.in_force(now)
            due = gateway.envoy.draining.next_due()
            wanted = (program, lb_errors)
            if gateway.envoy.running and wanted == gateway.applied and (due is None or due > now):
                continue
            try:
                await gateway.envoy.apply(program, lb_errors, now)
                problem = None
            except UnusableAddressError as error:
                problem = ("AddressNotUsable", str(error))
            else:
                gateway.applied = wanted
            if problem != gateway.problem:
                gateway.problem = problem
                self._changed.set()

    # ---------------------------------------------------------------- status

    async def _write_route_status(self, translations: dict[Key, Translation], now: float) -> None:
        verdicts: dict[Key, list[tuple[Object, list[Object]]]] = {}
        for translation in translations.values():
            for route, found in translation.routes:
                verdicts.setdefault(_key(route), []).extend(found)
        for key, found in verdicts.items():
            route = self._store["httproutes"].get(key)
            if route is not None:
                await self._write_status("httproutes", route, route_status(route, found, now))

    async def _write_policy_status(self, translations: dict[Key, Translation], backends: Backends, now: float) -> None:
        used: dict[Key, list[Object]] = {}
        for key, translation in translations.items():
            services = {tuple(name.rsplit(":", 1)[0].split("/", 1)) for name in translation.program.backends}
            for service in services:
                used.setdefault((service[0], service[1]), []).append(self._store["gateways"][key])
        for resource, conflicts in (
            ("healthcheckpolicies", backends.health_conflicts),
            ("gcpbackendpolicies", backends.conflicts),
        ):
            for key, policy in list(self._store[resource].items()):
                gateways = used.get(target_of(policy), [])
                conditions = attachment(policy, backends.target_exists(policy), key in conflicts, bool(gateways))
                await self._write_status(resource, policy, policy_status(policy, conditions, gateways, now))

    async def _write_status(self, resource: str, item: Object, status: Object) -> None:
        before = item.get("status") or {}
        if all(before.get(name) == value for name, value in status.items()):
            return
        namespace, name = _key(item)
        await self._client.patch(resource, namespace, name, {"status": status}, subresource="status")


def _key(item: Object) -> Key:
    return (item["metadata"].get("namespace", ""), item["metadata"]["name"])


async def run_gateway(
    client: Any, directory: Path | str, address: str, clock: Clock, speed: float, faults: FaultSource
) -> None:
    """Be GKE's Gateway controller until cancelled: one Envoy a Gateway, files under `directory`."""
    await GatewayController(client, Path(directory), address, clock, speed, faults).run()
