"""Run the command line in-process on a tiny model."""

from __future__ import annotations

import io
import json
import sys
from dataclasses import dataclass

import pytest
from private_cache import private_cache
from tiny_gguf import write_tiny_llama

from likely.cli.app import run


@dataclass
class Done:
    code: int
    out: str
    err: str

    @property
    def json(self):
        assert self.code == 0, self.err
        return json.loads(self.out)

    @property
    def lines(self):
        return [json.loads(line) for line in self.out.splitlines()]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    return write_tiny_llama(tmp_path_factory.mktemp("models") / "tiny.gguf")


class Terminal(io.TextIOWrapper):
    """Standard streams over bytes, as a real process has them."""


@pytest.fixture
def cli(monkeypatch, tmp_path, tmp_path_factory):
    monkeypatch.setenv("LIKELY_CACHE", private_cache(tmp_path_factory.mktemp("cache")))
    monkeypatch.setenv("LIKELY_CONFIG", str(tmp_path / "config.toml"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "share"))

    def call(*arguments: object, stdin: str | bytes | None = None) -> Done:
        out, err = (Terminal(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2))
        data = stdin.encode() if isinstance(stdin, str) else (stdin or b"")
        source = Terminal(io.BytesIO(data), encoding="utf-8")
        source.isatty = lambda: stdin is None
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdin", source)
            patch.setattr(sys, "stdout", out)
            patch.setattr(sys, "stderr", err)
            code = run([str(a) for a in arguments])
        return Done(code, *(s.buffer.getvalue().decode() for s in (out, err)))

    return call
