"""The C++ library of the native runtime: compiled for this processor on first use, kept, checked before it is trusted.

Only a C++ compiler is needed, neither Python headers nor a build system. Where there is none, an error names what
would help.
"""

from __future__ import annotations

import ctypes
import functools
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np

from likely.errors import CapabilityError
from likely.io.hashes import cache_dir, fingerprint
from likely.runtimes.machine import cpu_words
from likely.runtimes.native.library import BF16, DTYPES, INT8, Library, padded

SOURCES = Path(__file__).parent / "cpp"
FLAGS = ("-std=c++17", "-fPIC", "-shared", "-pthread", "-fno-math-errno", "-ffp-contract=fast",
         "-fvisibility-inlines-hidden")  # fmt: skip
# what LIKELY_NATIVE_ISA may ask for: less than the machine has, for comparisons and for machines that misreport
_V4 = ("-O3", "-march=x86-64-v4")
ISA = {
    "native": ("-O3", "-march=native"),
    "amx": (*_V4, "-mavx512vnni", "-mavx512bf16", "-mamx-tile", "-mamx-int8", "-mamx-bf16"),
    "avx512_bf16": (*_V4, "-mavx512vnni", "-mavx512bf16"),
    "avx512_vnni": (*_V4, "-mavx512vnni"),
    "avx512": _V4,
    "avx2": ("-O3", "-march=x86-64-v3"),
    "plain": ("-O1", "-DLIKELY_PLAIN"),
}
# in a wheel, the best first: what a processor must have for each (words of /proc/cpuinfo)
_V3_WORDS = frozenset({"avx2", "fma", "bmi1", "bmi2", "f16c", "movbe", "abm"})
_V4_WORDS = _V3_WORDS | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}
PREBUILT = {
    "amx": _V4_WORDS | {"avx512_vnni", "avx512_bf16", "amx_tile", "amx_int8", "amx_bf16"},
    "avx512_bf16": _V4_WORDS | {"avx512_vnni", "avx512_bf16"},
    "avx512_vnni": _V4_WORDS | {"avx512_vnni"},
    "avx2": _V3_WORDS,
}
_PREBUILT_FOLDER = Path(__file__).parent / "prebuilt"  # in wheels alone, see hatch_build.py
_SECONDS = 300


@functools.cache
def library() -> Library:
    """The library for this machine; CapabilityError where it cannot be built or computes wrongly."""
    wanted = os.environ.get("LIKELY_NATIVE_ISA", "native")
    if wanted not in ISA:
        raise CapabilityError(f"LIKELY_NATIVE_ISA must be one of {', '.join(ISA)}, got {wanted}")
    reasons = []
    for isa in (wanted, "plain") if wanted == "native" else (wanted,):  # plain: where a compiler errs on this processor
        try:
            found = _open((prebuilt() if isa == "native" else None) or build(isa))
        except CapabilityError as error:
            reasons.append(str(error))
            continue
        if (reason := _disagreement(found)) is None:
            return found
        reasons.append(f"the native runtime computes wrongly as {isa} ({reason}): use runtime='torch'")
    raise CapabilityError(reasons[0])


def _open(path: Path) -> Library:
    try:
        return Library(ctypes.CDLL(str(path)))
    except (OSError, AttributeError) as error:
        raise CapabilityError(
            f"the native runtime's library cannot be loaded ({str(error).splitlines()[0]}): remove {path}, or use "
            f"runtime='torch'"
        ) from None


def prebuilt() -> Path | None:
    """The library that a wheel brings for this processor; None where the wheel has none or the processor is older."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return None
    has = cpu_words()
    paths = (_PREBUILT_FOLDER / f"likely-{isa}.so" for isa, needed in PREBUILT.items() if needed <= has)
    return next((path for path in paths if path.is_file()), None)


def can_build() -> bool:
    """Whether there is a library, or something to build it with; cheap."""
    if prebuilt():
        return True
    try:
        _compiler()
    except CapabilityError:
        return False
    return True


def is_built(isa: str = "native") -> bool:
    """Whether the wheel or the cache has the library already."""
    return bool(isa == "native" and prebuilt()) or _target(_compiler(), isa).is_file()


def build(isa: str = "native") -> Path:
    """The compiled library, from the cache where it is there."""
    target = _target(_compiler(), isa)
    if not target.is_file():
        compile_library(isa, target)
    return target


def compile_library(isa: str, target: Path) -> None:
    """Write the library for these instructions to `target`, whole or not at all."""
    compiler = _compiler()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            made = Path(folder) / "likely.so"
            done = subprocess.run(
                [*compiler, *FLAGS, *ISA[isa], "-o", str(made), str(SOURCES / "native.cpp")],
                capture_output=True, text=True, timeout=_SECONDS, check=False,
            )  # fmt: skip
            if done.returncode:
                lines = [line for line in done.stderr.splitlines() if "error" in line] or ["no message"]
                raise CapabilityError(f"the native runtime cannot be compiled by {' '.join(compiler)} ({lines[0]})")
            os.replace(made, target)
    except subprocess.TimeoutExpired:
        raise CapabilityError(f"{' '.join(compiler)} took more than {_SECONDS} s over the native runtime") from None
    except OSError as error:
        raise CapabilityError(f"the native runtime cannot be built in {target.parent} ({error.strerror})") from None


def _target(compiler: tuple[str, ...], isa: str) -> Path:
    """Where the library is kept; the name is a digest of all that it depends on."""
    built_from = [*FLAGS, *ISA[isa], *compiler[1:], _version(compiler), _processor()]
    sources = [(source.name, source.read_text("utf-8")) for source in sorted(SOURCES.iterdir())]
    return cache_dir() / "native" / f"likely-{isa}-{fingerprint([built_from, sources], 24)}.so"


def _compiler() -> tuple[str, ...]:
    """The program and its fixed arguments: $CXX may be "ccache g++" or "g++ -m64"."""
    try:
        asked = shlex.split(os.environ.get("CXX", ""))
    except ValueError as error:
        raise CapabilityError(f"$CXX must be a command, got {os.environ['CXX']!r} ({error})") from None
    for name, *more in [asked or [""], ["c++"], ["g++"], ["clang++"]]:
        if name and (path := shutil.which(name)):
            return (path, *more)
    raise CapabilityError(
        "the native runtime needs a C++ compiler on first use and none was found (c++, g++, clang++ or $CXX): install "
        "one, or use runtime='torch' or 'llamacpp'"
    )


@functools.cache
def _version(compiler: tuple[str, ...]) -> str:
    try:
        done = subprocess.run([*compiler, "--version"], capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        reason = getattr(error, "strerror", None) or "it does not answer"
        raise CapabilityError(f"the C++ compiler {' '.join(compiler)} cannot be run ({reason})") from None
    return done.stdout


def _processor() -> str:
    """What -march=native depends on: a cache folder may be shared by machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    kept = ("vendor_id", "cpu family", "model\t", "flags", "CPU implementer", "CPU part", "Features")
    return "\n".join(sorted({line for line in lines if line.startswith(kept)}))


def _disagreement(found: Library) -> str | None:
    """A small product of every kind and of every number of rows against numpy; None if all are right."""
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((40, 130)).astype(np.float32)
    x = rng.standard_normal((23, 130)).astype(np.float32)
    x[:, 3] *= 30  # an outlier: its group alone is coarse
    exact = x.astype(np.float64) @ weights.T.astype(np.float64)
    with found.team(1) as team:
        for kind, name in enumerate(DTYPES):
            packed = found.pack(kind, weights)
            several = team.multiply(kind, x, packed, padded(40))[:, :40]
            alone = np.concatenate([team.multiply(kind, row[None], packed, padded(40))[:, :40] for row in x])
            if not np.array_equal(several, alone):
                return f"{name}: rows depend on the rows beside them"
            worst = float(np.abs(several - exact).max() / exact.std())
            if not worst < (0.1 if kind == INT8 else 0.05 if kind == BF16 else 1e-5):
                return f"{name}: a product is off by {worst:.2g} standard deviations"
    return None
