"""Write what include/accelerators.yaml says of machines and prices as a page of the reference."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import yaml

from tests.docs.markdown import ROOT, code, table

_GPUS = {"h100": 1, "a100-80gb": 1, "l4": 4}  # as many as take the place of a slice in plans


def rows() -> Iterator[tuple[str, ...]]:
    """Return a row for each slice and GPU: size, speed, price, and speed for a dollar."""
    data = yaml.safe_load((ROOT / "include" / "accelerators.yaml").read_text())
    for name, slice_ in data["slices"].items():
        chip = data["generations"][slice_["generation"]]
        chips = chip["machines"][slice_["machine_type"]]["chips"]
        yield _row(name, chips, chip["hbm_gib_per_chip"], chip, data["prices"][chip["prices"]])
    for name, number in _GPUS.items():
        gpu = data["gpus"][name]
        yield _row(f"{name} x{number}", number, gpu["hbm_gib"], gpu, data["prices"][gpu["prices"]])


def _row(name: str, number: int, hbm_gib: float, chip: Any, prices: list[Any]) -> tuple[str, ...]:
    listed = {each["kind"]: each for each in prices if "region" not in each}
    dollars = {kind: each["usd_per_chip_hour"] for kind, each in listed.items()}
    speed = chip["hbm_gb_per_s"] * number
    shown, speeds = [], []
    for kind in ("on-demand", "spot"):
        price = dollars.get(kind)
        shown.append("–" if price is None else f"{price * number:.{3 if price * number < 1 else 2}f}")
        speeds.append("–" if price is None else f"{speed / (price * number):.0f}")
    read = listed["on-demand"]["read"] + (", to be checked" if listed["on-demand"].get("check") else "")
    tflops = chip["bf16_tflops"] * number
    return (code(name), f"{hbm_gib * number:g}", f"{speed:,}", f"{tflops:,}", *shown, *speeds, read)


def accelerators() -> str:
    """Return the table, with what it does not say."""
    head = ["machine", "HBM GiB", "GB/s", "BF16 TFLOP/s", "$/h", "$/h spot", "GB/s for $1/h", "on spot", "price read"]
    return (
        table(head, rows())
        + """
Rates are the vendors' for the hardware. They say what cannot be beaten, not what vLLM reaches: that is the gate's to
measure ([why TPU, and why not](../explanation/why-tpu.md)). Prices are public list prices of us-central1 and move; a
dash is one that nobody has read. Your own go into `tpu-migration plan --prices FILE`
([plan.md](../plan.md#how-the-costs-come-about)).
"""
    )
