"""contrast= of generate, ask, chat and stream: the negative prompt is written as the prompt is."""

from __future__ import annotations

import pytest
from tiny_gguf import write_tiny_llama

import likely
from likely.errors import CapabilityError
from likely.guided.contrast import ALWAYS_OPEN, CollisionGate, Contrast

GREEDY = {"temperature": 0, "max_tokens": 12}


@pytest.fixture(scope="module")
def lm(tmp_path_factory):
    path = write_tiny_llama(tmp_path_factory.mktemp("contrast") / "tiny.gguf", context=512)
    with likely.load(str(path), runtime="llamacpp") as model:
        yield model


def by_tokens(lm, tokens, negative, **options):
    """The same, in token ids."""
    prompt = lm.tokenizer.encode(tokens, parse_special=True) if isinstance(tokens, str) else tokens
    [[found]] = lm.run([lm.request(prompt, {**GREEDY, "contrast": Contrast(list(negative), **options)})])
    return found.token_ids


def test_generate_takes_raw_text(lm):
    found = lm.generate("the cat", contrast=Contrast("the other", "cfg", weight=1.0), **GREEDY)
    plain = lm.generate("the cat", **GREEDY)
    assert found.token_ids != plain.token_ids and plain.steering is None
    assert found.token_ids == by_tokens(lm, "the cat", lm.encode_prompt("the other"), mode="cfg", weight=1.0)
    assert len(found.steering) == len(found.token_ids) and all(step.gated for step in found.steering)
    assert found.to_dict()["steering"][0] == {
        "gated": True, "collision": found.steering[0].collision, "js": found.steering[0].js,
    }  # fmt: skip


def test_ask_and_chat_render_it_by_the_template(lm):
    def rendered(*messages):
        return lm.render([{"role": role, "content": text} for role, text in messages]).tokens

    contrast = Contrast("the mat", "cfg", weight=1.0)
    negative = rendered(("system", "the sun"), ("user", "the mat"))
    expected = by_tokens(lm, rendered(("system", "the sun"), ("user", "the cat")), negative, mode="cfg", weight=1.0)
    assert lm.ask("the cat", system="the sun", contrast=contrast, **GREEDY).token_ids == expected
    chat = [{"role": "system", "content": "the sun"}, {"role": "user", "content": "the cat"}]
    assert lm.chat(chat, contrast=contrast, top_p=1.0, **GREEDY).token_ids == expected
    stream = lm.stream(chat, contrast=contrast, **GREEDY)
    assert stream.finish().token_ids == expected
    whole = Contrast([{"role": "user", "content": "the cat"}], "cfg", weight=1.0)
    expected = by_tokens(lm, rendered(("system", "the sun"), ("user", "the cat")), rendered(("user", "the cat")),
                         mode="cfg", weight=1.0)  # fmt: skip
    assert lm.chat(chat, contrast=whole, top_p=1.0, **GREEDY).token_ids == expected


def test_a_model_without_a_template_writes_it_as_its_question(tmp_path):
    path = write_tiny_llama(tmp_path / "base.gguf", context=512, chat_template=None)
    with likely.load(str(path), runtime="llamacpp") as base:
        found = base.ask("the cat", contrast=Contrast("the mat", "cfg", weight=1.0), stop=(), **GREEDY)
        prompt = base.encode_prompt("Question: the cat\nAnswer:")
        negative = base.encode_prompt("Question: the mat\nAnswer:")
        assert found.token_ids == by_tokens(base, prompt, negative, mode="cfg", weight=1.0)


def test_one_contrast_serves_many_prompts_and_calls(lm):
    contrast = Contrast("the other", "uscd", gate=CollisionGate(0.5), eta=0.5)
    prompts = ["the cat", "this is the answer", "on"]
    together = lm.generate(prompts, contrast=contrast, **GREEDY)
    again = [lm.generate(p, contrast=contrast, **GREEDY) for p in prompts]
    assert [g.token_ids for g in together] == [g.token_ids for g in again]


def test_a_form_beside_it(lm):
    found = lm.generate("the cat", contrast=Contrast("the mat", "cad"), choices=["the sun", "the thing"], **GREEDY)
    assert found.value in ("the sun", "the thing") and found.complete
    assert found.log_weight < 0 and len(found.steering) == len(found.token_ids)


def test_another_model(lm, tmp_path):
    path = write_tiny_llama(tmp_path / "weak.gguf", context=512, seed=5)
    with likely.load(str(path), runtime="llamacpp") as weak:
        found = lm.generate("the cat", contrast=Contrast(weak, "cd"), **GREEDY)
        assert found.token_ids != lm.generate("the cat", **GREEDY).token_ids
        assert weak.runtime.free_tokens() > 0
    other = write_tiny_llama(tmp_path / "other.gguf", context=512, vocab=310)
    with likely.load(str(other), runtime="llamacpp") as wide, pytest.raises(ValueError, match="same vocabulary"):
        lm.generate("the cat", contrast=Contrast(wide, "cd"), **GREEDY)


def test_what_is_no_contrast_is_refused(lm):
    with pytest.raises(TypeError, match=r"must be a likely\.guided\.contrast\.Contrast"):
        lm.generate("the cat", contrast="cfg")
    with pytest.raises(TypeError, match='did you mean "contrast"'):
        lm.generate("the cat", contrasts=1)
    with pytest.raises(CapabilityError, match="logits_processors="):
        lm.generate(
            "the cat", choices=["a"], sampler="importance", contrast=Contrast("x", gate=ALWAYS_OPEN), max_tokens=4
        )
