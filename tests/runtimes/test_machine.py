"""How many threads there are to compute with: the affinity mask and the quota of control groups are kept."""

from __future__ import annotations

import math

import pytest

from likely.errors import ModelError
from likely.runtimes import machine


@pytest.fixture
def groups(tmp_path):
    """(lines of /proc/self/cgroup, {file: content} below the mount) -> processors granted."""

    def quota(lines, files):
        (tmp_path / "cgroup").write_text("\n".join(lines) + "\n")
        for name, content in files.items():
            file = tmp_path / "mounted" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(content)
        return machine._quota(tmp_path / "cgroup", tmp_path / "mounted")

    return quota


def test_the_quota_is_the_least_of_all_groups_above(groups):
    files = {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "250000 100000\n", "cpu.max": "400000 100000\n"}
    assert groups(["0::/a/b"], files) == 2.5


def test_the_quota_of_version_1(groups):
    files = {"cpu,cpuacct/a/cpu.cfs_quota_us": "150000", "cpu,cpuacct/a/cpu.cfs_period_us": "100000"}
    assert groups(["4:memory:/x", "3:cpu,cpuacct:/a"], files) == 1.5


@pytest.mark.parametrize("content", ["max 100000", "", "x y", "100000 0"])
def test_without_a_readable_quota_there_is_no_bound(groups, content):
    assert groups(["0::/", "nonsense"], {"cpu.max": content}) == math.inf


def test_threads_are_never_more_than_processors(monkeypatch):
    monkeypatch.setattr(machine, "cores", lambda: 6)
    monkeypatch.setattr(machine, "_quota", lambda: 2.5)
    assert machine.processors() == 2 and machine.choose_threads(4) == 2 and machine.choose_threads(1) == 1
    assert machine.choose_threads(None) <= 2
    monkeypatch.setattr(machine, "_quota", lambda: 0.2)
    assert machine.processors() == 1


@pytest.mark.parametrize("asked", [0, -1, 513])
def test_threads_out_of_range_are_refused(asked):
    with pytest.raises(ValueError, match=r"threads must lie in 1..512, got"):
        machine.choose_threads(asked)


def test_weights_that_cannot_fit_are_refused_in_one_line(monkeypatch):
    monkeypatch.setattr(machine, "_memory", lambda: {"MemAvailable": 3 << 30, "SwapFree": 1 << 30})
    machine.check_weights_fit("m.gguf", 4 << 30, "fewer bits")
    with pytest.raises(ModelError, match=r"m\.gguf: its weights take 4\.5 GiB .* and 4\.0 GiB are free") as found:
        machine.check_weights_fit("m.gguf", 9 << 29, "fewer bits")
    assert "\n" not in str(found.value)
    monkeypatch.setattr(machine, "_memory", dict)  # a system that does not say
    machine.check_weights_fit("m.gguf", 1 << 60, "fewer bits")
