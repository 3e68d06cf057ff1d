"""The summary keeps its contract, and the report is one page that can be mailed: whole, and harmless."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from cluster import GPU, TPU, Cluster, record, source

from tpu_migration.domain.gate.counterfactual import what_would_change
from tpu_migration.domain.phases import Phase
from tpu_migration.record import Attempt, Fallback, Record, StageRun
from tpu_migration.report.page import render_report, report_data
from tpu_migration.report.summary import summarise
from tpu_migration.status import describe

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
EVIDENCE = {
    "limits": {"ttft_ms": 250.0, "tpot_ms": 70.0, "goodput": 0.95, "need_rps": 4.8, "quantile": 0.95},
    "arms": {
        "baseline": {"requests": 60, "failed": 0, "ttft_ms": [100.0, 120.0, 180.0], "e2e_ms": [900.0, 1000.0, 1500.0]},
        "candidate": {"requests": 250, "failed": 1, "ttft_ms": [110.0, 150.0, 300.0], "tpot_ms": [], "e2e_ms": []},
    },
    "looks": [
        {"look": "1a", "outcome": "void", "seconds": 50.0, "events": {"candidate recompiles": 3},
         "baseline": [[1.0, 100.0, 180.0, 0]], "candidate": [[1.0, 110.0, 300.0, 0], [2.0, None, None, 4]]},
        {"look": "1b", "outcome": "fail", "seconds": 50.0, "events": {}, "baseline": [],
         "candidate": [[1.0, 9.0, 9.0, 0]]},
    ],
    "sweep": [
        {"rate_rps": 4.8, "requests": 250, "good": 200, "output_tokens_per_s": 300.0, "ttft_p99_ms": 290.0},
        {"rate_rps": 2.8, "requests": 150, "good": 150, "output_tokens_per_s": None, "ttft_p99_ms": None},
    ],
    "clients": [{"block": "load-1b-0", "loop_lag_p99_ms": 3.25, "peak_streams": 17, "void_reasons": ["loop lag x"]}],
    "costs": {"candidate": {"usd_per_hour": 9.6, "tokens_per_s": 300.0, "usd_per_million": 8.889}},
}  # fmt: skip


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
        "notes": {"evidence": EVIDENCE, "warm_up": "9 shapes"},
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
    assert not {name for name, _ in page.attributes} & {"src", "href", "srcset", "action", "data"}
    assert all(value.startswith("#") for name, value in page.attributes if name == "xlink:href")
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert not re.search(r"https?:|url\((?!#)|@import|javascript:|(?<!:)//", text, re.IGNORECASE)


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
    figures = re.findall(r"<figure>.*?</figure>", text, re.DOTALL)
    drawn = [figure.count("#9334e6") + figure.count("#1a73e8") for figure in figures]
    assert [re.search(r'aria-label="([^"]*)"', figure)[1].partition(",")[0] for figure in figures] == [
        "Share of requests by latency", "TTFT over time", "Throughput and goodput against the rate of requests",
    ]  # fmt: skip
    assert all(drawn)
    assert "baseline (GPU)" in figures[0]
    lone = dict(EVIDENCE, arms={"candidate": EVIDENCE["arms"]["candidate"]}, looks=[], sweep=[])
    (figure,) = re.findall(r"<figure>.*?</figure>", page_of(cluster, fallen_back(notes={"evidence": lone})), re.DOTALL)
    assert "baseline" not in figure


def test_void_looks_engine_events_slo_lines_rates_and_the_client_s_health_are_shown(cluster):
    text = Page(page_of(cluster, fallen_back())).text
    for part in (
        "look 1a: void", "3 candidate recompiles", "limit 250", "SLO", "peak with head-room", "load-1b-0", "3.25",
        "loop lag x", "8.889", "Not measured: this verdict says nothing about",
    ):  # fmt: skip
        assert part in text, part


def test_the_same_evidence_makes_the_same_page(cluster):
    assert page_of(cluster, fallen_back()) == page_of(cluster, fallen_back())


def test_the_report_s_json_holds_verdict_and_evidence(cluster):
    made = fallen_back()
    data = json.loads(json.dumps(report_data(made, summary_of(cluster, made)), allow_nan=False))
    assert data["verdict"]["checks"][0]["interval"] == [85.0, 97.0]
    assert data["evidence"] == EVIDENCE


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (check(), "tpot_p95 needs at most 70 ms, measured 91.25"),
        (check(outcome="inconclusive", value=60.0, interval=[50.0, 80.0]), "about 4.0 times as many requests"),
        (check(outcome="inconclusive", value=60.0, interval=[50.0, None]), "has no bound yet: more requests"),
        (check(outcome="inconclusive", value=75.0, interval=[65.0, 80.0]), "measured 75, though that is not sure"),
        (check(outcome="inconclusive", value=None, interval=[None, None]), "needs evidence that is missing"),
        (check(outcome="void"), "needs a measurement that is not disturbed"),
        (check(name="goodput", value=0.9, limit=0.95, unit="", interval=[0.88, 0.91]), "goodput needs at least 0.95"),
    ],
)  # fmt: skip
def test_each_check_that_stands_against_a_pass_says_what_it_needs(made, said):
    (told,) = what_would_change({"outcome": made["outcome"], "checks": [check(outcome="pass"), made]})
    assert said in told


def test_a_pass_says_what_is_nearest_to_its_limit():
    far = check(name="far", outcome="pass", interval=[1.0, 35.0])
    near = check(name="near", outcome="pass", interval=[1.0, 56.0])
    good = check(name="goodput", outcome="pass", limit=0.9, interval=[0.99, 1.0])
    room = check(name="capacity", outcome="pass", limit=12.0, interval=[12.0, None])
    told = what_would_change({"outcome": "pass", "checks": [far, near, good, room]})
    assert not any("capacity" in each for each in told)
    assert told[0].startswith("goodput would stop passing if it got worse by 9 %")
    assert told[1].startswith("near would stop passing if it got worse by 25 %")


@pytest.mark.parametrize("phase", sorted(Phase))
def test_there_is_a_page_for_every_phase_even_for_a_run_that_did_nothing(cluster, phase):
    page = Page(page_of(cluster, record(phase)))
    assert f"vllm: {phase}" in page.text
    assert "Checks" not in page.text


def evil_evidence():
    looks = [{**look, "look": EVIL, "outcome": EVIL, "events": {EVIL: 1}} for look in EVIDENCE["looks"]]
    return {**EVIDENCE, "looks": looks, "clients": [{"block": EVIL, "void_reasons": [EVIL]}]}


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
        notes={"warm_up": EVIL, "evidence": evil_evidence()},
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
        "stroke-width", "points", "x", "y", "style", "d", "opacity", "text-anchor", "id", "transform", "clip-path",
        "width", "height", "version", "xlink:href", "type",
    }  # fmt: skip


def test_every_attempt_at_a_node_pool_is_told(cluster):
    attempts = (
        Attempt("on-demand in us-west4-a", "tpu-x", 1.0, "<no stock>", 2.0),
        Attempt("spot in us-west4-b", "tpu-x-2", 2.0, "", 3.0),
    )
    made = record(Phase.PROVISIONED, attempts=attempts)
    page = page_of(cluster, made)
    assert "&lt;no stock&gt;" in page
    assert page.index("on-demand in us-west4-a") < page.index("spot in us-west4-b")
    told = describe(cluster.kube, made)
    assert "on-demand in us-west4-a: <no stock> (tpu-x)" in told
    assert "spot in us-west4-b: its nodes are ready (tpu-x-2)" in told
    assert Record.from_json(made.to_json()) == made


def test_what_people_were_asked_and_the_way_back_are_told(cluster):
    asked = record(Phase.MIGRATED, way_back=("gcloud container node-pools create x", "tpu-migration deploy"))
    asked = replace(asked, phase=Phase.COMMITTED).with_question("decommission", 1.0)
    made = asked.with_answer("decommission", approved=True, by="ada", reason="quiet week", now=2.0)
    page = page_of(cluster, replace(made, phase=Phase.MIGRATED))
    assert "approved by ada: quiet week" in page
    assert "gcloud container node-pools create x\ntpu-migration deploy" in page
    assert "may not be there again" in page
    told = describe(cluster.kube, made)
    assert "approval   decommission: approved by ada: quiet week" in told
    assert "             tpu-migration deploy" in told
