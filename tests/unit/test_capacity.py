"""Read capacity plans, and tell which error another offer may not meet."""

from __future__ import annotations

import pytest

from tpu_migration.domain.capacity import CapacityError, Offer, every_offer_meets, is_scarcity, parse_offers
from tpu_migration.domain.node_pools import Pool, PoolSpec, differences
from tpu_migration.domain.plan import Plan, PlanError


def test_offers_are_read_in_order_and_share_the_budget():
    offers = parse_offers(["reservation:my-res@us-west4-a=600", "on-demand@us-west4-b", "spot@europe-west4-b"], 3000)
    assert offers == (
        Offer("reservation", "us-west4-a", 600.0, "my-res"),
        Offer("on-demand", "us-west4-b", 1000.0),
        Offer("spot", "europe-west4-b", 1000.0),
    )
    assert str(offers[0]) == "reservation my-res in us-west4-a"


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        ("on-demand", "is not KIND@ZONE"),
        ("on-demand@us-west4", "is not KIND@ZONE"),
        ("on-demand@us-west4-a=soon", "is not KIND@ZONE"),
        ("cheap@us-west4-a", "must be one of on-demand, spot, reservation"),
        ("reservation@us-west4-a", "reservation:NAME@ZONE"),
        ("spot:my-res@us-west4-a", "reservation:NAME@ZONE"),
        ("flex-start@us-west4-a", "not supported yet"),
        ("compute-class@us-west4-a", "not supported yet"),
    ],
)
def test_an_entry_that_cannot_be_read_is_refused_by_name(entry, told):
    with pytest.raises(CapacityError, match=told):
        parse_offers([entry], 3600)


def test_the_simple_fields_are_one_offer():
    plan = Plan.from_params({"capacity": "spot", "tpu_zone": "us-west4-b", "capacity_budget_s": 900})
    assert plan.offers == (Offer("spot", "us-west4-b", 900.0),)


@pytest.mark.parametrize(
    ("params", "told"),
    [
        ({"capacity_plan": ["spot@us-west4-a"], "tpu_zone": "us-west4-b"}, "leave out tpu_zone"),
        ({"capacity_plan": ["spot@us-west4-a"], "tpu_pool": "mine"}, "leave out capacity_plan, or tpu_pool"),
        ({"capacity": "flex-start"}, "not supported yet"),
        ({"target": "tpu-vm-v5e-8"}, "TPU VMs without Kubernetes are not supported yet"),
        ({"target_max_nodes": 1}, "target_max_nodes=1"),
        ({"node_service_account": "me"}, "node_service_account='me' must be an address"),
    ],
)
def test_a_plan_that_cannot_be_carried_out_is_refused_before_anything_is_made(params, told):
    with pytest.raises(PlanError, match=told):
        Plan.from_params(params)


def test_scarcity_is_told_from_what_no_offer_mends():
    scarce = "403 Insufficient regional quota to satisfy request"
    assert is_scarcity(scarce)
    assert is_scarcity("[ZONE_RESOURCE_POOL_EXHAUSTED]: Instance 'x' creation failed")
    assert not is_scarcity("403 Required 'container.clusters.update' permission")
    assert every_offer_meets("[IP_SPACE_EXHAUSTED_WITH_DETAILS]: Instance 'x'")
    assert not every_offer_meets(scarce)


def test_a_pool_of_another_shape_is_told_field_by_field():
    spec = PoolSpec("tpu", "ct5lp-hightpu-8t", 2, "us-west4-a", {})
    there = Pool("tpu", "RUNNING", "ct5lp-hightpu-4t", 2, zones=("us-west4-b",), spot=True)
    assert differences(there, spec) == [
        "its machine type is ct5lp-hightpu-4t, not ct5lp-hightpu-8t",
        "its zone is us-west4-b, not us-west4-a",
        "its capacity is spot, not on-demand",
    ]
