"""Sampling from the model conditioned on a language, against the exact conditional by enumeration on a toy."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
import pytest
from statistics_of_draws import chi_square_p
from tiny_gguf import write_tiny_llama

import likely
from likely.decoding.constraint import ConstraintViolation, mask_of
from likely.decoding.particles import Particles, effective_sample_size, log_mean, systematic
from likely.errors import CapabilityError, ConstraintError
from likely.guided.conditional_sampling import MembershipCheck
from likely.lm.model import Model
from likely.models.load import ModelInfo
from likely.runtimes.toy import CharTokenizer, ToyRuntime, exact_logprob

BOS, END, V = 5, 6, 7
WORDS = ("aa", "ab", "b", "bcd", "cae", "da")
LANGUAGE = tuple(tuple("abcde".index(c) for c in word) for word in WORDS)
PROMPT = "ab"
CONTEXT = (BOS, 0, 1)


@dataclass(eq=False)
class Words:
    """The texts of a finite list, in the slow obvious way."""

    taken: tuple[int, ...] = ()
    language: tuple[tuple[int, ...], ...] = LANGUAGE
    vocab_size: int = V
    approximate: bool = False

    @property
    def accepting(self):
        return (self.taken[:-1] if self.taken[-1:] == (END,) else self.taken) in self.language

    @property
    def finished(self):
        return self.members() <= {END}

    def members(self):
        n = len(self.taken)
        following = {word[n] for word in self.language if word[:n] == self.taken and len(word) > n}
        return following | ({END} if self.taken in self.language else set())

    def allowed(self, remaining=None):
        return mask_of(self.members(), V)

    def permits(self, token):
        return token in self.members()

    def advance(self, token):
        if not self.permits(token):
            raise ConstraintViolation(f"{token}")
        self.taken += (token,)

    def forced(self):
        return list(self.members())[:1] if len(self.members()) == 1 else []

    def fork(self):
        return replace(self)

    def rollback(self, n):
        self.taken = self.taken[: len(self.taken) - n]

    def ready(self, wait=False):
        return True


def toy_model(seed=0, **options):
    info = ModelInfo("toy", "toy", "toy", "float32", "0", "chars", template=False)
    return Model(ToyRuntime.random(V, seed=seed, **options), CharTokenizer("abcde", add_bos=True), info)


def outcomes(lm, limit):
    """{word: (p, q)} of all whole texts of at most `limit` tokens, their end token included where it fits."""
    found = {}
    for word, tokens in zip(WORDS, LANGUAGE, strict=True):
        path = (*tokens, END)[:limit]
        if len(tokens) > limit:
            continue
        state, logq = Words(), 0.0
        for at, token in enumerate(path):
            row = np.asarray(lm.runtime._logits_of((*CONTEXT, *path[:at])), np.float64)
            allowed = row[list(state.members())]
            logq += row[token] - np.logaddexp.reduce(allowed)
            state.advance(token)
        found[word] = math.exp(exact_logprob(lm.runtime, path, given=CONTEXT)), math.exp(logq)
    return found


def laws(lm, limit=3):
    """(p( | L), q, p(L)); q is a law only where no text of it is cut."""
    exact = outcomes(lm, limit)
    total = sum(p for p, _ in exact.values())
    return {w: p / total for w, (p, _) in exact.items()}, {w: q for w, (_, q) in exact.items()}, total


def total_variation(a, b):
    return 0.5 * sum(abs(a.get(k, 0.0) - b.get(k, 0.0)) for k in {*a, *b})


def ask(lm, **options):
    return lm.generate(PROMPT, **{"constraint": Words(), "max_tokens": 3, **options})


def weigh(lm, **options):
    return lm.ensemble(PROMPT, **{"constraint": Words(), "max_tokens": 3, **options})


# --- arithmetic -------------------------------------------------------------------------------------------------------


def test_effective_sample_size_and_mean_of_known_weights():
    log = np.log(np.array([1.0, 1, 1, 1])) - 700
    assert math.isclose(effective_sample_size(log), 4) and math.isclose(log_mean(log), -700)
    assert math.isclose(effective_sample_size(np.array([0, -np.inf, -np.inf])), 1)
    assert math.isclose(effective_sample_size(np.log([3.0, 1.0])), 16 / 10)
    assert effective_sample_size(np.full(3, -np.inf)) == 0 and log_mean(np.full(3, -np.inf)) == -np.inf
    assert math.isclose(log_mean(np.array([0.0, -np.inf])), -math.log(2))


def test_systematic_draws_are_in_proportion_and_never_of_weight_zero():
    rng = np.random.default_rng(0)
    for _ in range(20):
        p = rng.dirichlet(np.full(6, 0.3)) * (rng.random(6) < 0.7)
        if not p.sum():
            continue
        p /= p.sum()
        for n in (1, 4, 64):
            counts = np.array([systematic(p, n, u) for u in (np.arange(1000) + 0.5) / 1000])
            assert (counts.sum(axis=1) == n).all() and not counts[:, p == 0].any()
            assert (np.abs(counts - n * p) < 1 + 1e-9).all()
            np.testing.assert_allclose(counts.mean(axis=0), n * p, atol=1e-2)
    assert systematic(np.array([0.1] * 10 + [0.0]), 3, np.nextafter(1, 0)).tolist()[-1] == 0


# --- laws -------------------------------------------------------------------------------------------------------------


def test_the_toy_distorts():
    """What all other tests rest on: q is far from p( | L), and both are laws."""
    p, q, _ = laws(toy_model())
    assert abs(sum(q.values()) - 1) < 1e-6 and total_variation(p, q) > 0.25


@pytest.mark.slow
@pytest.mark.parametrize("limit", [2, 3, 4])
@pytest.mark.parametrize("sampler", ["importance", "smc"])
def test_weights_are_proper(sampler, limit):
    """The mean weight on each text is its probability, whatever was drawn anew; so the mean weight of all is p(L)."""
    lm, seeds = toy_model(), 1500
    exact = outcomes(lm, limit)
    sums = {word: np.zeros(seeds) for word in exact}
    again = 0
    for seed in range(seeds):
        try:
            found = weigh(lm, sampler=sampler, particles=4, seed=seed, max_tokens=limit)
        except ConstraintError:  # every weight is 0
            assert limit == 2
            continue
        again += found.resamplings > 0
        weights = np.exp(found.log_weights)
        for text, weight in zip(found.texts, weights, strict=True):
            if text.complete:
                sums[text.text][seed] += weight / 4
            else:
                assert weight == 0 and limit == 2
        assert math.isclose(math.exp(found.log_evidence), weights.mean(), rel_tol=1e-9)
    assert again > (20 if limit == 2 else 150) if sampler == "smc" else again == 0
    values = {**{w: p for w, (p, _) in exact.items() if p > 1e-3}, "any": sum(p for p, _ in exact.values())}
    for word, value in values.items():
        seen = sum(sums.values()) if word == "any" else sums[word]
        error = seen.std(ddof=1) / math.sqrt(seeds)
        assert abs(seen.mean() - value) < 5.5 * error, (word, value, seen.mean(), error)


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["importance", "smc"])
def test_the_law_nears_the_conditional_with_more_particles(sampler):
    """Weights normalised and averaged over seeds are the law of one drawn text; with one particle it is q."""
    lm = toy_model()
    p, q, _ = laws(lm)
    distance = {}
    for particles, seeds in ((1, 2000), (4, 800), (16, 300), (64, 120)):
        law = Counter()
        for seed in range(seeds):
            found = weigh(lm, sampler=sampler, particles=particles, seed=seed)
            for text, weight in zip(found.texts, found.probabilities, strict=True):
                law[text.text] += weight / seeds
        distance[particles] = total_variation(law, p)
        if particles == 1:
            assert total_variation(law, q) < 0.05
    assert distance[1] > 0.2
    assert distance[1] > 1.2 * distance[4] > 1.2 * 1.2 * distance[16]
    assert distance[64] < distance[1] / 6


@pytest.mark.slow
def test_importance_draws_follow_their_exact_law():
    """With three texts the law of the drawn one is a sum over all triples; it is neither q nor p( | L)."""
    lm, n, draws = toy_model(), 3, 4000
    exact = outcomes(lm, 3)
    law = Counter()
    for triple in itertools.product(exact, repeat=n):
        chance = math.prod(exact[w][1] for w in triple)
        weights = [exact[w][0] / exact[w][1] for w in triple]
        for word, weight in zip(triple, weights, strict=True):
            law[word] += chance * weight / sum(weights)
    found = [ask(lm, sampler="importance", particles=n, seed=seed).text for seed in range(draws)]
    p, q, _ = laws(lm)
    assert chi_square_p(found, law) > 1e-6
    assert chi_square_p(found, p) < 1e-6 and chi_square_p(found, q) < 1e-6


@pytest.mark.slow
def test_rejection_is_exact_and_local_masking_is_not():
    lm = toy_model()
    p, q, total = laws(lm)
    exact = ask(lm, sampler="rejection", n=3000, particles=512, max_tries=10**5)
    assert chi_square_p([t.text for t in exact], p) > 1e-6
    assert all(t.complete for t in exact)
    local = [t.text for t in ask(lm, sampler="local", n=3000)]
    assert chi_square_p(local, q) > 1e-6 and chi_square_p(local, p) < 1e-6
    rate = math.exp(exact[0].log_evidence)  # of a negative binomial number of tries
    assert abs(rate - total) < 5.5 * total * math.sqrt((1 - total) / 3000)


@pytest.mark.slow
def test_the_evidence_of_rejection_is_unbiased():
    lm, seeds = toy_model(), 500
    *_, total = laws(lm)
    found = np.array(
        [math.exp(ask(lm, sampler="rejection", n=3, particles=32, seed=s)[0].log_evidence) for s in range(seeds)]
    )
    assert abs(found.mean() - total) < 5.5 * found.std(ddof=1) / math.sqrt(seeds)
    assert ask(lm, sampler="rejection").log_evidence is None  # one accepted text says nothing without bias


# --- what a text depends on -------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["importance", "smc", "rejection"])
def test_texts_do_not_depend_on_companions(sampler):
    options = {"constraint": Words(), "max_tokens": 3, "sampler": sampler, "n": 5, "particles": 16, "seed": 3}
    options |= {"max_tries": 10**5} if sampler == "rejection" else {}
    prompts = ["ab", "", "cde", "a", "dd"]
    alone = [[t.text for t in toy_model().generate(p, **options)] for p in prompts]
    together = toy_model().generate(prompts, **options)
    assert [[t.text for t in group] for group in together] == alone
    other = toy_model().generate(prompts, **{**options, "seed": 4})
    assert [[t.text for t in group] for group in other] != alone


def test_particles_survive_want_of_room():
    options = {"constraint": Words(), "max_tokens": 3, "sampler": "smc", "n": 5, "particles": 6, "seed": 3}
    prompts = ["ab", "ba", "cde"]
    wanted = toy_model().generate(prompts, **options)
    lm = toy_model(tokens_held=60, sequences=9)
    free = lm.runtime.free_tokens()
    found = lm.generate(prompts, **options)
    assert [[t.token_ids for t in g] for g in found] == [[t.token_ids for t in g] for g in wanted]
    assert lm.runtime.free_tokens() == free


def test_tries_that_run_at_once_do_not_change_what_is_accepted():
    lm = toy_model()
    few, many = (ask(lm, sampler="rejection", n=20, particles=k, max_tries=9999) for k in (7, 256))
    assert [t.token_ids for t in few] == [t.token_ids for t in many] and few[0].log_evidence == many[0].log_evidence


def test_copies_share_no_noise(monkeypatch):
    seen, select, again = [], Particles.select, 0

    def watched(self, *arguments):
        going, done = select(self, *arguments)
        seen.append([h.sample for h in going])
        nonlocal again
        again += bool(self.resamplings)
        return going, done

    monkeypatch.setattr(Particles, "select", watched)
    for seed in range(20):
        weigh(toy_model(seed), sampler="smc", particles=32, max_tokens=4)
    assert again and all(len(set(samples)) == len(samples) for samples in seen)
    assert max(map(max, filter(None, seen))) >= 32


def test_where_nothing_is_drawn_anew_smc_is_importance():
    lm = toy_model()
    for seed in range(40):
        a, b = (weigh(lm, sampler=s, particles=8, seed=seed) for s in ("importance", "smc"))
        if not b.resamplings:
            assert [t.token_ids for t in a.texts] == [t.token_ids for t in b.texts]
            np.testing.assert_allclose(a.log_weights, b.log_weights, atol=1e-9)
            return
    raise AssertionError("every run drew anew")


def test_a_drafter_changes_no_text_of_importance_and_rejection():
    lm = toy_model()
    for sampler in ("importance", "rejection"):
        plain, drafted = (ask(lm, sampler=sampler, n=8, drafter=d) for d in (None, "lookup"))
        assert [t.token_ids for t in plain] == [t.token_ids for t in drafted]


# --- records and refusals ---------------------------------------------------------------------------------------------


def test_records_say_how_they_were_drawn():
    lm = toy_model()
    [one, two] = ask(lm, sampler="smc", particles=16, n=2)
    assert one.log_evidence == two.log_evidence < 0 and 1 <= one.ess <= 16
    assert math.isclose(one.sequence_logprob, one.guided_logprob + one.log_weight)
    exact = ask(lm, sampler="rejection", particles=64)
    assert exact.log_weight is None and exact.guided_logprob is None and exact.ess == 1
    assert ask(lm).log_evidence is None


def test_a_text_that_is_not_whole_has_weight_zero():
    """Two tokens are too few for some words: those are cut, and none that is returned was."""
    lm = toy_model()
    for sampler in ("importance", "smc"):
        assert all(t.complete for t in ask(lm, sampler=sampler, max_tokens=2, n=30))
        with pytest.raises(ConstraintError, match="none of 64 texts was whole within max_tokens=1: raise it"):
            ask(lm, sampler=sampler, max_tokens=1, constraint=Words(language=LANGUAGE[3:5]))


def test_rejection_gives_up_with_the_rate_that_it_saw():
    with pytest.raises(
        ConstraintError, match=r'"rejection": 0 of 100 texts had the form \(0.00%\), 1 wanted: raise max'
    ):
        ask(toy_model(), sampler="rejection", max_tries=100, constraint=Words(language=((4,) * 12,)), max_tokens=20)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"temperature": 0.0}, CapabilityError, "temperature must be 1.0, got 0.0"),
        ({"temperature": 0.7}, CapabilityError, 'sampler="local" takes it'),
        ({"top_p": 0.9}, CapabilityError, "top_p must be 1.0"),
        ({"top_k": 5}, CapabilityError, "top_k must be 0"),
        ({"repetition_penalty": 1.1}, CapabilityError, "repetition_penalty"),
        ({"logit_bias": {1: 2.0}}, CapabilityError, "logit_bias must be empty"),
        ({"min_tokens": 1}, CapabilityError, "drop min_tokens="),
        ({"constraint": None}, ValueError, "needs a form"),
        ({"particles": 0}, ValueError, "particles must be a whole number >= 1"),
        ({"sampler": "gibbs"}, ValueError, "sampler must be one of local, importance, smc, rejection"),
        ({"beams": 2, "temperature": 0.0}, CapabilityError, "drop beams="),
        ({"drafter": "lookup"}, CapabilityError, "token by token: drop drafter="),
        ({"sampler": "local", "particles": 4}, ValueError, "particles and max_tries are for"),
    ],
)
def test_what_is_not_the_models_own_law_is_refused(options, error, message):
    with pytest.raises(error, match=message):
        ask(toy_model(), **{"sampler": "smc", **options})


def test_a_stream_takes_no_sampler():
    with pytest.raises(CapabilityError, match="sampler= is for generate and ensemble"):
        toy_model().stream(PROMPT, constraint=Words(), sampler="smc")
    with pytest.raises(ValueError, match="has no weights"):
        weigh(toy_model(), sampler="local")


def test_watch_sees_the_first_violation_and_takes_it_back():
    watch = MembershipCheck(Words(), mask_of(range(V), V), mask_of([END], V))
    for token in (0, 3):
        watch.advance(token)
    assert watch.broken_for == 1 and not watch.accepting and watch.allowed().tolist() == mask_of([END], V).tolist()
    copy = watch.fork()
    with pytest.raises(ConstraintViolation):
        watch.advance(0)
    watch.advance(END)
    watch.rollback(2)
    assert not watch.broken_for and watch.permits(4) and watch.inner.taken == (0,)
    watch.advance(1)
    assert watch.accepting and copy.broken_for == 1
    watch.advance(END)
    assert watch.accepting
    watch.rollback(3)
    assert watch.inner.taken == ()


# --- engines ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["llamacpp", "torch"])
def lm(request, tmp_path_factory):
    pytest.importorskip("llguidance")
    path = write_tiny_llama(tmp_path_factory.mktemp("m") / "tiny.gguf")
    with likely.load(str(path), runtime=request.param) as model:
        yield model


@pytest.mark.parametrize("sampler", ["importance", "smc", "rejection"])
def test_on_an_engine_the_mean_weight_is_the_probability_of_the_language(lm, sampler):
    """The language: one token that is an "a" or "the" and so on; its probability is read off one row."""
    ids = [i for i in range(lm.tokenizer.vocab_size) if lm.tokenizer.token_bytes(i) in (b"a", b"t", b"c")]
    assert len(ids) >= 2
    words = sorted({lm.tokenizer.token_bytes(i).decode() for i in ids})
    row = lm.generate("the cat", max_tokens=1, top_logprobs=lm.runtime.vocab_size, temperature=0.0).top_logprobs[0]
    exact = sum(math.exp(t.logprob) for t in row if t.token_id in ids)
    free = lm.runtime.free_tokens()
    options = {"regex": "|".join(words), "max_tokens": 1, "sampler": sampler, "particles": 100}
    found = lm.ensemble("the cat", n=40, max_tries=10**5, **options)
    if sampler == "rejection":
        assert abs(math.exp(found.log_evidence) - exact) < 5.5 * exact / math.sqrt(39)
    else:
        assert math.isclose(math.exp(found.log_evidence), exact, rel_tol=1e-4)  # one mass, known before any draw
    assert {t.text for t in found.texts} <= set(words) and lm.runtime.free_tokens() == free


def test_on_an_engine_particles_grow_and_are_drawn_anew(lm):
    free = lm.runtime.free_tokens()
    options = {"regex": "(a|b|the cat|mat c)*d", "max_tokens": 12, "particles": 24, "sampler": "smc", "n": 6}
    [one, two] = lm.generate(["the cat", "on"], **options)
    assert [t.text for t in lm.generate("on", **options)] == [t.text for t in two]
    assert all(t.complete for t in (*one, *two)) and lm.runtime.free_tokens() == free


def test_texts_that_are_validated_afterwards_are_refused(lm):
    with pytest.raises(CapabilityError, match='on_unsupported="validate" draws again what sampler="smc" would weigh'):
        lm.generate("a", schema={"type": "integer"}, on_unsupported="validate", sampler="smc")
