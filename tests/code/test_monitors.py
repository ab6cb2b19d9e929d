"""When monitors trigger, what they allow then, and how they go back to waiting."""

from __future__ import annotations

import logging

import pytest
from fixed_members import FixedMembers
from monitor_toys import arity, constraint, dereference, legal, plain, vocabulary, write

from likely.code.analysis.members import Analyses, AnalysisReply, Member
from likely.code.buffer import CodeBuffer
from likely.code.monitors.monitor import join
from likely.code.monitors.triggers import EnumCaseMonitor, InstantiationMonitor
from likely.code.monitors.typestate import TypestateAutomaton, TypestateMonitor, calls_on
from likely.decoding.constraint import ConstraintViolation
from likely.errors import DataError

WORDS = ("host", "port", "guest", "x", ".", "(", ")", " ", "\n", "()", "#", '"', "1", ",", ".host", ".guest", "().port",
         "_", "__len__", "= ", "self", "...", "host.", "y.", "[0]", "f")  # fmt: skip
VOCAB = vocabulary(*WORDS)
EVERYTHING = {t for t in VOCAB.tokens}
MEMBERS = {"x": ["host", "port", "_own", "__len__"], "host": ["port"], "host()": ["port"], "self": ["_own", "host"]}


def at(prefix: str, **options):
    return constraint(VOCAB, prefix, dereference(MEMBERS, **options))


@pytest.mark.parametrize("prefix", ["x.", "f(x.", 'f"{x.', "x .", "(x\n.", "a = 1; x.", "if x.", "return x."])
def test_a_dot_in_code_triggers(prefix):
    allowed = legal(at(prefix))
    assert b"host" in allowed and b"port" in allowed and b"guest" not in allowed and b"" not in allowed


@pytest.mark.parametrize(
    "prefix",
    ["'x.", "# x.", '"""x.', "f'x.", "import x.", "from x.", "1.", "x = 1.", "..", "x = .", "", "x", "unknown."],
)
def test_elsewhere_nothing_is_constrained(prefix):
    state = at(prefix, across_trigger="allow")
    assert legal(state) == EVERYTHING and not state.approximate


def test_after_a_name_it_may_end_and_chains_trigger_again():
    state = write(at("x."), "host")
    assert b"" in legal(state) and b"(" in legal(state) and b"guest" not in legal(state)
    write(state, ".")
    assert legal(state) == {b"port", b" "}
    write(state, "port", "(")
    assert b"guest" in legal(state)


def test_private_names_need_self_or_a_typed_underscore():
    assert b"_" not in legal(at("x.")) and b"_" in legal(at("self."))
    assert legal(at("x.__l")) == set()  # no token writes the rest
    assert b"__len__" not in legal(at("x.")) and legal(at("super().")) == EVERYTHING  # unknown receiver


def test_a_name_that_the_prompt_has_begun_is_completed():
    state = constraint(vocabulary("ost", "st", "rt", "t(", "x"), "x.ho", dereference(MEMBERS))
    assert legal(state) == {b"st"}
    state = constraint(vocabulary("ost", "x", "("), "x.gu", dereference(MEMBERS))
    assert legal(state) == {b"ost", b"x", b"(", b""}  # it cannot become a member: no constraint


def test_blanks_and_line_breaks_before_a_member():
    assert b" " in legal(at("x.")) and b"\n" not in legal(at("x."))
    state = write(at("(x."), " ", "\n", " ", " ")
    assert b"host" in legal(state) and b"guest" not in legal(state) and b"\n" not in legal(state)
    assert b" " not in legal(write(at("x."), " "))  # one is enough: a small model would go on for ever
    assert b" " not in legal(write(state.fork(), *" " * 62))
    assert b" " not in legal(at("x. "))
    assert b" " in legal(write(state, "host"))  # now it ends the name


def test_dot_inside_a_token_is_checked_when_it_is_chosen():
    state = at("x")
    assert state.judges_late
    allowed = legal(state)
    assert b".host" in allowed and b".guest" not in allowed and state.approximate
    with pytest.raises(ConstraintViolation):
        write(state, ".guest")
    write(state, ".host")
    assert b"guest" not in legal(state)
    inner = write(at("x."), "host")
    assert b"().port" in legal(inner) and b".host" not in legal(inner)


def test_the_mask_depends_on_the_text_alone():
    """Whoever asked about a token before, on a draft for instance: log masses must not depend on drafts."""
    state = at("x")
    before = state.allowed().copy()
    assert not state.permits(VOCAB.tokens.index(b".guest"))
    assert (state.allowed() == before).all()


def test_split_puts_a_boundary_on_the_dot_and_allow_lets_it_pass():
    split = at("x", across_trigger="split")
    assert not {b".host", b".guest", b"().port"} & legal(split) and b"." in legal(split)
    assert not split.approximate and not split.judges_late
    assert b".guest" in legal(at("'x", across_trigger="split"))  # a string: no trigger
    free = at("x", across_trigger="allow")
    assert {b".host", b".guest"} <= legal(free)
    assert b"guest" in legal(write(free, ".guest", "("))


def test_members_that_the_analyser_cannot_see():
    class Dynamic(FixedMembers):
        def about(self, kind, buffer):
            return AnalysisReply("answered", (Member("host"), Member("__getattr__")), dynamic=True)

    from likely.code.monitors.triggers import DereferenceMonitor

    analyses = Analyses(Dynamic({}))
    assert b"guest" in legal(constraint(VOCAB, "x.", DereferenceMonitor(analyses)))
    assert b"guest" not in legal(constraint(VOCAB, "x.", DereferenceMonitor(analyses, unknown="strict")))


@pytest.mark.parametrize("status", ["unknown", "timed out", "failed"])
def test_no_answer_is_no_constraint_and_is_counted(status):
    class Silent(FixedMembers):
        def about(self, kind, buffer):
            if status == "failed":
                raise RecursionError("too deep")
            return AnalysisReply(status)

    from likely.code.monitors.triggers import DereferenceMonitor

    analyses = Analyses(Silent({}))
    assert legal(constraint(VOCAB, "x.", DereferenceMonitor(analyses, "allow"))) == EVERYTHING
    assert analyses.counts[status] == 1


def test_rollback_and_fork_are_the_direct_path():
    state = at("x.")
    path = ["host", ".", "port", "(", "x", ".", "port"]
    seen = []
    for piece in path:
        seen.append(legal(state))
        write(state, piece)
    other = state.fork()
    state.rollback(5)
    assert state.written == b"host." and legal(state) == seen[2]
    for i, piece in enumerate(path[2:], 2):
        assert legal(state) == seen[i]
        write(state, piece)
    assert legal(state) == legal(other) and state.written == other.written
    state.rollback(7)
    with pytest.raises(ValueError, match="take back"):
        state.rollback(1)


def test_an_end_token_ends_and_is_taken_back():
    state = write(at("x."), "host")
    state.advance(VOCAB.eos_id)
    assert state.finished and state.accepting and legal(state) == set() and not state.permits(0)
    state.rollback(1)
    assert not state.finished and b"(" in legal(state)


def test_the_rest_of_a_single_name_is_forced():
    state = constraint(vocabulary("ho", "st", "("), "x.", dereference({"x": ["host"]}))
    assert state.forced() == [0, 1]
    write(state, "ho")
    assert state.forced() == [1]
    assert at("x.").forced() == []


# --- arity ------------------------------------------------------------------------------------------------------------

CALL = vocabulary(
    "a", ",", ")", "(", " ", "b", '"x,y"', "),", "a)", "a,", "=", "b=", "*", "[", "]", "))", "f(", "\n", '"'
)
THREE = arity(f=plain("a", "b", "c"), g=plain("a", optional=["b"]), h=plain())


def calls(prefix: str, monitor=THREE):
    return legal(constraint(CALL, prefix, monitor))


@pytest.mark.parametrize(
    "prefix, close, comma",
    [
        ("f(", False, True), ("f(a", False, True), ("f(a, b", False, True), ("f(a, b, c", True, False),
        ('f(a, (b, c), "x,y"', True, False), ('f(a, (b, c), "x,y', True, True), ("f(a, [b, c]", False, True),
        ("f(a, b, c=1", True, False), ("f(c=1, a=2", False, True), ("f(c=1, a=2, b=3", True, False),
        ("f(a == b", False, True), ("f(*a", True, True), ("f(**a", True, True), ("g(", False, True),
        ("g(a", True, True),
        ("g(a, b", True, False), ("g(lambda a, b: a", True, True), ("h(", True, False),
        ("g(x for x, y in z", True, True),
        ("unknown(", True, True), ("def f(a", True, True), ("f(a, g(b", True, True), ("f(a, g(b)", False, True),
        ("f(a, g(b), c", True, False), ("x = (a", True, True), ("f(a,  # b, c, d\n b", False, True),
        ("f('', ''", False, True),
        ("f(a[b, c], b", False, True), ("f(a, b, c,", True, False), ("f(\n", False, True), ("a, b, c", True, True),
    ],
)  # fmt: skip
def test_arguments_are_counted(prefix, close, comma):
    allowed = calls(prefix)
    assert (b")" in allowed, b"," in allowed) == (close, comma), prefix


def test_arguments_inside_tokens_are_counted():
    allowed = calls("f(a, b, ")
    assert b"a)" in allowed and b")" not in allowed and b"a," not in allowed
    assert b"))" in calls("g(g(a") and b"))" not in calls("f(g(a") and b")," in calls("f(g(a")


def test_keyword_only_and_variable_parameters():
    star = arity(
        f=[*plain("a"), *plain("k", kind="KEYWORD_ONLY")],
        v=[*plain("a"), *plain(optional=["r"], kind="VAR_POSITIONAL")],
    )
    assert b")" not in calls("f(a", star) and b")" in calls("f(a, k=1", star) and b"," not in calls("f(a, k=1", star)
    assert b")" not in calls("v(", star) and b"," in calls("v(a, b, c", star)


def test_a_generated_call_is_asked_about():
    state = constraint(CALL, "x = ", THREE)
    write(state, "f(", "a", ",", "b")
    assert b")" not in legal(state)
    write(state, ",", '"x,y"')
    assert b")" in legal(state) and b"," not in legal(state)
    state.rollback(2)
    assert b")" not in legal(state) and b"," in legal(state)


# --- other monitors ---------------------------------------------------------------------------------------------------


def named(monitor, kind, *names):
    return monitor(Analyses(FixedMembers({}, names={kind: names})))


def test_cases_are_qualified_members():
    cases = named(EnumCaseMonitor, "cases", "Color.RED", "Color.GREEN")
    vocab = vocabulary("Color", ".", "RED", "BLUE", "Color.RED", "Color.BLUE", ":", "_", "x", " |", "GREEN")
    prefix = "match c:\n    case "
    assert legal(constraint(vocab, prefix, cases)) == {b"Color", b"Color.RED", b"_"}
    state = write(constraint(vocab, prefix, cases), "Color")
    assert legal(state) == {b"."}  # the dot does not end a name here
    write(state, ".")
    assert legal(state) == {b"RED", b"GREEN"}
    write(state, "RED")
    assert legal(state) == {b":", b" |", b""}
    assert b"BLUE" in legal(constraint(vocab, "in_case ", cases))


def test_only_exceptions_are_raised():
    errors = named(InstantiationMonitor, "exceptions", "ValueError", "Mine")
    vocab = vocabulary("Value", "Error", "Mine", "Foo", "(", "ValueError(", "Foo(", " ")
    for prefix in ("raise ", "try:\n  x\nexcept "):
        assert legal(constraint(vocab, prefix, errors)) == {b"Value", b"Mine", b"(", b"ValueError(", b" "}
    assert b"Foo" in legal(write(constraint(vocab, "except ", errors), "("))
    assert b"Foo" in legal(constraint(vocab, "x = raised ", errors))
    assert legal(constraint(vocab, "raise Val", errors)) == set()


FILE = TypestateAutomaton("closed", {"closed": {"open": "open"}, "open": {"read": "open", "close": "closed"}})


def test_typestate_follows_the_automaton():
    members = {"f": ["open", "read", "close", "name"], "g": ["read"]}
    monitor = TypestateMonitor(Analyses(FixedMembers(members)), automaton=FILE)
    vocab = vocabulary("open", "read", "close", "name", "(", ")", "f.", "\n")
    code = "def use(f):\n    "
    assert legal(constraint(vocab, code + "f.", monitor)) >= {b"open", b"name"}
    assert not legal(constraint(vocab, code + "f.", monitor)) & {b"read", b"close"}
    assert b"read" in legal(constraint(vocab, code + "f.open()\n    f.", monitor))
    assert b"read" not in legal(constraint(vocab, code + "f.open()\n    f.close()\n    f.", monitor))
    state = write(constraint(vocab, code, monitor), "f.", "open", "(", ")", "\n", "f.")
    assert b"open" not in legal(state) and b"close" in legal(state)
    assert legal(constraint(vocab, "g.", monitor)) == {b"read"}  # another kind of object


def test_calls_on_a_receiver():
    code = (
        "def a(f):\n f.open()\ndef b(f):\n # f.read()\n f.x.read(); ff.close(); f .open ( ) ; s = 'f.read()'; f == 1\n"
    )
    assert calls_on("f", code) == ["open"]
    assert calls_on("f", code + " f = new()\n f.read()\n") == ["read"]
    with pytest.raises(ValueError, match="no entry"):
        TypestateAutomaton("a", {"b": {}})


def test_monitors_that_exclude_each_other_follow_their_order(caplog):
    first, second = dereference({"x": ["host"]}), dereference({"x": ["port"]})
    both = constraint(VOCAB, "x.", first, dereference({"x": ["host", "port"]}))
    assert legal(both) == {b"host", b" ", b"host."}
    with caplog.at_level(logging.INFO, "likely.code"):
        state = constraint(VOCAB, "x.", first, second)
        only = legal(state)
    assert only == {b" "}  # a blank suits both
    vocab = vocabulary("host", "port", "(")
    with caplog.at_level(logging.INFO, "likely.code"):
        state = constraint(vocab, "x.", first, second)
        assert legal(state) == {b"host"}
    assert "overruled dereference" in caplog.text
    write(state, "host", "(")
    assert legal(state) == set(vocab.tokens)


def test_join_is_the_intersection_with_priorities():
    import numpy as np

    every = np.array([0b1111], np.uint32)
    masks = [np.array([m], np.uint32) for m in (0b0110, 0b1001, 0b0011)]
    mask, dropped = join(masks, every)
    assert mask.tolist() == [0b0010] and dropped == [1]
    assert join([], every)[0].tolist() == [0b1111]


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cursor", [-1, 4, "2"])
def test_a_cursor_outside_is_refused(cursor):
    with pytest.raises(ValueError, match=r"0\.\.3"):
        CodeBuffer("", "abc", cursor)


def test_a_missing_project_is_refused(tmp_path):
    with pytest.raises(DataError, match="not a folder"):
        CodeBuffer("", "abc", 0, str(tmp_path / "nothing"))


def test_lines_and_columns(tmp_path):
    file = tmp_path / "a.py"
    file.write_text("é.b\nx.\n")
    buffer = CodeBuffer.from_file(file, 2, 2)
    assert buffer.prefix == "é.b\nx." and buffer.suffix == "\n" and buffer.insert("y").prefix.endswith("x.y")
    for line, column, name in ((0, 0, "line"), (4, 0, "line"), (1, 4, "column")):
        with pytest.raises(ValueError, match=name):
            CodeBuffer.from_file(file, line, column)
    with pytest.raises(DataError, match="cannot read"):
        CodeBuffer.from_file(tmp_path / "none.py", 1, 0)


@pytest.mark.parametrize("options", [{"across_trigger": "never"}, {"unknown": "open"}])
def test_unknown_settings_are_refused(options):
    with pytest.raises(ValueError, match="must be"):
        dereference({}, **options)
