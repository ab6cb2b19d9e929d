"""Wheels that bring the native runtime compiled: which library a processor takes, and one without a compiler."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from tiny_gguf import write_tiny_llama

from likely.runtimes.machine import cpu_words
from likely.runtimes.native import build as native_build

ROOT = Path(__file__).parents[2]
X86 = platform.machine() in ("x86_64", "AMD64")
pytestmark = pytest.mark.skipif(not X86, reason="wheels with libraries are for x86-64")


@pytest.fixture
def brought(tmp_path, monkeypatch):
    """A wheel's folder of libraries, empty ones."""
    monkeypatch.setattr(native_build, "_PREBUILT_FOLDER", tmp_path)
    for isa in native_build.PREBUILT:
        (tmp_path / f"likely-{isa}.so").touch()
    return tmp_path


@pytest.mark.parametrize("isa", native_build.PREBUILT)
def test_each_processor_takes_the_best_library_that_it_can_run(brought, monkeypatch, isa):
    monkeypatch.setattr(native_build, "cpu_words", lambda: native_build.PREBUILT[isa])
    assert native_build.prebuilt() == brought / f"likely-{isa}.so"
    assert native_build.can_build() and native_build.is_built()


def test_a_processor_that_lacks_one_instruction_takes_the_next_library(brought, monkeypatch):
    for isa, needed in native_build.PREBUILT.items():
        for word in needed:
            monkeypatch.setattr(native_build, "cpu_words", lambda n=needed, w=word: n - {w})
            found = native_build.prebuilt()
            assert found is None or found.name != f"likely-{isa}.so"


def test_without_libraries_it_is_compiled(tmp_path, monkeypatch):
    monkeypatch.setattr(native_build, "_PREBUILT_FOLDER", tmp_path / "none")
    assert native_build.prebuilt() is None


@pytest.mark.slow
@pytest.mark.skipif(not native_build.PREBUILT["avx2"] <= cpu_words(), reason="this processor has no AVX2")
def test_a_wheel_with_a_library_runs_without_a_compiler(tmp_path):
    source = tmp_path / "source"
    shutil.copytree(ROOT / "src", source / "src", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "hatch_build.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=source, env={**os.environ, "LIKELY_PREBUILT": "avx2"}, check=True, capture_output=True,
    )  # fmt: skip
    [wheel] = tmp_path.glob("*.whl")
    assert wheel.name.endswith(f"-py3-none-linux_{platform.machine()}.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")
    model = write_tiny_llama(tmp_path / "m.gguf")
    code = (
        f"import likely; lm = likely.load({str(model)!r}, runtime='native', dtype='int8'); "
        "print(likely.__file__, lm.runtime.revision, lm.score('a', ['b'])[0].sequence_logprob)"
    )
    environment = {"PYTHONPATH": str(tmp_path / "installed"), "PATH": "", "LIKELY_CACHE": str(tmp_path / "cache")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    where, revision, logprob = done.stdout.split()
    assert where.startswith(str(tmp_path)) and revision.endswith("avx2") and float(logprob) < 0
    assert not (tmp_path / "cache" / "native").exists() or not list((tmp_path / "cache" / "native").glob("*.so"))


def test_an_unknown_instruction_set_is_one_line(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=ROOT, env={**os.environ, "LIKELY_PREBUILT": "avx3"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode and "no instruction set avx3" in done.stderr + done.stdout
    assert not list(tmp_path.glob("*.whl"))
