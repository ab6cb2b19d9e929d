"""The native runtime's library: who compiles it, what is kept, and what happens where that fails.

Most compilers here are scripts: they note how they were called and make in no time what a test needs.
"""

from __future__ import annotations

import ctypes
import functools
import os
import shutil
import subprocess
import sys
from unittest.mock import patch

import numpy as np
import pytest
from coded_rows import CODED, random_rows
from native_models import forward, nats_apart, rows_of, tokens_of
from tiny_gguf import write_tiny_llama

import likely
from likely.compression.packed_folder import merged_rows
from likely.errors import CapabilityError
from likely.models.load import available_runtimes
from likely.runtimes.machine import machine
from likely.runtimes.native import build as native_build
from likely.runtimes.native.check import disagreement
from likely.runtimes.native.library import CODES, DTYPES, TYPES, Library
from likely.runtimes.native.runtime import NativeRuntime

COMPILER = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")

WRONG = """
extern "C" {
int likely_features() { return 0; }
void* likely_open(const void*, int) { static int session; return &session; }
void likely_close(void*) {}
int likely_reserve(void*, long) { return 0; }
long likely_kv_bytes(const void*) { return 0; }
long likely_columns_read(void*) { return 0; }
void likely_keep_processors(void*) {}
void likely_store_rows(int, int, int, int, const float*, int, int, const int*, float*) {}
int likely_forward(void*, const void*) { return 0; }
void likely_head(void*, int, int, float*, long) {}
void likely_reduce(void*, const float*, int, long, double*, double*, int, long*, float*) {}
void likely_pack(int, const float*, int, int, unsigned char*) {}
int likely_pack_rows(int, const unsigned char*, int, int, unsigned char*) { return 0; }
long likely_panel_bytes(int, int) { return 64; }
void likely_round_rotated(int, const float*, int, int, unsigned char*) {}
void likely_unpack_row(int, const unsigned char*, int, int, int, float*) {}
int likely_multiply(void*, int, int, int, const float*, int n, int, const unsigned char*, int, float* out,
                    long stride) {
  for (long i = 0; i < n * stride; i++) out[i] = VALUE;
  return 0;
}
void* likely_stepper_open(int, int, int) { return 0; }
void likely_stepper_close(void*) {}
void likely_stepper_run(void*, const void*, const void*, int, int, int, float*, int) {}
void likely_stepper_multiply(void*, const void*, int, const float*, float*) {}
void likely_selective_scan(void*, const void*) {}
}
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty cache, and nothing asked of the compiler; the library is looked for anew."""
    monkeypatch.setenv("LIKELY_CACHE", str(tmp_path / "cache"))
    for name in ("CXX", "LIKELY_NATIVE_ISA"):
        monkeypatch.delenv(name, raising=False)
    anew = functools.cache(native_build.library.__wrapped__)
    monkeypatch.setattr(native_build, "library", anew)
    monkeypatch.setattr("likely.runtimes.native.runtime.library", anew)
    monkeypatch.setattr(native_build, "_version", native_build._version.__wrapped__)
    return tmp_path / "cache" / "native"


@pytest.fixture
def compiler(tmp_path, monkeypatch):
    """(shell commands, name) -> a log of the libraries that were linked, one call each.

    The commands run for each part and for the whole; they see the output file as $out and all arguments as $@.
    """

    def make(commands, name="compiler", version="compiler 1.0"):
        script, log = tmp_path / name, tmp_path / f"{name}.log"
        script.write_text(
            f'#!/bin/sh\nif [ "$1" = --version ]; then echo "{version}"; exit; fi\necho "$@" >> {log}\n'
            f'out=; before=; for a in "$@"; do [ "$before" = -o ] && out=$a; before=$a; done\n{commands}\n'
        )
        script.chmod(0o755)
        monkeypatch.setenv("CXX", str(script))
        return lambda: [c for c in (log.read_text().splitlines() if log.exists() else []) if " -shared " in c]

    return make


@pytest.fixture(scope="module")
def libraries(native_library):
    """(instruction set) -> path of the real library, compiled at most once per state of the sources."""
    before = dict(os.environ)

    @functools.cache
    def get(isa):
        with patch.dict(os.environ, before, clear=True):
            return native_build.build(isa)

    return get


def no_compiler(monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", "")


def one_line(call, *words):
    with pytest.raises(CapabilityError) as error:
        call()
    text = str(error.value)
    assert "\n" not in text and all(word in text for word in words), text
    return text


def left_in(folder):
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


# --- no compiler ----------------------------------------------------------------------------------------------------


def test_without_a_compiler_one_line_says_what_would_help(folder, monkeypatch):
    no_compiler(monkeypatch)
    one_line(native_build.library, "C++ compiler", "runtime='torch'", "llamacpp")
    assert not native_build.can_build()
    assert available_runtimes()["native"] is False and left_in(folder) == []


def test_without_a_compiler_the_native_runtime_is_refused(folder, monkeypatch, tmp_path):
    no_compiler(monkeypatch)
    path = str(write_tiny_llama(tmp_path / "m.gguf"))
    for options in ({"runtime": "native"}, {"dtype": "int8"}, {"runtime": "native", "dtype": "bfloat16"}):
        one_line(lambda options=options: likely.load(path, **options), "C++ compiler")


# --- which compiler -------------------------------------------------------------------------------------------------


def test_a_compiler_may_be_a_command_with_arguments(folder, compiler, monkeypatch, libraries):
    """As "ccache g++" or "g++ -m64"; what it is told beside our flags makes another library."""
    calls = compiler(f'cp {libraries("native")} "$out"')
    alone = native_build.build()
    monkeypatch.setenv("CXX", f"'{os.environ['CXX']}' --some 'more of it'")
    assert native_build.build() != alone and native_build.library()
    compilations = [call for call in calls() if " -o " in call]
    assert [call.startswith("--some more of it ") for call in compilations] == [False, True]


def test_a_compiler_that_cannot_be_read_is_one_line(folder, monkeypatch):
    monkeypatch.setenv("CXX", "'g++")
    one_line(native_build.library, "$CXX", "'g++")
    assert not native_build.can_build()


# --- compilers that fail --------------------------------------------------------------------------------------------


def test_what_the_compiler_says_is_passed_on(folder, compiler):
    compiler('echo "native.cpp:1: note: first" >&2; echo "native.cpp:7: error: no such thing" >&2; exit 3')
    one_line(native_build.library, "cannot be compiled", "native.cpp:7: error: no such thing")
    assert left_in(folder) == []


def test_a_compiler_that_fails_in_silence(folder, compiler):
    compiler("exit 1")
    one_line(native_build.library, "cannot be compiled", "no message")
    assert left_in(folder) == []


def test_what_a_killed_compilation_left_is_removed(folder, compiler, libraries):
    compiler(f'cp {libraries("native")} "$out"')
    left = folder / ".library.0123abcd.partial"
    left.mkdir(parents=True)
    (left / "part1.o").touch()
    os.utime(left, (0, 0))
    made = native_build.build()
    assert left_in(folder) == [made.name]


def test_a_compiler_that_makes_nothing(folder, compiler):
    compiler("exit 0")
    one_line(native_build.library, "cannot be built")
    assert left_in(folder) == []


def test_a_compiler_that_never_ends(folder, compiler, monkeypatch):
    compiler("exec tail -f /dev/null")
    monkeypatch.setattr(native_build, "_SECONDS", 0.05)
    one_line(native_build.library, "took more than")
    assert left_in(folder) == []


def test_a_compiler_that_is_no_program(folder, monkeypatch, tmp_path):
    (tmp_path / "c++").write_bytes(b"\x00\x01\x02")
    (tmp_path / "c++").chmod(0o755)
    monkeypatch.setenv("CXX", str(tmp_path / "c++"))
    one_line(native_build.library, str(tmp_path / "c++"))


def test_a_compiler_that_makes_something_else(folder, compiler):
    compiler('echo "not a library" > "$out"')
    one_line(native_build.library, "cannot be loaded", "runtime='torch'")


def test_an_interrupted_build_leaves_nothing(folder, compiler, monkeypatch):
    compiler("exit 0")

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(native_build, "_version", lambda _: "1")
    monkeypatch.setattr(subprocess, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        native_build.build()
    assert left_in(folder) == []


def test_a_cache_that_cannot_be_written_is_one_line(folder, monkeypatch, tmp_path):
    """A file where a folder should be: refused whoever runs the test."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LIKELY_CACHE", str(tmp_path / "file" / "cache"))
    one_line(native_build.library, "cannot be built in", str(tmp_path / "file"))


# --- libraries that compute wrongly ---------------------------------------------------------------------------------


@pytest.fixture
def wrong_source(tmp_path):
    (tmp_path / "wrong.cpp").write_text(WRONG)
    return tmp_path / "wrong.cpp"


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("value", "words"), [("0", "off by"), ("n", "depend on the rows beside"), ("0.0f/0", "depend on the rows beside")]
)
def test_a_library_that_computes_wrongly_is_not_used(folder, compiler, wrong_source, value, words):
    compiler(f'exec {COMPILER} -shared -fPIC "-DVALUE={value}" -o "$out" {wrong_source}')
    one_line(native_build.library, "computes wrongly", words, "runtime='torch'")


def test_where_native_code_is_wrong_plain_code_is_used(folder, compiler, wrong_source, libraries):
    calls = compiler(
        f'case "$*" in *-DLIKELY_PLAIN*) cp {libraries("plain")} "$out";;\n'
        f'*) exec {COMPILER} -shared -fPIC -DVALUE=0 -o "$out" {wrong_source};; esac'
    )
    with pytest.warns(UserWarning, match="computes wrongly as native .*the slow plain form is used"):
        assert native_build.library().features() == []
    assert len(calls()) == 2 and "-march=native" in calls()[0]


def test_an_instruction_set_that_was_asked_for_is_not_replaced(folder, compiler, wrong_source, monkeypatch):
    monkeypatch.setenv("LIKELY_NATIVE_ISA", "plain")
    calls = compiler(f'exec {COMPILER} -shared -fPIC -DVALUE=0 -o "$out" {wrong_source}')
    one_line(native_build.library, "computes wrongly as plain")
    assert len(calls()) == 1


@pytest.mark.parametrize("kind", [*DTYPES, *TYPES])
def test_a_small_error_of_one_kind_is_found(native_library, kind):
    """The check knows each kind by its own bound."""

    class Off:
        pack, open, close = native_library.pack, native_library.open, native_library.close
        pack_rows, unpack_row = native_library.pack_rows, native_library.unpack_row
        reserve, forward = native_library.reserve, native_library.forward

        def team(self, threads):
            return _Scaled(native_library, threads, kind)

    assert disagreement(native_library) is None
    assert kind in disagreement(Off())


class _Scaled:
    """A team whose products of one kind are off: by as much as a lost group of inputs, or by 1e-4 in fp32."""

    def __init__(self, library, threads, kind):
        self._made, self._kind = library.team(threads), kind

    def __enter__(self):
        self._team = self._made.__enter__()
        return self

    def __exit__(self, *error):
        return self._made.__exit__(*error)

    def multiply(self, kind, x, panels, outputs, **of_codes):
        x = x.copy()
        if (of_codes["type_name"] if of_codes else DTYPES[kind]) == self._kind:
            x[:, 64:128] *= 1.0001 if self._kind in ("float32", "F32", "F16", "BF16") else 0.5
        return self._team.multiply(kind, x, panels, outputs, **of_codes)


# --- instruction sets -----------------------------------------------------------------------------------------------


def test_an_unknown_instruction_set_is_refused(folder, monkeypatch):
    monkeypatch.setenv("LIKELY_NATIVE_ISA", "avx1024")
    one_line(native_build.library, "LIKELY_NATIVE_ISA", "native", "avx512", "avx2", "plain", "avx1024")
    assert left_in(folder) == []


@pytest.mark.slow
@pytest.mark.parametrize("isa", ["plain", "avx2"])
def test_other_instruction_sets_compute_the_same_to_rounding(native_library, libraries, made, monkeypatch, isa):
    """Sums of whole numbers are the same; sums of floats go in another order, and a code may then fall to the other
    side of a half."""
    if isa == "avx2" and "avx2" not in machine().flags:
        pytest.skip("this processor has no avx2")
    other = Library(ctypes.CDLL(str(libraries(isa))))
    assert other.features() == ([] if isa == "plain" else ["avx2"])
    assert disagreement(other) is None
    tokens = tokens_of(140)
    for name in ("llama, heads of 24", "qwen3", "gemma3, short window"):
        for kind, allowed in (("float32", 1e-4), ("bfloat16", 0.1), ("int8", 0.3)):
            rows = []
            for library in (native_library, other):
                monkeypatch.setattr("likely.runtimes.native.runtime.library", lambda library=library: library)
                runtime = NativeRuntime(made(name)[1], dtype=kind, threads=1, tokens_held=600, tokens_per_call=64)
                rows.append(rows_of(runtime, tokens))
                assert ("avx2" in runtime.revision or "plain" in runtime.revision) or library is native_library
                runtime.shutdown()
            assert np.median(nats_apart(*rows)) < allowed / 3
            assert nats_apart(*rows).max() < allowed


@pytest.mark.slow
@pytest.mark.parametrize("isa", ["plain", "avx2"])
def test_rows_are_invariant_on_every_instruction_set(libraries, made, monkeypatch, isa):
    """How many rows stay in registers together differs: each set makes its own sums, always in one order."""
    if isa == "avx2" and "avx2" not in machine().flags:
        pytest.skip("this processor has no avx2")
    other = Library(ctypes.CDLL(str(libraries(isa))))
    monkeypatch.setattr("likely.runtimes.native.runtime.library", lambda: other)
    tokens = tokens_of(140)
    for kind in DTYPES:
        for name in ("llama, heads of 24", "gemma3, a window over blocks"):
            runtime = NativeRuntime(made(name)[1], dtype=kind, threads=1, tokens_held=600, tokens_per_call=512)
            whole, sequence, at = rows_of(runtime, tokens), runtime.open(), 0
            for n in (1, 2, 3, 5, 7, 16, 17, 40, 49):
                rows = forward(runtime, sequence, tokens[at : at + n], np.arange(n) - 1).logits
                runtime.commit([(sequence, range(n))])
                np.testing.assert_array_equal(rows, whole[at : at + n])
                at += n
            runtime.shutdown()


@pytest.mark.slow
@pytest.mark.parametrize("isa", ["plain", "avx2"])
def test_packed_weights_are_the_same_bytes_on_all_instruction_sets(native_library, libraries, isa):
    """A packed file is found by its model alone: it must not depend on who packed it."""
    if isa == "avx2" and "avx2" not in machine().flags:
        pytest.skip("this processor has no avx2")
    other = Library(ctypes.CDLL(str(libraries(isa))))
    weights = np.random.default_rng(0).standard_normal((70, 200)).astype(np.float32)
    for kind in range(3):
        np.testing.assert_array_equal(other.pack(kind, weights), native_library.pack(kind, weights))
    rows = native_library.round_rotated(4, weights[:, :192])
    np.testing.assert_array_equal(other.round_rotated(4, weights[:, :192]), rows)


@pytest.mark.slow
@pytest.mark.parametrize("isa", ["plain", "avx2"])
def test_products_of_codes_are_the_same_bits_on_all_instruction_sets(native_library, libraries, isa):
    if isa == "avx2" and "avx2" not in machine().flags:
        pytest.skip("this processor has no avx2")
    other, rng = Library(ctypes.CDLL(str(libraries(isa)))), np.random.default_rng(1)
    x = rng.standard_normal((7, 256)).astype(np.float32)
    with native_library.team(1) as team, other.team(1) as others:
        for kind in CODED:
            raw = random_rows(kind, (40, 256), rng)
            panels = native_library.pack_rows(kind, raw, 256)
            np.testing.assert_array_equal(other.pack_rows(kind, raw, 256), panels)
            one, two = (t.multiply(CODES, x, panels, 40, type_name=kind) for t in (team, others))
            np.testing.assert_array_equal(two, one)
        for kind, most in (("MQ4", 7), ("MQ8", 127)):
            raw = merged_rows(rng.integers(-most, most + 1, (40, 256)), np.ones(40, np.float32), int(kind[2]))
            panels = native_library.pack_rows(kind, raw, 256)
            np.testing.assert_array_equal(other.pack_rows(kind, raw, 256), panels)
            for bits in (8, -8):
                one, two = (
                    t.multiply(CODES, 90 * x, panels, 40, type_name=kind, merged_bits=bits) for t in (team, others)
                )
                np.testing.assert_array_equal(two, one)


# --- kept -----------------------------------------------------------------------------------------------------------


def test_it_is_compiled_once(folder, compiler, libraries):
    calls = compiler(f'cp {libraries("native")} "$out"')
    path = native_build.build()
    assert native_build.build() == path and path.is_file() and len(calls()) == 1
    native_build.library()
    assert len(calls()) == 1 and left_in(folder) == [path.name]


def test_the_target_appears_whole(folder, compiler, libraries):
    """The compiler writes elsewhere, in the same folder's file system; a rename puts the library in its place."""
    calls = compiler(f'echo "half" > "$out"; ls {folder} >> "$out.seen"; cp {libraries("native")} "$out"')
    path = native_build.build()
    (call,) = calls()
    written = call.split(" -o ")[1].split(" ")[0]
    assert written != str(path) and written.startswith(str(folder))


def test_another_compiler_flag_or_source_is_another_library(folder, compiler, monkeypatch, tmp_path):
    make = 'echo x > "$out"'
    compiler(make, name="one")
    paths = [native_build.build(), native_build.build("plain")]
    compiler(make, name="two", version="compiler 2.0")
    paths.append(native_build.build())
    shutil.copytree(native_build.SOURCES, tmp_path / "sources")
    with (tmp_path / "sources" / "simd" / "vectors.h").open("a") as file:
        file.write("// changed\n")
    monkeypatch.setattr(native_build, "SOURCES", tmp_path / "sources")
    paths.append(native_build.build())
    monkeypatch.setattr(native_build, "_processor", lambda: "another")
    paths.append(native_build.build())
    assert len(set(paths)) == 5 and left_in(folder) == sorted(p.name for p in paths)


@pytest.mark.slow
def test_processes_that_build_at_one_time_all_get_it(folder, compiler, libraries):
    calls = compiler(f'cp {libraries("native")} "$out"')
    code = "from likely.runtimes.native.build import build, library; library(); print(build())"
    running = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    found = [process.communicate() for process in running]
    assert all(process.returncode == 0 for process in running), found
    assert len({out for out, _ in found}) == 1 and 1 <= len(calls()) <= 3
    assert left_in(folder) == [os.path.basename(found[0][0].strip())]


@pytest.mark.parametrize("damage", ["cut", "changed", "no seal"])
def test_a_library_that_is_not_whole_is_compiled_again(folder, compiler, libraries, damage):
    """A cut one would end the process (SIGBUS) when it is loaded."""
    calls = compiler(f'cp {libraries("native")} "$out"')
    path = native_build.build()
    raw = path.read_bytes()
    path.write_bytes({"cut": raw[:5000], "changed": raw[:999] + b"?" + raw[1000:], "no seal": raw[:-10]}[damage])
    assert not native_build.is_built()
    native_build.library()
    assert len(calls()) == 2 and path.read_bytes() == raw and native_build.is_built()


def test_a_kept_library_needs_no_compiler(folder, compiler, libraries, monkeypatch):
    compiler(f'cp {libraries("native")} "$out"')
    path = native_build.build()
    no_compiler(monkeypatch)
    assert native_build.build() == path and native_build.is_built() and native_build.can_build()
    monkeypatch.setattr(native_build, "_processor", lambda: "another")
    assert not native_build.can_build()


@pytest.mark.parametrize("mode", [0o777, 0o757, 0o722])
def test_a_folder_that_others_may_write_to_is_refused(folder, compiler, libraries, mode):
    calls = compiler(f'cp {libraries("native")} "$out"')
    native_build.build()
    folder.chmod(mode)
    one_line(native_build.library, "others may write", f"mode {mode:o}", f"chmod go-w {folder}", "LIKELY_CACHE")
    folder.chmod(0o775)  # of one's own group alone: as a umask of 002 makes it
    assert native_build.build().is_file() and folder.stat().st_mode & 0o777 == 0o755 and len(calls()) == 1


def test_a_library_that_others_may_write_to_is_not_run(folder, compiler, libraries):
    calls = compiler(f'cp {libraries("native")} "$out"')
    native_build.build().chmod(0o775)
    native_build.build()
    assert len(calls()) == 2


def test_another_user_s_folder_is_refused(folder, compiler, libraries, monkeypatch):
    compiler(f'cp {libraries("native")} "$out"')
    native_build.build()
    monkeypatch.setattr(os, "getuid", lambda: folder.stat().st_uid + 1)
    if folder.stat().st_uid != 0:  # root's is trusted by everybody
        one_line(native_build.library, "others may write")


def test_where_programs_cannot_be_run_the_hint_says_so(monkeypatch, tmp_path):
    refusal = OSError("x.so: failed to map segment from shared object: Operation not permitted")
    monkeypatch.setattr(ctypes, "CDLL", lambda path: (_ for _ in ()).throw(refusal))
    one_line(lambda: native_build._open(tmp_path / "x.so"), "programs cannot be run", "LIKELY_CACHE")
