"""EXSPEC's choice of who takes part in a step of the loop: requests of one length, out of a window."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from likely.decoding.request import Request
from likely.decoding.sequence_state import SequenceState


class SameLength:
    """Requests of equal length together, so that their caches stack without padding (EXSPEC).

    At most `batch_size` continuations per step out of a window of `window`, of equal length where there are enough.

    A step takes the first length that `batch_size` members of the window share.  Where none is shared by as many, the
    paper takes any; here the shortest go first, so that they catch up with the others and lengths meet more often.
    Finished ones are replaced in the order of the queue.  One that waited `patience` steps goes first, with those of
    its length if they fill the batch, so that no odd length waits while others fill groups.

    Length means tokens kept in the cache.  The paper's commands use batch_size=16, window=48, prompts sorted by length.
    Whoever is chosen, the text of a request is the same.  Zhang et al. 2025, arXiv:2510.22876.
    """

    def __init__(self, *, batch_size: int = 8, window: int = 24, patience: int = 16):
        if batch_size < 1:
            raise ValueError(f"batch_size must be >= 1, got {batch_size}")
        if window < batch_size:
            raise ValueError(f"window must be >= batch_size ({batch_size}), got {window}")
        if patience < 1:
            raise ValueError(f"patience must be >= 1, got {patience}")
        self.batch_size, self.window, self.patience = batch_size, window, patience
        self._waited: dict[SequenceState, int] = {}

    def admits(self, running: int) -> bool:
        return running < self.window

    def choose(self, ready: Sequence[SequenceState]) -> list[SequenceState]:
        waited = {state: self._waited.get(state, 0) for state in ready}
        order = sorted(ready, key=lambda state: -waited[state])  # stable: equals stay in the order of the window
        overdue = [state for state in order if waited[state] >= self.patience]
        chosen = self._group(order, only=kept(overdue[0]) if overdue else None)
        if not chosen:
            chosen = [*overdue, *self._rest(order[len(overdue) :])][: self.batch_size]
        taken = set(chosen)
        self._waited = {state: 0 if state in taken else waited[state] + 1 for state in ready}
        return chosen

    def _rest(self, order: Sequence[SequenceState]) -> list[SequenceState]:
        """Who goes where no length fills a batch, first to last."""
        return sorted(order, key=kept)

    def _group(self, order: Sequence[SequenceState], only: int | None) -> list[SequenceState]:
        """The first `batch_size` members of one length (of length `only`, if given); [] if no length has as many."""
        groups: dict[int, list[SequenceState]] = {}
        for state in order:
            length = kept(state)
            if only is not None and length != only:
                continue
            group = groups.setdefault(length, [])
            group.append(state)
            if len(group) == self.batch_size:
                return group
        return []


def kept(state: SequenceState) -> int:
    """Tokens in its cache."""
    return state.sequence.length if state.sequence is not None else 0


def by_prompt_length(requests: Iterable[Request]) -> list[Request]:
    """Shortest prompt first: sorted before they are added, requests of like length meet in the window."""
    return sorted(requests, key=lambda request: len(request.prompt))
