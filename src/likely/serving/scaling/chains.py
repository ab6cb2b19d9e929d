"""What scaling a question gives: chains of turns, who wrote each, and the answer they vote for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from likely.metrics.intervals import Accuracy
from likely.serving.scaling.answers import ANSWER_FORMS, Vote, vote
from likely.serving.scaling.gate import RoundRate, round_rates

OnReject = Literal["continue", "replace"]
Finish = Literal["answer", "ended", "rounds", "error"]


@dataclass(frozen=True)
class ChainTurn:
    """One round of a chain: a draft, what the target thinks of it, and its continuation where it took over.

    mean_logprob  of the draft by the target, nats per token of the target;  draft_tokens: by the drafter's tokenizer
    target_text   "" where the draft was kept;  target_tokens, target_logprob: of it, None where a server does not say
    """

    round: int
    draft: str
    draft_tokens: int
    mean_logprob: float
    scored_tokens: int
    pvalue: float
    rejected: bool
    target_text: str = ""
    target_tokens: int = 0
    target_logprob: float | None = None

    def text(self, on_reject: OnReject) -> str:
        """What the round added to the chain."""
        if not self.rejected:
            return self.draft
        return self.target_text if on_reject == "replace" else self.draft + self.target_text


@dataclass(frozen=True)
class ReasoningChain:
    """One chain.

    finish    "answer" (it said one), "ended" (its last writer ended), "rounds" (all were used), "error"
    answer    as `AnswerForm.read` gives it;  error: one line
    mean_logprob  by the target, nats per token of what the chain holds, as far as it is known
    finished_s  by the clock of the event loop, from the start of the question
    """

    number: int
    turns: tuple[ChainTurn, ...] = ()
    finish: Finish = "rounds"
    answer: str | None = None
    error: str = ""
    mean_logprob: float | None = None
    finished_s: float = 0.0
    on_reject: OnReject = "continue"

    @property
    def text(self) -> str:
        return "".join(turn.text(self.on_reject) for turn in self.turns)

    def with_turn(self, turn: ChainTurn) -> ReasoningChain:
        return replace(self, turns=(*self.turns, turn))

    def ended(self, finish: Finish, finished_s: float, answer_form: str) -> ReasoningChain:
        """The whole chain, its answer read and its likelihood counted."""
        return replace(
            self, finish=finish, finished_s=finished_s, answer=ANSWER_FORMS[answer_form].read(self.text),
            mean_logprob=self._likelihood(),
        )  # fmt: skip

    def _likelihood(self) -> float | None:
        total, tokens = 0.0, 0
        for turn in self.turns:
            if not (turn.rejected and self.on_reject == "replace"):
                total, tokens = total + turn.mean_logprob * turn.scored_tokens, tokens + turn.scored_tokens
            if turn.rejected and turn.target_logprob is not None:
                total, tokens = total + turn.target_logprob, tokens + turn.target_tokens
        return total / tokens if tokens else None

    def to_dict(self) -> dict[str, Any]:
        """JSON-able, without times: the same in every run."""
        turns = [
            {"writer": "target" if t.rejected else "draft", **{n: v for n, v in vars(t).items() if n != "rejected"}}
            for t in self.turns
        ]
        named = {
            "text": self.text, "answer": self.answer, "finish": self.finish, "mean_logprob": self.mean_logprob,
            "turns": turns,
        }  # fmt: skip
        return {**named, "error": self.error} if self.error else named


@dataclass(frozen=True)
class Chains:
    """All chains of a question.

    answer   what they vote for;  weights: of each answer
    calibration_scores  that the drafts of a round were held against, by round
    """

    question: str
    chains: tuple[ReasoningChain, ...]
    reject_rate: float
    answer: str | None = None
    weights: dict[str, float] = field(default_factory=dict)
    calibration_scores: dict[int, int] = field(default_factory=dict)

    @classmethod
    def of(
        cls, question: str, chains: Sequence[ReasoningChain], *, reject_rate: float, by: Vote,
        calibration_scores: dict[int, int],
    ) -> Chains:  # fmt: skip
        answer, weights = vote([c.answer for c in chains], [c.mean_logprob for c in chains], by=by)
        return cls(question, tuple(chains), reject_rate, answer, weights, calibration_scores)

    def decisions(self) -> Iterator[tuple[int, bool]]:
        """(round, whether it was rejected) of every draft."""
        return ((turn.round, turn.rejected) for chain in self.chains for turn in chain.turns)

    def rates(self) -> list[RoundRate]:
        """How many drafts were rejected, beside how many were to be, in the first round and in later ones."""
        return round_rates(self.decisions(), self.reject_rate, self.calibration_scores.get(1))

    @property
    def draft_tokens(self) -> int:
        return sum(turn.draft_tokens for chain in self.chains for turn in chain.turns)

    @property
    def target_tokens(self) -> int:
        """Tokens that the target wrote."""
        return sum(turn.target_tokens for chain in self.chains for turn in chain.turns)

    @property
    def share(self) -> float | None:
        """Share of the weight that the answer has."""
        total = sum(self.weights.values())
        return self.weights[self.answer] / total if self.answer is not None and total > 0 else None

    def to_dict(self) -> dict[str, Any]:
        """JSON-able, without times: the same in every run."""
        drafts = list(self.decisions())
        return {
            "answer": self.answer, "weights": self.weights, "share": self.share, "drafts": len(drafts),
            "rejected": sum(rejected for _, rejected in drafts), "draft_tokens": self.draft_tokens,
            "target_tokens": self.target_tokens, "failed": sum(c.finish == "error" for c in self.chains),
            "chains": [chain.to_dict() for chain in self.chains],
        }  # fmt: skip


def summarise(
    records: Sequence[Mapping[str, Any]], *, reject_rate: float, calibration_scores: int | None
) -> dict[str, Any]:
    """Of records as `Chains.to_dict` makes them: answers, rejected drafts beside the nominal rate, tokens.

    "correct" of a record, 0 or 1, counts for the accuracy.  JSON-able.
    """
    turns = [turn for record in records for chain in record["chains"] for turn in chain["turns"]]
    rates = round_rates(((t["round"], t["writer"] == "target") for t in turns), reject_rate, calibration_scores)
    graded = [record["correct"] for record in records if record.get("correct") is not None]
    return {
        "questions": len(records), "answered": sum(record["answer"] is not None for record in records),
        "accuracy": Accuracy(sum(graded), len(graded)).to_dict() if graded else None,
        "rates": [rate.to_dict() for rate in rates], "failed": sum(record["failed"] for record in records),
        "draft_tokens": sum(record["draft_tokens"] for record in records),
        "target_tokens": sum(record["target_tokens"] for record in records),
    }  # fmt: skip
