"""A language model as a risk score: P(outcome | a row of a table), from the probabilities of its answers.

Cruz, Hardt and Mendler-Dünner 2024, "Evaluating language models as risk scores", arXiv:2407.14614 (folktexts); the
styles "word" and the expected number are ours.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray

from likely.calibration.recalibrators.protocol import Parameters
from likely.calibration.recalibrators.table import make
from likely.errors import CapabilityError, DataError, check_choice
from likely.io.jsonl import chunked
from likely.metrics.checks import Floats, Ints, check_correct, log_probs
from likely.prompting.risk.prompts import (
    STYLES,
    WORKED,
    RiskStyle,
    answer_texts,
    choice_orders,
    prompt_texts,
    row_prompt,
    sample_examples,
    worked_row,
)
from likely.prompting.risk.report import OrderBias, order_bias
from likely.prompting.risk.task import TableTask
from likely.prompting.risk.text import AS_IS, RowLayout, TableRow
from likely.prompting.selection.answer_bias import cbm as divided_by_marginal
from likely.scoring.digits import read_numbers
from likely.scoring.letters import LOW_MASS, Shares, shares, warn_low_mass
from likely.uncertainty.verbal import stated_probability

if TYPE_CHECKING:
    from likely.calibration.recalibrators.protocol import Recalibrator


@dataclass(frozen=True)
class RiskScores:
    """Risks of N rows and what they were made of.

    risk          (N,) in [0, 1], the mean over orders; NaN where a text held no number (style "cot") or no choice has
                  any probability
    per_order     (N, O) the risk with the choices shown in each order (one column for "numeric" and "cot")
    choice_probs  (N, O, K) of each choice in the task's order; None for "numeric" and "cot"
    mass          (N, O) probability of all answers together before it was divided out; 1 for "cot"
    orders        what was shown: orders[o][i] is the choice at place i
    texts         what was written (style "cot"), else None
    """

    risk: Floats
    per_order: Floats
    choice_probs: Floats | None
    mass: Floats
    orders: tuple[tuple[int, ...], ...]
    values: tuple[float, ...]
    texts: tuple[str, ...] | None = None

    @property
    def parsed(self) -> NDArray[np.bool_]:
        """(N,) where a number was found."""
        return ~np.isnan(self.risk)

    def record(self, i: int, outcome: float | None) -> dict[str, Any]:
        """What a results file says of row `i`; outcome: of the row, None where it is not known."""
        risk = float(self.risk[i]) if self.parsed[i] else None
        return {
            "risk": risk,
            "probs": None if risk is None else [1 - risk, risk],
            "label": int(outcome) if outcome in (0, 1) else None,
            "per_order": None if risk is None else self.per_order[i].tolist(),
            "choice_probs": None if risk is None or self.choice_probs is None else self.choice_probs[i].tolist(),
            "mass": self.mass[i].tolist(),
            **({} if self.texts is None else {"text": self.texts[i]}),
        }

    @property
    def bias(self) -> OrderBias | None:
        """What the order of the choices does; None where they were shown in one order only."""
        return None if self.choice_probs is None else order_bias(self.choice_probs, self.orders, self.values)


@dataclass(eq=False)
class RiskScorer(Parameters):
    """P(outcome) of a table's rows, on scikit-learn's contract for classifiers of two classes.

    Its tools need a `scoring`: `score` here gives risks, not a mean accuracy.

    model             what `likely.load` gives: any runtime, or a server that scores prompts
    task              what is asked (`load_task("adult")`, a TOML file, or a `TableTask`)
    style             "word" (default): " above" against " below";  "mc": lettered options;  "numeric": digits after
                      "0.";  "cot": a reasoned text that ends in a probability.  Below about 1B parameters letters
                      mostly measure the model's liking for a letter, words still carry signal
    order_correction  show the choices in every order and take the mean (word, mc)
    few_shot          so many of `examples` (rows with their outcome) are worked before each question
    balanced          take them evenly from the outcomes, else as `seed` draws them
    number            "official" (two digits) or "expected" (the mean over the first digit), for "numeric"
    cbm               divide each answer's probability by its mean over the rows (label-free; needs many rows)
    chat              ask through the chat template, the beginning of the answer as the assistant's
    max_tokens        of a reasoned text

    fit learns `threshold_` (of the highest accuracy) or, with a method, `recalibrator_`: nothing of the model changes.
    """

    classes_: ClassVar[Ints] = np.array([0, 1])

    model: Any
    task: TableTask
    _: KW_ONLY
    style: RiskStyle = "word"
    order_correction: bool = True
    layout: RowLayout = AS_IS
    few_shot: int = 0
    examples: Sequence[TableRow] = ()
    balanced: bool = True
    seed: int = 0
    number: Literal["official", "expected"] = "expected"
    cbm: bool = False
    chat: bool = False
    max_tokens: int = 256
    method: str | None = None

    def score(self, rows: Any, *, progress: Callable[[int], None] | None = None) -> RiskScores:
        """The risks of rows (dictionaries, or a pandas DataFrame) with everything they were made of.

        progress  called with the number of scored answers that are new
        DataError names a row that is also a worked example: its outcome would stand in the prompt.
        """
        held = rows_of(rows)
        if not held:
            raise ValueError("no rows: at least one is needed")
        self._check()
        row = worked_row(held, self._shots(), self.task)
        if row is not None:
            raise DataError(f"row {row} {WORKED}")
        asked = self._orders()
        if self.style == "cot":
            found = self._reasoned(held)
        elif self.style == "numeric":
            found = self._numbers(held, progress)
        else:
            found = self._compared(held, asked, progress)
        return found

    def predict_proba(self, rows: Any) -> Floats:
        """(N, 2): P(not the outcome), P(the outcome), recalibrated where `fit` attached a recalibrator.

        Rows sum to 1.  Where there is no risk (see `RiskScores`) the row is NaN, with a warning that counts them.
        """
        risk = self.score(rows).risk
        if np.isnan(risk).any():
            warnings.warn(f"{int(np.isnan(risk).sum())} of {len(risk)} rows have no probability", stacklevel=2)
        risk = self.recalibrated(risk)
        return np.stack([1 - risk, risk], axis=1)

    def predict(self, rows: Any) -> Ints:
        """(N,) 0 or 1: the risk is at least the threshold (0.5 before `fit`)."""
        risk = self.predict_proba(rows)[:, 1]
        if np.isnan(risk).any():
            raise ValueError(f"row {int(np.isnan(risk).argmax())} has no probability: nothing can be predicted for it")
        return (risk >= getattr(self, "threshold_", 0.5)).astype(np.int64)

    def fit(self, rows: Any, labels: Any = None) -> Self:
        """Learn from rows whose outcome is known (in the rows, or as labels) and 0 or 1.

        ValueError, before the model is asked, names a row with another one: an outcome in between, say.

        Without `method`: `threshold_`, the one of the highest accuracy.  With method="platt", "isotonic" or another of
        `calibration.methods`: `recalibrator_`, and the threshold is 0.5.
        """
        held = rows_of(rows)
        y = check_correct(outcome_labels(held, self.task) if labels is None else labels, len(held), "labels")
        return self.fit_scores(self.score(held).risk, y)

    def fit_scores(self, risk: Any, labels: Any) -> Self:
        """The same from risks that are there already; rows without a number are left out."""
        scores = np.asarray(risk, np.float64)
        y = check_correct(labels, len(scores), "labels")
        known = ~np.isnan(scores)
        if not known.any():
            raise ValueError("no row has a probability: there is nothing to fit to")
        vars(self).pop("recalibrator_", None)
        if self.method is None:
            self.threshold_ = best_threshold(scores[known], y[known])
        else:
            self.recalibrator_: Recalibrator = make(self.method)
            self.recalibrator_.fit(self._input(self.recalibrator_, scores[known]), y[known])
            self.threshold_ = 0.5
        return self

    def recalibrated(self, risk: Any) -> Floats:
        """Risks as the recalibrator of `fit` maps them, (N,); as they are where there is none. NaN stays NaN."""
        scores = np.asarray(risk, np.float64)
        recalibrator = getattr(self, "recalibrator_", None)
        if recalibrator is None:
            return scores
        known, out = ~np.isnan(scores), np.full(len(scores), np.nan)
        if known.any():
            mapped = recalibrator.predict_proba(self._input(recalibrator, scores[known]))
            out[known] = mapped if mapped.ndim == 1 else mapped[:, 1]
        return out

    def _check(self) -> None:
        check_choice("style", self.style, STYLES)
        if self.number not in ("official", "expected"):
            raise ValueError(f'number must be "official" or "expected", got "{self.number}"')
        if not 0 <= self.few_shot <= len(self.examples):
            raise ValueError(f"few_shot={self.few_shot} needs so many examples, got {len(self.examples)}")
        if self.chat and getattr(self.model, "render", None) is None:
            raise CapabilityError("chat=True needs a model on this machine: a server hides its chat template")
        if self.cbm and self.style not in ("word", "mc"):
            raise ValueError(f'cbm is for the styles "word" and "mc", which compare answers, not "{self.style}"')

    def _orders(self) -> list[tuple[int, ...]]:
        return choice_orders(len(self.task.choices), correction=self.order_correction)

    def _texts(self, rows: Sequence[TableRow], order: Sequence[int] | None, *, room: int) -> list[str]:
        shots = self._shots()
        prompts = [
            row_prompt(row, self.task, style=self.style, order=order, layout=self.layout, examples=shots)
            for row in rows
        ]
        described = bool(self.task.description.strip())
        return prompt_texts(self.model, prompts, chat=self.chat, room=room, description=described)

    def _shots(self) -> list[TableRow]:
        """The worked examples, the same for all rows, so that they are part of the shared prefix."""
        if not self.few_shot:
            return []
        return sample_examples(self.examples, self.task, self.few_shot, balanced=self.balanced, seed=self.seed)

    def _compared(
        self, rows: Sequence[TableRow], asked: Sequence[tuple[int, ...]], progress: Callable[[int], None] | None
    ) -> RiskScores:
        """Styles "word" and "mc": the answers' log-probabilities, one form for all of them."""
        room = 4 + max(len(choice.word.encode()) for choice in self.task.choices)
        found: list[list[Shares]] = []
        prompts: list[str] = []
        for chunk in chunked(rows):
            texts = [self._texts(chunk, order, room=room) for order in asked]
            pairs = [
                (texts[o][i], answer)
                for i in range(len(chunk))
                for o, order in enumerate(asked)
                for form in answer_texts(self.task, self.style, order)
                for answer in form
            ]
            scored = iter(self.model.score_pairs(pairs, progress=progress))
            for _ in chunk:
                found.append([])
                for order in asked:
                    forms = answer_texts(self.task, self.style, order)
                    found[-1].append(shares([[_logprob(next(scored)) for _ in form] for form in forms]))
            prompts += texts[0]
        probs = np.array([[share.probs for share in row] for row in found])
        mass = np.array([[share.mass for share in row] for row in found])
        if self.style == "mc":
            self._warn(mass, prompts, answer_texts(self.task, "mc", asked[0])[found[0][0].form])
        known = ~np.isnan(probs).any(axis=(1, 2))
        if self.cbm and known.any():
            probs[known] = np.stack([divided_by_marginal(probs[known, o]) for o in range(len(asked))], axis=1)
        values = self._values()
        risks = np.clip(probs @ np.array(values), 0, 1)
        return RiskScores(risks.mean(axis=1), risks, probs, mass, tuple(asked), values)

    def _warn(self, mass: Floats, prompts: Sequence[str], answers: Sequence[str]) -> None:
        low = (mass < LOW_MASS).any(axis=1)
        token = None
        if low.any():  # what would it write instead? asked for one row only
            [scored] = self.model.score_pairs([(prompts[int(low.argmax())], answers[0])], top_logprobs=1)
            token = scored.top_logprobs[0][0].text if scored.top_logprobs else None
        warn_low_mass(mass, answers, token)

    def _numbers(self, rows: Sequence[TableRow], progress: Callable[[int], None] | None) -> RiskScores:
        found = []
        for chunk in chunked(rows):
            texts = self._texts(chunk, None, room=8)
            found += read_numbers(self.model, texts, official=self.number == "official", progress=progress)
        risk = np.array([getattr(n, self.number) for n in found])
        mass = np.array([n.mass for n in found])
        return RiskScores(risk, risk[:, None], None, mass[:, None], ((),), self._values())

    def _reasoned(self, rows: Sequence[TableRow]) -> RiskScores:
        written: list[str] = []
        for chunk in chunked(rows, 32):
            texts = self._texts(chunk, None, room=self.max_tokens)
            done = self.model.generate(texts, max_tokens=self.max_tokens, temperature=0.0)
            written += [generation.text for generation in done]
        stated = [stated_probability(text) for text in written]
        risk = np.array([np.nan if p is None else p for p in stated], np.float64)
        ones = np.ones((len(rows), 1))
        return RiskScores(risk, risk[:, None], None, ones, ((),), self._values(), tuple(written))

    def _values(self) -> tuple[float, ...]:
        return tuple(choice.value for choice in self.task.choices)

    @staticmethod
    def _input(recalibrator: Recalibrator, risk: Floats) -> Floats:
        """The risk as the recalibrator wants it."""
        two = np.stack([1 - risk, risk], axis=1)
        if recalibrator.input == "probs":
            return two
        return log_probs(two) if recalibrator.input == "logits" else risk


def rows_of(table: Any) -> list[TableRow]:
    """Rows as dictionaries: a pandas DataFrame, or any iterable of mappings."""
    if hasattr(table, "to_dict") and hasattr(table, "columns"):
        return list(table.to_dict("records"))
    if isinstance(table, Mapping):
        raise TypeError("rows must be a list of dictionaries, one per row (or a DataFrame), got one dictionary")
    rows = list(table)
    for i, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise TypeError(f"row {i} must be a dictionary of columns, got {type(row).__name__}")
    return rows


def outcome_labels(rows: Iterable[TableRow], task: TableTask) -> Floats:
    """(N,) the outcome's values; ValueError names the first row that has none."""
    values = []
    for i, row in enumerate(rows):
        value = task.label(row)
        if value is None:
            raise ValueError(f'row {i} has no "{task.target}": it says nothing about how right a score is')
        values.append(value)
    return np.array(values, np.float64)


def best_threshold(risk: Floats, labels: Ints) -> float:
    """The threshold t at which "risk >= t" is right most often; ties: the one nearest 0.5.

    Candidates lie half way between neighbouring risks, and outside them all.
    """
    order = np.argsort(risk, kind="stable")
    s, y = risk[order], labels[order]
    distinct = np.flatnonzero(np.diff(s) > 0)
    cuts = np.concatenate([[s[0] - 1e-9], (s[distinct] + s[distinct + 1]) / 2, [s[-1] + 1e-9]])
    below = np.concatenate([[0], distinct + 1, [len(s)]])  # rows that fall under each cut
    ones = np.concatenate([[0], np.cumsum(y)])
    right = (below - ones[below]) + (ones[-1] - ones[below])
    best = np.flatnonzero(right == right.max())
    return float(cuts[best[np.abs(cuts[best] - 0.5).argmin()]])


def _logprob(scored: Any) -> float:
    """Of an answer whose first token also holds the end of the prompt it cannot be told: that form is left out."""
    return -np.inf if scored.straddles else float(scored.sequence_logprob)
