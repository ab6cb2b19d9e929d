"""lm.extract: every document on its own, in order, and drawn again where the schema asks for it."""

from __future__ import annotations

import json

import pytest
from byte_tokenizer import PieceTokenizer
from pydantic import BaseModel, Field

import likely
from likely.lm.extract import INSTRUCTION, extraction_prompt
from likely.lm.model import Model
from likely.models.load import ModelInfo
from likely.runtimes.toy import ToyRuntime

DOCUMENTS = ["x" * (i + 1) for i in range(20)]  # of other lengths: the toy sees three tokens, the noise the position


class Small(BaseModel, extra="forbid"):
    n: int = Field(ge=0, le=99)
    yes: bool


def toy(context=600) -> Model:
    tokenizer = PieceTokenizer([bytes([b]) for b in range(256)], control=["<end>"])
    runtime = ToyRuntime.random(
        tokenizer.vocab_size, seed=1, order=3, context_length=context, tokens_held=20_000, sequences=64
    )
    return Model(runtime, tokenizer, ModelInfo("toy", "toy", "toy", "float64", "0", "pieces", template=False))


@pytest.mark.slow
def test_many_are_as_one_at_a_time():
    lm = toy()
    found = lm.extract(DOCUMENTS, schema=Small, temperature=1.0, max_tokens=60, seed=4)
    assert all(isinstance(each.value, Small) and each.error is None for each in found)
    alone = [lm.extract(document, schema=Small, temperature=1.0, max_tokens=60, seed=4) for document in DOCUMENTS]
    assert [each.value for each in alone] == [each.value for each in found]
    assert len({each.result.text for each in found}) > 1
    assert [f.pointer for f in found[0].result.fields] == ["/n", "/yes"]


def test_one_bad_document_stops_no_other():
    lm = toy()
    documents = ["fine", "too long " * 200, " ", "fine"]
    found = lm.extract(documents, schema=Small, max_tokens=60)
    assert [each.value is not None for each in found] == [True, False, False, True]
    assert "context" in found[1].error and found[1].result is None and found[2].error == "the document is empty"
    assert found[0].value == found[3].value


def test_a_text_that_is_cut_is_no_value():
    (found,) = toy().extract(["a"], schema=Small, max_tokens=4, close_on_budget=False)
    assert found.value is None and found.error.startswith("the text is not complete") and found.result.text


@pytest.mark.slow
def test_what_breaks_the_schema_is_drawn_again():
    """Two of {1, 2, 3}, unlike: the engine does not enforce it."""
    schema = {"type": "array", "items": {"enum": [1, 2, 3]}, "minItems": 2, "maxItems": 2, "uniqueItems": True}
    asked = {"schema": schema, "temperature": 1.0, "max_tokens": 20, "on_unsupported": "validate"}
    lm = toy()
    found = lm.extract(DOCUMENTS, **asked, retries=30)
    assert all(each.error is None and len(set(each.value)) == 2 for each in found)
    assert any("draw" in warning for each in found for warning in each.result.warnings)
    alone = [lm.extract(document, **asked, retries=30).value for document in DOCUMENTS]
    assert [each.value for each in found] == alone
    never = lm.extract(DOCUMENTS, **asked, retries=0)
    broken = [each for each in never if each.error]
    assert broken and all(each.value is None and "does not follow the schema" in each.error for each in broken)
    assert [each.value for each in never if not each.error] == [
        now.value for now, each in zip(found, never, strict=True) if not each.error
    ]


def test_wrong_options_are_errors_of_the_call():
    lm = toy()
    with pytest.raises(TypeError, match="tempo"):
        lm.extract(["a"], schema=Small, tempo=1)
    with pytest.raises(likely.ConstraintError, match="person"):
        lm.extract(["a"], schema={"type": "person"})
    with pytest.raises(TypeError, match="schema"):
        lm.extract(["a"])


def test_the_prompt_shows_schema_document_and_instruction():
    prompt = extraction_prompt("the document", Small)
    assert json.dumps(Small.model_json_schema()) in prompt and "the document" in prompt and INSTRUCTION in prompt
    assert "Who?" in extraction_prompt("d", {"type": "object"}, "Who?") and INSTRUCTION not in extraction_prompt(
        "d", {}, "W"
    )
