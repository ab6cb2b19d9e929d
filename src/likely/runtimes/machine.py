"""What there is to compute with: processor cores and memory."""

from __future__ import annotations

import contextlib
import math
import os
import platform
from dataclasses import dataclass
from pathlib import Path

from likely.errors import ModelError

FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_tile", "amx_int8", "amx_bf16")
MOST_THREADS = 512


@dataclass(frozen=True)
class Machine:
    """What a timing depends on."""

    cpu: str
    cores: int
    flags: list[str]
    platform: str

    def line(self) -> str:
        return f"{self.cpu}, {self.cores} cores, {' '.join(self.flags) or 'no known vector extensions'}"


def machine() -> Machine:
    info = _cpuinfo()
    words = info.get("flags", "").split()
    cpu = info.get("model name") or platform.processor() or platform.machine()
    return Machine(cpu, cores(), [flag for flag in FLAGS if flag in words], platform.platform())


def cpu_words() -> frozenset[str]:
    """The instructions of the processor in Linux's words; none where the system does not say."""
    return frozenset(_cpuinfo().get("flags", "").split())


def _cpuinfo() -> dict[str, str]:
    """What Linux says of the first processor; empty elsewhere."""
    try:
        first = Path("/proc/cpuinfo").read_text().partition("\n\n")[0]
    except OSError:
        return {}
    return {key.strip(): value.strip() for key, _, value in (row.partition(":") for row in first.splitlines())}


def cores() -> int:
    """Processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def choose_threads(asked: int | None) -> int:
    """Threads to compute with: as many as asked, else the physical cores, at most 8; never more than `processors`."""
    if asked is not None and not 1 <= asked <= MOST_THREADS:
        raise ValueError(f"threads must lie in 1..{MOST_THREADS}, got {asked}")
    return min(asked or physical_cores(), processors())


def processors() -> int:
    """How many this process may use at a time: its affinity mask and the quota of its control groups."""
    return max(1, int(min(cores(), _quota())))


def _quota(groups: Path = Path("/proc/self/cgroup"), mounted: Path = Path("/sys/fs/cgroup")) -> float:
    """Processors' worth of time that the control groups above this process grant (version 1 or 2); inf: no bound."""
    found = math.inf
    with contextlib.suppress(OSError, ValueError):
        for line in groups.read_text().splitlines():
            _, names, path = line.split(":", 2)
            if names and "cpu" not in names.split(","):
                continue
            folder = mounted / names / path.lstrip("/")
            within = [place for place in (folder, *folder.parents) if place.is_relative_to(mounted)]
            found = min(found, *map(_quota_of, within))
    return found


def _quota_of(folder: Path) -> float:
    try:
        if (folder / "cpu.max").is_file():
            time, period = (folder / "cpu.max").read_text().split()
        else:
            time, period = ((folder / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))
        return math.inf if time in ("max", "-1") else int(time) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return math.inf


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
    return _memory().get("MemAvailable", 4 * 2**30)


def check_weights_fit(name: str | Path, needed: int, else_take: str) -> None:
    """ModelError for weights that free memory and swap cannot hold: the system would end the process for them."""
    memory = _memory()
    free = memory.get("MemAvailable", needed) + memory.get("SwapFree", 0)
    if needed > free:
        raise ModelError(
            f"{name}: its weights take {needed / 2**30:.1f} GiB of memory in this form, and {free / 2**30:.1f} GiB are "
            f"free: take a smaller model, {else_take}"
        )


def _memory() -> dict[str, int]:
    """Bytes by the names of Linux's /proc/meminfo; {} elsewhere."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return {}
    return {line.partition(":")[0]: int(line.split()[1]) * 1024 for line in lines}
