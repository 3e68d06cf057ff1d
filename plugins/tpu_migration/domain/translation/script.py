"""Take what is the GPU's out of a start script, and leave the rest as its author wrote it."""

from __future__ import annotations

from collections.abc import Sequence

from tpu_migration.domain.translation.buffers import TextBuffer, Token
from tpu_migration.domain.translation.environment import settled
from tpu_migration.domain.translation.launch import program
from tpu_migration.domain.translation.model import Notes
from tpu_migration.domain.translation.shell import ASSIGNMENT

_GPU_PROGRAMS = {"nvidia-smi", "nvidia-modprobe", "nvidia-cuda-mps-control", "dcgmi", "nvidia-persistenced"}
_INSTALLERS = {"pip", "pip3", "uv", "apt-get"}


def clean_script(buffer: TextBuffer, notes: Notes) -> None:
    """Take GPU variables and GPU tools out of a start script; what several hosts need is a blocker."""
    for command in buffer.commands():
        first = program(command[0].text)
        if first in _GPU_PROGRAMS:
            text = " ".join(token.text for token in command)
            notes.change(buffer.path, text, "true", "there is no such tool on a TPU node")
            _replace_command(buffer, command)
            continue
        _clean_assignments(buffer, command, notes)
        if first == "ray" and any(token.text == "start" for token in command):
            notes.block(buffer.path, "`ray start` joins several hosts: only single-host servers are translated")
        if first in _INSTALLERS:
            text = " ".join(token.text for token in command[:4])
            notes.warn(buffer.path, f"`{text} …` may pull GPU libraries into the TPU image", "see that it does not")


def _clean_assignments(buffer: TextBuffer, command: Sequence[Token], notes: Notes) -> None:
    """Clean `A=x B=y program` and `export A=x B=y`; a command of which nothing is left becomes `true`."""
    exported = program(command[0].text) in {"export", "declare", "readonly"}
    removed, kept = [], 0
    for token in command[1:] if exported else command:
        match = ASSIGNMENT.match(token.text)
        if match is None and not exported:
            kept += 1
            break
        left, why = settled(match["name"], token.text[match.end() :]) if match else (None, None)
        if match is None or why is None or left is not None:
            kept += 1
        else:
            removed.append(token)
        if match and why:
            new = None if left is None else f"{match[0]}{left}"
            notes.change(f"{buffer.path} {match['name']}", token.text, new, why)
            if new is not None:
                buffer.replace(token.key, new)
    if removed and not kept:
        _replace_command(buffer, command)
    else:
        for token in removed:
            buffer.remove(token.key)


def _replace_command(buffer: TextBuffer, command: Sequence[Token]) -> None:
    """Put `true` in the place of a whole command, so that `&&` and newlines around it keep their meaning."""
    buffer.replace(command[0].key, "true")
    for token in command[1:]:
        buffer.remove(token.key)
