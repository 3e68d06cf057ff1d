"""The engine understands a container's argv however the manifest wrote it."""

from __future__ import annotations

import pytest
from engine_harness import H100, TPU, TPU_FLAGS, config_of

from sandbox.engine.command import NotVllm, find_command
from sandbox.engine.config import Refused
from sandbox.engine.flags import human_int, parse_flags


@pytest.mark.parametrize(
    "argv",
    [
        ["vllm", "serve", "m/x", "--port", "9"],
        ["/opt/venv/bin/vllm", "serve", "m/x", "--port=9"],
        ["serve", "m/x", "--port=9"],
        ["python3", "-m", "vllm.entrypoints.openai.api_server", "--model=m/x", "--port=9"],
        ["python3", "-u", "-m", "vllm.entrypoints.openai.api_server", "--model", "m/x", "--port", "9"],
        ["m/x", "--port=9"],
        ["--model", "m/x", "--port", "9"],
        ["/bin/sh", "-c", "vllm serve m/x --port 9"],
        ["bash", "-exc", "export P=9\ncd /tmp && echo go; exec vllm serve $NAME \\\n  --port ${P} # end"],
        ["bash", "-c", "ARGS='--port 9'; python3 -m vllm.entrypoints.openai.api_server --model m/x $ARGS"],
        ["env", "A=1", "vllm", "serve", "m/x", "--port", "9"],
    ],
)
def test_every_way_to_write_the_command_gives_the_same_flags(argv):
    command = find_command(argv, {"NAME": "m/x"})
    flags = parse_flags(command.flags)
    assert (flags.model, flags.port, flags.served_names) == ("m/x", 9, ("m/x",))


def test_a_shell_script_keeps_what_it_exports_and_quotes():
    script = """VLLM_XLA_CACHE_PATH=/c vllm serve m --served-model-name "a b" c --limit-mm-per-prompt '{"image":0}'"""
    command = find_command(["sh", "-c", script], {})
    flags = parse_flags(command.flags)
    assert command.env == {"VLLM_XLA_CACHE_PATH": "/c"}
    assert flags.served_names == ("a b", "c")
    assert flags.text_only


@pytest.mark.parametrize(
    ("argv", "status"), [(["m/x", "--port=9"], 127), (["--model=m/x"], 2), (["sh", "-c", "sleep 1"], 127)]
)
def test_the_tpu_image_runs_its_arguments_as_they_are(argv, status):
    with pytest.raises(NotVllm) as caught:
        find_command(argv, {}, bare=False)
    assert caught.value.status == status


@pytest.mark.parametrize(
    "flag",
    ["--swap-space=16", "--task=generate", "--num-scheduler-steps=8", "--disable-log-requests", "--no-such-flag"],
)
def test_a_flag_that_0_32_does_not_know_ends_the_tpu_image_with_status_2(flag, capsys):
    with pytest.raises(SystemExit) as caught:
        parse_flags(["m/x", flag])
    assert caught.value.code == 2
    assert f"vllm serve: error: unrecognized arguments: {flag}" in capsys.readouterr().err


def test_gpu_images_of_any_age_keep_their_old_flags():
    flags = parse_flags(
        ["--swap-space", "16", "--disable-log-requests", "--max-num-seq", "7", "--model", "m/x"], lenient=True
    )
    assert (flags.model, flags.max_num_seqs) == ("m/x", 7)


def test_underscores_dots_short_names_and_sizes_are_read_as_vllm_reads_them():
    argv = ["m/x", "-tp", "8", "--max_model_len", "8k", "--hf-overrides.a.b=1", "--no-enable-prefix-caching"]
    flags = parse_flags(argv)
    assert (flags.tensor_parallel, flags.max_model_len) == (8, 8000)
    assert (human_int("8K"), human_int("25.6k"), human_int("4096")) == (8192, 25600, 4096)


@pytest.mark.parametrize(
    ("more", "env", "words"),
    [
        (["--quantization", "gptq"], {}, "gptq quantization is currently not supported in tpu"),
        (["--speculative-config", '{"model":"x"}'], {}, "draft model"),
        (["--enable-sleep-mode"], {}, "sleep mode"),
        (["--tensor-parallel-size", "16"], {}, "World size (16)"),
        (["--max-model-len", "200000"], {}, "greater than the derived max_model_len"),
        (["--fail-on-environ-validation"], {"VLLM_USE_V1": "1"}, "Unknown vLLM environment variable"),
    ],
)
def test_the_tpu_build_refuses_at_start_what_it_cannot_do(more, env, words):
    with pytest.raises(Refused) as caught:
        config_of([*TPU_FLAGS, *more], {**TPU, **env})
    assert words in str(caught.value)


def test_an_unknown_or_missing_accelerator_is_named():
    with pytest.raises(Refused, match="knows no accelerator 'nvidia-b9000'"):
        config_of(["m/x"], {**H100, "SANDBOX_ACCELERATOR": "nvidia-b9000"})
    with pytest.raises(Refused, match="infer device type"):
        config_of(["m/x"], {})
