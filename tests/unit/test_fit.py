"""Whether a model fits: against figures seen on TPUs, by hand, and by properties."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.translation_builders import ROOT, slice_of
from tpu_migration.domain.accelerators import parse_accelerators
from tpu_migration.domain.fit import (
    DOES_NOT_FIT,
    FITS,
    TIGHT,
    Place,
    Serving,
    fit,
    parse_catalog,
    parse_shape,
    place_of_gpus,
    place_of_slice,
    smallest,
)

KNOWN = parse_accelerators((ROOT / "include" / "accelerators.yaml").read_text())
CATALOG = parse_catalog((ROOT / "include" / "models.yaml").read_text())
RANK = {DOES_NOT_FIT: 0, TIGHT: 1, FITS: 2}


def shape_of(model: str = "google/gemma-3-27b-it"):
    return CATALOG.find(model)[1]


def on(target: str, model: str = "google/gemma-3-27b-it", **serving):
    return fit(shape_of(model), Serving(**{"max_model_len": 8192, **serving}), place_of_slice(slice_of(target)))


def test_gemma_27b_is_as_big_on_a_v5e_8_as_it_was_seen_there():
    # Seen: 51 GiB of weights, 6.4 GiB a chip of 16, about 62 GiB of KV cache at 0.9, 131k tokens.
    found = on("tpu-v5e-8")
    assert found.weights_gib == pytest.approx(51, rel=0.02)
    assert found.weights_gib_per_device == pytest.approx(6.4, rel=0.02)
    assert found.kv_gib == pytest.approx(62, rel=0.02)
    assert found.kv_tokens == pytest.approx(131_000, rel=0.02)
    assert found.kv_bytes_per_token == 62 * 2 * 16 * 128 * 2
    assert found.verdict == FITS


@pytest.mark.parametrize("length", [8192, 32768])
def test_gemma_27b_on_a_v5e_4_is_tight_with_under_10_gib_left(length):
    found = on("tpu-v5e-4", max_model_len=length)
    assert found.verdict == TIGHT
    assert 0 < found.head_room_gib < 10
    assert f"{found.head_room_gib:.1f} GiB left" in found.reasons[0]


def test_gemma_27b_in_bf16_weighs_54_gb():
    shape = shape_of()
    assert shape.parameters * 2 / 1e9 == pytest.approx(54, rel=0.02)


def test_a_70b_model_in_bf16_does_not_fit_a_v5e_8_and_the_lack_is_named():
    found = on("tpu-v5e-8", "meta-llama/Llama-3.1-70B-Instruct")
    assert found.verdict == DOES_NOT_FIT
    assert found.reasons == ("weights alone lack 18.0 GiB at utilization 0.9",)
    assert on("tpu-v6e-8", "meta-llama/Llama-3.1-70B-Instruct").verdict == FITS


def test_heads_that_eight_chips_cannot_share_are_named_with_the_legal_degrees():
    found = on("tpu-v5e-8", "Qwen/Qwen2.5-7B-Instruct")
    assert found.verdict == DOES_NOT_FIT
    assert found.reasons[0] == "28 attention heads cannot be split 8 ways; legal here: 1, 2, 4"
    assert on("tpu-v5e-4", "Qwen/Qwen2.5-7B-Instruct").verdict == FITS


def test_kv_heads_that_neither_split_nor_replicate_are_illegal():
    odd = replace(shape_of(), heads=24, kv_heads=6)
    found = fit(odd, Serving(8192), place_of_slice(slice_of("tpu-v5e-8")))
    assert "6 KV heads can be neither split nor replicated 8 ways" in found.reasons[0]


def test_fewer_kv_heads_than_chips_are_replicated_and_cost_cache_on_every_chip():
    shape = shape_of("Qwen/Qwen3-30B-A3B")  # four KV heads
    four = fit(shape, Serving(8192), place_of_slice(slice_of("tpu-v6e-4")))
    eight = fit(shape, Serving(8192), place_of_slice(slice_of("tpu-v6e-8")))
    assert four.kv_bytes_per_token == 48 * 2 * 4 * 128 * 2
    assert eight.kv_bytes_per_token == 2 * four.kv_bytes_per_token
    assert eight.weights_gib > four.weights_gib


def test_a_degree_beyond_the_chips_is_refused():
    assert "needs 16 devices, tpu-v5e-8 has 8" in on("tpu-v5e-8", tensor_parallel=16).reasons[0]


def test_a_head_of_96_takes_the_room_of_128_on_tpu_but_64_does_not():
    v5e = place_of_slice(slice_of("tpu-v5e-8"))
    of = {size: fit(replace(shape_of(), head_dim=size), Serving(8192), v5e) for size in (64, 96, 128)}
    assert of[96].kv_bytes_per_token == of[128].kv_bytes_per_token == 2 * of[64].kv_bytes_per_token


def test_windows_are_not_taken_to_be_freed_on_tpu_but_what_that_would_give_is_told():
    found = on("tpu-v5e-8", max_model_len=32768)
    one = 10 * 32768 + 52 * (1024 + 2048)
    assert found.kv_tokens_freed / found.kv_tokens == pytest.approx(62 * 32768 / one, rel=0.001)
    gpu = fit(shape_of(), Serving(32768), place_of_gpus(KNOWN.gpu("h100"), 1))
    assert gpu.kv_tokens == gpu.kv_tokens_freed


def test_a_context_that_only_freed_windows_allow_is_tight_and_one_beyond_them_does_not_fit():
    found = on("tpu-v5e-4", max_model_len=32768)
    assert "only if sliding windows are freed" in found.reasons[0]
    beyond = on("tpu-v5e-4", max_model_len=131072)
    assert beyond.verdict == DOES_NOT_FIT
    assert "one request of 131,072 needs" in beyond.reasons[0]


def test_a_context_beyond_the_models_own_does_not_fit_however_much_room_there_is():
    assert "beyond the model's 131,072" in on("tpu-v6e-8", max_model_len=200_000).reasons[0]


def test_fp8_weights_and_cache_are_counted_in_bf16_on_tpu_and_as_they_are_on_h100():
    shape, serving = shape_of("RedHatAI/gemma-3-27b-it-FP8-dynamic"), Serving(8192, kv_dtype="fp8")
    tpu = fit(shape, serving, place_of_slice(slice_of("tpu-v5e-8")))
    gpu = fit(shape, serving, place_of_gpus(KNOWN.gpu("h100"), 1))
    assert tpu.weights_gib == pytest.approx(on("tpu-v5e-8").weights_gib)
    assert gpu.weights_gib == pytest.approx(27.3, abs=0.1)
    assert len(tpu.notes) == 2
    assert tpu.kv_bytes_per_token == 2 * gpu.kv_bytes_per_token


def test_weights_that_only_gpus_run_are_counted_in_bf16():
    found = on("tpu-v5e-8", "TheBloke/Mistral-7B-Instruct-v0.3-GPTQ")
    assert found.weights_gib == pytest.approx(13.5, abs=0.1)
    assert "gptq runs on GPUs only" in found.notes[0]


def test_mxfp4_shrinks_the_experts_and_nothing_else():
    assert on("tpu-v6e-8", "openai/gpt-oss-20b").weights_gib == pytest.approx(12.8, abs=0.2)  # 12.8 GiB published


def test_text_only_saves_the_vision_tower():
    saved = on("tpu-v5e-8").weights_gib - on("tpu-v5e-8", text_only=True).weights_gib
    assert saved == pytest.approx(0.42e9 * 2 / 2**30, rel=0.02)


def test_a_vision_tower_whose_heads_do_not_split_lies_whole_on_every_chip():
    shape = shape_of()
    whole = replace(shape, vision=replace(shape.vision, heads=12))
    place = place_of_slice(slice_of("tpu-v5e-8"))
    more = fit(whole, Serving(8192), place).weights_gib - fit(shape, Serving(8192), place).weights_gib
    assert more == pytest.approx(7 * shape.vision.parameters * 2 / 2**30)


def test_no_room_beside_the_cache_for_a_steps_activations_is_tight():
    found = on("tpu-v5e-8", utilization=0.99)
    assert found.verdict == TIGHT
    assert "lower --gpu-memory-utilization" in found.reasons[0]


def test_the_smallest_machine_that_fits_well_is_found():
    assert smallest(shape_of(), Serving(8192), KNOWN.gpu("l4")).place.name == "l4 x4"
    assert smallest(shape_of(), Serving(8192), KNOWN.gpu("h100")).place.name == "h100 x1"
    assert smallest(shape_of("openai/gpt-oss-120b"), Serving(8192), KNOWN.gpu("l4")).place.chips == 4


SMALL = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 100,
    "max_position_embeddings": 1 << 20,
}


@st.composite
def models(draw):
    kv_heads = draw(st.sampled_from([1, 2, 4, 8]))
    window = draw(st.sampled_from([None, 512, 4096]))
    config = {
        **SMALL,
        "hidden_size": draw(st.sampled_from([1024, 4096, 8192])),
        "intermediate_size": draw(st.integers(1024, 32768)),
        "num_hidden_layers": draw(st.integers(2, 90)),
        "num_attention_heads": 32,
        "num_key_value_heads": kv_heads,
        "head_dim": draw(st.sampled_from([64, 96, 128, 256])),
        "vocab_size": draw(st.integers(1000, 270_000)),
        "sliding_window": window,
        "sliding_window_pattern": 6,
    }
    return parse_shape(config, "m")


def place(chips: int, gib: float = 15.75) -> Place:
    return Place(f"tpu-{chips}", "tpu", chips, chips, gib, ("bfloat16",))


@settings(max_examples=200, deadline=None)
@given(models(), st.sampled_from([1, 2, 4, 8]), st.integers(128, 1 << 18), st.floats(0.5, 0.95))
def test_more_chips_never_fit_worse(shape, chips, length, share):
    serving = Serving(length, utilization=share)
    few, many = fit(shape, serving, place(chips)), fit(shape, serving, place(2 * chips))
    assert RANK[many.verdict] >= RANK[few.verdict]
    assert many.kv_tokens >= few.kv_tokens
    assert many.weights_gib_per_device <= few.weights_gib_per_device


@settings(max_examples=200, deadline=None)
@given(models(), st.integers(128, 1 << 17), st.integers(1, 1 << 17))
def test_a_longer_context_never_needs_less(shape, length, more):
    short, long = (fit(shape, Serving(each), place(8)) for each in (length, length + more))
    assert RANK[long.verdict] <= RANK[short.verdict]
    assert long.concurrency <= short.concurrency


@settings(max_examples=200, deadline=None)
@given(models(), st.integers(128, 1 << 17), st.floats(8, 90))
def test_the_largest_context_is_one_that_fits(shape, length, gib):
    found = fit(shape, Serving(length), place(8, gib))
    if found.largest_context:
        again = fit(shape, Serving(found.largest_context), place(8, gib))
        assert again.verdict != DOES_NOT_FIT
        assert again.concurrency >= 1 or again.kv_tokens >= found.largest_context - 1


@settings(max_examples=100, deadline=None)
@given(models(), st.integers(128, 1 << 17))
def test_every_verdict_but_fits_says_why(shape, length):
    found = fit(shape, Serving(length), place(4))
    assert bool(found.reasons) == (found.verdict != FITS)
