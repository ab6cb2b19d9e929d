"""Runs of tokens that are read from known states, many in one call of the model: kept chains, and trees of drafts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field

import numpy as np
import torch

from likely.runtimes.protocol import IntArray
from likely.runtimes.recurrent.checkpoints import StateRow
from likely.runtimes.recurrent.compiled_step import MOST_ROWS, CompiledStep
from likely.runtimes.rows import match
from likely.runtimes.torch.rows import RowCollector
from likely.sequence.backbone import SequenceLM
from likely.sequence.ops.scan import selective_scans_by

LEAST_FILLED = 0.5  # of the places of a padded call


@dataclass
class TokenRun:
    """Tokens one after the other, and what they are to give.

    item   number of the piece of work whose rows they are;  rows (n,) of each token, ascending; -1: it has none
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
    step         reads a few tokens of a few sequences, and scans longer ones for Mamba; None: torch does
    """

    def __init__(
        self,
        model: SequenceLM,
        rows: RowCollector,
        *,
        most_tokens: int,
        most_rows: int,
        step: CompiledStep | None,
    ):
        self.model, self.rows, self.step = model, rows, step
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
                pads = self.pads and not run.every  # states after every token are found faster without padding
                alike = key(run)[:2] == key(call[0])[:2] and (pads or n == longest)
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
        before, step = StateRow.together([run.state for run in runs]), self.step
        ids = np.zeros((len(runs), longest), np.int64)
        real = np.zeros((len(runs), longest), bool)
        for row, run in enumerate(runs):
            ids[row, : len(run.tokens)], real[row, : len(run.tokens)] = run.tokens, True
        every = runs[0].every and longest > 1
        if step is not None and ids.size <= MOST_ROWS and real.all():
            hidden, after = step(torch.from_numpy(ids), before)
            for row, run in enumerate(runs):
                run.found = [StateRow(states, row) for states in (after if every else after[-1:])]
            self._hand_on(runs, hidden)
            return
        with selective_scans_by(None if step is None else step.selective_scan):
            output = self.model.backbone(
                torch.from_numpy(ids).to(device),
                attention_mask=None if real.all() else torch.from_numpy(real).to(device),
                state=before,
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
                to, at = match(wanted[run.item], np.asarray(run.rows))
                found = wanted[run.item][to]
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


# --- trees of pending tokens ------------------------------------------------------------------------------------------


def longest_chains(parents: Seq[int], first: int) -> list[list[int]]:
    """New nodes first, first + 1, ... as chains from parent to child: every node is in one, and a node's longest
    branch goes on its chain, so that a tree of n nodes is at most 1 + log2(n) chains deep."""
    n = len(parents)
    height, goes_on = [1] * n, [-1] * n
    for node in reversed(range(n)):
        parent = parents[node] - first
        if parent >= 0 and height[node] >= height[parent]:
            height[parent], goes_on[parent] = height[node] + 1, node
    chains = []
    for node in range(n):
        parent = parents[node] - first
        if parent >= 0 and goes_on[parent] == node:
            continue
        chain = [node]
        while goes_on[chain[-1]] >= 0:
            chain.append(goes_on[chain[-1]])
        chains.append([first + at for at in chain])
    return chains


class PendingTree:
    """The new nodes of one piece of work.

    parents  of each, among all pending nodes of the sequence: -1 is the last kept token
    earlier  states of the nodes that were pending before;  root: the state after the last kept token
    """

    def __init__(self, item: int, tokens: IntArray, parents: Seq[int], earlier: Seq[StateRow], root: StateRow):
        self._item, self._tokens, self._parents, self._root = item, tokens, list(parents), root
        self._first = len(earlier)
        self._states = dict(enumerate(earlier))
        self._left = longest_chains(self._parents, self._first)
        self._given: list[tuple[list[int], TokenRun]] = []

    def ready(self) -> list[TokenRun]:
        """The chains that begin at a node whose parent has been read; those given before must have been read."""
        for chain, run in self._given:
            self._states.update(zip(chain, run.found, strict=True))
        self._given, left = [], []
        for chain in self._left:
            parent = self._parents[chain[0] - self._first]
            before = self._root if parent < 0 else self._states.get(parent)
            if before is None:
                left.append(chain)
                continue
            own = [node - self._first for node in chain]
            self._given.append((chain, TokenRun(self._item, self._tokens[own], own, before, every=True)))
        self._left = left
        return [run for _, run in self._given]

    def states(self) -> list[StateRow]:
        """After each of the new nodes, when `ready` has nothing more to give."""
        return [self._states[self._first + node] for node in range(len(self._parents))]
