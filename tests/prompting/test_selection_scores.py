"""Scores of a pool: from a model, kept in a file, taken up again."""

from __future__ import annotations

import zipfile
from dataclasses import replace

import numpy as np
import pytest

from likely.errors import DataError
from likely.lm.model import Model, ModelInfo
from likely.prompting.selection import scoring as module
from likely.prompting.selection.choosing import calibrated_probs, select
from likely.prompting.selection.scores import PromptScores
from likely.prompting.selection.scoring import label_numbers, score_pool, shuffle_answers
from likely.prompting.templates import PromptPool, Template
from likely.runtimes.toy import CharTokenizer, ToyRuntime
from likely.scoring.scored import Scored

POOL = PromptPool(
    (
        Template("a", "{{ text }} ab ||| {{ answer_choices[label] }}", ("a", "bb")),
        Template("b", "ba {{ text }} ||| {{ answer_choices[label] }}", ("ab", "b")),
        Template("c", "{{ text }} b ||| {{ answer_choices[label] }}", ("a", "b")),
    )
)
TOY = ModelInfo("toy", "toy", "toy", "float32", "0", "chars", False)
INPUTS = [{"text": "ab", "label": "a"}, {"text": "ba", "label": 1}, {"text": "aab"}, {"text": "b"}]


class Fake:
    """A model whose log-probabilities are a fixed function of the texts; counts what it is asked."""

    def __init__(self, stop_after=None):
        self.asked, self.calls, self.stop_after = [], 0, stop_after

    def score_pairs(self, pairs):
        self.calls += 1
        if self.stop_after is not None and self.calls > self.stop_after:
            raise KeyboardInterrupt
        self.asked += pairs
        return [self.one(prompt, answer) for prompt, answer in pairs]

    @staticmethod
    def one(prompt, answer):
        logprobs = [-(1 + (len(prompt) * 7 + ord(c) * (i + 1)) % 13) / 4 for i, c in enumerate(answer)]
        return Scored(answer, None, logprobs, sum(logprobs), sum(logprobs) / max(1, len(logprobs)), list(answer))


def test_every_place_of_the_arrays_is_the_right_text():
    scores = score_pool(Fake(), POOL, INPUTS, perplexity=True)
    assert scores.logprobs.shape == (3, 4, 2) and scores.content_free.shape == (3, 3, 2)
    for t, template in enumerate(POOL):
        for i, record in enumerate(INPUTS):
            for k, (prompt, answer) in enumerate(template.pairs(record)):
                one = Fake.one(prompt, answer)
                assert scores.logprobs[t, i, k] == one.sequence_logprob
                assert scores.tokens[t, i, k] == len(answer) and scores.first[t, i, k] == one.token_logprobs[0]
            assert scores.input_logprobs[t, i] == pytest.approx(Fake.one("", prompt).mean_logprob)
            assert scores.perplexity[t, i] == pytest.approx(np.exp(-Fake.one("", prompt).mean_logprob))
        for c, text in enumerate(("", "N/A", "[MASK]")):
            for k, pair in enumerate(template.pairs({"text": text})):
                assert scores.content_free[c, t, k] == Fake.one(*pair).sequence_logprob
                assert scores.content_free_tokens[c, t, k] == len(pair[1])
    assert scores.labels.tolist() == [0, 1, -1, -1] and scores.known_labels() is None
    np.testing.assert_allclose(scores.logits("token"), scores.logprobs / scores.tokens)
    assert np.array_equal(scores.logits("sum"), scores.logprobs) and np.array_equal(
        scores.logits("first"), scores.first
    )
    np.testing.assert_allclose(scores.probs("sum").sum(-1), 1)


def test_the_toy_model_agrees_with_scoring_one_by_one():
    tokenizer = CharTokenizer("ab /[]NAMSK")
    lm = Model(ToyRuntime.random(tokenizer.vocab_size, seed=1), tokenizer, TOY)
    scores = score_pool(lm, POOL, INPUTS, perplexity=True)
    for t, template in enumerate(POOL):
        for i, record in enumerate(INPUTS):
            for k, (prompt, answer) in enumerate(template.pairs(record)):
                assert scores.logprobs[t, i, k] == pytest.approx(
                    lm.score_pairs([(prompt, answer)])[0].sequence_logprob, abs=1e-5
                )
            assert scores.input_logprobs[t, i] == pytest.approx(
                lm.score_pairs([("", prompt)])[0].mean_logprob, abs=1e-5
            )


def test_prompts_that_begin_alike_share_the_tokens_of_the_input():
    pool = PromptPool(tuple(Template(str(i), "{{ text }} " + "ab" * (i + 1), ("a", "b")) for i in range(8)))
    texts = ["a" * 12 + c for c in "ab"] + ["b" * 13]
    tokenizer = CharTokenizer("ab ")

    def tokens(prompts):
        runtime = ToyRuntime.random(tokenizer.vocab_size, seed=1, tokens_held=1 << 16)
        score_pool(Model(runtime, tokenizer, TOY), prompts, texts, content_free=())
        return runtime.tokens_computed

    together, apart = tokens(pool), sum(tokens(PromptPool((t,))) for t in pool)
    assert together < apart / 2


def test_a_run_that_was_stopped_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 1)
    whole, path = score_pool(Fake(), POOL, INPUTS), tmp_path / "s.npz"
    with pytest.raises(KeyboardInterrupt):
        score_pool(Fake(stop_after=2), POOL, INPUTS, cache=path)  # one block: its inputs, its content-free inputs
    assert PromptScores.load(path).done.tolist() == [True, False, False]
    with pytest.raises(ValueError, match='prompt "b" is not scored yet'):
        select(PromptScores.load(path))
    rest, seen = Fake(), []
    again = score_pool(rest, POOL, INPUTS, cache=path, progress=seen.append)
    assert seen[0] == 4 and sum(seen) == 12 and len(rest.asked) == 2 * (4 + 3) * 2
    for name in ("logprobs", "tokens", "first", "content_free", "content_free_tokens", "content_free_first"):
        assert np.array_equal(getattr(again, name), getattr(whole, name)), name
    assert not list(tmp_path.glob("*.partial"))
    none = Fake(stop_after=0)
    np.testing.assert_array_equal(score_pool(none, POOL, INPUTS, cache=path).logprobs, whole.logprobs)


def test_a_pool_can_grow_and_a_prompt_that_changed_is_scored_again(tmp_path):
    path = tmp_path / "s.npz"
    score_pool(Fake(), PromptPool(POOL.templates[:2]), INPUTS, cache=path)
    changed = PromptPool((POOL.templates[2], POOL.templates[0], Template("b", "bb {{ text }}", ("ab", "b"))))
    fake = Fake()
    scores = score_pool(fake, changed, INPUTS, cache=path)
    assert np.array_equal(scores.logprobs, score_pool(Fake(), changed, INPUTS).logprobs)
    assert {p.split()[-1] for p, _ in fake.asked} & {"ab"} == {"ab"} and len(fake.asked) == 2 * (4 + 3) * 2


def test_a_smaller_pool_deletes_nothing(tmp_path):
    path = tmp_path / "s.npz"
    inputs = [{"text": r["text"]} for r in INPUTS]  # the labels' words differ between prompts
    whole = score_pool(Fake(), POOL, inputs, cache=path, perplexity=True)
    fake = Fake()
    one = score_pool(fake, PromptPool(POOL.templates[1:2]), inputs, cache=path)
    assert one.names == ("b",) and one.input_logprobs is None and not fake.asked
    held = PromptScores.load(path)
    assert held.names == ("b", "a", "c")
    for name in module.ARRAYS:
        array = getattr(whole, name)
        expected = array[:, [1, 0, 2]] if name.startswith("content") else array[[1, 0, 2]]
        assert np.array_equal(getattr(held, name), expected), name
    again = score_pool(fake, POOL, inputs, cache=path, perplexity=True)
    assert not fake.asked and np.array_equal(again.input_logprobs, whole.input_logprobs)
    extra = Template("d", "{{ text }} is", ("a", "b"))
    score_pool(fake, PromptPool((extra,)), inputs, cache=path)  # no perplexity for this one
    assert PromptScores.load(path).names == ("d", "a", "b", "c")
    with pytest.raises(ValueError, match="prompt 0 was scored without its perplexity"):
        select(PromptScores.load(path), "PPL")
    assert np.isfinite(score_pool(fake, PromptPool((extra,)), inputs, cache=path, perplexity=True).input_logprobs).all()
    assert np.isfinite(PromptScores.load(path).input_logprobs).all()
    three = PromptPool((Template("e", "{{ text }}", ("a", "b", "c")),))
    with pytest.raises(DataError, match=r"prompts of 2 answers, these have 3: .*--overwrite"):
        score_pool(fake, three, inputs, cache=path)


def test_a_prompt_with_a_new_field_is_one_for_the_same_inputs(tmp_path):
    path, first = tmp_path / "s.npz", PromptPool(POOL.templates[:1])
    records = [{**r, "more": "b" * i} for i, r in enumerate(INPUTS)]
    score_pool(Fake(), first, records, cache=path)
    grown = PromptPool((*first, Template("d", "{{ text }} {{ more }}", ("a", "b"))))
    fake = Fake()
    found = score_pool(fake, grown, records, cache=path)
    assert len(fake.asked) == (4 + 3) * 2
    assert np.array_equal(found.logprobs, score_pool(Fake(), grown, records).logprobs)
    with pytest.raises(DataError, match="another inputs_digest"):
        score_pool(Fake(), first, [{**r, "more": "x"} for r in records], cache=path)
    relabelled = [{**r, "label": 0} for r in records]
    assert score_pool(Fake(stop_after=0), grown, relabelled, cache=path).labels.tolist() == [0] * 4


def test_a_file_that_counted_only_the_fields_of_its_pool_is_taken_up(tmp_path):
    """Files have been written that way."""
    path, pool = tmp_path / "s.npz", PromptPool((Template("a", "{{ sentence }} is", ("a", "b")),))
    whole = score_pool(Fake(), pool, INPUTS, cache=path)
    fields = module._inputs_digest(INPUTS, {"answer_choices", "text", "sentence"}, whole.without)
    assert fields != whole.origin["inputs_digest"]
    replace(whole, origin={**whole.origin, "inputs_digest": fields}).save(path)
    score_pool(Fake(stop_after=0), pool, INPUTS, cache=path)
    assert PromptScores.load(path).origin == whole.origin


def test_an_overwritten_file_stays_until_there_are_scores(tmp_path):
    path = tmp_path / "s.npz"
    score_pool(Fake(), POOL, INPUTS, cache=path)
    before = path.read_bytes()
    with pytest.raises(KeyboardInterrupt):
        score_pool(Fake(stop_after=0), POOL, INPUTS[:3], cache=path, overwrite=True)
    assert path.read_bytes() == before
    score_pool(Fake(), PromptPool(POOL.templates[:1]), INPUTS[:3], cache=path, overwrite=True)
    assert PromptScores.load(path).logprobs.shape == (1, 3, 2)


def test_perplexity_that_the_file_lacks_is_scored(tmp_path):
    path = tmp_path / "s.npz"
    score_pool(Fake(), POOL, INPUTS, cache=path)
    assert not np.isnan(score_pool(Fake(), POOL, INPUTS, cache=path, perplexity=True).input_logprobs).any()


def test_scores_of_other_inputs_or_models_are_refused(tmp_path):
    path = tmp_path / "s.npz"
    score_pool(Fake(), POOL, INPUTS, cache=path, origin={"model": "one"})
    with pytest.raises(DataError, match=r"another inputs_digest .*--overwrite"):
        score_pool(Fake(), POOL, INPUTS[:3], cache=path, origin={"model": "one"})
    with pytest.raises(DataError, match=r"another model \(one, now two\)"):
        score_pool(Fake(), POOL, INPUTS, cache=path, origin={"model": "two"})
    with pytest.raises(DataError, match="another inputs_digest"):
        score_pool(Fake(), POOL, INPUTS, cache=path, origin={"model": "one"}, content_free=("",))


def test_the_file_holds_all_and_nothing_that_could_run(tmp_path):
    path = tmp_path / "s.npz"
    scores = score_pool(Fake(), POOL, INPUTS, perplexity=True, origin={"model": "x"})
    scores.save(path)
    back = PromptScores.load(path)
    for name, value in vars(scores).items():
        other = getattr(back, name)
        assert np.array_equal(value, other) if isinstance(value, np.ndarray) else value == other, name
    np.savez(path, head=np.array({"kind": "x"}, object))
    with pytest.raises(DataError, match="not a file of prompt scores"):
        PromptScores.load(path)
    for content in (b"", b"PK\x03\x04 broken", b"text"):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"s\.npz"):
            PromptScores.load(path)
    np.savez(path, head=np.array('{"kind": "likely prompt scores 0"}'))
    with pytest.raises(DataError, match="another version"):
        PromptScores.load(path)
    with pytest.raises(DataError, match="cannot read"):
        PromptScores.load(tmp_path / "none.npz")


def test_a_damaged_file_is_one_line(tmp_path):
    """Bytes of the compressed arrays, of the archive's own fields and of an array's header."""
    path = tmp_path / "s.npz"
    score_pool(Fake(), POOL, INPUTS).save(path)
    whole = path.read_bytes()
    packed = whole.index(b"logprobs.npy") + len(b"logprobs.npy") + 20  # past the extra field: within the data
    damaged = [whole[:packed] + bytes([255] * 9) + whole[packed + 9 :]]
    at = whole.index(b"PK\x01\x02")
    damaged.append(whole[: at + 10] + b"\x63" + whole[at + 11 :])  # a compression that nobody has
    damaged.append(whole[: at + 8] + b"\x01" + whole[at + 9 :])  # encrypted
    for header in (b"{'descr': (((", b"{'descr': '<f8', 'fortran_order': False, 'shape': (99999999999999, ), }"):
        inner = b"\x93NUMPY\x01\x00" + (len(header) + 1).to_bytes(2, "little") + header + b"\n"
        with zipfile.ZipFile(path, "w") as made:
            made.writestr("logprobs.npy", inner)
        damaged.append(path.read_bytes())
    rng = np.random.default_rng(0)
    for _ in range(100):
        changed = bytearray(whole)
        changed[rng.integers(len(whole))] = rng.integers(256)
        damaged.append(bytes(changed))
    refused = 0
    for raw in damaged:
        path.write_bytes(raw)
        try:
            PromptScores.load(path)
        except DataError as error:
            refused += 1
            assert "\n" not in str(error) and "s.npz" in str(error)
    assert refused > 50


def test_answers_of_each_input_make_a_dynamic_task():
    records = [
        {"text": "ab", "answer_choices": ["a", "b"], "label": 1},
        {"text": "b", "answer_choices": ["bb", "a"], "label": "bb"},
    ]
    with pytest.warns(UserWarning, match="positions"):
        scores = score_pool(Fake(), POOL, records)
    assert scores.dynamic and scores.content_free is None and scores.labels.tolist() == [1, 0]
    with pytest.warns(UserWarning, match="positions"):
        calibrated_probs(scores, "cbm")
    with pytest.raises(ValueError, match="content_free="):
        calibrated_probs(scores, "cc")
    with pytest.raises(DataError, match='input 1 has no "answer_choices"'):
        score_pool(Fake(), POOL, [records[0], {"text": "b"}])
    with pytest.raises(DataError, match="input 1 has 3 answers"):
        score_pool(Fake(), POOL, [records[0], {"text": "b", "answer_choices": ["a", "b", "c"]}])


def test_shuffled_answers_keep_their_label():
    records = [{"text": str(i), "answer_choices": ["x", "y", "z"], "label": i % 3} for i in range(300)]
    moved = shuffle_answers(records, seed=1)
    assert moved == shuffle_answers(records, seed=1) and moved != shuffle_answers(records, seed=2)
    for before, after in zip(records, moved, strict=True):
        assert before["answer_choices"][before["label"]] == after["answer_choices"][after["label"]]
        assert sorted(after["answer_choices"]) == ["x", "y", "z"]
    fixed = [{**r, "label": 0} for r in records]
    counts = np.bincount([r["label"] for r in shuffle_answers(fixed)], minlength=3)
    assert (np.abs(counts - 100) < 45).all()  # 5.5 standard deviations


@pytest.mark.parametrize(
    ("records", "said"),
    [
        ([{"text": "x", "label": 2}], "input 0: label 2 is neither"),
        ([{"text": "x", "label": "c"}], "nor one of"),
        ([{"text": "x", "label": True}], "True"),
        ([{"text": "x", "label": 0.5}], "0.5"),
    ],
)
def test_labels_that_are_none(records, said):
    with pytest.raises(DataError, match=said):
        label_numbers(records, ("a", "b"))
    assert label_numbers([{"text": "x"}], ("a", "b")) is None


def test_one_input_is_not_enough():
    with pytest.raises(ValueError, match="at least 2"):
        score_pool(Fake(), POOL, ["ab"])


def test_wrong_shapes_norms_and_calibrations():
    scores = score_pool(Fake(), POOL, ["ab", "b"], content_free=("N/A",))
    with pytest.raises(ValueError, match='empty input ""'):
        calibrated_probs(scores, "pmi")
    with pytest.raises(ValueError, match='did you mean "cbm"'):
        calibrated_probs(scores, "cbn")
    with pytest.raises(ValueError, match='unknown norm "mean"'):
        scores.probs("mean")
    with pytest.raises(ValueError, match=r"tokens must have shape \(3, 2, 2\)"):
        PromptScores(scores.names, scores.logprobs, scores.tokens[:1])
    picked = scores.pick([2, 0])
    assert picked.names == ("c", "a") and np.array_equal(picked.logprobs, scores.logprobs[[2, 0]])
    assert np.array_equal(picked.content_free, scores.content_free[:, [2, 0]])
