"""Figures that docs/compression.md quotes to choose a format by are those of the results files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
INT8 = "x86 with VNNI"


@pytest.fixture(scope="module")
def rows():
    """Reason by machine and model."""
    page = (ROOT / "docs/compression.md").read_text(encoding="utf-8")
    lines = page[page.index("Which format for my machine") :].splitlines()
    return {cells[1].strip(): cells[3] for line in lines if len(cells := line.split("|")) == 5}


def read(path):
    return json.loads((ROOT / path).read_text(encoding="utf-8"))


def reason(rows, beginning):
    [found] = [text for name, text in rows.items() if name.startswith(beginning)]
    return found


def decimals(value, digits):
    return f"{value:.{digits}f}".removeprefix("0")


def test_what_formats_of_the_native_runtime_lose(rows):
    models = read("benchmarks/results/native_quality.json")["models"]

    def quality(name, model="smollm2"):
        return models[model]["rows"][name]["wikitext2"]

    small, large = (decimals(quality("native-int8", m)["kl_nats"], 4) for m in ("smollm2", "gemma3"))
    assert f"KL {small} (SmolLM2) and {large} (Gemma 3)" in reason(rows, INT8)
    assert f"KL {decimals(quality('native-bf16')['kl_nats'], 4)};" in reason(rows, "weights that are bf16")
    assert quality("native-fp32")["kl_nats"] < 1e-11
    four = [quality(name) for name in ("native-int4", "llamacpp-q4_0")]
    said, cost = reason(rows, "a model of 135M, and 4 bits"), decimals(four[0]["kl_nats"], 2)
    assert {decimals(one["kl_nats"], 2) for one in four} == {cost} and f"cost {cost} nats" in said
    assert f"at {four[0]['flips_percent']:.0f} %" in said
    assert f"int8 has {small} and {quality('native-int8')['flips_percent']:.1f} %" in said


def test_how_fast_they_are(rows):
    smollm2, gemma3 = (model["columns"] for model in read("benchmarks/results/native.json")["models"])

    def ratio(columns, column, other="llama.cpp, faster format"):
        return f"{columns[column]['speedup_of_native_int8'][other]['median']:.2f}"

    said = reason(rows, INT8)
    assert f"one position {ratio(smollm2, 'positions 1')} and {ratio(gemma3, 'positions 1')} times" in said
    assert f"{ratio(smollm2, 'prefill 512')} and {ratio(gemma3, 'prefill 512')} times" in said
    for beginning, other in (("weights that are bf16", "native bf16"), ("numbers that must", "native fp32")):
        assert f"takes {ratio(smollm2, 'positions 1', other)} times" in reason(rows, beginning)
    q4_0, q4_k = read("benchmarks/results/packed_weights.json")["models"]
    said = reason(rows, "x86 with AVX2 alone")
    one, eight = ([f"{m['columns'][c]['speedup']['median']:.2f}" for m in (q4_0, q4_k)]
                  for c in ("positions 1", "sequences 8"))  # fmt: skip
    assert f"{one[0]} (Q4_0) and {one[1]} times" in said and f"{eight[0]} and {eight[1]} times" in said
    ours, theirs = (q4_0["loads"][name]["VmHWM"] / 1e6 for name in ("native", "llama.cpp"))
    assert f"{ours:,.0f} MB at most instead of {theirs:,.0f} MB" in said


def test_what_the_papers_pages_say(rows):
    def value(paper, subject, quantity="KL"):
        return next(f["value"] for f in read(f"results/{paper}.json")["figures"]
                    if f["subject"] == subject and f["quantity"].startswith(quantity))  # fmt: skip

    ways = [value("mergequant", f"SmolLM2-135M, wikitext2:test, w8a8: {way}")
            for way in ("one scale for each token", "one static scale", "QSM + split + clipping")]  # fmt: skip
    token, static, merged = (decimals(way, digits) for way, digits in zip(ways, (3, 2, 3), strict=True))
    said = reason(rows, "an engine that multiplies")
    assert f"KL {token}; one static scale for all {static};" in said and f"`mergequant`, {merged}" in said
    pruned = value("nirvana", "uniform, sparsity 0.1: NIRVANA")
    assert f"costs {decimals(pruned, 2)} nats" in reason(rows, "a model that must have fewer")
    ours = read("results/block_quantization.json")["ours"]
    assert "BFP16 keys: 0.0006" in ours and "from 0.199 to 0.169" in ours
    assert "KL .0006 for keys; `bfp12` .17" in reason(rows, "long texts")


def test_what_calibration_texts_did():
    kl = {f["subject"]: f["value"] for f in read("results/outliers_and_calibration.json")["figures"]
          if f["quantity"] == "KL, wikitext2:test"}  # fmt: skip
    page = (ROOT / "docs/compression.md").read_text(encoding="utf-8")
    texts, model = ("c4_sample", "mbpp:train", "random_punctuation"), "SmolLM2-135M"
    said = " ".join(page[page.index("What we found on SmolLM2 135M") :].split())
    english, python, nonsense = (f"{kl[f'{model}, gptq:w3g64 on {text}']:.2f}" for text in texts)
    assert f"the KL is {english}, on Python (`mbpp:train`) {python}, on random punctuation {nonsense};" in said
    assert f"reads nothing, has {kl[f'{model}, rtn:w3g64']:.2f}." in said
    injected = f"{model} with injected outliers"
    for place in (model, injected):
        smooth = [kl[f"{place}, smoothquant:w8a8 on {text}"] for text in texts]
        assert {decimals(min(smooth), 3), decimals(max(smooth), 3)} == {".026", ".027"}
    plain, grown = ([kl[f"{m}, rtn:w8a8-static on {text}"] for text in texts] for m in (model, injected))
    assert f"It costs {min(plain):.1f} to {max(plain):.1f} on the model as it is" in said
    assert f"and {min(grown):.1f} to {max(grown):.1f} with six channels" in said
