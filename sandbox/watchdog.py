"""End every process of a sandbox once its supervisor is gone, however it went.

Started by the supervisor as `python -S -I watchdog.py READ_FD SANDBOX_ID`: it blocks on the read end of a
pipe whose only writer is the supervisor. End of file means that the supervisor has exited, was SIGKILLed or
was killed for memory. Imports the standard library's smallest modules only, so that it stays tiny and
nothing of ours can break it. `sandbox.supervisor` uses the same `sweep` for containers and for `down`.
"""

import os
import signal
import sys
import time

CLEAN_ROUNDS = 3
ROUND_S = 0.02


def _parent_of(pid):
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # The command's name may hold spaces and brackets: the fields start after the last ")".
            return int(file.read().rpartition(b")")[2].split()[1])
    except (OSError, ValueError, IndexError):
        return 0


def _carries(pid, identity):
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            variables = file.read().split(b"\0")
    except OSError:
        return False
    exact = b"SANDBOX_ID=" + identity.encode()
    return any(v == exact or v.startswith(exact + b"/") for v in variables)


def members(identity, spare=()):
    """Return the pids that carry SANDBOX_ID `identity` (or a child of it), and their descendants.

    Descendants count too, because a program may clean the environment of what it starts. Zombies have
    no environment any more and are left out.
    """
    pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    parents = {pid: _parent_of(pid) for pid in pids}
    spared = {os.getpid(), *spare}
    found = {pid for pid in pids if pid not in spared and _carries(pid, identity)}
    grown = True
    while grown:
        children = {pid for pid, parent in parents.items() if parent in found} - found - spared
        found |= children
        grown = bool(children)
    return {pid for pid in found if not _is_zombie(pid)}


def _is_zombie(pid):
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] in (b"Z", b"X")
    except (OSError, IndexError):
        return True


def sweep(identity, spare=(), deadline_s=10.0):
    """SIGKILL every member of the sandbox until none is seen in three rounds; return the pids that were hit.

    One round is not enough: a process may fork between being listed and being killed.
    """
    hit = set()
    clean = 0
    end = time.monotonic() + deadline_s
    while clean < CLEAN_ROUNDS and time.monotonic() < end:
        found = members(identity, spare)
        for pid in found:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        hit |= found
        clean = 0 if found else clean + 1
        time.sleep(ROUND_S)
    return hit


def main(argv):
    read_fd, identity = int(argv[1]), argv[2]
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    while os.read(read_fd, 4096):
        pass
    sweep(identity)


if __name__ == "__main__":
    main(sys.argv)
