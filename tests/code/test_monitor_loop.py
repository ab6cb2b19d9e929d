"""Monitors in the loop: slow analyses keep nobody waiting, drafts change nothing, and the mass is the model's own."""

from __future__ import annotations

import math
import threading

import numpy as np
import pytest
from byte_tokenizer import PieceTokenizer
from fixed_members import FixedMembers
from helpers_for_loops import RandomTrees, run

from likely.code.analysis.members import Analyses, AnalysisReply
from likely.code.buffer import CodeBuffer
from likely.code.exact_choice import NameScorer, name_logprobs
from likely.code.monitors.monitor import MonitorConstraint
from likely.code.monitors.penalty import MonitorPenalty
from likely.code.monitors.triggers import DereferenceMonitor
from likely.code.name_masks import NameMasks
from likely.decoding.constraint import pack, unpack
from likely.decoding.loop import Loop
from likely.decoding.request import Request
from likely.decoding.sampling import Sampling
from likely.errors import CapabilityError
from likely.guided.vocabulary import Vocabulary
from likely.lm.model import Model
from likely.models.load import ModelInfo
from likely.runtimes.toy import ToyRuntime

PIECES = [b"x", b".", b"(", b")", b" ", b"a", b"b", b"c", b"ab", b"bc", b".a", b".c", b"a.", b"\n", b"x.", b"1"]
TOKENIZER = PieceTokenizer(PIECES, control=["<end>"])
V = TOKENIZER.vocab_size
VOCAB = Vocabulary.of(TOKENIZER, V)
MEMBERS = {"x": ["ab", "abc", "b"], "a": ["c"], "b": ["a"], "ab": ["x"]}


def runtime(seed=3):
    return ToyRuntime.random(V, seed=seed, context_length=256)


def loop(seed=3, **options):
    return Loop(runtime(seed), TOKENIZER.token_bytes, TOKENIZER.end_ids, **options)


def guard(prefix="x.", provider=None, across="check"):
    monitor = DereferenceMonitor(Analyses(provider or FixedMembers(MEMBERS)), across)
    return MonitorConstraint([monitor], VOCAB, CodeBuffer("", prefix))


def request(prefix="x.", constraint=None, seed=0, temperature=1.0, **options):
    tokens = tuple(TOKENIZER.encode(prefix))
    options = {"max_tokens": 16, **options}
    return Request(tokens, Sampling(temperature=temperature, seed=seed), constraint=constraint, **options)


class Slow(FixedMembers):
    """Answers when the test says so."""

    def __init__(self):
        super().__init__(MEMBERS)
        self.go, self.begun = threading.Event(), threading.Event()

    def about(self, kind, buffer):
        self.begun.set()
        assert self.go.wait(60)
        return super().about(kind, buffer)


def test_a_slow_analysis_keeps_no_other_request_waiting():
    slow = Slow()
    alone = [run(loop(), request(constraint=guard()))[0][0], run(loop(), request("x", guard("x"), seed=5))[0][0]]
    both = loop()
    waiting = both.add(request(constraint=guard(provider=slow)))
    other = both.add(request("x", guard("x"), seed=5))
    assert slow.begun.wait(60)  # asked as soon as the dot is there, before the model's first call
    done = {}
    while other not in done:
        for event in both.step():
            assert event.error is None
            assert event.request == other or not event.tokens  # nothing of the first comes out meanwhile
            if event.finish:
                done[event.request] = event.finish
    assert waiting not in done
    slow.go.set()
    while not both.idle:
        for event in both.step():
            if event.finish:
                done[event.request] = event.finish
    for number, expected in zip((waiting, other), alone, strict=True):
        assert done[number].tokens == expected.tokens
        assert done[number].logprobs == expected.logprobs and done[number].log_masses == expected.log_masses


def test_alone_the_loop_waits_for_the_analysis():
    slow = Slow()
    state = guard(provider=slow)
    assert not state.ready()
    threading.Timer(0.05, slow.go.set).start()
    assert run(loop(), request(constraint=state))[0][0].tokens == run(loop(), request(constraint=guard()))[0][0].tokens
    assert state.ready() and state.ready(wait=True)


def test_a_draft_is_walked_only_as_far_as_answers_are_there():
    slow = Slow()
    state = guard("", provider=slow)
    state.advance(PIECES.index(b"x"))
    state.advance(PIECES.index(b"."))
    assert not state.ready() and state.fork().ready() is False
    slow.go.set()
    assert state.ready(wait=True) and not state.permits(PIECES.index(b"c"))


@pytest.mark.parametrize("across", ["check", "split", "allow"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_drafts_change_nothing(across, temperature):
    for seed in range(6):
        plain = request(constraint=guard(across=across), seed=seed, temperature=temperature)
        drafted = request(
            constraint=guard(across=across),
            seed=seed,
            temperature=temperature,
            drafter=RandomTrees(V, seed),
            draft_budget=6,
        )
        (a,), (b,) = run(loop(), plain)[0], run(loop(), drafted)[0]
        assert a.tokens == b.tokens and a.text == b.text
        assert np.allclose(a.logprobs, b.logprobs) and np.allclose(a.log_masses, b.log_masses)


def test_every_member_in_generated_text_is_legal():
    """Many samples; each member access is looked up in the table again."""
    import re

    seen = 0
    for seed in range(60):
        text = "x." + run(loop(seed), request(constraint=guard(), seed=seed, max_tokens=24))[0][0].text
        for match in re.finditer(r"(?<![\w.])([a-z]+)\.\s*(\w+)(?=\W)", text):
            code = text[: match.start(2)]
            if match[1] in MEMBERS and '"' not in code and "import" not in code:
                assert match[2] in MEMBERS[match[1]], text
                seen += 1
    assert seen > 60


def test_masses_are_those_of_what_was_allowed():
    """log p = log q + log weight, recomputed token by token from the table (split: masks are exact)."""
    finish = run(loop(), request(constraint=guard(across="split"), seed=4))[0][0]
    model, state, prefix = runtime(), guard(across="split"), tuple(TOKENIZER.encode("x."))
    assert not finish.approximate
    for token, mass in zip(finish.tokens, finish.log_masses, strict=True):
        row = model._logits_of(prefix).astype(np.float64)
        p = np.exp(row - np.logaddexp.reduce(row))
        assert math.isclose(mass, math.log(p[unpack(state.allowed(), V)].sum()), abs_tol=1e-5)
        state.advance(token)
        prefix += (token,)


def test_choosing_again_is_choosing_without_the_illegal_tokens():
    """The first choice of "check" equals a choice whose mask held only tokens that walking finds legal."""

    class Exact:
        """The constraint with every token of its mask walked beforehand."""

        def __init__(self, inner):
            self.inner, self.vocab_size, self.approximate = inner, V, False

        def allowed(self, remaining=None):
            mask = unpack(self.inner.allowed(), V)
            return pack(mask & np.array([self.inner.permits(token) for token in range(V)]))

        def fork(self):
            return Exact(self.inner.fork())

        def __getattr__(self, name):
            return getattr(self.inner, name)

    for seed in range(40):
        late = run(loop(seed), request("x", guard("x"), seed=seed))[0][0]
        early = run(loop(seed), request("x", Exact(guard("x")), seed=seed))[0][0]
        assert late.tokens == early.tokens


def test_without_an_analysis_the_text_is_that_of_plain_decoding():
    for seed in range(10):
        free = guard(provider=FixedMembers({}))
        assert (
            run(loop(), request(constraint=free, seed=seed))[0][0].tokens
            == run(loop(), request(seed=seed))[0][0].tokens
        )


def test_with_the_models_own_names_the_text_is_unchanged():
    import re

    compared = 0
    for seed in range(30):
        plain = run(loop(seed), request(seed=seed, temperature=0.0))[0][0]
        names = re.findall(r"\w+", plain.text)
        if re.search(r"\.(?!\w)", "x." + plain.text) or not plain.text[:1].isidentifier():
            continue
        everything = {end: names for end in "xab1c)"}
        held = run(loop(seed), request(seed=seed, temperature=0.0, constraint=guard(provider=FixedMembers(everything))))
        assert held[0][0].tokens == plain.tokens
        compared += 1
    assert compared >= 5


def test_beams_and_drawn_drafts_need_exact_masks():
    for options in ({"beams": 2, "temperature": 0.0}, {"verification": "rejection"}):
        with pytest.raises(CapabilityError, match="across_trigger"):
            loop().add(request(constraint=guard(), **options))
    beams = run(loop(), request(constraint=guard(across="split"), beams=3, temperature=0.0, samples=2))
    assert len(beams[0]) == 2 and all(f.text[:1] in ("a", "b", " ") for f in beams[0])


def test_a_penalty_of_nothing_changes_nothing_and_a_large_one_is_a_mask():
    for seed in range(8):
        plain = run(loop(), request(seed=seed))[0][0]
        soft = run(loop(), request(seed=seed, logits_processors=(MonitorPenalty(guard(across="allow"), 0.0),)))[0][0]
        assert soft.tokens == plain.tokens
        hard = run(loop(), request(seed=seed, constraint=guard(across="allow"), max_tokens=3))[0][0]
        huge = run(
            loop(), request(seed=seed, logits_processors=(MonitorPenalty(guard(across="allow"), 1e4),), max_tokens=3)
        )[0][0]
        assert huge.tokens == hard.tokens
    with pytest.raises(ValueError, match="penalty"):
        MonitorPenalty(guard(), -1.0)


def test_a_penalty_is_taken_from_illegal_tokens_only():
    soft = MonitorPenalty(guard(across="allow"), 2.5).begin(runtime(), ())
    logits = np.zeros(V, np.float32)
    out = soft.apply((), logits)
    allowed = unpack(guard(across="allow").allowed(), V)
    assert np.array_equal(out, np.where(allowed, 0, -2.5).astype(np.float32))
    soft.advance([PIECES.index(b"c")], [])  # illegal, and chosen all the same
    assert np.array_equal(soft.apply((), logits)[:-1], logits[:-1])


# --- whole names ------------------------------------------------------------------------------------------------------


def test_probabilities_of_names_by_enumeration():
    """P(name) summed over all token strings whose text is the name and a break; canonical beginnings only."""
    model, context = runtime(), tuple(TOKENIZER.encode("x."))
    names = [b"ab", b"abc", b"b", b"c"]
    found = name_logprobs(model, NameMasks(VOCAB), context, names)

    def probability(prefix, token):
        row = model._logits_of(prefix).astype(np.float64)
        return math.exp(row[token] - np.logaddexp.reduce(row))

    for name, value in zip(names, found, strict=True):
        total, ids, prefix, reach = 0.0, VOCAB.spell(name), context, 1.0
        for at in range(len(ids) + 1):
            rest = name[len(VOCAB.text(ids[:at])) :]
            for token, text in enumerate(VOCAB.tokens):
                ends = text.startswith(rest) and len(text) > len(rest) and not chr(text[len(rest)]).isalnum()
                if ends or (not rest and token in VOCAB.end_ids):
                    total += reach * probability(prefix, token)
            if at < len(ids):
                reach *= probability(prefix, ids[at])
                prefix += (ids[at],)
        assert math.isclose(value, math.log(total), abs_tol=1e-5)
    assert np.exp(found).sum() < 1
    assert len(model._open) == 0


def test_many_names_are_scored_in_groups_alike():
    import itertools

    names = [("".join(t)).encode() for t in itertools.product("abc", repeat=4)][:80]
    together = name_logprobs(runtime(), NameMasks(VOCAB), [0, 1], names)
    alone = [name_logprobs(runtime(), NameMasks(VOCAB), [0, 1], [name])[0] for name in names]
    assert np.allclose(together, alone, atol=1e-5)


# --- complete_code ----------------------------------------------------------------------------------------------------


def model(seed=3) -> Model:
    return Model(runtime(seed), TOKENIZER, ModelInfo("toy", "toy", "toy", "float32", "0", "pieces", template=False))


def complete(seed=3, text="x.", **options):
    options = {"provider": FixedMembers(MEMBERS), "max_tokens": 12, **options}
    return model(seed).complete_code(CodeBuffer("", text), **options)


def test_a_completion_reports_its_triggers():
    import re

    for seed in range(20):
        found = complete(seed)
        whole = "x." + found.text
        assert found.triggers[0].position == 2 + len(found.text) - len(found.text.lstrip())
        assert found.triggers[0].n_legal == 3 and found.triggers[0].status == "answered"
        for event in found.triggers:
            assert re.match(r"\w*", whole[event.position :])[0] == event.chosen
        assert [e.position for e in found.triggers] == sorted(e.position for e in found.triggers)
        assert "\n" not in found.text.split("(")[0] and found.finish_reason in ("line", "stop", "length")
        assert found.analyses["answered"] >= 1
        assert found.log_weight <= 0 and found.logprob < 0


def test_exact_choice_takes_the_likeliest_name():
    for seed in range(20):
        context = TOKENIZER.encode("x.")
        values = name_logprobs(runtime(seed), NameMasks(VOCAB), context, [b"ab", b"abc", b"b"])
        best = ["ab", "abc", "b"][int(np.argmax(values))]
        found = complete(seed, choose="exact")
        assert found.triggers[0].chosen == best or found.text.strip() == ""


def test_exact_choice_may_differ_from_greedy():
    chosen = [(complete(s).triggers[0].chosen, complete(s, choose="exact").triggers[0].chosen) for s in range(40)]
    assert any(greedy != exact for greedy, exact in chosen)


def test_the_log_probability_is_that_of_the_text_kept():
    found = complete(text="x.", stop="none")
    prefix, total = tuple(TOKENIZER.encode("x.")), 0.0
    for token in found.token_ids:
        row = runtime()._logits_of(prefix).astype(np.float64)
        total += row[token] - np.logaddexp.reduce(row)
        prefix += (token,)
    assert math.isclose(found.logprob, total, abs_tol=1e-4)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"stop": "page"}, "stop must"), ({"choose": "best"}, "choose must"), ({"policy": "firm"}, "policy must"),
        ({"monitors": ["derefrence"]}, 'did you mean "dereference"'), ({"prompt_tokens": 0}, "prompt_tokens"),
        ({"policy": "soft", "choose": "exact"}, "legal names"), ({"max_tokens": 1000}, "max_tokens"),
    ],
)  # fmt: skip
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        complete(**options)


def test_time_outs_are_counted_and_not_fatal():
    class Never(FixedMembers):
        def about(self, kind, buffer):
            return AnalysisReply("timed out")

    found = complete(provider=Never({}))
    assert found.analyses["timed out"] >= 1 and found.triggers[0].n_legal is None
    assert found.triggers[0].status == "timed out"
    assert found.text == complete(monitors=()).text


def test_a_scorer_goes_on_from_what_it_holds():
    """Growing, shrinking and other contexts, against fresh ones; fewer tokens are computed."""
    model = runtime()
    scorer = NameScorer(model, NameMasks(VOCAB))
    names = [b"ab", b"abc", b"c"]
    for context in ([0, 1, 2], [0, 1, 2, 5, 1], [0, 1, 2], [0, 1, 3, 3], [7]):
        assert np.allclose(scorer.logprobs(context, names), name_logprobs(runtime(), NameMasks(VOCAB), context, names))
    scorer.close()
    assert len(model._open) == 0
    before = model.tokens_computed
    scorer.logprobs([0] * 30, names)
    first = model.tokens_computed - before
    scorer.logprobs([0] * 31, names)
    assert model.tokens_computed - before - first == first - 29
    scorer.close()
