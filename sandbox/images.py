"""Say which local process stands for a container of a given image.

An image whose name contains "vllm" runs the sandbox's engine (or a real vLLM, if the sandbox was started
with one); the toolbox image and all others run their command natively, with the project's own programs
first on PATH.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
# What a vllm image can be asked to run that ends in a vLLM server; anything else is run as it is.
_ENGINE_PROGRAMS = ("vllm", "serve", "python", "sh", "bash", "dash", "env")
# Flags of a manifest that also mean something on the CPU build of a real vLLM with another model.
_PORTABLE_FLAGS = (
    "--port",
    "--max-num-seqs",
    "--enable-prefix-caching",
    "--stream-interval",
    "--shutdown-timeout",
)


@dataclass(frozen=True)
class RealVllm:
    """A real vLLM to run instead of the simulated engine: its program, the model's directory, flags of its own.

    Engines share this machine, and each takes nearly all of its memory unless a flag says otherwise.
    """

    program: Path
    model: Path
    flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Launch:
    """The argv of the local process, and whether it is an engine (which gets the SANDBOX_* environment)."""

    argv: list[str]
    engine: bool


def _repository(image: str) -> str:
    """Return the image's name without registry digest and tag."""
    return image.partition("@")[0].rpartition("/")[2].partition(":")[0].lower()


def is_engine(image: str) -> bool:
    """Tell whether the image is one of vLLM's, of whatever registry."""
    return "vllm" in _repository(image) and "toolbox" not in _repository(image)


def launch(
    image: str, command: Sequence[str], args: Sequence[str], *, pod_ip: str, real: RealVllm | None = None
) -> Launch:
    """Return what to run for a container's image, `command` and `args` (expanded already)."""
    if is_engine(image):
        return _launch_vllm(image, command, args, pod_ip, real)
    if command:
        return Launch([*command, *args], engine=False)
    if "toolbox" in _repository(image):
        return Launch(["tpu-migration", *args], engine=False)
    # Nothing is known of a foreign image's entrypoint; a side-car that idles is better than none.
    note = f"the sandbox does not know the entrypoint of {image}: this container idles"
    return Launch(["/bin/sh", "-c", 'echo "$0"; exec sleep infinity', note], engine=False)


def _launch_vllm(image: str, command: Sequence[str], args: Sequence[str], pod_ip: str, real: RealVllm | None) -> Launch:
    if command:
        argv = [*command, *args]
    elif "tpu" in _repository(image):
        argv = list(args)
    else:
        argv = ["vllm", "serve", *args]
    name = os.path.basename(argv[0]) if argv else ""
    if not name.startswith(_ENGINE_PROGRAMS):
        # The TPU image's entrypoint is exec "$@": let a real shell say what that makes of it.
        return Launch(["/bin/bash", "-c", 'exec "$@"', "entrypoint.sh", *argv], engine=False)
    if real is not None:
        return Launch(_real_argv(real, argv, pod_ip), engine=True)
    return Launch([sys.executable, "-m", "sandbox.engine", *argv], engine=True)


def _real_argv(real: RealVllm, argv: Sequence[str], pod_ip: str) -> list[str]:
    """Return the command line of the real vLLM: its own model under the manifest's served names.

    Only flags that hold on any hardware are passed on; the manifest's model, quantization and parallelism
    belong to the accelerator that is not there.
    """
    # Loaded here: only this mode needs the engine's parser in the node agent.
    from sandbox.engine.command import find_command

    flags = find_command(list(argv), dict(os.environ)).flags
    names = _values(flags, "--served-model-name") or _values(flags, "--model") or flags[:1]
    kept = [word for flag in _PORTABLE_FLAGS for word in _occurrence(flags, flag)]
    return [
        *(str(real.program), "serve", str(real.model), "--host", pod_ip),
        *("--served-model-name", *names),
        *kept,
        *real.flags,
    ]


def _values(flags: Sequence[str], name: str) -> list[str]:
    """Return the words that follow a flag, in either form (`--flag a b`, `--flag=a`)."""
    for index, word in enumerate(flags):
        if word.startswith(f"{name}="):
            return [word.partition("=")[2]]
        if word == name:
            rest = flags[index + 1 :]
            end = next((i for i, value in enumerate(rest) if value.startswith("-")), len(rest))
            return list(rest[:end])
    return []


def _occurrence(flags: Sequence[str], name: str) -> list[str]:
    present = any(word == name or word.startswith(f"{name}=") for word in flags)
    return [name, *_values(flags, name)] if present else []


def chips(container: dict[str, Any]) -> int:
    """Return how many accelerator chips the container asks for."""
    limits = (container.get("resources") or {}).get("limits") or {}
    return max(int(limits.get(resource, 0)) for resource in ("nvidia.com/gpu", "google.com/tpu"))
