"""Rewrite a container's environment from GPU to TPU."""

from __future__ import annotations

import re
from typing import Any

from tpu_migration.domain.translation.model import Manifest, Notes
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


def settled(name: str, value: Any) -> tuple[Any, str | None]:
    """Give what is left of a variable's value on TPU (None: nothing), and why it differs (None: it does not)."""
    if why := why_removed(name):
        return None, why
    if name in _PATH_NAMES and isinstance(value, str) and _GPU_PATH.search(value):
        return without_gpu_paths(name, value) or None, "the GPU's libraries are not on a TPU node"
    return value, None


def rewrite(container: Manifest, configs: Configs, notes: Notes, path: str, *, serving: bool) -> None:
    """Remove GPU variables from a container; on the serving one set what the TPU needs."""
    kept = []
    for entry in container.get("env") or []:
        name, value = str(entry.get("name")), entry.get("value")
        left, why = settled(name, value)
        if why is None:
            kept.append(entry)
            continue
        if left is not None:
            kept.append({**entry, "value": left})
        notes.change(f"{path}.env {name}", value if value is not None else entry.get("valueFrom"), left, why)
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
            left, why = settled(f"{source.get('prefix', '')}{key}", value)
            if why is not None:
                configs.set(str(name), key, left)
                notes.change(f"ConfigMap {name} key {key}", value, left, why)
