"""Rewrite a vLLM command line from GPU to TPU, flag by flag, saying why."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from tpu_migration.domain.accelerators import Slice
from tpu_migration.domain.translation.arguments import CommandLine, Option
from tpu_migration.domain.translation.editing import drop, put
from tpu_migration.domain.translation.flags import TELLING, why_removed
from tpu_migration.domain.translation.model import Notes, Sizing
from tpu_migration.domain.translation.sizes import fit, vision
from tpu_migration.domain.translation.vocabulary import VERSION, is_known, is_switch
from tpu_migration.domain.translation.weights import choose_weights


@dataclass(frozen=True)
class Serving:
    """Hold what the pod and the objects around it need to know of the translated server."""

    port: int
    https: bool
    shutdown_timeout_s: int
    model: str | None


def rewrite(line: CommandLine, target: Slice, sizing: Sizing, notes: Notes) -> Serving:
    """Rewrite all arguments; return what follows from them for the pod."""
    served = line.served_names()
    _modernize(line, notes)
    model = choose_weights(line, target, sizing, notes)
    _remove_gpu_flags(line, notes)
    _kv_transfer(line, notes)
    _structured_outputs(line, notes)
    fit(line, target, sizing, model, notes)
    vision(line, model, sizing, notes)
    _served_names(line, served, notes)
    timeout = line.integer("shutdown-timeout")
    if not timeout:
        timeout = sizing.shutdown_timeout_s
        put(line, "shutdown-timeout", str(timeout), "on SIGTERM vLLM cuts streams in flight unless it may drain", notes)
    if (line.value("host") or "").lower() in {"127.0.0.1", "localhost", "::1"}:
        message = "vLLM listens inside its pod only: neither probes nor the load balancer reach it on /health"
        notes.block(f"{line.path} --host", message, "listen on 0.0.0.0")
    _doubts(line, notes)
    return Serving(port_of(line), bool(line.get("ssl-certfile") or line.get("ssl-keyfile")), timeout, model)


def port_of(line: CommandLine) -> int:
    """Read the port that vLLM listens on."""
    return line.integer("port") or 8000


def _modernize(line: CommandLine, notes: Notes) -> None:
    """Spell options as 0.32 does: full names, `--no-x` for a switch that is off."""
    for option in list(line.options):
        buffer = option.head.buffer
        old, path = option.text, option.path
        if option.name == "disable-log-requests":
            line.rename(option, "--no-enable-log-requests")
            notes.change(path, old, option.text, f"absent in {VERSION}")
        elif is_switch(option.name) and option.values:
            off = (line.resolve(option.values[0], buffer) or "").lower() in {"false", "0"}
            option.values = []
            line.rename(option, f"--{'no-' if off != option.negated else ''}{option.name}", None)
            for token in option.tail:
                token.buffer.remove(token.key)
            option.tail, option.glued = [], False
            notes.change(path, old, option.written, f"a switch takes no value in {VERSION}")
        elif _abbreviated(option) and why_removed(option.name) is None:
            line.rename(option, f"--{'no-' if option.negated else ''}{option.name}")
            notes.change(path, old, option.text, f"an abbreviation that {VERSION} may not understand")


def _abbreviated(option: Option) -> bool:
    if not option.written.startswith("--") or option.key or option.name == "":
        return False
    written = option.written[2:].replace("_", "-").removeprefix("no-" if option.negated else "")
    return written != option.name and option.name.startswith(written)


def _remove_gpu_flags(line: CommandLine, notes: Notes) -> None:
    for option in list(line.options):
        if option.removed or (why := why_removed(option.name)) is None:
            continue
        if option.name == "task" and (line.value("task") or "generate") not in {"generate", "auto"}:
            notes.block(option.path, f"{option.text}: pooling models are not translated")
        elif option.name in TELLING and option.values != ["1"]:
            notes.warn(option.path, TELLING[option.name])
        drop(line, option, why, notes)
    for name in ("headless", "nnodes", "node-rank", "master-addr"):
        for option in line.all(name):
            drop(line, option, "a slice of one host has no other nodes", notes)
            if line.resolve(option.values[0], option.head.buffer) != "1" if option.values else True:
                notes.block(option.path, f"{option.text}: this is one node of several", "translate single-node servers")


def _kv_transfer(line: CommandLine, notes: Notes) -> None:
    for name in ("kv-transfer-config", "ec-transfer-config", "kv-events-config"):
        for option in line.all(name):
            value = line.resolve(option.values[0], option.head.buffer) if option.values else ""
            if value and "TPU" in value:
                continue
            drop(line, option, "NIXL, LMCache and their like need CUDA; the TPU has connectors of its own", notes)
            if re.search(r"kv_(producer|consumer)", value or ""):
                notes.block(option.path, "prefill and decode run apart: one of them cannot move alone")
            else:
                notes.warn(option.path, "the KV connector is gone: no cache is shared or offloaded on the TPU")


def _structured_outputs(line: CommandLine, notes: Notes) -> None:
    settings: dict[str, object] = {}
    for option in line.all("guided-decoding-backend"):
        value = (line.resolve(option.values[0], option.head.buffer) if option.values else None) or "auto"
        backend, _, extras = value.partition(":")
        settings["backend"] = backend
        if "disable-any-whitespace" in extras:
            settings["disable_any_whitespace"] = True
    for key in ("disable-any-whitespace", "disable-additional-properties"):
        for option in line.all(f"guided-decoding-{key}"):
            settings[key.replace("-", "_")] = True
            drop(line, option, f"gone in {VERSION}: see --structured-outputs-config", notes)
    for option in line.all("guided-decoding-backend"):
        if line.get("structured-outputs-config") is not None:
            drop(line, option, f"gone in {VERSION}: --structured-outputs-config is given", notes)
            continue
        old, path = option.text, option.path
        line.rename(option, "--structured-outputs-config", json.dumps(settings))
        notes.change(path, old, option.text, f"renamed in {VERSION}")


def _served_names(line: CommandLine, served: list[str | None], notes: Notes) -> None:
    why = "clients ask for the model by these names; the model id may change, and others get a 404"
    option = line.get("served-model-name")
    names = [name for name in served if name]
    if len(names) != len(served):
        notes.block(
            f"{line.path} --served-model-name",
            "a name that clients ask for comes from where the translation cannot see it",
            "give the ConfigMap, or write the names",
        )
        return
    if option is None:
        if names:
            line.add("served-model-name", *names)
            notes.change(f"{line.path} --served-model-name", None, names, why)
        return
    # A name that comes from a variable would follow the model's new id: write it out.
    for token, written, name in zip([option.head] if option.glued else option.tail, option.values, names, strict=False):
        if written != name:
            token.buffer.replace(token.key, f"{option.written}={name}" if option.glued else name)
            notes.change(option.path, written, name, why)


def _doubts(line: CommandLine, notes: Notes) -> None:
    """Say what stays but may not hold on TPU."""
    lora = [option for option in line.all("enable-lora") if not option.negated]
    if lora:
        notes.warn(lora[0].path, "LoRA is tested on v6e and v7x only", "let the gate ask for each adapter")
    told = {
        "logits-processors": "the TPU's sampler does not run logits processors",
        "worker-cls": "a worker class of one's own is written for GPUs",
        "worker-extension-cls": "a worker extension of one's own is written for GPUs",
        "enable-expert-parallel": "expert parallelism is little tested on TPU",
        "enable-prompt-embeds": "prompt embeddings are untested on TPU",
    }
    for name, text in told.items():
        if option := line.get(name):
            notes.warn(option.path, text)
    if (line.value("load-format") or "auto") in {
        "bitsandbytes",
        "gguf",
        "tensorizer",
        "fastsafetensors",
        "sharded_state",
    }:
        option = line.all("load-format")[-1]
        drop(line, option, "this loader needs a GPU or a format that TPUs do not read", notes)
        notes.warn(option.path, f"{option.text} is gone", "see that the weights can be read as safetensors")
    for option in line.options:
        if not option.removed and not is_known(option.name):
            notes.warn(option.path, f"vLLM {VERSION} does not know {option.written}: it may refuse to start")
