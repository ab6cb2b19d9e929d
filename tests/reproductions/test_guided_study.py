"""The guided study on a tiny model and two schemas: its parts, its exact laws, and what it must notice."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from scripts import script
from tiny_gguf import write_tiny_llama

import likely
from likely.evidence import Source

pytest.importorskip("llguidance")
pytest.importorskip("jsonschema")
pytest.importorskip("llama_cpp")
SOURCE = Source(name="none", sha256="0" * 64)


@pytest.fixture(scope="module")
def parts():
    return {name: script(name) for name in ("guided_base", "guided_choices", "function_schemas")}


@pytest.fixture(scope="module")
def lm(tmp_path_factory):
    path = write_tiny_llama(tmp_path_factory.mktemp("m") / "tiny.gguf")
    with likely.load(str(path), runtime="llamacpp") as model:
        yield model


def schema(**properties):
    return {"type": "object", "properties": properties, "required": [*properties], "additionalProperties": False}


@pytest.fixture
def tiny(parts, monkeypatch):
    """The choice task in words of the tiny vocabulary."""
    for name in ("PLAIN_CHOICES", "CHAT_CHOICES"):
        monkeypatch.setattr(parts["guided_choices"], name, (" the", " cat", "a"))
    return parts


def test_the_study_runs_on_a_tiny_model(tiny, lm):
    case = tiny["function_schemas"].Case
    asked = [case("a?", "f", schema(a={"type": "boolean"})), case("b?", "g", schema(b={"enum": ["cat", "mat"]}))]
    evidence = tiny["guided_base"].study(
        {"tiny": lm}, asked, max_tokens=24, questions=["the cat?"], seeds=2, particles=4, full=False,
        sources=[SOURCE], data=[], report=lambda line: None,
    )  # fmt: skip
    value = {(f.subject, f.quantity): f.value for f in evidence.figures}
    closed = "tiny, form that closes within the budget"
    assert value["tiny, no form, the whole text", "valid"] == 0 and value[closed, "valid"] == 1
    assert 0 < value[closed, "forced tokens"] < 1 and (closed, tiny["guided_base"].ENGINE) in value
    assert value[closed, "same text with drafts of forced tokens"] == 1
    held = {check.statement: check.holds for check in evidence.checks}
    assert held["tiny: invalid texts of a form that closes within the budget"]
    assert len(evidence.checks) == 7


def test_the_enumerated_law_is_that_of_many_particles(tiny, lm):
    """Weights of many particles against the walk over every token path: two ways to the same law and evidence."""
    choices = tiny["guided_choices"]
    text, words = choices.prompt_of(lm, "the cat?")
    found = choices.measure(lm, "the cat?", seeds=8, particles=24)
    assert set(found.exact) == set(words) and math.isclose(sum(found.exact.values()), 1)
    assert found.distance("local") - 0.05 < found.distance("local, exact") < found.distance("local") + 0.05
    ensemble = lm.ensemble(text, choices=words, particles=40, max_tokens=choices.MAX_TOKENS)
    weights = np.exp(ensemble.log_weights)
    error = weights.std(ddof=1) / math.sqrt(len(weights))
    assert abs(weights.mean() - math.exp(found.log_p)) < 5.5 * error


def test_an_invalid_text_is_noticed(parts):
    judge = parts["function_schemas"]
    wanted = schema(a={"type": "integer"})
    assert judge.follows(' {"a": 1}\n', wanted) and judge.holds('Sure: {"a": 1}. Done', wanted)
    for text in ('{"a": "1"}', '{"a": 1, "b": 2}', '{"a": 1', "", 'Sure: {"a": 1}'):
        assert not judge.follows(text, wanted)
    assert not judge.holds('{"b": 1} {"a": 1}', wanted) and not judge.holds("none", wanted)


def test_every_function_is_a_schema_that_the_engine_takes(parts, data_dir, monkeypatch, lm):
    from likely.guided.form import make_form

    monkeypatch.setenv("LIKELY_DATA", str(data_dir))
    found = parts["function_schemas"].cases(100)
    assert len(found) == 100
    kinds = json.dumps([case.schema for case in found])
    assert '"dict"' not in kinds and '"float"' not in kinds and '"tuple"' not in kinds
    for case in found:
        lm.guide.constraint(make_form(schema=case.schema))
