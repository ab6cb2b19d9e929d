"""KL, perplexity and flips: against scipy, over any cut of a window, and between two real runtimes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from byte_tokenizer import PieceTokenizer
from scipy.special import rel_entr

from likely.compression import CalibrationSet, RememberedRows, compare, compare_all, evaluate
from likely.compression.evaluate import compare_rows, log_softmax
from likely.errors import ModelError
from likely.runtimes.toy import ToyRuntime


@dataclass
class Toy:
    runtime: ToyRuntime
    tokenizer: PieceTokenizer


def toy(seed):
    tokenizer = PieceTokenizer([bytes([97 + i]) for i in range(12)])
    return Toy(ToyRuntime.random(tokenizer.vocab_size, seed=seed, context_length=64), tokenizer)


@pytest.fixture(scope="module")
def two():
    return toy(1), toy(2)


@pytest.fixture(scope="module")
def data():
    ids = np.random.default_rng(3).integers(0, 12, (3, 20))
    return CalibrationSet(ids, "bytes", "random bytes")


def test_kl_is_scipys_and_has_a_direction():
    rng = np.random.default_rng(0)
    p, q = (log_softmax(3 * rng.standard_normal((7, 50))) for _ in range(2))
    following = rng.integers(0, 50, 7)
    found = compare_rows(p, q, following)
    expected = rel_entr(np.exp(p.astype(np.float64)), np.exp(q.astype(np.float64))).sum(axis=1)
    assert np.allclose(found.kl, expected, atol=1e-5)
    assert not np.allclose(compare_rows(q, p, following).kl, expected, atol=1e-2)
    assert np.array_equal(found.reference, p[np.arange(7), following].astype(np.float64))
    assert (found.agrees == (p.argmax(1) == q.argmax(1))).all()


def test_an_impossible_token_costs_nothing_and_nan_is_an_error():
    p = np.log(np.array([[1, 0.0, 0], [0.5, 0.5, 0]], np.float32) + np.float32(0), where=[[1, 0, 0], [1, 1, 0]],
               out=np.full((2, 3), -np.inf, np.float32))  # fmt: skip
    assert compare_rows(p, p, np.array([0, 1])).kl.tolist() == [0, 0]
    with pytest.raises(ValueError, match="not a number"):
        compare_rows(p, np.full_like(p, np.nan), np.array([0, 1]))


def test_a_model_against_itself_is_at_zero(two, data):
    report = compare(two[0], two[0], data)
    assert report.kl == report.kl_max == report.log_ratio == 0 and report.top1 == 1
    assert report.perplexity == report.reference_perplexity


def test_the_report_is_what_the_definitions_say(two, data):
    reference, candidate = two
    report = compare(reference, candidate, data)
    kl, ours, theirs = [], [], []
    for window in data.input_ids:
        p, q = (log_softmax(np.stack([row for row in rows_of(model, window)])) for model in two)
        kl.append(rel_entr(np.exp(p.astype(float)), np.exp(q.astype(float))).sum(axis=1))
        at = np.arange(len(window) - 1)
        theirs.append(p[at, window[1:]])
        ours.append(q[at, window[1:]])
    assert report.kl == pytest.approx(np.mean(kl), abs=1e-5)
    assert report.kl_se == pytest.approx(np.std(np.mean(kl, axis=1), ddof=1) / np.sqrt(3), abs=1e-5)
    assert report.perplexity == pytest.approx(np.exp(-np.mean(ours)), rel=1e-5)
    assert report.log_ratio == pytest.approx(np.mean(theirs) - np.mean(ours), abs=1e-5)
    assert report.delta_p == pytest.approx((np.exp(ours) - np.exp(theirs)).mean(), abs=1e-6)
    assert (report.tokens, report.windows, report.length) == (3 * 19, 3, 20)


def rows_of(model, window):
    from likely.runtimes.protocol import Want, Work

    sequence = model.runtime.open()
    for token in window[:-1]:
        yield model.runtime.forward([Work(sequence, np.array([token]), want=Want.LAST)])[0].logits[0]
    model.runtime.close(sequence)


@pytest.mark.parametrize("skip", [1, 5, 19])
def test_pieces_and_a_remembered_reference_change_nothing(two, data, skip, monkeypatch):
    whole = compare(*two, data, skip=skip)
    monkeypatch.setattr(evaluate, "PIECE_BYTES", 4 * two[0].runtime.vocab_size * 3)
    assert compare(*two, data, skip=skip) == whole
    remembered = RememberedRows(two[0], data)
    assert remembered.compare(two[1], skip=skip) == whole
    remembered.close()
    assert whole.tokens == 3 * (20 - skip)


def test_several_candidates_in_one_pass(two, data):
    both = compare_all(two[0], {"a": two[1], "itself": two[0]}, data)
    assert both["a"] == compare(*two, data) and both["itself"].kl == 0


def test_what_cannot_be_compared_is_refused(two, data):
    with pytest.raises(ModelError, match="another tokenizer"):
        compare(two[0], Toy(two[1].runtime, PieceTokenizer([b"a"])), data)
    with pytest.raises(ModelError, match="do not fit"):
        compare(*two, CalibrationSet(np.zeros((1, 65), np.int64), "long", ""))
    with pytest.raises(ValueError, match="skip"):
        compare(*two, data, skip=20)
    assert compare(*two, CalibrationSet(data.input_ids[:1], "one", "")).kl_se is None
