"""Self-ensembles: which prompts members ask, that demonstrations are never asked for, and what it costs."""

from __future__ import annotations

import numpy as np
import pytest

from likely.errors import DataError
from likely.lm.model import Model, ModelInfo
from likely.prompting.ensembles.combining import COMBINATIONS, combine_members
from likely.prompting.ensembles.demonstrations import (
    FewShotTask,
    record_fingerprint,
    refuse_known,
    sample_examples,
    write_examples,
)
from likely.prompting.ensembles.ensemble import EnsembleSpec, SelfEnsemble, sample_members, tuning_pairs
from likely.prompting.selection.answer_bias import cbm, contextual, pmi
from likely.prompting.templates import PromptPool, Template
from likely.runtimes.toy import CharTokenizer, ToyRuntime

TOY = ModelInfo("toy", "toy", "toy", "float32", "0", "chars", False)
LETTERS = "abcdefgh \n:{}[]NAMSK/"
POOL = PromptPool(
    (
        Template("one", "{{ text }}:", ("a", "b")),
        Template("two", "b {{ text }}", ("a", "b")),
        Template("three", "{{ text }} h", ("c", "d")),
    )
)
EXAMPLES = tuple({"text": t, "label": i % 2} for i, t in enumerate(["ab", "ba", "aab", "bba", "cd", "dc", "ef", "fe"]))
TASK = FewShotTask(POOL, EXAMPLES)
INPUTS = ["gh", "hg", "ggh", "hhg a"]


def toy(**options):
    tokenizer = CharTokenizer(LETTERS)
    return Model(ToyRuntime.random(tokenizer.vocab_size, seed=1, **options), tokenizer, TOY)


# --- demonstrations ---------------------------------------------------------------------------------------------------


def test_a_draw_is_balanced_different_and_repeatable():
    labels = np.array([0] * 20 + [1] * 3 + [2] * 2)
    for seed in range(50):
        found = sample_examples(labels, 6, np.random.default_rng(seed))
        assert found == sample_examples(labels, 6, np.random.default_rng(seed)) and len(set(found)) == 6
        assert np.bincount(labels[found], minlength=3).tolist() == [2, 2, 2]
        five = np.bincount(labels[sample_examples(labels, 5, np.random.default_rng(seed))], minlength=3)
        assert five.max() - five.min() == 1
    every = sample_examples(labels, 25, np.random.default_rng(0))
    assert sorted(every) == list(range(25))


def test_an_unbalanced_draw_follows_the_labels_and_order_varies():
    labels = np.array([0] * 90 + [1] * 10)
    counts = [labels[sample_examples(labels, 4, np.random.default_rng(s), balanced=False)].sum() for s in range(400)]
    assert abs(np.mean(counts) - 0.4) < 0.15  # five standard errors of a hypergeometric mean
    firsts = [labels[sample_examples(labels, 2, np.random.default_rng(s))[0]] for s in range(200)]
    assert 50 < sum(firsts) < 150  # which class stands first is a coin's throw


def test_an_example_can_be_left_out():
    for seed in range(20):
        assert 3 not in sample_examples([0, 1] * 3, 5, np.random.default_rng(seed), without=3)
    with pytest.raises(ValueError, match=r"0\.\.5"):
        sample_examples([0, 1] * 3, 6, np.random.default_rng(0), without=3)


def test_demonstrations_are_written_in_the_words_of_their_template():
    assert write_examples(POOL.templates[2], EXAMPLES[:2], [0, 1]) == "ab h c\n\nba h d\n\n"


def test_a_prefix_is_not_filled_in():
    template = Template("t", "{{ text }} x", ("a", "b"), prefix="{{ 7 * 7 }} ||| {% raw %}\n")
    assert template.prompt({"text": "q"}) == "{{ 7 * 7 }} ||| {% raw %}\nq x"
    task = FewShotTask(POOL, ({"text": "{{ text }}", "label": 0}, {"text": "||| {%", "label": 1}))
    pool = SelfEnsemble(toy(), task, EnsembleSpec(vary=(), size=1, shots=2)).pool
    assert "{{ text }}" in pool.templates[0].prompt({"text": "gh"}) and "||| {%" in pool.templates[0].prefix


def test_an_input_that_is_a_demonstration_is_refused():
    assert record_fingerprint({"text": "A  b", "label": 1, "source": "x"}, POOL) == record_fingerprint(
        {"text": "a B "}, POOL
    )
    assert record_fingerprint({"text": "ab"}, POOL) != record_fingerprint({"text": "a b"}, POOL)
    renamed = PromptPool((Template("t", "{{ sentence }}:", ("a", "b")),))
    assert record_fingerprint({"sentence": "ab", "id": "7"}, renamed) == record_fingerprint({"text": "ab"}, renamed)
    refuse_known([{"text": "gh"}], dict(enumerate(EXAMPLES)), POOL)
    with pytest.raises(DataError, match="input 1 is also example 2"):
        refuse_known([{"text": "gh"}, {"text": " AAB"}], dict(enumerate(EXAMPLES)), POOL)
    ensemble = SelfEnsemble(toy(), TASK, EnsembleSpec(size=2, shots=4))
    shown = {i for m in ensemble.members for i in m.demonstrations}
    for i, example in enumerate(EXAMPLES):
        if i in shown:
            with pytest.raises(DataError, match=f"also example {i}"):
                ensemble.run(["gh", example["text"]])
        else:
            ensemble.run(["gh", example["text"]])


def test_examples_without_an_answer_are_refused():
    with pytest.raises(DataError, match='example 1 has no "label"'):
        FewShotTask(POOL, (EXAMPLES[0], {"text": "x"}))
    with pytest.raises(DataError, match="label 7"):
        FewShotTask(POOL, ({"text": "x", "label": 7},))
    with pytest.raises(DataError, match="of its own"):
        FewShotTask(POOL, ({"text": "x", "label": 0, "answer_choices": ["x", "y"]},))


# --- members ----------------------------------------------------------------------------------------------------------


def test_what_varies_and_what_does_not():
    base = sample_members(TASK, EnsembleSpec(vary=(), size=1))[0]
    demos = sample_members(TASK, EnsembleSpec(vary=("demos",), size=3))
    assert demos[0] == base and {m.template for m in demos} == {0} and len({m.demonstrations for m in demos}) == 3
    prompts = sample_members(TASK, EnsembleSpec(vary=("template",), size=3))
    assert [m.template for m in prompts] == [0, 1, 2] and {m.demonstrations for m in prompts} == {base.demonstrations}
    both = sample_members(TASK, EnsembleSpec(vary=("demos", "template"), size=3))
    assert [m.template for m in both] == [0, 1, 2] and [m.demonstrations for m in both] == [
        m.demonstrations for m in demos
    ]


def test_a_larger_ensemble_keeps_its_first_members_and_a_seed_changes_them():
    assert sample_members(TASK, EnsembleSpec(size=5))[:3] == sample_members(TASK, EnsembleSpec(size=3))
    assert sample_members(TASK, EnsembleSpec(size=3)) != sample_members(TASK, EnsembleSpec(size=3, seed=1))


def test_the_prompt_of_a_member():
    ensemble = SelfEnsemble(toy(), TASK, EnsembleSpec(vary=("demos", "template"), size=2, shots=2))
    member, template = ensemble.members[1], ensemble.pool.templates[1]
    shown = "".join(f"b {EXAMPLES[i]['text']} {'ab'[EXAMPLES[i]['label']]}\n\n" for i in member.demonstrations)
    assert template.pairs({"text": "gh"}) == [(shown + "b gh", " a"), (shown + "b gh", " b")]


@pytest.mark.parametrize("how", COMBINATIONS)
def test_the_numbers_are_those_of_scoring_one_by_one(how):
    lm, spec = toy(), EnsembleSpec(vary=("demos", "template"), size=3, shots=2, combine=how)
    ensemble = SelfEnsemble(lm, TASK, spec)
    found = ensemble.run(INPUTS)
    for e, template in enumerate(ensemble.pool):
        for i, text in enumerate(INPUTS):
            z = [lm.score_pairs([pair])[0].mean_logprob for pair in template.pairs({"text": text})]
            np.testing.assert_allclose(found.member_probs[e, i], np.exp(z) / np.exp(z).sum(), atol=1e-5)
    np.testing.assert_allclose(found.probs, combine_members(found.member_probs, how).probs)
    np.testing.assert_allclose(ensemble.predict_proba(INPUTS), found.probs)


def test_one_input_is_what_it_is_among_others():
    ensemble = SelfEnsemble(toy(), TASK, EnsembleSpec(size=2))
    np.testing.assert_allclose(ensemble.predict_proba(INPUTS[:1]), ensemble.predict_proba(INPUTS)[:1], atol=1e-5)
    with pytest.raises(ValueError, match="no inputs"):
        ensemble.run([])


def test_members_can_be_calibrated_one_by_one():
    plain = SelfEnsemble(toy(), TASK, EnsembleSpec(size=2, combine="mean")).run(INPUTS)
    spec = EnsembleSpec(size=2, combine="mean", calibrate="cbm")
    repaired = SelfEnsemble(toy(), TASK, spec).run(INPUTS)
    np.testing.assert_allclose(repaired.member_probs, cbm(plain.member_probs, norm="softmax"), atol=1e-5)
    with pytest.raises(ValueError, match="at least 2"):
        SelfEnsemble(toy(), TASK, spec).run(INPUTS[:1])
    ensemble = SelfEnsemble(toy(), TASK, EnsembleSpec(size=2, calibrate="pmi"))
    scores = ensemble.score(INPUTS)
    expected = pmi(scores.logits(), scores.content_free_logits()[0])
    np.testing.assert_allclose(ensemble.member_probs(scores), expected)
    cc = SelfEnsemble(toy(), TASK, EnsembleSpec(size=2, calibrate="cc"))
    np.testing.assert_allclose(
        cc.member_probs(scores), contextual(scores.probs(), scores.content_free_logits()), atol=1e-12
    )


def test_demonstrations_are_computed_once_per_member():
    """Eighty inputs of one token more cost about that, not the demonstrations again."""
    long = FewShotTask(POOL, tuple({"text": "abcdef" * 5 + t["text"], "label": t["label"]} for t in EXAMPLES))

    def tokens(count):
        lm = toy(tokens_held=1 << 16, context_length=512)
        ensemble = SelfEnsemble(lm, long, EnsembleSpec(size=2, shots=4))
        ensemble.run(["g" + "abcdefgh"[i % 8] + "abcdefgh"[i // 8] for i in range(count)])
        return lm.runtime.tokens_computed

    demonstrations = 2 * len(SelfEnsemble(toy(), long, EnsembleSpec(size=2, shots=4)).pool.templates[0].prefix)
    few, many = tokens(2), tokens(64)
    assert few > demonstrations and many - few < 2 * 62 * 8


def test_scores_are_kept_and_taken_up_again(tmp_path):
    path, spec = tmp_path / "s.npz", EnsembleSpec(size=2)
    first = SelfEnsemble(toy(), TASK, spec).score(INPUTS, cache=path)

    class NoModel:
        def score_pairs(self, pairs):
            raise AssertionError("everything is kept")

    again = SelfEnsemble(NoModel(), TASK, spec).score(INPUTS, cache=path)
    assert np.array_equal(again.logprobs, first.logprobs)
    with pytest.raises(AssertionError, match="kept"):  # other demonstrations are other prompts
        SelfEnsemble(NoModel(), TASK, EnsembleSpec(size=2, seed=1)).score(INPUTS, cache=path)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: EnsembleSpec(vary=("demo",)), 'unknown part "demo"; did you mean|unknown part "demo"'),
        (lambda: EnsembleSpec(vary=()), "vary in nothing"),
        (lambda: EnsembleSpec(shots=0), "shots must be >= 1"),
        (lambda: EnsembleSpec(size=0), "size must be >= 1"),
        (lambda: EnsembleSpec(combine="sum"), 'unknown combination "sum"'),
        (lambda: sample_members(TASK, EnsembleSpec(vary=("template",), size=4)), "the pool has 3"),
        (lambda: sample_members(TASK, EnsembleSpec(shots=9)), r"0\.\.8"),
        (
            lambda: sample_members(FewShotTask(POOL, EXAMPLES[:2]), EnsembleSpec(size=3, shots=2)),
            "do not give 3 different",
        ),
    ],
)
def test_what_cannot_be_an_ensemble_is_named(call, said):
    with pytest.raises(ValueError, match=said):
        call()


# --- pairs to fine-tune on --------------------------------------------------------------------------------------------


def test_every_example_is_learned_in_every_template_in_turn():
    pairs = tuning_pairs(TASK, rounds=3)
    assert len(pairs) == 24 and len(set(pairs)) == 24
    expected = {
        (template.prompt(r), template.answers({"text": r["text"]})[r["label"]]) for template in POOL for r in EXAMPLES
    }
    assert set(pairs) == expected and pairs == tuning_pairs(TASK, rounds=3)
    assert all("\n\n" not in prompt for prompt, _ in tuning_pairs(TASK, templates=1))
    assert {p for p, _ in tuning_pairs(TASK, templates=1)} == {f"{r['text']}:" for r in EXAMPLES}


def test_an_example_never_stands_among_its_own_demonstrations():
    for prompt, _ in tuning_pairs(TASK, shots=5, rounds=4, templates=1):
        *shown, asked = prompt.split("\n\n")
        assert len(shown) == 5 and asked not in {s[: len(s) - 2] for s in shown}
