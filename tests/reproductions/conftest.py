"""Smoke runs of the studies take minutes in all: slow, but for one."""

from __future__ import annotations

from pathlib import Path

import pytest

QUICK = ("test_smoke.py",)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent == Path(__file__).parent and item.path.name not in QUICK:
            item.add_marker(pytest.mark.slow)
