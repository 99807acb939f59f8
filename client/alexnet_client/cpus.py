"""The CPUs of this machine: how many this process may use, their name and the instructions they have."""

from __future__ import annotations

import math
import os
import re
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
INT8_FLAGS = frozenset(("avx512_vnni", "avx_vnni", "amx_int8"))
"""CPU flags of instructions that add products of 8-bit integers in 32 bits; without them, two products can overflow 16 bits."""


def usable_cpus(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Number of CPUs this process may use: its affinity, limited by the cgroup's quota (v2 or v1), rounded up."""
    cpus = len(os.sched_getaffinity(0))
    try:
        quota, period = (cgroup / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            quota = (cgroup / "cpu/cpu.cfs_quota_us").read_text()
            period = (cgroup / "cpu/cpu.cfs_period_us").read_text()
        except OSError:
            return cpus
    try:
        share = math.ceil(int(quota) / int(period))
    except ValueError:  # "max": no quota
        return cpus
    return min(cpus, share) if share > 0 else cpus  # version 1 writes -1 for no quota


def cpu_name(cpuinfo: Path = CPUINFO) -> str:
    """Model name of the first CPU; "unknown" if the kernel does not report one."""
    name = re.search(r"^model name\s*:\s*(.*)$", cpuinfo.read_text(), re.MULTILINE)
    return name.group(1).strip() if name else "unknown"


def cpu_flags(cpuinfo: Path = CPUINFO) -> frozenset[str]:
    """Instruction sets of the first CPU, by the kernel's names, such as ``avx512_vnni``."""
    flags = re.search(r"^flags\s*:(.*)$", cpuinfo.read_text(), re.MULTILINE)
    return frozenset(flags.group(1).split()) if flags else frozenset()


def has_int8_instructions(cpuinfo: Path = CPUINFO) -> bool:
    """Whether this CPU adds products of 8-bit integers in 32 bits, so that weights may use all 8 bits."""
    return bool(INT8_FLAGS & cpu_flags(cpuinfo))
