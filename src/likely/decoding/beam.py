"""Beam search: keep the W most likely partial texts; rank finished ones by log p / length ** length_penalty."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from likely.decoding.constraint import ConstraintDeadEnd, log_mass
from likely.decoding.request import Finished, Request
from likely.decoding.sequence_state import ChosenToken, SequenceState
from likely.runtimes.rows import entropy_of, log_softmax, logsumexp, top_tokens


@dataclass(eq=False)
class BeamSearch:
    """The selection between two calls of the model, and the pool of finished texts.

    Each step takes the 2W best continuations over all beams.  One that ends (and ranks among the W best) joins the
    pool; the W best others go on.  The search ends when the pool holds W texts and no running beam, taken at its
    present length, beats the worst of them (transformers' early_stopping=False), or at max_tokens.
    """

    request: Request
    end_ids: frozenset[int]
    pool: list[tuple[float, Finished]] = field(default_factory=list)

    def _rank(self, score: float, length: int) -> float:
        return score / length**self.request.length_penalty

    def select(
        self,
        beams: list[SequenceState],
        fork: Callable[[SequenceState], SequenceState],
        drop: Callable[[SequenceState], None],
        advance_text: Callable[[SequenceState, int], tuple[str | None, str]],
    ) -> tuple[list[SequenceState], list[Finished] | None]:
        """(beams that go on, the final texts once the search is over).  Every beam has its row of logits."""
        width = self.request.beams
        found: list[tuple[float, int, int, float, list[tuple[int, float]]]] = []
        masses: list[float | None] = []
        entropies: list[float | None] = []
        dead: list[ConstraintDeadEnd] = []
        for number, beam in enumerate(beams):
            assert beam.row is not None
            norm = logsumexp(beam.row)
            raw = beam.row - np.float32(norm)
            entropies.append(entropy_of(beam.row, norm) if self.request.entropy else None)
            row, allowed = beam.row_for_choice(beam.row, (), self.end_ids)
            try:
                seen = log_softmax(beam.held(row, allowed, ()))
            except ConstraintDeadEnd as error:  # the other beams go on
                masses.append(None)
                dead.append(error)
                continue
            mass = None if allowed is None else log_mass(beam.row, allowed, norm)
            top = [(int(i), float(raw[i])) for i in top_tokens(raw, self.request.top_logprobs)]
            masses.append(mass)
            for token in top_tokens(seen, 2 * width).tolist():
                if seen[token] > -float("inf"):
                    found.append((beam.score + float(seen[token]), number, token, float(raw[token]), top))
        if dead and not found and not self.pool:
            raise dead[0]
        found.sort(key=lambda c: (-c[0], c[1], c[2]))

        going: list[tuple[int, int, ChosenToken]] = []
        for rank, (score, number, token, logprob, top) in enumerate(found[: 2 * width]):
            choice = ChosenToken(logprob, top, score - beams[number].score, masses[number], entropies[number])
            if token in self.end_ids:
                if rank < width:
                    self._finish(beams[number], token, choice, "stop")
            elif len(going) < width:
                going.append((number, token, choice))

        children: list[SequenceState] = []
        users = {number for number, _, _ in going}
        for i, (number, _token, _choice) in enumerate(going):
            last_use = all(other != number for other, _, _ in going[i + 1 :])
            children.append(beams[number] if last_use else fork(beams[number]))
        for number, beam in enumerate(beams):
            if number not in users:
                drop(beam)

        running: list[SequenceState] = []
        for child, (_, token, choice) in zip(children, going, strict=True):
            child.row = None
            child.append(token, choice)
            if child.constraint:
                child.constraint.advance(token)
            for transform in child.logits_processors:
                transform.advance([token], [])
            child.continue_with(token)
            reason, _ = advance_text(child, token)
            if reason:
                child.stream.finish()
                self._pool(child, reason)
                drop(child)
            else:
                running.append(child)
        if not running or self._settled(running):
            return running, self.end(running, "length")
        return running, None

    def end(self, running: list[SequenceState], reason: str) -> list[Finished]:
        """The best texts; unfinished beams compete while the pool is not full, as in transformers."""
        for beam in running:
            if len(self.pool) < self.request.beams:
                beam.stream.finish()
                self._pool(beam, reason)
        return [finished for _, finished in self.pool[: self.request.samples]]

    def _finish(self, beam: SequenceState, token: int, choice: ChosenToken, reason: str) -> None:
        """Copy of `beam` ended by `token` into the pool; the beam itself may go on otherwise."""
        copy = beam.copy_of_text()
        copy.append(token, choice)
        copy.stream.finish()
        self._pool(copy, reason)

    def _pool(self, beam: SequenceState, reason: str) -> None:
        self.pool.append((self._rank(beam.score, len(beam.tokens)), beam.finished(reason)))
        self.pool.sort(key=lambda p: -p[0])
        del self.pool[self.request.beams :]

    def _settled(self, running: list[SequenceState]) -> bool:
        if len(self.pool) < self.request.beams:
            return False
        best = max(self._rank(beam.score, len(beam.tokens)) for beam in running)
        return best <= self.pool[-1][0]
