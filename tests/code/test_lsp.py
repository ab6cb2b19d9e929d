"""Language servers: what they are asked, what is made of their answers, and how one that fails is replaced."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest
from monitor_toys import constraint, legal, vocabulary

from likely.code.analysis.lsp import LspProvider, message, read_message
from likely.code.buffer import CodeBuffer

SERVER = Path(__file__).parents[1] / "helpers" / "fake_lsp_server.py"
TEXT = "# x: host, port\n# y: guest\n"


@pytest.fixture
def server(request, tmp_path):
    made = []

    def start(*how, **options):
        made.append(LspProvider([sys.executable, str(SERVER), *how], str(tmp_path), **{"limit_s": 30.0, **options}))
        return made[-1]

    yield start
    for one in made:
        one.close()
        assert one._child is None


def ask(provider, line, suffix=""):
    answer = provider.members(CodeBuffer("", TEXT + line + suffix, len(TEXT + line)))
    return answer.status, {member.name for member in answer.members}


def test_members_without_keywords_and_files(server):
    one = server()
    assert ask(one, "x.") == ("answered", {"host", "port", "call"})
    assert ask(one, "y.") == ("answered", {"guest", "call"})  # the changed text
    assert ask(one, "'é𝒳' + x.")[1] == {"host", "port", "call"}  # columns in UTF-16
    assert ask(one, "x.\n    ")[1] == {"host", "port", "call"}
    assert ask(one, "z.") == ("unknown", set()) and one.restarts == 0


def test_open_brackets_are_closed_for_a_second_question(server):
    assert ask(server(), "# open only\nf(x.") == ("answered", {"host", "port", "call"})
    assert ask(server(), "# open only\nf(x.", suffix="\ny = 1\n")[0] == "answered"


def test_a_server_may_ask_back(server):
    assert ask(server("chatty"), "x.") == ("answered", {"host", "port", "call"})


def test_an_incomplete_list_is_no_constraint(server):
    assert ask(server("incomplete"), "x.") == ("unknown", set())


def test_a_server_that_hangs_is_killed_and_replaced(server):
    one = server("hang", "x", limit_s=1.0)
    assert ask(one, "y.")[0] == "answered"
    child = one._child
    assert ask(one, "x.")[0] == "timed out" and not child.alive
    assert ask(one, "y.")[0] == "answered" and one.restarts == 1


@pytest.mark.parametrize("how", [("crash", "x"), ("broken",)])
def test_a_server_that_fails_is_replaced(server, how):
    one = server(*how)
    assert ask(one, "x.")[0] == "failed"
    if how[0] == "crash":
        assert ask(one, "y.")[0] == "answered" and one.restarts == 1


def test_a_command_that_is_not_there(tmp_path):
    one = LspProvider(["no-such-language-server"], str(tmp_path))
    answer = one.members(CodeBuffer("", "x.", 2))
    assert answer.status == "failed" and "cannot be started" in answer.detail
    with pytest.raises(ValueError, match="limit_s"):
        LspProvider(["x"], limit_s=0)


def test_it_guides_a_monitor(server):
    from likely.code.analysis.members import Analyses
    from likely.code.monitors.triggers import DereferenceMonitor

    vocab = vocabulary("host", "guest", "(")
    state = constraint(vocab, TEXT + "x.", DereferenceMonitor(Analyses(server())))
    assert state.ready(wait=True) and legal(state) == {b"host"}


def test_other_questions_are_unknown(server):
    assert server().about("signature", CodeBuffer("", "f(", 2)).status == "unknown"


def test_messages_on_the_wire():
    stream = io.BytesIO(message({"a": "é"}) + b"content-length: 2\nX: y\n\n{}" + b"Content-Length: 9\r\n\r\nshort")
    assert read_message(stream) == b'{"a": "\\u00e9"}'
    assert read_message(stream) == b"{}" and read_message(stream) is None
