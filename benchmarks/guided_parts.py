"""What each part of a guided step costs, in microseconds, on rows of a model's own width."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import likely
from likely.bench.timing import timed
from likely.decoding.constraint import Mask, log_mass, only, unpack
from likely.decoding.sampling import Sampling, pick
from likely.guided.engines.llguidance import LLGuidanceConstraint
from likely.guided.form import make_form
from likely.guided.settings import FormSettings
from likely.metrics.bootstrap import median_interval
from likely.runtimes.rows import logsumexp

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer"},
        "tags": {"type": "array", "items": {"enum": ["a", "bc"]}},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}
TEXT = '{"name":"Ada Lovelace, countess","age":36,"tags":["a","bc","a"]}'


def microseconds(call: Callable[[], Any], times: int) -> list[float]:
    call()
    return [1e6 * timed(call)[1] for _ in range(times)]


def _anew(state: LLGuidanceConstraint) -> Mask:
    """The set of a state that has not been asked for it yet."""
    state._mask = None
    return state.allowed()


def parts(lm: likely.Model, *, times: int) -> list[dict[str, Any]]:
    """Medians over the states along TEXT, `times` repeats each: a row per part, guided and unguided ones."""
    vocab_size = lm.runtime.vocab_size
    logits = np.random.default_rng(0).standard_normal(vocab_size).astype(np.float32) * 3
    norm = logsumexp(logits)
    greedy, sampled = Sampling(temperature=0), Sampling(seed=1)
    state = lm.guide.constraint(make_form(schema=SCHEMA, settings=FormSettings(close_on_budget=False)))
    assert isinstance(state, LLGuidanceConstraint)
    closing = lm.guide.constraint(make_form(schema=SCHEMA))
    taken: dict[str, list[float]] = {}

    def note(part: str, call: Callable[[], Any]) -> None:
        taken.setdefault(part, []).extend(microseconds(call, times))

    for token in lm.tokenizer.encode(TEXT):
        mask = state.fork().allowed(100)
        allowed = unpack(mask, vocab_size)
        row = only(logits, allowed)
        note("mask", lambda s=state: _anew(s))
        note("mask, closing within 100 tokens", lambda c=closing: c.fork().allowed(100))
        note("unpack", lambda m=mask: unpack(m, vocab_size))
        note("apply", lambda a=allowed: only(logits, a))
        note("mass", lambda a=allowed: log_mass(logits, a, norm))
        note("pick, greedy", lambda r=row: pick(r, greedy, noise=5, sample=0, position=0))
        note("pick, sampled", lambda r=row: pick(r, sampled, noise=5, sample=0, position=0))
        note("forced", lambda s=state: s.forced())
        for part, constraint in (("advance", state), ("advance, closing", closing)):
            taken.setdefault(part, []).append(1e6 * timed(constraint.advance, token)[1])
    note("without a form: norm of the row", lambda: logsumexp(logits))
    note("without a form: pick, greedy", lambda: pick(logits, greedy, noise=5, sample=0, position=0))
    note("without a form: pick, sampled", lambda: pick(logits, sampled, noise=5, sample=0, position=0))
    return [
        {
            "part": part,
            "vocab_size": vocab_size,
            "median_us": float(np.median(v)),
            "interval_us": median_interval(v),
            "n": len(v),
        }
        for part, v in taken.items()
    ]
