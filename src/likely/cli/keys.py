"""Single keys from a terminal, without Enter; characters of a pipe elsewhere."""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import typer

ESCAPE, END = b"\x1b", b"\x04"


@contextmanager
def unbuffered() -> Iterator[None]:
    """The terminal gives each key at once, without showing it.  Ctrl-C still interrupts.

    It stays so for the whole session: switching per key would throw away what a quick typist pressed in between.
    """
    if os.name == "nt" or not _is_a_terminal():
        yield
        return
    import termios
    import tty

    terminal = sys.stdin.fileno()
    before = termios.tcgetattr(terminal)
    try:
        tty.setcbreak(terminal, termios.TCSADRAIN)
        yield
    finally:
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)


def _is_a_terminal() -> bool:
    try:
        return os.isatty(sys.stdin.fileno())
    except (OSError, ValueError):
        return False


def read_key() -> str:
    """The next key; "" at the end (Ctrl-D, or the end of a pipe).  Keys such as arrows are passed over."""
    if not sys.stdin.isatty():
        key = sys.stdin.read(1)
        while key.isspace():
            key = sys.stdin.read(1)
        return key
    if os.name == "nt":
        return typer.getchar()
    terminal = sys.stdin.fileno()
    while True:
        key_byte = os.read(terminal, 1)
        if key_byte in (b"", END):
            return ""
        if key_byte != ESCAPE:
            return key_byte.decode("latin-1")
        _pass_over_code(terminal)


def _pass_over_code(terminal: int) -> None:
    """Read what follows an Escape: nothing, one key, or an arrow's "[" ... with its last letter."""

    def waiting() -> bool:
        return bool(select.select([terminal], [], [], 0.01)[0])  # a code comes at once, a person does not

    if waiting() and os.read(terminal, 1) in (b"[", b"O"):
        while waiting() and not b"@" <= os.read(terminal, 1) <= b"~":
            pass
