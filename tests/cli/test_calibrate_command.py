"""calibrate fit, eval, plot, and what ask and chat then say and leave unsaid, as a stranger would use them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

FEW = ("--max-tokens", 4)


def one_line(done, code):
    assert done.code == code and len(done.err.splitlines()) == 1, done.err
    return done.err


def write(path, records):
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    return path


def lines_of(path):
    return path.read_text().splitlines()


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("LIKELY_CALIBRATORS", str(tmp_path / "store"))
    return tmp_path / "store"


@pytest.fixture
def graded(cli, tiny, tmp_path):
    """60 answers of the tiny model; those whose text has an even number of characters are right."""
    questions = write(tmp_path / "q.jsonl", [{"question": f"Is {i} odd?", "answer": "yes"} for i in range(60)])
    answers = tmp_path / "answers.jsonl"
    assert cli("ask", questions, "-m", tiny, "-o", answers, *FEW).code == 0
    done = cli("grade", answers, "--by", "regex", "--pattern", "^(..)*$", "-o", tmp_path / "graded.jsonl")
    assert done.code == 0 and sum(json.loads(r)["correct"] for r in lines_of(tmp_path / "graded.jsonl")[1:]) > 10
    return tmp_path / "graded.jsonl"


@pytest.fixture
def plain(tmp_path):
    rng = np.random.default_rng(0)
    confidence = rng.random(200)
    right = (rng.random(200) < confidence**2).astype(int).tolist()
    return write(
        tmp_path / "plain.jsonl",
        [{"confidence": c, "correct": r} for c, r in zip(confidence.tolist(), right, strict=True)],
    )


@pytest.mark.slow
def test_plain_lines_give_an_unbound_calibrator(cli, plain, tmp_path, store):
    assert "-o cal.json" in one_line(cli("calibrate", "fit", plain), 2)
    target = tmp_path / "cal.json"
    made = cli("calibrate", "fit", plain, "-o", target, "--json").json
    assert made["binding"] is None and made["written"] == [str(target)] and not store.exists()
    assert made["after"]["ece"] < made["before"]["ece"]
    before = cli("calibrate", "eval", plain, "--json").json
    after = cli("calibrate", "eval", plain, "--calibrator", target, "--json").json
    assert after["nll"] < before["nll"] and after["n"] == before["n"] == 200
    for name in ("accuracy", "ece", "nll", "brier", "auroc"):
        low, high = after[f"{name}_interval"]
        assert low <= after[name] <= high
    assert before["brier"] == pytest.approx(np.mean([(c - r) ** 2 for c, r in rows(plain)]))
    assert "exists" in one_line(cli("calibrate", "fit", plain, "-o", target), 2)
    assert cli("calibrate", "fit", plain, "-o", target, "--overwrite", "--method", "isotonic").code == 0


def rows(path):
    return [(r["confidence"], r["correct"]) for r in map(json.loads, path.read_text().splitlines())]


@pytest.mark.slow
def test_eval_measures_what_the_answers_were_given_with(cli, tiny, graded, store, tmp_path):
    """p(answer | question) before there is a calibrator; then the confidence in the file, or a kept map by name."""
    raw = cli("calibrate", "eval", graded, "--json").json
    assert raw["measured"] == "p(answer | question)"
    assert cli("calibrate", "fit", graded, "--task", "odd").code == 0
    told = one_line(cli("calibrate", "eval", graded, "--task", "even"), 1)
    assert "no calibrator was fitted" in told and 'one of the task "odd"' in told
    mapped = cli("calibrate", "eval", graded, "--task", "odd", "--json")
    assert mapped.json["calibrator"] == "task odd" and "was fitted to these lines" in mapped.err
    assert mapped.json["mean_confidence"] != raw["mean_confidence"]
    again, told = tmp_path / "again.jsonl", tmp_path / "told.jsonl"
    questions = write(tmp_path / "q2.jsonl", [{"question": f"Is {i} odd?", "answer": "yes"} for i in range(30)])
    assert cli("ask", questions, "-m", tiny, "-o", again, *FEW, "--task", "odd").code == 0
    assert cli("grade", again, "--by", "regex", "--pattern", "^(..)*$", "-o", told).code == 0
    held = cli("calibrate", "eval", told, "--json").json
    stated = [json.loads(r)["confidence"] for r in lines_of(told)[1:]]
    assert held["measured"] == "the confidence in the file"
    assert held["mean_confidence"] == pytest.approx(np.mean(stated))
    assert "give one of" in one_line(cli("calibrate", "eval", told, "--task", "odd", "--calibrator", told), 2)


@pytest.mark.slow
def test_plot(cli, plain, tmp_path):
    shown = cli("calibrate", "plot", plain)
    assert shown.code == 0 and len(shown.out.splitlines()) > 5
    [diagram] = cli("calibrate", "plot", plain, "--json", "--bins", 5).json["diagrams"].values()
    assert [b["n"] for b in diagram["bins"]] == np.histogram([c for c, _ in rows(plain)], 5, (0, 1))[0].tolist()
    cli("calibrate", "fit", plain, "-o", tmp_path / "cal.json")
    both = cli("calibrate", "plot", plain, "--calibrator", tmp_path / "cal.json", "--json").json["diagrams"]
    assert both["calibrated"]["ece"] < both["as given"]["ece"]
    assert cli("calibrate", "plot", plain, "-o", tmp_path / "r.png").code == 0
    assert (tmp_path / "r.png").read_bytes()[:4] == b"\x89PNG"
    assert "exists" in one_line(cli("calibrate", "plot", plain, "-o", tmp_path / "r.png"), 2)


def test_plot_takes_the_rounded_probabilities_that_eval_takes(cli, tmp_path):
    rounded = write(tmp_path / "rounded.jsonl", [{"probs": [1.0005, 0], "label": 0}, {"probs": [0.4, 0.6], "label": 1}])
    [diagram] = cli("calibrate", "plot", rounded, "--json").json["diagrams"].values()
    assert diagram["ece"] == pytest.approx(0.2)
    assert cli("calibrate", "eval", rounded, "--json").json["ece"] == pytest.approx(0.2)


@pytest.mark.slow
def test_ask_and_chat_use_what_was_fitted_for_them(cli, tiny, graded, store, tmp_path):
    ask = ("ask", "Is 3 odd?", "-m", tiny, *FEW, "--json")
    assert cli(*ask).json["confidence"] is None
    [kept] = cli("calibrate", "fit", graded, "--json").json["written"]
    found = cli(*ask).json
    assert 0 < found["confidence"] < 1 and found["answered_by"] == str(tiny) and found["calibrator"]["n"] == 60
    assert cli(*ask, "--set", "temperature=0.5").json["confidence"] is None  # other answers than those fitted to
    assert cli(*ask, "--task", "elsewhere").json["confidence"] is None
    foreign = one_line(cli(*ask, "--set", "temperature=0.5", "--calibrator", kept), 1)
    assert "fitted for another settings" in foreign
    said = cli("ask", "Is 3 odd?", "-m", tiny, *FEW)
    assert said.out.strip() == found["text"].strip() and f"confidence {found['confidence']:.2f}" in said.err
    talk = ("chat", "-m", tiny, *FEW, "--json", "--temperature", 0, "--set", "top_p=1.0")
    assert json.loads(cli(*talk, stdin="Is 3 odd?\n").out)["confidence"] == found["confidence"]
    # the same for a file of questions, line by line
    questions = write(tmp_path / "again.jsonl", [{"question": "Is 3 odd?"}])
    assert cli("ask", questions, "-m", tiny, *FEW).lines[1]["confidence"] == pytest.approx(found["confidence"])


@pytest.mark.slow
def test_abstaining_and_asking_another(cli, tiny, graded, store, tmp_path):
    ask = ("ask", "Is 3 odd?", "-m", tiny, *FEW)
    assert "no calibrator was fitted" in one_line(cli(*ask, "--at-least", 0.5), 1)
    assert "--at-least must lie between 0 and 1, got 2" in one_line(cli(*ask, "--at-least", 2), 2)
    cli("calibrate", "fit", graded)
    sure = cli(*ask, "--json").json["confidence"]
    passes, stops = cli(*ask, "--at-least", sure - 1e-6), cli(*ask, "--at-least", min(sure + 1e-6, 0.999))
    assert passes.code == stops.code == 0 and passes.out.strip() and not stops.out
    assert "labelled items" in stops.err and "no answer: confidence" in stops.err
    told = cli(*ask, "--at-least", 0.999, "--json").json
    assert told["answered_by"] is None and "below 1.00" in told["why"] and told["abstention"]["threshold"] == 0.999
    other = cli(*ask, "--at-least", 0.999, "--fallback", tiny, "--json").json
    assert other["answered_by"] == str(tiny) and other["first"]["confidence"] == sure
    hopeless = cli(*ask, "--risk", 0.001)
    assert hopeless.code == 0 and not hopeless.out and "no threshold promises at most 0.1 % wrong" in hopeless.err
    assert "one of" in one_line(cli(*ask, "--risk", 0.1, "--at-least", 0.5), 2)
    assert "--fallback needs" in one_line(cli(*ask, "--fallback", tiny), 2)
    assert "between 0 and 1" in one_line(cli(*ask, "--at-least", 90), 2)
    questions = write(tmp_path / "two.jsonl", [{"question": "Is 3 odd?"}, {"question": "Is 4 odd?"}])
    header, *lines = cli("ask", questions, "-m", tiny, *FEW, "--at-least", 0.999).lines
    assert header["abstention"]["threshold"] == 0.999 and [line["answered_by"] for line in lines] == [None, None]
    talk = ("chat", "-m", tiny, *FEW, "--temperature", 0, "--set", "top_p=1.0", "--at-least", 0.999)
    quiet = cli(*talk, stdin="Is 3 odd?\n")
    assert quiet.code == 0 and not quiet.out and "no answer" in quiet.err


def test_a_stale_calibrator_is_refused(cli, tiny, graded, store):
    [kept] = cli("calibrate", "fit", graded, "--json").json["written"]
    record = json.loads(Path(kept).read_text())
    record["binding"]["weights"] = "0" * 64
    stale = store / "stale.json"
    stale.write_text(json.dumps(record))
    message = one_line(cli("ask", "Hello", "-m", tiny, *FEW, "--calibrator", stale), 1)
    assert "another weights" in message and "fit one on answers of this model" in message


@pytest.mark.parametrize("verb", ["fit", "eval", "plot"])
def test_bad_files(cli, tmp_path, verb):
    end = ("-o", tmp_path / "out.png") if verb != "eval" else ()
    assert "cannot read" in one_line(cli("calibrate", verb, tmp_path / "none.jsonl", *end), 1)
    empty = write(tmp_path / "empty.jsonl", [])
    assert "no labelled lines" in one_line(cli("calibrate", verb, empty, *end), 1)
    bad = write(tmp_path / "bad.jsonl", [{"confidence": 0.5, "correct": 1}, {"confidence": "high", "correct": 1}])
    assert "bad.jsonl:2" in one_line(cli("calibrate", verb, bad, *end), 1)
    assert not (tmp_path / "out.png").exists()


@pytest.mark.slow
def test_figures_of_lines_that_were_fitted_to_are_called_too_good(cli, plain, tmp_path):
    target = tmp_path / "cal.json"
    cli("calibrate", "fit", plain, "-o", target)
    seen = cli("calibrate", "eval", plain, "--calibrator", target)
    assert seen.code == 0 and "was fitted to these lines" in seen.err
    other = write(tmp_path / "other.jsonl", [{"confidence": 0.5, "correct": i % 2} for i in range(20)])
    assert not cli("calibrate", "eval", other, "--calibrator", target).err


@pytest.mark.slow
def test_eval_refuses_a_calibrator_of_another_model(cli, graded, store):
    [kept] = cli("calibrate", "fit", graded, "--json").json["written"]
    record = json.loads(Path(kept).read_text())
    record["binding"]["template"] = "another"
    Path(kept).write_text(json.dumps(record))
    assert "another template" in one_line(cli("calibrate", "eval", graded, "--calibrator", kept), 1)


@pytest.mark.slow
def test_a_line_with_a_system_message_of_its_own_gets_no_confidence(cli, tiny, graded, store, tmp_path):
    cli("calibrate", "fit", graded)
    questions = write(
        tmp_path / "s.jsonl", [{"question": "Is 3 odd?"}, {"question": "Is 3 odd?", "system": "Be brief."}]
    )
    _, first, second = cli("ask", questions, "-m", tiny, *FEW).lines
    assert first["confidence"] is not None and second["confidence"] is None
    done = cli("ask", questions, "-m", tiny, *FEW, "--at-least", 0.001)
    assert done.code == 0, done.err
    _, _, second = done.lines
    assert second["answered_by"] is None and "system message of its own" in second["why"]


def test_serve_refuses_what_it_could_never_use(cli, tiny, tmp_path):
    lines = [{"logits": [i % 3, 1, 0], "label": i % 2} for i in range(40)]
    target = tmp_path / "classes.json"
    assert cli("calibrate", "fit", write(tmp_path / "l.jsonl", lines), "-o", target).code == 0
    assert "maps logits of classes" in one_line(cli("serve", "-m", tiny, "--calibrator", target, "--port", 0), 1)
    assert "a task's name is" in one_line(cli("serve", "-m", tiny, "--task", "../x", "--port", 0), 2)
    assert "a task's name is" in one_line(cli("ask", "Hello", "-m", tiny, "--task", "../x"), 2)
