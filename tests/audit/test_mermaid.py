"""Sequence diagrams: our parser against the labels of Mermaid's, texts of every part of the language, scores in closed
form, a grammar of which every text is valid, judges that can be read."""

from __future__ import annotations

import re
from dataclasses import replace
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_gguf import write_tiny_llama

import likely
from likely.audit.case import run_audit
from likely.audit.mermaid.benchmark import diagram_cases, diagram_modes, diagram_report, diagrams
from likely.audit.mermaid.criteria import CRITERIA, diagram_text, score_diagram, score_response
from likely.audit.mermaid.diagram import ARROWS, Activation, DiagramBlock, DiagramMessage, SequenceDiagram
from likely.audit.mermaid.drawing import draw_diagram
from likely.audit.mermaid.grammar import check_name, close_diagram, named_participants, sequence_grammar
from likely.audit.mermaid.judge import (
    expected_scores,
    judge_control,
    judged_scores,
    read_score,
    with_faults,
)
from likely.audit.mermaid.lexer import MermaidSyntaxError
from likely.audit.mermaid.official import official_errors
from likely.audit.mermaid.parser import MOST_CHARACTERS, parse_sequence
from likely.data import load_records
from likely.errors import CapabilityError, ConstraintError, DataError

NOT_OF_THE_PARSER = "Option is not defined"  # of jsdom: `box` with a colour asks it for what only browsers have
DISAGREEMENTS = {"24caa2d2e4"}  # the YAML in @{...}, which we do not read
HEAD = "sequenceDiagram\n"
WHOLE = """---
title: front matter
---
%% a comment
%%{init: {'theme': 'dark'}}%%
sequenceDiagram
    title A title
    accTitle: for readers
    accDescr { two
    lines }
    autonumber 10 5
    box Aqua Group
        participant A as Alice #9829; Smith
        actor Bob
    end
    participant DB@{"type": "database"} as Store
    A->>+Bob: Hello; Bob-->>-A: Hi
    create participant C
    A->>C: new
    destroy C
    C-xA: gone
    Note over A,Bob: together
    Note right of Bob: alone
    links A: {"x": "y"}
    alt is well
        loop every day
            Bob-)A: ping
        end
    else is ill
        A<<->>Bob: both
    else
        A->>A: self
    end
    par one
        A->>Bob: 1
    and two
        A->>Bob: 2
    end
    critical x
        activate A
    option y
        deactivate A
    end
    rect rgb(1, 2, 3)
        A->>()Bob: central
    end
    end-user: x
"""


@pytest.fixture(scope="module")
def references():
    return [record["expected_output"] for record in load_records("mermaid-sequence", "prompts.jsonl")]


# --- the parser -------------------------------------------------------------------------------------------------------


def test_the_parser_agrees_with_mermaids_labels():
    wrong, count = set(), 0
    for record in load_records("mermaid-sequence", "syntax.jsonl"):
        try:
            diagram = parse_sequence(record["text"])
            valid = True
            assert parse_sequence(diagram.to_text()) == diagram
        except MermaidSyntaxError as error:
            valid = False
            assert 1 <= error.line <= record["text"].count("\n") + 2 and error.column >= 1
        count += 1
        if valid != record["valid"] and record["error"] != NOT_OF_THE_PARSER:
            wrong.add(record["id"])
    assert count == 474 and wrong == DISAGREEMENTS


def test_the_whole_language():
    diagram = parse_sequence(WHOLE.replace("    end-user: x\n", ""))
    assert diagram.participants == {"A": "Alice #9829; Smith", "Bob": "Bob", "DB": "Store", "C": "C"}
    kinds = [(e.kind, len(e.branches)) for _, e in diagram.walk() if isinstance(e, DiagramBlock)]
    assert kinds == [("alt", 3), ("loop", 1), ("par", 2), ("critical", 2), ("rect", 1)]
    first, second = diagram.messages[:2]
    assert (first.activation, second.activation, second.dotted) == ("+", "-", True)
    assert parse_sequence(diagram.to_text()) == diagram
    with pytest.raises(MermaidSyntaxError, match="line 47"):  # "end" begins a name: Mermaid refuses it, too
        parse_sequence(WHOLE)


@pytest.mark.parametrize("arrow", ARROWS)
def test_every_arrow(arrow):
    diagram = parse_sequence(f"{HEAD}A {arrow} B: x - y -> z\n")
    assert diagram.events == (DiagramMessage("A", "B", arrow, "x - y -> z"),)


@pytest.mark.parametrize(
    ("text", "line", "column", "message"),
    [
        ("", 1, 1, "no sequence diagram"),
        ("flowchart TD\n", 1, 1, "no sequence diagram"),
        (HEAD + "A->>B\n", 2, 6, 'expected ":" and a text'),
        (HEAD + "  A=>B: x\n", 2, 5, "expected an arrow"),
        (HEAD + "A->>B: x\ndeactivate B\n", 3, 1, "B is not active"),
        (HEAD + "loop x\nA->>B: x\n", 4, 1, "expected end, which closes loop"),
        (HEAD + "else\nA->>B: x\n", 2, 1, "expected a statement"),
        (HEAD + "end\n", 2, 1, "expected a statement"),
        (HEAD + "participant\nA->>B: x\n", 2, 12, "name"),
        (HEAD + "create participant C\nA->>B: x\n", 3, 1, "must go to C"),
        ("---\ntitle: x\nsequenceDiagram\n", 1, 1, "front matter"),
        (HEAD + "Note above A: x\n", 2, 6, "left of, right of or over"),
        (HEAD + "loop x\n" * 120, 101, 7, "nested"),
    ],
)
def test_errors_say_where_and_what_was_expected(text, line, column, message):
    with pytest.raises(MermaidSyntaxError, match=re.escape(message)) as caught:
        parse_sequence(text)
    assert (caught.value.line, caught.value.column) == (line, column)


def test_what_is_no_text_or_too_long_is_refused():
    with pytest.raises(TypeError):
        parse_sequence(None)
    with pytest.raises(MermaidSyntaxError, match="at most"):
        parse_sequence(HEAD + "x" * MOST_CHARACTERS)


PIECES = ["sequenceDiagram", "\n", "A", "->>", "-->>", ":", " ", "end", "alt", "else", "participant", "@{", "}", "as",
          "%%", "#", ";", "(", ")", "+", "-", "Note over", ",", "activate", "x", "\\", "/", "<<", "\u2028",
          "---"]  # fmt: skip


@given(st.one_of(st.lists(st.sampled_from(PIECES), max_size=40).map("".join), st.text(max_size=60)))
def test_no_text_crashes_the_parser(text):
    try:
        diagram = parse_sequence(HEAD + text)
    except MermaidSyntaxError:
        return
    assert parse_sequence(diagram.to_text()).messages == diagram.messages


def test_long_names_take_linear_time():
    """A name of dashes and slashes has no way to be read twice."""
    assert len(parse_sequence(f"{HEAD}A{'-b/' * 5000}->>B: x\n").messages) == 1


# --- scores -----------------------------------------------------------------------------------------------------------


def test_references_score_one_against_themselves(references):
    for text in references[:24]:
        scores = score_response(f"```mermaid\n{text}```", parse_sequence(text))
        assert all(value in (1, None) for value in scores.to_dict().values()), (text, scores)
        assert scores.overall == 1


def test_a_lost_message_costs_the_closed_form(references):
    wanted = parse_sequence(references[0])
    n = len(wanted.messages)
    lost = SequenceDiagram(tuple(e for e in wanted.events if e is not wanted.messages[2]))
    scores = score_diagram(lost, wanted)
    assert scores.messages == pytest.approx(2 * (n - 1) / (2 * n - 1)) == scores.links
    assert scores.participants == 1 and scores.arrows == 1 and scores.valid == 1


def test_other_names_change_only_what_is_about_names(references):
    text = references[0]
    renamed = score_response(text.replace("WebApp", "Portal"), parse_sequence(text))
    assert renamed.participants == pytest.approx(0.75) and renamed.messages < 1 and renamed.valid == 1
    aliased = re.sub(r"\bWebApp\b", "W", text).replace("participant W\n", "participant W as WEBAPP\n")
    assert score_response(aliased, parse_sequence(text)).overall == 1  # ids and case are no part of it


def test_an_activation_that_does_not_end_is_unbalanced_and_valid(references):
    text = next(t for t in references if "deactivate" in t)
    wanted = parse_sequence(text)
    open_ = text.replace(next(line for line in text.splitlines(True) if "deactivate" in line), "", 1)
    scores = score_response(open_, wanted)
    assert scores.valid == 1 and scores.balanced == 0 and 0 < scores.activations < 1 and scores.messages == 1
    swapped = replace(wanted.messages[1], arrow="->>")
    solid = SequenceDiagram(tuple(swapped if e is wanted.messages[1] else e for e in wanted.events))
    assert score_diagram(solid, wanted).arrows < 1


@pytest.mark.parametrize(
    ("response", "clean", "valid"),
    [
        (f"{HEAD}A->>B: x", True, True),
        (f"```mermaid\n{HEAD}A->>B: x\n```", True, True),
        (f"Here it is:\n```\n{HEAD}A->>B: x\n```\nEnjoy", False, True),
        (f"```mermaid\n{HEAD}A->>B: x\n", False, True),  # a fence that is not closed
        (f"{HEAD}A->>B: x\n\n{HEAD}A->>B: y", False, True),  # two diagrams
        (f"{HEAD}A->B", True, False),
        ("I cannot.", False, False),
        ("", False, False),
    ],
)
def test_responses(response, clean, valid):
    scores = score_response(response, parse_sequence(f"{HEAD}A->>B: x"))
    assert scores.valid == valid and diagram_text(response)[1] == clean
    assert scores.clean == (clean and valid)
    assert scores.overall == pytest.approx(0 if not valid else 1 if clean else 5 / 6)


def test_drawings_are_well_formed_and_hold_no_markup_of_the_model(references):
    for text in [*references[::16], f"{HEAD}participant A as <b>&\"'\nA->>A: <script>x</script>\n"]:
        drawn = draw_diagram(parse_sequence(text))
        root = ElementTree.fromstring(drawn)
        assert root.tag.endswith("svg") and "<script" not in drawn and "href" not in drawn and "style=" not in drawn
    assert "…" in draw_diagram(parse_sequence(HEAD + "A->>B: x\n" * 300))
    ElementTree.fromstring(draw_diagram(SequenceDiagram()))


# --- the grammar ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def random_model(tmp_path_factory):
    with likely.load(str(write_tiny_llama(tmp_path_factory.mktemp("mermaid") / "tiny.gguf")), threads=1) as lm:
        yield lm


@pytest.mark.parametrize("names", [["User", "Web App", "Store.1"], pytest.param(None, marks=pytest.mark.slow)])
def test_every_text_of_a_random_model_is_valid(random_model, names):
    made = random_model.generate(
        "x", grammar=sequence_grammar(names), close_on_budget=False, temperature=1.0, n=6, seed=5, max_tokens=160
    )
    texts = [close_diagram(one.text) for one in made]
    assert len(set(texts)) > 2
    for text in texts:
        diagram = parse_sequence(text)
        if names:
            assert set(diagram.participants) <= set(names)
            acts = [e for _, e in diagram.walk() if isinstance(e, Activation)]
            assert sum(e.on for e in acts) * 2 == len(acts)


def test_a_text_cut_anywhere_is_closed(references):
    whole = (
        f"{HEAD}    participant A\n    alt x\n    activate A\n        A->>B: y\n    deactivate A\n    else z\n"
        "        loop w\n            Note over A: v\n        end\n    end\n"
    )
    parse_sequence(whole)
    for end in range(len(whole) + 1):
        parse_sequence(close_diagram(whole[:end]))
    assert close_diagram(whole) == whole


@pytest.mark.parametrize("name", ["end", "A->B", "", "1st", "note taker", "x" * 40, "a:b", "tail "])
def test_names_that_a_diagram_cannot_hold(name):
    with pytest.raises(ConstraintError, match="cannot be a participant"):
        check_name(name)
    with pytest.raises(ConstraintError):
        sequence_grammar([name])


def test_participants_of_a_prompt():
    assert named_participants("Draw.\nParticipants: User, Web App.\n1. x") == ["User", "Web App"]
    assert named_participants("Participants: end, User") is None and named_participants("none") is None


# --- the judge --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "score"),
    [
        ('{"explanation": "fine", "score": 0.8}', 0.8), ("Score: 0.8; it is fine", 0.8), ("**Score**: 1", 1.0),
        ("1. The diagram is valid", None), ("-0.5", None), ("Score: -0.5", None), ("Score: 7/10", None),
        ('{"score": 3}', None), ('{"score": true}', None), ("", None), ("N/A", None),
        ("score: 0.2 or score: 0.9", None),
        ("[0.5]", None),
    ],
)  # fmt: skip
def test_scores_are_read_or_missing(reply, score):
    assert read_score(reply) == score


class Judge:
    """Replies of a list, one call after the other; by likelihood it likes what has many lines."""

    def __init__(self, *replies):
        self.replies, self.asked = list(replies), []

    def ask_each(self, questions, **options):
        self.asked.append((list(questions), options))
        return [SimpleNamespace(text=self.replies.pop(0)) for _ in questions]

    def score_pairs(self, pairs):
        return [
            SimpleNamespace(sequence_logprob=-abs(float(answer) - min(1, prompt.count("\n") / 10)) * 20)
            for prompt, answer in pairs
        ]


def test_what_cannot_be_read_is_asked_again_and_then_missing_not_left_out():
    judge = Judge("Score: 0.4", "no", "no", '{"score": 0.6}', "no")
    assert judged_scores(judge, ["a", "b", "c"]) == [0.4, 0.6, None]
    assert judge.asked[1][0] == ["b", "c"]
    control = judge_control([0.4, 0.6, None], [0.2, 0.6, 0.9])
    assert control.coverage == pytest.approx(5 / 6) and control.ordered == 0.75 and not control.trusted
    assert judge_control([None], [0.1]).coverage == 0.5


def test_a_judge_by_likelihood_and_one_that_tells_nothing():
    short, long_ = "a\n", "a\n" * 9
    scores = expected_scores(Judge(), [short, long_])
    assert 0 < scores[0] < 0.3 < 0.9 < scores[1] <= 1
    good = judge_control(expected_scores(Judge(), [long_] * 5), expected_scores(Judge(), [short] * 5))
    assert good.ordered == 1 and good.trusted
    blind = judge_control([0.5] * 5, [0.5] * 5)
    assert blind.ordered == 0.5 and not blind.trusted


def test_faults_are_valid_and_worse(references):
    for seed, text in enumerate(references[::12]):
        wanted = parse_sequence(text)
        faulty = with_faults(wanted, seed=seed)
        assert parse_sequence(faulty.to_text()) == faulty
        assert score_diagram(faulty, wanted).overall < 1


# --- the benchmark ----------------------------------------------------------------------------------------------------


class Writer:
    """Free answers are no diagrams; guided ones are the reference, cut."""

    def __init__(self, reference):
        self.reference = reference
        self.grammars = []

    def ask_each(self, questions, **options):
        return [
            SimpleNamespace(text="no", finish_reason="stop", tokens=["no"], token_logprobs=[-1.0]) for _ in questions
        ]

    def ask(self, question, *, grammar, **options):
        self.grammars.append(grammar)
        text = self.reference[: len(self.reference) // 2]
        return SimpleNamespace(text=text, finish_reason="length", complete=False, tokens=[text], token_logprobs=[-2.0])


def test_modes_scores_and_report():
    records = list(load_records("mermaid-sequence", "prompts.jsonl"))[:12:6]
    cases = diagram_cases(records)
    writer = Writer(records[0]["expected_output"])
    seen = []

    def check(texts):
        seen.extend(texts)
        return [None if text.startswith("sequenceDiagram") else "no" for text in texts]

    measured = run_audit(cases, diagram_modes(cases), diagrams(writer, max_tokens=9), header={})
    report = diagram_report(measured, header={"model": "toy"}, check=check)
    assert report.finding("guided", "valid").value == 1 and report.finding("zero-shot", "valid").value == 0
    assert (
        report.finding("guided", "cut and closed").value == 1
        and report.finding("Mermaid's parser", "agrees with ours").value == 1
    )
    assert report.finding("guided less zero-shot", "overall").low > 0 and len(seen) == 8
    assert any("<svg" in e.figure for e in report.examples) and '"AuthService"' in writer.grammars[0]
    shown = diagram_modes(cases)(cases[0])[1].prompt
    assert records[1]["expected_output"] in shown and shown.endswith(records[0]["input_prompt"])
    assert {f.quantity for f in report.findings} >= set(CRITERIA)


def test_bad_records_and_modes():
    with pytest.raises(DataError, match="record 1: the reference is no valid diagram"):
        diagram_cases([{"input_prompt": "x", "expected_output": "pie"}])
    with pytest.raises(DataError, match="are expected"):
        diagram_cases([{"input_prompt": "x"}])
    with pytest.raises(DataError, match="no cases"):
        diagram_cases([])
    case = diagram_cases([{"input_prompt": "x", "expected_output": HEAD}])
    with pytest.raises(DataError, match="second case"):
        diagram_modes(case, ["one-shot"])
    with pytest.raises(ValueError, match="unknown mode"):
        diagram_modes(case, ["two-shot"])


def test_the_official_parser_is_asked_or_its_absence_told(tmp_path, monkeypatch):
    with pytest.raises(CapabilityError, match=r"npm install|node is not installed"):
        official_errors([HEAD], tmp_path)
    node = tmp_path / "node"
    node.write_text(
        '#!/bin/sh\nread -r line\ncase "$line" in \'["\'*) echo \'[null, "Parse error on line 2:"]\';; esac\n'
    )
    node.chmod(0o755)
    for name in ("mermaid", "jsdom"):
        (tmp_path / "node_modules" / name).mkdir(parents=True)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert official_errors([HEAD, HEAD + "A->B"], tmp_path) == [None, "Parse error on line 2:"]
    node.write_text("#!/bin/sh\necho broken >&2; exit 3\n")
    with pytest.raises(CapabilityError, match="broken"):
        official_errors([HEAD], tmp_path)
