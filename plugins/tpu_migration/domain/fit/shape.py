"""Read a model's shape from its Hugging Face config.json: what its weights and KV cache follow from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


class ModelConfigError(ValueError):
    """Say what is missing in a model's config, or why it cannot be counted, and the remedy."""


# What a config.json may leave to its model class (transformers' configuration_*.py).
_DEFAULTS: dict[str, dict[str, Any]] = {
    "gemma3_text": {
        "vocab_size": 262208,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "sliding_window_pattern": 6,
        "max_position_embeddings": 131072,
        "tie_word_embeddings": True,
    },
    "gemma2": {"head_dim": 256, "tie_word_embeddings": True, "sliding_window_pattern": 2},
    "gemma": {"head_dim": 256, "tie_word_embeddings": True},
    "gpt_oss": {"sliding_window_pattern": 2, "attention_bias": True},
}
# Attention or state of another kind than keys and values for each head: the sums below would be wrong.
_OTHER_KIND = {
    "kv_lora_rank": "multi-head latent attention",
    "linear_num_key_heads": "linear attention",
    "mamba_d_state": "a state-space layer",
    "ssm_state_size": "a state-space layer",
    "state_size": "a state-space layer",
    "global_head_dim": "attention heads of two sizes",
    "is_encoder_decoder": "an encoder",
}
_QKV_BIAS = {"qwen2", "qwen2_moe"}
_QK_NORM = {"qwen3", "qwen3_moe", "gemma3_text"}
_NORMS = {"gemma3_text": 4, "gemma2": 4}
_KNOWN = {
    "llama",
    "mistral",
    "mixtral",
    "qwen2",
    "qwen3",
    "qwen3_moe",
    "gemma",
    "gemma2",
    "gemma3_text",
    "gpt_oss",
    "phi3",
    "granite",
}


GPU_ONLY_METHODS = frozenset({"gptq", "gptqmodel", "bitsandbytes", "bnb", "gguf", "aqlm", "hqq", "quanto", "autoround"})


@dataclass(frozen=True)
class Vision:
    """Hold a vision tower with its projector: parameters, and the heads that tensor parallelism would split."""

    parameters: int
    heads: int


@dataclass(frozen=True)
class Quantization:
    """Say how the checkpoint's matrices are stored: fp8, int8, int4 or mxfp4 (experts only), by what method."""

    method: str
    stored: str

    @property
    def gpu_only(self) -> bool:
        """Tell whether only GPUs run it: a TPU is then served other weights, in BF16."""
        return self.method in GPU_ONLY_METHODS


@dataclass(frozen=True)
class Shape:
    """Hold what sizes a decoder: counts, not bytes."""

    name: str
    architecture: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    max_position: int
    tied: bool
    dtype: str
    attention_parameters: int  # a layer's q and o projections
    kv_parameters: int  # a layer's k and v projections
    dense_parameters: int  # a layer's feed-forward matrices where it is dense
    expert_parameters: int  # a layer's experts, all of them
    small_parameters: int  # a layer's norms, biases, router, sinks
    dense_layers: int
    active_width: int  # feed-forward columns that one token passes through
    sliding_window: int | None = None
    sliding_layers: int = 0
    vision: Vision | None = None
    quantization: Quantization | None = None
    notes: tuple[str, ...] = field(default=())

    @property
    def parameters(self) -> int:
        """Count every parameter, the vision tower's included."""
        embeddings = self.vocab * self.hidden * (1 if self.tied else 2) + self.hidden
        return (
            self.layers * (self.attention_parameters + self.kv_parameters + self.small_parameters)
            + self.dense_layers * self.dense_parameters
            + (self.layers - self.dense_layers) * self.expert_parameters
            + embeddings
            + (self.vision.parameters if self.vision else 0)
        )


def parse_shape(config: Mapping[str, Any], name: str) -> Shape:
    """Read a config.json, a multimodal one's text_config included.

    Raises ModelConfigError for a config that lacks a size, or a model whose cache is no plain KV cache.
    """
    if not isinstance(config, Mapping):
        raise ModelConfigError(f"{name}: a config.json is a mapping, found {type(config).__name__}")
    text = _text_config(config)
    kind = str(text.get("model_type") or config.get("model_type") or "")
    for key, what in _OTHER_KIND.items():
        if text.get(key):
            raise ModelConfigError(
                f"{name}: {what} ({key}) is not counted here: measure it, or plan with a plain decoder"
            )
    get = _Reader({**_DEFAULTS.get(kind, {}), **{k: v for k, v in text.items() if v is not None}}, name)
    hidden, heads, layers = get.size("hidden_size"), get.size("num_attention_heads"), get.size("num_hidden_layers")
    kv_heads = get.size("num_key_value_heads", heads)
    head_dim = get.size("head_dim", hidden // heads)
    vocab = get.size("vocab_size")
    experts = get.size("num_local_experts", get.size("num_experts", get.size("n_routed_experts", 0)))
    dense, expert, width, router = _feed_forward(get, kind, hidden, experts)
    window, sliding = _sliding(get, layers)
    known = () if kind in _KNOWN else (f"model type {kind or 'unknown'} is counted as a plain Llama-like decoder",)
    return Shape(
        name=name,
        architecture=str((config.get("architectures") or [kind or "unknown"])[0]),
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        vocab=vocab,
        max_position=get.size("max_position_embeddings", 0),
        tied=bool(get.values.get("tie_word_embeddings", config.get("tie_word_embeddings", False))),
        dtype=str(
            text.get("torch_dtype")
            or config.get("torch_dtype")
            or text.get("dtype")
            or config.get("dtype")
            or "bfloat16"
        ),
        attention_parameters=2 * hidden * heads * head_dim,
        kv_parameters=2 * hidden * kv_heads * head_dim,
        dense_parameters=dense,
        expert_parameters=expert,
        small_parameters=_small(get, kind, hidden, heads, kv_heads, head_dim) + router,
        dense_layers=_dense_layers(get, layers, experts),
        active_width=width,
        sliding_window=window,
        sliding_layers=sliding,
        vision=_vision(config, hidden),
        quantization=quantization_of(config.get("quantization_config") or text.get("quantization_config")),
        notes=known,
    )


def _text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    for key in ("text_config", "llm_config", "language_config"):
        if isinstance(config.get(key), Mapping):
            return config[key]  # type: ignore[no-any-return]
    return config


class _Reader:
    """Read sizes from a config, naming what is missing or senseless."""

    def __init__(self, values: Mapping[str, Any], name: str) -> None:
        self.values, self.name = values, name

    def size(self, key: str, default: int | None = None) -> int:
        value = self.values.get(key, default)
        if value is None:
            raise ModelConfigError(f"{self.name}: config.json has no {key}: give the whole file (--model-config)")
        lowest = 0 if default == 0 else 1
        if isinstance(value, bool) or not isinstance(value, int) or value < lowest:
            raise ModelConfigError(f"{self.name}: {key} is {value!r}, not a number of at least {lowest}")
        return value


def _feed_forward(get: _Reader, kind: str, hidden: int, experts: int) -> tuple[int, int, int, int]:
    """Return the dense matrices, the experts', the width that a token sees, and the router's parameters, a layer."""
    inner = get.size("intermediate_size")
    dense = 3 * hidden * inner
    if not experts:
        return dense, 0, inner, 0
    width = get.size("moe_intermediate_size", inner)
    active = get.size("num_experts_per_tok", 1)
    shared = get.size("shared_expert_intermediate_size", width * get.size("n_shared_experts", 0) or 0)
    each, router = 3 * hidden * width, hidden * experts
    if kind == "gpt_oss":
        each += 2 * width + hidden
        router += experts
    return dense, experts * each + 3 * hidden * shared, active * width + shared, router


def _dense_layers(get: _Reader, layers: int, experts: int) -> int:
    if not experts:
        return layers
    listed = get.values.get("mlp_only_layers")
    return len(listed) if listed else get.size("first_k_dense_replace", 0)


def _small(get: _Reader, kind: str, hidden: int, heads: int, kv_heads: int, head_dim: int) -> int:
    total = _NORMS.get(kind, 2) * hidden
    if kind in _QK_NORM:
        total += 2 * head_dim
    bias = bool(get.values.get("attention_bias"))
    if bias or kind in _QKV_BIAS:
        total += (heads + 2 * kv_heads) * head_dim + (hidden if bias else 0)
    if kind == "gpt_oss":
        total += heads  # attention sinks
    return total


def _sliding(get: _Reader, layers: int) -> tuple[int | None, int]:
    """Return the window and how many layers have it; Gemma 3 has five local layers to each global one."""
    window = get.values.get("sliding_window")
    if not window or get.values.get("use_sliding_window") is False:
        return None, 0
    window = get.size("sliding_window")
    listed = get.values.get("layer_types")
    if listed:
        count = sum(1 for layer in listed if layer == "sliding_attention")
    elif "sliding_window_pattern" in get.values:
        count = layers - layers // get.size("sliding_window_pattern")
    else:
        count = layers
    return (window, count) if count else (None, 0)


def _vision(config: Mapping[str, Any], hidden: int) -> Vision | None:
    """Count a ViT (SigLIP's layout) with its projector; others of that size differ by a few per cent."""
    raw = config.get("vision_config")
    if not isinstance(raw, Mapping) or not raw:
        return None
    get = _Reader({k: v for k, v in raw.items() if v is not None}, "vision_config")
    width = get.size("hidden_size", 1152)
    inner, layers = get.size("intermediate_size", 4 * width), get.size("num_hidden_layers", 27)
    patch = get.size("patch_size", 14)
    positions = (get.size("image_size", 896) // patch) ** 2
    block = 4 * (width * width + width) + 2 * width * inner + inner + width + 4 * width
    tower = layers * block + 3 * patch * patch * width + width + positions * width + 2 * width
    return Vision(tower + width * hidden + width, get.size("num_attention_heads", 16))


def quantization_of(config: Any) -> Quantization | None:
    """Read a quantization_config: the method, and the type that the matrices are stored in."""
    if not isinstance(config, Mapping) or not config:
        return None
    method = str(config.get("quant_method") or config.get("quant_algo") or "unknown").lower()
    if method == "mxfp4" or "fp8" in method:
        return Quantization(method, "mxfp4" if method == "mxfp4" else "fp8")
    weights: Any = config
    for group in (config.get("config_groups") or {}).values():
        weights = (group or {}).get("weights") or {}
        break
    bits = weights.get("num_bits") or weights.get("bits") or (8 if config.get("load_in_8bit") else 4)
    kind = str(weights.get("type") or "int")
    return Quantization(method, "fp8" if kind == "float" and bits == 8 else f"int{bits}")
