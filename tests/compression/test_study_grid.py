"""The grid of a study: every cell once, the same for one seed, shared where nothing differs, resumed from its file."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from tiny_gguf import write_tiny_llama

from likely.compression.study.evaluations import KEPT, LikelihoodEvaluation
from likely.compression.study.grid import CellFile, StudyGrid, StudyMethod, StudyModel, run_grid
from likely.errors import DataError

METHODS = tuple(StudyMethod.parse(name) for name in ("rtn:w4g32", "gptq:w4g32"))


@dataclass
class Counted:
    """An evaluation that counts its calls: how many weights a candidate changed."""

    name: str = "changed"
    calls: list[str] = field(default_factory=list)
    version: int = 1

    def key(self, original):
        return {"changed": self.version}

    def measure(self, original, candidate):
        self.calls.append(candidate.settings["method"])
        pairs = zip(original.module.parameters(), candidate.module.parameters(), strict=True)
        return {"share": sum(float((a != b).float().mean()) for a, b in pairs)}

    def close(self):
        pass


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return StudyModel.open(write_tiny_llama(tmp_path_factory.mktemp("study") / "tiny.gguf", tied=True))


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    for name, line in (("cats.txt", "the cat sat on the mat and the other cats sat there too. "),
                       ("numbers.txt", "one 1 two 22 three 333 four 4444 five 55555; ")):  # fmt: skip
        (folder / name).write_text(line * 60)
    return [str(folder / "cats.txt"), str(folder / "numbers.txt")]


@pytest.fixture(scope="module")
def held_out(tmp_path_factory):
    path = tmp_path_factory.mktemp("held") / "out.txt"
    path.write_text("then they went on and on with the thing that they had done in the sun. " * 20)
    return str(path)


def grid(texts, *evaluations, methods=METHODS, **options):
    return StudyGrid(methods, texts, evaluations, **{"windows": 4, "length": 16, **options})


def test_a_row_for_every_cell_and_one_for_a_method_that_reads_no_text(model, texts, held_out):
    counted = Counted()
    rows = run_grid([model], grid(texts, counted, LikelihoodEvaluation(held_out, 2, 16), draws=2))
    assert [(r.method, r.calibration, r.draw) for r in rows if r.evaluation == "changed"] == [
        ("rtn:w4g32", None, None),
        *(("gptq:w4g32", text, draw) for text in texts for draw in (0, 1)),
    ]
    assert counted.calls == ["rtn"] + 4 * ["gptq"]
    likelihoods = [r for r in rows if r.evaluation == held_out]
    assert len(likelihoods) == 5 and all(set(KEPT) == set(r.numbers) and r.numbers["kl"] > 0 for r in likelihoods)
    assert rows[0].to_dict()["share"] == rows[0].numbers["share"] > 0


def test_the_same_seeds_give_the_same_table(model, texts):
    one, again = (run_grid([model], grid(texts[:1], LikelihoodEvaluation(texts[1], 2, 16))) for _ in range(2))
    assert one == again and len({r.numbers["kl"] for r in one}) == 3


def test_a_run_that_was_cut_goes_on_from_its_file(model, texts, tmp_path):
    path, first, second = tmp_path / "cells.jsonl", Counted(), Counted()
    with CellFile(path) as cells:
        rows = run_grid([model], grid(texts, first), cells=cells)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:3]) + lines[3][:20])
    with CellFile(path) as cells:
        assert run_grid([model], grid(texts, second), cells=cells) == rows
        assert cells.seconds_used == pytest.approx(sum(cells.seconds.values())) and cells.seconds_used > 0
    again = [json.loads(line) for line in path.read_bytes().splitlines()]
    assert [r["cell"] for r in again] == [json.loads(line)["cell"] for line in lines]
    assert len(second.calls) == len(lines) - 3 == 2
    assert again[1]["numbers"] == rows[1].numbers and again[1]["calibration"] == texts[0]


def test_cells_are_shared_where_nothing_differs_and_measured_anew_where_something_does(model, texts, tmp_path):
    copied = tmp_path / "copy.txt"
    copied.write_bytes(Path(texts[0]).read_bytes())
    cells, counted = CellFile(), Counted()
    run_grid([model], grid([texts[0], str(copied)], counted, draws=1), cells=cells)
    assert counted.calls == ["rtn", "gptq"]  # the same tokens under another name
    run_grid([model], grid(texts[:1], Counted(version=2), draws=1), cells=cells)
    run_grid([model], grid(texts[:1], counted, methods=[StudyMethod.parse("rtn:w3g32")]), cells=cells)
    assert len(cells.known) == 2 + 2 + 1


def test_cells_of_another_model_are_others(model, texts, tmp_path):
    other = StudyModel.open(write_tiny_llama(tmp_path / "other.gguf", seed=5, tied=True))
    assert other.digest != model.digest
    counted = Counted()
    rows = run_grid([model, other], grid(texts, counted, methods=METHODS[:1]))
    assert len(counted.calls) == len(rows) == 2


def test_lines_tell_how_far_it_is(model, texts):
    said: list[str] = []
    run_grid([model], grid(texts[:1], Counted(), draws=1), said=said.append)
    assert said[0].startswith("1/2 ") and said[1].startswith("2/2 ") and "draw 0: share" in said[1]


def test_what_reads_no_text_is_the_same_with_every_set_and_what_reads_it_is_not(model, texts):
    sets = [grid([text], Counted()).text(model, text, 0) for text in texts]
    for name, same in (("rtn:w4g32", True), ("rtn:w8a8", True), ("gptq:w4g32", False), ("rtn:w8a8-static", False)):
        one, other = (StudyMethod.parse(name).apply(model, chosen).module.state_dict() for chosen in sets)
        assert all(map(torch.equal, one.values(), other.values())) == same, name


def test_methods_are_named_with_scheme_or_sparsity():
    assert StudyMethod.parse("smoothquant").name == "smoothquant:w8a8"
    assert StudyMethod.parse("nirvana:0.3").sparsity == 0.3 and StudyMethod.parse("magnitude").name == "magnitude:0.2"
    reading = {name: StudyMethod.parse(name).reads_text for name in ("rtn:w4", "rtn:w8a8", "rtn:w8a8-static", "awq")}
    assert list(reading.values()) == [False, False, True, True]
    for wrong, message in (
        ("gptk:w4", 'did you mean "gptq"'), ("gptq:4", "not understood"), ("nirvana:w4", "0.2"), ("nirvana:2", "0.2"),
        ("magnitude:nan", "0.2"), ("mergequant:w4g64", "w4a4"), ("smoothquant:w8", "w8a8"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            StudyMethod.parse(wrong)


def test_what_makes_no_grid_is_refused(texts, tmp_path):
    for options, message in (
        ({"draws": 0}, "at least 1"), ({"methods": METHODS[:1] * 2}, "named twice"), ({"methods": ()}, "one method"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            grid(texts, Counted(), **options)
    with pytest.raises(ValueError, match="judge on text that was held out"):
        grid([texts[0], f"{texts[1]}+changed"], Counted())
    wrong = tmp_path / "other.jsonl"
    wrong.write_text('{"prompt": "a"}\n')
    with pytest.raises(DataError, match=r"other\.jsonl:1: no cell of a study"), CellFile(wrong):
        pass
    assert wrong.read_text() == '{"prompt": "a"}\n'
