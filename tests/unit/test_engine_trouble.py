"""Why an engine does not serve is told apart, with the lines that show it and another remedy for each."""

from __future__ import annotations

from typing import Any

import pytest

from tpu_migration.domain import engine_trouble as trouble

# As XLA, tpu_inference/worker/tpu_worker.py and vllm/v1/core/kv_cache_utils.py write them; threads in the names.
PROGRAM = (  # vllm#16521
    "jax.errors.JaxRuntimeError: RESOURCE_EXHAUSTED: Error loading program 'jit_step_fun': Attempting to reserve 4.31G "
    "at the bottom of memory. That was not possible. There are 3.12G free, 0B reserved, and 3.12G reservable."
)
HBM = (
    "jax.errors.JaxRuntimeError: RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory "
    "space hbm. Used 21.95G of 15.48G hbm. Exceeded hbm capacity by 6.47G."
)
SMEM = (  # vllm#8318
    "RuntimeError: Bad StatusOr access: RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in "
    "memory space smem. Used 1.00M of 1.00M smem. Exceeded smem capacity by 1.7K."
)
WEIGHTS = "ValueError: total_hbm_used_gb=112.4GiB exceeds total_hbm_limit_cap_gb=108.0GiB by 4.4GiB. Please consider"
KV = (
    "ValueError: To serve at least one request with the model's max seq len (131072), (60.00 GiB KV cache is needed, "
    "which is larger than the available KV cache memory (51.20 GiB)."
)
CHIPS = "RuntimeError: TPU initialization failed: open(/dev/vfio/0): Device or resource busy"


def container(
    restarts: int = 1, code: int = 1, reason: str = "Error", waiting: str = "CrashLoopBackOff"
) -> dict[str, Any]:
    """Return a containerStatuses entry of one that has ended."""
    return {
        "name": "vllm",
        "restartCount": restarts,
        "state": {"waiting": {"reason": waiting}},
        "lastState": {"terminated": {"exitCode": code, "reason": reason}},
    }


@pytest.mark.parametrize(
    ("line", "remedy"),
    [
        (PROGRAM, "lower --gpu-memory-utilization to 0.85"),
        (HBM, "lower --gpu-memory-utilization to 0.85"),
        (SMEM, "lower --max-model-len or --max-num-seqs"),
        (WEIGHTS, "take a larger slice"),
        (KV, "lower --max-model-len, raise --gpu-memory-utilization"),
    ],
    ids=["program", "hbm", "smem", "weights", "kv"],
)
def test_an_engine_without_hbm_fails_at_its_first_end_for_every_start_would_end_so(line, remedy):
    log = f"INFO Init model | hbm=[]\n{line}\nRuntimeError: Engine core initialization failed. See root cause above.\n"
    found = trouble.of_exits(container(restarts=1), log)
    assert found is not None
    assert found.kind == "hbm"
    assert line[:200] in str(found)
    assert remedy in found.remedy


def test_the_container_s_memory_is_another_matter_than_the_tpu_s():
    found = trouble.of_exits(container(restarts=0, code=137, reason="OOMKilled"), "INFO Loading weights\n")
    assert found is not None
    assert (found.kind, "137" in found.what, "memory limit" in found.remedy) == ("host_memory", True, True)
    assert "INFO Loading weights" in str(found)


def test_an_end_without_a_known_cause_may_be_bad_luck_and_three_are_not():
    assert trouble.of_exits(container(restarts=1), CHIPS) is None
    assert trouble.of_exits(container(restarts=2), CHIPS) is None
    found = trouble.of_exits(container(restarts=3), CHIPS)
    assert found is not None
    assert found.kind == "crash_loop"
    assert "CrashLoopBackOff, 3 restarts, exit code 1" in str(found)
    assert CHIPS in str(found)


def test_sigkill_alone_is_not_taken_for_want_of_memory():
    """A startup probe that has lost patience ends the process with 137, too; only OOMKilled is about memory."""
    assert trouble.of_exits(container(restarts=1, code=137), "") is None
    found = trouble.of_exits(container(restarts=3, code=137), "")
    assert found is not None
    assert found.kind == "crash_loop"
    assert "as a startup or liveness probe does" in found.what


def test_a_container_that_never_ended_is_in_no_such_trouble():
    assert trouble.of_exits({"name": "vllm", "restartCount": 0, "state": {"running": {}}}, PROGRAM) is None


@pytest.mark.parametrize(
    ("reason", "lasting_s", "kind"),
    [
        ("ContainerCreating", 9999.0, None),
        ("CrashLoopBackOff", 9999.0, None),
        ("ImagePullBackOff", 599.0, None),
        ("ImagePullBackOff", 600.0, "image"),
        ("ErrImagePull", 600.0, "image"),
        ("InvalidImageName", 0.0, "image"),
        ("CreateContainerConfigError", 600.0, "config"),
    ],
)
def test_a_registry_s_outage_is_waited_for_and_a_wrong_name_is_not(reason, lasting_s, kind):
    found = trouble.of_waiting("vllm", reason, 'secret "huggingface" not found', lasting_s, 600.0)
    assert (found.kind if found else None) == kind
    if found:
        assert "huggingface" in str(found)


def test_a_start_that_stands_still_in_a_compile_names_the_program():
    found = trouble.of_silence("INFO Precompile worker0 backbone --> {'num_tokens': 512}\n", 1260.0)
    assert found.kind == "hang"
    assert (
        "hangs in a compile (Precompile worker0 backbone --> {'num_tokens': 512}): no progress for 21 minutes"
        in str(found)
    )
    assert "hangs: no progress" in str(trouble.of_silence("INFO Loading weights\n", 1200.0))


def test_a_start_that_goes_on_for_too_long_is_told_from_one_that_stands_still():
    log = "WARNING Finished XLA compilation of jit(step_fun) in 300.0 sec\n" * 15
    found = trouble.of_slow_start(log, 4512.0, 4500.0)
    assert found.kind == "slow_compile"
    assert "15 programs in 75 minutes" in found.what
    assert "VLLM_XLA_CACHE_PATH" in found.remedy


@pytest.mark.parametrize(
    ("error", "log", "compiled", "kind"),
    [
        (
            "timeout after 300.0 s",
            "WARNING Compiling jit(step_fun) with global shapes and types []\n",
            0,
            "slow_compile",
        ),
        (
            "timeout after 300.0 s",
            "WARNING Finished XLA compilation of jit(step_fun) in 310.2 sec\n",
            1,
            "slow_compile",
        ),
        ("timeout after 300.0 s", "INFO Application startup complete.\n", 0, "hang"),
        ("truncated: no token for 60 s", "INFO Application startup complete.\n", 0, "hang"),
        ("http 500: boom", "INFO Application startup complete.\n", 1, "requests"),
    ],
)
def test_requests_that_fail_are_blamed_on_what_the_engine_did_meanwhile(error, log, compiled, kind):
    found = trouble.of_failed_requests(3, 12, error, log, compiled)
    assert found.kind == kind
    assert f"3 of 12 requests failed, first: {error}" in str(found)
    assert log.strip() in str(found)
