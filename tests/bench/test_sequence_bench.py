"""The benchmark of layers: what it trains, measures, keeps and prints."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from likely.bench.sequence import (  # noqa: E402
    TASKS,
    Examples,
    SequenceTask,
    SequenceTraining,
    TaskMeta,
    apply_settings,
    compare_layers,
    evaluate,
    learn,
    make_listops,
    make_mqar,
    measure_state,
)
from likely.bench.sequence.comparison import STATE_AT, BenchColumn  # noqa: E402
from likely.bench.sequence.learning import batches, build_model, warm_cosine  # noqa: E402
from likely.errors import DataError  # noqa: E402
from likely.sequence.table import MIXERS  # noqa: E402
from likely.show.sequence import draw_layers, layers_page  # noqa: E402

TINY = SequenceTraining(width=16, depth=1, steps=4, batch=4, every=2)
SHORT = {"length": 16, "pairs": 2, "vocabulary": 16}
SMALL = {"mamba2": {"head_dim": 8, "d_state": 8}, "s4d": {"d_state": 8}}
MQAR = SequenceTask("values of keys", make_mqar, SHORT, test=8)
LISTOPS = SequenceTask(
    "values of lists", make_listops, {"depth": 3, "shortest": 4, "longest": 20}, train=10, test=8
)  # fmt: skip
META = TaskMeta("probe", "tokens", "tokens", 16, 1 / 16, vocabulary=16)


def small(names):
    return {name: own for name, own in SMALL.items() if name in names}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    kept = tmp_path_factory.mktemp("bench") / "cells.jsonl"
    rows, tasks = ["s4d", "mamba2+attention"], {"mqar": MQAR, "listops": LISTOPS}
    return kept, rows, tasks, compare_layers(rows, tasks, training=TINY, seeds=[0, 1], mixers=SMALL, kept=kept)


# --- one cell ---


class Table(torch.nn.Module):
    """Logits that do not depend on the inputs' order: row i of a matrix for id i."""

    def __init__(self, weights):
        super().__init__()
        self.weights = torch.as_tensor(weights)

    def forward(self, inputs, mask=None):
        return type("Output", (), {"logits": self.weights[inputs]})


def test_accuracy_counts_the_targets_that_are_not_ignored():
    inputs = np.array([[0, 1, 1], [0, 0, 1]])
    targets = np.array([[-100, 1, 0], [0, -100, 1]])
    examples = Examples(inputs, targets, TaskMeta("t", "tokens", "tokens", 2, 0.5, vocabulary=2))
    assert evaluate(Table([[1.0, 0], [0, 1]]), examples, batch=1) == 3 / 4


def test_bits_per_byte_are_those_of_the_probabilities():
    meta = TaskMeta("t", "tokens", "tokens", 2, 1.0, "bits per byte", vocabulary=2)
    examples = Examples(np.array([[0, 1]]), np.array([[0, 0]]), meta)
    logits = np.log([[0.5, 0.5], [0.25, 0.75]]).astype(np.float32)
    assert evaluate(Table(logits), examples) == pytest.approx((1 + 2) / 2)


def test_normalised_error_leaves_out_nan_and_is_one_for_zeros():
    meta = TaskMeta("t", "values", "values", 1, 1.0, "normalised MSE", channels=1)
    targets = np.array([[[np.nan], [2.0], [1.0]]], np.float32)
    examples = Examples(np.zeros((1, 3), np.int64), targets, meta)
    assert evaluate(Table([[0.0]]), examples) == 1
    assert evaluate(Table([[1.0]]), examples) == pytest.approx(1 / 5)


def test_the_rate_rises_then_falls_to_a_tenth():
    factors = [warm_cosine(step, 100) for step in range(101)]
    assert factors[0] == pytest.approx(0.1) and factors[9] == factors[10] == 1 and factors[100] == pytest.approx(0.1)
    assert factors[10:] == sorted(factors[10:], reverse=True)


def test_fixed_examples_are_all_seen_before_any_is_seen_again():
    training = SequenceTraining(steps=5, batch=4)
    seen = [row.tobytes() for batch in batches(LISTOPS, training, 0) for row in batch.inputs]
    whole = LISTOPS.examples(10, 0, "train").inputs
    assert sorted(seen[:10]) == sorted(seen[10:]) == sorted(row.tobytes() for row in whole)


def test_fresh_batches_differ_and_follow_the_seed():
    training = SequenceTraining(steps=3, batch=4)
    first, again, other = ([b.inputs.tobytes() for b in batches(MQAR, training, seed)] for seed in (0, 0, 1))
    assert first == again and len({*first, *other}) == 6


def test_learning_is_repeatable_leaves_the_global_generator_alone_and_learns():
    task = SequenceTask("last bit", TASKS["parity"].make, {"length": 2}, test=64)
    training = SequenceTraining(width=16, depth=1, steps=60, batch=16, every=30, learning_rate=1e-2)
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    one, two = (learn("mamba2", task, training, mixers=small(["mamba2"])) for _ in range(2))
    assert torch.equal(before, torch.random.get_rng_state())
    assert one == two and one.steps == [30, 60] and one.tokens == 60 * 16 * 2
    assert one.value > 0.9


def test_a_run_that_diverges_has_no_value():
    training = SequenceTraining(width=16, depth=1, steps=20, batch=4, every=5, learning_rate=1e30)
    found = learn("attention", MQAR, training)
    assert found.diverged and found.value is None


@pytest.mark.parametrize("name", MIXERS)
def test_the_bytes_said_are_the_bytes_a_state_holds(name):
    model = build_model(name, META, TINY, mixers=small([name]))
    for length in (1, 7, 40):
        measured = measure_state(model, length)
        if measured is None:
            assert not all(mixer.causal and mixer.state_kind != "none" for mixer in model.backbone.mixers)
        else:
            assert measured == sum(mixer.state_bytes(length) for mixer in model.backbone.mixers) > 0
            assert MIXERS[name].state_kind != "recurrent" or measured == measure_state(model, 40)


# --- the table ---


def test_every_cell_is_there_and_what_its_seed_gives(found):
    _, rows, tasks, comparison = found
    assert [row.layer for row in comparison.rows] == rows and not comparison.missing
    assert [column.task for column in comparison.columns] == [*tasks]
    cell = comparison.rows[1].cells["mqar"]
    assert cell.values == [learn(rows[1], MQAR, TINY, seed=s, mixers=SMALL).value for s in (0, 1)]
    assert cell.mean == np.mean(cell.values) and cell.sd == pytest.approx(np.std(cell.values, ddof=1))
    assert comparison.columns[0].chance == 1 / 8 and comparison.columns[0].length == 16


def test_finished_cells_are_not_computed_again(found, monkeypatch):
    kept, rows, tasks, comparison = found
    monkeypatch.setattr("likely.bench.sequence.comparison.learn", lambda *a, **b: pytest.fail("computed again"))
    again = compare_layers(rows, tasks, training=TINY, seeds=[0, 1], mixers=SMALL, kept=kept)
    assert again == comparison
    other = {**SMALL, "s4d": {"d_state": 4}}  # of one row only: the other's cells still count
    computed = []

    def learned(row, task, *_, **__):
        computed.append(row)
        raise KeyboardInterrupt

    monkeypatch.setattr("likely.bench.sequence.comparison.learn", learned)
    with pytest.raises(KeyboardInterrupt):
        compare_layers(rows, tasks, training=TINY, seeds=[0, 1], mixers=other, kept=kept)
    assert computed == ["s4d"]


def test_no_cell_is_begun_after_the_budget(tmp_path):
    ticks = iter(range(100))
    tasks = {"mqar": MQAR, "listops": LISTOPS}
    settings = {"training": TINY, "seeds": [0, 1], "mixers": small(["s4d"]), "kept": tmp_path / "cells.jsonl"}
    part = compare_layers(["s4d"], tasks, budget_s=2.5, clock=lambda: next(ticks), **settings)
    assert part.missing == ["s4d, mqar, 1", "s4d, listops, 1"]
    assert re.fullmatch(r"\d.* % \(1 of 2\)", part.cell_text(part.rows[0], part.columns[0]))
    whole = compare_layers(["s4d"], tasks, **settings)
    assert not whole.missing and whole.rows[0].cells["mqar"].values[0] == part.rows[0].cells["mqar"].values[0]


def test_state_bytes_of_the_table_are_measured(found):
    row = found[3].rows[0]
    model = build_model("s4d", META, TINY, mixers=SMALL)
    state = model.backbone(torch.zeros(1, STATE_AT, dtype=torch.int64), return_state=True).state
    assert row.state_bytes == sum(t.nbytes for layer in state.layers for t in layer.tensors.values())
    assert row.parameters == sum(p.numel() for p in model.backbone.layers.parameters())


@pytest.mark.parametrize(
    ("metric", "value", "sd", "text"),
    [("accuracy", 0.98123, 0.00312, "98.1 ± 0.3 %"), ("normalised MSE", 0.12345, None, "0.123"),
     ("bits per byte", 2.514, 0.01, "2.51 ± 0.01 bits"), ("accuracy", None, None, "")],
)  # fmt: skip
def test_values_are_written_with_their_unit(metric, value, sd, text):
    assert BenchColumn("t", "", metric, True, 1, 0.5).text(value, sd) == text


def test_table_page_and_picture_hold_every_layer_and_chance(found):
    pytest.importorskip("matplotlib")
    comparison = found[3]
    markdown, page = comparison.markdown(), layers_page(comparison)
    for row in comparison.rows:
        assert row.layer in markdown and row.layer in page and f"{row.state_bytes:,} B" in markdown
    assert "12.5 %" in markdown and page.count("<polyline") == 4 and "<script" not in page
    figure = draw_layers(comparison)
    lines = [line for axes in figure.axes for line in axes.get_lines()]
    assert len(lines) == 2 * (2 + 1)
    record = json.loads(json.dumps(comparison.to_dict(), allow_nan=False))
    assert record["rows"][0]["cells"]["mqar"]["mean"] == comparison.rows[0].cells["mqar"].mean


@pytest.mark.parametrize(
    ("call", "said"),
    [(lambda: compare_layers(["mamba3"]), 'unknown layer "mamba3"; did you mean "mamba'),
     (lambda: compare_layers([]), "needs layers"), (lambda: compare_layers(["s4d"], seeds=[1, 1]), "each seed once"),
     (lambda: compare_layers(["s4d"], mixers={"mamba2": {}}), "in no row"),
     (lambda: apply_settings({"mqr.pairs": 4}, TASKS), 'did you mean "mqar"'),
     (lambda: apply_settings({"mqar": 4}, TASKS), "sets nothing"),
     (lambda: SequenceTraining(steps=0), "steps must be positive")],
)  # fmt: skip
def test_what_cannot_be_compared_is_refused(call, said):
    with pytest.raises((ValueError, DataError), match=re.escape(said)):
        call()


def test_settings_reach_tasks_and_layers():
    tasks, mixers = apply_settings({"mqar.pairs": 4, "mamba2.head_dim": 16, "s4d.d_state": 8}, {"mqar": TASKS["mqar"]})
    assert tasks["mqar"].size == {"pairs": 4} and mixers == {"mamba2": {"head_dim": 16}, "s4d": {"d_state": 8}}
    assert not {*TASKS} & {*MIXERS}


@pytest.mark.slow
def test_speed_has_a_figure_of_every_kind(found):
    from likely.bench.sequence import measure_speed

    timed = measure_speed(found[3], lengths=(32,), training_length=8, rounds=2, mixers=SMALL)
    for row in timed.rows:
        assert [*row.speed] == ["train tokens/s", "prefill ms, 32", "step ms, 32", "MB, 32"]
        assert all(value >= 0 for value in row.speed.values())
    assert "train tokens/s" in timed.markdown()
