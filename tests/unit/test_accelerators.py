"""What the accelerators file must hold."""

from __future__ import annotations

import datetime as dt

import pytest

from tests.unit.translation_builders import ROOT, slice_of
from tpu_migration.domain.accelerators import AcceleratorError, parse_accelerators

TEXT = (ROOT / "include" / "accelerators.yaml").read_text()


@pytest.mark.parametrize(
    ("name", "machine", "topology", "hbm_gib"),
    [
        ("tpu-v5e-4", "ct5lp-hightpu-4t", "2x2", 64),
        ("tpu-v5e-8", "ct5lp-hightpu-8t", "2x4", 128),
        ("tpu-v6e-4", "ct6e-standard-4t", "2x2", 128),
        ("tpu-v6e-8", "ct6e-standard-8t", "2x4", 256),
    ],
)
def test_every_slice_knows_its_machine_topology_and_memory(name, machine, topology, hbm_gib):
    found = slice_of(name)
    assert (found.machine_type, found.topology, found.hbm_gib) == (machine, topology, hbm_gib)
    assert found.node_selectors["cloud.google.com/gke-tpu-topology"] == topology


def test_prices_are_per_chip_dated_and_multiplied_for_the_machine():
    slice_ = slice_of("tpu-v5e-8")
    assert slice_.usd_per_hour("spot") == pytest.approx(1.96)
    assert slice_.usd_per_hour("on-demand") == pytest.approx(9.60)
    assert all(price.read and price.source for price in slice_.prices)


def test_a_price_that_nobody_read_is_unknown_and_never_zero():
    gpu = parse_accelerators(TEXT).gpu("l4")
    assert gpu.usd_per_hour("spot", 1) is None
    assert gpu.usd_per_hour("reserved", 1) is None


def test_gpus_are_found_by_their_gke_label():
    known = parse_accelerators(TEXT)
    assert known.gpu_by_label("nvidia-h100-mega-80gb") == known.gpu("h100")
    assert known.gpu_by_label("nvidia-b300") is None


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("schemaVersion: 1", "schemaVersion: 9", "schemaVersion 9"),
        ("ct5lp-hightpu-8t, topology: 2x4", "ct5lp-hightpu-8t, topology: 2x2", "2x2' is not legal on ct5lp-hightpu-8t"),
        ("ct5lp-hightpu-4t, topology: 2x2", "ct5lp-hightpu-4t, topology: 4x4", "not 4 hosts"),
        ("native_fp8: true, quota: NVIDIA_H100", "quota: NVIDIA_H100", "native_fp8"),
        ("int8_tops: 393", "int8_topz: 393", "unknown keys int8_topz"),
        ("prices: tpu-v6e\n", "prices: tpu-v9\n", "tpu-v9"),
        ("usd_per_chip_hour: 1.20", "usd_per_chip_hour: -1", "is no price"),
    ],
)
def test_a_wrong_file_is_refused_with_the_place(old, new, complaint):
    assert old in TEXT
    with pytest.raises(AcceleratorError, match=complaint):
        parse_accelerators(TEXT.replace(old, new))


def test_an_unknown_slice_names_those_there_are():
    with pytest.raises(AcceleratorError, match="tpu-v5e-8"):
        parse_accelerators(TEXT).slice("tpu-v9-8")


def test_a_topology_of_several_hosts_is_legal_data_but_no_target():
    v5e = parse_accelerators(TEXT).generation("v5e")
    assert v5e.hosts("ct5lp-hightpu-4t", "4x4") == 4
    assert v5e.hosts("ct5lp-hightpu-8t", "2x4") == 1
    with pytest.raises(AcceleratorError, match="'4x4' is not legal on ct5lp-hightpu-8t: use one of 2x4"):
        v5e.hosts("ct5lp-hightpu-8t", "4x4")
    assert parse_accelerators(TEXT).generation("v7x").devices_per_chip == 2
    assert not [each for each in parse_accelerators(TEXT).slices if each.generation == "v7x"]


def test_a_price_read_over_ninety_days_ago_is_told_as_old():
    known = parse_accelerators(TEXT)
    price = known.slice("tpu-v5e-8").price("on-demand")
    assert not price.is_old(dt.date(2026, 11, 25))
    assert price.is_old(dt.date(2027, 2, 1))
    assert known.gpu("l4").price("on-demand").is_old(dt.date(2026, 11, 25))


OWN = "prices: {tpu-v5e: [{kind: spot, usd_per_chip_hour: 0.3, read: 2026-11-20, source: our contract}]}"


def test_ones_own_price_overrides_that_entry_and_leaves_the_others():
    known = parse_accelerators(TEXT, OWN)
    assert known.slice("tpu-v5e-8").usd_per_hour("spot") == pytest.approx(2.4)
    assert known.slice("tpu-v5e-8").usd_per_hour("on-demand") == pytest.approx(9.6)


def test_a_price_of_another_region_does_not_stand_for_the_files_own():
    known = parse_accelerators(TEXT, OWN.replace("{kind: spot", "{region: europe-west4, kind: spot"))
    assert known.slice("tpu-v5e-8").usd_per_hour("spot") == pytest.approx(1.96)
    assert known.slice("tpu-v5e-8").usd_per_hour("spot", "europe-west4") == pytest.approx(2.4)
    assert known.slice("tpu-v5e-8").usd_per_hour("on-demand", "europe-west4") is None


@pytest.mark.parametrize(
    ("own", "complaint"),
    [
        (OWN.replace("tpu-v5e", "tpu-v5"), "unknown tpu-v5; known"),
        (OWN.replace("0.3", "0"), "is no price"),
        (OWN.replace("0.3", "nan").replace("nan", ".nan"), "is no price"),
        (OWN.replace("spot", "cheap"), "must be one of on-demand, spot"),
        ("[1, 2]", "a mapping is needed"),
    ],
)
def test_a_wrong_price_file_is_refused_rather_than_left_out(own, complaint):
    with pytest.raises(AcceleratorError, match=complaint):
        parse_accelerators(TEXT, own)
