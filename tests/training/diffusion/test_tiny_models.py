"""Tasks and the training of tiny masked language models: what is drawn, that runs go on, what is kept."""

from __future__ import annotations

import itertools
import json
import re

import numpy as np
import pytest

from likely.errors import DataError
from likely.runtimes.torch.masked import MaskedPredictor, load_masked
from likely.tokenizers.huggingface import HFTokenizer
from likely.training.diffusion import (
    Addition,
    Shakespeare,
    Sudoku,
    TinySettings,
    make_task,
    task_of,
    train_tiny,
    trained_tiny,
)
from likely.training.diffusion.tasks import encode_examples, is_valid_grid, sudoku_grids

FEW = TinySettings(steps=6, width=16, layers=1, heads=2, batch=8, warmup=2, checkpoint_every=2)
TEXT = "To be, or not to be, that is the question: " * 30


def test_all_288_grids_are_there_by_brute_force():
    grids = sudoku_grids()
    assert len(set(grids)) == 288
    for grid in grids:
        cells = [[int(grid[4 * r + c]) for c in range(4)] for r in range(4)]
        groups = [[(r, c) for c in range(4)] for r in range(4)] + [[(r, c) for r in range(4)] for c in range(4)]
        groups += [[(2 * i + a, 2 * j + b) for a in (0, 1) for b in (0, 1)] for i in (0, 1) for j in (0, 1)]
        assert all({cells[r][c] for r, c in group} == {1, 2, 3, 4} for group in groups)
    assert not is_valid_grid("1234341221434322") and not is_valid_grid("123") and is_valid_grid(grids[0])


def test_held_out_grids_are_never_drawn_for_training():
    task, rng = Sudoku(), np.random.default_rng(3)
    train, test = ({answer for _, answer in task.draw(rng, 3000, held_out=held)} for held in (False, True))
    assert len(train) == 230 and len(test) == 58 and not train & test
    for prompt, answer in task.draw(rng, 50):
        assert 4 <= prompt.count(".") <= 12 and task.is_right(prompt, answer)
        assert not task.is_right(prompt, answer[::-1].replace("1", "2"))


def test_another_grid_that_keeps_the_clues_is_right_and_one_that_does_not_is_wrong():
    first, second = sudoku_grids()[:2]
    assert Sudoku().is_right("." * 16, second) and not Sudoku().is_right(first, second)


def test_addition_shows_its_work():
    task = Addition()
    assert task.worked(345, 678) == "5+8+0=13,4+7+1=12,3+6+1=10. The answer is 1023"
    rng = np.random.default_rng(0)
    pairs = [{prompt for prompt, _ in task.draw(rng, 2000, held_out=held)} for held in (False, True)]
    assert not pairs[0] & pairs[1]
    assert {p.split("+")[0][-1] + p[-2] for p in pairs[1]} == {f"{a}{b}" for a in range(10) for b in range(10)}
    for prompt, answer in task.draw(rng, 200):
        a, b = map(int, re.findall(r"\d+", prompt))
        assert len(prompt) == task.prompt_length and len(answer) < task.answer_length
        assert task.is_right(prompt, answer) and answer.endswith(str(a + b))
        assert not task.is_right(prompt, answer[:-1] + str((int(answer[-1]) + 1) % 10))


def test_the_text_of_shakespeare_is_that_of_the_data_set(data_dir):
    task = Shakespeare(data_dir=str(data_dir))
    assert len(task.whole) == 1_115_394 and len(task.alphabet) == 65
    for held in (False, True):
        [(prompt, answer)] = task.draw(np.random.default_rng(0), 1, held_out=held)
        assert (len(prompt), len(answer)) == (32, 96)
        assert (prompt + answer in task.whole[-111_540:]) is held


def test_ids_are_those_of_the_tokenizer(tmp_path):
    for task in (Sudoku(), Addition(), Shakespeare(text=TEXT)):
        folder = tmp_path / task.name
        train_tiny(task, folder, TinySettings(steps=1, width=8, layers=1, heads=1, batch=2))
        tokenizer = HFTokenizer.from_folder(folder)
        examples = task.draw(np.random.default_rng(0), 4)
        ids, answer = encode_examples(task, examples)
        for row, is_answer, (prompt, text) in zip(ids, answer, examples, strict=True):
            assert tokenizer.encode(prompt) == row[~is_answer].tolist()
            assert tokenizer.encode(text) == row[is_answer][: len(text)].tolist()
            assert set(row[is_answer][len(text) :].tolist()) <= {tokenizer.eos_id} == {1}
        assert tokenizer.special_tokens["<mask>"] == 0
        assert task_of(folder).name == task.name


def test_a_run_that_was_stopped_goes_on_bit_for_bit(tmp_path):
    class Stop(Exception):
        pass

    def stop(step, loss):
        if step == 4:
            raise Stop

    whole = train_tiny(Sudoku(), tmp_path / "whole", FEW)
    with pytest.raises(Stop):
        train_tiny(Sudoku(), tmp_path / "cut", FEW, progress=stop)
    seen = []
    assert train_tiny(Sudoku(), tmp_path / "cut", FEW, progress=lambda step, loss: seen.append(step)) == whole
    assert seen == [4, 5]
    assert train_tiny(Sudoku(), tmp_path / "cut", FEW, progress=lambda step, loss: seen.append(step)) == whole
    assert seen == [4, 5]  # it was done
    same = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "cut")]
    assert same[0] == same[1]
    with pytest.raises(DataError, match="another seed"):
        train_tiny(Sudoku(), tmp_path / "cut", TinySettings(**{**vars(FEW), "seed": 5}))


def test_a_stranger_s_folder_is_not_written_to(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match="is not empty"):
        train_tiny(Sudoku(), tmp_path, FEW)
    with pytest.raises(DataError, match="names no task"):
        task_of(tmp_path)
    with pytest.raises(ValueError, match='did you mean "sudoku"'):
        make_task("sudoko")


def test_models_are_kept_by_what_they_depend_on(tmp_path):
    first = trained_tiny("sudoku", settings=FEW, cache=tmp_path)
    again = trained_tiny("sudoku", settings=TinySettings(**{**vars(FEW), "checkpoint_every": 5}), cache=tmp_path)
    other = trained_tiny("sudoku", settings=TinySettings(**{**vars(FEW), "seed": 1}), cache=tmp_path)
    assert first == again != other
    losses = json.loads((first / "training.json").read_text())["losses"]
    lines = (first / "training_log.jsonl").read_text().splitlines()
    assert [json.loads(line)["loss"] for line in lines] == losses and len(losses) == 6


def test_blocks_that_no_answer_is_made_of_are_refused(tmp_path):
    with pytest.raises(ValueError, match="block must divide the 16 tokens of an answer of sudoku, got 5"):
        train_tiny(make_task("sudoku"), tmp_path / "five", TinySettings(**{**vars(FEW), "block": 5}))
    assert not (tmp_path / "five").exists()


def test_block_causal_training_learns_from_the_past_only(tmp_path):
    settings = TinySettings(**{**vars(FEW), "block": 8})
    train_tiny(Sudoku(), tmp_path / "b", settings)
    predictor = MaskedPredictor(load_masked(tmp_path / "b"))
    ids, answer = encode_examples(Sudoku(), Sudoku().draw(np.random.default_rng(0), 1))
    later = np.where(np.arange(32) >= 24, 0, ids)
    before = predictor.logits(np.where(answer, 0, ids))[:, :16], predictor.logits(later)[:, :16]
    assert predictor.block_causal and all(np.isfinite(b).all() for b in before)
    np.testing.assert_allclose(*before, atol=1e-5)  # tokens behind a block do not reach it


@pytest.mark.parametrize(("name", "value"), [("steps", 0), ("lr", 0.0), ("form", "times"), ("block", -1)])
def test_wrong_settings_are_refused(name, value):
    with pytest.raises(ValueError, match=name):
        TinySettings(**{"steps": 1, name: value})


def test_the_rate_rises_and_falls():
    rates = [TinySettings(steps=10, warmup=2).rate(step) for step in range(10)]
    assert rates[:2] == [0.5, 1.0] and all(a > b for a, b in itertools.pairwise(rates[2:]))
