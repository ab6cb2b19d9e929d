"""Code for processors with a tile unit (AMX), run anywhere: the instructions are carried out by their definition.

What this cannot show is speed, and whether the compiler spells the instructions right; the check at load does that.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from native_models import rows_of, tokens_of

from likely.runtimes.native import build as native_build
from likely.runtimes.native.check import disagreement
from likely.runtimes.native.library import INT8, Library
from likely.runtimes.native.runtime import NativeRuntime

pytestmark = pytest.mark.skipif(shutil.which("c++") is None and shutil.which("g++") is None, reason="no C++ compiler")


@pytest.fixture(scope="module")
def tiled(native_library, tmp_path_factory):
    """The library as it is compiled where there are tiles, and how many products of tiles it has made."""
    if "avx512_vnni" not in native_library.features():
        pytest.skip("code for tiles builds on avx512_vnni, which this processor has not")
    made = tmp_path_factory.mktemp("tiles") / "tiled.so"
    software = Path(__file__).parents[1] / "helpers" / "tiles_in_software.h"
    flags = [*native_build.FLAGS, *native_build.ISA["native"], "-include", str(software)]
    source = native_build.SOURCES / "native.cpp"
    subprocess.run([*native_build._compiler(), *flags, "-o", str(made), str(source)], check=True)
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


def test_a_model_by_tiles_is_the_same_to_the_bit(native_library, tiled, made, monkeypatch):
    """Every thread of a call has its tiles set up: an unready tile would end the process."""
    tokens, rows = tokens_of(70), []
    for library in (native_library, tiled[0]):
        monkeypatch.setattr("likely.runtimes.native.runtime.library", lambda library=library: library)
        runtime = NativeRuntime(made("qwen3")[1], dtype="int8", threads=2, tokens_held=200, tokens_per_call=64)
        rows.append(rows_of(runtime, tokens))
        runtime.shutdown()
    np.testing.assert_array_equal(*rows)
