"""Start an engine: the phases, log lines and waits before HTTP answers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from sandbox.engine.compilation import Compiled
from sandbox.engine.config import GONE_VARIABLES, OUT_OF_MEMORY, VERSION, EngineConfig, Refused, check_fit
from sandbox.engine.core import EngineCore
from sandbox.engine.hardware import GIB

# Seconds on hardware; `speed` divides them all.
IMPORTS_S = 8.0
LOAD_GB_PER_S = {"gpu": 2.0, "tpu": 1.2}
CUDA_GRAPHS_S = 18.0


class OutOfHostMemory(Exception):
    """Say that the kernel ends this process now, for the memory that it uses."""


async def boot(core: EngineCore, compiled: Compiled, env: dict[str, str], log: Callable[[str], None]) -> None:
    """Run the phases up to "ready"; raises Refused where the engine dies on its way."""
    config = core.config
    log(f"INFO simulated vLLM engine: {config.accelerator.name} x {config.chips}, timing is computed")
    log(f"INFO vLLM API server version {VERSION}, model {config.flags.model}")
    for name in GONE_VARIABLES:
        if config.tpu and name in env:
            log(f"WARNING Unknown vLLM environment variable detected: {name}")
    await _pause(config, IMPORTS_S)
    if core.faults.get("crash-loop") is not None:
        raise Refused("RuntimeError: TPU initialization failed: the device is not available (simulated fault)")
    if config.tpu:
        await _boot_tpu(core, compiled, log)
    else:
        await _boot_gpu(config, log)


async def _pause(config: EngineConfig, seconds: float) -> None:
    await asyncio.sleep(seconds / config.speed)


async def _boot_gpu(config: EngineConfig, log: Callable[[str], None]) -> None:
    timing = config.timing
    load = timing.weight_bytes / 1e9 / LOAD_GB_PER_S["gpu"]
    await _pause(config, load)
    check_fit(config)
    log(f"INFO Model loading took {timing.weight_bytes / GIB:.2f} GiB memory and {load:.2f} seconds")
    _log_cache(config, log, "GPU ")
    await _pause(config, CUDA_GRAPHS_S)
    log(f"INFO Graph capturing finished in {CUDA_GRAPHS_S:.0f} secs")
    log(f"INFO init engine (profile, create kv cache, warmup model) took {CUDA_GRAPHS_S:.2f} s")


async def _boot_tpu(core: EngineCore, compiled: Compiled, log: Callable[[str], None]) -> None:
    config, timing = core.config, core.config.timing
    log(f"INFO Prepared token paddings: {compiled.buckets('select_from_array')}")
    log(f"INFO Prepared request paddings: {compiled.buckets('sample')}")
    log("INFO Enabling JAX compile cache.")
    if config.cache_path and not compiled.cache.usable:
        log(f"WARNING simulated engine finds no writable directory at VLLM_XLA_CACHE_PATH={config.cache_path}")
    await _pause(config, timing.weight_bytes / 1e9 / LOAD_GB_PER_S["tpu"])
    chip_used = timing.weight_bytes / config.chips / GIB
    chip = config.accelerator.hbm_gib
    log(f"INFO Init model | hbm={[(round(chip_used, 2), chip)] * config.chips}GiB")
    check_fit(config)
    cap = timing.hbm_bytes / GIB * config.flags.gpu_memory_utilization
    log(
        f"INFO Memory statistics | total_hbm_limit_gb={timing.hbm_bytes / GIB:.2f}GiB | "
        f"total_hbm_limit_cap_gb={cap:.2f}GiB | total_hbm_used_gb={timing.weight_bytes / GIB:.2f}GiB | "
        f"total_hbm_avail_gb={cap - timing.weight_bytes / GIB:.2f}GiB"
    )
    _log_cache(config, log, "TPU ")
    started = asyncio.get_running_loop().time()
    if not config.skip_precompile:
        log("INFO Precompile all the subgraphs with possible input shapes.")
    for index, program in enumerate(compiled.boot_list(config.skip_precompile)):
        if index == 1 and core.faults.get("oom") is not None:
            raise Refused(OUT_OF_MEMORY)
        if index == 1 and core.faults.get("host-oom") is not None:
            raise OutOfHostMemory
        while core.faults.get("compile-hang") is not None:
            await asyncio.sleep(0.2)
        log(f"INFO Precompile {program.log_name}")
        seconds = await core.compile(program)
        log(f"INFO Compilation of {program.log_name} finished in {seconds:.2f} [secs].")
    took = (asyncio.get_running_loop().time() - started) * config.speed
    log(f"INFO init engine (profile, create kv cache, warmup model) took {took:.2f} s (compilation: {took:.2f} s)")


def _log_cache(config: EngineConfig, log: Callable[[str], None], device: str) -> None:
    tokens = config.timing.kv_capacity_tokens
    log(
        f"INFO {device}KV cache size: {tokens:,} tokens, Maximum concurrency for {config.max_model_len:,} "
        f"tokens per request: {tokens / config.max_model_len:.2f}x"
    )
