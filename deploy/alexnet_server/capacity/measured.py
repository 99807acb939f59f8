"""A run of ``make bench`` becomes inputs: which of its rows is which input, and what of it the page compares. Pure."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

COSTS = {
    "batch_fixed_us": "capacity: what a batch takes whatever is in it, single-image requests",
    "batch_per_image_us": "capacity: what each image adds to it",
    "outside_us": "capacity: p50 of a lone request outside its batch",
    "triton_1_us": "capacity: processor time of Triton's own process an image, in single-image requests",
    "triton_32_us": "capacity: the same in 32-image requests over TCP",
    "triton_32_shared_us": "capacity: the same in 32-image requests through shared memory",
}
"""Names of the bench's rows by the input that each measures."""
NOISE = "capacity: time of a batch of one as a share of its fit"
COMPARED = ("foretold / measured", "the simulation is wrong")
"""What the names of rows hold that compare."""
KEPT = ("name", "ratio", "low", "high", "runs", "unit", "goal", "verdict", "figures")


def with_run(raw: dict[str, Any], report: dict[str, Any]) -> dict[str, Any]:
    """The inputs with the costs of a run, and its comparison.

    Args:
        raw: content of ``deploy/capacity.json``.
        report: content of ``bench.json``, with the rows of ``--only capacity``.

    Raises:
        ValueError: a row is missing.
    """
    rows = {row["name"]: row for row in report["rows"]}
    missing = [name for name in (*COSTS.values(), NOISE) if name not in rows]
    if missing:
        raise ValueError(f"no run of `make bench` with its capacity part: {missing[0]!r} is not among its rows")
    new, machine = deepcopy(raw), report["machine"]["name"]
    for name, row_name in COSTS.items():
        row = rows[row_name]
        source = (
            f"bench, {row_name.removeprefix('capacity: ')}: {row['low']:.3g} - {row['high']:.3g}, {row['runs']} runs"
        )
        new["measured"][name] = {"value": float(f"{row['ratio']:.3g}"), "source": source}
    noise = [float(each) for each in rows[NOISE]["figures"].split()]
    new["measured"]["batch_noise"] = {
        "value": noise,
        "source": f"bench, {NOISE.removeprefix('capacity: ')}: its quantiles",
    }
    compared = [row for row in report["rows"] if any(words in row["name"] for words in COMPARED)]
    new["comparison"] = {"machine": machine, "rows": [{key: row[key] for key in KEPT} for row in compared]}
    return new
