"""A weak model says once, and on a terminal alone, which one is better."""

from __future__ import annotations

import sys

import pytest

from likely.cli.printing import print_better


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LIKELY_CACHE", str(tmp_path))


def test_it_is_said_once_on_a_terminal(cache, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    print_better("smol")
    assert capsys.readouterr().err.startswith("Note: smollm2 has 135 million parameters")
    print_better("smollm2")
    print_better("gemma3")
    print_better("some.gguf")
    assert capsys.readouterr().err == ""


def test_a_pipe_hears_nothing_of_it(cache, capsys):
    print_better("smollm2")
    assert capsys.readouterr().err == ""
