"""What an engine's log says of compiles, in the words of JAX 0.11.2 and tpu-inference 0.32."""

from __future__ import annotations

from tpu_migration.domain.compile_log import begun_compile, programs_in, read_compile_log, telling_lines

# jax/_src/interpreters/pxla.py and compiler.py with JAX_LOG_COMPILES=1; tpu_inference/runner/utils.py and
# compilation_manager.py. vLLM puts its own head before its lines.
HEAD = "(EngineCore pid=77) INFO 11-25 09:43:49 [compilation_manager.py:160]"
START = f"""\
{HEAD} Enabling JAX compile cache.
{HEAD} Prepared token paddings: [16, 32, 64, 128, 256, 512, 1024, 2048]
{HEAD} Prepared request paddings: [8, 16, 32, 64]
{HEAD} Prepared attn request paddings: [64]
{HEAD} Precompile all the subgraphs with possible input shapes.
{HEAD} Precompile worker0 backbone --> {{'num_tokens': 16, 'num_reqs': 64}}
WARNING:jax._src.interpreters.pxla:Compiling jit(step_fun) with global shapes and types [ShapedArray(int32[16])]. \
Argument mapping: (UnspecifiedValue,).
WARNING:jax._src.dispatch:Finished XLA compilation of jit(step_fun) in 52.103948116 sec
{HEAD} Compilation of worker0 backbone --> {{'num_tokens': 16, 'num_reqs': 64}} finished in 52.10 [secs].
{HEAD} Precompile worker0 sample --> {{'num_reqs': 8}}
WARNING:jax._src.interpreters.pxla:Compiling jit(sample) with global shapes and types [ShapedArray(float32[8])]. \
Argument mapping: (UnspecifiedValue,).
WARNING:jax._src.compiler:Persistent compilation cache hit for 'jit_sample' with key 'jit_sample-4f1c'
WARNING:jax._src.dispatch:Finished XLA compilation of jit(sample) in 0.896051884 sec
{HEAD} Compilation of worker0 sample --> {{'num_reqs': 8}} finished in 0.90 [secs].
"""


def test_a_program_counts_once_though_two_libraries_tell_of_it_and_a_hit_is_known_by_its_own_line():
    log = read_compile_log(START)
    assert (log.programs, log.cache_hits) == (2, 1)
    assert log.seconds == 53.0
    assert log.token_buckets == (16, 32, 64, 128, 256, 512, 1024, 2048)
    assert log.batch_buckets == (8, 16, 32, 64)


def test_the_precompile_s_own_lines_alone_are_no_evidence_for_what_comes_later():
    """Without JAX_LOG_COMPILES a start says "Compilation of … finished" all the same, and a later compile nothing."""
    quiet = "\n".join(line for line in START.splitlines() if "jax._src" not in line)
    assert "Compilation of worker0 backbone" in quiet
    assert programs_in(quiet) == 0


def test_a_log_that_tells_nothing_has_no_buckets():
    log = read_compile_log("INFO Starting vLLM server on http://0.0.0.0:8000\n")
    assert (log.programs, log.seconds, log.token_buckets, log.batch_buckets) == (0, 0.0, (), ())


def test_a_compile_that_was_begun_and_not_ended_is_named_as_the_precompile_names_it():
    assert begun_compile(START) == ""
    cut = START[: START.index("WARNING:jax._src.dispatch")]
    assert begun_compile(cut) == "Precompile worker0 backbone --> {'num_tokens': 16, 'num_reqs': 64}"
    later = f"{START}WARNING:jax._src.interpreters.pxla:Compiling jit(gather) with global shapes and types [].\n"
    assert begun_compile(later) == "Compiling jit(gather) with global shapes"


def test_what_a_waiting_engine_repeats_is_neither_progress_nor_telling():
    """A hanging engine says once a minute that it waits (vllm#27313), and the kubelet's probes leave their lines."""
    noise = (
        "INFO [shm_broadcast.py:466] No available shared memory broadcast block found in 60 seconds.\n"
        "DEBUG [core_client.py:421] Waiting for 1 core engine proc(s) to start: {0}\n"
        'INFO:     10.8.0.1:40312 - "GET /health HTTP/1.1" 200 OK\n'
    )
    assert telling_lines(START + noise * 3, 1) == telling_lines(START, 1)
    assert telling_lines(noise, 2) == ()
    assert len(telling_lines("x" * 30_000, 1)[0]) == 200
