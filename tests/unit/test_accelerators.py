"""What the accelerators file must hold."""

from __future__ import annotations

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
        ("topology: 2x4, machine_type: ct5lp", "topology: 2x2, machine_type: ct5lp", "is not 8 chips"),
        ("native_fp8: true, prices: h100", "prices: h100", "native_fp8"),
        ("int8_tops: 393", "int8_topz: 393", "unknown keys int8_topz"),
        ("prices: tpu-v6e}", "prices: tpu-v9}", "tpu-v9"),
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
