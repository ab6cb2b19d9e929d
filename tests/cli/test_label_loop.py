"""choices, ask FILE and grade, as a stranger would use them."""

from __future__ import annotations

import gzip
import json
import math

import pytest
from fake_server import toy_server
from test_commands import one_line

from likely.cli.verbs.confidence import grade as grade_verb
from likely.decoding.loop import Loop
from likely.metrics.intervals import wilson

FEW = ("--max-tokens", 6)


def write(path, records):
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    return path


def records_of(path):
    return [json.loads(raw) for raw in path.read_bytes().splitlines()]


def cuts(whole, count=4):
    return sorted({0, 1, len(whole) - 1, *(len(whole) * i // count for i in range(1, count)), whole.index(b"\n") + 1})


# --- choices ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def exam(tmp_path):
    records = [
        {"id": f"q{i}", "question": f"ab {i % 7}?", "choices": [f"c{i}", "dd", "e"], "answer": "ABC"[i % 3]}
        for i in range(150)
    ]
    return write(tmp_path / "exam.jsonl", records)


def test_choices_resumes_to_the_same_bytes_and_the_same_summary(cli, tiny, exam, tmp_path):
    target = tmp_path / "results.jsonl"
    arguments = ("choices", exam, "-m", tiny, "--normalise", "pmi", "--json")
    summary = cli(*arguments).json
    assert cli(*arguments, "-o", target).json == summary
    whole = target.read_bytes()
    for cut in (0, len(whole) // 3, len(whole) - 1):
        target.write_bytes(whole[:cut])
        assert cli(*arguments, "-o", target).json == summary
        assert target.read_bytes() == whole
    header, *lines = records_of(target)
    assert header["kind"] == "choices" and header["settings"] == {"style": "answers", "normalise": "pmi"}
    assert [r["line"] for r in lines] == list(range(1, 151)) and lines[4]["id"] == "q4" and lines[4]["label"] == 1
    right = sum(r["prediction"] == r["label"] for r in lines)
    assert summary["correct"] == right == sum(r["correct"] for r in lines) and summary["n"] == 150
    assert summary["interval"] == list(wilson(right, 150))


def test_choices_agrees_with_score(cli, tiny, exam, tmp_path):
    target = tmp_path / "results.jsonl"
    assert cli("choices", exam, "-m", tiny, "-o", target, "--limit", 1).code == 0
    answers = [a for choice in ("c0", "dd", "e") for a in ("--answer", f" {choice}")]
    scored = cli("score", "--prompt", "Question: ab 0?\nAnswer:", *answers, "-m", tiny, "--json").json["answers"]
    [line] = records_of(target)[1:]
    assert line["sequence_logprobs"] == pytest.approx([s["sequence_logprob"] for s in scored], abs=1e-4)
    assert line["prediction"] == max(range(3), key=lambda i: line["values"][i])


def test_sums_at_chance_point_to_what_does_better(cli, tiny, exam):
    assert "--normalise pmi" in cli("choices", exam, "-m", tiny, "--limit", 30).err
    assert "--normalise" not in cli("choices", exam, "-m", tiny, "--limit", 30, "--normalise", "pmi").err


def test_choices_reads_gz_and_says_the_accuracy(cli, tiny, exam, tmp_path):
    packed = tmp_path / "exam.jsonl.gz"
    packed.write_bytes(gzip.compress(exam.read_bytes()))
    done = cli("choices", packed, "-m", tiny, "--style", "letters", "--limit", 10)
    assert done.code == 0 and "of 10 correct: accuracy" in done.out and "letters, sum" in done.out
    assert (
        done.out.split(":", 1)[1]
        == cli("choices", exam, "-m", tiny, "--style", "letters", "--limit", 10).out.split(":", 1)[1]
    )


def test_equal_choices_are_reported_as_ties(cli, tiny, tmp_path):
    path = write(tmp_path / "in.jsonl", [{"question": "a?", "choices": ["b", "b"], "answer": 0}])
    done = cli("choices", path, "-m", tiny)
    assert "0 of 1 correct" in done.out and "1 tied at the top, counted as wrong" in done.out


def test_choices_usage(cli, tiny, exam, tmp_path):
    one_line(cli("choices"), 2, "file")
    one_line(cli("choices", exam, "--normalise", "bytes"), 2, "byte")
    one_line(cli("choices", exam, "-o", exam, "--overwrite", "-m", tiny), 2, "replace the input")
    one_line(cli("choices", tmp_path / "none.jsonl", "-m", tiny), 1, "cannot read")
    empty = write(tmp_path / "empty.jsonl", [])
    one_line(cli("choices", empty, "-m", tiny), 1, "no records", '"choices"')
    bad = write(tmp_path / "bad.jsonl", [{"question": "a", "choices": ["b", "c"], "answer": 5}])
    one_line(cli("choices", bad, "-m", tiny), 1, "bad.jsonl:1", "0..1")
    long = write(
        tmp_path / "long.jsonl", [{"question": "a " * n, "choices": ["b", "c"], "answer": 0} for n in (1, 900)]
    )
    one_line(cli("choices", long, "-m", tiny), 1, "long.jsonl:2", "context")
    target = tmp_path / "out.jsonl"
    assert cli("choices", exam, "-m", tiny, "--limit", 2, "-o", target).code == 0
    one_line(cli("choices", exam, "-m", tiny, "--style", "letters", "-o", target), 1, "settings", "--overwrite")


# --- ask FILE ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def questions(tmp_path):
    records = [{"id": i, "question": f"the cat {'sat ' * (i % 5)}{i}?", "answer": str(i)} for i in range(40)]
    records[3]["system"] = "on the mat"
    records[5] = {"question": "which?", "choices": ["this", "that"], "label": 1}
    return write(tmp_path / "questions.jsonl", records)


@pytest.fixture
def answers(cli, tiny, questions, tmp_path):
    target = tmp_path / "answers.jsonl"
    assert cli("ask", questions, "-m", tiny, "-o", target, *FEW).code == 0
    return target


def test_an_answers_file_holds_what_is_promised(cli, tiny, answers):
    header, *lines = records_of(answers)
    assert header["kind"] == "ask" and header["settings"]["max_tokens"] == 6 and len(header["settings_hash"]) == 16
    assert len(header["template"]) == 16 and {"sha256", "tokenizer", "likely"} <= header.keys()
    assert not {"seconds", "target_calls", "tokens_per_call", "drafted"} & lines[0].keys()  # how fast is not what
    assert [r["line"] for r in lines] == list(range(1, 41))
    assert all(r["confidence"] is None and len(r["token_logprobs"]) == len(r["token_ids"]) <= 6 for r in lines)
    assert lines[7]["id"] == 7 and lines[7]["reference"] == "7" and lines[7]["question"].startswith("the cat")
    assert lines[5]["reference"] == 1 and lines[5]["choices"] == ["this", "that"] and "id" not in lines[5]


def test_each_answer_is_that_of_the_question_alone(cli, tiny, answers):
    lines = records_of(answers)[1:]
    asked = [
        (lines[7]["question"], ()),
        (lines[3]["question"], ("--system", "on the mat")),
        ("which?\nA. this\nB. that", ()),
    ]
    for i, (question, options) in zip((7, 3, 5), asked, strict=True):
        alone = cli("ask", question, *options, "-m", tiny, *FEW, "--json").json
        assert alone["token_ids"] == lines[i]["token_ids"] and alone["text"] == lines[i]["text"]
        assert alone["sequence_logprob"] == pytest.approx(lines[i]["sequence_logprob"], abs=1e-4)


def test_ask_resumes_to_the_same_bytes_from_any_cut(cli, tiny, questions, answers):
    whole = answers.read_bytes()
    for cut in cuts(whole, 7):
        answers.write_bytes(whole[:cut])
        assert cli("ask", questions, "-m", tiny, "-o", answers, *FEW).code == 0
        assert answers.read_bytes() == whole
    assert cli("ask", questions, "-m", tiny, *FEW).out.encode() == whole


def test_ctrl_c_keeps_finished_lines(cli, tiny, questions, answers, monkeypatch):
    whole, step = answers.read_bytes(), Loop.step
    for calls in (1, 9, 17):
        left = [calls]

        def interrupted(loop, left=left):
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
            return step(loop)

        answers.unlink()
        with monkeypatch.context() as patch:
            patch.setattr(Loop, "step", interrupted)
            done = cli("ask", questions, "-m", tiny, "-o", answers, *FEW)
        assert done.code == 130 and "stopped" in done.err
        part = answers.read_bytes()
        assert whole.startswith(part) and len(part) < len(whole) and part.endswith(b"\n")
        assert part.count(b"\n") >= {1: 1, 9: 2, 17: 1 + 16}[calls]
        assert cli("ask", questions, "-m", tiny, "-o", answers, *FEW).code == 0
        assert answers.read_bytes() == whole


def test_other_settings_and_other_systems_never_mix(cli, tiny, questions, answers):
    one_line(cli("ask", questions, "-m", tiny, "-o", answers, "--max-tokens", 7), 1, "settings", "--overwrite")
    one_line(cli("ask", questions, "-m", tiny, "-o", answers, *FEW, "--system", "x"), 1, "settings")


def test_wrong_settings_leave_no_file_behind(cli, tiny, questions, tmp_path):
    target = tmp_path / "none.jsonl"
    one_line(cli("ask", questions, "-m", tiny, "-o", target, "-s", "top_q=1"), 2, 'did you mean "top_p"')
    one_line(cli("ask", questions, "-m", tiny, "-o", target, "-s", "top_p=7"), 2, "top_p")
    one_line(cli("ask", questions, "-m", tiny, "-o", target, "-s", "stop_tokens={1}"), 2, "JSON")
    assert not target.exists()


def test_a_server_answers_and_chooses_too(cli, tmp_path):
    asked = write(tmp_path / "q.jsonl", [{"question": "who?", "answer": "me"}, {"question": "and?"}])
    exam = write(tmp_path / "c.jsonl", [{"question": "who?", "choices": ["you", "me"], "answer": 1}])
    target = tmp_path / "a.jsonl"
    with toy_server() as server:
        assert cli("ask", asked, "-m", server.url, "-o", target, *FEW).code == 0
        whole = target.read_bytes()
        target.write_bytes(whole[:-5])
        requests = len(server.requests)
        assert cli("ask", asked, "-m", server.url, "-o", target, *FEW).code == 0
        assert len(server.requests) > requests and target.read_bytes() == whole
        assert cli("choices", exam, "-m", server.url, "--json").json["n"] == 1
    header, *lines = records_of(target)
    assert header["runtime"] == "server" and header["template"] is None and len(lines) == 2


def test_ask_file_usage(cli, tiny, questions, tmp_path):
    one_line(cli("ask", "none.jsonl", "-m", tiny), 1, "cannot read none.jsonl")
    one_line(cli("ask", "What?", "-m", tiny, "-o", tmp_path / "x"), 2, ".jsonl file")
    one_line(cli("ask", "What?", "-m", tiny, "--limit", 3), 2, ".jsonl file")
    one_line(cli("ask", questions, "-m", tiny, "-o", questions, "--overwrite"), 2, "replace the input")
    one_line(cli("ask", questions, "-m", tiny, "-s", "beams=3"), 2, "once")
    one_line(cli("ask", questions, "-m", tiny, "--show"), 2, "one question")
    one_line(cli("ask", write(tmp_path / "e.jsonl", []), "-m", tiny), 1, "no records")
    one_line(cli("ask", write(tmp_path / "b.jsonl", [{"question": "a"}, {"q": 1}]), "-m", tiny), 1, "b.jsonl:2")
    long = write(tmp_path / "long.jsonl", [{"question": "a"}, {"question": "a " * 900}])
    one_line(cli("ask", long, "-m", tiny, "-o", tmp_path / "never.jsonl"), 1, "long.jsonl:2", "context")
    assert len(records_of(tmp_path / "never.jsonl")) == 1
    assert "what is in x.jsonl?" in cli("ask", "what is in x.jsonl?", "-m", tiny, *FEW, "--show-prompt").err


# --- grade ------------------------------------------------------------------------------------------------------------

HEADER = {"likely": "0", "kind": "ask", "model": "m", "template": "t", "settings": {}, "settings_hash": "h"}
TEXTS = ["It is 4.", "I say 5", "#### 4", "four", "4,000"]


@pytest.fixture
def small(tmp_path):
    lines = [
        {"line": i, "input": "x", "id": f"n{i}", "question": f"q{i}", "text": text, "reference": "4",
         "sequence_logprob": -float(i), "confidence": None}
        for i, text in enumerate(TEXTS, 1)
    ]  # fmt: skip
    return write(tmp_path / "answers.jsonl", [HEADER, *lines])


def test_a_graded_file_is_what_calibration_reads(cli, small, tmp_path):
    target = tmp_path / "graded.jsonl"
    summary = cli("grade", small, "--by", "number", "-o", target, "--json").json
    assert summary["correct"] == 2 and summary["n"] == 5 and summary["interval"] == list(wilson(2, 5))
    header, *lines = records_of(target)
    assert header["answers"] == HEADER and header["graded_by"] == "number"
    assert [r["correct"] for r in lines] == [1, 0, 1, 0, 0] and {r["graded_by"] for r in lines} == {"number"}
    assert [r["raw_confidence"] for r in lines] == pytest.approx([math.exp(-i) for i in range(1, 6)])
    assert all(r["confidence"] is None and r["id"] and r["text"] and r["question"] for r in lines)
    whole = target.read_bytes()
    for cut in cuts(whole):
        target.write_bytes(whole[:cut])
        assert cli("grade", small, "--by", "number", "-o", target, "--json").json == summary
        assert target.read_bytes() == whole


def test_methods_disagree_where_they_should(cli, small):
    def correct(*options):
        return cli("grade", small, "--json", "--by", *options).json["correct"]

    assert [correct("exact"), correct("regex"), correct("regex", "--pattern", "(?i)4|FOUR")] == [1, 3, 4]
    assert "2 of 5 correct: accuracy 0.400" in cli("grade", small, "--by", "number").out
    assert "of 2 correct" in cli("grade", small, "--by", "number", "--limit", 2).out


def test_what_was_kept_back_is_counted_apart(cli, small, tmp_path):
    """The user saw three answers; of the two that were kept back one would have been right."""
    header, *lines = records_of(small)
    held = write(small, [header, *({**r, "abstained": i in (0, 1)} for i, r in enumerate(lines))])
    found = cli("grade", held, "--by", "number", "-o", tmp_path / "graded.jsonl", "--json").json
    assert (found["correct"], found["n"], found["abstained"], found["abstained_correct"]) == (1, 3, 2, 1)
    assert len(records_of(tmp_path / "graded.jsonl")) == 6  # a calibrator learns from all of them
    told = cli("grade", held, "--by", "number").out
    assert "1 of 3 correct" in told and "2 abstained, 1 of them would have been right" in told


def test_what_cannot_be_graded_leaves_nothing_that_blocks_the_next(cli, small, tmp_path):
    target = tmp_path / "graded.jsonl"
    one_line(cli("grade", small, "--by", "choice", "-o", target), 1, "answers.jsonl:2")
    assert not target.exists()
    assert cli("grade", small, "--by", "number", "-o", target).code == 0


def test_an_answer_in_a_form_has_the_probability_within_the_form(cli, small, tmp_path):
    header, *lines = records_of(small)
    write(small, [header, *({**r, "guided_logprob": -0.5, "log_weight": r["sequence_logprob"] + 0.5} for r in lines)])
    assert cli("grade", small, "--by", "number", "-o", tmp_path / "graded.jsonl").code == 0
    assert records_of(tmp_path / "graded.jsonl")[1]["raw_confidence"] == pytest.approx(math.exp(-0.5))


def test_grade_of_real_answers_end_to_end(cli, answers, tmp_path):
    target = tmp_path / "graded.jsonl"
    assert cli("grade", answers, "--by", "regex", "--pattern", ".", "-o", target).code == 0
    header, *lines = records_of(target)
    assert header["answers"] == records_of(answers)[0]
    assert all(r["raw_confidence"] == math.exp(r["sequence_logprob"]) for r in lines)


@pytest.fixture
def person(cli, small, tmp_path, monkeypatch):
    target = tmp_path / "person.jsonl"

    def press(keys, *options, file=small):
        """Each key is given only after what was decided before is in the file."""
        states, waiting = [], iter(keys)

        def key():
            states.append([(r["line"] - 1, r["correct"]) for r in records_of(target)[1:]] if target.exists() else [])
            return next(waiting, "")

        monkeypatch.setattr(grade_verb, "read_key", key)
        done = cli("grade", file, "--by", "person", "-o", target, *options)
        return done, states

    press.target = target
    return press


def decisions(target):
    return {r["line"] - 1: r["correct"] for r in records_of(target)[1:]}


def test_every_decision_is_in_the_file_before_the_next_key(person):
    done, states = person("ynyny")
    assert done.code == 0 and "3 of 5 correct" in done.out
    assert states == [[(i, (i % 2)) for i in range(1, n)] for n in range(1, 6)]
    assert {r["graded_by"] for r in records_of(person.target)[1:]} == {"person"}


def test_a_person_goes_on_where_she_ended(person):
    done, _ = person("ynq")
    assert "1 of 2 correct" in done.out and "3 not graded yet" in done.out
    done, _ = person("y")
    assert "--- 3 of 5  n3" in done.out and "--- 2 of 5" not in done.out
    person("xyy")
    assert decisions(person.target) == {1: 1, 2: 0, 3: 1, 4: 1, 5: 1}
    before = person.target.read_bytes()
    assert "4 of 5 correct" in person("nnn")[0].out and person.target.read_bytes() == before


def test_undo_goes_back_over_decisions_and_skips_and_runs(person):
    done, _ = person("ysuu" + "n" + "y" + "q")
    assert done.code == 0 and decisions(person.target) == {1: 0, 2: 1}
    done, _ = person("uuu" + "ynq")
    assert "nothing to undo" in done.out and decisions(person.target) == {1: 1, 2: 0}
    person("sy" + "u" + "u" + "nq")
    assert decisions(person.target) == {1: 1, 2: 0, 3: 0}


def test_what_was_skipped_comes_again(person):
    done, _ = person("sysyy")
    assert "2 not graded yet" in done.out and decisions(person.target) == {2: 1, 4: 1, 5: 1}
    done, _ = person("nn")
    assert decisions(person.target) == {1: 0, 2: 1, 3: 0, 4: 1, 5: 1} and "not graded" not in done.out


def test_undo_shows_a_line_beyond_the_limit_before_it_is_lost(person):
    person("yyyyy")
    person("q")
    done, _ = person("", "--limit", 2)
    assert "2 of 2 correct" in done.out and len(decisions(person.target)) == 5


def test_ctrl_c_keeps_every_decision(cli, small, person, monkeypatch):
    person("yq")

    def interrupt():
        raise KeyboardInterrupt

    monkeypatch.setattr(grade_verb, "read_key", interrupt)
    assert cli("grade", small, "--by", "person", "-o", person.target).code == 130
    assert decisions(person.target) == {1: 1}


def test_keys_may_come_through_a_pipe(cli, small, tmp_path):
    done = cli("grade", small, "--by", "person", "-o", tmp_path / "p.jsonl", stdin="y\nn\nq\n")
    assert done.code == 0 and decisions(tmp_path / "p.jsonl") == {1: 1, 2: 0}


def test_a_models_text_does_not_steer_the_terminal(person, tmp_path):
    evil = {"question": "q", "text": "a\x1b[2Jb\rc\x07", "reference": "\x1b]0;x"}
    done, _ = person("y", file=write(tmp_path / "evil.jsonl", [HEADER, evil]))
    assert "\x1b" not in done.out and "\x07" not in done.out and "\r" not in done.out and "1 of 1 correct" in done.out


def test_another_method_or_other_answers_never_mix(cli, small, tmp_path):
    target = tmp_path / "graded.jsonl"
    assert cli("grade", small, "--by", "number", "-o", target).code == 0
    one_line(cli("grade", small, "--by", "exact", "-o", target), 1, "graded_by", "--overwrite")
    small.write_text(small.read_text().replace("I say 5", "I say 4"))
    one_line(cli("grade", small, "--by", "number", "-o", target), 1, ":3 has changed")
    small.write_text(small.read_text().replace('"model": "m"', '"model": "n"'))
    one_line(cli("grade", small, "--by", "number", "-o", target), 1, "answers")


def test_grade_usage(cli, small, tmp_path):
    one_line(cli("grade", small), 2, "--by")
    one_line(cli("grade", small, "--by", "numbr"), 2, "number")
    one_line(cli("grade", small, "--by", "person"), 2, "-o")
    one_line(cli("grade", small, "--by", "exact", "--pattern", "x"), 2, "pattern")
    one_line(cli("grade", small, "--by", "regex", "--pattern", "("), 1, "not a regular expression")
    one_line(cli("grade", small, "--by", "exact", "-o", small, "--overwrite"), 2, "replace the input")
    one_line(cli("grade", tmp_path / "none.jsonl", "--by", "exact"), 1, "cannot read")
    one_line(cli("grade", write(tmp_path / "e.jsonl", []), "--by", "exact"), 1, "no answers")
    one_line(cli("grade", write(tmp_path / "h.jsonl", [HEADER]), "--by", "exact"), 1, "no answers")
    one_line(cli("grade", write(tmp_path / "q.jsonl", [{"question": "a"}]), "--by", "exact"), 1, "likely ask")
    bare = write(tmp_path / "b.jsonl", [HEADER, {"question": "a", "text": "b"}])
    one_line(cli("grade", bare, "--by", "exact"), 1, "b.jsonl:2", "no reference")
    one_line(cli("grade", small, "--by", "choice"), 1, "answers.jsonl:2", "letter")
