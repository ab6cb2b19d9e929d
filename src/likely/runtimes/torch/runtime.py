"""Any causal language model of transformers as a Runtime: sequences share one pool of keys and values."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from collections.abc import Sequence as Seq
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path as FilePath
from typing import Any, Self, TypedDict, Unpack

import numpy as np
import torch

from likely.errors import CapabilityError, ModelError, first_line
from likely.io.hashes import file_sha256, folder_sha256
from likely.runtimes.kinds import KINDS
from likely.runtimes.kv_format import KvFormat, parse_kv_format
from likely.runtimes.machine import choose_threads, free_bytes
from likely.runtimes.protocol import Capabilities, FloatArray, IntArray, LayerPlan, Limits, Output, Want, Work
from likely.runtimes.slots.layout import WorkLayout, WorkPart, calls_of, texts_of
from likely.runtimes.slots.runtime import SlotRuntime, SlotSequence
from likely.runtimes.slots.table import TokenCount
from likely.runtimes.torch.attention import AttentionPlan, KvReads, SlotPlan, register_interface
from likely.runtimes.torch.check import is_causal, why_not_slots
from likely.runtimes.torch.layers import LayerParts
from likely.runtimes.torch.module import ModuleCall, weights_digest
from likely.runtimes.torch.pretrained import load_pretrained
from likely.runtimes.torch.rows import RowCollector
from likely.runtimes.torch.slots import SlotPool
from likely.runtimes.turns import one_at_a_time

ROWS_BYTES = 64 * 2**20  # V-wide rows of logits that exist at one time
MOST_TOKENS_HELD = 65536
CHECK_TOKENS = 64
RECOMPUTED_TOKENS_HELD = 2**20  # only token ids are held
DTYPES = {name: getattr(torch, name) for name in KINDS["torch"].dtypes}


class TorchSettings(TypedDict, total=False):
    """See `TorchRuntime`."""

    tokens_held: int | None
    sequences: int
    revision: str | None
    tokens_per_call: int
    kv_dtype: str | None
    attention_threads: int
    group_prefixes: bool | None


class TorchRuntime(SlotRuntime):
    """A transformers model, in evaluation mode while it runs here; its weights may be trained in between.

    module       any causal language model; `module(input_ids=...)` must give `.logits`
    tokens_held  room for kept and pending tokens; default: 65,536 or what an eighth of the free memory holds
    revision     name of these weights; default: a digest of all of them
    tokens_per_call  larger calls are cut, and so are calls whose rows of logits would take more than 64 MiB
    kv_dtype     what keys and values are stored as, see `parse_kv_format`; default: as they are computed.  Attention
                 reads them as floats again: a format saves memory (`kv_bytes_per_token`), not time
    attention_threads  how many attentions of a group run at the same time (`LayerPlan.parallel`); the numbers are the
                 same with any
    group_prefixes  attend once, for all sequences of a call, to keys that they hold together, where that is enough
                 (`split_shared`); the same numbers up to rounding.  Default: on a CPU, the only place where it was
                 tried.  It may be set at any time, and `kv_reads` counts what it saves

    `cached` says whether keys and values are kept. They are not where the architecture does not allow it
    (`not_cached_because`): then every call computes the whole text again, slowly and with the same numbers.
    Sliding-window layers: a canvas token (attention="full") sees what is less than one window away, on both sides.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        *,
        tokens_held: int | None = None,
        sequences: int = 4096,
        revision: str | None = None,
        tokens_per_call: int = 512,
        kv_dtype: str | None = None,
        attention_threads: int = 1,
        group_prefixes: bool | None = None,
    ):
        self._pool = _pool(attention_threads)
        wanted = None if kv_dtype is None else parse_kv_format(kv_dtype)
        register_interface()
        module.eval()
        self.module = module
        self._call = ModuleCall(module)
        self.group_prefixes = self.device.type == "cpu" if group_prefixes is None else group_prefixes
        self.kv_reads = KvReads()  # since it was opened
        self.cached = True
        self._kv: KvFormat | None = None  # until the check over slots is done
        super().__init__(
            vocab_size=self._plain_vocab_size(),
            context_length=self._call.context_length,
            capabilities=Capabilities.of_kind("torch"),
            limits=Limits(sequences, CHECK_TOKENS, CHECK_TOKENS, tokens_per_call),
            revision=revision if revision is not None else self._digest(),
        )
        self.not_cached_because = why_not_slots(self)
        self.cached = self.not_cached_because is None
        self.kv_bytes_per_token = self._table.bytes_per_token if self.cached else 0
        if wanted is not None:
            self._store_as(wanted)
        if not self.cached:
            if not is_causal(self):
                raise ModelError(
                    f"{type(module).__name__} is no causal language model: later tokens change the rows of earlier ones"
                )
            self.capabilities = replace(self.capabilities, full_attention=False)
        self._parts = LayerParts.of(module) if self.cached and isinstance(self._table, SlotPool) else None
        if self._parts is not None and len(self._parts) == len(self.layer_windows):
            beside = self._parts.attention_before_mlp(self._call)
            self.capabilities = replace(self.capabilities, layers=len(self._parts), parallel_layers=beside)
        if tokens_held is None:
            tokens_held = self._default_tokens_held()
        self._set_limits(Limits(sequences, tokens_held, tokens_held, tokens_per_call))

    @classmethod
    def from_pretrained(
        cls,
        folder_or_id: str | FilePath,
        *,
        dtype: str | None = None,
        device: str | None = None,
        threads: int | None = None,
        **settings: Unpack[TorchSettings],
    ) -> Self:
        """A folder with safetensors weights, or a hub id where there is a network. Code from a model is never run.

        dtype    "float32", "bfloat16" or "float16"; default: float32 on a CPU, bfloat16 on a GPU
        threads  of the processor; torch has one such setting for the whole process
        """
        where, kind = _place(dtype, device, threads)
        module = load_pretrained(folder_or_id, dtype=kind, device=where)
        if "revision" not in settings and FilePath(folder_or_id).is_dir():
            settings["revision"] = _revision(folder_sha256(folder_or_id)[:16], kind)
        return cls(module, **settings)

    @classmethod
    def from_gguf(
        cls,
        path: str | FilePath,
        *,
        dtype: str | None = None,
        device: str | None = None,
        threads: int | None = None,
        **settings: Unpack[TorchSettings],
    ) -> Self:
        """The same of a GGUF file, its weights dequantised to `dtype`."""
        from likely.runtimes.torch.gguf_module import load_gguf

        where, kind = _place(dtype, device, threads)
        module = load_gguf(FilePath(path), dtype=kind, device=where)
        settings.setdefault("revision", _revision(file_sha256(path)[:16], kind))
        return cls(module, **settings)

    @property
    def config(self) -> Any:
        return self._call.config

    @property
    def text_config(self) -> Any:
        return self._call.text_config

    @property
    def dtype(self) -> torch.dtype:
        return self._call.dtype

    @property
    def device(self) -> torch.device:
        return self._call.device

    @property
    def layer_windows(self) -> list[int | None]:
        """Sliding window of each attention layer, in positions, as the model last asked for it; None: it sees all."""
        return self._call.windows

    @one_at_a_time
    def refresh(self, revision: str | None = None) -> None:
        """The weights changed: name them anew and invalidate every sequence; what they held is free again."""
        self._invalidate()
        self.revision = self._with_kv(revision if revision is not None else self._digest())

    # --- evaluation -------------------------------------------------------------------------------------------------

    def _new_table(self, limit: int) -> Any:
        """Where keys and values are kept, or at least counted; layouts of other kinds have their own."""
        return SlotPool(limit, self._kv) if self.cached else TokenCount(limit)

    def _compute(
        self, sequences: list[SlotSequence], work: list[Work], tokens: list[IntArray], slots: list[IntArray]
    ) -> list[Output]:
        rows = RowCollector([item.want for item in work], [len(t) for t in tokens], self.vocab_size)
        if self.cached:
            self._fill(sequences, work, tokens, slots, rows)
        else:
            self._recompute(sequences, work, tokens, rows)
            slots[:] = tokens
        return rows.outputs()

    def _fill(
        self,
        sequences: list[SlotSequence],
        work: list[Work],
        tokens: list[IntArray],
        slots: list[IntArray],
        rows: RowCollector,
    ) -> None:
        """Fill `rows`, with keys and values in `slots`."""
        layouts = [WorkLayout.of(*of) for of in zip(sequences, work, slots, strict=True)]
        for parts in self._calls(work, rows):
            with self._under(work[parts[0].item].layers) as attending:
                self._evaluate(parts, layouts, tokens, rows, attending)

    @one_at_a_time
    def plain_logits(self, tokens: Seq[int] | IntArray) -> FloatArray:
        """(n, V): the module's own forward over one text, with nothing cached; the reference for all else here."""
        own = np.asarray(tokens, np.int64)
        return self._call(own, np.arange(len(own)))[0].float().cpu().numpy()

    def _calls(self, work: list[Work], rows: RowCollector) -> Iterator[list[WorkPart]]:
        """Calls of bounded tokens and rows."""
        most_rows = max(1, ROWS_BYTES // (4 * self.vocab_size))
        most_tokens = self.limits.tokens_per_call
        if not self._call.keeps_rows:  # this model computes the logits of every token
            most_tokens = min(most_tokens, most_rows)
        return calls_of(work, most_tokens, rows.head_rows, most_rows)

    def _under(self, layers: LayerPlan | None) -> contextlib.AbstractContextManager[list[int] | None]:
        """Within, the module runs by the plan; gives the layers that attend, None for all."""
        if layers is None or self._parts is None:
            return contextlib.nullcontext()
        return self._parts.under(layers, self._call, self._pool)

    def _evaluate(
        self,
        parts: list[WorkPart],
        layouts: list[WorkLayout],
        tokens: list[IntArray],
        rows: RowCollector,
        attending: list[int] | None,
    ) -> None:
        """One call of the module: neighbours in its row of tokens are alike, so that little is padded."""
        pieces = [(layouts[p.item].piece(p.start, p.stop), p) for p in parts]
        pieces.sort(key=lambda pair: (-len(pair[0].positions), -len(pair[0].slots)))
        plan = SlotPlan(
            self._table,
            [piece for piece, _ in pieces],
            np.concatenate([layouts[p.item].slots[p.start : p.stop] for _, p in pieces]),
            self.device,
            layers=attending,
            share=self.group_prefixes,
        )
        self._run([p for _, p in pieces], np.concatenate([piece.positions for piece, _ in pieces]), plan, tokens, rows)
        self.kv_reads.read += plan.reads.read
        self.kv_reads.saved += plan.reads.saved

    def _run(
        self,
        parts: list[WorkPart],
        positions: IntArray,
        plan: AttentionPlan,
        tokens: list[IntArray],
        rows: RowCollector,
    ) -> None:
        """Call the module on the parts, one after the other in its row of tokens, and hand on the wanted rows."""
        wanted = [rows.of_part(p.item, p.start, p.stop) for p in parts]
        starts = np.cumsum([0, *(p.stop - p.start for p in parts)])
        shifts = [int(start) - p.start for start, p in zip(starts, parts, strict=False)]
        logits, states = self._call(
            np.concatenate([tokens[p.item][p.start : p.stop] for p in parts]),
            np.concatenate([head + shift for (head, _), shift in zip(wanted, shifts, strict=True)]),
            hidden_rows=np.concatenate([hidden + shift for (_, hidden), shift in zip(wanted, shifts, strict=True)]),
            positions=positions,
            plan=plan,
        )
        rows.add(logits, [(p.item, head) for p, (head, _) in zip(parts, wanted, strict=True) if len(head)])
        if states is not None:
            found = np.split(states.float().cpu().numpy(), np.cumsum([len(hidden) for _, hidden in wanted])[:-1])
            for p, (_, hidden), values in zip(parts, wanted, found, strict=True):
                if len(hidden):
                    rows.add_hidden(p.item, hidden, values)

    def _recompute(
        self, sequences: list[SlotSequence], work: list[Work], tokens: list[IntArray], rows: RowCollector
    ) -> None:
        """Each text, and each path of a tree, from its first token; nothing is shared or padded."""
        for i, (sequence, item, own) in enumerate(zip(sequences, work, tokens, strict=True)):
            wanted = np.union1d(rows.head_rows[i], rows.hidden_rows[i])
            for text, numbers in texts_of(sequence, item, own, wanted):
                first = len(text) - len(numbers)
                head, at, _ = np.intersect1d(numbers, rows.head_rows[i], return_indices=True)
                hidden, hidden_at, _ = np.intersect1d(numbers, rows.hidden_rows[i], return_indices=True)
                logits, states = self._call(text, first + at, hidden_rows=first + hidden_at)
                rows.add(logits, [(i, head)])
                if states is not None:
                    rows.add_hidden(i, hidden, states.float().cpu().numpy())

    def _store_as(self, kv: KvFormat) -> None:
        """Keep keys and values in this format from now on, if the model's heads allow it."""
        if not self.cached:
            raise CapabilityError(
                f"kv_dtype={kv.name} needs cached keys and values, which are not kept here: {self.not_cached_because}"
            )
        self._kv = kv
        self._set_limits(self.limits)
        sequence = self.open()
        try:
            self.forward([Work(sequence, np.zeros(1, np.int64), want=Want.NONE)])
        except ValueError as error:  # blocks that do not divide the heads
            raise CapabilityError(f"kv_dtype={kv.name} does not fit this model: {error}") from None
        self.kv_bytes_per_token = self._table.bytes_per_token
        self.close(sequence)
        self.revision = self._with_kv(self.revision)

    def _with_kv(self, revision: str) -> str:
        """The name of these weights with that of the format, once: numbers depend on both."""
        end = "" if self._kv is None else f"-kv-{self._kv.name}"
        return revision if end in revision else revision + end

    @property
    def kv_dtype(self) -> str:
        """What keys and values are stored as."""
        names = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}
        return self._kv.name if self._kv is not None else names.get(self.dtype, str(self.dtype))

    def _plain_vocab_size(self) -> int:
        try:
            return int(self._call(np.zeros(2, np.int64), np.array([1]))[0].shape[-1])
        except Exception as error:
            raise ModelError(
                f"{type(self.module).__name__}: its plain forward over two tokens fails ({first_line(error)})"
            ) from error

    def _default_tokens_held(self) -> int:
        if not self.cached:
            return RECOMPUTED_TOKENS_HELD
        fits = _free_bytes(self.device) // 8 // max(1, self.kv_bytes_per_token)
        return int(min(MOST_TOKENS_HELD, max(1024, fits)))

    def _digest(self) -> str:
        return _revision(weights_digest(self.module), self.dtype)


def _revision(digest: str, dtype: torch.dtype) -> str:
    return f"torch-{str(dtype).removeprefix('torch.')}-{digest}"


def _pool(threads: int) -> ThreadPoolExecutor | None:
    """Threads for attentions; None: they need none of their own."""
    if threads < 1:
        raise ModelError(f"attention_threads must be >= 1, got {threads}")
    # a thread that has not asked how many threads a matrix product takes uses all cores, and rounds differently
    return ThreadPoolExecutor(threads, initializer=torch.get_num_threads) if threads > 1 else None


def _place(dtype: str | None, device: str | None, threads: int | None) -> tuple[torch.device, torch.dtype]:
    """Where and in what to compute."""
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if dtype is not None and dtype not in DTYPES:
        raise ModelError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype}")
    if threads is not None:
        torch.set_num_threads(choose_threads(threads))
    default = torch.float32 if where.type == "cpu" else torch.bfloat16
    return where, default if dtype is None else DTYPES[dtype]


def _free_bytes(device: torch.device) -> int:
    return int(torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else free_bytes()
