"""Programs: holes, stops, loops, costs, decoders and traces, on a toy model whose laws are known exactly."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pytest
from toy_queries import END, PIECES, toy_model

import likely
from likely.decoding.constraint import ConstraintDeadEnd
from likely.errors import CapabilityError, ConstraintError
from likely.queries import (
    THIS,
    QueryError,
    QuerySyntaxError,
    QueryTrace,
    ReplayMismatch,
    control,
    effect,
    make_decoder,
    query,
)
from likely.queries.session import QuerySettings, Session
from likely.runtimes.toy import ToyRuntime


@pytest.fixture
def lm():
    return toy_model()


def scripted(text, pieces=PIECES, prompt_pieces=None):
    """A model that, after a prompt of one piece, writes exactly these tokens and then ends."""
    order = [*text, len(pieces)]

    def logits_of(prefix):
        row = np.full(len(pieces) + 1, -4.0, np.float32)
        at = len(prefix) - (prompt_pieces or 1)
        row[order[at] if 0 <= at < len(order) else len(pieces)] = 4.0
        return row

    model = toy_model(pieces)
    model.runtime = ToyRuntime(logits_of, vocab_size=len(pieces) + 1, context_length=100)
    return model


# --- the three ways to write a program --------------------------------------------------------------------------------


def test_text_function_and_calls_are_one_program(lm):
    @query
    def called(q, word):
        q.say("a ")
        q.put(word)
        first = q.gen("X", where=(THIS.tokens <= 3) & THIS.stops_at("b"))
        q.say(" ")
        q.gen("Y", where=THIS.one_of(["ab", "b."]))
        return first

    @query
    def written(word):
        "a {word}[X] [Y]".where(len(TOKENS(X)) <= 3 and STOPS_AT(X, "b") and Y in ["ab", "b."])  # noqa: F821
        return X  # noqa: F821

    text = query(
        'def f(word):\n  "a {word}[X] [Y]" where len(TOKENS(X)) <= 3 and STOPS_AT(X, "b") and '
        'Y in ["ab", "b."]\n  return X'
    )
    results = [q(lm, "ba") for q in (called, written, text)]
    assert len({r.text for r in results}) == 1 and len({r.value for r in results}) == 1
    holes = [[(e.name, e.tokens, e.prompt) for e in r.trace.holes] for r in results]
    assert holes[0] == holes[1] == holes[2] and [h[0] for h in holes[0]] == ["X", "Y"]
    assert written.holes == ("X", "Y")


BEFORE = "b"


def test_a_function_of_prompts_knows_its_module_defaults_and_outer_variables(lm):
    after = "a"

    @query
    def written(first=BEFORE, *, last="b"):
        "{first}{BEFORE}{after}{last}[X]".where(X in [after])  # noqa: F821

    assert written(lm).text == "bbaba" and written(lm, "a", last="a").text == "abaaa"


def test_without_constraints_argmax_is_plain_greedy_generation(lm):
    r = query('"ab. a[X]b.[Y]"')(lm, max_tokens=7)
    for event in r.trace.holes:
        prompt = "ab. a" if event.name == "X" else "ab. a" + r.trace.holes[0].text + "b."
        plain = lm.generate(prompt, temperature=0, max_tokens=7)
        assert list(event.tokens) == plain.token_ids and event.logprobs == pytest.approx(plain.token_logprobs)


@pytest.mark.parametrize("drafter", ["lookup", "suffix", "none"])
@pytest.mark.parametrize("keep", [True, False])
def test_drafters_and_kept_prefixes_change_nothing(lm, drafter, keep):
    q = query('for i in range(3):\n  "a b[X]. " where len(WORDS(X)) < 3 and STOPS_BEFORE(X, ".") and not "ab" in X')
    plain = q(lm, decoder=make_decoder("sample", n=3), seed=4, max_tokens=9)
    other = q(lm, decoder=make_decoder("sample", n=3), seed=4, max_tokens=9, drafter=drafter, keep=keep)
    assert [[e.tokens for e in r.trace.holes] for r in plain] == [[e.tokens for e in r.trace.holes] for r in other]


def test_a_loop_of_n_iterations_fills_n_holes_and_the_last_stays(lm):
    r = query('for i in range(5):\n  "a[X] "')(lm, max_tokens=2)
    assert [e.name for e in r.trace.holes] == ["X"] * 5 and r.vars["X"] == r.trace.holes[-1].text


def test_conditions_see_finished_holes_and_not_later_ones(lm):
    r = query('"[X] [Y]" where X in ["ab", "b."] and Y in ["ab", "b."] and X != Y')(lm)
    assert {r.vars["X"], r.vars["Y"]} == {"ab", "b."}


def test_escapes_and_expressions(lm):
    r = query('n = 3\n"[[a]] {{b}} {n + 1}[X]" where X in ["a"]')(toy_model(("a", "b", "[", "]", "{", "}", " ", "4")))
    assert r.text == "[a] {b} 4a"


# --- types ------------------------------------------------------------------------------------------------------------


@dataclass
class Point:
    x: int
    y: int


def test_types_give_values():
    pieces = tuple('0123456789-.eE+TrueFals{}:,"xyab ')
    model = toy_model(tuple(dict.fromkeys(pieces)), seed=3)
    q = query(lambda_free)
    r = q(model, max_tokens=30)
    assert type(r.vars["I"]) is int and type(r.vars["F"]) is float and type(r.vars["B"]) is bool
    assert r.vars["L"] in ("a", 2) and isinstance(r.vars["P"], Point) and set(r.vars["R"]) <= set("ab")
    assert json.loads(json.dumps(r.to_dict()))["vars"]["P"] == {"x": r.vars["P"].x, "y": r.vars["P"].y}


def lambda_free(q):
    q.say("a")
    q.gen("I", type=int, where=THIS.chars < 4)
    q.gen("F", type=float, where=THIS.chars < 4)
    q.gen("B", type=bool)
    q.gen("L", type=Literal["a", 2])
    q.gen("R", type="[ab]{1,3}")
    q.gen("P", type=Point, max_tokens=60)


def test_a_typed_hole_that_was_cut_is_an_error():
    model = toy_model(tuple("0123456789ab"), seed=1)
    with pytest.raises(ConstraintError, match=r"hole N ended by length before it was a whole .* Raise max_tokens"):
        query("\"a[N: r'1{9}']b\"")(model, max_tokens=3)


def test_a_query_as_type_leaves_only_its_value(lm):
    inner = query('def inner(w):\n  "b.{w}[Z]" where Z in ["ab", "ba "]\n  return "b"')
    outer = query(lambda_outer)
    r = outer(lm, inner)
    assert r.text == "a b." and r.vars["A"] == "b"
    assert [e.kind for e in r.trace.events if e.depth] == ["text", "text", "hole"]
    assert outer.replay(r.trace, lm).text == r.text


def lambda_outer(q, inner):
    q.say("a ")
    q.gen("A", type=inner.bind(" "))
    q.say(".")


# --- stops ------------------------------------------------------------------------------------------------------------


def one_hole(model, where, **options):
    return query(f'"a[X]" where {where}')(model, **options).trace.holes[0]


def test_a_stop_inside_a_token_cuts_it_and_the_program_goes_on_from_the_text():
    model = scripted([0, 5, 0, 0])  # a b. a a
    event = one_hole(model, 'STOPS_BEFORE(X, ".")')
    assert (event.text, event.tokens, event.reason) == ("ab", (0, 5), "stops_before")
    event = one_hole(scripted([0, 4, 0]), 'STOPS_AT(X, ".")')  # the space after it is dropped
    assert (event.text, event.reason) == ("a.", "stops_at")
    r = query('"a[X]b" where STOPS_BEFORE(X, ".")')(scripted([0, 5, 0]))
    assert r.text == "aabb"


def test_a_stop_in_the_very_first_token():
    event = one_hole(scripted([4, 0]), 'STOPS_BEFORE(X, ".")')
    assert (event.text, len(event.tokens)) == ("", 1)


def test_a_stop_that_spans_tokens():
    event = one_hole(scripted([0, 1, 7, 3, 0]), 'STOPS_AT(X, "b. ")')
    assert event.text == "ab. " and len(event.tokens) == 4


def test_a_stop_that_never_comes_ends_by_length():
    event = one_hole(scripted([0] * 20), 'STOPS_AT(X, "b")', max_tokens=6)
    assert (event.reason, event.text) == ("length", "a" * 6)


def test_of_two_stops_the_earlier_wins():
    event = one_hole(scripted([0, 0, 5, 3]), 'STOPS_AT(X, ".") and STOPS_BEFORE(X, "b")')
    assert (event.text, event.reason) == ("aa", "stops_before")


def test_a_stop_counts_only_where_the_other_conditions_hold():
    """The first full stop after two words; before that the end is forbidden, the full stop is not."""
    model = scripted([0, 4, 0, 4, 0, 4, 0])  # a. a. a. a
    assert one_hole(model, 'STOPS_AT(X, ".")').text == "a."
    assert one_hole(model, 'STOPS_AT(X, ".") and len(WORDS(X)) > 1').text == "a. a."
    early = scripted([0])  # wants to end after one word
    event = one_hole(early, 'STOPS_AT(X, ".") and len(WORDS(X)) > 1', max_tokens=4)
    assert END not in event.tokens and event.reason == "length"


def test_a_token_that_ends_the_hole_may_write_past_its_bounds():
    """Two characters at most, and a token of which only the first is kept: the mask must not forbid it."""
    model = scripted([0, 5, 0])  # a, then b. : the text "ab" is whole, its token has three characters with it
    event = one_hole(model, 'STOPS_BEFORE(X, ".") and len(X) < 3')
    assert event.text == "ab" and event.tokens == (0, 5)


def test_stops_must_stand_in_a_conjunction(lm):
    with pytest.raises(ConstraintError, match="must stand alone or be joined with and"):
        query('"a[X]" where STOPS_AT(X, ".") or len(X) < 3')(lm)


# --- distribution -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("normalize", ["sum", "token", "byte", "pmi"])
def test_a_distribution_is_the_softmax_of_teacher_forced_scores(lm, normalize):
    values = ["a", "ab. ", "ba b"]
    q = query(f'"b. [X]" distribution X in {values}, normalize="{normalize}"')
    r = q(lm)
    scores = lm.score("b. ", values)
    logs = {
        "sum": [s.sequence_logprob for s in scores],
        "token": [s.mean_logprob for s in scores],
        "byte": [s.sequence_logprob / len(v) for s, v in zip(scores, values, strict=True)],
        "pmi": [
            s.sequence_logprob - alone.sequence_logprob for s, alone in zip(scores, lm.score("", values), strict=True)
        ],
    }[normalize]
    expected = np.exp(logs) / np.exp(logs).sum()
    assert [r.distribution[v] for v in values] == pytest.approx(expected.tolist(), abs=1e-6)
    assert sum(r.distribution.values()) == pytest.approx(1)
    assert r.vars["X"] == max(values, key=r.distribution.__getitem__) and r.text == "b. " + r.vars["X"]
    other = query(f'"b. [X]" distribution X in {values[::-1]}, normalize="{normalize}"')(lm)
    assert other.distribution == pytest.approx(r.distribution)


def test_a_terminator_makes_prefixes_comparable(lm):
    """p("a") counts everything that begins with a, p("ab") among it; with an end both are whole values."""
    q = query('"b[X]" distribution X in ["a", "a a"], terminator="."')
    scores = [s.sequence_logprob for s in lm.score("b", ["a.", "a a."])]
    expected = np.exp(scores) / np.exp(scores).sum()
    assert list(q(lm).distribution.values()) == pytest.approx(expected.tolist(), abs=1e-6)


def test_nothing_may_follow_a_distribution(lm):
    @query
    def wrong(q):
        q.say("a")
        q.distribution("X", ["a", "b"])
        q.gen("Y")

    with pytest.raises(QueryError, match="must be the last"):
        wrong(lm)
    for values in ([], ["a", "a"], [""]):
        with pytest.raises(QueryError, match="different, non-empty"):
            query(lambda_distribution)(lm, values)


def lambda_distribution(q, values):
    q.say("a")
    q.distribution("X", values)


# --- decoders ---------------------------------------------------------------------------------------------------------


def test_in_a_list_argmax_is_the_greedy_path_over_the_trie(lm):
    values = ["ab b", "ab. ", "b.a", "ba a"]
    for prompt in ("a", "b.", "ab ", ". "):
        event = query(f'"{prompt}[X]" where X in {values}')(lm).trace.holes[0]
        text, ids = "", list(lm.encode_prompt(prompt))
        while True:
            rows = lm.runtime._logits_of(tuple(ids))
            fit = [i for i, p in enumerate(PIECES) if any(v.startswith(text + p) for v in values)]
            fit += [END] if text in values else []
            best = max(fit, key=lambda i: rows[i])
            if best == END:
                break
            ids.append(best)
            text += PIECES[best]
        assert event.text == text


def test_beams_of_width_one_are_greedy_and_wider_ones_at_least_as_likely(lm):
    q = query('"a[X] b[Y]" where STOPS_AT(X, ".") and STOPS_AT(Y, "b") and len(TOKENS(X)) < 4 and len(TOKENS(Y)) < 4')

    def score(r):
        return sum(r.logprobs.values()) - r.log_weight

    greedy, one = q(lm, max_tokens=5), q(lm, decoder=make_decoder("beam", n=1), max_tokens=5)
    assert one.text == greedy.text
    wide = q(lm, decoder=make_decoder("beam", n=6), max_tokens=5)
    assert score(wide[0]) >= score(greedy) - 1e-6
    assert [score(r) for r in wide] == sorted((score(r) for r in wide), reverse=True)


def test_a_wide_beam_finds_the_likeliest_program(lm):
    """Against every pair of values: what is found has the largest product of conditional probabilities."""
    values = ["a", "b", "ab", "ba"]
    q = query(f'"a [X] [Y]" where X in {values} and Y in {values}')
    best = q(lm, decoder=make_decoder("beam", n=64))[0]
    each = q(lm, decoder=make_decoder("sample", n=40), seed=2)
    assert (
        sum(best.logprobs.values()) - best.log_weight
        >= max(sum(r.logprobs.values()) - r.log_weight for r in each) - 1e-6
    )


def test_best_k_with_one_continuation_is_greedy(lm):
    q = query('"a[X] b[Y]" where STOPS_AT(X, ".") and len(TOKENS(Y)) < 4')
    found = q(lm, decoder=make_decoder("best_k", k=1, continuations=1, budget=60), max_tokens=6)
    plain = q(lm, max_tokens=6)
    assert found.text == plain.text
    assert [e.logprobs for e in found.trace.holes] == [pytest.approx(e.logprobs) for e in plain.trace.holes]


def test_best_k_gives_k_programs_and_ends(lm):
    q = query('"a[X]" where X in ["ab", "b.", "ba a"]')
    found = q(lm, decoder=make_decoder("best_k", k=3, budget=20, gamma=0.0))
    assert len(found) == 3 and {r.vars["X"] for r in found} <= {"ab", "b.", "ba a"}


@pytest.mark.slow
def test_samples_follow_the_masked_law(lm):
    """1,000 draws of a hole with two values against the law of local masking, computed from the table."""
    q = query('"b.[X]" where X in ["a", "b"]')
    found = q(lm, decoder=make_decoder("sample", n=1000), seed=11)
    prompt = tuple(lm.encode_prompt("b."))
    row = lm.runtime._logits_of(prompt).astype(float)
    p = np.exp(row[0]) / (np.exp(row[0]) + np.exp(row[1]))
    count = sum(r.vars["X"] == "a" for r in found)
    assert abs(count - 1000 * p) < 5.2 * np.sqrt(1000 * p * (1 - p)) + 1  # false alarm below 1e-6


def test_external_calls_happen_once_per_branch(lm):
    calls = []

    @effect
    def tool(text):
        calls.append(text)
        return "b"

    @query
    def program(q):
        q.say("a")
        x = q.gen("X", where=THIS.one_of(["ab", "b."]))
        q.put(tool(x))
        q.gen("Y", where=THIS.one_of(["ab", "b.", "ba "]))
        q.gen("Z", where=THIS.one_of(["a", "b"]))

    program(lm, decoder=make_decoder("beam", n=2))
    assert len(calls) == len(set(calls)) == 2  # two first holes, however often the body ran again


# --- cost -------------------------------------------------------------------------------------------------------------


def test_the_meter_counts_a_scripted_program_exactly():
    """Prompt of 2 tokens, hole of 3 and an end, text of 1, hole of 1 and an end, over one kept sequence."""
    first, second = {2: 0, 3: 1, 4: 0}, {0: 0, 1: END}

    def logits_of(prefix):
        row = np.zeros(len(PIECES) + 1, np.float32)
        dots = [i for i, t in enumerate(prefix) if t == 7]
        row[second[len(prefix) - dots[-1] - 1] if dots else first.get(len(prefix), END)] = 9
        return row

    model = toy_model()
    model.runtime = ToyRuntime(logits_of, vocab_size=len(PIECES) + 1, context_length=50)
    q = query('"b. [X].[Y]"')  # b. and space; . after the hole
    r = q(model)
    assert [e.tokens for e in r.trace.holes] == [(0, 1, 0, END), (0, END)]
    assert r.cost.model_queries == 6 and r.cost.decoder_calls == 1
    # the kept sequence holds prompt + a b a; "a" "b" "a" are encoded again as "ab" "a": two tokens in common
    again = model.encode_prompt("b. aba.")
    kept = [*model.encode_prompt("b. "), 0, 1, 0]
    common = next(i for i, (a, b) in enumerate(zip(kept, again, strict=False)) if a != b)
    assert r.cost.billable_tokens == (2 + 4) + (len(again) - common + 2)
    assert r.cost.forward_tokens == (2 + 3) + (len(again) - common + 1)
    stateless = q(model, keep=False).cost
    assert stateless.decoder_calls == 2 and stateless.billable_tokens == (2 + 4) + (len(again) + 2)
    assert stateless.forward_tokens == (2 + 3) + (len(again) + 1)


def test_scored_values_are_calls_of_their_own(lm):
    r = query('"b. [X]" distribution X in ["a", "a a"]')(lm)
    assert r.cost.decoder_calls == 2 and r.cost.model_queries == 1 + 3
    assert r.cost.billable_tokens == (2 + 1) + (2 + 3)


def test_plain_generation_is_counted_by_the_same_meter(lm):
    session = Session(lm, QuerySettings(keep=False, max_tokens=4))
    (first,) = session.decode(lm.encode_prompt("ab"))
    longer = lm.encode_prompt("ab" + first.text)
    (second,) = session.decode(longer)
    total = session.meter.total
    assert total.decoder_calls == 2 and total.model_queries == len(first.tokens) + len(second.tokens)
    assert total.billable_tokens == 1 + len(first.tokens) + len(longer) + len(second.tokens)


def test_the_runtime_is_left_as_it_was(lm):
    free = lm.runtime.free_tokens()
    query('"a[X] b[Y]"')(lm, decoder=make_decoder("beam", n=3), max_tokens=4)
    with pytest.raises(ZeroDivisionError):
        query('"a[X]"\n1 / 0')(lm, max_tokens=4)
    assert lm.runtime.free_tokens() == free and not lm.runtime._open


# --- traces -----------------------------------------------------------------------------------------------------------


PROGRAM = 'for i in range(3):\n  "ab {i * 0}[X]." where len(WORDS(X)) < 3\n"b[Y]" distribution Y in ["a", "b"]'
NUMBERED = (*PIECES, "0")


@pytest.mark.parametrize("decoder", ["argmax", "sample", "beam", "best_k"])
def test_a_trace_goes_through_json_and_is_reproduced(decoder):
    lm, q = toy_model(NUMBERED), query(PROGRAM)
    options = {"best_k": {"k": 2}}.get(decoder, {})
    r = q(lm, decoder=make_decoder(decoder, **options), seed=5, max_tokens=4)
    for result in r if isinstance(r, list) else [r]:
        trace = QueryTrace.from_dict(json.loads(json.dumps(result.to_dict()["trace"])))
        assert q.replay(trace).text == result.text and q.replay(trace).vars == result.vars
    first = (r[0] if isinstance(r, list) else r).trace
    again = q.replay(first, lm)
    assert again.text == first.text and [e.tokens for e in again.trace.holes] == [e.tokens for e in first.holes]


def test_a_changed_trace_or_another_model_is_noticed():
    lm, q = toy_model(NUMBERED), query(PROGRAM)
    trace = q(lm, max_tokens=4).trace
    record = json.loads(json.dumps(trace.to_dict()))
    at = next(i for i, e in enumerate(record["events"]) if e["kind"] == "hole")
    record["events"][at]["tokens"][0] = (record["events"][at]["tokens"][0] + 1) % 5
    with pytest.raises(ReplayMismatch, match="event 0"):
        q.replay(QueryTrace.from_dict(record), lm)
    with pytest.raises(ReplayMismatch, match="the trace is of"):
        q.replay(trace, toy_model(NUMBERED, seed=9))
    with pytest.raises(ReplayMismatch):
        query(PROGRAM.replace("range(3)", "range(4)")).replay(trace)


def test_an_exception_of_the_body_carries_what_had_happened(lm):
    with pytest.raises(ZeroDivisionError) as caught:
        query('"ab[X]"\nn = 1 / 0\n"[Y]"')(lm, max_tokens=3)
    trace = caught.value.query_trace
    assert [e.kind for e in trace.events] == ["text", "hole"] and trace.text.startswith("ab")
    with pytest.raises(ConstraintDeadEnd, match="where X in") as dead:
        query('"ab[X]" where X in ["a b", "b a"] and len(WORDS(X)) < 2')(lm)
    assert dead.value.query_trace.text == "ab"


def test_an_external_call_is_not_repeated_by_a_replay(lm):
    calls = []
    tool = effect(lambda: calls.append(1) or "b.")

    @query
    def program(q):
        q.say("a")
        q.put(tool())
        q.gen("X")

    r = program(lm, max_tokens=3)
    program.replay(r.trace, lm)
    assert len(calls) == 1


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, line, column, message",
    [
        ('"abc [1, 2]"', 1, 6, "no hole"),
        ('"x\\n [A" ', 1, 6, "never closed"),
        ('"y ]"', 1, 4, "closes nothing"),
        ('"hi {x"', 1, 5, "never closed"),
        ('if True:\n    """abc\n   de [X: ]"""', 3, 7, "no type after the colon"),
        ('"""one\ntwo [3]"""', 2, 5, "no hole"),
        ('"[A: 1 +]"', 1, 4, "invalid syntax"),
        ('x = 1\n"[A]" where len(B) < 3', 2, 19, "which is no hole"),
        ('"[A] [B]" distribution A in ["x"]', 1, 26, "must be the last"),
        ('"[A]" distribution A in ["x"]\n"[B]"', 1, 1, "another follows in line 2"),
        ('for i in [1]:\n  "[A]" distribution A in ["x"]', 2, 3, "in a loop"),
        ('"a" where 1 < 2', 1, 13, "has no hole"),
        ("x = 1", 1, 1, "needs a prompt"),
        ('"[A]" where STOPS_AT("x", "y")', 1, 15, "is about a hole"),
        ('sample(m=3)\n"[X]"', 1, 1, 'no option "m"'),
    ],
)
def test_what_cannot_be_read_is_refused_with_its_place(text, line, column, message):
    with pytest.raises(QuerySyntaxError, match=message) as caught:
        query(text)
    assert caught.value.line == line and abs(caught.value.column - column) <= 2


def test_wrong_use_is_refused(lm):
    with pytest.raises(TypeError, match=r"pass likely\.load"):
        query('"a[X]"')("smollm2")
    with pytest.raises(CapabilityError, match="a model on this machine"):
        query('"a[X]"')(object())
    with pytest.raises(ValueError, match="did you mean"):
        make_decoder("agmax")
    with pytest.raises(QueryError, match="names 'Z'"):
        query(lambda_unknown)(lm)
    with pytest.raises(ConstraintError, match="no text fulfils"):
        query('"a[X]" where X in ["a"] and len(X) > 3')(lm)
    with pytest.raises(TypeError, match="no truth value"):
        query(lambda_truth)(lm)
    assert likely.query is query


def lambda_unknown(q):
    from likely.queries import Hole

    q.say("a")
    q.gen("X", where=Hole("Z").chars < 3)


def lambda_truth(q):
    q.say("a")
    q.gen("X", where=THIS.chars < 3 and THIS.words < 2)


def test_control_tokens_count_only_in_the_query_s_own_text():
    from byte_tokenizer import PieceTokenizer

    from likely.queries.text import Segment, encode

    tokenizer = PieceTokenizer([b"a", b"<", b"end", b">"], control=["<end>"])
    assert encode(tokenizer, [Segment("a", True), Segment("<end>", False)]) == [0, 1, 2, 3]
    assert encode(tokenizer, [Segment("<e", True), Segment("nd>a", False)])[0] == 1
    model = toy_model(("a", "<", "end", ">"))
    r = query(lambda_control)(model, "<end>", max_tokens=1)
    assert r.trace.holes[0].prompt == (0, 1, 2, 3) and r.trace.holes[1].prompt[-1] == 4


def lambda_control(q, value):
    q.say("a")
    q.put(value)
    q.gen("X")
    q.put(control(value))
    q.gen("Y")


# --- texts with code of their own -------------------------------------------------------------------------------------


def test_a_dataclass_of_the_text_is_the_type_of_a_hole():
    text = '''
from dataclasses import dataclass
@dataclass
class Point:
    """A place."""
    x: int
def at():
    "[P: Point]"
    return P
'''
    for future in ("", "from __future__ import annotations\n"):
        made = query(future + text)
        assert made.body(_Holes({"P": "a point"})) == "a point"
        assert made.body.__globals__["Point"](3).x == 3


class _Holes:
    """A run that fills holes with given values, whatever their type."""

    def __init__(self, values):
        self.values, self.asked = values, {}

    def gen(self, name, type=None, **options):
        self.asked[name] = type
        return self.values[name]

    def say(self, text):
        pass


def test_a_function_with_prompts_before_the_query_is_a_query(lm):
    made = query("""
def inner(word):
    "{word}[X]" where len(TOKENS(X)) < 3
    return X
def outer():
    "a [Y: inner('b')]"
""")
    result = made(lm, max_tokens=4)
    assert result.text == "a " + result.vars["Y"]
    assert [e.name for e in result.trace.events if e.kind in ("hole", "nested")] == ["X", "Y"]


def test_a_decorator_changes_the_value_and_not_the_text(lm):
    plain = query('"a [X]"')(lm, max_tokens=3)
    changed = query("def twice(x):\n    return x + x\ndef q():\n    'a [@twice X]'\n    return X")(lm, max_tokens=3)
    assert changed.text == plain.text and changed.value == changed.vars["X"] == 2 * plain.vars["X"]


def test_an_unknown_name_is_told_with_its_line(lm):
    made = query('"a [ANSWER]"\n"{ANSWR}"')
    with pytest.raises(QueryError, match=r'query:2: name .ANSWR. is not defined; did you mean "ANSWER"') as caught:
        made(lm, max_tokens=3)
    assert "\n" not in str(caught.value)
