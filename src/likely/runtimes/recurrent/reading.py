"""Runs of tokens that are read from known states, many in one call of the model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field

import numpy as np
import torch

from likely.runtimes.protocol import IntArray
from likely.runtimes.recurrent.checkpoints import StateRow
from likely.runtimes.torch.rows import RowCollector
from likely.sequence.backbone import SequenceLM

LEAST_FILLED = 0.5  # of the places of a padded call


@dataclass
class TokenRun:
    """Tokens one after the other, and what they are to give.

    item   number of the piece of work whose rows they are;  rows (n,)  the row of each token, ascending; -1: it has none
    state  before the first of them
    every  whether the state after each token is wanted, or only that after the last
    found  the states after them, when they have been read
    """

    item: int
    tokens: IntArray
    rows: IntArray | list[int]
    state: StateRow
    every: bool = False
    found: list[StateRow] = field(default_factory=list)

    @property
    def end(self) -> StateRow:
        return self.found[-1]


class Reader:
    """Reads runs of tokens with a model and hands rows on.

    most_tokens  of a call;  most_rows  of logits that exist at one time
    """

    def __init__(self, model: SequenceLM, rows: RowCollector, *, most_tokens: int, most_rows: int):
        self.model, self.rows = model, rows
        self.most_tokens, self.most_rows = most_tokens, most_rows
        self.pads = all(mixer.state_kind in ("recurrent", "kv") for mixer in model.backbone.mixers)

    def read(self, runs: Seq[TokenRun]) -> None:
        """Read each of them from its state; afterwards they have their `found`."""
        for call in self._calls(runs):
            self._read(call)

    def _calls(self, runs: Seq[TokenRun]) -> Iterator[list[TokenRun]]:
        """Runs whose states fit together and whose lengths are alike, so that little is padded."""

        def key(run: TokenRun) -> tuple:
            state = run.state.size_class if self.pads else run.state.states.shapes
            return state, run.every, -len(run.tokens)

        call: list[TokenRun] = []
        filled = 0
        for run in sorted(runs, key=key):
            n = len(run.tokens)
            if call:
                longest, places = len(call[0].tokens), (len(call) + 1) * len(call[0].tokens)
                alike = key(run)[:2] == key(call[0])[:2] and (self.pads or n == longest)
                if not alike or places > self.most_tokens or filled + n < LEAST_FILLED * places:
                    yield call
                    call, filled = [], 0
            call.append(run)
            filled += n
        if call:
            yield call

    def _read(self, runs: list[TokenRun]) -> None:
        device = self.model.device
        longest = max(len(run.tokens) for run in runs)
        ids = np.zeros((len(runs), longest), np.int64)
        real = np.zeros((len(runs), longest), bool)
        for row, run in enumerate(runs):
            ids[row, : len(run.tokens)], real[row, : len(run.tokens)] = run.tokens, True
        every = runs[0].every and longest > 1
        output = self.model.backbone(
            torch.from_numpy(ids).to(device),
            attention_mask=None if real.all() else torch.from_numpy(real).to(device),
            state=StateRow.together([run.state for run in runs]),
            return_state=True,
            states_at=range(longest) if every else None,
        )
        for row, run in enumerate(runs):
            run.found = (
                [StateRow(states, row) for states in output.states[: len(run.tokens)]]
                if every
                else [StateRow(output.state, row)]
            )
        self._hand_on(runs, output.last_hidden_state)

    def _hand_on(self, runs: list[TokenRun], hidden: torch.Tensor) -> None:
        """The wanted rows' hidden states, and their logits a bounded number at a time."""
        logits_of: list[tuple[int, int, int, int]] = []  # row of the batch, place in it, piece of work, its row
        for row, run in enumerate(runs):
            if run.rows[-1] < 0:
                continue
            for wanted, use in ((self.rows.head_rows, "logits"), (self.rows.hidden_rows, "hidden")):
                found, at, _ = np.intersect1d(run.rows, wanted[run.item], return_indices=True)
                if use == "logits":
                    logits_of += [(row, int(p), run.item, int(r)) for p, r in zip(at, found, strict=True)]
                elif len(found):
                    values = hidden[row, torch.from_numpy(at).to(hidden.device)]
                    self.rows.add_hidden(run.item, found, values.float().cpu().numpy())
        for start in range(0, len(logits_of), self.most_rows):
            some = logits_of[start : start + self.most_rows]
            batch, places = (torch.tensor([entry[n] for entry in some], device=hidden.device) for n in (0, 1))
            logits = self.model.logits(hidden[batch, places])
            where: dict[tuple[int, int], list[int]] = {}
            for row, _, item, number in some:
                where.setdefault((row, item), []).append(number)
            self.rows.add(logits, [(item, np.array(numbers, np.int64)) for (_, item), numbers in where.items()])


def read_in_turns(runs: list[list[TokenRun]], read: Callable[[Seq[TokenRun]], None]) -> None:
    """Lists of runs that continue each other: the first of each list in one go, then the second of each, and so on."""
    for turn in range(max(map(len, runs), default=0)):
        now = [(run[turn - 1] if turn else None, run[turn]) for run in runs if len(run) > turn]
        for before, run in now:
            run.state = before.end if before is not None else run.state
        read([run for _, run in now])
