"""Weights, restores and the safe route are pure functions over an HTTPRoute."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpu_migration.domain.phases import AFTER_COMMIT, ENDED, Phase, may_follow
from tpu_migration.domain.routing import (
    RouteError,
    arm_probe_route,
    base_path,
    epoch_annotation,
    epoch_of,
    least_percent,
    points_at,
    restored,
    safe_route,
    target_percent,
    unsupported,
    with_target,
)

ROOT = [{"path": {"type": "PathPrefix", "value": "/"}}]


def ref(name, weight=1, **more):
    return {"group": "", "kind": "Service", "name": name, "port": 8000, "weight": weight, **more}


def rule(*refs, matches=ROOT):
    return {"matches": matches, "backendRefs": list(refs)}


def route(*rules, **metadata):
    return {"metadata": {"name": "llm", "namespace": "inference", **metadata}, "spec": {"rules": list(rules)}}


def weights(one):
    return {each["name"]: each["weight"] for each in one["backendRefs"]}


def test_a_step_moves_its_share_and_keeps_both_refs():
    [moved] = with_target([rule(ref("gpu"))], [rule(ref("gpu"))], "gpu", "tpu", 25)
    assert weights(moved) == {"gpu": 75, "tpu": 25}
    assert moved["backendRefs"][1]["port"] == 8000


def test_at_both_ends_the_other_side_stays_as_a_ref_without_weight():
    assert weights(with_target([rule(ref("gpu"))], [rule(ref("gpu"))], "gpu", "tpu", 0)[0]) == {"gpu": 100, "tpu": 0}
    assert weights(with_target([rule(ref("gpu"))], [rule(ref("gpu"))], "gpu", "tpu", 100)[0]) == {"gpu": 0, "tpu": 100}


@given(st.integers(0, 100), st.integers(1, 1000), st.integers(0, 1000))
def test_other_backends_of_a_rule_keep_their_exact_share(percent, gpu, other):
    [moved] = with_target(
        [rule(ref("gpu", gpu), ref("other", other))],
        [rule(ref("gpu", gpu), ref("other", other))],
        "gpu",
        "tpu",
        percent,
    )
    found = weights(moved)
    assert found["other"] * (gpu + other) == other * sum(found.values())
    assert found["tpu"] * 100 == percent * (found["gpu"] + found["tpu"])


def test_rules_without_the_source_are_left_alone():
    health = rule(ref("health"), matches=[{"path": {"type": "Exact", "value": "/health"}}])
    assert with_target([health, rule(ref("gpu"))], [health, rule(ref("gpu"))], "gpu", "tpu", 50)[0] == health


def test_weights_that_would_leave_the_schemas_bound_are_refused_with_the_remedy():
    with pytest.raises(RouteError, match="common factor"):
        with_target([rule(ref("gpu", 50_000))], [rule(ref("gpu", 50_000))], "gpu", "tpu", 50)


@given(st.lists(st.integers(1, 20), min_size=1, max_size=3), st.integers(0, 100))
def test_a_restore_brings_back_exactly_what_was_recorded(shares, percent):
    recorded = [
        rule(ref("gpu", share), matches=[{"path": {"type": "PathPrefix", "value": f"/{i}"}}])
        for i, share in enumerate(shares)
    ]
    moved = with_target(recorded, recorded, "gpu", "tpu", percent)
    assert restored(moved, recorded, "gpu", "tpu") == recorded
    home = restored(moved, recorded, "gpu", "tpu", streaming=True)
    assert target_percent(home, "gpu", "tpu") == 0
    assert all(weights(one)["tpu"] == 0 for one in home), "its streams go on"
    assert restored(home, recorded, "gpu", "tpu") == recorded


def test_a_restore_keeps_rules_that_somebody_added_meanwhile():
    recorded = [rule(ref("gpu"))]
    added = rule(ref("new-thing"), matches=[{"path": {"type": "Exact", "value": "/new"}}])
    live = [added, *with_target(recorded, recorded, "gpu", "tpu", 100)]
    assert restored(live, recorded, "gpu", "tpu") == [added, *recorded]


def test_a_restore_frees_an_added_rule_of_the_target():
    recorded = [rule(ref("gpu"))]
    only_tpu = rule(ref("tpu"), matches=[{"path": {"type": "Exact", "value": "/beta"}}])
    assert weights(restored([only_tpu, *recorded], recorded, "gpu", "tpu")[0]) == {"gpu": 1}
    home = restored([only_tpu, *recorded], recorded, "gpu", "tpu", streaming=True)
    assert [weights(one) for one in home] == [{"gpu": 1, "tpu": 0}, {"gpu": 1}]


def test_the_largest_share_of_any_rule_is_what_counts():
    rules = [rule(ref("gpu", 95), ref("tpu", 5)), rule(ref("gpu", 50), ref("tpu", 50))]
    assert target_percent(rules, "gpu", "tpu") == 50
    assert target_percent([rule(ref("gpu"))], "gpu", "tpu") == 0


def test_a_step_leaves_rules_that_somebody_added_and_other_workloads_rules_alone():
    recorded = [rule(ref("gpu")), rule(ref("other"), matches=[{"path": {"type": "Exact", "value": "/other"}}])]
    added = rule(ref("new-thing"), matches=[{"path": {"type": "Exact", "value": "/new"}}])
    elsewhere = rule(ref("other", 0), ref("other-tpu", 100), matches=recorded[1]["matches"])
    live = [added, recorded[0], elsewhere]
    moved = with_target(live, recorded, "gpu", "tpu", 50)
    assert moved[0] == added
    assert moved[2] == elsewhere
    assert weights(moved[1]) == {"gpu": 50, "tpu": 50}
    assert restored(moved, recorded, "gpu", "tpu") == [added, recorded[0], elsewhere]


def test_a_restore_puts_the_source_back_beside_a_backend_that_somebody_added():
    recorded = [rule(ref("gpu"))]
    live = [rule(ref("gpu", 0), ref("tpu", 100), ref("canary", 1))]
    assert weights(restored(live, recorded, "gpu", "tpu")[0]) == {"gpu": 100, "canary": 1}
    home = restored(live, recorded, "gpu", "tpu", streaming=True)
    assert weights(home[0]) == {"gpu": 100, "tpu": 0, "canary": 1}


@pytest.mark.parametrize(
    ("path", "base"),
    [("/", ""), ("/v1", ""), ("/v1/completions", ""), ("/gemma", "/gemma"), ("/v2/", "/v2")],
)
def test_clients_put_the_users_own_prefix_before_v1(path, base):
    users = route(rule(ref("gpu"), matches=[{"path": {"type": "PathPrefix", "value": path}}]))
    assert base_path(users, "gpu") == base


def test_a_route_that_nobody_migrated_is_at_epoch_zero():
    assert epoch_of(route(rule(ref("gpu"))), "llm") == 0
    mine = epoch_annotation("llm")
    assert epoch_of(route(rule(ref("gpu")), annotations={mine: "7"}), "llm") == 7
    assert epoch_of(route(rule(ref("gpu")), annotations={mine: "7"}), "another") == 0
    with pytest.raises(RouteError, match="is no number"):
        epoch_of(route(rule(ref("gpu")), annotations={mine: "seven"}), "llm")


def test_a_ref_without_weight_sends_nobody():
    assert points_at(route(rule(ref("gpu"))), "gpu")
    assert not points_at(route(rule(ref("gpu", 0))), "gpu")
    assert not points_at(route(rule({"kind": "InferencePool", "name": "gpu"})), "gpu")


def test_an_inference_pool_is_refused_with_a_clear_not_yet():
    pool = {"group": "inference.networking.k8s.io", "kind": "InferencePool", "name": "llm", "weight": 1}
    assert "not yet" in (unsupported(route(rule(pool)), "gpu") or "")
    assert unsupported(route(rule(ref("gpu"))), "gpu") is None


def test_a_service_of_another_namespace_with_the_sources_name_is_refused():
    own, foreign = {**ref("gpu"), "namespace": "inference"}, {**ref("gpu"), "namespace": "other"}
    users = {**route(rule(own)), "metadata": {"name": "users", "namespace": "inference"}}
    assert unsupported(users, "gpu") is None
    users["spec"]["rules"].append(rule(foreign))
    assert "rule 1 points at Service gpu of namespace other" in (unsupported(users, "gpu") or "")


def test_the_least_share_is_that_of_the_recorded_rule_that_gives_least():
    recorded = [rule(ref("gpu")), {**rule(ref("gpu")), "matches": [{"path": {"value": "/embeddings"}}]}]
    live = with_target(recorded, recorded, "gpu", "tpu", 50)
    assert least_percent(live, recorded, "gpu", "tpu") == 50
    live[1]["backendRefs"] = [ref("gpu")]
    assert (least_percent(live, recorded, "gpu", "tpu"), target_percent(live, "gpu", "tpu")) == (0, 50)
    added = [*with_target(recorded, recorded, "gpu", "tpu", 50), {"matches": [], "backendRefs": [ref("gpu")]}]
    assert least_percent(added, recorded, "gpu", "tpu") == 50
    idle = [*recorded, {**rule(ref("gpu", 0), ref("other")), "matches": [{"path": {"value": "/idle"}}]}]
    assert least_percent(with_target(idle, idle, "gpu", "tpu", 50), idle, "gpu", "tpu") == 50


def test_the_probe_route_is_reached_by_header_on_the_users_own_paths():
    users = route(rule(ref("gpu"), matches=[{"path": {"type": "PathPrefix", "value": "/v1"}}]))
    users["spec"] |= {"parentRefs": [{"name": "gw"}], "hostnames": ["llm.example"]}
    probe = arm_probe_route(users, "probe", {"source": "gpu", "target": "tpu"}, "x-arm")
    assert probe["spec"]["hostnames"] == ["llm.example"]
    first = probe["spec"]["rules"][1]
    assert first["matches"] == [
        {"path": {"type": "PathPrefix", "value": "/v1"}, "headers": [{"name": "x-arm", "value": "target"}]}
    ]
    assert weights(first) == {"tpu": 1}


# ---------------------------------------------------------------- the safe route


@pytest.mark.parametrize("phase", [p for p in Phase if p not in AFTER_COMMIT])
def test_before_the_commit_the_source_is_safe(phase):
    assert safe_route(phase, source_ready=2, target_ready=2, source_capacity=2).target_percent == 0


@pytest.mark.parametrize("phase", sorted(AFTER_COMMIT))
def test_after_the_commit_the_target_is_safe_while_it_serves(phase):
    assert safe_route(phase, 2, 1, 2).target_percent == 100
    assert safe_route(phase, 2, 0, 2).target_percent == 0
    assert safe_route(phase, 2, 0, 0).target_percent == 100  # the source is given up already


@pytest.mark.parametrize(
    ("source", "target", "capacity", "stays", "left"),
    [(1, 2, 2, 100, 50), (1, 2, 2, 10, 10), (7, 2, 8, 100, 13), (2, 2, 2, 100, 0), (3, 2, 2, 100, 0), (1, 0, 2, 100, 0),
     (0, 2, 2, 50, 100), (1, 2, 2, 0, 0)],
)  # fmt: skip
def test_what_the_source_does_not_carry_stays_on_a_target_that_is_well(source, target, capacity, stays, left):
    for phase in (Phase.SHIFTING, Phase.SOAKING, Phase.FALLING_BACK):
        safe = safe_route(phase, source, target, capacity, stays=stays)
        assert safe.target_percent == left
        assert ("stay on the target until the others are back" in safe.reason) is (0 < left < 100)


@given(
    st.sampled_from(list(Phase)), st.integers(0, 3), st.integers(0, 3), st.integers(0, 3), st.sampled_from([0, 10, 100])
)
def test_never_a_side_without_ready_endpoints_while_the_other_has_some(phase, source, target, capacity, stays):
    safe = safe_route(phase, source, target, capacity, stays=stays)
    if 0 < safe.target_percent < 100:
        assert source > 0
        assert target > 0
        return
    chosen, other = (target, source) if safe.target_percent else (source, target)
    given_up = phase in AFTER_COMMIT and capacity == 0 and safe.target_percent == 100
    assert chosen > 0 or other == 0 or given_up


# ---------------------------------------------------------------- phases


def test_every_phase_before_the_commit_may_fall_back_and_none_after():
    for phase in Phase:
        expected = phase not in AFTER_COMMIT and (phase not in ENDED or phase is Phase.HELD)
        assert may_follow(phase, Phase.FALLING_BACK) is (expected or phase is Phase.FALLING_BACK), phase


def test_no_phase_can_be_skipped_on_the_way_forward():
    assert not may_follow(Phase.WARM, Phase.SHIFTING)
    assert not may_follow(Phase.SHIFTING, Phase.COMMITTED)
    assert not may_follow(Phase.FALLEN_BACK, Phase.SHIFTING)
