"""GKE Warden's word on TPU pods, as the embedded API gives it."""

from __future__ import annotations

import pytest

from sandbox.api import Api, LocalClient
from sandbox.api.messages import ApiError
from sandbox.clock import VirtualClock
from sandbox.controllers import Manager
from sandbox.gke import warden

ACCELERATOR = {"cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice"}
TOPOLOGY = {"cloud.google.com/gke-tpu-topology": "2x4"}


@pytest.fixture
def api():
    api = Api(VirtualClock())
    api.writer.admit = warden.review
    return api


def pod(**spec):
    resources = {"limits": {"google.com/tpu": "8"}}
    containers = [{"name": "vllm", "image": "vllm/vllm-tpu:v0.32.0", "resources": resources}]
    return {"metadata": {"name": "p", "namespace": "default"}, "spec": {"containers": containers, **spec}}


def create(api, obj):
    return LocalClient(api).create("pods", obj)


@pytest.mark.parametrize(
    ("selector", "missing"),
    [
        (ACCELERATOR, ["cloud.google.com/gke-tpu-topology"]),
        (TOPOLOGY, ["cloud.google.com/gke-tpu-accelerator"]),
        ({}, ["cloud.google.com/gke-tpu-accelerator", "cloud.google.com/gke-tpu-topology"]),
    ],
)
def test_a_tpu_pod_that_does_not_name_its_slice_is_refused_with_wardens_words(api, selector, missing):
    with pytest.raises(ApiError) as refused:
        create(api, pod(nodeSelector=selector))
    assert (refused.value.code, refused.value.reason) == (400, "GKE Warden constraints violations")
    assert "GKE Warden rejected the request because it violates one or more constraints." in refused.value.message
    for label in missing:
        assert f"Missing nodeSelector/nodeAffinity label {label}." in refused.value.message
    assert refused.value.message.count("Missing") == len(missing)


def test_affinity_and_a_compute_class_name_a_slice_too(api):
    terms = [{"matchExpressions": [{"key": key, "operator": "Exists"} for key in (*ACCELERATOR, *TOPOLOGY)]}]
    required = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}
    create(api, pod(affinity={"nodeAffinity": required}))
    by_class = pod(nodeSelector={"cloud.google.com/compute-class": "tpu"})
    create(api, by_class | {"metadata": {"name": "q", "namespace": "default"}})


def test_a_pod_without_tpu_is_let_in(api):
    create(
        api, {"metadata": {"name": "p", "namespace": "default"}, "spec": {"containers": [{"name": "c", "image": "i"}]}}
    )


def test_a_deployment_whose_pods_warden_refuses_says_so_in_its_conditions(api):
    client, manager = LocalClient(api), Manager(api, api.clock, 1.0)
    template = {"metadata": {"labels": {"app": "x"}}, "spec": pod(nodeSelector=ACCELERATOR)["spec"]}
    spec = {"selector": {"matchLabels": {"app": "x"}}, "template": template}
    client.create("deployments", {"metadata": {"name": "d", "namespace": "default"}, "spec": spec})
    manager.settle()
    conditions = {c["type"]: c["message"] for c in client.get("deployments", "default", "d")["status"]["conditions"]}
    assert "Missing nodeSelector/nodeAffinity label cloud.google.com/gke-tpu-topology" in conditions["ReplicaFailure"]
