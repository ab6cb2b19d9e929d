"""Solved examples in front of a prompt: sampled by a seed, and never one of the inputs that are asked."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from likely.errors import DataError
from likely.io.hashes import fingerprint
from likely.metrics.checks import Ints
from likely.prompting.selection.scoring import label_numbers
from likely.prompting.templates import CHOICES, LABEL, PromptPool, Template

SEPARATOR = "\n\n"


@dataclass(frozen=True)
class FewShotTask:
    """What is to be answered, in which words, and a few examples with their answers.

    pool      templates; the first is used where templates do not vary
    examples  records with the fields that the templates ask for, and a "label"
    """

    pool: PromptPool
    examples: tuple[Mapping[str, Any], ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "examples", tuple(self.examples))
        for i, record in enumerate(self.examples):
            if record.get(LABEL) is None:
                raise DataError(f'example {i} has no "{LABEL}": demonstrations need the right answer')
            if record.get(CHOICES) is not None:
                raise DataError(f'example {i} brings "{CHOICES}" of its own: demonstrations need common answers')
        _ = self.labels  # a label that is none of the answers is an error here

    @property
    def labels(self) -> Ints:
        """(len(examples),) numbers of the right answers."""
        found = label_numbers(self.examples, self.pool.templates[0].choices)
        return np.zeros(0, np.int64) if found is None else found


def sample_examples(
    labels: Any, shots: int, rng: np.random.Generator, *, balanced: bool = True, without: int = -1
) -> list[int]:
    """`shots` different examples in a random order.

    labels    (M,) of the examples
    balanced  classes in turn, in a random order of the classes, so that their numbers differ by at most one as long as
              no class runs out
    without   the number of an example that is left out
    """
    labels = np.asarray(labels)
    usable = np.array([i for i in range(len(labels)) if i != without], np.int64)
    if not 0 <= shots <= len(usable):
        raise ValueError(f"shots must lie in 0..{len(usable)} (the labelled examples), got {shots}")
    order = rng.permutation(usable)
    if balanced:
        classes = rng.permutation(np.unique(labels[order])) if len(order) else np.zeros(0, np.int64)
        turn = np.empty(len(order))
        for place, k in enumerate(classes):
            rows = labels[order] == k
            turn[rows] = np.arange(rows.sum()) + place / len(classes)
        order = order[np.argsort(turn, kind="stable")]
    return rng.permutation(order[:shots]).tolist()


def write_examples(template: Template, examples: Sequence[Mapping[str, Any]], labels: Sequence[int]) -> str:
    """The examples in the words of the template, each with its answer and an empty line after it."""
    return "".join(
        template.prompt(record) + template.answers(record)[label] + SEPARATOR
        for record, label in zip(examples, labels, strict=True)
    )


def refuse_known(
    inputs: Sequence[Mapping[str, Any]], examples: Mapping[int, Mapping[str, Any]], pool: PromptPool
) -> None:
    """DataError if an input is one of these examples, case and white space aside: its answer would be in the prompt.

    examples  by the number that the message names
    """
    known = {record_fingerprint(record, pool): number for number, record in examples.items()}
    for i, record in enumerate(inputs):
        number = known.get(record_fingerprint(record, pool))
        if number is not None:
            raise DataError(
                f"input {i} is also example {number}, whose answer stands in the prompt: leave one of the two out"
            )


def record_fingerprint(record: Mapping[str, Any], pool: PromptPool) -> str:
    """Hash of what the templates show of a record, without regard to case, white space and the fields' names."""
    shown = {normalise_text(str(value)) for template in pool for value in template.values(record).values()}
    return fingerprint(sorted(shown))


def normalise_text(text: str) -> str:
    """A text without regard to case, width of characters and white space."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())
