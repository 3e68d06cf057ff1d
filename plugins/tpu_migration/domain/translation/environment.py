"""Rewrite a container's environment, and the start script around it, from GPU to TPU."""

from __future__ import annotations

import re

from tpu_migration.domain.translation.buffers import TextBuffer
from tpu_migration.domain.translation.launch import program
from tpu_migration.domain.translation.model import Manifest, Notes
from tpu_migration.domain.translation.shell import ASSIGNMENT
from tpu_migration.domain.translation.variables import Configs
from tpu_migration.domain.translation.vocabulary import VERSION

XLA_CACHE_PATH = "/var/cache/vllm-xla"

# What the target always has; a longer time to get ready stays.
TPU_ENVIRONMENT = {
    "VLLM_TARGET_DEVICE": ("tpu", "the migration's own convention; harmless at run time"),
    "VLLM_ENGINE_READY_TIMEOUT_S": ("3600", "the default of 600 s is shorter than a cold compile"),
    "JAX_LOG_COMPILES": ("1", "each compile is logged, so that one under a user's request is seen"),
    "SKIP_JAX_PRECOMPILE": ("0", "without the precompile each shape compiles under a user's request"),
}

_GPU_NAMES = re.compile(
    r"(CUDA|CUBLAS|CUDNN|NCCL|NVIDIA|NVSHMEM|NVTE|UCX|LMCACHE|FLASHINFER|TRITON|DEEPEP|DG_JIT|NIXL|DCGM|TORCH_NCCL)_"
    r"|PYTORCH_(CUDA_|HIP_)?ALLOC_CONF$|TORCH_CUDA_ARCH_LIST$|TORCH_ALLOW_TF32|GPU_DEVICE_ORDINAL$|FLASH_ATTENTION"
    r"|VLLM_(FLASHINFER|FLASH_ATTN|USE_FLASHINFER|USE_TRITON|USE_DEEP_GEMM|DEEP_GEMM|DEEPEP|MOE_DP_CHUNK|ALL2ALL|NCCL|PYNCCL"
    r"|CUDART|NIXL|MARLIN|CUTLASS|USE_CUDNN|USE_TRTLLM|FUSED_MOE|MXFP4|NVFP4|ENABLE_CUDA|DISABLE_PYNCCL|ALLREDUCE|SKIP_P2P)"
    r"|.*_CUDA_|.*_NCCL_"
)
_GONE = {
    name: f"gone: vLLM {VERSION} reports an unknown variable, fatal with --fail-on-environ-validation"
    for name in ("VLLM_ATTENTION_BACKEND", "VLLM_USE_V1", "VLLM_TPU_MOST_MODEL_LEN")
}
# Live on TPU, but not what users should be served with.
_HARMFUL = {
    "VLLM_XLA_CHECK_RECOMPILATION": "it raises on any compile inside a step: for tests, not for users",
    "TPU_MULTIHOST_BACKEND": "the slice is one host",
}
_GPU_PATH = re.compile(r"nvidia|cuda|nccl|tcpx|/gib(/|$)|cupti", re.I)
_PATH_NAMES = {"LD_LIBRARY_PATH", "LD_PRELOAD", "PATH", "LIBRARY_PATH"}
_GPU_PROGRAMS = {"nvidia-smi", "nvidia-modprobe", "nvidia-cuda-mps-control", "dcgmi", "nvidia-persistenced"}


def why_removed(name: str) -> str | None:
    """Say why a variable has no place on TPU; None for one that stays."""
    if why := _GONE.get(name) or _HARMFUL.get(name):
        return why
    return "a setting of the GPU's libraries" if _GPU_NAMES.match(name) else None


def without_gpu_paths(name: str, value: str) -> str:
    """Take the GPU's directories out of a search path; what refers only to itself is nothing."""
    kept = [part for part in value.split(":") if part and not _GPU_PATH.search(part)]
    itself = {f"${name}", f"${{{name}}}", f"$({name})"}
    return ":".join(kept) if any(part not in itself for part in kept) else ""


def rewrite(container: Manifest, configs: Configs, notes: Notes, path: str, *, serving: bool) -> None:
    """Remove GPU variables from a container; on the serving one set what the TPU needs."""
    kept = []
    for given in container.get("env") or []:
        entry, name = given, str(given.get("name"))
        where = f"{path}.env {name}"
        why = why_removed(name)
        value = entry.get("value")
        if why is None and name in _PATH_NAMES and isinstance(value, str) and _GPU_PATH.search(value):
            cleaned = without_gpu_paths(name, value)
            if cleaned:
                notes.change(where, value, cleaned, "the GPU's libraries are not on a TPU node")
                entry = {**entry, "value": cleaned}
            else:
                why = "the GPU's libraries are not on a TPU node"
        if why is None:
            kept.append(entry)
        else:
            notes.change(where, value if value is not None else entry.get("valueFrom"), None, why)
    if container.get("env") is not None or kept:
        container["env"] = kept
    _clean_configs(container, configs, notes, path)
    if serving:
        for name, (value, why) in TPU_ENVIRONMENT.items():
            if not (name == "VLLM_ENGINE_READY_TIMEOUT_S" and _set_to(container, name) >= int(value)):
                put(container, name, value, why, notes, path)


def _set_to(container: Manifest, name: str) -> int:
    """Read a number from a container's `env`; 0 where it is not written there."""
    given = [str(entry.get("value", "")) for entry in container.get("env") or [] if entry.get("name") == name]
    return int(given[-1]) if given and given[-1].isdecimal() else 0


def put(container: Manifest, name: str, value: str, why: str, notes: Notes, path: str) -> None:
    """Set a variable in a container's `env`."""
    entries = container.setdefault("env", [])
    for entry in entries:
        if entry.get("name") == name:
            old = entry.get("value", entry.get("valueFrom"))
            entry.pop("valueFrom", None)
            entry["value"] = value
            notes.change(f"{path}.env {name}", old, value, why)
            return
    entries.append({"name": name, "value": value})
    notes.change(f"{path}.env {name}", None, value, why)


def _clean_configs(container: Manifest, configs: Configs, notes: Notes, path: str) -> None:
    """Take GPU variables out of the ConfigMaps that the whole environment comes from."""
    for source in container.get("envFrom") or []:
        name = (source.get("configMapRef") or {}).get("name")
        if name not in configs:
            if name:
                notes.warn(
                    f"{path}.envFrom",
                    f"ConfigMap {name} was not given: it may set GPU variables or arguments",
                    "give it together with the Deployment",
                )
            continue
        for key, value in configs.data(str(name)).items():
            variable = f"{source.get('prefix', '')}{key}"
            why = why_removed(variable)
            left = None
            if why is None and variable in _PATH_NAMES and _GPU_PATH.search(value):
                why = "the GPU's libraries are not on a TPU node"
                left = without_gpu_paths(variable, value) or None
            if why is not None:
                configs.set(str(name), key, left)
                notes.change(f"ConfigMap {name} key {key}", value, left, why)


def clean_script(buffer: TextBuffer, notes: Notes) -> None:
    """Take GPU settings and GPU tools out of a start script, the rest staying as it is."""
    for command in buffer.commands():
        first = program(command[0].text)
        if first in _GPU_PROGRAMS:
            _replace_command(buffer, [token.key for token in command], notes, "there is no such tool on a TPU node")
            continue
        exported = first in {"export", "declare", "readonly"}
        removed, others = [], 0
        for token in command[1:] if exported else command:
            match = ASSIGNMENT.match(token.text)
            if match is None:
                others += 1
                if not exported:
                    break
                continue
            name, value = match["name"], token.text[match.end() :]
            why = why_removed(name)
            if why is None and name in _PATH_NAMES and _GPU_PATH.search(value):
                why = "the GPU's libraries are not on a TPU node"
                if cleaned := without_gpu_paths(name, value):
                    buffer.replace(token.key, f"{match[0]}{cleaned}")
                    notes.change(f"{buffer.path} {name}", token.text, f"{match[0]}{cleaned}", why)
                    others += 1
                    continue
            if why is None:
                others += 1
                continue
            removed.append(token)
            notes.change(f"{buffer.path} {name}", token.text, None, why)
        if removed and not others:
            _replace_command(buffer, [token.key for token in command], None, "")
        else:
            for token in removed:
                buffer.remove(token.key)
        if first == "ray" and any(token.text == "start" for token in command):
            notes.block(buffer.path, "`ray start` joins several hosts: only single-host servers are translated")
        if first in {"pip", "pip3", "uv", "apt-get"}:
            text = " ".join(token.text for token in command[:4])
            notes.warn(buffer.path, f"`{text} …` may pull GPU libraries into the TPU image", "see that it does not")


def _replace_command(buffer: TextBuffer, words: list[object], notes: Notes | None, why: str) -> None:
    """Put `true` in the place of a whole command, so that `&&` and newlines around it keep their meaning."""
    first, *rest = words
    if notes is not None:
        notes.change(buffer.path, " ".join(getattr(word, "text", "") for word in words), "true", why)
    buffer.replace(first, "true")  # type: ignore[arg-type]
    for word in rest:
        buffer.remove(word)  # type: ignore[arg-type]
