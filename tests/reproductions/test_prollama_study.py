"""The study of ProLLaMA with a step or two: its split, its tokenizer, its judges."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scripts import script

pytest.importorskip("peft")
pytest.importorskip("pyhmmer")


@pytest.fixture(scope="module")
def families():
    return script("protein_families")


def test_near_neighbours_stand_on_one_side(families):
    split = families.similarity_split(12)
    known = [{r.sequence[i : i + 3] for i in range(len(r.sequence) - 2)} for r in split.train]
    assert max(families.nearest_overlap(r.sequence, known) for r in split.test) <= 0.5
    assert {r.superfamily for r in split.test} == set(split.families) and len(split.families) == 6
    assert families.nearest_overlap(split.train[0].sequence, known) == 1  # the negative control


def test_symbols_are_whole(families):
    names = ["HPr domain", "HPr"]
    tokenizer = families.SymbolTokenizer(names)
    text = "[Determine superfamily] Seq=<MKHPR> Superfamily=<HPr domain>"
    ids = tokenizer.encode(text)
    assert "".join(map(tokenizer.token_text, ids)) == text and tokenizer.symbols.index("HPr domain") in ids
    with pytest.raises(ValueError, match="no symbol"):
        tokenizer.encode("é")


def test_substitutions_are_at_the_same_places(families):
    rng = np.random.default_rng(0)
    liked, random = families.substituted("MKLVDEWYC", 3, rng)
    places = [i for i, (a, b) in enumerate(zip("MKLVDEWYC", liked, strict=True)) if a != b]
    assert places == [i for i, (a, b) in enumerate(zip("MKLVDEWYC", random, strict=True)) if a != b]
    assert len(places) == 3 and all(liked[i] in families.CONSERVATIVE["MKLVDEWYC"[i]] for i in places)
    assert families.substituted("CCGGPP", 1, rng) is None  # nothing is like them


def test_every_judge_speaks_and_cells_are_kept(tmp_path):
    study = script("prollama")
    size = dataclasses.replace(study.SMOKE, most=4, epochs1=0.5, epochs2=0.5, samples=1)
    found = study.study(size, kept=tmp_path / "cells.jsonl", lora=False, said=lambda line: None)
    values = {(f.subject, f.quantity): f.value for f in found.figures}
    for way in study.WAYS:
        assert {q for s, q in values if s == way} == {
            "determined", "perplexity", "kmers", "profiles", "closed", "copies", "length"
        }  # fmt: skip
    assert 15 < values["frequencies of residues", "perplexity"] < 20
    assert len(found.checks) == 7
    again = study.study(size, kept=tmp_path / "cells.jsonl", lora=False, said=pytest.fail)
    assert [f.value for f in again.figures] == [f.value for f in found.figures]
