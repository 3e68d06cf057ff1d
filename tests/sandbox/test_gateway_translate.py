"""How Gateway API objects and GKE policies are read; no Envoy."""

from __future__ import annotations

from pathlib import Path

import pytest

from sandbox.clock import VirtualClock
from sandbox.faults import Faults, NoFaults
from sandbox.gateway.backends import Backends, attachment
from sandbox.gateway.delays import Propagation
from sandbox.gateway.draining import Draining
from sandbox.gateway.model import Backend, Program, Rule, Share
from sandbox.gateway.status import condition, stamped
from sandbox.gateway.translate import translate

NS = "inference"
ROOT = Path(__file__).resolve().parents[2]


def gateway(*listeners):
    listeners = listeners or ({"name": "http", "port": 80, "protocol": "HTTP"},)
    return {
        "metadata": {"name": "gw", "namespace": NS},
        "spec": {"gatewayClassName": "gke-l7-rilb", "listeners": list(listeners)},
    }


def route(rules, name="llm", created="2026-11-22T00:00:00Z", namespace=NS, hostnames=(), parent=None):
    spec = {"parentRefs": [parent or {"name": "gw"}], "rules": rules, "hostnames": list(hostnames)}
    return {"metadata": {"name": name, "namespace": namespace, "creationTimestamp": created}, "spec": spec}


def rule(service="gpu", **match):
    return {"matches": [match] if match else [], "backendRefs": [{"name": service, "port": 8000}]}


def service(name, port=8000):
    return {"metadata": {"name": name, "namespace": NS}, "spec": {"ports": [{"name": "http", "port": port}]}}


def slice_of(name, *endpoints, port=8000):
    meta = {"name": f"{name}-1", "namespace": NS, "labels": {"kubernetes.io/service-name": name}}
    return {"metadata": meta, "ports": [{"name": "http", "port": port}], "endpoints": list(endpoints)}


def endpoint(address, **conditions):
    return {"addresses": [address], "conditions": conditions}


def policy(name, target, default, created="2026-11-22T00:00:00Z"):
    reference = {"group": "", "kind": "Service", "name": target}
    meta = {"name": name, "namespace": NS, "creationTimestamp": created}
    return {"metadata": meta, "spec": {"targetRef": reference, "default": default}}


def backends(slices=(), health=(), policies=()):
    return Backends([service("gpu"), service("tpu")], list(slices), list(health), list(policies))


def conditions_of(translation):
    ((_, ((_, conditions),)),) = translation.routes
    return {entry["type"]: (entry["status"], entry["reason"]) for entry in conditions}


def resolved(name="gpu", **world):
    return backends(**world).resolve({"name": name, "port": 8000}, NS)[0]


def test_precedence_is_exact_then_longest_path_then_method_then_headers_then_age():
    path = {"type": "PathPrefix", "value": "/v1"}
    header = [{"name": "x-arm", "value": "tpu"}]
    routes = [
        route([rule(path={"type": "PathPrefix", "value": "/"})], "short", "2026-01-01T00:00:00Z"),
        route([rule(path=path)], "younger", "2026-03-01T00:00:00Z"),
        route([rule(path=path)], "older", "2026-02-01T00:00:00Z"),
        route([rule(path=path, headers=header)], "header", "2026-05-01T00:00:00Z"),
        route([rule(path=path, method="POST")], "method", "2026-06-01T00:00:00Z"),
        route([rule(path={"type": "Exact", "value": "/v"})], "exact", "2026-07-01T00:00:00Z"),
    ]
    rules = translate(gateway(), routes, backends()).program.ports[80]
    names = [entry.order[1] for entry in rules]
    assert names == [f"{NS}/{name}" for name in ("exact", "method", "header", "older", "younger", "short")]


def test_a_route_is_bound_to_the_hostnames_it_shares_with_the_listener():
    wildcard = {"name": "http", "port": 80, "protocol": "HTTP", "hostname": "*.example.com"}
    bound = translate(gateway(wildcard), [route([rule()], hostnames=["a.example.com", "b.org"])], backends())
    assert [entry.hostname for entry in bound.program.ports[80]] == ["a.example.com"]
    unbound = translate(gateway(wildcard), [route([rule()], hostnames=["b.org"])], backends())
    assert conditions_of(unbound)["Accepted"] == ("False", "NoMatchingListenerHostname")


def test_a_route_of_another_namespace_needs_to_be_allowed():
    parent = {"name": "gw", "namespace": NS}
    foreign = route([rule()], namespace="other", parent=parent)
    assert conditions_of(translate(gateway(), [foreign], backends()))["Accepted"][1] == "NotAllowedByListeners"
    open_to_all = {"name": "http", "port": 80, "protocol": "HTTP", "allowedRoutes": {"namespaces": {"from": "All"}}}
    found = conditions_of(translate(gateway(open_to_all), [foreign], backends()))
    assert found["Accepted"][0] == "True"
    assert found["ResolvedRefs"] == ("False", "BackendNotFound")


@pytest.mark.parametrize(
    "extra",
    [
        {"timeouts": {"request": "10s"}},
        {"retry": {"attempts": 2}},
        {"filters": [{"type": "RequestMirror", "requestMirror": {}}]},
        {"matches": [{"path": {"type": "RegularExpression", "value": "/.*"}}]},
        {"matches": [{"queryParams": [{"name": "a", "value": "b"}]}]},
    ],
)
def test_what_gke_does_not_support_is_refused_and_not_programmed(extra):
    result = translate(gateway(), [route([{**rule(), **extra}])], backends())
    assert conditions_of(result)["Accepted"] == ("False", "UnsupportedValue")
    assert result.program.ports[80] == ()


@pytest.mark.parametrize(
    ("reference", "reason"),
    [
        ({"name": "none", "port": 8000}, "BackendNotFound"),
        ({"name": "gpu", "port": 9}, "BackendNotFound"),
        ({"name": "gpu", "port": 8000, "namespace": "other"}, "RefNotPermitted"),
        ({"name": "pool", "group": "inference.networking.k8s.io", "kind": "InferencePool"}, "InvalidKind"),
    ],
)
def test_a_reference_that_does_not_resolve_keeps_its_share_without_a_backend(reference, reason):
    result = translate(gateway(), [route([{"backendRefs": [reference]}])], backends())
    assert conditions_of(result)["ResolvedRefs"] == ("False", reason)
    assert result.program.ports[80][0].shares == (Share(1, None),)


def test_only_ready_endpoints_count():
    ready = (endpoint("127.0.0.2", ready=True), endpoint("127.0.0.3"))
    others = (endpoint("127.0.0.4", ready=False), endpoint("127.0.0.5", ready=False, serving=True, terminating=True))
    found = resolved(slices=[slice_of("gpu", *ready, *others, port=9000), slice_of("tpu", endpoint("127.0.0.9"))])
    assert found.endpoints == {("127.0.0.2", 9000), ("127.0.0.3", 9000)}


def test_without_policies_gkes_defaults_hold():
    found = resolved()
    assert (found.timeout_s, found.draining_s, found.health_check.path) == (30.0, 0.0, "/")


def test_policies_set_health_check_timeout_and_draining():
    config = {"type": "HTTP", "httpHealthCheck": {"port": 9000, "requestPath": "/health"}}
    health = policy("h", "gpu", {"checkIntervalSec": 5, "timeoutSec": 4, "unhealthyThreshold": 3, "config": config})
    limits = policy("b", "gpu", {"timeoutSec": 3600, "connectionDraining": {"drainingTimeoutSec": 120}})
    found = resolved(health=[health], policies=[limits])
    assert (found.timeout_s, found.draining_s) == (3600.0, 120.0)
    check = found.health_check
    assert (check.path, check.port, check.interval_s, check.timeout_s, check.unhealthy) == ("/health", 9000, 5, 4, 3)
    assert resolved("tpu", health=[health], policies=[limits]).timeout_s == 30.0


def test_the_older_of_two_policies_wins_and_the_younger_is_conflicted():
    old = policy("old", "gpu", {"timeoutSec": 100}, "2026-01-01T00:00:00Z")
    young = policy("young", "gpu", {"timeoutSec": 200}, "2026-02-01T00:00:00Z")
    world = backends(policies=[young, old])
    assert world.resolve({"name": "gpu", "port": 8000}, NS)[0].timeout_s == 100
    assert world.conflicts == {(NS, "young")}
    assert attachment(young, exists=True, conflicted=True, used=True)[0]["reason"] == "Conflicted"
    assert attachment(old, exists=True, conflicted=False, used=True)[0]["status"] == "True"
    assert attachment(old, exists=False, conflicted=False, used=False)[0]["reason"] == "TargetNotFound"
    assert attachment(old, exists=True, conflicted=False, used=False) == []


def test_a_conditions_time_moves_only_with_its_status():
    first = stamped([condition("Accepted", True, "Accepted")], None, 1, 1000.0)
    second = stamped([condition("Accepted", True, "Accepted")], first, 2, 2000.0)
    third = stamped([condition("Accepted", False, "Invalid")], second, 3, 3000.0)
    assert first[0]["lastTransitionTime"] == second[0]["lastTransitionTime"] != third[0]["lastTransitionTime"]
    assert second[0]["observedGeneration"] == 2


def program(weights, endpoints=None):
    found = {name: Backend(name, frozenset((endpoints or {}).get(name, ()))) for name in weights}
    shares = tuple(Share(weight, name) for name, weight in weights.items())
    return Program({80: (Rule("*", False, "/", "", (), shares),)}, found)


def test_weights_come_into_force_in_order_eight_seconds_after_they_were_asked_for():
    clock, line = VirtualClock(0), Propagation(1.0, NoFaults())
    line.ask(program({"gpu": 100}), clock.now())
    for weight in (90, 80):
        line.ask(program({"gpu": weight}), clock.now())
        clock.advance(4)
    assert line.in_force(clock.now()).ports[80][0].shares[0].weight == 90
    assert line.next_due() == 12
    clock.advance(4)
    assert line.in_force(clock.now()).ports[80][0].shares[0].weight == 80
    assert line.next_due() is None


def test_endpoints_are_quicker_than_weights_and_a_new_backend_slower():
    one, two = ("127.0.0.2", 1), ("127.0.0.3", 1)
    line = Propagation(1.0, NoFaults())
    line.ask(program({"gpu": 1}, {"gpu": [one]}), 0)
    line.ask(program({"gpu": 1, "tpu": 0}, {"gpu": [one, two], "tpu": [one]}), 0)
    assert line.in_force(2.9).backends["gpu"].endpoints == {one}
    assert line.in_force(3).backends["gpu"].endpoints == {one, two}
    assert line.in_force(8).backends["tpu"].endpoints == frozenset()
    assert line.in_force(18).backends["tpu"].endpoints == {one}


def test_changing_weight_and_backend_at_once_leaves_a_window_without_endpoints():
    line = Propagation(1.0, NoFaults())
    line.ask(program({"gpu": 1}, {"gpu": [("127.0.0.2", 1)]}), 0)
    line.ask(program({"tpu": 1}, {"tpu": [("127.0.0.3", 1)]}), 0)
    assert line.in_force(10).backends == {"tpu": Backend("tpu", frozenset())}
    assert line.in_force(18).backends["tpu"].endpoints


def test_the_fault_makes_the_gateway_slow(tmp_path):
    faults = Faults(tmp_path / "faults.json")
    line = Propagation(2.0, faults)
    line.ask(program({"gpu": 1}), 0)
    faults.set("gateway-slow")
    line.ask(program({"gpu": 2}), 0)
    assert line.next_due() == 8 / 2 * 10
    faults.clear()
    line.ask(program({"gpu": 3}), 1)
    assert line.in_force(39).ports[80][0].shares[0].weight == 1
    assert line.in_force(40).ports[80][0].shares[0].weight == 3, "a later change never overtakes an earlier one"


def test_an_endpoint_that_comes_back_while_draining_is_a_member_again():
    one = ("127.0.0.2", 1)
    draining = Draining()

    def with_endpoints(*endpoints):
        return Program({}, {"gpu": Backend("gpu", frozenset(endpoints), draining_s=60)})

    draining.update(with_endpoints(one), 0)
    draining.update(with_endpoints(), 10)
    assert draining.of("gpu") == [one]
    assert draining.next_due() == 70
    draining.update(with_endpoints(one), 20)
    assert draining.of("gpu") == []
    draining.update(with_endpoints(), 30)
    assert draining.hops(with_endpoints()) == {one}
    draining.update(with_endpoints(), 90)
    assert draining.hops(with_endpoints()) == frozenset()
