"""The study of SIFT on a tiny model: its rows, differences and checks, and that kept rows are not measured again."""

from __future__ import annotations

import pytest

pytest.importorskip("peft")

from scripts import script
from tiny_gguf import write_tiny_llama

import likely
from likely.alignment.labelling.spans import SpanCounts
from likely.errors import DataError
from likely.evidence import Source


@pytest.fixture(scope="module")
def study():
    return script("sift")


@pytest.mark.slow
def test_the_study_runs_and_goes_on_from_its_rows(study, tmp_path):
    try:
        study.sentences_of("train", study.INTENTS, 1, 0)
    except DataError as error:
        pytest.skip(str(error))
    path = write_tiny_llama(tmp_path / "tiny.gguf", dim=32, context=2048)
    size = study.Size(sentences=6, test=1, tokens=300, epochs=1, seeds=1)
    with likely.load(str(path), runtime="torch", threads=1) as lm:
        lines = []
        found = [
            study.study(
                lm, size=size, intents=study.INTENTS, full=False, kept=tmp_path / "kept",
                models=[Source(name="none", sha256="0" * 64)], data=[], report=lines.append,
            )
            for _ in range(2)
        ]  # fmt: skip
    one, again = found
    assert one.id == "sift" and one.mode == "quick" and len(one.checks) == 7 and len(lines) == 2 * len(study.ARMS)
    assert [f.value for f in one.figures] == [f.value for f in again.figures]
    by = {check.statement: check for check in one.checks}
    assert by["responses of constrained decoding that cannot be read or have no end"].value == 0
    assert by["the loss on all responses less the sum of the losses on each, relative"].holds


def test_differences_are_of_the_same_sentences(study):
    good, bad = [SpanCounts(1, 1, 1)] * 30, [SpanCounts(0, 1, 1)] * 30
    assert study.difference(good, bad) == (1.0, 1.0, 1.0)
    mixed = [SpanCounts(i % 2, 1, 1) for i in range(30)]
    assert study.difference(mixed, mixed) == (0.0, 0.0, 0.0)
    value, low, high = study.difference(good, mixed)
    assert value == 0.5 and 0.2 < low < value < high < 0.8
