"""How many processors this process may use: what a thread pool is to be sized by."""

from __future__ import annotations

import math
import os
from pathlib import Path


def usable_cpus(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Processors this process may use: its affinity, limited by the cgroup's quota (v2 or v1), rounded up."""
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
    except ValueError:  # "max"
        return cpus
    return min(cpus, share) if share > 0 else cpus  # version 1 says -1 where there is no quota
