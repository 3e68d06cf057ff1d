"""Rewrite a vLLM command line from GPU to TPU, flag by flag, saying why."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from tpu_migration.domain.accelerators import Slice
from tpu_migration.domain.translation import checkpoints
from tpu_migration.domain.translation.arguments import CommandLine, Option, integer
from tpu_migration.domain.translation.flags import (
    ACCEPTED_QUANTIZATION,
    FP8_CHECKPOINT_METHODS,
    ONLINE_FP8,
    SAME_QUANTIZATION,
    TELLING,
    why_removed,
)
from tpu_migration.domain.translation.model import Notes, Sizing
from tpu_migration.domain.translation.vocabulary import VERSION, is_known, is_switch

# Programs and activations need HBM beside weights and KV cache.
MEMORY_LOW, MEMORY_HIGH = 0.85, 0.90
# Every power of two up to this many tokens is compiled; the larger, the more HBM a program takes.
TOKENS_DEFAULT, TOKENS_HIGHEST = 2048, 8192
SEQS_DEFAULT = 256
# For a model whose native length is not known: enough to serve, small enough for most models to accept.
LENGTH_UNKNOWN = 8192


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
    model = _model_and_quantization(line, target, sizing, notes)
    _remove_gpu_flags(line, notes)
    _kv_transfer(line, notes)
    _structured_outputs(line, notes)
    _numbers(line, target, sizing, model, notes)
    _vision(line, model, sizing, notes)
    _served_names(line, served, notes)
    timeout = line.integer("shutdown-timeout")
    if not timeout:
        timeout = sizing.shutdown_timeout_s
        _put(
            line, "shutdown-timeout", str(timeout), "on SIGTERM vLLM cuts streams in flight unless it may drain", notes
        )
    _doubts(line, notes)
    return Serving(port_of(line), bool(line.get("ssl-certfile") or line.get("ssl-keyfile")), timeout, model)


def port_of(line: CommandLine) -> int:
    """Read the port that vLLM listens on."""
    return line.integer("port") or 8000


def _put(line: CommandLine, name: str, value: str, why: str, notes: Notes) -> None:
    """Set an option where it stands, else append it."""
    option = line.get(name)
    if option is None:
        line.add(name, value)
        notes.change(f"{line.path} --{name}", None, value, why)
        return
    if line.resolve(option.values[0], option.head.buffer) == value if option.values else False:
        return
    old, path = option.text, option.path
    place = line.set(option, value)
    notes.change(place or path, old, option.text if place is None else value, why)


def _drop(line: CommandLine, option: Option, why: str, notes: Notes) -> None:
    line.remove(option)
    notes.change(option.path, option.text, None, why)


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


def _model_and_quantization(line: CommandLine, target: Slice, sizing: Sizing, notes: Notes) -> str | None:
    written, model = line.model()
    path = f"{line.path} model"
    if written is None:
        notes.block(path, "the manifest names no model", "give --model or the positional argument")
        return None
    if model is None:
        notes.block(
            path,
            f"what {written} stands for is out of sight",
            "give the ConfigMap that it comes from, or write the model id",
        )
    for option in line.all("quantization"):
        _quantization(line, option, notes)
    if sizing.model and model and sizing.model != model:
        return _change_model(line, written, model, sizing.model, "asked for", notes)
    if model and checkpoints.is_fp8(model):
        base = _bf16(line, written, model)
        if base is None:
            notes.block(
                path,
                f"{model} is an FP8 checkpoint and no BF16 one is known for it: TPU {target.generation} has no FP8",
                "name the BF16 checkpoint (--model)",
            )
            return model
        if not checkpoints.is_hub_id(model):
            notes.warn(path, f"{base} is taken for the BF16 weights of {model}", "see that they exist there")
        why = f"FP8 checkpoints fail late on TPU {target.generation}: it is native in int8, int4 and BF16"
        return _change_model(line, written, model, base, why, notes)
    if model and checkpoints.is_gpu_only(model):
        notes.block(path, f"{model}: this quantization runs on GPUs only", "name the BF16 checkpoint (--model)")
    return model


def _quantization(line: CommandLine, option: Option, notes: Notes) -> None:
    value = line.resolve(option.values[0], option.head.buffer) if option.values else None
    method = (value or "").lower()
    if method in ONLINE_FP8:
        _drop(line, option, "TPU v5e has no online FP8: the BF16 weights are served as they are", notes)
    elif method in FP8_CHECKPOINT_METHODS:
        _drop(line, option, "TPU v5e has no FP8", notes)
        if not checkpoints.is_fp8(line.model()[1] or ""):
            notes.block(option.path, f"{option.text} says that the checkpoint is FP8", "name the BF16 one (--model)")
    elif method in SAME_QUANTIZATION:
        old = option.text
        place = line.set(option, SAME_QUANTIZATION[method])
        notes.change(place or option.path, old, SAME_QUANTIZATION[method], "the TPU knows AWQ by this name")
        notes.warn(option.path, "AWQ is accepted on TPU, but little tested there", "let the quality gate judge it")
    elif method in ACCEPTED_QUANTIZATION:
        notes.warn(
            option.path, f"{method} is accepted on TPU, but little tested there", "let the quality gate judge it"
        )
    else:
        _drop(line, option, f"the TPU does not accept {value or 'this'} quantization", notes)
        notes.block(
            option.path,
            f"{option.text}: the TPU cannot run these weights",
            "name a checkpoint in BF16, or in a quantization that it accepts (--model)",
        )


def _bf16(line: CommandLine, written: str, model: str) -> str | None:
    """Find the BF16 id, also behind a path such as /gcs/$(MODEL_ID)."""
    if base := checkpoints.bf16_checkpoint(model):
        return base
    names = line.variables.references(written, shell=False)
    value = line.variables.bindings()[names[0]].value if len(names) == 1 else None
    base = checkpoints.bf16_checkpoint(value) if value else None
    return model.replace(value, base) if value and base else None


def _change_model(line: CommandLine, written: str, old: str, new: str, why: str, notes: Notes) -> str:
    option = line.get("model")
    token = option.head if option else line.model_token
    if token is None:
        raise ValueError("a model without a place")
    path = f"{token.buffer.path} model"
    names = line.variables.references(written, shell=token.buffer.shell)
    behind = _new_variable_value(line, names, written, old, new)
    if behind is not None:
        place = line.variables.set(names[0], behind)
    elif option is not None:
        place = line.set(option, new) or path
    else:
        token.buffer.replace(token.key, new)
        place = path
    notes.change(place, old, new, why)
    for name in ("revision", "code-revision", "tokenizer-revision"):
        for revision in line.all(name):
            if name != "tokenizer-revision" or line.get("tokenizer") is None:
                _drop(line, revision, f"a revision of {old}, not of {new}", notes)
    for name in ("hf-config-path",):
        for config in line.all(name):
            if line.resolve(config.values[0], config.head.buffer) == old if config.values else False:
                _drop(line, config, f"the configuration of {old} says that the weights are quantized", notes)
    return new


def _new_variable_value(line: CommandLine, names: list[str], written: str, old: str, new: str) -> str | None:
    """Find the value that a variable needs for the model to become `new`; None if no such value does it."""
    if len(names) != 1 or names[0] in line.local or not line.variables.can_set(names[0]):
        return None
    value = line.variables.bindings()[names[0]].value
    if not value or old.count(value) != 1:
        return None
    before, after = old.split(value)
    if not (new.startswith(before) and new.endswith(after)) or len(new) <= len(before) + len(after):
        return None
    return new[len(before) : len(new) - len(after) if after else None]


def _remove_gpu_flags(line: CommandLine, notes: Notes) -> None:
    for option in list(line.options):
        if option.removed or (why := why_removed(option.name)) is None:
            continue
        if option.name == "task" and (line.value("task") or "generate") not in {"generate", "auto"}:
            notes.block(option.path, f"{option.text}: pooling models are not translated")
        elif option.name in TELLING and option.values != ["1"]:
            notes.warn(option.path, TELLING[option.name])
        _drop(line, option, why, notes)
    for name in ("headless", "nnodes", "node-rank", "master-addr"):
        for option in line.all(name):
            _drop(line, option, "a slice of one host has no other nodes", notes)
            if line.resolve(option.values[0], option.head.buffer) != "1" if option.values else True:
                notes.block(option.path, f"{option.text}: this is one node of several", "translate single-node servers")


def _kv_transfer(line: CommandLine, notes: Notes) -> None:
    for name in ("kv-transfer-config", "ec-transfer-config", "kv-events-config"):
        for option in line.all(name):
            value = line.resolve(option.values[0], option.head.buffer) if option.values else ""
            if value and "TPU" in value:
                continue
            _drop(line, option, "NIXL, LMCache and their like need CUDA; the TPU has connectors of its own", notes)
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
            _drop(line, option, f"gone in {VERSION}: see --structured-outputs-config", notes)
    for option in line.all("guided-decoding-backend"):
        if line.get("structured-outputs-config") is not None:
            _drop(line, option, f"gone in {VERSION}: --structured-outputs-config is given", notes)
            continue
        old, path = option.text, option.path
        line.rename(option, "--structured-outputs-config", json.dumps(settings))
        notes.change(path, old, option.text, f"renamed in {VERSION}")
        notes.warn(path, "a request's guided_* fields are silently ignored", "clients must send structured_outputs")


def _numbers(line: CommandLine, target: Slice, sizing: Sizing, model: str | None, notes: Notes) -> None:
    chips = str(target.chips)
    _put(line, "tensor-parallel-size", chips, f"the model is split over the slice's {chips} chips", notes)
    _put(line, "dtype", "bfloat16", "the TPU's own type", notes)
    if line.get("kv-cache-dtype") is not None and (line.value("kv-cache-dtype") or "").lower() not in {
        "auto",
        "bfloat16",
    }:
        _put(line, "kv-cache-dtype", "auto", "a quantized KV cache is untested on TPU", notes)
    share = _share(line.value("gpu-memory-utilization"))
    if share is None or not MEMORY_LOW <= share <= MEMORY_HIGH:
        share = MEMORY_LOW if share is not None and share < MEMORY_LOW else MEMORY_HIGH
        _put(line, "gpu-memory-utilization", f"{share:.2f}", "programs need HBM beside weights and KV cache", notes)
    length = line.integer("max-model-len")
    if length is None:
        length = sizing.max_model_len or checkpoints.native_context(model) or LENGTH_UNKNOWN
        _put(line, "max-model-len", str(length), "defaults do not know this device: always explicit", notes)
        if sizing.max_model_len is None:
            notes.warn(
                f"{line.path} --max-model-len",
                f"the source leaves its context length to the model; the TPU gets {length}: longer requests get a 400",
                "compare with max_model_len in the live source's /v1/models",
            )
    seqs = line.integer("max-num-seqs")
    if seqs is None:
        seqs = sizing.max_num_seqs or SEQS_DEFAULT
        _put(line, "max-num-seqs", str(seqs), "defaults do not know this device: always explicit", notes)
    _batched_tokens(line, sizing, length, seqs, notes)


def _batched_tokens(line: CommandLine, sizing: Sizing, length: int, seqs: int, notes: Notes) -> None:
    chunked = line.get("enable-chunked-prefill")
    lowest = max(seqs, length if chunked is not None and chunked.negated else 0)
    given = line.integer("max-num-batched-tokens")
    tokens = given or sizing.max_num_batched_tokens or TOKENS_DEFAULT
    wanted = max(min(tokens, TOKENS_HIGHEST), lowest)
    if given == wanted:
        return
    why = "defaults do not know this device: always explicit"
    if given is not None:
        why = f"each power of two up to it compiles, and vLLM wants at least {lowest}"
    _put(line, "max-num-batched-tokens", str(wanted), why, notes)


def _share(text: str | None) -> float | None:
    try:
        return float(text) if text is not None else None
    except ValueError:
        return None


def _vision(line: CommandLine, model: str | None, sizing: Sizing, notes: Notes) -> None:
    option = line.get("limit-mm-per-prompt")
    limits = _limits(line, option)
    if option is not None and limits is not None and option.values and not option.key and "{" not in option.values[0]:
        _put(line, "limit-mm-per-prompt", json.dumps(limits), f"{VERSION} reads JSON only", notes)
    text_only = line.get("language-model-only") is not None or (limits or {}).get("image") == 0
    if text_only or not (checkpoints.has_vision(model) or limits):
        return
    if sizing.text_only:
        _put(line, "limit-mm-per-prompt", '{"image":0}', "users send text only: the vision tower is left out", notes)
        return
    if line.get("disable-chunked-mm-input") is None:
        line.add("disable-chunked-mm-input")
        why = "an image must not be split over two steps on TPU"
        notes.change(f"{line.path} --disable-chunked-mm-input", None, "--disable-chunked-mm-input", why)
    notes.warn(
        f"{line.path} --limit-mm-per-prompt",
        f"{model} takes images: the vision tower takes HBM and compile time, and prompt_logprobs fail with it",
        "if no user sends images, say so (--text-only)",
    )


def _limits(line: CommandLine, option: Option | None) -> dict[str, int] | None:
    if option is None or not option.values:
        return None
    text = line.resolve(option.values[0], option.head.buffer) or ""
    if option.key:
        return {option.key: integer(text) or 0}
    try:
        parsed = json.loads(text)
        return parsed if isinstance(parsed, dict) else None
    except ValueError:
        pairs = re.findall(r"(\w+)=(\d+)", text)
        return {name: int(count) for name, count in pairs} or None


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
        _drop(line, option, "this loader needs a GPU or a format that TPUs do not read", notes)
        notes.warn(option.path, f"{option.text} is gone", "see that the weights can be read as safetensors")
    for option in line.options:
        if not option.removed and not is_known(option.name):
            notes.warn(option.path, f"vLLM {VERSION} does not know {option.written}: it may refuse to start")
