"""Drafters x runtimes x ways of choosing: what exists of the product, and requests to try it with."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
from drafter_factories import MADE

from likely.decoding.drafting.protocol import DraftDistribution, DraftSource
from likely.decoding.request import Request
from likely.decoding.sampling import Sampling
from likely.runtimes.toy import ToyRuntime

# the real engines on tiny random weights
RUNTIMES = {"toy": "toy", "torch": "torch", "llamacpp": "llamacpp-f32", "native": "native"}
BATCHES = (1, 3, 8)  # requests at a time
CHOICES: dict[str, dict[str, Any]] = {
    "greedy": {"sampling": Sampling(temperature=0.0)},
    "sampled, keyed": {"sampling": Sampling(temperature=0.9, top_p=0.95, seed=11)},
    "sampled, rejection": {"sampling": Sampling(temperature=0.9, seed=11), "verification": "rejection"},
    "sampled, SpecTr": {"sampling": Sampling(temperature=0.9, seed=11), "verification": "spectr"},
    "penalties and bias": {
        "sampling": Sampling(temperature=0.7, repetition_penalty=1.3, logit_bias={2: 1.0}, seed=4),
        "processed": True,
    },
}


def possible(source: DraftSource, choice: str) -> bool:
    """Whether the law of the drafts allows this way of choosing; else a CapabilityError says what would work."""
    verification = CHOICES[choice].get("verification", "keyed")
    if verification == "spectr":
        return DraftDistribution.IID in source.distributions
    return verification == "keyed" or bool(source.distributions - {DraftDistribution.FIXED})


def cases() -> list[tuple[str, str, str]]:
    """(runtime, drafter, choice): all that exist. A drafter that needs one runtime meets that one only."""
    small = ToyRuntime.random(11, seed=3)
    sources = {name: made.build(small) for name, made in MADE.items() if "toy" in made.runtimes}
    return [
        (runtime, name, choice)
        for runtime, name, choice in product(RUNTIMES, MADE, CHOICES)
        if runtime in MADE[name].runtimes
        and possible(sources.get(name, sources["model, chain"]), choice)  # the target's own layers draft chains, too
    ]


def requests(choice: str, batch: int, vocab_size: int) -> list[Request]:
    """Prompts of different lengths and budgets of tokens; repetitive, so that copying drafters have something to do."""
    rng = np.random.default_rng(5)
    base = Request((1,), max_tokens=1, top_logprobs=2, draft_budget=6, **CHOICES[choice])
    found = []
    for i in range(batch):
        phrase = rng.integers(0, min(vocab_size, 8), 3 + i % 4).tolist()
        prompt = (phrase * 6)[: 3 + 2 * i]
        found.append(replace(base, prompt=tuple(prompt), max_tokens=10 + 3 * (i % 3)))
    return found
