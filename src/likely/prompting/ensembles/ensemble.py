"""A model as an ensemble of itself: the same question after other demonstrations, in another prompt, or both.

    task = FewShotTask(PromptPool.from_jsonl("prompts.jsonl"), examples)     # a few dozen labelled records
    found = SelfEnsemble(lm, task, EnsembleSpec(vary=("demos",), size=5)).run(texts)
    found.answers, found.confidence, found.disagreement

Li et al. 2023, arXiv:2312.13772.  With an adapter of `training.answers`, trained on `tuning_pairs`, the same ensembles
are those of a fine-tuned model.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack, get_args

import numpy as np

from likely.errors import check_choice
from likely.metrics.checks import Floats
from likely.prompting.ensembles.combining import COMBINATIONS, Combination, Ensembled, combine_members
from likely.prompting.ensembles.demonstrations import FewShotTask, refuse_known, sample_examples, write_examples
from likely.prompting.selection.choosing import Calibration, calibrated_probs
from likely.prompting.selection.scores import AnswerNorm, PromptScores
from likely.prompting.selection.scoring import CONTENT_FREE, score_pool
from likely.prompting.templates import CHOICES, LABEL, TEXT, PromptPool, Template
from likely.scoring.scored import PairScorer

Vary = Literal["demos", "template"]
ATTEMPTS = 100  # at different demonstrations, before there are said to be too few


@dataclass(frozen=True)
class EnsembleSpec:
    """What differs between members, how many there are, and how their opinions become one.

    vary       "demos": each member sees demonstrations of its own, in an order of its own; "template": the first
               `size` templates of the pool; both; () with size 1 is a single prompt
    size       E >= 1, members
    shots      demonstrations in front of each prompt; 0 asks without any
    balanced   demonstrations of every class in turn
    combine    "max" (the paper's recommendation), "mean", "vote", "geometric"
    seed       of the demonstrations; those of member m are sampled by (seed, m), whatever the size is
    norm       how answers of several tokens are compared, the same for all members
    calibrate  repair each member's answers before they are combined: "cbm", "cc", "pmi"
    """

    vary: tuple[Vary, ...] = ("demos",)
    size: int = 5
    shots: int = 4
    balanced: bool = True
    combine: Combination = "max"
    seed: int = 0
    norm: AnswerNorm = "token"
    calibrate: Calibration | None = None

    def __post_init__(self) -> None:
        for what in self.vary:
            check_choice("part", what, get_args(Vary))
        check_choice("combination", self.combine, COMBINATIONS)
        if self.size < 1 or self.shots < 0:
            raise ValueError(f"size must be >= 1 and shots >= 0, got {self.size} and {self.shots}")
        if self.size > 1 and not self.vary:
            raise ValueError(f'{self.size} members that vary in nothing are one: vary "demos", "template" or both')
        if "demos" in self.vary and not self.shots:
            raise ValueError('vary="demos" needs demonstrations: shots must be >= 1, or vary the template')


@dataclass(frozen=True)
class EnsembleMember:
    """One prompt of the ensemble: a template by its number in the pool, and numbers of examples in their order."""

    template: int
    demonstrations: tuple[int, ...]


def sample_members(task: FewShotTask, spec: EnsembleSpec) -> list[EnsembleMember]:
    """The E members; no two of them are the same.  ValueError where the pool or the examples are too few for that."""
    if "template" in spec.vary and spec.size > len(task.pool):
        raise ValueError(f"{spec.size} members need {spec.size} templates, the pool has {len(task.pool)}")
    found: list[EnsembleMember] = []
    for m in range(spec.size):
        template = m if "template" in spec.vary else 0
        rng = np.random.default_rng([spec.seed, m if "demos" in spec.vary else 0])
        for _ in range(ATTEMPTS):
            member = EnsembleMember(
                template, tuple(sample_examples(task.labels, spec.shots, rng, balanced=spec.balanced))
            )
            if all(member.demonstrations != other.demonstrations for other in found) or "demos" not in spec.vary:
                break
        else:
            raise ValueError(
                f"{len(task.examples)} examples do not give {spec.size} different sequences of {spec.shots} "
                f"demonstrations: label more, or make the ensemble smaller"
            )
        found.append(member)
    return found


def member_template(task: FewShotTask, member: EnsembleMember, name: str) -> Template:
    """The member's template with its demonstrations, written in the same template, in front."""
    template = task.pool.templates[member.template]
    shown = [task.examples[i] for i in member.demonstrations]
    prefix = write_examples(template, shown, task.labels[list(member.demonstrations)].tolist())
    return replace(template, name=name, prefix=template.prefix + prefix)


class ScoreOptions(TypedDict, total=False):
    """See `score_pool`."""

    cache: str | Path | None
    origin: Mapping[str, Any] | None
    progress: Callable[[int], None] | None


class SelfEnsemble:
    """One model asked in `spec.size` ways.

    lm    a model, or anything with `score_pairs`: `Adapter` of training.answers, a server with log-probabilities
    `members` and `pool` (their prompts, as a pool of templates) are made at once: what is missing is an error here.
    """

    def __init__(self, lm: PairScorer, task: FewShotTask, spec: EnsembleSpec = EnsembleSpec()):
        self.lm, self.task, self.spec = lm, task, spec
        self.members = sample_members(task, spec)
        self.pool = PromptPool(tuple(member_template(task, m, f"member {e}") for e, m in enumerate(self.members)))

    def score(
        self,
        inputs: Sequence[str | Mapping[str, Any]],
        **options: Unpack[ScoreOptions],
    ) -> PromptScores:
        """What every member says to every input, T = E.  Demonstrations are computed once per member, not per input.

        DataError if an input is one of the demonstrations.
        """
        records = [{TEXT: item} if isinstance(item, str) else dict(item) for item in inputs]
        if not records:
            raise ValueError("no inputs: at least one is needed")
        if len(records) == 1 and self.spec.calibrate == "cbm":
            raise ValueError('calibrate="cbm" divides by a mean over inputs: at least 2 are needed, got 1')
        shown = sorted(set(itertools.chain.from_iterable(m.demonstrations for m in self.members)))
        refuse_known(records, {i: self.task.examples[i] for i in shown}, self.task.pool)
        two = records if len(records) > 1 else records * 2  # a pool is scored over inputs, two or more
        return score_pool(
            self.lm, self.pool, two, content_free=CONTENT_FREE if self.spec.calibrate in ("cc", "pmi") else (),
            chunk=len(two), **options,
        )  # fmt: skip

    def run(self, inputs: Sequence[str | Mapping[str, Any]], **options: Unpack[ScoreOptions]) -> Ensembled:
        """Members' probabilities and what they come to; options as in `score`."""
        scores = self.score(inputs, **options)
        return combine_members(self.member_probs(scores)[:, : len(inputs)], self.spec.combine)

    def member_probs(self, scores: PromptScores) -> Floats:
        """(E, N, K) from the scores of the members, calibrated one by one where the spec says so."""
        return calibrated_probs(scores, self.spec.calibrate, norm=self.spec.norm)

    def predict_proba(self, inputs: Sequence[str | Mapping[str, Any]], **options: Unpack[ScoreOptions]) -> Floats:
        """(N, K); options as in `score`."""
        return self.run(inputs, **options).probs


def tuning_pairs(
    task: FewShotTask, *, shots: int = 0, rounds: int = 1, templates: int | None = None, seed: int = 0,
    balanced: bool = True,
) -> list[tuple[str, str]]:  # fmt: skip
    """(prompt, answer) pairs to fine-tune on (`train_lora`): every example `rounds` times, its templates in turn.

    shots      0: plain supervised fine-tuning.  More: with so many demonstrations of other examples in front, sampled
               anew for each pair (supervised in-context learning), to be used with as many
    templates  only the first so many of the pool
    """
    pool, labels = task.pool.templates[:templates], task.labels.tolist()
    rng = np.random.default_rng([seed, len(task.examples)])
    offset = rng.permutation(len(task.examples))  # which template comes first says nothing about the label
    pairs = []
    for turn in range(rounds):
        for i in rng.permutation(len(task.examples)).tolist():
            template = pool[(offset[i] + turn) % len(pool)]
            shown = sample_examples(labels, shots, rng, balanced=balanced, without=i)
            prefix = write_examples(template, [task.examples[j] for j in shown], [labels[j] for j in shown])
            record = {k: v for k, v in task.examples[i].items() if k not in (LABEL, CHOICES)}
            pairs.append((prefix + template.prompt(record), template.answers(record)[labels[i]]))
    return pairs
