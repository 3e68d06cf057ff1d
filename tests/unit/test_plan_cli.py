"""`tpu-migration plan`, as people at a terminal meet it."""

from __future__ import annotations

import json

import pytest
import yaml

from tests.unit.translation_builders import ROOT, SHARED, deployment
from tpu_migration.cli import main

H100 = str(ROOT / "sandbox" / "manifests" / "vllm-h100.yaml")


@pytest.fixture(autouse=True)
def _no_hub_cache(tmp_path_factory, monkeypatch):
    """Keep what this machine happens to have downloaded out of the tests."""
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path_factory.mktemp("hub")))


@pytest.fixture
def plan(capsys):
    def run(*arguments):
        code = main(["plan", *arguments])
        out, err = capsys.readouterr()
        return code, out, err

    return run


@pytest.fixture
def facts(plan):
    def run(*arguments):
        code, out, _ = plan(*arguments, "--format", "json")
        return code, json.loads(out)

    return run


def write(tmp_path, *documents):
    path = tmp_path / "source.yaml"
    path.write_text(yaml.safe_dump_all(documents))
    return str(path)


def test_the_verdict_is_the_first_line_and_the_page_fits_a_terminal(plan):
    code, out, _ = plan("-f", H100)
    assert code == 0
    assert out.startswith("FITS: google/gemma-3-27b-it fits tpu-v5e-8: 51.1 GiB of weights")
    assert max(map(len, out.splitlines())) <= 100
    titles = ["Will it fit?", "What does it cost?", "What is lost or changes?", "What would change this", "Prices"]
    assert [title for title in titles if title in out] == titles
    assert "$0.70/hr spot for 8 v5e chips" in out


def test_the_source_is_compared_as_it_is_and_the_target_as_it_will_be_served(facts):
    _, found = facts("-f", H100)
    assert found["costs"][0]["label"] == "h100 x1 (as it is)"
    assert found["costs"][0]["replicas"] == 2
    assert not found["source_is_assumed"]
    assert found["source_fit"]["weights_gib"] == pytest.approx(27.3, abs=0.1)  # FP8
    assert found["target_fit"]["weights_gib"] == pytest.approx(51.1, abs=0.1)  # BF16
    keys = {gap["key"] for gap in found["gaps"]}
    assert {"fp8_weights", "fp8_kv_cache", "speculative_decoding", "multimodal"} <= keys


def test_a_model_alone_is_planned_against_h100s_and_says_so(plan, facts):
    code, found = facts("--model", "google/gemma-3-27b-it")
    assert (code, found["verdict"], found["recommended"]) == (0, "fits", "tpu-v5e-8")
    assert found["source_is_assumed"]
    assert found["costs"][0]["label"] == "H100 x1 (assumed)"
    assert "H100s stand for it" in plan("--model", "google/gemma-3-27b-it")[1]


def test_v5e_4_is_tight_for_gemma_27b_and_v5e_8_is_recommended(facts):
    code, found = facts("--model", "google/gemma-3-27b-it", "--target", "tpu-v5e-4")
    assert (code, found["verdict"], found["recommended"]) == (0, "tight", "tpu-v5e-8")
    assert found["target_fit"]["head_room_gib"] < 10
    assert any("--target tpu-v5e-8" in each for each in found["would_change"])


def test_a_model_that_does_not_fit_exits_with_1_and_names_what_is_missing(plan):
    code, out, _ = plan("--model", "meta-llama/Llama-3.1-70B-Instruct")
    assert code == 1
    assert out.startswith("DOES NOT FIT: meta-llama/Llama-3.1-70B-Instruct does not fit tpu-v5e-8")
    assert "lack 18.0 GiB" in out
    assert "--target tpu-v6e-8: the model fits there" in out


def test_an_illegal_split_names_the_legal_ones(plan):
    code, out, _ = plan("--model", "Qwen/Qwen2.5-7B-Instruct")
    assert code == 1
    assert "legal here: 1, 2, 4" in out


def test_a_blocker_exits_with_1_although_the_model_fits(plan, facts, tmp_path):
    source = write(tmp_path, deployment(["--model=acme/secret-FP8", "--max-model-len=4096"]))
    config = tmp_path / "config.json"
    config.write_text(json.dumps(CONFIG))
    code, found = facts("-f", source, "--model-config", str(config))
    assert (code, found["verdict"]) == (1, "blocked")
    assert found["translation_blockers"]
    code, out, _ = plan("-f", source, "--model-config", str(config))
    assert out.startswith("BLOCKED: acme/secret-FP8 fits tpu-v5e-8, but something blocks")
    assert facts("-f", source, "--model-config", str(config), "--model", "acme/secret")[0] == 0


CONFIG = {
    "model_type": "llama",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 8,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "vocab_size": 32000,
    "max_position_embeddings": 8192,
}


def test_throughputs_and_a_peak_price_a_token_and_size_the_target(facts):
    rates = ("--throughput", "source=1500", "--throughput", "tpu-v5e-8=1400", "--peak-rps", "12")
    _, found = facts("-f", H100, *rates, "--kind", "spot")
    row = next(each for each in found["costs"] if each["name"] == "tpu-v5e-8")
    assert row["replicas"] == 3  # 12 x 256 tokens x 1.2 of head-room over 1,400 a second
    assert row["usd_per_million"] == pytest.approx(1.96 / 1400 / 3600 * 1e6)
    assert row["throughput"]["provenance"] == "given"
    assert any("less than 44%" in each and "665 tok/s" in each for each in found["would_change"])


def test_ones_own_prices_override_the_list(facts, tmp_path):
    prices = tmp_path / "prices.yaml"
    prices.write_text(
        "prices: {tpu-v5e: [{kind: on-demand, usd_per_chip_hour: 0.6, read: 2026-11-20, source: contract}]}"
    )
    _, found = facts("-f", H100, "--prices", str(prices))
    row = next(each for each in found["costs"] if each["name"] == "tpu-v5e-8")
    assert row["usd_per_hour"]["on-demand"] == pytest.approx(9.6)  # two replicas of eight chips


def test_a_gpu_profile_goes_back_to_gpus_and_loses_nothing(facts):
    code, found = facts("--model", "google/gemma-3-27b-it", "--profile", "legacy_gpu")
    assert (code, found["target"], found["gaps"]) == (0, "l4", [])
    assert found["target_fit"]["place"]["chips"] == 4
    _, two = facts("--model", "google/gemma-3-27b-it", "--target", "h100:2")
    assert two["target_fit"]["place"]["name"] == "h100 x2"


def test_text_only_leaves_the_vision_tower_out(facts):
    _, whole = facts("-f", H100)
    _, text = facts("-f", H100, "--text-only")
    assert text["target_fit"]["weights_gib"] < whole["target_fit"]["weights_gib"]
    assert "multimodal" not in {gap["key"] for gap in text["gaps"]}


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ((), "give -f FILE or --model M"),
        (("--model", "acme/unheard-of"), "--model-config"),
        (("--model", "Qwen/Qwen3-8B", "--target", "tpu-v9-8"), "tpu-v5e-8"),
        (("--model", "Qwen/Qwen3-8B", "--target", "h100:3"), "machines have 1, 2, 4, 8 h100"),
        (("--model", "Qwen/Qwen3-8B", "--profile", "prod"), "production, legacy_gpu, h100"),
        (("--model", "Qwen/Qwen3-8B", "--throughput", "tpu-v5-8=3"), "--throughput tpu-v5-8: use one of"),
        (("--model", "Qwen/Qwen3-8B", "--region", "mars-1"), "prices are known for us-central1"),
        (("--model", "Qwen/Qwen3-8B", "--prices", "/nowhere.yaml"), "cannot read the price file"),
        (("-f", "/nowhere.yaml"), "cannot be read"),
    ],
)
def test_bad_input_is_one_clear_line_and_exits_with_2(plan, arguments, complaint):
    code, out, err = plan(*arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("error: ")
    assert complaint in err


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("a: [", "line"),
        ("image: {{ .Values.image }}", "template"),
        ("apiVersion: v1\nkind: Service\nmetadata: {name: a}\n", "no vLLM workload"),
    ],
)
def test_a_file_that_is_no_source_names_its_place(plan, tmp_path, text, complaint):
    path = tmp_path / "x.yaml"
    path.write_text(text)
    code, _, err = plan("-f", str(path))
    assert code == 2
    assert str(path) in err
    assert complaint in err


def test_a_source_on_tpu_already_is_refused(plan, tmp_path):
    tpu = deployment(["--model=Qwen/Qwen3-8B"], container={"resources": {"limits": {"google.com/tpu": 8}}})
    code, _, err = plan("-f", write(tmp_path, tpu))
    assert code == 2
    assert "runs on TPUs already" in err


@pytest.mark.parametrize("text", ["tpu-v5e-8", "=3", "a=b", "a=-1", "a=nan"])
def test_a_throughput_that_is_none_is_refused(text, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["plan", "--model", "Qwen/Qwen3-8B", "--throughput", text])
    assert ended.value.code == 2
    assert "--throughput" in capsys.readouterr().err


PUBLIC = ["gke-samples-vllm-3-27b-it", "production-stack-gpu-deployment", "vllm-docs-nvidia"]


@pytest.mark.skipif(not SHARED.is_dir(), reason="the public manifests are not in this checkout")
@pytest.mark.parametrize("name", PUBLIC)
def test_public_manifests_are_planned_as_they_are(plan, name):
    code, out, err = plan("-f", str(SHARED / "manifests" / f"{name}.yaml"))
    assert (code, err) == (0, "")
    assert max(map(len, out.splitlines())) <= 100


def test_a_source_whose_own_model_nobody_knows_is_planned_by_the_one_named_for_the_target(facts, tmp_path):
    source = write(tmp_path, deployment(["--model=/weights/ours", "--max-model-len=4096"]))
    code, found = facts("-f", source, "--model", "Qwen/Qwen3-8B")
    assert (code, found["model"], found["verdict"]) == (0, "Qwen/Qwen3-8B", "fits")


def test_a_workload_that_is_no_deployment_is_blocked_by_name(plan, tmp_path):
    source = deployment(["--model=Qwen/Qwen3-8B", "--max-model-len=4096"])
    code, out, _ = plan("-f", write(tmp_path, {**source, "kind": "StatefulSet"}))
    assert code == 1
    assert out.startswith("BLOCKED")
    assert "a StatefulSet is not translated" in " ".join(out.split())


def test_a_gpu_without_a_price_is_said_to_be_missing_and_h100s_stand_for_it(plan, tmp_path):
    pod = {"nodeSelector": {"cloud.google.com/gke-accelerator": "nvidia-h200-141gb"}}
    code, out, _ = plan("-f", write(tmp_path, deployment(["--model=Qwen/Qwen3-8B", "--max-model-len=4096"], pod=pod)))
    assert code == 0
    assert "not named or not in the price list: H100s stand for it" in " ".join(out.split())
