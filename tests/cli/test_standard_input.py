"""What a pipe and --file bring stands before the question, so that nothing that was given is dropped."""

from __future__ import annotations

import io
import os
import subprocess
import sys

import pytest
from test_commands import one_line

from likely.cli import options

FEW = ["--max-tokens", 2]


def asked(done):
    return done.json["question"]


def test_a_pipe_and_a_question_are_joined(cli, tiny):
    given = cli("ask", "Summarise this.", "-m", tiny, *FEW, "--json", stdin="The moon is far.\n\n")
    assert asked(given) == "The moon is far.\n\nSummarise this." and "The moon is far." in given.json["prompt"]
    assert asked(cli("ask", "-m", tiny, *FEW, "--json", stdin="A question?\n")) == "A question?"
    assert asked(cli("ask", "-", "-m", tiny, *FEW, "--json", stdin="A question?\n")) == "A question?"
    assert asked(cli("ask", "Only this", "-m", tiny, *FEW, "--json", stdin="")) == "Only this"
    assert asked(cli("ask", "Only this", "-m", tiny, *FEW, "--json")) == "Only this"
    made = cli("generate", "b", "-m", tiny, *FEW, "--json", stdin="a\n").json
    assert made["prompt"] == "a\n\nb"


def test_files_come_first(cli, tiny, tmp_path):
    one, two = tmp_path / "one.txt", tmp_path / "two.txt"
    one.write_text("First.\n")
    two.write_text("Second.\n")
    given = cli("ask", "Which?", "--file", one, "-f", two, "-m", tiny, *FEW, "--json", stdin="Third.\n")
    assert asked(given) == "First.\n\nSecond.\n\nThird.\n\nWhich?"
    assert asked(cli("ask", "-f", one, "-m", tiny, *FEW, "--json")) == "First."
    one_line(cli("ask", "Which?", "-f", tmp_path / "three.txt", "-m", tiny), 1, "cannot read", "three.txt")
    (tmp_path / "none.txt").write_text("\n")
    one_line(cli("ask", "Which?", "-f", tmp_path / "none.txt", "-m", tiny), 1, "none.txt is empty")
    one_line(cli("ask", "q.jsonl", "-f", one, "-m", tiny), 2, "--file")
    one_line(cli("ask", "-m", tiny), 2, "give a question")


@pytest.mark.skipif(os.name == "nt", reason="kinds of files of POSIX")
def test_only_pipes_and_files_are_read_beside_a_question(monkeypatch, tmp_path, capsys):
    with open(os.devnull) as nothing:
        monkeypatch.setattr(sys, "stdin", nothing)
        assert options.text_or_stdin("question", "question") == "question"
    path = tmp_path / "a.txt"
    path.write_text("text\n")
    with path.open() as source:
        monkeypatch.setattr(sys, "stdin", source)
        assert options.text_or_stdin("question", "question") == "text\n\nquestion"
    reading, writing = os.pipe()
    with os.fdopen(reading) as pipe, os.fdopen(writing, "w") as other:
        monkeypatch.setattr(sys, "stdin", pipe)
        options._say_what_is_waited_for("question", 0.0)
        assert "reading standard input" in capsys.readouterr().err
        other.write("late")
        other.flush()
        options._say_what_is_waited_for("question", 0.0)
        assert not capsys.readouterr().err
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff")))
    with pytest.raises(Exception, match="not UTF-8"):
        options.text_or_stdin(None, "question")


@pytest.mark.skipif(os.name == "nt", reason="a shell of POSIX")
@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_are_no_accident(closed):
    program = f'{sys.executable} -c "from likely.cli import main; main()"'
    done = subprocess.run(["sh", "-c", f"{program} models --json {closed}"], capture_output=True, text=True)
    assert done.returncode == 0 and "should not have happened" not in done.stderr
