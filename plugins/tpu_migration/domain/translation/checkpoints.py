"""Know checkpoints by their names: the BF16 one of an FP8 one, native context lengths, vision towers."""

from __future__ import annotations

import re

# An FP8 checkpoint's name ends so; vendors append how it was made (-FP8-dynamic, -FP8-KV, …).
_FP8 = re.compile(
    r"[-_.](?:fp8|f8_e4m3|float8)(?:[-_.](?:dynamic|static|block|kv|kvcache|tensor|tensorwise|channelwise|e4m3|hf))*$",
    re.I,
)
_FP8_ANYWHERE = re.compile(r"(?:^|[-_./])(?:fp8|w8a8[-_]fp8|fp8[-_]w8a8|float8)(?=$|[-_./])", re.I)
_GPU_ONLY = re.compile(r"[-_.](gptq|bnb|bitsandbytes|gguf|exl2|exl3|aqlm|hqq|marlin|eetq)(?=$|[-_./])|\.gguf$", re.I)

# Organisations that publish FP8 checkpoints beside their own BF16 ones, under the same name without the suffix.
_PUBLISH_BOTH = {
    "qwen",
    "meta-llama",
    "zai-org",
    "thudm",
    "google",
    "ibm-granite",
    "baidu",
    "tencent",
    "lgai-exaone",
    "nousresearch",
    "mistralai",
    "cohereforai",
    "coherelabs",
    "allenai",
    "microsoft",
    "tiiuae",
    "stepfun-ai",
    "opengvlab",
    "arcee-ai",
}

# Who made the model that somebody else quantized: the beginning of its name says so.
_FAMILIES = (
    (r"meta-llama-3", "meta-llama"),
    (r"llama-", "meta-llama"),
    (r"gemma-", "google"),
    (r"medgemma-", "google"),
    (r"qwen", "Qwen"),
    (r"qwq-", "Qwen"),
    (r"deepseek-r1-distill-", "deepseek-ai"),
    (r"(mistral|mixtral|ministral|codestral|devstral|pixtral|magistral)-", "mistralai"),
    (r"phi-", "microsoft"),
    (r"granite-", "ibm-granite"),
    (r"glm-", "zai-org"),
    (r"c4ai-command", "CohereLabs"),
    (r"smollm", "HuggingFaceTB"),
    (r"falcon", "tiiuae"),
)

# Names that the rules would get wrong.
_EXCEPTIONS = {
    "neuralmagic/meta-llama-3.1-8b-instruct-fp8": "meta-llama/Llama-3.1-8B-Instruct",
    "neuralmagic/meta-llama-3-8b-instruct-fp8": "meta-llama/Meta-Llama-3-8B-Instruct",
    "nvidia/llama-3.1-8b-instruct-fp8": "meta-llama/Llama-3.1-8B-Instruct",
}

# FP8 from the beginning: the maker publishes no BF16 weights under a name that follows from this one.
_NATIVE_FP8 = re.compile(
    r"^(deepseek-ai/deepseek-(v3|r1(?!-distill)|v4)|minimaxai/minimax-m\d|moonshotai/kimi-k2"
    r"|mistralai/(ministral-3|devstral-(small-)?2|mistral-(large|medium)-3))",
    re.I,
)
# Families whose maker publishes `-BF16` beside the native FP8 ones.
_BF16_SIBLING = re.compile(r"^mistralai/ministral-3-\d+b-(instruct|reasoning)-\d+$", re.I)

# What a family serves where --max-model-len is not given: max_position_embeddings of its config.json.
_CONTEXTS = (
    (r"gemma-3-(270m|1b)", 32768),
    (r"(medgemma|gemma-3)-", 131072),
    (r"gemma-2-|gemma-(2b|7b)", 8192),
    (r"(meta-)?llama-3\.[123]-", 131072),
    (r"(meta-)?llama-3-", 8192),
    (r"llama-2-", 4096),
    (r"mistral-7b-.*v0\.[23]", 32768),
    (r"mixtral-8x7b", 32768),
    (r"mixtral-8x22b", 65536),
    (r"mistral-(nemo|small-3)", 131072),
    (r"qwen3-.*-2507", 262144),
    (r"qwen3-\d", 40960),
    (r"qwen2\.5-(?!.*1m)", 32768),
    (r"qwq-", 40960),
    (r"phi-4(?!-mini)", 16384),
    (r"tinyllama", 2048),
    (r"opt-", 2048),
    (r"facebook/opt-", 2048),
)

# "27b" in gemma-3-27b-it, "8x7B" in Mixtral-8x7B; the A22B of a mixture's active part is not its size.
_SIZE = re.compile(r"(?:^|[-_.])(?:(?P<experts>\d+)x)?(?P<billions>\d+(?:\.\d+)?)b(?=$|[-_.])", re.I)
_FOUR_BITS = re.compile(r"int4|w4a|awq|gptq|fp4|gpt-oss|[-_.]4bit", re.I)
_EIGHT_BITS = re.compile(r"int8|w8a|[-_.]8bit", re.I)

_VISION = re.compile(
    r"(gemma-3-(4b|12b|27b)|gemma-4-|medgemma-4b|llama-4-|[-_]vl([-_\d]|$)|pixtral|llava|internvl|minicpm-v|vision|paligemma"
    r"|mistral-small-(3\.[12]|4)|idefics|smolvlm|aria|molmo|ovis|ministral-3|qwen3\.5|[-_]omni)",
    re.I,
)


def is_hub_id(model: str) -> bool:
    """Tell an id of the Hugging Face hub from a path or URL."""
    return bool(re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?", model)) and model.count("/") <= 1


def is_fp8(model: str) -> bool:
    """Tell whether a checkpoint's name says that its weights are FP8."""
    name = model.rstrip("/")
    if re.search(r"[-_.]bf16$", name, re.I):
        return False
    return bool(_FP8_ANYWHERE.search(name)) or bool(_NATIVE_FP8.match(name))


def is_gpu_only(model: str) -> bool:
    """Tell whether a checkpoint's name says a quantization that only GPUs run."""
    return bool(_GPU_ONLY.search(model.rstrip("/")))


def bf16_checkpoint(model: str) -> str | None:
    """Find the BF16 checkpoint of an FP8 one; None where the name does not tell."""
    if known := _EXCEPTIONS.get(model.lower()):
        return known
    if _BF16_SIBLING.match(model):
        return f"{model}-BF16"
    stem = _FP8.sub("", model.rstrip("/"))
    if stem == model.rstrip("/") or not is_hub_id(model) or "/" not in stem:
        return None
    owner, name = stem.split("/", 1)
    if _FP8_ANYWHERE.search(name):
        return None
    if owner.lower() in _PUBLISH_BOTH:
        return stem
    for family, maker in _FAMILIES:
        if re.match(family, name, re.I):
            # Llama 3.1 and later dropped the "Meta-" of the first names.
            return f"{maker}/{re.sub(r'^Meta-(?=Llama-3[.])', '', name)}"
    return None


def native_context(model: str | None) -> int | None:
    """Give the context length that a known family serves by default."""
    if not model:
        return None
    name = model.rstrip("/").rsplit("/", 1)[-1]
    return next((tokens for family, tokens in _CONTEXTS if re.match(family, name, re.I)), None)


def least_weights_gib(model: str | None, *, quantized: bool) -> float | None:
    """Bound a checkpoint's weights from below, in GiB, by the size in its name; None where there is none.

    A bound and no estimate: it refuses what cannot fit, and says nothing of what does. Experts share their
    attention, so that 8x7B holds 47 billion parameters: 0.8 of the product is below all known.
    """
    name = (model or "").rstrip("/").rsplit("/", 1)[-1]
    match = _SIZE.search(name)
    if match is None:
        return None
    billions = float(match["billions"]) * (0.8 * int(match["experts"]) if match["experts"] else 1)
    size = 0.5 if quantized or _FOUR_BITS.search(name) else 1 if _EIGHT_BITS.search(name) else 2
    return billions * 1e9 * size / 2**30


def has_vision(model: str | None) -> bool:
    """Tell whether a known family takes images."""
    return bool(model and _VISION.search(model.rstrip("/").rsplit("/", 1)[-1]))
