"""Choose the weights that a TPU can serve: BF16 for FP8, quantizations that it accepts, else a blocker."""

from __future__ import annotations

from tpu_migration.domain.accelerators import Slice
from tpu_migration.domain.translation import checkpoints
from tpu_migration.domain.translation.arguments import CommandLine, Option
from tpu_migration.domain.translation.editing import drop
from tpu_migration.domain.translation.flags import (
    ACCEPTED_QUANTIZATION,
    FP8_CHECKPOINT_METHODS,
    ONLINE_FP8,
    SAME_QUANTIZATION,
)
from tpu_migration.domain.translation.model import Notes, Sizing


def choose_weights(line: CommandLine, target: Slice, sizing: Sizing, notes: Notes) -> str | None:
    """Rewrite model and quantization; return the model that the target serves, None if it is out of sight."""
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
    if sizing.model and model and sizing.model != model:
        return _change_model(line, written, model, sizing.model, "asked for", notes)
    if model and checkpoints.is_fp8(model) and (base := _bf16(line, written, model)) is not None:
        if not checkpoints.is_hub_id(model):
            notes.warn(path, f"{base} is taken for the BF16 weights of {model}", "see that they exist there")
        why = f"FP8 checkpoints fail late on TPU {target.generation}: it is native in int8, int4 and BF16"
        return _change_model(line, written, model, base, why, notes)
    for option in line.all("quantization"):
        _quantization(line, option, notes)
    if model and checkpoints.is_fp8(model):
        notes.block(
            path,
            f"{model} is an FP8 checkpoint and no BF16 one is known for it: TPU {target.generation} has no FP8",
            "name the BF16 checkpoint (--model)",
        )
    elif model and checkpoints.is_gpu_only(model):
        notes.block(path, f"{model}: this quantization runs on GPUs only", "name the BF16 checkpoint (--model)")
    return model


def _quantization(line: CommandLine, option: Option, notes: Notes) -> None:
    value = line.resolve(option.values[0], option.head.buffer) if option.values else None
    method = (value or "").lower()
    if method in ONLINE_FP8:
        drop(line, option, "TPU v5e has no online FP8: the BF16 weights are served as they are", notes)
    elif method in FP8_CHECKPOINT_METHODS:
        drop(line, option, "TPU v5e has no FP8", notes)
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
        drop(line, option, f"the TPU does not accept {value or 'this'} quantization", notes)
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
    # vLLM reads a checkpoint's quantization from its config, and refuses one that it has not.
    for option in line.all("quantization"):
        drop(line, option, f"it says how the weights of {old} are quantized", notes)
    for name in ("revision", "code-revision", "tokenizer-revision"):
        for revision in line.all(name):
            if name != "tokenizer-revision" or line.get("tokenizer") is None:
                drop(line, revision, f"a revision of {old}, not of {new}", notes)
    for name in ("hf-config-path",):
        for config in line.all(name):
            if line.resolve(config.values[0], config.head.buffer) == old if config.values else False:
                drop(line, config, f"the configuration of {old} says that the weights are quantized", notes)
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
