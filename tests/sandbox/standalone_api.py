"""A Kubernetes API with its controllers in a process of its own, for an attached sandbox to be tested on.

    python -m tests.sandbox.standalone_api DIRECTORY
It writes DIRECTORY/kubeconfig, says `ready`, and stays until its standard input is closed.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from sandbox.clock import SystemClock
from sandbox.cluster import ADMIN, HOST, EmbeddedApi
from sandbox.faults import NoFaults
from sandbox.gke.tokens import TokenIssuer
from sandbox.kubeconfig import write_kubeconfig
from sandbox.pki import CertificateAuthority
from sandbox.pods import cancel


async def main(directory: Path) -> None:
    """Serve until the end of standard input."""
    authority = CertificateAuthority(directory)
    clock = SystemClock()
    api = EmbeddedApi(clock, 600.0, TokenIssuer(clock), NoFaults())
    cluster = await api.serve("standalone", authority.cert_path, authority.issue("server", [HOST]))
    controllers = asyncio.create_task(api.run_controllers())
    write_kubeconfig(directory / "kubeconfig", cluster.admin, ADMIN, "default")
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await cancel(controllers)
    await api.close()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
