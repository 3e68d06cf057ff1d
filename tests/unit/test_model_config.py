"""What is read from a config.json, held against published totals."""

from __future__ import annotations

import json
import os

import pytest

from tests.unit.translation_builders import ROOT
from tpu_migration.domain.fit import ModelConfigError, parse_catalog, parse_shape
from tpu_migration.domain.fit.shape import quantization_of
from tpu_migration.domain.translation import checkpoints
from tpu_migration.models import catalog, find_model

CATALOG = parse_catalog((ROOT / "include" / "models.yaml").read_text())
PLAIN = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 100,
    "max_position_embeddings": 512,
}

# Totals as the models' cards and safetensors indexes give them, in billions.
PUBLISHED = {
    "google/gemma-3-1b-it": 1.0,
    "google/gemma-3-4b-it": 4.30,
    "google/gemma-3-12b-it": 12.19,
    "google/gemma-3-27b-it": 27.43,
    "meta-llama/Llama-3.1-8B-Instruct": 8.03,
    "meta-llama/Llama-3.1-70B-Instruct": 70.55,
    "meta-llama/Llama-3.3-70B-Instruct": 70.55,
    "Qwen/Qwen2.5-7B-Instruct": 7.62,
    "Qwen/Qwen2.5-32B-Instruct": 32.76,
    "Qwen/Qwen2.5-72B-Instruct": 72.71,
    "Qwen/Qwen3-8B": 8.19,
    "Qwen/Qwen3-32B": 32.76,
    "Qwen/Qwen3-30B-A3B": 30.53,
    "mistralai/Mistral-7B-Instruct-v0.3": 7.25,
    "mistralai/Mistral-Small-24B-Instruct-2501": 23.57,
    "mistralai/Mixtral-8x7B-Instruct-v0.1": 46.70,
    "openai/gpt-oss-20b": 20.91,
    "openai/gpt-oss-120b": 116.83,
}


@pytest.mark.parametrize("model", PUBLISHED)
def test_a_known_model_is_counted_to_its_published_total(model):
    known, shape = CATALOG.find(model)
    assert shape.parameters / 1e9 == pytest.approx(PUBLISHED[model], abs=0.006)
    assert shape.parameters == known.parameters


@pytest.mark.parametrize("known", CATALOG.models, ids=lambda each: each.name)
def test_every_entry_of_the_table_counts_to_its_own_total(known):
    assert parse_shape(known.config, known.name).parameters == known.parameters


def test_a_small_decoder_is_counted_as_by_hand():
    attention = 2 * 64 * 64 + 2 * 64 * 32
    feed_forward = 3 * 64 * 128
    assert parse_shape(PLAIN, "m").parameters == 2 * (attention + feed_forward + 2 * 64) + 2 * 100 * 64 + 64
    assert parse_shape({**PLAIN, "tie_word_embeddings": True}, "m").parameters == (
        parse_shape(PLAIN, "m").parameters - 100 * 64
    )


def test_gemma_3_has_five_local_layers_to_each_global_one():
    _, shape = CATALOG.find("google/gemma-3-27b-it")
    assert (shape.sliding_window, shape.sliding_layers, shape.layers) == (1024, 52, 62)


def test_layer_types_win_over_the_pattern_and_a_window_switched_off_counts_for_nothing():
    kinds = ["sliding_attention", "full_attention"]
    assert parse_shape({**PLAIN, "sliding_window": 64, "layer_types": kinds}, "m").sliding_layers == 1
    off = parse_shape({**PLAIN, "sliding_window": 64, "use_sliding_window": False}, "m")
    assert (off.sliding_window, off.sliding_layers) == (None, 0)
    assert parse_shape({**PLAIN, "sliding_window": 64}, "m").sliding_layers == 2


@pytest.mark.parametrize(
    ("name", "stored"),
    [
        ("RedHatAI/gemma-3-27b-it-FP8-dynamic", "fp8"),
        ("RedHatAI/gemma-3-27b-it-quantized.w4a16", "int4"),
        ("/models/gemma-3-27b-it", None),
        ("gs://weights/google/gemma-3-27b-it-AWQ", "int4"),
    ],
)
def test_a_copy_or_a_quantized_one_is_known_by_its_base(name, stored):
    known, shape = CATALOG.find(name)
    assert known.name == "gemma-3-27b"
    assert (shape.quantization.stored if shape.quantization else None) == stored


def test_a_model_of_a_like_name_is_not_taken_for_a_known_one():
    assert CATALOG.find("Qwen/Qwen2.5-VL-7B-Instruct") is None
    assert CATALOG.find("google/gemma-3-270m") is None
    assert CATALOG.find("mistralai/Mistral-7B-Instruct-v0.1") is None


@pytest.mark.parametrize(
    ("config", "stored"),
    [
        ({"quant_method": "fp8"}, "fp8"),
        ({"quant_method": "awq", "bits": 4}, "int4"),
        ({"quant_method": "gptq", "bits": 8}, "int8"),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {"group_0": {"weights": {"num_bits": 8, "type": "float"}}},
            },
            "fp8",
        ),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {"group_0": {"weights": {"num_bits": 8, "type": "int"}}},
            },
            "int8",
        ),
        ({"quant_method": "mxfp4"}, "mxfp4"),
    ],
)
def test_a_quantization_config_says_how_weights_are_stored(config, stored):
    assert quantization_of(config).stored == stored


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"hidden_size": None}, "no hidden_size"),
        ({"num_hidden_layers": -1}, "num_hidden_layers is -1"),
        ({"vocab_size": "many"}, "vocab_size is 'many'"),
        ({"kv_lora_rank": 512}, "latent attention"),
        ({"mamba_d_state": 128}, "state-space"),
    ],
)
def test_a_config_that_would_be_counted_wrongly_is_refused(change, complaint):
    with pytest.raises(ModelConfigError, match=complaint):
        parse_shape({**PLAIN, **change}, "m")


def test_an_unknown_architecture_is_counted_but_said_to_be_a_guess():
    shape = parse_shape({**PLAIN, "model_type": "novelty"}, "m")
    assert "novelty is counted as a plain" in shape.notes[0]


def test_a_config_given_wins_over_the_table(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(PLAIN))
    assert find_model("google/gemma-3-27b-it", tmp_path).shape.hidden == 64
    assert find_model(str(tmp_path)).shape.hidden == 64


def test_the_hubs_cache_is_read_at_its_main_revision(tmp_path):
    folder = tmp_path / "hub" / "models--acme--chat"
    for revision, hidden in (("old", 32), ("new", 64)):
        (folder / "snapshots" / revision).mkdir(parents=True)
        (folder / "snapshots" / revision / "config.json").write_text(json.dumps({**PLAIN, "hidden_size": hidden}))
        os.utime(folder / "snapshots" / revision / "config.json", (1, 1 if revision == "new" else 2))
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("new")
    found = find_model("acme/chat", environ={"HF_HOME": str(tmp_path)})
    assert (found.shape.hidden, found.origin) == (64, "the Hub's cache")


def test_an_unknown_model_is_one_error_with_the_remedy(tmp_path):
    with pytest.raises(ModelConfigError, match=r"acme/chat.*--model-config"):
        find_model("acme/chat", environ={"HF_HOME": str(tmp_path)})


def test_a_broken_config_names_the_file(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelConfigError, match=r"config\.json is no JSON"):
        find_model("m", tmp_path)
    with pytest.raises(ModelConfigError, match="cannot read"):
        find_model("m", tmp_path / "none.json")


def test_the_product_reads_the_same_table():
    assert catalog() == CATALOG


@pytest.mark.parametrize("known", CATALOG.models, ids=lambda each: each.name)
def test_the_translation_knows_the_same_of_a_model_by_its_name(known):
    shape = parse_shape(known.config, known.name)
    assert checkpoints.native_context(known.name) in {None, shape.max_position}
    assert checkpoints.has_vision(known.name) == (shape.vision is not None)
