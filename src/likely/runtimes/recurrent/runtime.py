"""State-space models, linear attention and hybrids as a Runtime."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from pathlib import Path as FilePath
from typing import Self, TypedDict, Unpack

import numpy as np
import torch

from likely.errors import ModelError
from likely.io.hashes import folder_sha256
from likely.runtimes.kinds import KINDS
from likely.runtimes.machine import choose_threads, free_bytes
from likely.runtimes.protocol import Capabilities, IntArray, Limits, Output, Path, Sequence, Work
from likely.runtimes.recurrent.checkpoints import RecurrentSequence, StateParts, StateRow, kept_checkpoints
from likely.runtimes.recurrent.compiled_step import CompiledStep
from likely.runtimes.recurrent.reading import PendingTree, Reader, TokenRun, read_in_turns
from likely.runtimes.slots.runtime import SlotRuntime, SlotSequence
from likely.runtimes.slots.table import TokenCount
from likely.runtimes.torch.module import weights_digest
from likely.runtimes.torch.rows import RowCollector
from likely.runtimes.turns import one_at_a_time
from likely.sequence.backbone import SequenceLM
from likely.sequence.convert import load_sequence_lm

ROWS_BYTES = 64 * 2**20  # V-wide rows of logits that exist at one time
MOST_TOKENS_HELD = 2**20  # ids, and keys and values only in the attention layers of hybrids
STATES_PER_SEQUENCE = 16  # its own, and those that it can go back to


class RecurrentSettings(TypedDict, total=False):
    """See `RecurrentRuntime`."""

    tokens_held: int | None
    sequences: int | None
    revision: str | None
    tokens_per_call: int
    checkpoint_every: int


class RecurrentRuntime(SlotRuntime):
    """A `SequenceLM`, in evaluation mode: an open sequence is a state, whose size does not depend on its length.

    tokens_held   room for kept and pending tokens; default: 1,048,576, of hybrids what an eighth of the free memory
                  holds
    sequences     default: 4,096, or as many as a quarter of the free memory holds
    revision      name of these weights; default: a digest of all of them
    tokens_per_call  larger calls are cut; so are calls whose rows of logits would take more than 64 MiB
    checkpoint_every  tokens between states that a sequence can go back to, see `kept_checkpoints`

    Kept tokens are read in the parallel form of the layers.  Of pending trees the chains of one level are read together
    from the states of their parents, for all sequences of the call; the state after each node is held until `commit`.
    A fork shares states.  Going back by d tokens (`truncate`, or a fork at a smaller length) reads fewer than
    2 d + checkpoint_every tokens again, with the next call.

    compiled            calls with few tokens, and Mamba's scans, run in C++ where a compiler or the wheel's library is
                        there (`CompiledStep`); set to False, all run in torch
    state_bytes         of one state
    kv_bytes_per_token  of keys and values in attention layers; 0 where there are none
    tokens_read_again   since it was opened, for having gone back
    """

    compiled = True

    def __init__(
        self,
        module: SequenceLM,
        *,
        tokens_held: int | None = None,
        sequences: int | None = None,
        revision: str | None = None,
        tokens_per_call: int = 2048,
        checkpoint_every: int = 64,
    ):
        if checkpoint_every < 1:
            raise ModelError(f"checkpoint_every must be >= 1, got {checkpoint_every}")
        if module.dtype != torch.float32:
            raise ModelError(f"the recurrent runtime computes in float32, these weights are {module.dtype}")
        self.module = module.eval()
        self.dtype = str(module.dtype).removeprefix("torch.")
        self.checkpoint_every = checkpoint_every
        self.tokens_read_again = 0
        with torch.inference_mode():
            self._empty = StateRow(module.backbone.init_state(1))
        self._parts = StateParts(module.backbone)
        self.state_bytes = module.backbone.state_bytes()
        self.kv_bytes_per_token = module.backbone.state_bytes(1) - self.state_bytes
        free = free_bytes()
        if sequences is None:
            sequences = min(4096, max(64, free // 4 // (STATES_PER_SEQUENCE * max(1, self.state_bytes))))
        if tokens_held is None:
            tokens_held = min(MOST_TOKENS_HELD, max(1024, free // 8 // max(1, self.kv_bytes_per_token)))
        super().__init__(
            vocab_size=module.config.vocab_size,
            context_length=module.config.max_position_embeddings,
            capabilities=Capabilities.of_kind("recurrent"),
            limits=Limits(sequences, sequences, tokens_held, tokens_per_call),
            revision=revision if revision is not None else f"recurrent-{self.dtype}-{weights_digest(module)}",
        )

    @classmethod
    def from_folder(
        cls,
        folder: str | FilePath,
        *,
        dtype: str | None = None,
        threads: int | None = None,
        **settings: Unpack[RecurrentSettings],
    ) -> Self:
        """A folder that `likely sequence convert` wrote, or one of transformers with a model that it converts.

        dtype    "float32", the only one
        threads  of the processor; torch has one such setting for the whole process
        """
        if dtype not in (None, *KINDS["recurrent"].dtypes):
            raise ModelError(f"dtype must be {', '.join(KINDS['recurrent'].dtypes)}, got {dtype}")
        if threads is not None:
            torch.set_num_threads(choose_threads(threads))
        module = load_sequence_lm(folder)
        if settings.get("revision") is None:
            settings["revision"] = f"recurrent-float32-{folder_sha256(folder)[:16]}"
        return cls(module, **settings)

    # --- sequences --------------------------------------------------------------------------------------------------

    def _new_table(self, limit: int) -> TokenCount:
        return TokenCount(limit)

    def _new_sequence(self, held: IntArray, source: SlotSequence | None = None) -> RecurrentSequence:
        sequence = RecurrentSequence(
            length=len(held), held=held, epoch=self._epoch, state=self._empty, parts=self._parts,
            checkpoints={0: self._empty},
        )  # fmt: skip
        if source is not None:
            sequence.go_back(len(held), self._own(source))
        return sequence

    def _own(self, sequence: Sequence) -> RecurrentSequence:
        own = super()._own(sequence)
        assert isinstance(own, RecurrentSequence)
        return own

    @one_at_a_time
    def fork(self, sequence: Sequence, length: int | None = None) -> SlotSequence:
        own = self._own(sequence)
        if own.known < own.length and length in (None, own.length):
            self._read_again(own)  # once, and not in every fork
        own.state = own.state.alone()  # a fork may stay when the others that were computed with it are gone
        return super().fork(sequence, length)

    @one_at_a_time
    def commit(self, accepted: Iterable[tuple[Sequence, Path]]) -> None:
        chosen = [(self._own(sequence), [int(node) for node in path]) for sequence, path in accepted]
        states = [sequence.node_states for sequence, _ in chosen]
        super().commit(chosen)
        for (sequence, path), found in zip(chosen, states, strict=True):
            if path:
                before = sequence.length - len(path)
                passed = [(before + n + 1, found[node]) for n, node in enumerate(path)]
                sequence.advance(sequence.length, found[path[-1]].alone(), passed, self.checkpoint_every)

    @one_at_a_time
    def truncate(self, sequence: Sequence, length: int) -> None:
        super().truncate(sequence, length)
        self._own(sequence).go_back(length)

    def _drop_nodes(self, sequence: SlotSequence, released: IntArray) -> None:
        super()._drop_nodes(sequence, released)
        self._own(sequence).node_states = []

    @one_at_a_time
    def refresh(self, revision: str | None = None) -> None:
        """The weights changed: name them anew and invalidate every sequence; what they held is free again."""
        self._invalidate()
        self.__dict__.pop("_compiled_step", None)
        self.revision = revision if revision is not None else f"recurrent-{self.dtype}-{weights_digest(self.module)}"

    @one_at_a_time
    def bytes_held(self, sequence: Sequence) -> int:
        """Of an open sequence's states, those that it can go back to included; forks share them."""
        return self._own(sequence).nbytes

    # --- evaluation -------------------------------------------------------------------------------------------------

    def _compute(
        self, sequences: list[SlotSequence], work: list[Work], tokens: list[IntArray], slots: list[IntArray]
    ) -> list[Output]:
        own = [self._own(sequence) for sequence in sequences]
        rows = RowCollector([item.want for item in work], [len(t) for t in tokens], self.vocab_size)
        reader = self._reader(rows)
        with torch.inference_mode():
            kept = [item.parents is None for item in work]
            chains = [
                self._chain(i, sequence, ids if keep else ids[:0])
                for i, (sequence, ids, keep) in enumerate(zip(own, tokens, kept, strict=True))
            ]
            read_in_turns(chains, reader.read)
            trees = {
                i: PendingTree(
                    i,
                    ids,
                    np.asarray(item.parents).tolist(),
                    sequence.node_states,
                    chains[i][-1].end if chains[i] else sequence.state,
                )
                for i, (sequence, item, ids) in enumerate(zip(own, work, tokens, strict=True))
                if not kept[i]
            }
            while runs := [run for tree in trees.values() for run in tree.ready()]:
                reader.read(runs)
        for i, sequence in enumerate(own):
            self.tokens_read_again += sequence.length - sequence.known
            self._advance(sequence, chains[i])
            if i in trees:
                sequence.node_states = [*sequence.node_states, *trees[i].states()]
        slots[:] = tokens
        return rows.outputs()

    def _chain(self, item: int, sequence: RecurrentSequence, tokens: IntArray) -> list[TokenRun]:
        """What the sequence has not read yet, then the tokens; cut where a state is kept, and into calls."""
        again = sequence.held[sequence.known :]
        ids = np.concatenate([again, tokens])
        rows = np.concatenate([np.full(len(again), -1), np.arange(len(tokens))])
        end = sequence.known + len(ids)
        stops = {at - sequence.known for at in kept_checkpoints(end, self.checkpoint_every) if at > sequence.known}
        stops |= {*range(self.limits.tokens_per_call, len(ids), self.limits.tokens_per_call), len(ids)}
        cuts = sorted(stops - {0})
        return [
            TokenRun(item, ids[start:stop], rows[start:stop], sequence.state)
            for start, stop in zip([0, *cuts], cuts, strict=False)
        ]

    def _advance(self, sequence: RecurrentSequence, chain: list[TokenRun]) -> None:
        if not chain:
            return
        ends = sequence.known + np.cumsum([len(run.tokens) for run in chain])
        passed = [(int(at), run.end) for at, run in zip(ends, chain, strict=True)]
        sequence.advance(passed[-1][0], passed[-1][1], passed, self.checkpoint_every)

    def _read_again(self, sequence: RecurrentSequence) -> None:
        chain = self._chain(0, sequence, np.empty(0, np.int64))
        with torch.inference_mode():
            read_in_turns([chain], self._reader(RowCollector([], [], self.vocab_size)).read)
        self.tokens_read_again += sequence.length - sequence.known
        self._advance(sequence, chain)

    def _reader(self, rows: RowCollector) -> Reader:
        most_rows = max(1, ROWS_BYTES // (4 * self.vocab_size))
        return Reader(
            self.module,
            rows,
            most_tokens=self.limits.tokens_per_call,
            most_rows=most_rows,
            step=self._compiled_step if self.compiled else None,
        )

    @functools.cached_property
    def _compiled_step(self) -> CompiledStep | None:
        return CompiledStep.of(self.module)
