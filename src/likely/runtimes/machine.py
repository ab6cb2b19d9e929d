"""What there is to compute with: processor cores and memory."""

from __future__ import annotations

import os
from pathlib import Path


def physical_cores(limit: int = 8) -> int:
    """Physical cores among the CPUs this process may use, at most `limit`."""
    if not hasattr(os, "sched_getaffinity"):
        return max(1, min(limit, os.cpu_count() or 1))
    cpus = os.sched_getaffinity(0)
    cores = set()
    for cpu in cpus:
        siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        try:
            cores.add(siblings.read_text())
        except OSError:
            cores.add(str(cpu))
    return max(1, min(limit, len(cores)))


def free_bytes() -> int:
    """Memory that could be taken now; 4 GiB where the system does not say."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 4 * 2**30
