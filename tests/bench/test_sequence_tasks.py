"""Every sequence task is solved by an oracle that reads its inputs alone; its chance level is what a guess scores."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import chisquare

from likely.bench.sequence import (
    TASKS,
    listops_value,
    make_bytes,
    make_copy,
    make_delay,
    make_digits,
    make_forecast,
    make_induction,
    make_listops,
    make_modular_sum,
    make_mqar,
    make_paths,
    make_recall,
    make_reconstruction,
    make_selective_copy,
)
from likely.bench.sequence.computation import LISTOPS
from likely.errors import DataError

RARE = 1e-6  # false alarm rate of a test of a distribution
TEXT = bytes(range(32, 127)) * 120
SERIES = np.cumsum(np.random.default_rng(0).standard_normal((400, 3)), 0)
SMALL = {
    "induction": {"length": 32}, "listops": {"depth": 3, "shortest": 5, "longest": 40}, "bytes": {"text": TEXT},
    "forecast": {"series": SERIES, "lookback": 20, "horizon": 4}, "paths": {"side": 12, "steps": 8, "distractors": 1},
}  # fmt: skip


@pytest.fixture(params=sorted({task.make for task in TASKS.values()}, key=lambda make: make.__name__))
def make(request):
    size = SMALL.get(request.param.__name__.removeprefix("make_"), {})
    return lambda n, seed, **given: request.param(n, seed, **{**size, **given})


def same(a, b):
    return a.inputs.shape == b.inputs.shape and bool((a.inputs == b.inputs).all())


def test_examples_depend_on_seed_and_split_alone(make):
    first = make(6, 3)
    again = make(6, 3)
    assert same(first, again) and np.array_equal(first.targets, again.targets, equal_nan=True)
    assert first.meta == again.meta
    others = [make(6, 4), *(make(6, 3, split=split) for split in ("validation", "test"))]
    assert not any(same(a, b) for a, b in itertools.combinations([first, *others], 2))


def test_arrays_are_what_the_meta_says(make):
    inputs, targets, meta = made = make(6, 0)
    n, length = inputs.shape[:2]
    assert n == 6 and made.mask.shape == (n, length) and meta.chance > 0
    if meta.inputs == "tokens":
        assert inputs.ndim == 2 and inputs.dtype == np.int64 and 0 <= inputs.min() <= inputs.max() < meta.vocabulary
    else:
        assert inputs.shape[2] == meta.channels and inputs.dtype == np.float32
    shape = {
        "tokens": (n, length), "class": (n,), "values": (n, length, meta.outputs), "last values": (n, meta.outputs)
    }[meta.targets]  # fmt: skip
    assert targets.shape == shape
    if meta.targets in ("tokens", "class"):
        known = targets[targets != -100]
        assert known.size and 0 <= known.min() <= known.max() < meta.outputs


@pytest.mark.parametrize(("wrong", "said"), [({"n": 0}, "n must be"), ({"seed": -1}, "seed must be"),
                                             ({"split": "training"}, "did you mean")])  # fmt: skip
def test_wrong_arguments_are_refused(make, wrong, said):
    with pytest.raises(ValueError, match=said):
        make(**{"n": 2, "seed": 0, **wrong})


def best_constant(examples):
    return max(Counter(examples.targets[examples.targets != -100].tolist()).values()) / (examples.targets != -100).sum()


@pytest.mark.parametrize(
    ("make", "size"),
    [(make_copy, {"blanks": 3}), (make_selective_copy, {"blanks": 3, "vocabulary": 5}), (make_induction, {"length": 9}),
     (make_mqar, {"length": 16, "pairs": 4, "vocabulary": 12}), (make_recall, {"length": 9, "pairs": 4}),
     (make_modular_sum, {"length": 20}), (make_modular_sum, {"length": 20, "modulus": 5})],
)  # fmt: skip
def test_chance_is_what_the_best_constant_answer_gets(make, size):
    found = make(5000, 0, **size)
    n = (found.targets != -100).sum()
    assert best_constant(found) == pytest.approx(found.meta.chance, abs=6 / n**0.5)


# --- memory ---


def test_copied_ids_come_back_at_one_lag():
    inputs, targets, meta = make_copy(50, 0, tokens=5, blanks=7, vocabulary=6)
    assert inputs.shape == (50, 17) and (targets[:, :12] == -100).all()
    assert (targets[:, 12:] == inputs[:, :5]).all() and (inputs[:, 12:] == meta.vocabulary - 1).all()
    assert (inputs[:, 5:12] == 6).all()


def test_selective_copy_is_solved_by_skipping_blanks_and_by_no_lag():
    inputs, targets, _ = make_selective_copy(4000, 0, tokens=4, blanks=12, vocabulary=8)
    for row, target in zip(inputs, targets, strict=True):
        assert target[-4:].tolist() == [t for t in row.tolist() if t < 8]
    places = (inputs[:, :16] < 8).sum(0)  # every place alike
    assert chisquare(places).pvalue > RARE
    shares = [(targets[:, 16:] == inputs[:, 16 - lag : 20 - lag]).mean() for lag in range(1, 17)]
    assert max(shares) < 0.3


def test_induction_is_solved_by_looking_after_the_special_id():
    inputs, targets, _ = make_induction(500, 0, length=20, vocabulary=7)
    for row, target in zip(inputs.tolist(), targets, strict=True):
        assert row.count(7) == 2 and row[-1] == 7 and row.index(7) < 10
        assert target[-1] == row[row.index(7) + 1] and (target[:-1] == -100).all()


@pytest.mark.parametrize("filler", ["zeros", "random"])
def test_mqar_is_solved_by_a_dictionary(filler):
    inputs, targets, _ = make_mqar(500, 0, length=32, pairs=5, vocabulary=40, filler=filler)
    for row, target in zip(inputs.tolist(), targets.tolist(), strict=True):
        pairs = dict(zip(row[0:10:2], row[1:10:2], strict=True))
        assert len(pairs) == 5 and len(set(pairs.values())) == 5
        assert all(1 <= k < 20 <= v < 40 for k, v in pairs.items())
        asked = [t for t, wanted in enumerate(target) if wanted != -100]
        assert sorted(row[t] for t in asked) == sorted(pairs) and all(t >= 10 and t % 2 == 0 for t in asked)
        assert all(target[t] == pairs[row[t]] for t in asked)
        assert all(row.count(key) == 2 for key in pairs)
        assert filler == "random" or all(row[t] == 0 for t in range(10, 32) if t not in asked)


def test_gaps_of_mqar_follow_successive_draws_with_power_law_weights():
    n, pairs, room = 20_000, 2, 5
    inputs, _, _ = make_mqar(n, 0, length=2 * (pairs + room), pairs=pairs, vocabulary=8)
    weights = np.arange(1, room + 1) ** (0.01 - 1)
    p = weights / weights.sum()
    places = (inputs[:, None, 2 * pairs :] == inputs[:, [0, 2], None]).argmax(-1) // 2  # (n, 2) gap of each key
    found = Counter(map(tuple, places.tolist()))
    cells = list(itertools.permutations(range(room), 2))
    expected = [n * p[a] * p[b] / (1 - p[a]) for a, b in cells]
    assert sum(found.values()) == sum(found[c] for c in cells)
    assert chisquare([found[c] for c in cells], expected).pvalue > RARE


def test_recall_asks_for_one_key_at_the_end():
    inputs, targets, _ = make_recall(300, 0, length=15, pairs=6, vocabulary=30, filler="random")
    for row, target in zip(inputs.tolist(), targets.tolist(), strict=True):
        assert target[-1] == dict(zip(row[0:12:2], row[1:12:2], strict=True))[row[-1]] and set(target[:-1]) == {-100}


@pytest.mark.parametrize(
    ("call", "said"),
    [(lambda: make_mqar(1, 0, length=31), "even"), (lambda: make_mqar(1, 0, length=28), "4·pairs = 32"),
     (lambda: make_mqar(1, 0, pairs=40, length=512), "vocabulary of >= 82"),
     (lambda: make_recall(1, 0, length=16), "2·pairs"),
     (lambda: make_mqar(1, 0, filler="noise"), "zeros"), (lambda: make_copy(1, 0, blanks=0), "blanks must be >= 1"),
     (lambda: make_delay(1, 0, length=8, lag=8), "lag must be < length"), (lambda: make_digits(2000, 0), "1257"),
     (lambda: make_delay(1, 0, band=0), "band"), (lambda: make_reconstruction(1, 0, length=8, window=9), "window"),
     (lambda: make_listops(1, 0, depth=2, arguments=2, shortest=30, longest=40), "almost never"),
     (lambda: make_listops(1, 0, shortest=9, longest=8), "shortest"), (lambda: make_paths(1, 0, side=4), "side"),
     (lambda: make_paths(2, 0, side=8, steps=30, distractors=6), "do not fit"),
     (lambda: make_modular_sum(1, 0, modulus=1), "modulus")],
)  # fmt: skip
def test_sizes_that_cannot_be_are_refused(call, said):
    with pytest.raises(ValueError, match=said):
        call()


# --- computation ---


@pytest.mark.parametrize("modulus", [2, 3, 7])
def test_modular_sums_are_running_sums(modulus):
    inputs, targets, _ = make_modular_sum(20, 0, length=30, modulus=modulus)
    for row, target in zip(inputs.tolist(), targets.tolist(), strict=True):
        total = 0
        for digit, wanted in zip(row, target, strict=True):
            total += digit
            assert wanted == total % modulus


def evaluated(ids):
    """An independent reading: the text as a Python expression."""
    operators = {
        "MIN": min, "MAX": max, "SM": lambda values: sum(values) % 10,
        "MED": lambda values: (sorted(values)[(len(values) - 1) // 2] + sorted(values)[len(values) // 2]) // 2,
    }  # fmt: skip
    text = " ".join(LISTOPS[i] for i in ids)
    text = re.sub(r"\[(\w+)", r"\1([", text).replace(" ]", "])")
    text = re.sub(r"(?<=[\d)]) ", ", ", text)
    return eval(text, {"__builtins__": {}}, operators)


@pytest.mark.parametrize(
    ("text", "value"),
    [("[MED 1 2 ]", 1), ("[MED 9 0 5 ]", 5), ("[MED 4 1 7 2 ]", 3), ("[SM 9 9 9 ]", 7), ("[MIN 3 [MAX 1 2 ] ]", 2),
     ("[MAX 2 [MED 8 7 ] [SM 5 6 ] ]", 7)],
)  # fmt: skip
def test_listops_values_known_by_hand(text, value):
    ids = [LISTOPS.index(word) for word in text.split()]
    assert listops_value(ids) == value == evaluated(ids)


@pytest.mark.parametrize("text", ["[MED 1 2", "1 2", "[MIN 1 ] ]", "] 1", "pad"])
def test_what_is_no_expression_has_no_value(text):
    with pytest.raises(ValueError, match="not an expression"):
        listops_value([LISTOPS.index(word) for word in text.split()])


def test_listops_trees_have_their_values_lengths_and_depth():
    inputs, targets, meta = made = make_listops(300, 0)
    lengths = made.mask.sum(1)
    assert lengths.min() >= 30 and lengths.max() <= 150 and inputs.shape == (300, 150)
    for row, value, length in zip(inputs.tolist(), targets.tolist(), lengths.tolist(), strict=True):
        ids = row[:length]
        assert evaluated(ids) == value and set(row[length:]) <= {0}
        depths = np.cumsum([(i in range(11, 15)) - (i == 15) for i in ids])
        assert depths.max() <= 4  # operators at depths 1 to 4, digits at 5
    assert meta.chance == np.bincount(targets).max() / 300
    assert set(np.unique(inputs)) == set(range(16))


def test_listops_nodes_are_drawn_as_defined():
    inputs, _, _ = make_listops(4000, 0, depth=3, arguments=4, shortest=4, longest=40)
    children, operators, counts = 0, 0, Counter()
    for row in inputs.tolist():
        depth, below = 0, 0
        for token in row:
            if depth == 1 and 1 <= token <= 14:
                below += 1
                operators += token >= 11
            depth += (11 <= token <= 14) - (token == 15)
        children += below
        counts[below] += 1
    assert chisquare([counts[k] for k in (2, 3, 4)]).pvalue > RARE
    assert chisquare([operators, children - operators], [children / 4, 3 * children / 4]).pvalue > RARE
    assert chisquare(np.bincount(inputs.ravel(), minlength=16)[11:15]).pvalue > RARE


# --- pictures and signals ---


def joined(picture):
    """Whether cells no more than two apart, from one dot on, reach the other."""
    cells = set(zip(*np.nonzero(picture), strict=True))
    dots = [c for c in cells if picture[c] == 1]
    assert len(dots) == 2
    reached, edge = {dots[0]}, [dots[0]]
    while edge:
        x, y = edge.pop()
        new = {(a, b) for a, b in cells - reached if max(abs(a - x), abs(b - y)) <= 2}
        reached |= new
        edge += new
    return dots[1] in reached, (dots[0][0] - dots[1][0]) ** 2 + (dots[0][1] - dots[1][1]) ** 2


def test_paths_are_solved_by_following_them_and_distance_tells_nothing():
    inputs, classes, meta = make_paths(300, 0)
    found = [joined(row.reshape(16, 16)) for row in inputs]
    assert [reached for reached, _ in found] == classes.astype(bool).tolist()
    assert classes.sum() == 150 and meta.chance == 0.5
    each = {label: Counter(d for (_, d), c in zip(found, classes, strict=True) if c == label) for label in (0, 1)}
    assert each[0] == each[1] and len(each[0]) > 10  # equal at every distance
    assert len(set(inputs.sum((1, 2)).tolist())) == 1  # and neither does the brightness


def test_an_odd_number_of_pictures_differs_by_one():
    assert abs(2 * make_paths(7, 1, side=12, steps=8).targets.sum() - 7) == 1


def test_the_delayed_signal_is_band_limited_with_variance_one():
    inputs, targets, _ = make_delay(200, 0, length=256, lag=40, band=0.25)
    assert np.isnan(targets[:, :40]).all() and (targets[:, 40:] == inputs[:, :-40]).all()
    assert inputs.var() == pytest.approx(1, abs=0.03) and abs(inputs.mean()) < 0.03
    power = (np.abs(np.fft.rfft(inputs[:, :, 0] * np.hanning(256), axis=1)) ** 2).mean(0)
    assert power[36:].sum() < 1e-3 * power.sum()  # 32 of 128 frequencies, and the window's width
    assert power[2:30].min() > 0.5 * power[2:30].max()


def test_reconstruction_wants_the_last_values():
    inputs, targets, meta = make_reconstruction(5, 0, length=64, window=16)
    assert (targets == inputs[:, 48:, 0]).all() and meta.outputs == 16


def test_digits_are_the_pictures_of_scikit_learn():
    datasets = pytest.importorskip("sklearn.datasets")
    known = datasets.load_digits()
    pictures = [image.tobytes() for image in known.images.astype(np.float32)]
    lookup = dict(zip(pictures, known.target, strict=True))
    seen = []
    for split, n in (("train", 1257), ("validation", 180), ("test", 360)):
        inputs, classes, meta = make_digits(n, 0, split=split)
        images = (16 * inputs).astype(np.float32)
        assert [lookup[image.tobytes()] for image in images] == classes.tolist()
        assert meta.chance == np.bincount(classes).max() / n
        seen += [image.tobytes() for image in images]
    assert Counter(seen) == Counter(pictures)
    plain, mixed = make_digits(20, 0), make_digits(20, 0, permuted=True)
    assert (np.sort(plain.inputs, 1) == np.sort(mixed.inputs, 1)).all() and not same(plain, mixed)
    large = make_digits(20, 0, upsample=4).inputs.reshape(20, 8, 4, 8, 4)
    assert (large == plain.inputs.reshape(20, 8, 1, 8, 1)).all()


def test_bytes_are_windows_of_the_right_part_of_the_text():
    text = bytes([1]) * 900 + bytes([2]) * 50 + bytes([3]) * 50
    for split, byte in (("train", 1), ("validation", 2), ("test", 3)):
        inputs, targets, meta = make_bytes(9, 0, split=split, length=20, text=text)
        assert set(np.unique(inputs)) == set(np.unique(targets)) == {byte}
    assert meta.chance == pytest.approx(np.log2((900 + 256) / 1))  # the training part never shows byte 3
    running = make_bytes(9, 0, length=20, text=TEXT)
    assert (running.inputs[:, 1:] == running.targets[:, :-1]).all()
    with pytest.raises(DataError, match="take less"):
        make_bytes(1, 0, split="test", length=50, text=text)


def test_forecasts_continue_their_windows():
    series = np.arange(500.0)[:, None] * [1, -2]
    inputs, targets, meta = make_forecast(8, 0, lookback=30, horizon=5, series=series)
    whole = np.concatenate([inputs[:, :, 0], targets], 1)
    steps = np.diff(whole, axis=1)
    assert np.allclose(steps, steps[:, :1], atol=1e-5) and np.allclose(inputs.mean(1), 0, atol=1e-5)
    assert np.allclose(inputs.std(1), 1, atol=1e-4) and meta.outputs == 5
    with pytest.raises(DataError, match="take less"):
        make_forecast(1, 0, split="test", lookback=90, horizon=50, series=series)


def test_a_task_takes_only_sizes_it_knows():
    task = TASKS["mqar"].with_size("mqar", {"pairs": 4})
    assert task.examples(3, 0, "train").inputs.shape == (3, 64)
    with pytest.raises(DataError, match='no size "pair"; did you mean "pairs"'):
        task.with_size("mqar", {"pair": 4})
    with pytest.raises(DataError, match="pairs must be like 8"):
        task.with_size("mqar", {"pairs": "many"})


def test_every_task_is_in_the_guide():
    page = (Path(__file__).parents[2] / "docs" / "sequence-bench.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1] for line in page.splitlines() if line.startswith("| `")]
    assert {name for row in rows for name in re.findall(r"`(\w+)`", row)} == {*TASKS}
