"""Make a tiny Gemma 3 with random weights and a byte-level tokenizer, for a real vLLM on a CPU.

Run it with the Python of the vLLM's own environment (it needs transformers and torch):
    VLLM_ENV/bin/python tests/sandbox/make_tiny_gemma.py DIRECTORY
What the model says is noise; HTTP, streaming, metrics and signals around it are vLLM's own.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

SPECIAL = ["<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"]
CONTEXT = 4096
CHAT = (
    "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ m['role'] }}\n{{ m['content'] }}<end_of_turn>\n"
    "{% endfor %}<start_of_turn>model\n"
)


def main(directory: Path) -> None:
    """Write the model to `directory`."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    directory.mkdir(parents=True, exist_ok=True)
    words = SPECIAL + sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({word: number for number, word in enumerate(words)}, []))
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": "<pad>",
        "eos_token": "<eos>",
        "bos_token": "<bos>",
        "model_max_length": CONTEXT,
        "chat_template": CHAT,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(settings, indent=1))
    torch.manual_seed(0)
    config = Gemma3TextConfig(
        vocab_size=len(words),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=32,
        max_position_embeddings=CONTEXT,
        sliding_window=512,
        query_pre_attn_scalar=32,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=2,
    )
    Gemma3ForCausalLM(config).save_pretrained(directory)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
