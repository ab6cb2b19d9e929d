"""What a user holds for a diffusion model: its texts are the decoder's, its scores are bounds, the rest is refused."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from tiny_diffusion import Backwards, train_backwards

import likely
from likely.bench import compare_decoders
from likely.decoding.diffusion import (
    ConfidenceThreshold,
    FreeDave,
    Prophet,
    diffusion_generate,
    exact_bound,
    likelihood_bound,
    path_likelihood,
)
from likely.errors import CapabilityError, ModelError
from likely.lm.diffusion import DiffusionModel, DiffusionSettings
from likely.lm.diffusion.settings import accelerator_of, stop_rule_of
from likely.runtimes.torch.masked import MaskedPredictor, TinyMaskedLM
from likely.scoring.scored import Scored


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return train_backwards(tmp_path_factory.mktemp("diffusion") / "backwards")


@pytest.fixture
def lm(folder):
    with likely.load(folder) as found:
        yield found


PROMPTS = ["abca", "bbac", "cabb", "aabc"]


def ids_of(lm, texts):
    return [lm.tokenizer.encode(text) for text in texts]


# --- the trained model under the laws of decoding ---------------------------------------------------------------------


def test_a_little_training_teaches_something(lm):
    texts = [made.text for made in lm.generate(PROMPTS * 8, temperature=0.0, max_tokens=4)]
    right = np.mean([t == p[::-1] for t, p in zip(texts, PROMPTS * 8, strict=True)])
    assert right > 0.2  # by chance 1/81


def test_both_estimates_agree_with_the_enumerated_bound(lm):
    prompt, answer = ids_of(lm, ["abca", "acba"])
    exact = exact_bound(lm.predictor, prompt, answer)
    for form in ("count", "time"):
        found = likelihood_bound(lm.predictor, prompt, answer, samples=2000, form=form, seed=1)
        assert abs(found.value - exact.value) < 5 * found.standard_error
    one = likelihood_bound(lm.predictor, prompt, answer[:1], samples=1)
    assert one.value == pytest.approx(exact_bound(lm.predictor, prompt, answer[:1]).value) and one.standard_error == 0


def test_one_token_per_block_is_greedy_from_left_to_right(lm):
    predictor, prompts = lm.predictor, ids_of(lm, PROMPTS)
    for prompt in prompts:
        ids = [*prompt, 0, 0, 0, 0]
        for place in range(4, 8):
            logits = predictor.logits(np.array([ids]))[0, place]
            logits[0] = -np.inf
            ids[place] = int(logits.argmax())
        found = diffusion_generate(predictor, prompt, length=4, block_length=1)
        assert found.ids[0].tolist() == ids and found.order[0].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_freedave_gives_static_decoding_s_texts(lm, temperature):
    prompts = ids_of(lm, PROMPTS * 3)
    plain = diffusion_generate(lm.predictor, prompts, length=4, temperature=temperature, seed=3)
    for drafts in (1, 2, 4):
        found = diffusion_generate(
            lm.predictor, prompts, length=4, temperature=temperature, seed=3, accelerator=FreeDave(drafts)
        )
        assert (found.answers == plain.answers).all() and (found.row_calls <= plain.row_calls).all()
    assert all(sorted(order.tolist()) == [0, 1, 2, 3] for order in plain.order)


def test_prophet_at_its_ends(lm):
    prompts = ids_of(lm, PROMPTS)
    plain = diffusion_generate(lm.predictor, prompts, length=4)
    never = diffusion_generate(lm.predictor, prompts, length=4, stop=Prophet(((1.0, np.inf),)))
    at_once = diffusion_generate(lm.predictor, prompts, length=4, stop=Prophet(((1.0, 0.0),)))
    assert (never.answers == plain.answers).all() and (at_once.row_calls == 1).all()
    assert (at_once.answers == diffusion_generate(lm.predictor, prompts, length=4, steps=1).answers).all()


def test_a_prophet_looks_no_further_than_the_model_s_end(lm, monkeypatch):
    seen = set()
    monkeypatch.setattr(Prophet, "decide", lambda self, _, __, share: (seen.add(self.end_id), share > 2)[1])
    monkeypatch.setattr(lm.tokenizer, "end_ids", frozenset({1}))
    stop = Prophet()
    lm.with_decoding(stop=stop)
    lm.generate("abca", temperature=0.0, max_tokens=4)
    lm.with_decoding(stop=Prophet(end_id=2))
    lm.generate("abca", temperature=0.0, max_tokens=4)
    assert seen == {1, 2} and stop.end_id is None


def test_the_path_of_a_decoded_text_is_scored_by_its_own_steps(lm):
    [prompt] = ids_of(lm, ["abca"])
    found = diffusion_generate(lm.predictor, prompt, length=4)
    path = path_likelihood(lm.predictor, prompt, found.answers[0], found.order[0])
    assert path.kind == "path" and path.value == pytest.approx(path.logprobs.sum()) and path.value < 0


def test_caches_are_exact_for_block_causal_models_alone():
    import torch

    torch.manual_seed(0)
    network = TinyMaskedLM(9, 0, context=12, width=16, layers=2, heads=2, block=4)
    for parameter in network.parameters():
        parameter.data *= 8  # far from uniform
    causal = MaskedPredictor(network)
    prompts = np.random.default_rng(0).integers(1, 9, (3, 4))
    plain = diffusion_generate(causal, prompts, length=8, block_length=4)
    kept = diffusion_generate(causal, prompts, length=8, block_length=4, cache="block_causal")
    assert kept.exact and (kept.answers == plain.answers).all() and (kept.order == plain.order).all()
    for cache in ("prefix", "dual"):  # windows that see what stands behind them, which this model does not
        assert not diffusion_generate(causal, prompts, length=8, block_length=4, cache=cache).exact
    both = MaskedPredictor(TinyMaskedLM(9, 0, context=12, width=16, layers=2, heads=2))
    for cache in ("prefix", "dual"):
        settings = {"length": 8, "block_length": 4, "cache": cache}
        one = diffusion_generate(both, prompts, **settings)
        drafted = diffusion_generate(both, prompts, **settings, accelerator=FreeDave(3))
        tree = diffusion_generate(both, prompts, **settings, accelerator=FreeDave(3, "tree"))
        assert not one.exact and (one.answers == drafted.answers).all() and (one.answers == tree.answers).all()
    with pytest.raises(CapabilityError, match="block_causal"):
        diffusion_generate(both, prompts, length=8, block_length=4, cache="block_causal")


# --- the model --------------------------------------------------------------------------------------------------------


def test_load_gives_the_decoder_s_texts(lm):
    assert isinstance(lm, DiffusionModel) and lm.info.runtime == "torch" and lm.capabilities.canvas
    plain = diffusion_generate(lm.predictor, ids_of(lm, PROMPTS), length=4)
    texts = ["".join("?_abc"[t] for t in row).split("_")[0] for row in plain.answers]
    made = lm.generate(PROMPTS, temperature=0.0, max_tokens=4)
    assert [m.text for m in made] == texts
    assert [m.target_calls for m in made] == plain.row_calls.tolist()
    assert {(m.token_logprobs, m.sequence_logprob) for m in made} == {(None, None)}
    assert all(m.finish_reason in ("length", "stop") for m in made)
    assert lm.generate("abca", temperature=0.0).text == made[0].text  # no more than the context has room for


def test_lossless_settings_change_calls_alone(lm):
    plain = lm.generate(PROMPTS, temperature=0.0, max_tokens=4)
    lm.with_decoding(accelerator=FreeDave(4))
    fast = lm.generate(PROMPTS, temperature=0.0, max_tokens=4)
    assert [f.text for f in fast] == [p.text for p in plain]
    assert all(f.target_calls <= p.target_calls for f, p in zip(fast, plain, strict=True))
    lm.with_decoding(accelerator=None, schedule=ConfidenceThreshold(0.0))
    assert {made.target_calls for made in lm.generate(PROMPTS, temperature=0.0, max_tokens=4)} == {1}


def test_a_stream_brings_whole_blocks(lm):
    lm.with_decoding(block_length=2)
    whole = lm.generate("abca", temperature=0.0, max_tokens=4)
    stream = lm.stream("abca", temperature=0.0, max_tokens=4)
    pieces = list(stream)
    assert "".join(pieces) == whole.text == stream.result.text
    assert [len(piece) for piece in pieces[:-1]] == [2] * (len(pieces) - 1)


def test_samples_depend_on_seed_and_number_alone(lm):
    settings = {"temperature": 1.0, "max_tokens": 4, "seed": 5}
    three = lm.generate("abca", n=3, **settings)
    both = lm.generate(["bbac", "abca"], n=3, **settings)
    assert [m.text for m in three] == [m.text for m in both[1]]
    assert three[0].text == lm.generate("abca", **settings).text
    many = {m.text for m in lm.generate("abca", n=12, **settings)}
    assert len(many) > 1
    assert [m.seed for m in three] == [5, 5, 5] and [m.sample for m in three] == [0, 1, 2]


def test_pinned_text_stands_in_every_answer(lm):
    lm.with_decoding(pinned={1: "bb"})
    assert all(m.text[1:3] == "bb" for m in lm.generate(PROMPTS, temperature=0.0, max_tokens=4) if len(m.text) > 2)
    lm.with_decoding(pinned={0: "axb"})
    with pytest.raises(ModelError, match="'axb' holds characters that this model has no tokens for"):
        lm.generate("abca", max_tokens=4)
    lm.with_decoding(pinned={3: "bb"})
    with pytest.raises(ModelError, match="does not fit an answer of 4 tokens"):
        lm.generate("abca", max_tokens=4)


def test_stop_strings_and_lengths(lm):
    whole = lm.generate("abca", temperature=0.0, max_tokens=4).text
    cut = lm.generate("abca", temperature=0.0, max_tokens=4, stop=whole[1])
    assert cut.text == whole[: whole.index(whole[1])] and cut.finish_reason == "stop"
    assert len(lm.generate("abca", temperature=0.0, max_tokens=2).token_ids) == 2


def test_scores_are_bounds_and_say_so(lm):
    found, other = lm.score("abca", ["acba", "bbbb"])
    prompt, answer = ids_of(lm, ["abca", "acba"])
    bound = likelihood_bound(lm.predictor, prompt, answer, samples=128)
    assert (found.sequence_logprob, found.standard_error) == (bound.value, bound.standard_error)
    assert found.kind == "lower_bound" and found.token_logprobs == [] and found.mean_logprob == bound.value / 4
    assert found.sequence_logprob > other.sequence_logprob
    assert found.to_dict()["kind"] == "lower_bound" and found.to_dict()["standard_error"] > 0
    exact = Scored("a", [1], [-1.0], -1.0, -1.0, ["a"])
    assert exact.kind == "exact" and "kind" not in exact.to_dict() and "standard_error" not in exact.to_dict()


def test_choices_are_those_of_the_largest_bound(lm):
    made = lm.generate("abca", choices=["bbbb", "acba", "ccab"])
    best = max(lm.score("abca", ["bbbb", "acba", "ccab"]), key=lambda each: each.sequence_logprob)
    assert made.text == made.value == best.text and made.sequence_logprob is None
    with pytest.raises(CapabilityError, match="drop n="):
        lm.generate("abca", choices=["a", "b"], n=2)


@pytest.mark.parametrize(
    ("option", "value", "advice"),
    [
        ("drafter", "suffix", "FreeDave"), ("drafter", "trigram", "FreeDave"), ("regex", "a+", "choices="),
        ("schema", {"type": "object"}, "pinned"), ("grammar", "start: /a/", "pinned"), ("beams", 4, "left to right"),
        ("top_logprobs", 3, "lower bound"), ("entropy", True, "lower bound"), ("top_p", 0.9, "temperature alone"),
        ("repetition_penalty", 1.2, "temperature alone"), ("min_tokens", 2, "end_policy"), ("heal", True, "left"),
        ("sampler", "smc", "choices="), ("logit_bias", {2: 1.0}, "pinned"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused_by_name(lm, option, value, advice):
    with pytest.raises(CapabilityError, match=f"^{option}=.*{advice}") as error:
        lm.generate("abca", max_tokens=4, **{option: value})
    assert "\n" not in str(error.value)


def test_other_verbs_and_left_to_right_calls_are_refused(lm):
    for call in (lambda: lm.perplexity("abca"), lambda: lm.ensemble("abca"), lambda: lm.complete_code(None)):
        with pytest.raises(CapabilityError, match="diffusion model"):
            call()
    for call in (lm.runtime.open, lambda: lm.runtime.forward([]), lambda: lm.runtime.fork(None)):
        with pytest.raises(CapabilityError, match="of a next token"):
            call()
    with pytest.raises(CapabilityError, match="top_logprobs= needs"):
        lm.score("abca", ["a"], top_logprobs=2)
    with pytest.raises(ModelError, match="no tokens for"):
        lm.generate("abcx", max_tokens=4)
    with pytest.raises(ModelError, match="holds the mask"):
        lm.generate("ab<mask>a", max_tokens=4)
    with pytest.raises(ModelError, match="context is 8"):
        lm.generate("abcaabca", max_tokens=4)
    with pytest.raises(TypeError, match="unknown option"):
        lm.with_decoding(accelerater=None)


def test_canvases_are_whole_blocks_that_fit():
    assert DiffusionSettings().canvas(128, 16) == (16, 16)
    assert DiffusionSettings().canvas(100, 4000) == (128, 32)
    assert DiffusionSettings(block_length=8).canvas(20, 100) == (24, 8)
    assert DiffusionSettings(block_length=8).canvas(20, 22) == (16, 8)
    assert DiffusionSettings(block_length=8).canvas(20, 5) == (5, 5)
    assert DiffusionSettings(tokens_per_step=3).steps(16, 8) == 6
    with pytest.raises(ValueError, match="tokens_per_step"):
        dataclasses.replace(DiffusionSettings(), tokens_per_step=0)


def test_a_block_causal_model_is_decoded_in_its_own_blocks(tmp_path):
    from likely.training.diffusion import TinySettings, train_tiny

    train_tiny(Backwards(), tmp_path / "b", TinySettings(steps=2, width=8, layers=1, heads=1, batch=4, block=2))
    with likely.load(tmp_path / "b") as lm:
        assert lm.decoding.block_length == 2
        found = compare_decoders(lm.predictor, Backwards(), texts=5)
        assert [row.calls for row in found.rows[:2]] == [4, 2] and "FreeDave" in found.rows[2].name
        plain = lm.generate("abca", temperature=0.0, max_tokens=4).text
        assert lm.with_decoding(cache="block_causal").generate("abca", temperature=0.0, max_tokens=4).text == plain


def test_words_of_the_command_line():
    assert accelerator_of(None) is None and accelerator_of("4").draft_steps == 4
    assert accelerator_of("auto").draft_steps == "auto"
    rule = stop_rule_of("0.5:9,1:4", "2:4")
    assert rule.thresholds == ((0.5, 9.0), (1.0, 4.0)) and rule.region == (2, 4)
    assert stop_rule_of("published").thresholds[0] == (0.33, 7.5) and stop_rule_of(None) is None
    for bad in (lambda: accelerator_of("0"), lambda: stop_rule_of("9"), lambda: stop_rule_of(None, "1:2")):
        with pytest.raises(ValueError, match=r"drafts of FreeDave|thresholds"):
            bad()


def test_the_task_is_what_the_fixture_says():
    assert Backwards().is_right("abca", "acba") and not Backwards().is_right("abca", "abca")
