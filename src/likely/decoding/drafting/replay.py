"""What a drafter of fixed drafts would have achieved on recorded answers, without a model; and where those are read.

Under greedy and keyed decoding the rounds of such a drafter depend on the text alone: walk each draft against the
answer, emit what was kept and one more token, observe.  Exact for any model that gave the answer, up to the tokenizer.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from likely.decoding.accept import matched_walk
from likely.decoding.drafting.protocol import NO_DRAFT, DraftDistribution, DraftSource, SamplingContext
from likely.errors import CapabilityError, DataError, LikelyError, names_in
from likely.io.jsonl import Line, text_field
from likely.metrics.bootstrap import bootstrap_ratio

PAST_THE_END = -1


@dataclass(frozen=True)
class Rounds:
    """One entry per call of the target: how many drafted tokens were offered and kept.

    draft_s  seconds in the drafter, propose_s those of its proposals
    """

    proposed: list[int]
    accepted: list[int]
    tokens: int
    draft_s: float
    propose_s: float = 0.0

    @property
    def tokens_per_call(self) -> float:
        """Block efficiency τ: emitted tokens per call; 1.0 without drafts."""
        return self.tokens / len(self.accepted)

    @property
    def acceptance_rate(self) -> float | None:
        """Kept share of the drafted tokens; None if nothing was drafted."""
        return sum(self.accepted) / sum(self.proposed) if sum(self.proposed) else None


def replay(
    source: DraftSource, prompt: Sequence[int], answer: Sequence[int], *, budget: int = 10, ended: bool = False
) -> Rounds:
    """Rounds of `source` on an answer (A >= 1 token ids), each with at most `budget` drafted tokens.

    ended  the last token of the answer ended it, so that drafts may reach beyond; otherwise the answer was cut there
           by its limit of tokens, which a draft respects

    The call that reads a prompt of two or more tokens emits the first token, without a draft, as in the live loop.
    """
    if DraftDistribution.FIXED not in source.distributions or not source.free:
        raise CapabilityError(
            f"the drafts of {source.name} depend on a model, so a recorded text cannot be replayed with it: "
            f"run it live (likely generate --drafter)"
        )
    if not answer or not prompt:
        raise ValueError("replay needs a prompt and an answer of at least one token each")
    if budget < 0:
        raise ValueError(f"budget must be >= 0, got {budget}")
    text = [*answer, PAST_THE_END] if ended else list(answer)
    proposed, accepted = [], []
    propose_s, started = 0.0, time.perf_counter()
    drafter = source.begin(list(prompt), SamplingContext())
    draft_s = time.perf_counter() - started
    try:
        done = 0
        while done < len(answer):
            draft = NO_DRAFT
            deepest = budget if ended else len(answer) - done - 1
            if min(budget, deepest) and (done or len(prompt) == 1):
                started = time.perf_counter()
                draft = drafter.propose(budget)
                propose_s += time.perf_counter() - started
                draft = draft.cut(deepest)
            kept, emitted = matched_walk(draft, lambda node, path, at=done: text[at + len(path)])  # type: ignore[misc]
            if emitted[-1] == PAST_THE_END:
                emitted.pop()
            proposed.append(len(draft))
            accepted.append(len(kept))
            done += len(emitted)
            started = time.perf_counter()
            drafter.observe(emitted)
            draft_s += time.perf_counter() - started
    finally:
        started = time.perf_counter()
        drafter.end()
        draft_s += time.perf_counter() - started
    return Rounds(proposed, accepted, len(answer), draft_s + propose_s, propose_s)


@dataclass(frozen=True)
class RecordedAnswer:
    """An answer and what it answered, as token ids of one tokenizer; `group` puts several together."""

    prompt: Sequence[int]
    answer: Sequence[int]
    group: str = ""
    ended: bool = False


@dataclass(frozen=True)
class Replayed:
    """One drafter on many recorded answers, in order; sums over all of them."""

    name: str
    budget: int
    rounds: list[Rounds]

    @cached_property
    def tokens(self) -> int:
        return sum(r.tokens for r in self.rounds)

    @cached_property
    def calls(self) -> int:
        return sum(len(r.accepted) for r in self.rounds)

    @property
    def tokens_per_call(self) -> float:
        """τ: all tokens by all calls."""
        return self.tokens / self.calls

    @cached_property
    def interval(self) -> tuple[float, float]:
        """95 % of τ, bootstrap over answers."""
        return bootstrap_ratio([r.tokens for r in self.rounds], [len(r.accepted) for r in self.rounds])

    @property
    def drafted(self) -> int:
        return sum(sum(r.proposed) for r in self.rounds)

    @property
    def accepted(self) -> int:
        return sum(sum(r.accepted) for r in self.rounds)

    @property
    def acceptance_rate(self) -> float | None:
        return self.accepted / self.drafted if self.drafted else None

    @property
    def drafted_per_call(self) -> float:
        return self.drafted / self.calls

    @property
    def propose_us(self) -> float:
        """Microseconds per call of the target spent in proposals."""
        return 1e6 * sum(r.propose_s for r in self.rounds) / self.calls

    @property
    def draft_us(self) -> float:
        """Microseconds per emitted token in the drafter, all its work: reading the prompts, proposals, observing."""
        return 1e6 * sum(r.draft_s for r in self.rounds) / self.tokens

    def of(self, answers: Sequence[RecordedAnswer], group: str) -> Replayed:
        """Only the answers of one group (`answers` as replayed)."""
        rounds = [r for r, each in zip(self.rounds, answers, strict=True) if each.group == group]
        return Replayed(self.name, self.budget, rounds)


def replay_all(
    sources: Mapping[str, Callable[[], DraftSource]],
    answers: Sequence[RecordedAnswer],
    *,
    budgets: Sequence[int] = (10,),
    progress: Callable[[int], None] | None = None,
) -> dict[str, list[Replayed]]:
    """Every drafter on all answers, once per budget.

    sources   name -> makes a fresh source; what it remembers of an answer it has for the next ones, in order
    progress  called with the number of finished answers
    """
    if not answers:
        raise ValueError("replay needs at least one answer")
    found: dict[str, list[Replayed]] = {}
    for name, make in sources.items():
        for budget in budgets:
            source = make()
            rounds = []
            for each in answers:
                rounds.append(replay(source, each.prompt, each.answer, budget=budget, ended=each.ended))
                if progress:
                    progress(1)
            found.setdefault(name, []).append(Replayed(name, budget, rounds))
    return found


# --- recorded answers from JSON lines ---------------------------------------------------------------------------------

KINDS = ("prompt", "messages", "prompt_ids")  # with "answer", "answer" and "answer_ids"


@dataclass(frozen=True)
class RecordedLine:
    """One line, checked but not yet tokens.  Exactly one of `prompt` (text), `messages` and `ids` is given."""

    where: str
    answer: str = ""
    prompt: str | None = None
    messages: Sequence[dict[str, Any]] | None = None
    ids: tuple[list[int], list[int]] | None = None

    @property
    def is_text(self) -> bool:
        return self.ids is None


def recorded(line: Line, where: str) -> RecordedLine:
    """A line of a file of recorded answers; DataError names file and line.

    Without "answer", the last message is the answer if the assistant wrote it, as in a log of a chat.
    """
    record, here = line.record, f"{where}:{line.number}"
    given = [kind for kind in KINDS if kind in record]
    if len(given) != 1:
        raise DataError(f'{here}: give one of "prompt", "messages" and "prompt_ids" (found: {names_in(record)})')
    if given == ["prompt_ids"]:
        return RecordedLine(here, ids=(_ids(record, "prompt_ids", here), _ids(record, "answer_ids", here)))
    if given == ["prompt"]:
        found = RecordedLine(here, text_field(line, "answer", where), prompt=text_field(line, "prompt", where))
    else:
        found = _chat(line, where, here)
    if not found.answer:
        raise DataError(f'{here}: field "answer" is empty: there is nothing to replay')
    return found


def _chat(line: Line, where: str, here: str) -> RecordedLine:
    from likely.models.chat_template import check_messages

    messages = line.record["messages"]
    if not isinstance(messages, list):
        raise DataError(f'{here}: field "messages" must be a list, found {type(messages).__name__}')
    try:
        held = check_messages(messages)
    except (LikelyError, ValueError, TypeError) as error:
        raise DataError(f"{here}: {error}") from None
    if "answer" in line.record:
        return RecordedLine(here, text_field(line, "answer", where), messages=held)
    if len(held) < 2 or held[-1]["role"] != "assistant":
        raise DataError(f'{here}: field "answer" is missing, and the last of "messages" is not the assistant\'s')
    return RecordedLine(here, held[-1]["content"], messages=held[:-1])


def _ids(record: dict[str, Any], name: str, here: str) -> list[int]:
    ids = record.get(name)
    whole = isinstance(ids, list) and all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in ids)
    if not whole or not ids:
        raise DataError(f'{here}: field "{name}" must be a list of one or more token ids')
    return ids


def tokenise(
    line: RecordedLine,
    *,
    vocab_size: int | None = None,
    encode_prompt: Callable[[str], list[int]] | None = None,
    render: Callable[[Sequence[dict[str, Any]]], list[int]] | None = None,
    encode: Callable[[str], list[int]] | None = None,
) -> RecordedAnswer:
    """Prompt and answer as a model's tokens, each on its own, as in a live run; DataError names the line.

    encode_prompt, render, encode  of the model; not needed for ids
    """
    if line.ids is not None:
        prompt, answer = line.ids
        worst = max(*prompt, *answer)
        if vocab_size is not None and worst >= vocab_size:
            raise DataError(f"{line.where}: token id {worst} is outside 0..{vocab_size - 1} of this model")
        return RecordedAnswer(prompt, answer)
    assert encode_prompt is not None and render is not None and encode is not None
    try:
        read = encode_prompt(line.prompt) if line.prompt is not None else render(line.messages or [])
    except LikelyError as error:
        raise DataError(f"{line.where}: {error}") from None
    if not read:
        raise DataError(f'{line.where}: field "prompt" is empty, and this model has no token to begin with')
    return RecordedAnswer(read, encode(line.answer))
