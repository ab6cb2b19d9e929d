"""Code for processors with VNNI and a tile unit (AMX), run anywhere: instructions are carried out by their definition.

What this cannot show is speed, and whether the compiler spells the instructions right; the check at load does that.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from coded_rows import CODED, random_rows
from native_models import rows_of, tokens_of

from likely.compression.packed_folder import merged_rows
from likely.runtimes.native import build as native_build
from likely.runtimes.native.check import disagreement
from likely.runtimes.native.library import CODES, INT8, Library
from likely.runtimes.native.runtime import NativeRuntime

pytestmark = [
    pytest.mark.skipif(shutil.which("c++") is None and shutil.which("g++") is None, reason="no C++ compiler"),
    pytest.mark.slow,
    pytest.mark.xdist_group("tiles"),
]


@pytest.fixture(scope="module")
def tiled(native_library, tmp_path_factory):
    """The library as it is compiled where there are tiles, and how many products of tiles it has made.

    Where the processor has no VNNI, on which that code builds, its instructions are carried out in software, too.
    """
    if "avx2" not in native_library.features():
        pytest.skip("code for tiles builds on avx2, which this processor has not")
    made = tmp_path_factory.mktemp("tiles") / "tiled.so"
    helpers = Path(__file__).parents[1] / "helpers"
    flags = [*native_build.FLAGS, *native_build.ISA["native"], "-include", str(helpers / "tiles_in_software.h")]
    if "avx512_vnni" not in native_library.features():
        isa = [*native_build.ISA["avx2"], "-O0"]  # it takes as long to compile as to run
        flags = [*native_build.FLAGS, *isa, "-include", str(helpers / "vnni_in_software.h"), *flags[-2:]]
    source = native_build.SOURCES / "native.cpp"  # as one, since what counts tiles may be there once only
    subprocess.run([*native_build._compiler(), *flags, "-shared", "-o", str(made), str(source)], check=True)
    handle = ctypes.CDLL(str(made))
    handle.tiles_multiplied.restype = ctypes.c_long
    return Library(handle), handle.tiles_multiplied


def test_the_library_says_that_it_has_tiles_and_passes_its_check(tiled):
    library, multiplied = tiled
    assert "amx_int8" in library.features()
    before = multiplied()
    assert disagreement(library) is None
    assert multiplied() > before


@pytest.mark.parametrize("rows", [15, 16, 17, 33, 64])
@pytest.mark.parametrize("inputs", [64, 130, 576])
def test_a_product_by_tiles_is_the_same_to_the_bit(native_library, tiled, rows, inputs):
    rng = np.random.default_rng(rows)
    x, weights = (rng.standard_normal((n, inputs)).astype(np.float32) for n in (rows, 70))
    library, multiplied = tiled
    panels, before = native_library.pack(INT8, weights), multiplied()
    with native_library.team(2) as plain, library.team(2) as team:
        np.testing.assert_array_equal(team.multiply(INT8, x, panels, 70), plain.multiply(INT8, x, panels, 70))
    panels_of_32, groups = 3, -(-inputs // 64)
    assert multiplied() - before == rows // 16 * panels_of_32 * groups * 2


@pytest.mark.parametrize("kind", CODED)
@pytest.mark.parametrize("rows", [1, 17, 33, 140])
def test_a_product_of_codes_by_vnni_and_tiles_is_the_same_to_the_bit(native_library, tiled, kind, rows):
    (library, multiplied), rng = tiled, np.random.default_rng(rows)
    assert "avx512_vnni" in library.features()
    inputs = 768 if "_K" in kind else 544  # more groups than are unpacked together
    x, raw = rng.standard_normal((rows, inputs)).astype(np.float32), random_rows(kind, (40, inputs), rng)
    panels = native_library.pack_rows(kind, raw, inputs)
    np.testing.assert_array_equal(library.pack_rows(kind, raw, inputs), panels)
    with native_library.team(1) as plain, library.team(1) as team:
        before = multiplied()
        found = team.multiply(CODES, x, panels, 40, type_name=kind)
        parts = (2 if rows >= 32 else 0) if kind == "Q6_K" else 1  # with a scale of their own, of 32 inputs
        assert multiplied() - before == rows // 16 * 4 * 2 * -(-inputs // 64) * parts  # of 4 tiles of outputs
        np.testing.assert_array_equal(found, plain.multiply(CODES, x, panels, 40, type_name=kind))


@pytest.mark.parametrize("kind", ["MQ4", "MQ8"])
def test_a_product_of_merged_codes_by_vnni_and_tiles_is_the_same_to_the_bit(native_library, tiled, kind):
    library, rng, most = tiled[0], np.random.default_rng(0), 2 ** (int(kind[2]) - 1) - 1
    codes = rng.integers(-most, most + 1, (40, 256)).astype(np.int16)
    raw, x = merged_rows(codes, np.ones(40, np.float32), int(kind[2])), np.rint(200 * rng.standard_normal((25, 256)))
    panels, options = native_library.pack_rows(kind, raw, 256), {"type_name": kind, "merged_bits": 8}
    with native_library.team(1) as plain, library.team(1) as team:
        found = team.multiply(CODES, x, panels, 40, **options)
        np.testing.assert_array_equal(found, plain.multiply(CODES, x, panels, 40, **options))


def test_a_model_by_tiles_is_the_same_to_the_bit(native_library, tiled, made, monkeypatch):
    """Every thread of a call has its tiles set up: an unready tile would end the process."""
    tokens, rows = tokens_of(70), []
    for library in (native_library, tiled[0]):
        monkeypatch.setattr("likely.runtimes.native.runtime.library", lambda library=library: library)
        runtime = NativeRuntime(made("qwen3")[1], dtype="int8", threads=2, tokens_held=200, tokens_per_call=64)
        rows.append(rows_of(runtime, tokens))
        runtime.shutdown()
    np.testing.assert_array_equal(*rows)
