"""One run of the model gives what separate runs give, and computes shared prefixes once."""

from __future__ import annotations

import string

import numpy as np
import pytest
from fake_server import toy_server
from tiny_gguf import write_tiny_llama
from tiny_torch import tiny_module

import likely
from likely.errors import CapabilityError, ModelError
from likely.lm.model import Model
from likely.lm.remote.model import RemoteModel
from likely.models.load import ModelInfo
from likely.runtimes.toy import CharTokenizer, ToyRuntime, exact_logprob
from likely.scoring.scored import Scored
from likely.uncertainty.local_run import seed_of
from likely.uncertainty.p_true import answers
from likely.uncertainty.planner import all_estimators, gather
from likely.uncertainty.table import ESTIMATORS, estimate

TOKENIZER = CharTokenizer(string.ascii_lowercase + " ", add_bos=True)
PROMPTS = ["the cat", "the dog", "the cow sat", "x"]


def toy(**limits) -> Model:
    runtime = ToyRuntime.random(TOKENIZER.vocab_size, seed=4, order=4, **{"context_length": 80, **limits})
    return Model(runtime, TOKENIZER, ModelInfo("toy", "toy", "toy", "float32", "0", "chars", False))


def equal(one, other):
    assert one.texts == other.texts and one.finish_reasons == other.finish_reasons
    for a, b in zip(one.token_logprobs, other.token_logprobs, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_together_is_what_each_alone_gives():
    lm = toy()
    found = gather(lm, PROMPTS, needs=["greedy", "samples", "beams", "token_entropy"], samples=4, max_tokens=7, seed=3)
    greedy = lm.generate(PROMPTS, temperature=0, max_tokens=7)
    assert found.greedy.texts == [g.text for g in greedy]
    assert found.greedy.logprobs == pytest.approx([g.sequence_logprob for g in greedy], abs=1e-5)
    for i, prompt in enumerate(PROMPTS):
        seed = seed_of(3, lm.encode_prompt(prompt))
        drawn = lm.generate(prompt, n=4, seed=seed, max_tokens=7)
        assert [found.samples.texts[k] for k in found.samples.of(i)] == [g.text for g in drawn]
        best = lm.generate(prompt, beams=5, temperature=0, length_penalty=0.0, max_tokens=7)
        assert found.beams.texts[i] == best.text
        assert found.beams.logprobs[i] == pytest.approx(best.sequence_logprob, abs=1e-5)


def test_values_do_not_depend_on_company_or_order():
    together = gather(toy(), PROMPTS, needs=["greedy", "samples"], samples=3, max_tokens=6)
    backwards = gather(toy(), PROMPTS[::-1], needs=["greedy", "samples"], samples=3, max_tokens=6)
    few = gather(toy(sequences=5), PROMPTS, needs=["greedy", "samples"], samples=3, max_tokens=6)
    tight = gather(
        toy(tokens_held=50, context_length=40), PROMPTS, needs=["greedy", "samples"], samples=3, max_tokens=6
    )
    for other in (few, tight):
        equal(together.greedy, other.greedy)
        equal(together.samples, other.samples)
    assert together.greedy.texts == backwards.greedy.texts[::-1]
    for i in range(4):
        alone = gather(toy(), [PROMPTS[i]], needs=["greedy", "samples"], samples=3, max_tokens=6)
        assert alone.samples.texts == [together.samples.texts[k] for k in together.samples.of(i)]


def test_the_sum_is_that_of_scoring_the_text_and_entropies_are_exact():
    lm = toy()
    found = gather(lm, PROMPTS, needs=["token_entropy"], max_tokens=6)
    for i, prompt in enumerate(PROMPTS):
        [made] = lm.generate([prompt], temperature=0, max_tokens=6)
        given = lm.encode_prompt(prompt)
        assert found.greedy.logprobs[i] == pytest.approx(
            exact_logprob(lm.runtime, made.token_ids, given=given), abs=1e-4
        )
        for at, entropy in enumerate(found.greedy.token_entropies[i]):
            row = np.asarray(lm.runtime._logits_of((*given, *made.token_ids[:at])), np.float64)
            logp = row - np.logaddexp.reduce(row)
            assert entropy == pytest.approx(-(np.exp(logp) * logp).sum(), abs=1e-5)


def test_prompts_that_differ_have_noise_of_their_own():
    """Same length, same law: with one seed for all they would be the same texts."""
    runtime = ToyRuntime(lambda p: np.zeros(TOKENIZER.vocab_size), vocab_size=TOKENIZER.vocab_size)
    lm = Model(runtime, TOKENIZER, ModelInfo("toy", "toy", "toy", "float32", "0", "chars", False))
    found = gather(lm, ["abc", "abd", "abc"], needs=["samples"], samples=3, max_tokens=8)
    texts = [[found.samples.texts[k] for k in found.samples.of(i)] for i in range(3)]
    assert texts[0] == texts[2] and not set(texts[0]) & set(texts[1]) and len(set(texts[0])) == 3


def test_a_shared_beginning_is_computed_once():
    head = "a long list of examples that all prompts share "
    prompts = [head + tail for tail in ("one", "two", "six", "ten")]
    lm = toy()
    gather(lm, prompts, needs=["greedy", "samples"], samples=5, max_tokens=1)
    assert (
        lm.runtime.tokens_computed == 1 + len(head) + sum(len(p) - len(head) for p in prompts) + 4
    )  # + each twice its last
    assert not lm.runtime._open


def test_everything_is_given_back_also_after_an_error():
    lm = toy()
    with pytest.raises(ModelError, match="context is 80"):
        gather(lm, ["a", "b" * 90], needs=["greedy"])
    assert lm.runtime.tokens_computed == 0 and not lm.runtime._open
    gather(lm, PROMPTS, needs=["greedy", "beams", "samples"], max_tokens=4)
    assert not lm.runtime._open


def test_bad_settings_are_refused():
    lm = toy()
    for settings, message in (
        ({"needs": []}, "nothing is needed"),
        ({"needs": ["gnll"]}, 'unknown need "gnll"'),
        ({"needs": ["greedy"], "samples": 0}, "samples must be a whole number >= 1"),
        ({"needs": ["greedy"], "system": "Be short."}, "system= is for questions=True"),
        ({"needs": ["greedy"], "shown": ["a", "b"]}, "shown has 2 questions for 1 prompts"),
    ):
        with pytest.raises(ValueError, match=message):
            gather(lm, ["a"], **settings)
    with pytest.raises(TypeError, match="must be a list of strings"):
        gather(lm, "a", needs=["greedy"])
    with pytest.raises(ValueError, match="no prompts"):
        gather(lm, [], needs=["greedy"])
    with pytest.raises(CapabilityError, match="cannot gather from object"):
        gather(object(), ["a"], needs=["greedy"])


def test_questions_are_asked_as_ask_does():
    tokenizer = CharTokenizer(string.printable, add_bos=True)
    runtime = ToyRuntime.random(tokenizer.vocab_size, seed=2, order=3, context_length=200)
    lm = Model(runtime, tokenizer, ModelInfo("toy", "toy", "toy", "float32", "0", "chars", False))
    found = gather(lm, ["Who?", "What?"], needs=["greedy"], questions=True, system=["Be kind.", None], max_tokens=9)
    assert found.greedy.texts[0] == lm.ask("Who?", system="Be kind.", max_tokens=9).text
    assert found.greedy.texts[1] == lm.ask("What?", max_tokens=9).text


@pytest.fixture(scope="module", params=["torch", "llamacpp"])
def engine(request, tmp_path_factory):
    path = write_tiny_llama(tmp_path_factory.mktemp("tiny") / "tiny.gguf", context=256)
    with likely.load(str(path), runtime=request.param) as lm:
        yield lm


@pytest.mark.slow
def test_on_real_engines_alone_and_together(engine):
    prompts = ["the cat sat on", "the cat sat in a hat", "my mat"]
    needs = ["greedy", "samples", "token_entropy", "beams"]
    found = gather(engine, prompts, needs=needs, samples=4, max_tokens=8)
    for i, prompt in enumerate(prompts):
        alone = gather(engine, [prompt], needs=needs, samples=4, max_tokens=8)
        assert found.greedy.texts[i] == alone.greedy.texts[0]
        np.testing.assert_allclose(found.greedy.token_logprobs[i], alone.greedy.token_logprobs[0], atol=2e-3)
        np.testing.assert_allclose(found.greedy.token_entropies[i], alone.greedy.token_entropies[0], atol=2e-3)
        [made] = engine.generate([prompt], temperature=0, max_tokens=8, drafter=None)
        assert made.sequence_logprob == pytest.approx(found.greedy.logprobs[i], abs=2e-3)
    values = estimate(found, [n for n in ESTIMATORS if n not in ("p_true", "eigen_score")])
    assert (values["m_nll"].values <= values["g_nll"].values).all()


def test_the_sum_is_one_forward_pass_over_the_text_on_torch():
    import torch

    from likely.runtimes.torch.runtime import TorchRuntime

    module = tiny_module("llama")
    tokenizer = CharTokenizer(string.ascii_letters + string.digits, add_bos=True)
    lm = Model(TorchRuntime(module), tokenizer, ModelInfo("tiny", "t", "torch", "float32", "0", "chars", False))
    prompts = ["abc", "abcdefg", "bb"]
    found = gather(lm, prompts, needs=["greedy"], max_tokens=7)
    for i, made in enumerate(lm.generate(prompts, temperature=0, max_tokens=7)):
        ids = torch.tensor([[*lm.encode_prompt(prompts[i]), *made.token_ids]])
        n = len(made.token_ids)
        with torch.no_grad():
            logits = module(input_ids=ids).logits[0, -n - 1 : -1]
        loss = torch.nn.functional.cross_entropy(logits, ids[0, -n:], reduction="sum")
        assert -found.greedy.logprobs[i] == pytest.approx(float(loss), abs=1e-4)


def test_states_are_those_of_the_module_at_each_texts_last_token_on_torch():
    import torch

    from likely.runtimes.torch.runtime import TorchRuntime

    module = tiny_module("llama")
    tokenizer = CharTokenizer(string.ascii_letters + string.digits, add_bos=True)
    lm = Model(TorchRuntime(module), tokenizer, ModelInfo("tiny", "t", "torch", "float32", "0", "chars", False))
    prompts, settings = ["abc", "bb"], {"samples": 3, "max_tokens": 5, "seed": 4}
    found = gather(lm, prompts, needs=["eigen_score"], **settings)
    assert found.extra["sample_states"].shape == (6, 32)
    compared = 0
    for i, text in enumerate(found.samples.texts):
        sizes = found.samples.token_sizes[i].tolist()
        if 0 in sizes[: len(sizes) - (found.samples.finish_reasons[i] == "stop")]:
            continue  # a control token within, which the text does not show
        ids = torch.tensor([lm.encode_prompt(prompts[found.samples.prompt_ids[i]] + text)])
        with torch.no_grad():
            state = module(input_ids=ids, output_hidden_states=True).hidden_states[-1][0, -1]
        np.testing.assert_allclose(found.extra["sample_states"][i], state.numpy(), atol=1e-4)
        compared += 1
    assert compared >= 3
    assert np.isfinite(estimate(found, ["eigen_score"])["eigen_score"].values).all()
    assert gather(lm, prompts, needs=["samples"], **settings).samples.texts == found.samples.texts
    assert "eigen_score" in all_estimators(lm) and "eigen_score" not in all_estimators(toy())
    with pytest.raises(CapabilityError, match="gives no hidden states"):
        gather(toy(), ["a"], needs=["eigen_score"])


@pytest.fixture
def remote():
    with toy_server() as server, RemoteModel(server.url) as lm:
        yield lm


def test_a_server_gives_what_rests_on_texts_and_their_log_probabilities(remote, monkeypatch):
    def scored(pairs):
        asked.extend(pairs)
        return [Scored(answer, None, [-1.0], -1.0, -1.0, [answer]) for _, answer in pairs]

    asked = []
    monkeypatch.setattr(remote, "score_pairs", scored)
    names = ["g_nll", "predictive_entropy", "discrete_semantic_entropy", "csc", "p_true"]
    found = gather(remote, ["abc", "de"], needs=names, samples=3, max_tokens=5, brainstormed=2)
    values = estimate(found, names)
    assert all(np.isfinite(u.values).all() for u in values.values())
    assert "may leave out the end token" in values["g_nll"].note
    alone = remote.generate("abc", temperature=0, max_tokens=5)
    assert values["g_nll"].values[0] == pytest.approx(-alone.sequence_logprob)
    assert len(set(found.samples.texts)) == 6
    assert len(asked) == 2 * 2 * len(answers()) and values["p_true"].values.tolist() == [0.5, 0.5]


def test_a_server_is_told_what_it_would_else_choose_itself():
    """Left out, top_p is the server's own: llama.cpp's is 0.95, and its samples are not of the model's law."""
    with toy_server() as server, RemoteModel(server.url) as lm:
        found = gather(lm, ["abc"], needs=["greedy", "samples"], samples=2, max_tokens=3)
        sent = [body for _, body, _ in server.requests if body]
    assert sorted(body["temperature"] for body in sent) == [0, 1, 1] and all(body["top_p"] == 1 for body in sent)
    assert "top_k" in found.samples.note and "top_k" not in found.greedy.note


@pytest.mark.parametrize("need", ["token_entropy", "m_nll", "eigen_score"])
def test_a_server_refuses_what_it_cannot(remote, need):
    with pytest.raises(CapabilityError, match="load the model locally"):
        gather(remote, ["abc"], needs=[need])


def test_a_server_without_log_probabilities_is_refused():
    def strip(body, reply):
        for choice in reply["choices"]:
            choice["logprobs"] = None
        return reply

    refused = pytest.raises(CapabilityError, match="gives no log-probabilities of what it writes")
    with toy_server(lie=strip) as server, RemoteModel(server.url) as lm, refused:
        gather(lm, ["abc"], needs=["greedy"], max_tokens=4)
