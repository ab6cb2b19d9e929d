"""Paths and small fixtures shared by all tests."""

from __future__ import annotations

import os
import signal
import sys
import zlib
from collections import Counter
from collections.abc import Generator
from pathlib import Path

import pytest
from hypothesis import settings

from likely.errors import DataError

NO_DATA = "no data sets on this machine"
SLOW_FOLDERS = ("real", "reproductions")
QUICK_FILES = ("test_smoke.py",)
MANY = 8

sys.path.insert(0, str(Path(__file__).parent / "helpers"))
if worker := os.environ.get("PYTEST_XDIST_WORKER"):  # one processor each: engines that spin must not share
    processors = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {processors[int(worker.removeprefix("gw")) % len(processors)]})
# a run started in the background ignores Ctrl-C, and so would every process that tests start and interrupt
signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # tests never reach a hub
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# the same examples in every run; to look for others: pytest --hypothesis-profile default
settings.register_profile("fixed", derandomize=True)
settings.load_profile("fixed")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("likely")
    group.addoption("--passed-to", type=Path, metavar="FILE", help="write the names of the tests that passed")
    group.addoption("--passed-in", type=Path, metavar="FILE", help="leave out the tests named in FILE: they passed")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--passed-to") and not hasattr(config, "workerinput"):
        config.pluginmanager.register(PassedTests(config.getoption("--passed-to")))


class PassedTests:
    """What passed in this run, for a second run over the same code that need not repeat it."""

    def __init__(self, file: Path):
        self._file, self._names = file, set[str]()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" and report.passed:
            self._names.add(report.nodeid)
        elif not report.passed:
            self._names.discard(report.nodeid)

    def pytest_sessionfinish(self) -> None:
        self._file.write_text("".join(f"{name}\n" for name in sorted(self._names)), "utf-8")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Slow are whole folders, of cases marked `sampled(n)` all but every n-th (by a hash of its name), and of other
    tests with MANY cases all but every fourth, or about MANY where they have more than four times as many."""
    if (passed := config.getoption("--passed-in")) is not None:
        names = set(passed.read_text("utf-8").splitlines())
        config.hook.pytest_deselected(items=[item for item in items if item.nodeid in names])
        items[:] = [item for item in items if item.nodeid not in names]
    cases = Counter(item.nodeid.split("[")[0] for item in items)
    for item in items:
        if item.path.parent.name in SLOW_FOLDERS and item.path.name not in QUICK_FILES:
            item.add_marker(pytest.mark.slow)
        mark = item.get_closest_marker("sampled")
        count = cases[item.nodeid.split("[")[0]]
        every = mark.args[0] if mark is not None else max(4, count // MANY) if count >= MANY else 1
        if zlib.crc32(item.nodeid.encode()) % every:
            item.add_marker(pytest.mark.slow)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, pytest.TestReport]:
    """Without the folder of data sets, a test that reads one is skipped and says so; in CI it fails."""
    report = yield
    error = call.excinfo.value if call.excinfo else None
    if isinstance(error, DataError) and NO_DATA in str(error) and not os.environ.get("CI"):
        report.outcome = "skipped"
        report.longrepr = (str(item.path), item.location[1] or 0, f"Skipped: {error}")
    return report


@pytest.fixture(scope="session", autouse=True)
def nobody(tmp_path_factory):
    """Tests neither find nor leave defaults and calibrators of whoever runs them."""
    folder = tmp_path_factory.getbasetemp() / "nobody"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIKELY_CONFIG", str(folder / "config.toml"))
        patch.setenv("LIKELY_CALIBRATORS", str(folder / "calibrators"))
        yield


@pytest.fixture(scope="session")
def native_library():
    """The native runtime's library, compiled at most once: tests that move the cache folder ask for it first.

    It comes from, and stays in, the cache folder of whoever runs the tests: its name is a digest of the sources.
    """
    from likely.runtimes.native.build import library

    return library()


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    from likely.models.catalog import find_model

    return find_model("smollm2")


@pytest.fixture(scope="session")
def gemma3_path() -> Path:
    from likely.models.catalog import find_model

    return find_model("gemma3")


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder with the data sets: LIKELY_DATA, or ../shared/data beside the checkout."""
    folder = Path(os.environ.get("LIKELY_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        message = f"data sets are not at {folder}: set LIKELY_DATA"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return folder
