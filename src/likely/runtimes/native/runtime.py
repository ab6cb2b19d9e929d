"""The Runtime over likely's own C++: Llama, Mistral, Gemma and Qwen models on a CPU, without torch.

Many positions in one call cost little more than one: weights are read once for all of them. A row's numbers are the
same, bit for bit, whatever is computed beside it, however its text is cut into calls, forked or drafted.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from likely.errors import CapabilityError, ModelError, nearest
from likely.formats.families import quant_method
from likely.io.hashes import fingerprint
from likely.runtimes.kinds import KINDS
from likely.runtimes.machine import choose_threads, free_bytes
from likely.runtimes.native.architecture import Architecture
from likely.runtimes.native.build import library
from likely.runtimes.native.calls import CallArrays, Columns
from likely.runtimes.native.codes import FLOAT_TYPES, Rounding, type_of
from likely.runtimes.native.library import (
    CODES,
    DTYPES,
    TYPES,
    NativeCall,
    Queries,
    address,
    padded,
)
from likely.runtimes.native.model import KvOrders, native_kv_format, native_model, plain_kv
from likely.runtimes.native.rows import RowsOfWork, Wanted, rows_of
from likely.runtimes.native.source import ModelSource
from likely.runtimes.native.weights import VERSION, load_weights
from likely.runtimes.protocol import Capabilities, IntArray, LayerPlan, Limits, Output, Work
from likely.runtimes.slots.layout import WorkPart, calls_of
from likely.runtimes.slots.runtime import SlotRuntime, SlotSequence
from likely.runtimes.slots.table import SlotTable
from likely.runtimes.turns import freeing, one_at_a_time

TOKENS_PER_CALL = 512
LANES = 16  # slots whose keys lie side by side, see cpp/attention/storage.h
LOGITS_BYTES = 64 * 2**20  # of rows that are handed out and held at one time
ROWS_AT_ONCE = 64  # rows of logits that are only reduced
MOST_TOKENS_HELD = 65536
MOST_INT8_BYTES = 2**29  # of codes in a file that runs in int8 by default


class NativeRuntime(SlotRuntime):
    """A model in one of five number formats.

    place      a GGUF file or a safetensors folder
    dtype      "int8": weights and activations in 8 bit, with a scale per 64 inputs, rotated; "bfloat16"; "float32";
               "file": each matrix in the type that the file gives it (Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K, Q6_K,
               F32, F16, BF16), never rounded again, times int8 activations with a scale per 32 inputs; MergeQuant's
               codes times its static codes of activations (the tables of tokens in 8 bits);
               "int4": 4 bits with a scale per 32 inputs, rotated, and the tables of tokens in 8.
               None: see `default_dtype`
    rounding   of "int4": a quantiser whose codes take the place of the nearest ones
    kv_dtype   what keys and values are kept as, see `native_kv_format`; default: as attention computes, f32 with
               "float32" and else bf16.  Short formats save memory (`kv_bytes_per_token`).  They are decoded block by
               block when they are read, but for keys in q8_0, which are multiplied as codes where attention is bf16
    kv_orders  of channels, for formats in blocks: see `likely.compression.block_float.load_block_float`
    group_prefixes  columns that several pieces of work share, such as forks, are read once for all of them; False:
               once for each, for comparisons.  Logits are the same bits
    threads    default: the physical cores, at most 8; never more than the processors this process may use
    tokens_held  room for kept and pending tokens; default: 65,536 or what an eighth of the free memory holds
    progress   (bytes, bytes in all) while the weights are packed, which happens once per model and dtype
    CapabilityError for an architecture that it does not know, and where there is no compiler.
    """

    def __init__(
        self,
        place: str | Path,
        *,
        dtype: str | None = None,
        rounding: Rounding | None = None,
        kv_dtype: str | None = None,
        kv_orders: KvOrders | None = None,
        group_prefixes: bool = True,
        threads: int | None = None,
        tokens_held: int | None = None,
        sequences: int = 4096,
        tokens_per_call: int = TOKENS_PER_CALL,
        progress: Callable[[int, int], None] | None = None,
    ):
        allowed = KINDS["native"].dtypes
        if dtype is not None and dtype not in allowed:
            raise ModelError(f'unknown dtype "{dtype}"{nearest(dtype, allowed)} (allowed: {", ".join(allowed)})')
        self.threads = choose_threads(threads)
        self._library = library()
        source = ModelSource.open(Path(place))
        self.sha256 = source.sha256
        self.shape = shape = Architecture.of_config(source.config)
        self.dtype = dtype = dtype or default_dtype(source)
        if shape.merged and dtype != "file":
            raise CapabilityError(
                f"{place} holds MergeQuant's codes, which run as they are: dtype='file', not '{dtype}' "
                "(of likely compare: --candidate-runtime native)"
            )
        kind = DTYPES.index(dtype) if dtype in DTYPES else CODES
        self._weights = load_weights(source, shape, dtype, self._library, progress, rounding, self.threads)
        self.weights_format = "+".join(sorted({t for t in map(type_of, self._weights) if t})) or dtype
        self.weights_bytes = sum(w.nbytes for w in self._weights.values())
        self._stride = padded(shape.vocab_size) + 16  # rows must not all start in one set of the first cache
        kv, default_kv = native_kv_format(kv_dtype, shape, kind), plain_kv(kind)
        self.kv_dtype = kv.name
        rotated = dtype == "int4" or shape.merged is not None
        self._apart = not group_prefixes
        self._model = native_model(shape, kind, self._weights, rotated=rotated, kv=kv, orders=kv_orders)
        self.kv_bytes_per_token = int(self._library.kv_bytes(ctypes.byref(self._model[0].shape)))
        self._session = self._library.open(ctypes.byref(self._model[0]), self.threads)
        if not self._session:
            raise ModelError(f"the native runtime cannot start {self.threads} threads: give fewer (threads=)")
        self._free = freeing(self, self._library.close, self._session)
        self._logits = np.empty((0, self._stride), np.float32)
        if tokens_held is None:
            tokens_held = min(MOST_TOKENS_HELD, max(1024, free_bytes() // 8 // self.kv_bytes_per_token))
        if self._library.reserve(self._session, tokens_held):
            mib = tokens_held * self.kv_bytes_per_token >> 20
            raise ModelError(f"there is no room for the {mib:,} MiB of {tokens_held:,} tokens: give fewer (context=)")
        features = "+".join(self._library.features()) or "plain"
        own = f"-{fingerprint(rounding.fingerprint)}" if rounding else ""
        stored = (f"-kv-{kv.name}" if kv != default_kv else "") + (f"-{kv_orders.fingerprint()}" if kv_orders else "")
        super().__init__(
            vocab_size=shape.vocab_size,
            context_length=shape.context_length,
            capabilities=Capabilities.of_kind("native", layers=shape.layers),
            limits=Limits(sequences, tokens_held, tokens_held, tokens_per_call),
            revision=f"{self.sha256[:32]}-native-{dtype}{own}-v{VERSION}-{features}{stored}",
        )

    def _new_table(self, limit: int) -> SlotTable:
        return SlotTable(limit, aligned=LANES)

    @one_at_a_time
    def shutdown(self) -> None:
        super().shutdown()
        self._free()
        self._session = None

    def _compute(
        self, sequences: list[SlotSequence], work: list[Work], tokens: list[IntArray], slots: list[IntArray]
    ) -> list[Output]:
        if self._session is None:
            raise ValueError("this runtime is shut down")
        wanted = Wanted([item.want for item in work], [len(t) for t in tokens], self.vocab_size)
        columns = [Columns.of(*of) for of in zip(sequences, work, slots, strict=True)]
        for parts in calls_of(work, self.limits.tokens_per_call):
            self._call(parts, CallArrays.of(parts, work, columns, tokens, slots), wanted)
        return wanted.outputs()

    @one_at_a_time
    def keep_processors(self) -> None:
        """For a process that has the machine to itself, as a server: each thread stays on a processor of its own.

        While it computes, and where there are as many threads as processors that the process may use (Linux); a thread
        that calls may then go where it might before.  Beside long work of others, calls take twice as long.
        """
        self._library.keep_processors(self._session)

    @one_at_a_time
    def columns_read(self) -> int:
        """How many columns (a token's keys and values of one head and layer) attention has read until now."""
        return int(self._library.columns_read(self._session))

    def _call(self, parts: list[WorkPart], arrays: CallArrays, wanted: Wanted) -> None:
        """One call, and what is wanted of its rows."""
        rows, places = rows_of(parts, wanted)
        hidden = (
            np.empty((len(rows), self.shape.hidden), np.float32) if any(len(h) for h in wanted.hidden_rows) else None
        )
        skips = _skips(arrays.layers, self.shape.layers)
        call = NativeCall(
            len(arrays.tokens),
            address(arrays.tokens),
            address(arrays.positions),
            address(arrays.slots),
            Queries(
                address(arrays.pieces),
                len(arrays.pieces),
                address(arrays.columns),
                address(arrays.positions),
                address(arrays.shared),
                address(arrays.own_at),
                address(arrays.own),
            ),
            len(rows),
            address(rows),
            address(hidden),
            *map(address, skips),
            self._apart,
        )
        if self._library.forward(self._session, ctypes.byref(call)):
            raise MemoryError(f"there is no memory for a call of {len(arrays.tokens)} tokens")
        if hidden is not None:
            for item, at, _, hidden_rows, own in places:
                to = np.searchsorted(own, hidden_rows)
                if len(hidden_rows):
                    wanted.add_hidden(item, hidden_rows, hidden[at + to])
        self._head(len(rows), places, wanted)

    def _head(self, count: int, places: list[RowsOfWork], wanted: Wanted) -> None:
        """Logits of the call's rows, a bounded number at a time."""
        if not any(len(head) for _, _, head, _, _ in places):
            return
        most = max(1, LOGITS_BYTES // (4 * self._stride)) if wanted.logits else ROWS_AT_ONCE
        for first in range(0, count, most):
            n = min(most, count - first)
            logits = np.empty((n, self._stride), np.float32) if wanted.logits else self._scratch(n)
            self._library.head(self._session, first, n, address(logits), self._stride)
            if np.isnan(logits[:, 0]).any():
                raise FloatingPointError("a row of logits contains NaN")
            log_norm, entropy = np.zeros(n), np.empty(n)
            ids, top = np.empty((n, wanted.top), np.int64), np.empty((n, wanted.top), np.float32)
            if wanted.reduced:
                self._library.reduce(
                    self._session, address(logits), n, self._stride, address(log_norm),
                    address(entropy) if wanted.entropy else None, wanted.top, address(ids), address(top),
                )  # fmt: skip
            for item, at, head, _, own in places:
                places_of_head = at + np.searchsorted(own, head) - first
                inside = (places_of_head >= 0) & (places_of_head < n)
                if inside.any():
                    where = places_of_head[inside]
                    run: Any = where
                    if where[-1] - where[0] == len(where) - 1:
                        run = slice(int(where[0]), int(where[-1]) + 1)
                    values = logits[run, : self.vocab_size]
                    wanted.add(item, head[inside], values, log_norm[run], entropy[run], ids[run], top[run])

    def _scratch(self, rows: int) -> np.ndarray:
        """(rows, stride) for logits that nobody keeps: memory that is new each time costs as much as the product."""
        if len(self._logits) < rows:
            self._logits = np.empty((rows, self._stride), np.float32)
        return self._logits[:rows]


def default_dtype(source: ModelSource) -> str:
    """Of a model that is loaded without one: a large file keeps its codes, of which int8 would make twice the bytes.

    A small one runs in int8, whose activations are rotated and so lose less.  MergeQuant's codes run as they are.
    """
    if quant_method(source.config) == "mergequant":
        return "file"
    matrices = [w.stored for w in source.weights.values() if len(w.stored.shape) == 2]
    known = all(m.type in TYPES for m in matrices)
    coded = sum(m.nbytes for m in matrices if m.type not in FLOAT_TYPES)
    return "file" if known and coded > MOST_INT8_BYTES else "int8"


def _skips(plan: LayerPlan | None, layers: int) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Of attention and of the feed-forward parts: 1 where a layer's is left out."""
    if plan is None:
        return None, None
    flags = np.zeros((2, layers), np.uint8)
    flags[0, sorted(plan.skip_attention)] = 1
    flags[1, sorted(plan.skip_mlp)] = 1
    return flags[0], flags[1]
