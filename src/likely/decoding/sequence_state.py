"""One running continuation: its place in the runtime, its tokens and its text."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from likely.decoding.accept import matched_walk, sampled_walk
from likely.decoding.constraint import Constraint, ConstraintDeadEnd, LogitsProcessor, log_mass, only, unpack
from likely.decoding.drafting.budget.acceptance import AcceptanceEstimate, AcceptanceTracker
from likely.decoding.drafting.protocol import NO_DRAFT, Draft, DraftDistribution, Drafter
from likely.decoding.request import Event, Finished, Request
from likely.decoding.sampling import apply_penalties, generator, pick, processed_logprobs
from likely.decoding.text import TextStream
from likely.errors import KvFull
from likely.metrics.checks import Floats
from likely.runtimes.protocol import FloatArray, Output, Sequence, Want
from likely.runtimes.rows import entropy_of, logsumexp, top_tokens

Allowed = NDArray[np.bool_]  # (V,)


@dataclass(eq=False)
class SequenceState:
    """State of one sample.

    The cache invariant: the runtime's sequence holds prompt + tokens without the last `len(todo)` of them; the last
    of `todo` is the newest token.  Prefill is only a long `todo`.
    """

    request_id: int
    request: Request
    sample: int
    todo: list[int]
    stream: TextStream
    sequence: Sequence | None = None
    drafter: Drafter | None = None
    constraint: Constraint | None = None
    logits_processors: tuple[LogitsProcessor, ...] = ()
    draft: Draft = NO_DRAFT
    drafted: int = 0  # nodes of the draft that are the drafter's, the first ones
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    tops: list[list[tuple[int, float]]] = field(default_factory=list)
    entropies: list[float] = field(default_factory=list)
    processed: list[float] = field(default_factory=list)
    log_masses: list[float] = field(default_factory=list)  # with a constraint: log p(allowed), one per token
    actions: list[int] = field(default_factory=list)  # with backspace_id: tokens and deletions in order
    action_logprobs: list[float] = field(default_factory=list)
    target_calls: int = 0  # that gave a token, or a row to choose from
    prefill_calls: int = 0  # that read a piece of a prompt before
    proposed: int = 0
    rounds: list[int] = field(default_factory=list)  # per call that emitted: how many drafted tokens were kept
    tracker: AcceptanceTracker | None = None  # of a free drafter's guesses
    runs: AcceptanceEstimate | None = None  # of drafts whose lengths are chosen before
    waiting_for: int = 1  # samples that will be split off this one when its first row is there
    row: FloatArray | None = None  # beams, particles: the row to choose from
    dropped: bool = False
    put_aside: bool = False  # until another sample of its request ends
    cached_tokens: int = 0  # of the prompt, from the prefix cache
    shared: int = 0  # first tokens of the sequence that the prefix cache keeps, too

    @property
    def score(self) -> float:
        """Beam search ranks by logprobs after penalties and bias; beams always record them."""
        return sum(self.processed)

    @property
    def deletes(self) -> bool:
        return self.request.backspace_id is not None

    @property
    def position(self) -> int:
        """Absolute position of the next emitted token, by which noise is keyed.

        Of a text that deletes, actions are counted: by its place a token that was deleted would be drawn there again.
        """
        return len(self.request.prompt) + len(self.actions if self.deletes else self.tokens)

    def room(self, context_length: int) -> int:
        """How many more tokens fit into the text's own context and those of logits_processors."""
        most = [getattr(t, "room", context_length) for t in self.logits_processors]
        return min([context_length - len(self.request.prompt), *most]) - len(self.tokens)

    @property
    def ready(self) -> bool:
        """False while something outside of the model is asked about the text."""
        return (self.constraint is None or self.constraint.ready()) and all(
            processor.ready() for processor in self.logits_processors if hasattr(processor, "ready")
        )

    @property
    def needs_logits(self) -> bool:
        """Whether whole rows must leave the runtime; plain greedy decoding needs only the best token."""
        request = self.request
        return bool(
            not request.sampling.greedy
            or request.sampling.has_penalties
            or request.sampling.logit_bias
            or request.selects
            or request.processed
            or self.constraint is not None
            or self.logits_processors
            or (request.verification != "keyed" and self.drafter is not None)
            or len(self.tokens) < request.min_tokens
        )

    def want(self) -> Want:
        rows: Literal["all", "last"] = "all" if len(self.draft) else "last"
        if self.needs_logits:
            return Want(rows=rows, logits=True)
        return Want(rows=rows, top=max(1, self.request.top_logprobs), entropy=self.request.entropy)

    def fork(self, sample: int, sequence: Sequence | None, drafter: Drafter | None) -> SequenceState:
        return replace(
            self.copy_of_text(),
            sample=sample,
            sequence=sequence,
            drafter=drafter,
            todo=self.todo.copy(),
            constraint=self.constraint.fork() if self.constraint else None,
            logits_processors=tuple(processor.fork() for processor in self.logits_processors),
            rounds=self.rounds.copy(),
        )

    def copy_of_text(self) -> SequenceState:
        """What was emitted so far, with lists of its own; without a place in the runtime."""
        return replace(
            self,
            todo=[],
            stream=self.stream.fork(),
            sequence=None,
            drafter=None,
            draft=NO_DRAFT,
            drafted=0,
            tokens=self.tokens.copy(),
            logprobs=self.logprobs.copy(),
            tops=self.tops.copy(),
            entropies=self.entropies.copy(),
            processed=self.processed.copy(),
            log_masses=self.log_masses.copy(),
            actions=self.actions.copy(),
            action_logprobs=self.action_logprobs.copy(),
            tracker=None,
            runs=None,
            waiting_for=1,
            row=None,
        )

    def row_for_choice(
        self, logits: FloatArray, path: Seq[int], end_ids: frozenset[int]
    ) -> tuple[FloatArray, Allowed | None]:
        """(logits as the sampler sees them after the tokens of `path`, which tokens the constraint allows there).

        The constraint has taken the tokens of `path`.  `held` joins the two.
        """
        sampling = self.request.sampling
        written = len(self.tokens) + len(path)
        early = list(end_ids | self.request.stop_tokens) if written < self.request.min_tokens else []
        if self.request.backspace_id is not None and not written:
            early.append(self.request.backspace_id)
        allowed = None
        if self.constraint is not None:
            allowed = unpack(self.constraint.allowed(self.request.max_tokens - written), len(logits))
        if self.logits_processors:  # they see what is impossible: they may narrow the choice to a few tokens
            if banned := [*early, *(t for t, bias in sampling.logit_bias.items() if bias == -np.inf)]:
                logits = logits.copy()
                logits[banned] = -np.inf
            logits = self.held(logits, allowed, path)
            for processor in self.logits_processors:
                logits = processor.apply(path, logits)
        # only penalties look at the text so far: without them a long one is not copied for every token
        output = [*self.tokens, *path] if sampling.has_penalties else ()
        row = apply_penalties(logits, sampling, self.request.prompt_ids, output)
        if early:
            row = row.copy() if row is logits else row
            row[early] = -np.inf
        return row, allowed

    def pick(self, row: FloatArray, path: Seq[int] = ()) -> int:
        """What the sampler takes from a row after the tokens of `path`."""
        return pick(
            row,
            self.request.sampling,
            noise=self.request.noise,
            sample=self.sample,
            position=self.position + len(path),
        )

    def held(self, row: FloatArray, allowed: Allowed | None, path: Seq[int]) -> FloatArray:
        """The row with -inf where the constraint forbids; ConstraintDeadEnd if nothing is left."""
        if allowed is None:
            return row
        row, written = only(row, allowed), len(self.tokens) + len(path)
        if row.max() == -np.inf:
            why = f"min_tokens is {self.request.min_tokens}" if written < self.request.min_tokens else ""
            raise ConstraintDeadEnd(written, self.stream.text, why)
        return row

    def choose(self, output: Output, end_ids: frozenset[int]) -> tuple[list[int], list[int], list[ChosenToken]]:
        """(nodes of the draft that were kept, emitted tokens, what is to be reported about each).

        Row 0 of the output belongs to the newest token, row i + 1 to draft node i; a chunk of prefill has one row.
        """
        seen: list[tuple[FloatArray, Allowed | None] | None] = []
        constraint, last, taken = self.constraint, -1, 0
        greedy = self.request.sampling.greedy

        def emit(token: int) -> None:
            nonlocal last, taken
            last = token
            if constraint:
                constraint.advance(token)
                taken += 1

        def go_on() -> bool:
            if self.deletes and last == self.request.backspace_id:
                return False
            return constraint is None or (last not in end_ids and constraint.ready())

        def pick_at(node: int, path: tuple[int, ...]) -> int:
            if output.logits is None:
                seen.append(None)
                return int(output.top_ids[node + 1, 0])  # type: ignore[index]
            row, allowed = self.row_for_choice(output.logits[node + 1], path, end_ids)
            seen.append((row, allowed))
            if greedy and allowed is not None and allowed[best := int(row.argmax())] and row[best] > -np.inf:
                token = best  # most often the model's own choice is allowed: nothing needs to be masked
            else:
                row = self.held(row, allowed, path)
                token = self.pick(row, path)
            while allowed is not None and constraint and not constraint.permits(token):  # judged only now
                allowed[token] = False
                try:
                    row = self.held(row, allowed, path)
                except ConstraintDeadEnd:
                    if not self.logits_processors or output.logits is None:
                        raise
                    row = self.held(output.logits[node + 1], allowed, path)  # they had left nothing else
                token = self.pick(row, path)
            emit(token)
            return token

        def distribution_at(node: int, path: tuple[int, ...]) -> Floats:
            assert output.logits is not None
            row, allowed = self.row_for_choice(output.logits[node + 1], path, end_ids)
            seen.append((row, allowed))
            row = self.held(row, allowed, path)
            return np.exp(processed_logprobs(row, self.request.sampling).astype(np.float64))

        rule, draft = self.request.verification, self.draft
        try:
            if rule == "keyed" or draft.distribution is DraftDistribution.FIXED:
                accepted, tokens = matched_walk(draft, pick_at, go_on)
            else:
                draws = generator(self.request.noise, self.sample, self.position, "accept")
                accepted, tokens = sampled_walk(draft, distribution_at, draws.random, rule=rule, emit=emit, go_on=go_on)
        except KvFull:  # a logits processor found no room: nothing was chosen
            if constraint:
                constraint.rollback(taken)
            raise
        rows = [0, *(node + 1 for node in accepted)]
        choices = [self.report(output, *each) for each in zip(rows, tokens, seen, strict=True)]
        return accepted, tokens, choices

    def report(
        self, output: Output, row: int, token: int, seen: tuple[FloatArray, Allowed | None] | None
    ) -> ChosenToken:
        """What is to be said of `token`, chosen by this row of the output; seen: what `row_for_choice` gave."""
        if output.logits is None or seen is None:
            ids, logprobs = output.top_ids[row], output.top_logprobs[row]  # type: ignore[index]
            entropy = None if output.entropy is None else float(output.entropy[row])
            tops = list(zip(ids.tolist(), logprobs.tolist(), strict=True))
            return ChosenToken(float(logprobs[0]), tops, entropy=entropy)
        logits = output.logits[row]
        norm = logsumexp(logits)
        top = top_tokens(logits, self.request.top_logprobs)
        processed = None
        if self.request.processed:
            row_seen = seen[0] if seen[1] is None else only(seen[0], seen[1])
            processed = float(processed_logprobs(row_seen, self.request.sampling)[token])
        mass = None if seen[1] is None else log_mass(logits, seen[1], norm)
        tops = [(int(i), float(logits[i]) - norm) for i in top]
        entropy = entropy_of(logits, norm) if self.request.entropy else None
        return ChosenToken(float(logits[token]) - norm, tops, processed, mass, entropy)

    def continue_with(self, token: int) -> None:
        """`token` was emitted last; what the runtime must see next (everything, if it holds nothing of this)."""
        self.todo = [token] if self.sequence is not None else [*self.request.prompt, *self.tokens]

    def append(self, token: int, choice: ChosenToken) -> None:
        if self.deletes:
            self.actions.append(token)
            self.action_logprobs.append(choice.logprob)
        self.tokens.append(token)
        self.logprobs.append(choice.logprob)
        self.tops.append(choice.top[: self.request.top_logprobs])
        if choice.entropy is not None:
            self.entropies.append(choice.entropy)
        if choice.processed is not None:
            self.processed.append(choice.processed)
        if choice.log_mass is not None:
            self.log_masses.append(choice.log_mass)

    def delete_last(self, logprob: float, text: TextStream) -> int:
        """Take the last token back; text: a stream that has taken what is left.

        Returns how many tokens the runtime's sequence keeps: all but the newest one, whose row is asked for again.
        """
        assert self.request.backspace_id is not None
        self.actions.append(self.request.backspace_id)
        self.action_logprobs.append(logprob)
        for values in (self.tokens, self.logprobs, self.tops, self.entropies, self.processed):
            if values:
                values.pop()
        self.stream = text
        if self.drafter:
            self.drafter.rollback(1)
        whole = [*self.request.prompt, *self.tokens]
        self.todo = [whole[-1]] if self.sequence is not None else whole
        self.shared = min(self.shared, len(whole) - 1)
        return len(whole) - 1

    def end(self, reason: str, sample: int | None = None) -> Event:
        """The last event.  Of a text that deletes it brings everything."""
        text = self.stream.finish()
        finish = self.finished(reason)
        number = self.sample if sample is None else sample
        if not self.deletes:
            return Event(self.request_id, number, text, finish=finish)
        return Event(
            self.request_id, number, finish.text, tuple(finish.tokens), tuple(finish.logprobs), finish,
            tops=tuple(finish.tops), entropies=tuple(finish.entropies), drafted=tuple(finish.drafted),
        )  # fmt: skip

    def finished(self, reason: str) -> Finished:
        return Finished(
            reason,
            self.stream.text,
            self.tokens,
            self.logprobs,
            self.tops,
            self.processed,
            self.target_calls,
            self.proposed,
            self.rounds,
            self.log_masses,
            self.constraint.accepting and not self.stream.stopped if self.constraint else None,
            self.constraint.approximate if self.constraint else False,
            prefill_calls=self.prefill_calls,
            cached_tokens=self.cached_tokens,
            entropies=self.entropies,
            actions=self.actions,
            action_logprobs=self.action_logprobs,
            backspace_id=self.request.backspace_id,
            steering=next((t.steps[: len(self.tokens)] for t in self.logits_processors if hasattr(t, "steps")), None),
        )


@dataclass(frozen=True)
class ChosenToken:
    """What is reported of an emitted token.

    logprob   under the model itself;  top: the most likely alternatives, (id, logprob)
    processed its logprob in the distribution that was sampled from, where asked for
    log_mass  with a constraint: log p(allowed);  entropy: of the model's distribution, where asked for
    """

    logprob: float
    top: list[tuple[int, float]]
    processed: float | None = None
    log_mass: float | None = None
    entropy: float | None = None
