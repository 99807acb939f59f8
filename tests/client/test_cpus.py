"""Number and instruction sets of the CPUs."""

from __future__ import annotations

import pytest

from alexnet_client import cpus


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"cpu.max": "max 100000"}, 4),
        ({"cpu.max": "150000 100000"}, 2),
        ({"cpu.max": "50000 100000"}, 1),
        ({"cpu.max": "nonsense"}, 4),
        ({"cpu/cpu.cfs_quota_us": "150000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 2),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4),
        ({}, 4),
    ],
)
def test_the_number_of_cpus_is_limited_by_the_quota_of_the_cgroup(tmp_path, monkeypatch, files, expected):
    monkeypatch.setattr(cpus.os, "sched_getaffinity", lambda pid: {0, 1, 2, 3})
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    assert cpus.usable_cpus(tmp_path) == expected


@pytest.mark.parametrize(("flags", "int8"), [("fpu avx2", False), ("fpu avx_vnni", True), ("fpu amx_int8", True)])
def test_name_and_instruction_sets_are_read_from_cpuinfo(tmp_path, flags, int8):
    (tmp_path / "cpuinfo").write_text(f"model name\t: Example CPU\nflags\t\t: {flags}\n")
    assert cpus.cpu_name(tmp_path / "cpuinfo") == "Example CPU"
    assert cpus.cpu_flags(tmp_path / "cpuinfo") == set(flags.split())
    assert cpus.has_int8_instructions(tmp_path / "cpuinfo") == int8
