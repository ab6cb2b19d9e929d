"""A model as judge of a diagram, on the six criteria of MermaidSeqBench, and whether the judge can be trusted.

A judge is asked in two ways: for a JSON object with a score (what cannot be read is missing, never left out silently),
and by likelihood: the expected score under the model's own distribution over the scores.  A judge that does not put a
reference above the same diagram with faults is no judge.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from likely.audit.mermaid.diagram import Activation, DiagramBlock, DiagramEvent, DiagramMessage, SequenceDiagram
from likely.metrics.paired import PairedDifference, paired_difference
from likely.scoring.scored import PairScorer

JUDGED: Mapping[str, str] = {
    "syntax": "Is it valid Mermaid: participants declared, activations balanced, alt and else closed by end?",
    "mermaid_only": "Is it the diagram and nothing else?",
    "logic": "Does each request have its response, are alternatives whole, is the nesting right?",
    "completeness": "Does it have every participant and step of the flow?",
    "activation_handling": "Are participants activated and deactivated where they work?",
    "error_and_status_tracking": "Does it show errors and states as the flow asks?",
}
SCORES = ("0.0", "0.2", "0.4", "0.6", "0.8", "1.0")
SCHEMA: Mapping[str, Any] = {
    "type": "object",
    "properties": {
        "explanation": {"type": "string", "maxLength": 200},
        "score": {"enum": [round(0.05 * i, 2) for i in range(21)]},
    },
    "required": ["explanation", "score"],
    "additionalProperties": False,
}
_NAMED = re.compile(r"\bscore\b[\"'*\s]*[:=]\s*[\"'*]*(-?\d+(?:\.\d+)?)(?![\d.]*\s*(?:/|out of))", re.I)


def judge_prompt(criterion: str, flow: str, response: str, reference: str) -> str:
    """What a judge is asked about one criterion."""
    return (
        f"You judge a Mermaid sequence diagram. Flow:\n{flow}\n\nOne accepted diagram:\n{reference}\n\n"
        f"Diagram to judge:\n{response}\n\nCriterion {criterion}: {JUDGED[criterion]} "
        f"Give a score from 0.0 (not at all) to 1.0 (in full)."
    )


def read_score(text: str) -> float | None:
    """The score in a judge's reply: of a JSON object, or after the word "score"; None where there is none in [0, 1].

    A number that stands anywhere else ("1. The diagram ...") is no score.
    """
    try:
        found = json.loads(text)
        value = found.get("score") if isinstance(found, dict) else None
    except ValueError:
        named = _NAMED.findall(text)
        value = float(named[0]) if len(set(named)) == 1 else None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        return None
    return float(value)


def judged_scores(model: Any, prompts: Sequence[str], *, max_tokens: int = 160) -> list[float | None]:
    """Scores by asking, held to `SCHEMA`; what cannot be read is asked for once more, then missing."""
    replies = model.ask_each(list(prompts), schema=SCHEMA, max_tokens=max_tokens)
    found = [read_score(reply.text) for reply in replies]
    again = [i for i, score in enumerate(found) if score is None]
    if again:
        second = model.ask_each([prompts[i] for i in again], schema=SCHEMA, max_tokens=2 * max_tokens, seed=1)
        for i, reply in zip(again, second, strict=True):
            found[i] = read_score(reply.text)
    return found


def expected_scores(model: PairScorer, prompts: Sequence[str]) -> list[float]:
    """Scores by likelihood: sum of s p(s) over `SCORES`, p the model's distribution over them after "Score:"."""
    pairs = [(f"{prompt}\nScore:", f" {score}") for prompt in prompts for score in SCORES]
    logprobs = np.array([s.sequence_logprob for s in model.score_pairs(pairs)]).reshape(len(prompts), len(SCORES))
    p = np.exp(logprobs - logprobs.max(axis=1, keepdims=True))
    return [float(row) for row in (p / p.sum(axis=1, keepdims=True)) @ np.array([float(s) for s in SCORES])]


@dataclass(frozen=True)
class JudgeControl:
    """References against the same diagrams with faults.

    ordered   share of the pairs in which the reference has the higher score; ties count half
    gap       mean of reference less faulty
    coverage  share of all scores that could be read
    """

    ordered: float
    gap: PairedDifference
    coverage: float

    @property
    def trusted(self) -> bool:
        """Whether the reference is above by more than chance."""
        return self.gap.sign == 1


def judge_control(reference: Sequence[float | None], faulty: Sequence[float | None]) -> JudgeControl:
    """Whether a judge tells references from faulty diagrams; pairs with a missing score only lower the coverage."""
    pairs = [(a, b) for a, b in zip(reference, faulty, strict=True) if a is not None and b is not None]
    read = sum(s is not None for s in (*reference, *faulty)) / max(1, len(reference) + len(faulty))
    if not pairs:
        return JudgeControl(math.nan, PairedDifference(0.0, 0.0, 0.0, 0), read)
    good, bad = (np.array(side) for side in zip(*pairs, strict=True))
    ordered = float((good > bad).mean() + 0.5 * (good == bad).mean())
    return JudgeControl(ordered, paired_difference(bad, good), read)


def with_faults(diagram: SequenceDiagram, *, seed: int = 0) -> SequenceDiagram:
    """A diagram that is still valid and wrong: every second message is gone or turned round, activations are gone."""
    rng = np.random.default_rng(seed)
    turn = itertools.count()

    def spoil(events: Sequence[DiagramEvent]) -> tuple[DiagramEvent, ...]:
        kept: list[DiagramEvent] = []
        for event in events:
            if isinstance(event, Activation):
                continue
            if isinstance(event, DiagramMessage):
                event = replace(event, activation="")
                if next(turn) % 2 == 0:
                    if event.sender == event.receiver or rng.integers(2):
                        continue
                    event = replace(event, sender=event.receiver, receiver=event.sender)
            elif isinstance(event, DiagramBlock):
                event = replace(event, branches=tuple(replace(b, events=spoil(b.events)) for b in event.branches))
            kept.append(event)
        return tuple(kept)

    return SequenceDiagram(spoil(diagram.events))
