"""The same rows give the same results: here, and on Ray's actors."""

from __future__ import annotations

import pytest

import likely
from likely.errors import DataError
from likely.serving import map_rows

PROMPTS = ["the cat", "on the", "this is", "", "then they", "the cat sat"]
OPENED = {"threads": 1}


def rows():
    return [{"id": i, "prompt": prompt} for i, prompt in enumerate(PROMPTS)]


@pytest.fixture
def lm(tiny_path):
    with likely.load(str(tiny_path), threads=1) as model:
        yield model


@pytest.mark.parametrize("size", [1, 4, 99])
def test_rows_get_what_one_call_gives(tiny_path, lm, size):
    expected = lm.generate(PROMPTS, max_tokens=6, seed=4)
    found = list(map_rows(rows(), model=str(tiny_path), opened=OPENED, batch_size=size, max_tokens=6, seed=4))
    assert [row["text"] for row in found] == [result.text for result in expected]
    assert [row["sequence_logprob"] for row in found] == [result.sequence_logprob for result in expected]
    assert [row["id"] for row in found] == list(range(len(PROMPTS))) and {row["error"] for row in found} == {None}


def test_chats_and_scores(tiny_path, lm):
    [row] = map_rows([{"prompt": "cat"}], model=str(tiny_path), task="chat", opened=OPENED, max_tokens=4, seed=1)
    assert row["text"] == lm.chat([{"role": "user", "content": "cat"}], max_tokens=4, seed=1).text
    asked = [{"prompt": "the", "answer": " cat"}, {"prompt": "the", "answer": " sat on"}]
    found = list(map_rows(asked, model=str(tiny_path), task="score", opened=OPENED))
    expected = lm.score("the", [" cat", " sat on"])
    assert [row["sequence_logprob"] for row in found] == pytest.approx([s.sequence_logprob for s in expected], abs=1e-4)


def test_a_row_that_fails_says_why_and_stops_no_other(tiny_path):
    long = [{"prompt": "the cat"}, {"prompt": "cat " * 5000}, {"prompt": "on the"}]
    found = list(map_rows(long, model=str(tiny_path), opened=OPENED, max_tokens=3, seed=1))
    assert [row["error"] is None for row in found] == [True, False, True]
    assert "context" in found[1]["error"] and found[1]["text"] is None and found[2]["text"] is not None


def test_what_cannot_be_asked_is_refused(tiny_path):
    with pytest.raises(DataError, match='needs a column "answer"'):
        list(map_rows([{"prompt": "a"}], model=str(tiny_path), task="score", opened=OPENED))
    with pytest.raises(ValueError, match="one text per row"):
        map_rows([], n=2)
    with pytest.raises(ValueError, match="score takes no options"):
        map_rows([], task="score", seed=1)
    with pytest.raises(ValueError, match="did you mean"):
        map_rows([], task="generat")


@pytest.mark.slow
def test_ray_gives_the_same(tiny_path, lm):
    ray = pytest.importorskip("ray", reason="the extra `cluster` is not installed")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        table = ray.data.from_items(rows())
        found = map_rows(
            table, model=str(tiny_path), opened=OPENED, concurrency=2, batch_size=2, max_tokens=6, seed=4
        ).take_all()
    finally:
        ray.shutdown()
    expected = lm.generate(PROMPTS, max_tokens=6, seed=4)
    by_id = {row["id"]: row for row in found}
    assert [by_id[i]["text"] for i in range(len(PROMPTS))] == [result.text for result in expected]
    assert [by_id[i]["sequence_logprob"] for i in range(len(PROMPTS))] == pytest.approx(
        [result.sequence_logprob for result in expected]
    )
