"""A process of its own compiles the forms of clients first, under limits of time and memory; it can be killed.

What a schema, a pattern or a grammar costs to compile cannot be told from its size. Only a form that this process
could compile within the limits is compiled in the server.

`python -m likely.serving.form_worker` is that process: a vocabulary on standard input, then one form a line.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass
from functools import cached_property
from typing import IO, Any

import numpy as np

from likely.errors import ConstraintError, LikelyError
from likely.guided.form import Form, FormSettings, make_form
from likely.guided.guide import Guide
from likely.guided.vocabulary import Vocabulary
from likely.serving.tools.grammar import ToolChoice, tool_form

MIB = 2**20
REMEMBERED = 1024  # verdicts
START_S = 120.0  # for the process to be ready, on a busy machine
NICENESS = 19  # the most that there is: texts that are being written go first
PATIENCE = 40.0  # seconds of the clock for one of the processor


@dataclass(frozen=True)
class FormDescription:
    """A form as a request says it, in JSON's own types.

    option   "schema", "regex", "grammar", "choices", or "tools", whose value is a list of functions
    budget   tokens that the text may have
    """

    option: str
    value: Any
    on_unsupported: str = "error"
    choice: ToolChoice | None = None
    budget: int = 128

    @cached_property
    def form(self) -> Form:
        """Made once; raises what `make_form` does."""
        if self.option == "tools":
            return tool_form(self.value, self.choice or ToolChoice())
        settings = FormSettings(on_unsupported=self.on_unsupported)  # type: ignore[arg-type]
        return make_form(**{self.option: self.value}, settings=settings)

    def text(self) -> str:
        """As one line of JSON."""
        choice = None if self.choice is None else vars(self.choice)
        return json.dumps([self.option, self.value, self.on_unsupported, choice, self.budget])

    @classmethod
    def of_text(cls, text: str) -> FormDescription:
        option, value, on_unsupported, choice, budget = json.loads(text)
        return cls(option, value, on_unsupported, None if choice is None else ToolChoice(**choice), budget)


class FormTooCostly(LikelyError):
    """A form that takes too much to compile."""


class FormWorker:
    """Tries forms in the process, which is started when the first one comes; one at a time.

    seconds    of the processor that compiling and the first step of a form may take
    memory_mib that it may take beyond what the process has at rest
    size_bytes of a form as JSON
    """

    def __init__(self, vocabulary: Vocabulary, *, seconds: float, memory_mib: int, size_bytes: int):
        self._vocabulary, self._seconds, self._memory, self._size = vocabulary, seconds, memory_mib, size_bytes
        self._process: subprocess.Popen[bytes] | None = None
        self._verdicts: OrderedDict[str, str | None] = OrderedDict()
        self._lock = threading.Lock()
        self._closed = False

    def accepted(self, described: FormDescription) -> bool:
        """Whether it was tried before and nothing was wrong with it; waits for no form that is being tried."""
        return self._verdicts.get(_key(described.text()), "") is None

    def check(self, described: FormDescription) -> None:
        """ConstraintError with what is wrong with a form, FormTooCostly where the limits did not suffice."""
        text = described.text()
        if len(text) > self._size:
            raise FormTooCostly(
                f"the form has {len(text)} bytes as JSON, at most {self._size} are taken: make it smaller"
            )
        key = _key(text)
        with self._lock:
            if key not in self._verdicts:
                self._verdicts[key] = self._try(text)
                while len(self._verdicts) > REMEMBERED:
                    self._verdicts.popitem(last=False)
            verdict = self._verdicts[key]
        if verdict is not None:
            raise (FormTooCostly if verdict.startswith("compiling ") else ConstraintError)(verdict)

    def close(self) -> None:
        """Kill the process and start no other; harmless when repeated."""
        self._closed = True
        self._kill()

    def _kill(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                with contextlib.suppress(OSError):
                    pipe.close()  # type: ignore[union-attr]

    def _try(self, text: str) -> str | None:
        """What is wrong with the form; None: nothing."""
        too_costly = (
            f"compiling the form takes more than {self._seconds:g} s or {self._memory} MiB, which this server does "
            f"not spend on a request: make it simpler"
        )
        try:
            process = self._running()
            assert process.stdin is not None
            process.stdin.write(text.encode() + b"\n")
            process.stdin.flush()
            line = _read_line(process, self._seconds * PATIENCE)
        except OSError:
            line = b""
        if not line:
            self._kill()
            if not self._closed:
                with contextlib.suppress(LikelyError, OSError):  # the next form is not to wait for the start
                    self._running()
            return too_costly
        return json.loads(line)

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is not None:  # ended by somebody else
            self._kill()
        if self._process is None:
            command = [sys.executable, "-m", "likely.serving.form_worker", str(self._seconds), str(self._memory)]
            paths = os.pathsep.join([path for path in sys.path if path])
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": paths},
                process_group=0,  # Ctrl-C is for the server; in a session of its own Linux would give it an equal share
            )
            with contextlib.suppress(OSError):  # ended at once, which is seen below
                os.setpriority(os.PRIO_PROCESS, self._process.pid, NICENESS)
            assert self._process.stdin is not None
            _write_vocabulary(self._process.stdin, self._vocabulary)
            if not _read_line(self._process, START_S):
                self._kill()
                raise LikelyError("the process that compiles forms does not start: send the request again")
        return self._process


def _key(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _read_line(process: subprocess.Popen[bytes], seconds: float) -> bytes:
    """One line; b"" where the process ended or took too long."""
    assert process.stdout is not None
    number, until, found = process.stdout.fileno(), time.monotonic() + seconds, b""
    while not found.endswith(b"\n"):
        ready, _, _ = select.select([number], [], [], max(0.0, until - time.monotonic()))
        piece = os.read(number, 2**16) if ready else b""
        if not piece:
            return b""
        found += piece
    return found


# --- the vocabulary between the two -----------------------------------------------------------------------------------


def _write_vocabulary(to: IO[bytes], vocabulary: Vocabulary) -> None:
    lengths = np.array([len(token) for token in vocabulary.tokens], "<i4")
    head = {"tokens": len(lengths), "end_ids": sorted(vocabulary.end_ids), "eos_id": vocabulary.eos_id}
    to.write(json.dumps(head).encode() + b"\n" + lengths.tobytes() + b"".join(vocabulary.tokens))
    to.flush()


def _read_vocabulary(source: IO[bytes]) -> Vocabulary:
    head = json.loads(source.readline())
    lengths = np.frombuffer(source.read(4 * head["tokens"]), "<i4").tolist()
    tokens = tuple(source.read(length) for length in lengths)
    return Vocabulary(tokens, frozenset(head["end_ids"]), head["eos_id"], lambda text: [])


# --- the process ------------------------------------------------------------------------------------------------------


def main(seconds: float, memory_mib: int) -> None:
    vocabulary = _read_vocabulary(sys.stdin.buffer)
    guide = Guide(vocabulary)
    _try_form(guide, FormDescription("regex", "a|b"))  # what is made once is not the first client's
    _limit_memory(memory_mib)
    _reply("ready")
    for line in sys.stdin.buffer:
        described = FormDescription.of_text(line.decode())
        with _limited_time(seconds):
            error = _try_form(guide, described)
        _reply(error)


def _try_form(guide: Guide, described: FormDescription) -> str | None:
    try:
        constraint = guide.constraint(described.form)
        with contextlib.suppress(ConstraintError):  # too few tokens: that is the request's own affair
            constraint.allowed(described.budget)
    except MemoryError:
        os._exit(1)
    except (LikelyError, ValueError, TypeError, RecursionError) as error:
        return " ".join(str(error).split())[:1000] or type(error).__name__
    finally:
        guide.forget()
    return None


def _reply(value: str | None) -> None:
    sys.stdout.buffer.write(json.dumps(value).encode() + b"\n")
    sys.stdout.buffer.flush()


@contextlib.contextmanager
def _limited_time(seconds: float) -> Any:
    """The system ends the process when this much of the processor's time was used."""
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def _limit_memory(mib: int) -> None:
    import resource

    with open("/proc/self/statm") as file:
        pages = int(file.read().split()[0])
    most = pages * resource.getpagesize() + mib * MIB
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (most if hard < 0 else min(most, hard), hard))


if __name__ == "__main__":
    main(float(sys.argv[1]), math.ceil(float(sys.argv[2])))
