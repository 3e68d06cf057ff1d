"""Parse vLLM's flags as its 0.32 parser does: unknown ones end the process with status 2."""

from __future__ import annotations

import argparse
import json
import re
import sys
from dataclasses import dataclass
from typing import NoReturn

from sandbox.engine.flag_names import GONE_SWITCHES, GONE_VALUES, MULTIPLE, SHORT, SWITCHES, VALUES

TPU_QUANTIZATION = (
    "compressed-tensors",
    "auto_awq",
    "fp8",
    "gpt_oss_mxfp4",
    "modelopt_fp4",
    "deepseek_v4_fp8",
)
_SIZE = re.compile(r"(\d+(?:\.\d+)?)([kKmMgG]?)")
_DECIMAL = {"": 1, "k": 1000, "m": 1000**2, "g": 1000**3}
_BINARY = {"K": 1024, "M": 1024**2, "G": 1024**3}


@dataclass(frozen=True)
class EngineFlags:
    """What the simulation reads of a vLLM command line."""

    model: str
    served_names: tuple[str, ...]
    port: int
    quantization: str | None
    dtype: str
    tensor_parallel: int
    pipeline_parallel: int
    data_parallel: int
    max_model_len: int | None
    max_num_seqs: int | None
    max_num_batched_tokens: int | None
    gpu_memory_utilization: float
    kv_cache_dtype: str
    block_size: int
    stream_interval: int
    shutdown_timeout_s: int
    max_logprobs: int
    enforce_eager: bool
    speculative: bool
    sleep_mode: bool
    text_only: bool
    track_load: bool
    fail_on_environ_validation: bool
    api_keys: tuple[str, ...]


class _Parser(argparse.ArgumentParser):
    """argparse with vLLM's prefix on errors, even where a script of another name runs it."""

    def error(self, message: str) -> NoReturn:
        sys.stderr.write(f"usage: {self.usage}\n{self.prog}: error: {message}\n")
        raise SystemExit(2)


def human_int(text: str) -> int:
    """Read an integer as vLLM does: 1k is 1000, 1K is 1024, 25.6k is 25600."""
    found = _SIZE.fullmatch(text.strip())
    if not found:
        raise argparse.ArgumentTypeError(f"invalid size value: {text!r}")
    number, unit = found.groups()
    return int(float(number) * (_BINARY.get(unit) or _DECIMAL[unit]))


def _parser(prog: str, lenient: bool) -> _Parser:
    parser = _Parser(prog=prog, usage=f"{prog} [model_tag] [options]", add_help=True)
    parser.add_argument("model_tag", nargs="?")
    add = parser.add_argument
    add("--model", default="Qwen/Qwen3-0.6B")
    add("--served-model-name", nargs="+")
    add("--port", type=int, default=8000)
    add("--quantization", "-q")
    for name in ("tensor-parallel-size", "pipeline-parallel-size", "data-parallel-size"):
        add(f"--{name}", SHORT[name], type=int, default=1)
    for name in ("max-model-len", "max-num-seqs", "max-num-batched-tokens"):
        add(f"--{name}", type=human_int)
    add("--gpu-memory-utilization", type=float, default=0.92)
    add("--stream-interval", type=int, default=1)
    add("--shutdown-timeout", type=int, default=0)
    add("--max-logprobs", type=int, default=20)
    add("--hf-token", nargs="?", const=True)
    for name in SWITCHES:
        add(f"--{name}", action=argparse.BooleanOptionalAction, help=argparse.SUPPRESS)
    for name in VALUES:
        add(f"--{name}", *([SHORT[name]] if name in SHORT else []), help=argparse.SUPPRESS)
    for name in MULTIPLE:
        add(f"--{name}", nargs="+", help=argparse.SUPPRESS)
    if lenient:
        for name in GONE_VALUES:
            add(f"--{name}", help=argparse.SUPPRESS)
        for name in GONE_SWITCHES:
            add(f"--{name}", action="store_true", help=argparse.SUPPRESS)
    return parser


def _normalised(argv: list[str]) -> list[str]:
    """Spell flags with dashes and drop the tail of dotted ones (`--hf-overrides.a=1`)."""
    result = []
    for arg in argv:
        if arg.startswith("--"):
            name, equals, value = arg.partition("=")
            result.append(name.replace("_", "-").partition(".")[0] + equals + value)
        else:
            result.append(arg)
    return result


def _text_only(args: argparse.Namespace) -> bool:
    """Tell whether every multimodal limit is 0, which keeps Gemma 3 on the text path."""
    if args.language_model_only:
        return True
    try:
        limits = json.loads(args.limit_mm_per_prompt or "{}")
    except ValueError:
        pairs = re.findall(r"(\w+)=(\d+)", args.limit_mm_per_prompt)
        limits = {key: int(value) for key, value in pairs}
    return bool(limits) and all(value == 0 for value in limits.values())


def parse_flags(argv: list[str], *, prog: str = "vllm serve", lenient: bool = False) -> EngineFlags:
    """Return the flags of `argv`.

    `lenient` (GPU images, which may be of any age) accepts flags that 0.32 has dropped and
    ignores unknown ones; otherwise an unknown flag ends the process with status 2.
    """
    parser = _parser(prog, lenient)
    if lenient:
        args, unknown = parser.parse_known_args(_normalised(argv))
        if unknown:
            sys.stderr.write(f"WARNING simulated engine ignores unknown flags: {' '.join(unknown)}\n")
    else:
        args = parser.parse_args(_normalised(argv))
    model = args.model_tag or args.model
    speculative = any((args.speculative_config, args.spec_method, args.spec_model, args.spec_tokens))
    return EngineFlags(
        model=model,
        served_names=tuple(args.served_model_name or (model,)),
        port=args.port,
        quantization=None if args.quantization in (None, "None", "none") else args.quantization,
        dtype=args.dtype or "auto",
        tensor_parallel=args.tensor_parallel_size,
        pipeline_parallel=args.pipeline_parallel_size,
        data_parallel=args.data_parallel_size,
        max_model_len=args.max_model_len,
        max_num_seqs=args.max_num_seqs,
        max_num_batched_tokens=args.max_num_batched_tokens,
        gpu_memory_utilization=args.gpu_memory_utilization,
        kv_cache_dtype=args.kv_cache_dtype or "auto",
        block_size=int(args.block_size or 16),
        stream_interval=max(1, args.stream_interval),
        shutdown_timeout_s=args.shutdown_timeout,
        max_logprobs=args.max_logprobs,
        enforce_eager=bool(args.enforce_eager),
        speculative=bool(speculative),
        sleep_mode=bool(args.enable_sleep_mode),
        text_only=_text_only(args),
        track_load=bool(args.enable_server_load_tracking),
        fail_on_environ_validation=bool(args.fail_on_environ_validation),
        api_keys=tuple(args.api_key or ()),
    )
