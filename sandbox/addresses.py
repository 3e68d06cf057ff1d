"""Find addresses and ports on the loopback network that nobody else uses."""

from __future__ import annotations

import hashlib
import socket

# Below it are the Gateways' addresses.
FIRST_POD = 20


def free_port(host: str = "127.0.0.1") -> int:
    """Return a TCP port of `host` that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


class Addresses:
    """Hand out 127.A.B.C with A.B from the sandbox's id, so that two sandboxes do not meet."""

    def __init__(self, identity: str) -> None:
        digest = hashlib.sha256(identity.encode()).digest()
        # 127.0 is the machine's own, and some resolvers listen on 127.0.0.53 or 127.1.
        self.prefix = f"127.{2 + digest[0] % 253}.{digest[1]}"
        self._free = list(range(FIRST_POD, 255))

    def take(self) -> str:
        """Return the address that has been free for longest; raises RuntimeError if all are in use."""
        if not self._free:
            raise RuntimeError(f"all pod addresses of {self.prefix}.0/24 are in use; delete pods")
        return f"{self.prefix}.{self._free.pop(0)}"

    def give_back(self, address: str) -> None:
        """Make an address free again."""
        self._free.append(int(address.rpartition(".")[2]))
