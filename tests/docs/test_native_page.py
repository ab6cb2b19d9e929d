"""The page on the native runtime works as typed; what its tables say of a record is what the record holds."""

from __future__ import annotations

import importlib
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_gguf import write_tiny_llama
from typed_commands import typed_commands

from likely.errors import CapabilityError

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "native.md").read_text(encoding="utf-8")
MACHINE = {"cpu": "A CPU", "cores": 2, "flags": [], "platform": "here"}


def blocks(kind):
    return re.findall(rf"```{kind}\n(.*?)```", PAGE, flags=re.S)


@pytest.fixture
def script(monkeypatch):
    """docs/generate.py and docs/native_tables.py as modules."""
    monkeypatch.setattr(sys, "path", [str(DOCS), *sys.path])
    return importlib.import_module("generate"), importlib.import_module("native_tables")


# --- what is typed ----------------------------------------------------------------------------------------------------


def test_its_python_runs(tmp_path, monkeypatch, native_library, capsys):
    """On a tiny model; the cache is an empty one, so that nothing is measured yet."""
    monkeypatch.setenv("LIKELY_CACHE", str(tmp_path / "cache"))
    path = write_tiny_llama(tmp_path / "tiny.gguf", context=512, dim=128)
    found: dict = {}
    for block in blocks("python"):
        exec(block.replace('"smollm2"', repr(str(path))), found)
    assert "native int8 True" in capsys.readouterr().out
    assert len(found["plain"].token_ids) > 1 and found["fast"].info.runtime == "native"
    found["lm"].close()
    found["fast"].close()


@pytest.mark.slow
@pytest.mark.real
@pytest.mark.xdist_group("pages")
def test_its_commands_run(tmp_path, smollm2_path, native_library):
    """With the libraries that are there already, and a cache of its own for everything else."""
    from likely.runtimes.native.build import build

    environment, kept = typed_commands(tmp_path), tmp_path / "cache" / "native"
    shutil.copy2(build("plain"), kept)

    def run(block):
        quick = block.replace("bench --quick", "bench --quick --runtime native --even-if-busy")
        done = subprocess.run(
            ["bash", "-e", "-c", quick], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=250
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    quick = [block for block in blocks("sh") if "mergequant" not in block]  # minutes; on toys: test_mergequant_native
    asked, compared, measured, plain = map(run, quick)
    assert "11,880 bytes a token" in compared
    assert "Paris" in asked and "prefill" in measured and "Paris" in measured and plain.strip()
    assert len(list(kept.glob("*.so"))) == 2 and len(list(kept.glob("*-int8-*"))) == 1  # no library was made anew
    assert max(file.stat().st_size for file in kept.glob("*.so")) < 2e6
    [said] = re.findall(r"(\d+) MB for SmolLM2 135M in int8 and (\d+) MB in fp32", PAGE)
    assert set(map(int, said)) == {round(file.stat().st_size / 1e6) for file in kept.glob("*.safetensors")}


def test_what_it_names_is_what_there_is(script):
    from likely.models.load import USES
    from likely.runtimes.native.architecture import MODEL_TYPES
    from likely.runtimes.native.build import ISA
    from likely.runtimes.native.library import DTYPES, GROUP, PANEL, PANEL_GROUP_BYTES

    rows = re.findall(r'^\| `"(\w+)"`(?: \(the default\))? \| ([\d.]+) \|', PAGE, flags=re.M)
    assert [float(size) for _, size in rows] == [round(b / (PANEL * GROUP), 2) for b in PANEL_GROUP_BYTES]
    assert [dtype for dtype, _ in rows] == list(DTYPES)
    [line] = re.findall(r"^\| `LIKELY_NATIVE_ISA` \|.*$", PAGE, flags=re.M)
    assert set(re.findall(r"`(\w+)`", line)[1:]) == set(ISA)
    assert all(f'"{use}"' in PAGE for use in USES)
    names = {"llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text"}
    assert set(MODEL_TYPES) == names and "Llama (SmolLM2 is one), Mistral, Qwen 2 and 3, Gemma 2 and 3" in PAGE


def test_without_a_compiler_it_is_as_the_page_says(tmp_path, monkeypatch):
    import likely
    from likely.runtimes.native import build as native_build

    def gone():
        raise CapabilityError("the native runtime needs a C++ compiler")

    monkeypatch.setattr("likely.runtimes.native.runtime.library", gone)
    monkeypatch.setattr(native_build, "_compiler", gone)
    path = str(write_tiny_llama(tmp_path / "tiny.gguf"))
    for asked in ({"dtype": "int8"}, {"runtime": "native"}, {"runtime": "native", "dtype": "bfloat16"}):
        with pytest.raises(CapabilityError, match="C\\+\\+ compiler"):
            likely.load(path, **asked)


def test_what_it_says_of_keys_and_values_is_so(native_library, smollm2_path):
    from likely.runtimes.native.library import KV_FORMS
    from likely.runtimes.native.runtime import NativeRuntime

    [section] = re.findall(r"## Keys and values\n(.*?)\n## ", PAGE, flags=re.S)
    named = re.findall(r"`(\w+)`", "".join(re.findall(r"^\| `.*?\|", section, flags=re.M)))
    assert set(named) == {"kv_dtype", *KV_FORMS}
    short, usual = re.findall(r"# q8_0 (\d+); bf16 takes (\d+)", section)[0]
    for kv, size in (("q8_0", short), (None, usual)):
        runtime = NativeRuntime(smollm2_path, dtype="int8", kv_dtype=kv, threads=1, tokens_held=64)
        assert runtime.kv_bytes_per_token == int(size)
        runtime.shutdown()


# --- tables -----------------------------------------------------------------------------------------------------------


def quality_row(kl, flips):
    return {
        "positions": 3072, "kl_nats": kl, "kl_nats_low": kl / 2, "kl_nats_high": 2 * kl,
        "flips_percent": flips, "flips_percent_low": flips, "flips_percent_high": flips,
        "log_perplexity_ratio": 0.0, "log_perplexity_ratio_low": -0.01, "log_perplexity_ratio_high": 0.01,
    }  # fmt: skip


def test_a_table_of_quality_says_what_is_missed_and_what_is_missing(script):
    generate, tables = script
    rows = {"llamacpp-q8_0": {"prose": quality_row(0.0042, 4.6)}, "native-int8": {"prose": quality_row(0.009, 5)}}
    demand = {"demand": "prose: int8 KL at most twice Q8_0's", "value": 0.009, "bound": 0.0084, "holds": False}
    record = {"texts": {"prose": "a"}, "models": {"smollm2": {"rows": rows, "demands": [demand]}}}
    text = tables.quality(record, generate.grid)
    assert "| native int8 | 0.009 [0.0045, 0.018] | 5.00 % | 1.0000 [0.9900, 1.0101] |" in text
    assert text.index("native int8") < text.index("llama.cpp Q8_0")
    assert "| smollm2, prose: int8 KL at most twice Q8_0's | 0.009 nats | 0.0084 nats | missed |" in text
    assert "Not measured yet on smollm2: native bf16" in text and "Not measured yet: gemma3." in text


def column(ours, theirs, target):
    ratio = {"median": theirs / ours, "low": theirs / ours - 0.1, "high": theirs / ours + 0.1, "rounds": 5}
    return {
        "milliseconds": {"native int8": [ours, ours, ours], "llama.cpp Q8_0": [theirs, theirs, theirs]},
        "faster_llamacpp": "llama.cpp Q8_0",
        "floor_ms": 2.0,
        "times_floor": ours / 2,
        "speedup_of_native_int8": {"llama.cpp, faster format": ratio},
        "target": target,
    }


def test_a_table_of_figures_says_met_and_missed_alike(script):
    generate, tables = script
    prefill = column(100.0, 250.0, 3)
    openvino = {"median": 1.6, "low": 1.5, "high": 1.7, "rounds": 5}
    prefill["milliseconds"]["OpenVINO"] = [160.0, 150.0, 170.0]
    prefill["speedup_of_native_int8"]["OpenVINO"] = openvino
    found = {
        "model": "smollm2", "bandwidth_gb_per_s": 30.0, "int8_peak_gops": 900.0, "features": ["avx512"],
        "weights_bytes": {"native int8": 139e6, "llama.cpp Q8_0": None}, "kl_of_openvino_nats": 0.2,
        "columns": {
            "positions 1": column(6.0, 6.6, 0.9), "positions 2": column(6.5, 9.0, None),
            "sequences 8": column(10.0, 15.0, 2), "prefill 512": prefill,
        },
    }  # fmt: skip
    text = tables.figures({"context": 512, "threads": 2, "models": [found]}, generate.grid)
    assert "| 1 of one text | 6 | 6.6 |" in text and "| prefill, 512 | 100 | 250 | 160 |" in text
    assert "1.10× [1.00, 1.20] (Q8_0); at least 0.9×: met" in text
    assert "1.50× [1.40, 1.60] (Q8_0); at least 2×: missed" in text
    assert "2.50× [2.40, 2.60] (Q8_0); at least 3×: missed" in text
    assert "1.60× [1.50, 1.70]; at least 1.5×: met" in text
    assert "| 2 of one text | 1.38× [1.28, 1.48] (Q8_0) |" in text
    assert "30.0 GB/s" in text and "native int8 139 MB" in text and "OpenVINO's weights: 0.2 nats" in text


def test_a_table_of_the_bakeoff_holds_what_was_measured_and_why_not(script):
    generate, tables = script
    call = {"median_ms": 7.04, "low_ms": 6.9, "high_ms": 7.2, "rounds": 12}
    entry = {
        "compiler": "at the user's", "make_s": 9.2, "build_s": 0.3, "first_calls_s": 0.6, "quality": False,
        "guard": {"kl_mean": 0.03}, "calls": {key: call for key in ("prefill", "1", "4", "16", "64")}, "note": "words",
        "others_share": {"median": 0.04},
    }  # fmt: skip
    alone = {key: {**call, "rounds": 1} for key in entry["calls"]}
    linears = {"calls": alone} | {
        key: value for key, value in entry.items() if key in ("compiler", "build_s", "first_calls_s")
    }
    variants = {"native, int8": entry, "linears": linears, "gone": {"not_measured": "no module"}}
    record = {"model": "a model", "context": 512, "threads": 2, "kl_allowed": 0.0084, "variants": variants}
    text = tables.bakeoff(record, generate.grid)
    cells = " | ".join(["7.04 [6.9, 7.2]"] * 5)
    assert f"| native, int8 | {cells} | 0.03, too far | 12 | 4% | 9 s | 0.9 s | at the user's |" in text
    assert "| linears | 7.04 | 7.04 | 7.04 | 7.04 | 7.04 | no model | 1 |  |  | 0.9 s | at the user's |" in text
    assert "- gone: not measured (no module)" in text and "- native, int8: words" in text


def test_tables_wait_for_their_results(script, tmp_path):
    """Without a results file a line says so; with it the table is there, and where it was measured."""
    generate, _ = script
    page = tmp_path / "native.md"
    page.write_text("# x\n\n<!-- generated: native_bakeoff -->\nold\n<!-- end -->\n")
    assert "Not measured yet: `python benchmarks/native_bakeoff.py`." in generate.native_guide(page, {})
    record = {
        "model": "a model", "context": 512, "threads": 2, "kl_allowed": 0.0084, "variants": {}, "machine": MACHINE,
        "when": "2026-01-01",
    }  # fmt: skip
    made = generate.native_guide(page, {"native_bakeoff": record})
    assert "old" not in made and "Allowed: a KL of 0.0084 nats" in made and "Machine: A CPU, 2 cores" in made


def test_tables_of_keys_and_values_and_of_shared_prefixes(script):
    generate, tables = script
    sizes = {"f32": 46080, "q8_0": 12240}
    model = {"kv_bytes_per_token": sizes, "bytes_of_8192_tokens": {}, "rows": {"q8_0": quality_row(0.0004, 1.5)}}
    text = tables.kv_formats({"text": "prose", "models": {"smollm2": model}}, generate.grid)
    assert "| f32 | 46,080 | 360 MiB | 0 | 0 % | 1.0000 |" in text and "(3,072 positions)" in text
    assert "| q8_0 | 12,240 | 96 MiB | 0.0004 [0.0002, 0.0008] | 1.50 % |" in text
    row = {
        "kv": "bf16", "prefix": 1024, "batch": 16, "same_bits": True, "columns": {"together": 100, "apart": 800},
        "ms": {"together": 10.0, "apart": 25.0}, "speedup": [2.5, 2.4, 2.6],
    }  # fmt: skip
    record = {"model": "smollm2", "dtype": "int8", "threads": 2, "rows": [row]}
    text = tables.shared_prefix(record, generate.grid)
    assert "| bf16 | 1,024 | 16 | 10 | 25 | 2.50× [2.40, 2.60] | 8.0× |" in text and "the same bits" in text
    assert "OTHER BITS" in tables.shared_prefix({**record, "rows": [{**row, "same_bits": False}]}, generate.grid)
