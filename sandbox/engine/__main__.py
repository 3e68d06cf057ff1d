"""Run the simulated engine: `python -m sandbox.engine` followed by a container's argv."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
import time

from aiohttp import web

from sandbox.engine.boot import OutOfHostMemory, boot
from sandbox.engine.command import NotVllm, find_command
from sandbox.engine.compilation import Cache, Compiled, programs
from sandbox.engine.config import EngineConfig, Refused, build_config, find_accelerator
from sandbox.engine.core import EngineCore
from sandbox.engine.faults import Faults
from sandbox.engine.flags import parse_flags
from sandbox.engine.server import ApiServer

# How long answers may take to leave once their requests have ended.
FLUSH_S = 5.0


def log(line: str) -> None:
    """Write one log line as vLLM does: level, time, where from, message."""
    level, _, message = line.partition(" ")
    print(f"{level} {time.strftime('%m-%d %H:%M:%S')} [simulated] {message}", flush=True)


def main(argv: list[str]) -> int:
    """Return the process's exit status."""
    env = dict(os.environ)
    try:
        accelerator = find_accelerator(env)
        command = find_command(argv, env, bare=accelerator.kind == "gpu")
        env |= command.env
        flags = parse_flags(command.flags, prog=command.prog, lenient=accelerator.kind == "gpu")
        config = build_config(flags, accelerator, env)
        return asyncio.run(_serve(config, env))
    except NotVllm as error:
        print(error, file=sys.stderr, flush=True)
        return error.status
    except OutOfHostMemory:
        os.kill(os.getpid(), signal.SIGKILL)
        return 137  # not reached
    except Refused as error:
        log("ERROR EngineCore failed to start.")
        print(f"{error}", file=sys.stderr, flush=True)
        if error.late:
            print("RuntimeError: Engine core initialization failed. See root cause above.", file=sys.stderr)
        return 1


async def _serve(config: EngineConfig, env: dict[str, str]) -> int:
    all_programs = programs(config.model.layers, config.max_num_seqs, config.max_num_batched_tokens)
    key = f"{config.model.name} {config.weights} {config.accelerator.name} {config.chips}"
    compiled = Compiled(all_programs, Cache(config.cache_path if config.tpu else None, key))
    core = EngineCore(config, Faults(config.faults_path, config.accelerator.kind, config.pod), compiled, log)
    watcher = asyncio.create_task(core.watch_faults())
    await boot(core, compiled, env, log)
    server = ApiServer(core)
    # Clients that hang up end their request at once: without it a stream that nobody reads
    # would hold its place in the batch until its next chunk.
    runner = web.ServerRunner(
        web.Server(server.handle, handler_cancellation=True, access_log=None),
        keepalive_timeout=config.keep_alive_s,
        shutdown_timeout=0.1,
    )
    await runner.setup()
    terminated = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, terminated.set)
    stepper = asyncio.create_task(core.run())
    log(f"INFO Starting vLLM server on http://{config.host}:{config.flags.port}")
    await web.TCPSite(runner, config.host, config.flags.port, backlog=2048).start()
    log("INFO Application startup complete.")
    gc.collect()
    gc.freeze()
    ended = asyncio.create_task(terminated.wait())
    await asyncio.wait({ended, stepper}, return_when=asyncio.FIRST_COMPLETED)
    if not ended.done():
        # The step loop ends by itself only when the engine core is dead; a bug in it raises here.
        stepper.result()
        await _flush(server)
        status = 1
    else:
        await _shut_down(core, server)
        status = 0
    for task in (watcher, stepper, ended):
        task.cancel()
    await runner.cleanup()
    return status


async def _shut_down(core: EngineCore, server: ApiServer) -> None:
    """End as vLLM does on SIGTERM: drain for --shutdown-timeout seconds, then abort what is left."""
    timeout = core.config.flags.shutdown_timeout_s
    log("INFO [shutdown] API server: shutdown triggered")
    core.draining = True
    mode = "drain" if timeout else "abort"
    log(f"INFO [shutdown] EngineCore: start mode={mode} timeout={timeout}s")
    deadline = time.monotonic() + timeout
    while core.unfinished and time.monotonic() < deadline:
        await asyncio.sleep(0.05)
    if core.hung:
        # A hung engine answers nobody: the process ends and cuts the streams.
        return
    count = core.abort_all()
    if count:
        log(f"INFO [shutdown] EngineCore: aborting in-flight requests count={count}")
    await _flush(server)


async def _flush(server: ApiServer) -> None:
    deadline = time.monotonic() + FLUSH_S
    while server.in_flight and time.monotonic() < deadline:
        await asyncio.sleep(0.01)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
