from __future__ import annotations

import io
import os
import sys

import pytest

from likely.cli.keys import read_key, unbuffered


@pytest.fixture
def terminal(monkeypatch):
    """(write end, settings) of a pseudo-terminal that is standard input."""
    pty, termios = pytest.importorskip("pty"), pytest.importorskip("termios")
    master, slave = pty.openpty()
    with open(slave, encoding="utf-8", closefd=False) as source:
        monkeypatch.setattr(sys, "stdin", source)
        yield master, lambda: termios.tcgetattr(slave)
    os.close(master)
    os.close(slave)


def keys_until_the_end():
    return list(iter(read_key, ""))


def test_keys_come_one_by_one_without_enter_also_those_pressed_early(terminal):
    master, settings = terminal
    before = settings()
    os.write(master, b"y")  # before anybody asked
    with unbuffered():
        os.write(master, b"nsu\x04")
        assert keys_until_the_end() == ["y", "n", "s", "u"]
    assert settings() == before


def test_arrows_and_other_codes_are_passed_over_and_nothing_after_them(terminal):
    master, _ = terminal
    with unbuffered():
        os.write(master, b"\x1b[Ay\x1b[15~n\x1bOPs\x1byu\x04")  # up, F5, F1, Alt-y
        assert keys_until_the_end() == ["y", "n", "s", "u"]


def test_the_terminal_is_restored_after_ctrl_c(terminal):
    _, settings = terminal
    before = settings()
    with pytest.raises(KeyboardInterrupt), unbuffered():
        assert settings() != before
        raise KeyboardInterrupt
    assert settings() == before


def test_a_pipe_gives_characters_without_spaces_and_ends(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO(" y\nn \n"))
    with unbuffered():
        assert [read_key(), read_key(), read_key()] == ["y", "n", ""]
