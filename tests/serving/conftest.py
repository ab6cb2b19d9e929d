"""A tiny real model to serve."""

from __future__ import annotations

import pytest
from tiny_gguf import write_tiny_llama

import likely


@pytest.fixture(scope="session")
def tiny_path(tmp_path_factory):
    return write_tiny_llama(tmp_path_factory.mktemp("served") / "tiny.gguf", seed=3)


@pytest.fixture
def tiny(tiny_path):
    with likely.load(str(tiny_path), threads=1) as lm:
        yield lm
