"""The C++ library of the native runtime: compiled for this processor on first use, kept, checked before it is trusted.

Only a C++ compiler is needed, neither Python headers nor a build system. Where there is none, an error names what
would help.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import stat
import subprocess
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from likely.errors import CapabilityError
from likely.io.hashes import cache_dir, fingerprint
from likely.io.whole_file import partial_beside
from likely.runtimes.machine import cpu_words
from likely.runtimes.native.check import disagreement
from likely.runtimes.native.library import Library

SOURCES = Path(__file__).parent / "cpp"
FLAGS = ("-std=c++17", "-fPIC", "-pthread", "-fno-math-errno", "-ffp-contract=off",
         "-fvisibility-inlines-hidden")  # fmt: skip
# what LIKELY_NATIVE_ISA may ask for: less than the machine has, for comparisons and for machines that misreport
_V4 = ("-O3", "-march=x86-64-v4")
ISA = {
    "native": ("-O3", "-march=native"),
    "amx": (*_V4, "-mavx512vnni", "-mavx512bf16", "-mamx-tile", "-mamx-int8", "-mamx-bf16"),
    "avx512_bf16": (*_V4, "-mavx512vnni", "-mavx512bf16"),
    "avx512_vnni": (*_V4, "-mavx512vnni"),
    "avx512": _V4,
    "avx_vnni": ("-O3", "-march=x86-64-v3", "-mavxvnni"),
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
    "avx_vnni": _V3_WORDS | {"avx_vnni"},
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
        if (reason := disagreement(found)) is None:
            if reasons:
                warnings.warn(f"{reasons[0]}; until then the slow plain form is used", stacklevel=2)
            return found
        reasons.append(f"the native runtime computes wrongly as {isa} ({reason}): use runtime='torch'")
    raise CapabilityError(reasons[0])


def _open(path: Path) -> Library:
    try:
        return Library(ctypes.CDLL(str(path)))
    except (OSError, AttributeError) as error:
        reason = str(error).splitlines()[0]
        what = f"remove {path}"
        if "failed to map segment" in reason:  # a file system mounted noexec
            what = f"programs cannot be run from {path.parent}: set LIKELY_CACHE to another folder"
        raise CapabilityError(
            f"the native runtime's library cannot be loaded ({reason}): {what}, or use runtime='torch'"
        ) from None


def prebuilt() -> Path | None:
    """The library that a wheel brings for this processor; None where the wheel has none or the processor is older."""
    if not _PREBUILT_FOLDER.is_dir():
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
        return _kept("native") is not None
    return True


def is_built(isa: str = "native") -> bool:
    """Whether the wheel or the cache has the library already."""
    return bool(isa == "native" and prebuilt()) or _kept(isa) is not None


def build(isa: str = "native") -> Path:
    """The compiled library, from the cache where it is there."""
    _check_folder(cache_dir() / "native")
    if (found := _kept(isa)) is not None:
        return found
    target = _target(_compiler(), isa)
    compile_library(isa, target)
    return target


def _kept(isa: str) -> Path | None:
    """The library in the cache, whole; without a compiler that of any one."""
    try:
        found = [_target(_compiler(), isa)]
    except CapabilityError:
        found = sorted((cache_dir() / "native").glob(f"{_stem(isa)}-*.so"))
    return next((path for path in found if _is_sealed(path)), None)


def _check_folder(folder: Path) -> None:
    """CapabilityError for a folder in which others could put a library, which would be run."""
    if not hasattr(os, "getuid") or not folder.exists():
        return
    status = folder.stat()
    if status.st_uid == os.getuid() and stat.S_IMODE(status.st_mode) & 0o022 == 0o020:
        folder.chmod(stat.S_IMODE(status.st_mode) & ~0o020)  # made under a umask that lets one's group write
        status = folder.stat()
    if status.st_uid not in (os.getuid(), 0) or status.st_mode & 0o022:
        raise CapabilityError(
            f"the native runtime's library is not taken from {folder}, where others may write (owner {status.st_uid}, "
            f"mode {stat.S_IMODE(status.st_mode):o}): it would be run as you. Run chmod go-w {folder}, or set "
            f"LIKELY_CACHE to a folder of your own"
        )


# A library ends in the digest of all before it, which loaders skip: one that was cut or changed is compiled again.
_SEAL = b"likely sha256 "


def _seal(path: Path) -> None:
    with path.open("r+b") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        file.write(_SEAL + digest.encode())
    path.chmod(0o755)


def _is_sealed(path: Path) -> bool:
    """Whether it is whole and no one else's."""
    try:
        raw, status = path.read_bytes(), path.stat()
    except OSError:
        return False
    if hasattr(os, "getuid") and (status.st_uid not in (os.getuid(), 0) or status.st_mode & 0o022):
        return False
    end = len(raw) - 64 - len(_SEAL)
    return end > 0 and raw[end:] == _SEAL + hashlib.sha256(raw[:end]).hexdigest().encode()


def compile_library(isa: str, target: Path) -> None:
    """Write the library for these instructions to `target`, whole or not at all."""
    compiler = _compiler()
    try:
        target.parent.parent.mkdir(parents=True, exist_ok=True)
        target.parent.mkdir(mode=0o755, exist_ok=True)
        with partial_beside(target.with_name("library"), folder=True, private=True) as folder:
            made = folder / "likely.so"
            parts = {folder / f"part{n}.o": f"-DLIKELY_PART={n}" for n in (1, 2)}  # they take equally long
            with ThreadPoolExecutor() as pool:
                list(pool.map(lambda to: _run(compiler, isa, parts[to], "-c", "-o", to, SOURCES / "native.cpp"), parts))
            _run(compiler, isa, "-shared", "-o", made, *parts)
            _seal(made)
            os.replace(made, target)
    except subprocess.TimeoutExpired:
        raise CapabilityError(f"{' '.join(compiler)} took more than {_SECONDS} s over the native runtime") from None
    except OSError as error:
        raise CapabilityError(f"the native runtime cannot be built in {target.parent} ({error.strerror})") from None


def _run(compiler: tuple[str, ...], isa: str, *more: str | Path) -> None:
    command = [*compiler, *FLAGS, *ISA[isa], *map(str, more)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "error" in line.lower()] or ["no message"]
        raise CapabilityError(f"the native runtime cannot be compiled by {' '.join(compiler)} ({lines[0]})")


def _target(compiler: tuple[str, ...], isa: str) -> Path:
    """Where the library is kept; the name has digests of all that it depends on, of the compiler at its end."""
    return cache_dir() / "native" / f"{_stem(isa)}-{fingerprint([*compiler[1:], _version(compiler)], 8)}.so"


def _stem(isa: str) -> str:
    sources = [(source.name, source.read_text("utf-8")) for source in sorted(SOURCES.rglob("*.*"))]
    return f"likely-{isa}-{fingerprint([[*FLAGS, *ISA[isa], _processor()], sources], 24)}"


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
