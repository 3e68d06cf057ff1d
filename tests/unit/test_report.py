"""The summary keeps its contract, and the report is one page that can be mailed: whole, and harmless."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import pytest
from cluster import GPU, TPU, Cluster, record, source

from tpu_migration.domain.phases import Phase
from tpu_migration.record import Fallback, StageRun
from tpu_migration.report.page import render_report
from tpu_migration.report.summary import summarise

EVIL = "<script>alert('x')</script>\"&"
USERS = {"requests": 1200, "failed": 1, "truncated": 0, "peak_streams": 31, "p99_ttft_s": 0.412, "longest_s": 31.0}
VOID_ELEMENTS = {"meta", "polyline", "path", "br", "link", "img"}


def check(**changes):
    made = {
        "name": "tpot_p95",
        "outcome": "fail",
        "value": 91.25,
        "interval": [85.0, 97.0],
        "limit": 70.0,
        "unit": "ms",
        "sentence": "p95 TPOT 91.2 ms > limit 70 ms (n=250)",
    }
    return made | changes


def verdict(**changes):
    made = {
        "outcome": "fail",
        "sentence": "p95 TPOT 91.2 ms > limit 70 ms",
        "policy_hash": "abcd1234",
        "checks": [check(), check(name="errors", outcome="inconclusive", value=None, unit="")],
    }
    return made | changes


STAGES = (
    StageRun("provision", "done", 130.0, 250.0),
    StageRun("preflight", "done", 100.0, 128.5),
    StageRun("gate", "failed", 260.0, 400.0, "fail"),
)
ARMS = {
    "baseline": {"ttft_ms": [100.0, 120.0, 180.0], "tpot_ms": [], "e2e_ms": [900.0, 1000.0, 1500.0]},
    "candidate": {"ttft_ms": [110.0, 150.0, 300.0], "tpot_ms": [], "e2e_ms": []},
}


@pytest.fixture
def cluster():
    made = Cluster()
    made.give_route({GPU: 75, TPU: 25})
    made.give_endpoints(GPU, 2)
    made.give_endpoints(TPU, 2)
    return made


def fallen_back(**changes):
    fallback = Fallback("p95 TPOT 91.2 ms > limit 70 ms", "the keeper", 400.0, 400.2, 408.75)
    full = {
        "verdict": verdict(),
        "stages": STAGES,
        "fallback": fallback,
        "notes": {"arms": ARMS, "warm_up": "9 shapes"},
    }
    return record(Phase.FALLEN_BACK, **(full | changes))


def summary_of(cluster, made, users=USERS, engine="simulated"):
    return summarise(cluster.kube, made, users, engine=engine, seconds=308.75)


# --------------------------------------------------------------------------------- summary.json


def test_the_summary_has_exactly_the_keys_of_the_contract(cluster):
    summary = summary_of(cluster, fallen_back())
    assert set(summary) == {
        "workload", "engine", "phase", "route", "safe_route", "stages", "verdict", "users", "fallback", "seconds",
    }  # fmt: skip
    assert {key for stage in summary["stages"] for key in stage} == {"stage", "state", "seconds"}
    assert set(summary["verdict"]) == {"outcome", "checks"}
    assert set(summary["users"]) == {"requests", "failed", "truncated", "peak_streams", "p99_ttft_s"}
    assert set(summary["fallback"]) == {"reason", "detected_to_restored_s"}


def test_each_check_has_the_keys_of_the_contract_and_the_sentence_for_the_page(cluster):
    for each in summary_of(cluster, fallen_back())["verdict"]["checks"]:
        assert set(each) - {"sentence"} == {"name", "outcome", "value", "limit", "unit"}


def test_the_summary_is_json_and_says_what_is_true_in_the_cluster(cluster):
    summary = json.loads(json.dumps(summary_of(cluster, fallen_back())))
    assert (summary["workload"], summary["engine"], summary["phase"]) == (GPU, "simulated", "fallen_back")
    assert summary["route"] == {GPU: 75, TPU: 25}
    assert summary["safe_route"] == GPU
    assert summary["seconds"] == 308.8


def test_the_stages_are_in_the_order_in_which_they_began(cluster):
    stages = summary_of(cluster, fallen_back())["stages"]
    assert [(each["stage"], each["state"], each["seconds"]) for each in stages] == [
        ("preflight", "done", 28.5),
        ("provision", "done", 120.0),
        ("gate", "failed", 140.0),
    ]


def test_the_time_to_restore_counts_until_the_traffic_was_seen_to_follow(cluster):
    assert summary_of(cluster, fallen_back())["fallback"]["detected_to_restored_s"] == 8.75
    unseen = fallen_back(fallback=Fallback("x", "the guard", 400.0, 400.2))
    assert summary_of(cluster, unseen)["fallback"]["detected_to_restored_s"] == 0.2


def test_a_run_without_verdict_and_fallback_has_null_there(cluster):
    summary = summary_of(cluster, record(Phase.PLANNED))
    assert summary["verdict"] is None
    assert summary["fallback"] is None
    assert summary["stages"] == []


def test_a_counter_that_nobody_took_is_null_and_not_zero(cluster):
    users = summary_of(cluster, fallen_back(), users={"requests": 5})["users"]
    assert users["requests"] == 5
    assert users["failed"] is None


def test_after_the_commit_the_safe_route_is_the_target(cluster):
    assert summary_of(cluster, record(Phase.MIGRATED))["safe_route"] == TPU


# ------------------------------------------------------------------------------------- the page


class Page(HTMLParser):
    """Collect what a browser would load or run, and check that every element is closed."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.open, self.text = [], [], [], ""
        self.feed(text)
        assert self.open == [], f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID_ELEMENTS:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def page_of(cluster, made, **more):
    return render_report(made, summary_of(cluster, made, **more))


def test_the_page_is_self_contained(cluster):
    text = page_of(cluster, fallen_back())
    page = Page(text)
    assert not set(page.tags) & {"script", "link", "img", "iframe", "object", "embed", "base", "form"}
    assert not {name for name, _ in page.attributes} & {"src", "href", "xlink:href", "srcset", "action", "data"}
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert not re.search(r"https?:|url\(|@import|javascript:|(?<!:)//", text, re.IGNORECASE)


def test_the_verdict_the_reason_and_the_warning_come_first(cluster):
    text = Page(page_of(cluster, fallen_back())).text
    head = text.partition("Checks")[0]
    for part in (
        "vllm: fallen_back",
        "Gate: fail.",
        "Why it went back: p95 TPOT 91.2 ms > limit 70 ms (by the keeper)",
        "Simulated engines",
        "Safe route: vllm.",
    ):
        assert part in head


def test_a_real_engine_s_figures_are_not_called_simulated(cluster):
    assert "Simulated" not in Page(page_of(cluster, fallen_back(), engine="vllm")).text


def test_every_check_stage_and_counter_is_shown_with_its_numbers(cluster):
    text = Page(page_of(cluster, fallen_back())).text
    for part in ("tpot_p95", "91.25", "70", "errors", "–", "preflight", "28.5 s", "1200", "0.412", "peak streams"):
        assert part in text


def test_both_arms_are_drawn_over_each_other_and_a_missing_one_is_left_out(cluster):
    text = page_of(cluster, fallen_back())
    figures = re.findall(r"<figure>.*?</figure>", text)
    assert [figure.count("<polyline") for figure in figures] == [2, 1]
    for x, y in re.findall(r"([\d.]+),([\d.]+)(?= |\")", text.partition("<polyline")[2]):
        assert 60 <= float(x) <= 620
        assert 20 <= float(y) <= 140


@pytest.mark.parametrize("phase", sorted(Phase))
def test_there_is_a_page_for_every_phase_even_for_a_run_that_did_nothing(cluster, phase):
    page = Page(page_of(cluster, record(phase)))
    assert f"vllm: {phase}" in page.text
    assert "Checks" not in page.text


def evil_record():
    return fallen_back(
        workload=EVIL,
        run_id=EVIL,
        pool=EVIL,
        plan_hash=EVIL,
        target=TPU,
        plan={"target": EVIL, "policy": EVIL},
        source=source(model=EVIL, accelerator=EVIL),
        verdict=verdict(
            outcome=EVIL,
            sentence=EVIL,
            policy_hash=EVIL,
            checks=[check(name=EVIL, outcome=EVIL, unit=EVIL, sentence=EVIL)],
        ),
        fallback=Fallback(EVIL, EVIL, 1.0, 2.0),
        stages=(StageRun(EVIL, EVIL, 1.0, 2.0, EVIL),),
        notes={"warm_up": EVIL, "arms": ARMS},
    )


def test_nothing_that_came_from_outside_runs_in_the_reader_s_browser(cluster):
    made = evil_record()
    summary = summary_of(cluster, made)
    summary |= {"safe_route": EVIL, "route": {EVIL: 100}, "users": {EVIL: EVIL}}
    text = render_report(made, summary)
    assert "<script" not in text.lower()
    page = Page(text)
    assert "script" not in page.tags
    assert page.text.count(EVIL) >= 15, "what is escaped is still shown as it is"
    assert {name for name, _ in page.attributes} <= {
        "lang", "charset", "name", "content", "class", "viewbox", "role", "aria-label", "fill", "stroke",
        "stroke-width", "points", "x", "y", "style", "d", "opacity", "text-anchor",
    }  # fmt: skip
