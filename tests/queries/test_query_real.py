"""Queries on SmolLM2 and Gemma: the examples run, and numbers agree with transformers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import likely
from likely.queries import query, query_file

EXAMPLES = Path(__file__).parents[2] / "examples" / "queries"
pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.xdist_group("real")]


@pytest.fixture(scope="module", params=["smollm2", "gemma3"])
def lm(request):
    with likely.load(request.param, runtime="llamacpp") as model:
        yield model


@pytest.mark.sampled(8)
@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.lmql")), ids=lambda p: p.stem)
def test_the_examples_run(lm, path):
    r = query_file(path)(lm, max_tokens=24)
    where = {e.name: e for e in r.trace.holes}
    match path.stem:
        case "list_of_things":
            assert len(r.value) == 4 and all(len(t.split()) < 5 for t in r.value)
        case "odd_one_out":
            assert r.value in ("apple", "pear", "car", "plum") and abs(sum(r.distribution.values()) - 1) < 1e-6
        case "react":
            assert where["ACTION"].text in ("Look up:", "Answer:") and "ANSWER" in r.vars
        case "arithmetic":
            assert isinstance(r.value, int)
        case "chain_of_thought":
            assert set(r.distribution) == {" yes", " no"} and "\n" not in r.vars["REASONING"]
    assert r.text == "".join(e.text for e in r.trace.events)


def test_a_calculator_writes_the_value(lm):
    """Led to an expression, the model fills it in and the tool answers."""
    from likely.queries import calculate

    program = query(
        'def f(calculate):\n  "6 times 7 is <<6*[E]" where REGEX(E, r"[0-9]{1,2}=")\n'
        "  \"{calculate('6*' + E[:-1])}>>\"\n  return E"
    )
    r = program(lm, calculate, max_tokens=6)
    assert r.text == f"6 times 7 is <<6*{r.value}{6 * int(r.value[:-1])}>>"


@pytest.mark.slow
def test_a_distribution_equals_teacher_forced_log_softmax(tmp_path_factory, smollm2_path):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    from likely.models.convert import convert

    folder = tmp_path_factory.mktemp("query") / "hf"
    convert(smollm2_path, folder, to="safetensors", verify=False)
    values = [" Paris", " London", " the city of Rome"]
    with likely.load(str(folder), runtime="torch", dtype="float32") as model:
        r = query(f'"The capital of France is[X]" distribution X in {values}')(model)
        prompt = model.encode_prompt("The capital of France is")
        answers = [model.tokenizer.encode(v) for v in values]
    reference = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    logs = []
    for answer in answers:
        with torch.no_grad():
            rows = reference(torch.tensor([[*prompt, *answer]])).logits[0].log_softmax(-1)
        logs.append(sum(float(rows[len(prompt) - 1 + i, t]) for i, t in enumerate(answer)))
    event = next(e for e in r.trace.events if e.kind == "distribution")
    assert [event.scores[v] for v in values] == pytest.approx(logs, abs=1e-4)
    assert list(r.distribution.values()) == pytest.approx((np.exp(logs) / np.exp(logs).sum()).tolist(), abs=1e-4)
    assert r.vars["X"] == " Paris"
