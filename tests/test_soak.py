"""Evaluation of a soak test."""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
from pathlib import Path

import pytest

SPEC = importlib.util.spec_from_file_location("soak_report", Path(__file__).parent / "benchmarks" / "soak_report.py")
soak_report = importlib.util.module_from_spec(SPEC)
sys.modules["soak_report"] = soak_report
SPEC.loader.exec_module(soak_report)

STEADY = soak_report.Sample(0.0, 300, 0, 0, 40, 20.0, 50.0, 400.0, 30, 64.0, 0)


def samples(change=lambda at: {}):
    return [dataclasses.replace(STEADY, at_s=float(at), **change(at)) for at in range(100)]


@pytest.mark.parametrize(
    ("change", "names"),
    [
        (lambda at: {}, []),
        (lambda at: {"memory_mb": 100.0 if at < 20 else 400.0, "p99_ms": 900.0 if at < 5 else 50.0}, []),
        (lambda at: {"memory_mb": 400.0 + at}, ["memory_mb"]),
        (lambda at: {"descriptors": 30 + at}, ["descriptors"]),
        (lambda at: {"shared_mb": 64.0 + at / 10}, ["shared_mb"]),
        (lambda at: {"p50_ms": 20.0 + at}, ["p50_ms"]),
        (lambda at: {"p99_ms": 50.0 + 2 * at}, ["p99_ms"]),
        (lambda at: {"p50_ms": 20.0 + at} if at % 3 == 0 else {"p50_ms": 0.0, "answered": 0}, ["p50_ms"]),
        (lambda at: {"wrong": int(at == 3)}, ["wrong answers"]),
        (lambda at: {"failed": int(at == 90)}, ["failed valid requests"]),
        (lambda at: {"restarts": int(at > 50)}, ["restarts"]),
    ],
)
def test_growth_after_the_warm_up_and_every_error_are_reported(change, names):
    assert [each.name for each in soak_report.evaluate(samples(change)) if not each.ok] == names
