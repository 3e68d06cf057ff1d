"""Say on which Kubernetes API the sandbox is: the embedded one, or one that a kubeconfig names.

Everything else of the sandbox is a client of what is returned here, and knows no difference.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from ipaddress import IPv4Network
from pathlib import Path
from typing import TYPE_CHECKING

from sandbox.addresses import loopback_network, pod_network
from sandbox.attach import prepare
from sandbox.clock import Clock
from sandbox.faults import FaultSource
from sandbox.gke.tokens import TokenIssuer
from sandbox.kube import KubeClient
from sandbox.kubeconfig import Access, read_kubeconfig
from sandbox.pki import Issued

if TYPE_CHECKING:
    from sandbox.api.http import Server

HOST = "127.0.0.1"
ADMIN, PARTS = "admin", "system:sandbox"


@dataclass(frozen=True)
class Cluster:
    """A Kubernetes API: access for a person, access for the sandbox's own parts, and the network of the pods."""

    admin: Access
    parts: Access
    network: IPv4Network


class EmbeddedApi:
    """The embedded API server with its controllers; `speed` scales what the controllers wait for."""

    def __init__(self, clock: Clock, speed: float, issuer: TokenIssuer, faults: FaultSource) -> None:
        # Loaded here: an attached sandbox has no API server of its own.
        from sandbox.api import Api
        from sandbox.gke import warden

        self._clock = clock
        self._speed = speed
        self._issuer = issuer
        self._faults = faults
        self._api = Api(clock, superusers=(ADMIN, PARTS))
        self._api.issue_token = issuer.issue
        self._api.writer.admit = warden.review
        self._server: Server | None = None

    async def serve(self, identity: str, ca_file: Path, tls: Issued) -> Cluster:
        """Serve on loopback; pods then have addresses by the sandbox's identity."""
        from sandbox.api.http import serve

        server = await serve(self._api, HOST, 0, tls.cert, tls.key, self._issuer.authenticate, faults=self._faults)
        self._server = server

        def access(user: str) -> Access:
            token = secrets.token_urlsafe(32)
            self._issuer.add_static(token, user)
            return Access(f"https://{HOST}:{server.port}", str(ca_file), token)

        return Cluster(access(ADMIN), access(PARTS), loopback_network(identity))

    async def run_controllers(self) -> None:
        """Run the controllers until cancelled."""
        from sandbox.controllers import Manager

        await Manager(self._api, self._clock, self._speed).run()

    async def close(self) -> None:
        """Stop serving."""
        if self._server is not None:
            await self._server.close()


async def attach(kubeconfig: Path, pod_cidr: str, directory: Path) -> Cluster:
    """Prepare another API server to be the sandbox's; raises UnusableNetwork, UnusableKubeconfig or CannotAttach."""
    network = pod_network(pod_cidr)
    access = read_kubeconfig(kubeconfig, directory)
    async with KubeClient(access) as kube:
        await prepare(kube, access.url)
    return Cluster(access, access, network)
