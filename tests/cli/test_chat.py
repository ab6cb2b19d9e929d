from __future__ import annotations

import contextlib
import json

import pytest
from answer_calibrators import unsure
from test_commands import one_line

from likely.cli.flags import ModelFlags
from likely.cli.options import parse_settings
from likely.cli.printing import print_ending
from likely.cli.verbs.generation.chat import Conversation, last_conversation
from likely.lm.confidence import ConfidencePolicy
from likely.lm.results import Answer


@pytest.fixture(scope="module")
def lm(tiny):
    with ModelFlags(str(tiny)).open_local() as model:
        yield model


@pytest.fixture
def talk(lm):
    return Conversation(lm, {"max_tokens": 4, "temperature": 0.0})


def typed(talk, monkeypatch, *lines):
    """Type lines at the prompt, then Ctrl-D."""
    waiting = iter(lines)

    def line(prompt):
        for text in waiting:
            return text
        raise EOFError

    monkeypatch.setattr("builtins.input", line)
    monkeypatch.setattr(Conversation, "interactive", True)
    talk.run()
    return talk.messages


def test_a_pipe_is_a_conversation_line_by_line(cli, tiny, tmp_path):
    done = cli("chat", "-m", tiny, "--max-tokens", 3, "--json", "--save", tmp_path / "t.json", stdin="Hello\nAgain\n")
    assert done.code == 0 and [r["question"] for r in done.lines] == ["Hello", "Again"]
    saved = json.loads((tmp_path / "t.json").read_text())
    assert [m["role"] for m in saved["messages"]] == ["user", "assistant"] * 2
    more = cli("chat", "-m", tiny, "--max-tokens", 3, "--json", "--load", tmp_path / "t.json", stdin="Third\n")
    assert len(more.lines) == 1 and "Hello" in more.lines[0]["prompt"] and "Third" in more.lines[0]["prompt"]


def test_history_reaches_the_model_and_undo_takes_it_back(talk, monkeypatch, capsys):
    messages = typed(talk, monkeypatch, "/system Be brief.", "one", "two", "/undo", "/history")
    assert [m["content"] for m in messages if m["role"] != "assistant"] == ["Be brief.", "one"]
    assert "user: one" in capsys.readouterr().err
    typed(talk, monkeypatch, "/reset")
    assert [m["role"] for m in talk.messages] == ["system"]
    typed(talk, monkeypatch, "/system")
    assert talk.messages == []


def test_long_messages(talk, monkeypatch):
    messages = typed(talk, monkeypatch, "first \\", "second", '"""a', "b", 'c"""')
    assert [m["content"] for m in messages if m["role"] == "user"] == ["first \nsecond", "a\nb\nc"]


@pytest.mark.parametrize("begun", ["first \\", '"""first', '"""first\nsecond\n', "first \\\nsecond"])
def test_the_end_of_the_input_ends_a_long_message(cli, tiny, begun):
    [record] = cli("chat", "-m", tiny, "--max-tokens", 3, "--json", stdin=begun).lines
    assert record["question"].split() == begun.replace('"""', "").replace("\\", "").split()


def test_bytes_that_are_no_text_are_refused_in_one_line(cli, tiny):
    one_line(cli("chat", "-m", tiny, stdin=b"\xff\n"), 1, "not UTF-8")
    with pytest.MonkeyPatch.context() as patch:  # as in the locale C
        patch.setattr("builtins.input", lambda prompt: "\udcff")
        one_line(cli("chat", "-m", tiny, stdin=b"?"), 1, "not UTF-8")


def test_commands_save_load_set_show_and_mistakes(talk, monkeypatch, capsys, tmp_path):
    path = tmp_path / "talk.json"
    typed(talk, monkeypatch, "hi", f"/save {path}", "/reset", f"/load {path}", "/show", "/set temperature=0.5", "/help")
    shown = capsys.readouterr().err
    assert talk.messages[0]["content"] == "hi" and talk.settings["temperature"] == 0.5
    assert "<|im_start|>user" in shown and "/undo" in shown
    typed(talk, monkeypatch, "/lode x", "/load /does/not/exist", "/set temperature=-1", "/set tempo=1", "/save")
    shown = capsys.readouterr().err
    for words in ("did you mean", "cannot read", "temperature must", "tempo", "file name"):
        assert words in shown
    assert talk.settings["temperature"] == 0.5
    (tmp_path / "other.json").write_text('{"a": 1}')
    typed(talk, monkeypatch, f"/load {tmp_path / 'other.json'}")
    assert "not a saved conversation" in capsys.readouterr().err


def test_an_error_keeps_the_conversation(talk, monkeypatch, capsys):
    messages = typed(talk, monkeypatch, "short", "long " * 2000)
    assert [m["content"] for m in messages if m["role"] == "user"] == ["short"]
    assert "context" in capsys.readouterr().err


def test_a_base_model_is_refused_at_once(cli, tmp_path):
    from tiny_gguf import write_tiny_llama

    base = write_tiny_llama(tmp_path / "base.gguf", chat_template=None)
    done = cli("chat", "-m", base, stdin="Hello\n")
    assert done.code == 1 and "no chat template" in done.err and done.err.count("\n") == 1


def test_what_was_said_is_saved_however_the_talk_ends(cli, tiny, tmp_path):
    saved = tmp_path / "t.json"
    long = "the cat " * 3000  # does not fit into the context
    done = cli("chat", "-m", tiny, "--max-tokens", 3, "--save", saved, stdin=f"Hi\n{long}\n")
    assert done.code == 1 and json.loads(saved.read_text())["messages"][0]["content"] == "Hi"
    before = saved.read_bytes()
    assert cli("chat", "-m", tiny, "--max-tokens", 3, "--save", saved, stdin=f"{long}\n").code == 1
    assert saved.read_bytes() == before  # an error before the first answer replaces nothing
    nowhere = cli("chat", "-m", tiny, "--save", tmp_path / "none" / "t.json", stdin="Hi\n")
    assert nowhere.code == 1 and "does not exist" in nowhere.err and not nowhere.out


def test_a_stopped_answer_has_not_reached_the_threshold(lm, talk, monkeypatch, capsys):
    """Ctrl-C while another model is being asked: the refused text is neither shown nor part of the talk."""

    class Stopped:
        def chat(self, messages, **options):
            raise KeyboardInterrupt

    monkeypatch.setattr(lm, "confidence", ConfidencePolicy(unsure(), at_least=0.99, fallback=Stopped()))
    assert typed(talk, monkeypatch, "Hello") == []
    assert not capsys.readouterr().out


@pytest.mark.parametrize("interactive", [True, False])
@pytest.mark.parametrize("begun", [True, False])
def test_a_first_answer_that_is_stopped_is_saved(lm, talk, monkeypatch, tmp_path, begun, interactive):
    """Ctrl-C during the first answer: the question is kept, with the answer as far as it came."""
    with monkeypatch.context() as patch:
        patch.setattr(Conversation, "interactive", interactive)
        pieces = iter(["the", None])

        def write(piece):
            if not begun or next(pieces) is None:
                raise KeyboardInterrupt
            return piece

        patch.setattr("likely.cli.printing.for_terminal", write)
        if not begun:
            patch.setattr(lm, "stream_chat", lambda *_, **__: write(""))
        with contextlib.suppress(KeyboardInterrupt):
            talk.answer("Hello")
            assert interactive
    assert talk.worth_keeping
    talk.save(tmp_path / "t.json")
    saved = json.loads((tmp_path / "t.json").read_text())
    if begun:
        assert [m["role"] for m in saved["messages"]] == ["user", "assistant"] and saved["messages"][1]["content"]
    else:
        assert saved["messages"] == [] and saved["unanswered"] == "Hello"
        again = Conversation(lm, {"max_tokens": 4, "temperature": 0.0})
        again.load(tmp_path / "t.json")
        assert next(m["content"] for m in typed(again, monkeypatch, "/retry")) == "Hello"


def test_a_pipe_may_bring_commands_that_touch_no_file(cli, tiny, tmp_path):
    saved = tmp_path / "t.json"
    call = ("chat", "-m", tiny, "--max-tokens", 3, "--json")
    done = cli(*call, "--save", saved, stdin="one\n/undo\n/system Be brief.\n /two\n/quit\nthree\n")
    assert done.code == 0 and [r["question"] for r in done.lines] == ["one", " /two"]
    assert [m["content"] for m in json.loads(saved.read_text())["messages"]][:2] == ["Be brief.", " /two"]
    one_line(cli(*call, stdin="/undoo\nHello\n"), 1, "unknown command", '"undo"')
    one_line(cli(*call, stdin=f"/save {tmp_path / 'other.json'}\n"), 1, "--save")
    one_line(cli(*call, stdin="/set tempreture=1\n"), 2, "tempreture")
    assert not (tmp_path / "other.json").exists()


def test_settings_read_true_and_false_as_json_writes_them():
    assert parse_settings(["a=true", "b=false", "c=False", "d=none", "e=[1, 2]", "f=word"]) == {
        "a": True, "b": False, "c": False, "d": "none", "e": [1, 2], "f": "word",
    }  # fmt: skip


def test_a_long_talk_leaves_out_its_oldest_turns_and_says_so(lm, talk, monkeypatch, capsys):
    long = "the cat sat on the mat " * 8
    questions = [f"{number} {long}" for number in range(20)]
    messages = typed(talk, monkeypatch, "/system Be brief.", *questions)
    assert [m["content"] for m in messages if m["role"] == "user"] == questions  # nothing is lost
    said = capsys.readouterr().err
    assert "Error" not in said and "no longer sees" in said and "/reset" in said
    shown = lm.fitting(messages, 4)
    assert shown[0] == messages[0] and shown[-1] == messages[-1] and shown[1]["role"] == "user"
    assert 1 < len(shown) < len(messages)
    assert len(lm.render(shown).tokens) + 4 <= lm.runtime.context_length
    assert lm.fitting(messages[:3], 4) == messages[:3]
    typed(talk, monkeypatch, "/reset", "short")
    assert "no longer sees" not in capsys.readouterr().err


def test_retry_asks_again(talk, monkeypatch, capsys):
    typed(talk, monkeypatch, "/retry")
    assert "no question" in capsys.readouterr().err
    messages = typed(talk, monkeypatch, "one", "/retry")
    assert [m["content"] for m in messages if m["role"] == "user"] == ["one"] and talk.settings["seed"] == 1
    typed(talk, monkeypatch, "long " * 2000)
    assert "/retry" in capsys.readouterr().err
    typed(talk, monkeypatch, "/retry")  # the question that failed, not the one before
    assert capsys.readouterr().err.count("Error: ") == 1 and talk.settings["seed"] == 1


def test_a_cut_answer_is_told(cli, tiny):
    done = cli("ask", "Hello", "-m", tiny, "--max-tokens", 3)
    assert done.code == 0 and done.err == (
        "Note: cut after 3 tokens: --max-tokens (in a chat /set max_tokens=...) allows more\n"
    )


@pytest.mark.parametrize(
    ("text", "reason", "words"),
    [
        ("a", "context", "the context is full"), ("a", "repetition", "repeats itself"), ("a", "length", "--max-tokens"),
        (" ", "stop", "empty"), ("a", "stop", None),
    ],
)  # fmt: skip
def test_how_an_answer_ended_is_told_in_one_line(capsys, text, reason, words):
    print_ending(Answer(text, [1, 2], None, None, None, reason, 1, 0.0))
    said = capsys.readouterr().err
    assert said == "" if words is None else words in said and said.startswith("Note: ") and said.count("\n") == 1


def test_the_last_talk_goes_on(cli, tiny, tmp_path, monkeypatch, talk):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    one = cli("chat", "-m", tiny, "--continue", stdin="Hello\n")
    assert one.code == 1 and "cannot read" in one.err and "last-chat.json" in one.err
    talk.answer("Hello")
    talk.save(last_conversation(), quiet=True)
    more = cli("chat", "-m", tiny, "--continue", "--max-tokens", 3, "--json", stdin="Again\n")
    assert "Hello" in more.json["prompt"]
    assert cli("chat", "-m", tiny, "-c", "--load", tmp_path / "a.json", stdin="").code == 2
