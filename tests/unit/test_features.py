"""Which capabilities users lose, told from the source's own arguments and model."""

from __future__ import annotations

import json

import pytest

from tests.unit.translation_builders import ROOT, deployment, slice_of
from tpu_migration.domain.features import (
    BLOCKER,
    NOTE,
    WARNING,
    FeatureError,
    Workload,
    analyse,
    as_json,
    parse_features,
)
from tpu_migration.domain.fit import parse_catalog
from tpu_migration.domain.translation import command_line, translate
from tpu_migration.domain.translation.flags import why_removed

TEXT = (ROOT / "include" / "features.yaml").read_text()
TABLE = parse_features(TEXT)
CATALOG = parse_catalog((ROOT / "include" / "models.yaml").read_text())


def gaps_of(*arguments, model="meta-llama/Llama-3.1-8B-Instruct", generation="v5e", text_only=False):
    line = command_line(deployment([model, *arguments], ["vllm", "serve"]))
    found = CATALOG.find(model)
    workload = Workload(line, model, found[1] if found else None, text_only)
    return {gap.key: gap for gap in analyse(TABLE, workload, generation)}


BASE = {"compile_at_start", "structured_output", "sampling_parameters", "request_seed", "prompt_logprobs"}


def test_a_plain_server_loses_only_what_every_server_loses():
    gaps = gaps_of("--max-model-len=8192")
    assert set(gaps) == BASE
    assert not [gap for gap in gaps.values() if gap.severity == BLOCKER]


@pytest.mark.parametrize(
    ("argument", "key", "severity"),
    [
        ("--quantization=fp8", "fp8_weights", WARNING),
        ("--quantization=modelopt", "fp8_weights", BLOCKER),
        ("--quantization=awq_marlin", "other_quantization", WARNING),
        ("--quantization=gptq", "other_quantization", BLOCKER),
        ("--kv-cache-dtype=fp8_e4m3", "fp8_kv_cache", WARNING),
        ('--speculative-config={"method":"ngram"}', "speculative_decoding", WARNING),
        ("--speculative-model=x/y", "speculative_decoding", WARNING),
        ("--attention-backend=FLASHINFER", "attention_backend", NOTE),
        ("--enable-lora", "lora", WARNING),
        ("--guided-decoding-backend=xgrammar", "structured_output", WARNING),
        ('--kv-transfer-config={"kv_connector":"NixlConnector","kv_role":"kv_both"}', "kv_transfer", WARNING),
        ('--kv-transfer-config={"kv_connector":"NixlConnector","kv_role":"kv_producer"}', "kv_transfer", BLOCKER),
        ("--enable-sleep-mode", "sleep_mode", WARNING),
        ("--cpu-offload-gb=40", "weight_offload", WARNING),
        ("--data-parallel-size=2", "several_engines", WARNING),
        ("--nnodes=2", "several_hosts", BLOCKER),
        ("--pipeline-parallel-size=2", "several_hosts", WARNING),
        ("--enable-expert-parallel", "expert_parallel", WARNING),
        ("--task=embed", "pooling", BLOCKER),
        ("--logits-processors=my.Processor", "logits_processors", WARNING),
    ],
)
def test_each_lost_capability_is_told_by_the_argument_that_shows_it(argument, key, severity):
    gap = gaps_of("--max-model-len=8192", argument)[key]
    assert gap.severity == severity
    assert argument.split("=")[0].lstrip("-") in gap.evidence.replace("FLASHINFER", "attention-backend")
    assert gap.effect
    assert gap.remedy
    assert gap.version == "0.32"


@pytest.mark.parametrize(
    "argument",
    [
        "--data-parallel-size=1",
        "--pipeline-parallel-size=1",
        "--nnodes=1",
        "--cpu-offload-gb=0",
        "--no-enable-lora",
        "--task=generate",
        "--kv-cache-dtype=auto",
        '--kv-transfer-config={"kv_connector":"TPUConnector","kv_role":"kv_both"}',
    ],
)
def test_an_argument_that_asks_for_nothing_is_no_gap(argument):
    assert set(gaps_of("--max-model-len=8192", argument)) == BASE


def test_an_fp8_checkpoint_names_the_bf16_one_that_takes_its_place():
    gap = gaps_of("--max-model-len=8192", model="RedHatAI/gemma-3-27b-it-FP8-dynamic")["fp8_weights"]
    assert (gap.severity, "google/gemma-3-27b-it" in gap.remedy) == (WARNING, True)


def test_an_fp8_checkpoint_without_a_known_bf16_one_blocks():
    gap = gaps_of("--max-model-len=8192", model="acme/secret-FP8")["fp8_weights"]
    assert gap.severity == BLOCKER
    assert "--model" in gap.remedy


def test_images_are_a_gap_only_where_users_may_send_them():
    model = "google/gemma-3-27b-it"
    gaps = gaps_of("--max-model-len=8192", model=model)
    assert gaps["multimodal"].severity == WARNING
    assert gaps["prompt_logprobs"].severity == WARNING
    for without in (gaps_of("--max-model-len=8192", '--limit-mm-per-prompt={"image":0}', model=model),
                    gaps_of("--max-model-len=8192", model=model, text_only=True)):  # fmt: skip
        assert "multimodal" not in without
        assert without["prompt_logprobs"].severity == NOTE


def test_lora_is_a_gap_on_v5e_and_none_on_v6e():
    assert "lora" in gaps_of("--enable-lora")
    assert "lora" not in gaps_of("--enable-lora", generation="v6e")


def test_a_context_left_to_the_model_is_told():
    assert gaps_of()["context_length"].severity == WARNING


def test_blockers_come_first_then_warnings():
    order = [gap.severity for gap in gaps_of("--task=embed", "--enable-lora").values()]
    assert order == sorted(order, key=[BLOCKER, WARNING, NOTE].index)


def test_a_workload_that_hides_its_arguments_still_loses_what_every_server_loses():
    found = {gap.key for gap in analyse(TABLE, Workload(None, None, None), "v5e")}
    assert found == BASE


@pytest.mark.parametrize(
    "argument", ["--quantization=gptq", "--task=embed", "--nnodes=2", '--kv-transfer-config={"kv_role":"kv_producer"}']
)
def test_what_blocks_here_blocks_the_translation_too(argument):
    source = deployment(["meta-llama/Llama-3.1-8B-Instruct", argument], ["vllm", "serve"])
    assert any(gap.severity == BLOCKER for gap in gaps_of(argument).values())
    assert translate([source], target=slice_of(), image="vllm/vllm-tpu:v0.32.0").blockers


def test_every_flag_of_a_lost_capability_is_one_that_the_translation_takes_out_or_rewrites():
    rewritten = {"quantization", "kv-cache-dtype", "guided-decoding-backend", "limit-mm-per-prompt", "max-model-len"}
    removed_apart = {"kv-transfer-config", "ec-transfer-config", "kv-events-config", "load-format", "nnodes"}
    kept = {"enable-lora", "lora-modules", "enable-expert-parallel", "logits-processors"}
    kept |= {"mm-processor-kwargs", "runner", "headless"}
    for feature in TABLE.features:
        for flag in feature.flags:
            assert why_removed(flag) or flag in rewritten | removed_apart | kept, f"{feature.key}: {flag}"


def test_the_table_is_refused_where_it_and_the_rules_differ():
    for changed in (TEXT.replace("  lora:", "  lorry:"), TEXT.replace("severity: note", "severity: shrug", 1)):
        with pytest.raises(FeatureError, match="features"):
            parse_features(changed)


def test_a_gap_is_json():
    assert json.loads(json.dumps([as_json(gap) for gap in gaps_of().values()]))


def test_a_checkpoint_that_people_name_for_the_target_resolves_what_would_block():
    line = command_line(deployment(["acme/secret-FP8"], ["vllm", "serve"]))
    workload = Workload(line, "acme/secret-FP8", None, replacement="acme/secret")
    gap = next(gap for gap in analyse(TABLE, workload, "v5e") if gap.key == "fp8_weights")
    assert (gap.severity, "acme/secret is served" in gap.remedy) == (WARNING, True)
