"""Find addresses and ports for Gateways, the kubelet and pods.

An embedded sandbox lives on 127.A.B.0/24. A real API server refuses to proxy to loopback, so an attached
one lives on a network that a person has put on an interface.
"""

from __future__ import annotations

import errno
import hashlib
import socket
from ipaddress import IPv4Network

# Below it are the Gateways' addresses, from .1 on, and the kubelet's.
FIRST_POD = 20
KUBELET = FIRST_POD - 1


class UnusableNetwork(ValueError):
    """Pods cannot have addresses of that network; the message names the remedy."""


def free_port(host: str = "127.0.0.1") -> int:
    """Return a TCP port of `host` that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def loopback_network(identity: str) -> IPv4Network:
    """Return 127.A.B.0/24 with A.B from the sandbox's id, so that two sandboxes do not meet."""
    digest = hashlib.sha256(identity.encode()).digest()
    # 127.0 is the machine's own, and some resolvers listen on 127.0.0.53 or 127.1.
    return IPv4Network(f"127.{2 + digest[0] % 253}.{digest[1]}.0/24")


def pod_network(cidr: str) -> IPv4Network:
    """Return the network that `--pod-cidr` names; raises UnusableNetwork unless all of it is this machine's."""
    try:
        network = IPv4Network(cidr)
    except ValueError as error:
        raise UnusableNetwork(f"--pod-cidr {cidr}: {error}; give an IPv4 network such as 10.99.0.0/24") from None
    if network.is_loopback:
        raise UnusableNetwork(f"--pod-cidr {cidr}: an API server proxies to no loopback address; give another network")
    if network.num_addresses < 2 * FIRST_POD:
        raise UnusableNetwork(f"--pod-cidr {cidr} is too small: the sandbox needs a /26 or more")
    for address in (network[1], network[-2]):
        try:
            free_port(str(address))
        except OSError as error:
            if error.errno != errno.EADDRNOTAVAIL:
                raise
            raise UnusableNetwork(
                f"--pod-cidr {cidr}: {address} is no address of this machine (or network namespace); "
                f"put the network there with `ip route add local {cidr} dev lo`"
            ) from None
    return network


class Addresses:
    """Hand out the addresses of a network's pods."""

    def __init__(self, network: IPv4Network) -> None:
        self._network = network
        self._free = [str(network[number]) for number in range(FIRST_POD, min(network.num_addresses - 1, 4096))]

    def take(self) -> str:
        """Return the address that has been free for longest; raises RuntimeError if all are in use."""
        if not self._free:
            raise RuntimeError(f"all pod addresses of {self._network} are in use; delete pods")
        return self._free.pop(0)

    def give_back(self, address: str) -> None:
        """Make an address free again."""
        self._free.append(address)
