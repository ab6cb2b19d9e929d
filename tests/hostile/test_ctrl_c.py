"""Ctrl-C in a real terminal: the text so far stays, the terminal is as before, nothing but the exit code says so."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tiny_gguf import write_tiny_llama

pty = pytest.importorskip("pty")
termios = pytest.importorskip("termios")

COMMAND = [sys.executable, "-c", "from likely.cli import main; main()"]
CTRL_C, CTRL_D = b"\x03", b"\x04"


class Terminal:
    """A command in a terminal of its own, of which it is the foreground job."""

    def __init__(self, *arguments: object):
        self._master, slave = pty.openpty()
        self._slave, self.seen = slave, b""
        self.before = termios.tcgetattr(slave)

        def own_terminal() -> None:
            import fcntl

            os.setsid()
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)

        self.process = subprocess.Popen(
            [*COMMAND, *map(str, arguments)],
            stdin=slave, stdout=slave, stderr=slave, preexec_fn=own_terminal, env={**os.environ, "TERM": "xterm"},
        )  # fmt: skip

    def press(self, keys: bytes) -> None:
        os.write(self._master, keys)

    def until(self, wanted: Callable[[bytes], object]) -> None:
        """Read until what came since the last call is as wanted."""
        new = b""
        while not wanted(new):
            new += os.read(self._master, 4096)
        self.seen += new

    def end(self) -> int:
        """The exit code, when all output was read."""
        while self.process.poll() is None:
            self._drain()
        self._drain()
        self.after = termios.tcgetattr(self._slave)
        return self.process.returncode

    def _drain(self) -> None:
        while select.select([self._master], [], [], 0.05)[0]:
            self.seen += os.read(self._master, 65536)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._slave)
        os.close(self._master)

    @property
    def text(self) -> str:
        return self.seen.decode("utf-8", "replace").replace("\r", "")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("models") / "tiny.gguf", context=8192)


@pytest.fixture
def open_terminal() -> Iterator[Callable[..., Terminal]]:
    opened: list[Terminal] = []

    def start(*arguments: object) -> Terminal:
        opened.append(Terminal(*arguments))
        return opened[-1]

    yield start
    for terminal in opened:
        terminal.close()


def endless(tiny: Path) -> list[object]:
    model = ["-m", tiny, "--runtime", "llamacpp", "--threads", 1]
    return [*model, "--max-tokens", 6000, "-s", "min_tokens=6000", "--seed", 3]


def check_clean(terminal: Terminal) -> None:
    assert terminal.after == terminal.before, "echo, line mode or signals of the terminal were changed"
    text = terminal.text
    for name, on, off in (("cursor", "?25l", "?25h"), ("screen", "?1049h", "?1049l"), ("paste", "?2004h", "?2004l")):
        assert text.rfind(f"\x1b[{on}") <= text.rfind(f"\x1b[{off}"), f"the {name} is left switched"
    for noise in ("Traceback", "KeyboardInterrupt", "Exception ignored", "Error"):
        assert noise not in text


@pytest.mark.slow
def test_generate_keeps_what_it_wrote(open_terminal, tiny: Path) -> None:
    terminal = open_terminal("generate", "the cat", *endless(tiny))
    terminal.until(lambda new: len(new) > 300)
    terminal.press(CTRL_C)
    assert terminal.end() == 130
    check_clean(terminal)
    before, _, after = terminal.text.rpartition("^C")  # as the terminal shows the key
    partial = before + after
    done = subprocess.run([*COMMAND, "generate", "the cat", *map(str, endless(tiny))], capture_output=True, check=True)
    whole = "".join(
        c if c in "\n\t" or not ("\0" <= c < " " or "\x7f" <= c < "\xa0") else "\ufffd" for c in done.stdout.decode()
    )
    assert partial.endswith("\n") and whole.startswith(partial[:-1])
    assert 100 < len(partial) < len(whole) / 2


@pytest.mark.slow
def test_a_model_cannot_steer_the_terminal(open_terminal, tiny: Path) -> None:
    escape = 3 + 0x1B  # the token of that byte, after three control tokens
    arguments = ["generate", "the cat", "-m", tiny, "--threads", 1, "--max-tokens", 200]
    arguments += ["-s", f"logit_bias={{{escape}: 4.0}}"]
    done = subprocess.run([*COMMAND, *map(str, arguments)], capture_output=True, check=True)
    assert done.stdout.count(b"\x1b") > 4  # a pipe gets the text itself
    for options in ([], ["-n", 2]):
        terminal = open_terminal(*arguments, *options)
        assert terminal.end() == 0
        assert not set(terminal.seen.decode()) & {chr(c) for c in (*range(9), *range(11, 13), *range(14, 32), 127)}


def test_ctrl_c_while_a_file_is_scored_leaves_no_bar(open_terminal, tiny: Path, tmp_path: Path) -> None:
    questions = tmp_path / "q.jsonl"
    questions.write_text("".join(f'{{"prompt": "ab {i}", "answers": ["{"cd" * 200}"]}}\n' for i in range(20_000)))
    terminal = open_terminal("score", questions, "-m", tiny, "--threads", 1, "-o", tmp_path / "out.jsonl")
    terminal.until(lambda new: b"scoring" in new)
    terminal.press(CTRL_C)
    assert terminal.end() == 130
    check_clean(terminal)


@pytest.mark.slow
def test_chat_stops_the_answer_and_goes_on(open_terminal, tiny: Path) -> None:
    terminal = open_terminal("chat", *endless(tiny))
    terminal.until(lambda new: new.endswith(b"> "))
    terminal.press(b"hello\n")
    terminal.until(lambda new: len(new) > 300)
    terminal.press(CTRL_C)
    terminal.until(lambda new: new.endswith(b"\n> "))
    terminal.press(b"/history\n")
    terminal.until(lambda new: b"assistant: " in new and new.endswith(b"> "))
    assert "user: hello" in terminal.text
    terminal.press(CTRL_D)
    assert terminal.end() == 0
    check_clean(terminal)


@pytest.mark.slow
def test_ctrl_c_in_a_conversation_through_a_pipe_ends_it(tiny: Path) -> None:
    pipe = subprocess.PIPE
    with subprocess.Popen([*COMMAND, "chat", *map(str, endless(tiny))], stdin=pipe, stdout=pipe, stderr=pipe) as talk:
        talk.stdin.write(b"hello\nand then?\n")
        talk.stdin.flush()
        assert len(talk.stdout.read(200)) == 200
        talk.send_signal(signal.SIGINT)
        talk.stdout.read()
        assert talk.wait() == 130 and talk.stderr.read().strip() == b""
