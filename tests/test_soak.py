"""The verdict of a soak."""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
from pathlib import Path

import pytest

FILE = Path(__file__).parent / "benchmarks" / "verdict.py"
SPEC = importlib.util.spec_from_file_location("verdict", FILE)
verdict = importlib.util.module_from_spec(SPEC)
sys.modules["verdict"] = verdict
SPEC.loader.exec_module(verdict)

STEADY = verdict.Sample(0.0, 300, 0, 0, 40, 20.0, 50.0, 400.0, 30, 64.0, 0)


def samples(change=lambda at: {}):
    return [dataclasses.replace(STEADY, at_s=float(at), **change(at)) for at in range(100)]


def unsteady(found):
    return [each.name for each in verdict.judge(found) if not each.ok]


def test_a_steady_run_passes():
    assert unsteady(samples()) == []


def test_growth_while_warming_up_is_no_growth():
    assert (
        unsteady(samples(lambda at: {"memory_mb": 100.0 if at < 20 else 400.0, "p99_ms": 900.0 if at < 5 else 50.0}))
        == []
    )


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (lambda at: {"memory_mb": 400.0 + at}, "memory_mb"),
        (lambda at: {"descriptors": 30 + at}, "descriptors"),
        (lambda at: {"shared_mb": 64.0 + at / 10}, "shared_mb"),
        (lambda at: {"p50_ms": 20.0 + at}, "p50_ms"),
        (lambda at: {"p99_ms": 50.0 + 2 * at}, "p99_ms"),
        (lambda at: {"wrong": int(at == 3)}, "wrong answers"),
        (lambda at: {"failed": int(at == 90)}, "good requests that failed"),
        (lambda at: {"restarts": int(at > 50)}, "restarts"),
    ],
)
def test_what_grows_or_fails_is_named(change, name):
    assert unsteady(samples(change)) == [name]


def test_the_run_is_drawn(tmp_path):
    verdict.draw(samples(), tmp_path / "soak.png")
    assert (tmp_path / "soak.png").read_bytes().startswith(b"\x89PNG")
