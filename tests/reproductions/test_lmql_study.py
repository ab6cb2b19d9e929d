"""The LMQL study on a tiny model: both sides are counted by one meter, and a query that saves nothing is noticed."""

from __future__ import annotations

from dataclasses import replace

import pytest
from scripts import script as load_script
from tiny_gguf import write_tiny_llama

import likely
from likely.evidence import Source
from likely.queries.session import QuerySettings, Session

pytest.importorskip("llama_cpp")
MODEL = Source(name="none", sha256="0" * 64)


@pytest.fixture(scope="module")
def script():
    module = load_script("lmql", named="lmql_study")
    module.CHUNK, module.MOST = 8, 3  # the tiny model has 256 positions
    return module


@pytest.fixture(scope="module")
def lm(tmp_path_factory):
    path = write_tiny_llama(tmp_path_factory.mktemp("lmql") / "tiny.gguf")
    with likely.load(str(path), context=2048) as model:
        yield model


def few(script):
    keys = [f" {k}" for k in list(script.ENTRIES)[:6]]
    short = script.Task(
        "look-ups",
        [("Question: where?\n", "x"), ("Question: who?\n", "y")],
        lambda lm, p: script.LOOKUPS(lm, p, script.FIND, keys, max_tokens=8),
        script.react_by_chunks,
        0.75,
    )
    odd = script.Task(
        "odd one out",
        [("Pick the odd word out: oak, lily, birch\nReasoning:", " lily")],
        lambda lm, p: script.ODD_ONE(lm, p, script.words_of(p), max_tokens=8),
        script.odd_by_chunks,
        0.25,
    )
    return [short, odd]


def test_the_study_runs_and_its_figures_are_complete(script, lm):
    found = script.study(lm, few(script), full=False, models=[MODEL], data=[], report=lambda line: None)
    assert found.mode == "quick" and len(found.checks) == 6
    values = {(f.subject, f.quantity): f.value for f in found.figures}
    assert values["look-ups: query", "decoder calls"] == 1
    assert values["odd one out: query", "decoder calls"] == 1 + 3
    for task in ("look-ups", "odd one out"):
        over = values[f"{task}: query", "billable tokens"] / values[f"{task}: chunks", "billable tokens"]
        assert values[f"{task}: query over chunks", "billable tokens"] == pytest.approx(over)


def test_the_baseline_sends_its_whole_prompt_every_time(script, lm):
    session = Session(lm, QuerySettings(keep=False))
    text = script.chunk(session, "Question: where?\n")
    first = session.meter.total
    script.chunk(session, "Question: where?\n" + text)
    both = session.meter.total
    prompt = len(lm.encode_prompt("Question: where?\n" + text))
    assert both.decoder_calls == 2 and both.billable_tokens - first.billable_tokens >= prompt


def test_a_query_that_saves_nothing_is_noticed(script, lm):
    """The baseline against itself: every bound on cost fails."""
    task = few(script)[0]

    class Same:
        def __init__(self, lm, prompt):
            session = Session(lm, QuerySettings(keep=False, max_tokens=script.CHUNK))
            self.value, self.cost = task.by_chunks(session, prompt), session.meter.total

    found = script.study(lm, [replace(task, ask=Same)], full=False, models=[MODEL], data=[], report=lambda line: None)
    assert not found.checks[0].holds and not found.checks[1].holds and found.checks[2].holds


def test_the_items_are_fixed_and_their_answers_are_theirs(script, data_dir, monkeypatch):
    monkeypatch.setenv("LIKELY_DATA", str(data_dir))
    assert len(script.odd_items(50)) == 50 and script.odd_items(3) == script.odd_items(50)[:3]
    for prompt, odd in script.odd_items(20):
        words = script.words_of(prompt)
        kinds = [next(kind for kind, some in script.KINDS.items() if word[1:] in some) for word in words]
        assert odd in words and len(words) == 4
        assert kinds.count(kinds[words.index(odd)]) == 1 and len(set(kinds)) == 2
    assert all(isinstance(answer, int) for _, answer in script.arithmetic_items(10))
    for prompt, answer in script.lookup_items(40):
        assert any(answer in entry for entry in script.ENTRIES.values()) and prompt.endswith("?\n")
    assert len(script.lookup_items(40)) == len(script.PEOPLE) - 1


def test_a_question_takes_four_look_ups(script):
    """Following the entries from the person leads to the answer in four steps, and not in fewer."""
    for prompt, answer in script.lookup_items(5):
        key = prompt.rsplit("company of ", 1)[1].split(" has")[0]
        for step in range(4):
            entry = script.FIND(key)
            assert (f"language is {answer}." in entry) == (step == 3)
            key = next((k for k in script.ENTRIES if k in entry.replace(key, "")), "")
