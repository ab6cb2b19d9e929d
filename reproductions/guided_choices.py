"""A choice between few texts: the exact law of the model given them, by enumeration, and what samplers make of it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

import likely
from likely.decoding.constraint import Constraint, members
from likely.guided.form import make_form
from likely.runtimes.protocol import Want, Work
from likely.runtimes.rows import log_softmax

CHAT_CHOICES = ("Yes.", "No.", "Maybe.")
PLAIN_CHOICES = (" yes\n", " no\n", " maybe\n")
QUESTIONS = (
    "Is the sky blue?",
    "Is the moon made of cheese?",
    "Will it rain tomorrow?",
    "Do all birds fly?",
    "Is 17 a prime number?",
    "Is coffee better than tea?",
    "Can a whale breathe under water?",
    "Is Paris the capital of Italy?",
    "Is there life on other planets?",
    "Does a triangle have four sides?",
    "Is it good to get up early?",
    "Did the Romans know paper?",
)
MAX_TOKENS = 5  # bounds how finely a choice can be cut, and so the number of paths to walk

Law = Mapping[str, float]


@dataclass(frozen=True)
class Measured:
    """One question. exact: p( | choices) by enumeration; local, importance, smc: laws of one drawn text."""

    exact: Law
    log_p: float  # log p(choices | prompt), enumerated
    laws: dict[str, Law]

    def distance(self, arm: str) -> float:
        """Total variation between the law of this arm and the exact one."""
        texts = {*self.exact, *self.laws[arm]}
        return 0.5 * sum(abs(self.exact.get(t, 0.0) - self.laws[arm].get(t, 0.0)) for t in texts)


def prompt_of(lm: likely.Model, question: str) -> tuple[str, Sequence[str]]:
    """(text that the model sees, the choices in the form that it would write them)"""
    if lm.template is None:
        return f"Question: Is water wet?\nAnswer: yes\n\nQuestion: {question}\nAnswer:", PLAIN_CHOICES
    asked = f"{question} Answer with Yes., No. or Maybe."
    return lm.render([{"role": "user", "content": asked}]).text, CHAT_CHOICES


def exact_laws(lm: likely.Model, prompt: Sequence[int], constraint: Constraint) -> tuple[Law, Law, float]:
    """(p( | L), q, log p(L)) over texts: every token path of the constraint is walked, one call of the model each.

    L: whole texts of at most MAX_TOKENS tokens, in any tokenisation.
    """
    p: Counter[str] = Counter()
    q: Counter[str] = Counter()
    root = lm.runtime.open()
    row_wanted = Want(rows="last", logits=True)
    start = lm.runtime.forward([Work(root, np.array(prompt, np.int64), want=row_wanted)])[0].logits
    assert start is not None

    def walk(state: Constraint, path: tuple[int, ...], log_p: float, log_q: float, logits: np.ndarray) -> None:
        ended = bool(path) and path[-1] in lm.tokenizer.end_ids
        if ended or len(path) == MAX_TOKENS:
            if state.accepting:
                text = b"".join(map(lm.tokenizer.token_bytes, path)).decode()
                p[text] += math.exp(log_p)
                q[text] += math.exp(log_q)
            return
        row = log_softmax(logits).astype(np.float64)
        within = members(state.allowed(MAX_TOKENS - len(path)))
        allowed = np.array([token for token in within.tolist() if state.permits(token)])
        mass = float(np.logaddexp.reduce(row[allowed]))
        for token in allowed.tolist():
            child = state.fork()
            child.advance(token)
            step = (*path, token), log_p + row[token], log_q + row[token] - mass
            if token in lm.tokenizer.end_ids or len(path) + 1 == MAX_TOKENS:
                walk(child, *step, logits)
                continue
            sequence = lm.runtime.fork(root)
            try:
                work = Work(sequence, np.array(step[0], np.int64), want=row_wanted)
                found = lm.runtime.forward([work])[0].logits
            finally:
                lm.runtime.close(sequence)
            assert found is not None
            walk(child, *step, found[-1])

    try:
        walk(constraint, (), 0.0, 0.0, start[-1])
    finally:
        lm.runtime.close(root)
    total = sum(p.values())
    return {t: v / total for t, v in p.items()}, dict(q), math.log(total)


def measure(lm: likely.Model, question: str, *, seeds: int, particles: int) -> Measured:
    """The laws of one question's answer.

    "local, exact" is enumerated.  "local" are the frequencies of seeds x particles masked texts; "importance" and "smc"
    average the normalised weights over seeds, the law of one drawn text with less noise than its frequency.
    """
    text, choices = prompt_of(lm, question)
    constraint = lm.guide.constraint(make_form(choices=choices))
    exact, q, log_p = exact_laws(lm, lm.encode_prompt(text), constraint)
    laws: dict[str, Counter[str]] = {arm: Counter() for arm in ("local", "importance", "smc")}
    for seed in range(seeds):
        for sampler in ("importance", "smc"):
            found = lm.ensemble(
                text, choices=choices, sampler=sampler, particles=particles, seed=seed, max_tokens=MAX_TOKENS,
                drafter=None,
            )  # fmt: skip
            for drawn, weight in zip(found.texts, found.probabilities, strict=True):
                laws[sampler][drawn.text] += float(weight) / seeds
                if sampler == "importance":
                    laws["local"][drawn.text] += 1 / (particles * seeds)
    return Measured(exact, log_p, {"local, exact": q, **laws})
