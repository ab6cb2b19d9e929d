"""Real models in the forms that the comparisons need, made once per run."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

import likely
from likely.models.convert import convert


@pytest.fixture(scope="session")
def folder(tmp_path_factory, smollm2_path) -> Path:
    """SmolLM2 as a transformers folder (fp32, the numbers of the GGUF file)."""
    target = tmp_path_factory.mktemp("smollm2") / "hf"
    convert(smollm2_path, target, to="safetensors", verify=False)
    return target


@pytest.fixture(scope="session")
def f32(tmp_path_factory, smollm2_path) -> Path:
    """SmolLM2 as an F32 GGUF file of the same weights."""
    target = tmp_path_factory.mktemp("smollm2") / "f32.gguf"
    convert(smollm2_path, target, to="f32", verify=False)
    return target


@pytest.fixture(scope="session")
def oracle(folder):
    with likely.load(str(folder), runtime="torch", dtype="float32") as lm:
        yield lm


@pytest.fixture(scope="session")
def packaged(smollm2_path):
    with likely.load("smollm2", runtime="llamacpp", invariant=True) as lm:
        yield lm


@pytest.fixture(scope="session")
def strings(data_dir) -> list[str]:
    """200 fixed strings: encyclopaedia, code, and 14 languages."""
    with gzip.open(data_dir / "wikitext2" / "wiki.valid.raw.gz", "rt", encoding="utf-8") as lines:
        prose = [line.strip()[:64] for line in lines if len(line) > 200][:100]
    with gzip.open(data_dir / "mbpp" / "mbpp.test.jsonl.gz", "rt", encoding="utf-8") as lines:
        code = [json.loads(line)["code"][:60] for line in lines][:60]
    with gzip.open(data_dir / "udhr" / "udhr.jsonl.gz", "rt", encoding="utf-8") as lines:
        rows = [json.loads(line)["text"].split("\n") for line in lines]
    languages = [text[:24] for row in rows for text in row[4:7]]
    found = [*prose, *code, *languages[:40]]
    assert len(found) == 200
    return found


@pytest.fixture(scope="session")
def arc(data_dir) -> list[tuple[str, list[str]]]:
    with gzip.open(data_dir / "arc-easy" / "test.jsonl.gz", "rt", encoding="utf-8") as lines:
        records = [json.loads(line) for line in lines][:50]
    return [(f"Question: {r['question']}\nAnswer:", [f" {c}" for c in r["choices"]]) for r in records]
