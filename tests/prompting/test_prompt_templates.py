"""Templates and pools: what is filled in, and what is refused with file and line."""

from __future__ import annotations

import gzip
import json

import pytest

from likely.data import find_path
from likely.errors import DataError
from likely.prompting.templates import PromptPool, Template

PAIR = ("bad", "good")


def template(source, choices=PAIR, name="one"):
    return Template(name, source, choices)


def test_a_template_gives_a_prompt_and_its_answers():
    t = template("Review: {{ text }}\nIt was ||| {{ answer_choices[label] }}")
    assert t.pairs({"text": "Fun."}) == [("Review: Fun.\nIt was", " bad"), ("Review: Fun.\nIt was", " good")]
    assert t.fields == ("text",) and t.lead == "Review: " and template("{{ text }} x").lead == ""


def test_an_input_is_text_and_never_a_template():
    t = template("{{ text }} ||| {{ answer_choices[label] }}")
    hostile = "{{ 7 * 7 }} ||| {% for x in y %} <b>&amp;</b>"
    assert t.prompt({"text": hostile}) == hostile and len(t.pairs({"text": hostile})) == 2


def test_choices_can_stand_in_the_prompt_and_answers_can_be_dressed():
    prompt = '{{ text }} {{ answer_choices|join(" or ") }}? {{ answer_choices[1] }}'
    t = template(prompt + " ||| ({{ label }}) {{ answer_choices[label] }}")
    assert t.pairs({"text": "x"})[1] == ("x bad or good? good", " (1) good")


def test_without_a_bar_the_answer_is_the_choice():
    assert template("{{ text }}").answers({"text": "x"}) == (" bad", " good")


def test_an_input_may_bring_its_own_answers():
    t = template("{{ q }}")
    assert t.pairs({"q": "x", "answer_choices": ["a", "b", "c"]}) == [("x", " a"), ("x", " b"), ("x", " c")]


def test_the_only_field_takes_the_text():
    assert template("{{ sentence }}!").prompt({"text": "x"}) == "x!"
    assert template("{{ sentence }}!").prompt({"text": "x", "sentence": "y"}) == "y!"
    with pytest.raises(DataError, match=r'asks for the field "passage" \(found: "text"\)'):
        template("{{ question }} {{ passage }}").prompt({"text": "x"})
    with pytest.raises(DataError, match='did you mean "passage"'):
        template("{{ passages }} {{ q }}").prompt({"passage": "x", "q": "y"})


@pytest.mark.parametrize(
    ("source", "choices", "said"),
    [
        ("{{ text }} {{ label }} ||| {{ answer_choices[label] }}", PAIR, 'must not use "label"'),
        ("{{ text }} ||| yes", PAIR, 'must use "label"'),
        ("{{ text }} ||| a ||| {{ label }}", PAIR, "once"),
        ("{{ text", PAIR, "not a template"),
        ("{{ text }} {% if x %} ||| {{ label }} {% endif %}", PAIR, "not a template"),
        ("{{ text }}", ("a",), "at least 2"),
        ("{{ text }}", ("a", "a"), "different"),
    ],
)
def test_a_template_that_cannot_be(source, choices, said):
    with pytest.raises(DataError, match=said):
        template(source, choices)


@pytest.mark.slow
def test_a_template_cannot_reach_out_or_run_for_ever():
    with pytest.raises(DataError, match="cannot be filled in"):
        template("{{ text.__class__.__mro__ }}").prompt({"text": "x"})
    with pytest.raises(DataError, match="cannot be filled in"):
        template("{{ text }}{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}").prompt(
            {"text": "x"}
        )
    with pytest.raises(DataError, match="answer 0 is empty"):
        template("{{ text }} ||| {{ answer_choices[label] if label else '' }}").answers({"text": "x"})


def test_a_pool_from_a_file(tmp_path):
    lines = [
        {"task": "a", "name": "x", "template": "{{ text }} ||| {{ label }}", "answer_choices": "no ||| yes"},
        {"task": "a", "template": "Q: {{ text }}", "answer_choices": ["no", "yes"]},
        {"task": "b", "name": "z", "template": "{{ text }}", "answer_choices": ["1", "2", "3"]},
    ]  # fmt: skip
    path = tmp_path / "pool.jsonl.gz"
    path.write_bytes(gzip.compress("".join(json.dumps(line) + "\n" for line in lines).encode()))
    pool = PromptPool.from_jsonl(path, task="a")
    assert pool.names == ("x", "line 2") and pool.templates[0].choices == ("no", "yes")
    assert pool.pick(["line 2"]).names == ("line 2",) and len(PromptPool.from_jsonl(path, task="a", limit=1)) == 1
    with pytest.raises(DataError, match=r"2 tasks \(a, b\)"):
        PromptPool.from_jsonl(path)
    with pytest.raises(DataError, match='no prompt of the task "c"'):
        PromptPool.from_jsonl(path, task="c")
    with pytest.raises(DataError, match='no prompt "y"'):
        pool.pick(["y"])


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ({"name": "x", "answer_choices": ["a", "b"]}, '"template" is missing'),
        ({"template": "{{ text }}"}, '"answer_choices" is missing'),
        ({"template": "{{ text }}", "answer_choices": [1, 2]}, "must be texts"),
        ({"template": 3, "answer_choices": ["a", "b"]}, "must be texts"),
        ({"template": "{{ text", "answer_choices": ["a", "b"]}, "not a template"),
    ],
)
def test_bad_lines_are_named(tmp_path, line, said):
    path = tmp_path / "pool.jsonl"
    path.write_text(
        json.dumps({"template": "{{ text }}", "answer_choices": ["a", "b"]}) + "\n" + json.dumps(line) + "\n"
    )
    with pytest.raises(DataError, match=rf"pool\.jsonl:2: .*{said}"):
        PromptPool.from_jsonl(path)


def test_a_pool_needs_names_and_as_many_answers():
    with pytest.raises(DataError, match="two prompts"):
        PromptPool((template("{{ text }}"), template("{{ text }}?")))
    with pytest.raises(DataError, match='"b" has 3 answers, "one" 2'):
        PromptPool((template("{{ text }}"), template("{{ text }}", ("a", "b", "c"), "b")))
    with pytest.raises(DataError, match="at least one prompt"):
        PromptPool(())


@pytest.mark.parametrize(("task", "k"), [("sst2", 2), ("ag_news", 4), ("tweet_emotion", 4)])
def test_the_pools_of_the_paper_can_be_filled_in(data_dir, task, k):
    pool = PromptPool.from_jsonl(find_path("prompt-pools", "prompts.jsonl.gz", data_dir=data_dir), task=task)
    assert len(pool) == 101
    for t in pool:
        pairs = t.pairs({"text": "SOME WORDS"})
        assert len(pairs) == k and all("SOME WORDS" in p and a.startswith(" ") for p, a in pairs)
        assert len({prompt for prompt, _ in pairs}) == 1
