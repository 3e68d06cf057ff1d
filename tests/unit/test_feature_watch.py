"""The feature watch over two versions of the published matrices: what is news, for whom, and what never is."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import requests

from tpu_migration.clients.matrices import PUBLISHED, Matrices
from tpu_migration.domain.matrices import MatrixError, Row, Workload, changes, parse_matrix
from tpu_migration.errors import PermanentError, TransientError
from tpu_migration.feature_watch import Known, news, read_all, stale
from tpu_migration.resources import features

DAY_S = 86_400.0
# In the form in which tpu-inference publishes them.
FEATURES = """Feature,CorrectnessTest,PerformanceTest
"Multimodal Inputs",✅ Passing,✅ Passing
"Speculative Decoding: Ngram",{ngram},{ngram_speed}
"structured_decoding",✅ Passing,❓ Untested
"Step Pooling (Embedding)",✅,✅
"""
QUANTIZATIONS = """Quantization dtype,Quantization methods,Recommended TPU Generations,CorrectnessTest,PerformanceTest
"FP8 W8A8",compressed-tensor,{fp8},✅ Passing,❓ Untested
"INT4 W4A16",awq,"v5, v6",unverified,unverified
"""
MODELS = """Model,Type,UnitTest,Accuracy/Correctness,Benchmark
"google/gemma-3-27b-it",Text,✅ Passing,{gemma},✅ Passing
"Qwen/Qwen3-Coder-480B-A35B-Instruct",Text,not enough HBM,not enough HBM,not enough HBM
"""
OLD = {"ngram": "❓ Untested", "ngram_speed": "❓ Untested", "fp8": "v7", "gemma": "✅ Passing"}
GEMMA = Workload("inference/gemma", "v5e", "google/gemma-3-27b-it", ("speculative_decoding", "fp8_weights"))
LLAMA = Workload("inference/llama", "v6e", "meta-llama/Llama-3.3-70B-Instruct", ())
UNKNOWN = Workload("inference/old", "v5e", "other", None)


def publish(folder, **changed):
    values = {**OLD, **changed}
    place = folder / "release" / "v6e" / "default"
    place.mkdir(parents=True, exist_ok=True)
    for kind, text in (("feature", FEATURES), ("model", MODELS)):
        (place / f"{kind}_support_matrix.csv").write_text(text.format(**values), encoding="utf-8")
    # Where it is published for a release as of 2026-11.
    other = folder / "release" / "v6e" / "vllm"
    other.mkdir(exist_ok=True)
    (other / "quantization_support_matrix.csv").write_text(QUANTIZATIONS.format(**values), encoding="utf-8")


def read(folder, seen=None, now=0.0):
    return read_all(Matrices(str(folder)), "release", seen or Known(), now)


def told(before, after, *workloads):
    return [each.sentence for each in news(before, after, workloads or (GEMMA, LLAMA), features()) if each.workloads]


@pytest.fixture
def known(tmp_path):
    publish(tmp_path)
    found, warnings = read(tmp_path)
    assert warnings == []
    return found


# ------------------------------------------------------------------------------------ what is news


def test_the_first_look_is_a_beginning_and_no_news(known):
    assert news(Known(), known, [GEMMA, LLAMA, UNKNOWN], features()) == []
    assert known.rows["v6e"]["feature"]["Step Pooling (Embedding)"] == Row("passing", "passing")
    assert known.rows["v6e"]["model"]["Qwen/Qwen3-Coder-480B-A35B-Instruct"].correctness == "untested"


def test_the_same_matrices_again_are_no_news(known, tmp_path):
    assert told(known, read(tmp_path, known)[0]) == []


def test_a_feature_that_a_workload_gave_up_is_told_once_it_passes(known, tmp_path):
    publish(tmp_path, ngram="✅ Passing")
    (said,) = told(known, read(tmp_path, known)[0])
    assert said == (
        "v5e: Speculative Decoding: Ngram can be had: its correctness passes, its performance is untested (seen on "
        "v6e; none is published for v5e); concerns inference/gemma"
    )


def test_one_that_regresses_again_is_told_too(known, tmp_path):
    publish(tmp_path, ngram="✅ Passing")
    passing = read(tmp_path, known)[0]
    publish(tmp_path, ngram="❌ Failing")
    (said,) = told(passing, read(tmp_path, passing)[0])
    assert "Speculative Decoding: Ngram is lost: it passed, and is failing" in said


def test_fp8_counts_on_the_workloads_own_generation_only(known, tmp_path):
    publish(tmp_path, fp8='"v6, v7"')
    on_v6e = read(tmp_path, known)[0]
    assert told(known, on_v6e) == []  # gemma is on v5e, and llama gave no FP8 up
    publish(tmp_path, fp8='"v5, v6, v7"')
    (said,) = told(on_v6e, read(tmp_path, on_v6e)[0])
    assert said.startswith("v5e: FP8 W8A8 can be had")


def test_a_model_that_is_served_and_fails_in_a_newer_release_is_told(known, tmp_path):
    publish(tmp_path, gemma="❌ Failing")
    (said,) = told(known, read(tmp_path, known)[0])
    assert "google/gemma-3-27b-it is lost: it passed, and is failing" in said


def test_a_workload_of_which_nobody_wrote_down_what_it_gave_up_hears_of_all(known, tmp_path):
    publish(tmp_path, ngram="✅ Passing")
    assert "concerns inference/old" in told(known, read(tmp_path, known)[0], UNKNOWN)[0]


def test_a_row_that_is_gone_is_lost_only_if_it_passed():
    rows = {"a": Row("passing", "passing"), "b": Row("untested", "untested")}
    (change,) = changes("feature", rows, {}, "v6e")
    assert change.sentence == "a is lost: it passed, and is not listed any more"


# --------------------------------------------------------------------------- what never is a change


@pytest.mark.parametrize(
    "text",
    [
        "",
        "<!doctype html>\n<html>\n",
        "Feature,CorrectnessTest\n",
        "Feature,Speed\na,b\n",
        "Feature,CorrectnessTest\na\n",
    ],
    ids=["empty", "a proxy's page", "no row", "no correctness", "cut short"],
)
def test_what_is_no_matrix_keeps_what_was_seen_and_warns(known, tmp_path, text):
    with pytest.raises(MatrixError):
        parse_matrix(text)
    (tmp_path / "release/v6e/default/feature_support_matrix.csv").write_text(text)
    after, warnings = read(tmp_path, known, DAY_S)
    assert told(known, after) == []
    assert "the feature matrix of release/v6e was not read" in warnings[0]
    assert after.read_at == known.read_at


def test_a_folder_that_was_moved_is_a_warning(known, tmp_path):
    (tmp_path / "release/v6e").rename(tmp_path / "release/v6")
    after, warnings = read(tmp_path, known)
    assert told(known, after) == []
    assert len(warnings) == 3
    assert "has no feature matrix any more: was it moved?" in warnings[0]
    assert after.rows == known.rows


class Session:
    def __init__(self, answer):
        self.answer, self.asked = answer, []

    def get(self, url, timeout):
        self.asked.append(url)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@pytest.mark.parametrize(
    "answer",
    [requests.ConnectionError("no route"), requests.Timeout(), SimpleNamespace(status_code=503, content=b"busy"),
     SimpleNamespace(status_code=200, content=b"x" * 2_000_000)],
)  # fmt: skip
def test_github_that_does_not_answer_is_a_warning(known, answer):
    source = Matrices(session=Session(answer))
    with pytest.raises(TransientError, match=r"raw\.githubusercontent\.com"):
        source.read("release/v6e/default/feature_support_matrix.csv")
    after, warnings = read_all(source, "release", known, DAY_S)
    assert after == known
    assert len(warnings) == 4


def test_what_is_not_there_is_asked_for_in_each_flavour():
    session = Session(SimpleNamespace(status_code=404, content=b""))
    read_all(Matrices(session=session), "nightly", Known(), 0.0)
    assert f"{PUBLISHED}/nightly/v6e/default/feature_support_matrix.csv" in session.asked
    assert f"{PUBLISHED}/nightly/v6e/vllm/quantization_support_matrix.csv" in session.asked


def test_a_week_without_a_whole_read_is_an_alarm(known):
    assert stale(known, 6 * DAY_S) == ""
    assert "last read whole 8 days ago" in stale(known, 8 * DAY_S)
    assert "never read whole" in stale(Known(), 0.0)


# ---------------------------------------------------------------------------------------- memory


def test_what_is_kept_comes_back_the_same(known):
    assert Known.from_dict(known.to_dict()) == known
    assert Known.from_dict(None) == Known()


@pytest.mark.parametrize("data", [{"schema_version": 2}, {"schema_version": 1, "rows": []}, [1], "text"])
def test_what_this_version_cannot_have_written_is_refused(data):
    with pytest.raises(PermanentError, match="cannot be read"):
        Known.from_dict(data)


def test_every_capability_that_has_rows_is_found_by_what_they_begin_with():
    named = {feature.key: feature.matrix for feature in features().features if feature.matrix}
    assert named["speculative_decoding"] == ("Speculative Decoding",)
    assert {"fp8_weights", "fp8_kv_cache", "multimodal", "structured_output"} <= set(named)
