"""Estimators of uncertainty on both engines: the same weights give the same values, sampled texts included."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import likely
from likely.scoring.likelihood import Item, score_items
from likely.uncertainty.likelihood import max_nll, mean_nll
from likely.uncertainty.planner import gather
from likely.uncertainty.table import ESTIMATORS, estimate

pytestmark = [
    pytest.mark.real, pytest.mark.xdist_group("real"), pytest.mark.filterwarnings("ignore:P.True"),
]  # fmt: skip
FROZEN = json.loads(Path(__file__).with_name("frozen.json").read_text())["smollm2 q4_1 against f32, nats per token"]
SHOWN = "Question: What is the capital of Italy?\nAnswer: Rome\n\nQuestion: {}\nAnswer:"
QUESTIONS = ["What is the capital of France?", "What is 12 + 7?", "Who wrote Hamlet?"]
# these texts state no confidence, and llama.cpp gives no hidden states
NAMES = [name for name, of in ESTIMATORS.items() if name not in ("csa", "stated_confidence")
         and "sample_states" not in of.needs]  # fmt: skip


def found(lm):
    gathered = gather(
        lm, [SHOWN.format(q) for q in QUESTIONS], needs=NAMES, samples=2, beams=2, max_tokens=8, stop="\n", seed=1,
        shown=QUESTIONS, brainstormed=1,
    )  # fmt: skip
    return gathered, estimate(gathered, NAMES)


@pytest.fixture(scope="module")
def torch_fp32(oracle):
    return found(oracle)


def texts_of(gathered, i):
    own = [gathered.greedy.texts[i], gathered.beams.texts[i]]
    return own + [gathered.samples.texts[k] for k in gathered.samples.of(i)]


def test_the_same_weights_on_both_engines(torch_fp32, f32):
    """Noise is keyed by place, so that only a near-tie can make another text: of three questions one at most."""
    with likely.load(str(f32), runtime="llamacpp") as lm:
        gathered, values = found(lm)
    same = [texts_of(gathered, i) == texts_of(torch_fp32[0], i) for i in range(len(QUESTIONS))]
    assert sum(same) >= 2
    for name in NAMES:
        np.testing.assert_allclose(
            values[name].values[same], torch_fp32[1][name].values[same], rtol=2e-2, atol=2e-2, err_msg=name
        )


def test_rounded_activations_move_values_by_no_more_than_their_noise(oracle, packaged):
    """Values of the packaged file's greedy texts; torch, which reads the same weights, scores the same tokens."""
    prompts = [SHOWN.format(q) for q in QUESTIONS]
    quantised = gather(packaged, prompts, needs=["greedy"], max_tokens=8, stop="\n").greedy
    made = packaged.generate(prompts, temperature=0, max_tokens=8, stop="\n", drafter=None)
    assert [text.text for text in made] == list(quantised.texts)
    items = []
    for prompt, text in zip(prompts, made, strict=True):
        given = tuple(oracle.encode_prompt(prompt))
        items.append(Item((*given, *text.token_ids), len(given)))
    rescored = replace(quantised, token_logprobs=[np.array(s.logprobs) for s in score_items(oracle.runtime, items)])
    for of, bound in ((mean_nll, FROZEN["p99"]), (max_nll, 1.5 * FROZEN["max"])):
        assert np.abs(of(quantised).values - of(rescored).values).max() <= bound, of
