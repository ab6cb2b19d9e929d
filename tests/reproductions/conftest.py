"""What tests of several studies share."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def lab_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the smallest sentiment lab is trained once for all studies of a worker."""
    return tmp_path_factory.mktemp("lab")
