"""A Kubernetes API with its controllers in a process of its own, for an attached sandbox to be tested on.

    python -m tests.sandbox.standalone_api DIRECTORY
It writes DIRECTORY/kubeconfig, says `ready`, and stays until its standard input is closed.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from pathlib import Path

from sandbox.clock import SystemClock
from sandbox.cluster import ADMIN, HOST, serve_embedded
from sandbox.gke.tokens import TokenIssuer
from sandbox.kubeconfig import write_kubeconfig
from sandbox.pki import CertificateAuthority


async def main(directory: Path) -> None:
    """Serve until the end of standard input."""
    authority = CertificateAuthority(directory)
    tls = authority.issue("server", [HOST])
    clock = SystemClock()
    async with contextlib.AsyncExitStack() as closers, asyncio.TaskGroup() as group:
        tasks = []
        cluster = await serve_embedded(
            "standalone",
            authority.cert_path,
            tls,
            TokenIssuer(clock),
            clock,
            closers,
            lambda name, part: tasks.append(group.create_task(part, name=name)),
        )
        write_kubeconfig(directory / "kubeconfig", cluster.admin, ADMIN, "default")
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.read)
        for task in tasks:
            task.cancel()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
