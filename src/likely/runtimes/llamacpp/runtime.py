"""The Runtime over llama.cpp: GGUF files on the CPU, without torch."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Seq
from pathlib import Path as FilePath

import numpy as np
from numpy.typing import NDArray

from likely.errors import CapabilityError, KvFull, ModelError
from likely.formats.gguf import GgufHeader, read_header
from likely.io.hashes import file_sha256
from likely.runtimes.llamacpp.cells import CellRun, Cells
from likely.runtimes.llamacpp.library import (
    KV_BYTES,
    MAX_SEQUENCE_IDS,
    ContextSettings,
    LlamaContext,
    LlamaModel,
    lib,
    library_version,
)
from likely.runtimes.llamacpp.masked import ARCHITECTURES
from likely.runtimes.llamacpp.options import (
    DEFAULT_CONTEXT,
    check_memory,
    choose_settings,
    kv_values_per_token,
    padded_cells,
)
from likely.runtimes.llamacpp.tokenizer import LlamaCppTokenizer
from likely.runtimes.llamacpp.tree import LlamaSequence, Placed, TreeGrowth, grow, place_chain, place_tree
from likely.runtimes.protocol import (
    Capabilities,
    FloatArray,
    IntArray,
    Limits,
    Output,
    Path,
    Sequence,
    Want,
    Work,
    check_length,
    check_open,
    check_path,
    check_work,
)
from likely.runtimes.rows import CallOutputs
from likely.runtimes.turns import SharedByThreads, one_at_a_time

DIFFUSION = ("llada", "llada-moe", "dream", "rnd1")  # architectures of llama.cpp
OUTPUT_BYTES = 64 << 20  # of logits held at one time
SPARE_CELLS = 257  # room for buried cells and for one companion token
MANY_DEAD = 256  # buried cells that may slow attention before they are cleared away


class LlamaCppRuntime(SharedByThreads):
    """Many token sequences over one GGUF file.

    context    tokens held in all; the longest sequence is the smaller of this and the model's training context, which
               is the default (at most 8192)
    sequences  how many sequences and tree leaves can be held; each takes one of llama.cpp's 256 ids
    threads    default: the physical cores, at most 8; never more than the processors this process may use
    invariant  logits that do not depend, bit for bit, on how tokens are cut into calls, on other sequences or on draft
               trees. None: where the file's types allow it without loss of speed, which leaves out one case: a token
               of a quantised file computed alone, by several threads, after more than 256 others. True: always, at
               twice the time for such a token; CapabilityError if a probe shows that it fails. False: larger blocks,
               a faster prefill, logits that move by rounding
    kv_dtype   type of cached keys and values: f16 (default), f32 (default for a file of F32 matrices; without flash
               attention, which has no f32 form), bf16, q8_0
    """

    capabilities = Capabilities.of_kind("llamacpp")

    def __init__(
        self,
        path: str | FilePath,
        *,
        context: int | None = None,
        sequences: int = MAX_SEQUENCE_IDS,
        threads: int | None = None,
        invariant: bool | None = None,
        kv_dtype: str | None = None,
    ):
        super().__init__()
        header = read_header(path)
        if header.architecture in DIFFUSION:  # from left to right its numbers would be wrong
            raise CapabilityError(
                f"{path}: {header.architecture} is a diffusion model: likely.load opens those of "
                f"{' and '.join(ARCHITECTURES)}; others are not read from GGUF files"
            )
        chosen = choose_settings(
            header, context=context, sequences=sequences, threads=threads, invariant=invariant, kv_dtype=kv_dtype
        )
        self.threads, self.kv_dtype, self.dtype = chosen.threads, chosen.kv, chosen.dtype
        self._lone_row = chosen.lone_row
        self._model = LlamaModel(path, header, repack=chosen.repack)
        self.kv_bytes_per_token = int(kv_values_per_token(header) * KV_BYTES[chosen.kv])
        try:
            pointer = self._model.pointer
            _check_architecture(pointer, header, path)
            trained = max(1, lib.llama_model_n_ctx_train(pointer))
            held = min(trained, DEFAULT_CONTEXT) if context is None else context
            self.context_length = min(trained, held)
            self.vocab_size: int = lib.llama_vocab_n_tokens(self._model.vocab)
            windowed = lib.llama_model_n_swa(pointer) > 0
            usable = min(sequences, MAX_SEQUENCE_IDS - 2 - windowed)
            self._rows_per_call = max(1, min(chosen.ubatch, OUTPUT_BYTES // (4 * self.vocab_size)))
            settings = ContextSettings(
                cells=padded_cells(held, SPARE_CELLS),
                ids=usable + 2 + windowed,
                ubatch=chosen.ubatch,
                outputs=self._rows_per_call + 1,
                threads=chosen.threads,
                kv=chosen.kv,
                flash=chosen.flash,
            )
            check_memory(settings.cells, self.kv_bytes_per_token)
            self._context = LlamaContext(self._model, settings)
            self.tokenizer = LlamaCppTokenizer(self._model, header)
        except BaseException:
            self._model.close()
            raise
        self.limits = Limits(sequences=usable, leaves=usable, tokens_held=held, tokens_per_call=chosen.ubatch)
        self._companion = usable  # id of the token that keeps a lone row company
        self._cells = Cells(self._context, grave=usable + 1, guard=usable + 2 if windowed else None)
        self._free_ids = list(range(usable - 1, -1, -1))
        self._open: set[LlamaSequence] = set()
        self._invariance: bool | None = None

        self.weights_bytes: int = lib.llama_model_size(pointer)
        self.revision = (
            f"{file_sha256(path)}:llamacpp-{library_version()}:"
            f"kv={chosen.kv},flash={int(chosen.flash)},rows={chosen.ubatch},repack={int(chosen.repack)}"
        )
        if invariant and not self.is_invariant():
            self.shutdown()
            raise CapabilityError(
                f"{FilePath(path).name} ({self.dtype}) gives other logits when its tokens are cut into other calls; "
                f"load it without invariant=True, or convert it to Q8_0"
            )

    # --- sequences --------------------------------------------------------------------------------------------------

    @one_at_a_time
    def open(self) -> LlamaSequence:
        self._check_running()
        sequence = LlamaSequence(id=self._take_ids(1)[0])
        self._open.add(sequence)
        return sequence

    @one_at_a_time
    def fork(self, sequence: Sequence, length: int | None = None) -> LlamaSequence:
        ours = self._ours(sequence)
        length = ours.length if length is None else length
        check_length(ours, length)
        copy = LlamaSequence(id=self._take_ids(1)[0], length=length, cells=ours.cells[:length])
        if length:
            self._context.copy(ours.id, copy.id, 0, length)
            self._cells.share(np.array(copy.cells, np.int64))
        self._open.add(copy)
        return copy

    @one_at_a_time
    def commit(self, accepted: Iterable[tuple[Sequence, Path]]) -> None:
        checked: dict[int, tuple[LlamaSequence, list[int]]] = {}
        for sequence, path in accepted:
            nodes = [int(node) for node in path]
            ours = self._ours(sequence)
            check_path(ours, nodes)
            if id(ours) in checked:
                raise ValueError("one commit may name a sequence only once")
            checked[id(ours)] = ours, nodes
        for ours, nodes in checked.values():
            self._commit(ours, nodes)

    def _commit(self, sequence: LlamaSequence, path: list[int]) -> None:
        if not sequence.pending:
            return
        kept_id = sequence.node_ids[path[-1]] if path else sequence.id
        length = sequence.length + len(path)
        dropped = [other for other in sequence.ids() if other != kept_id]
        self._cells.release(sequence.dead_runs(path), [*((other, 0) for other in dropped), (kept_id, length)])
        self._free_ids += dropped
        sequence.cells += [sequence.node_cells[node] for node in path]
        sequence.id, sequence.length = kept_id, length
        sequence.forget_nodes()

    @one_at_a_time
    def truncate(self, sequence: Sequence, length: int) -> None:
        ours = self._ours(sequence)
        check_length(ours, length)
        self._commit(ours, [])
        if length < ours.length:
            run = CellRun(ours.id, length, np.array(ours.cells[length:], np.int64))
            self._cells.release([run], [(ours.id, length)])
            del ours.cells[length:]
            ours.length = length

    @one_at_a_time
    def close(self, sequence: Sequence) -> None:
        if sequence.closed and isinstance(sequence, LlamaSequence):
            return
        ours = self._ours(sequence)
        runs = [*ours.dead_runs([]), CellRun(ours.id, 0, np.array(ours.cells, np.int64))]
        self._cells.release(runs, [(used, 0) for used in ours.ids()])
        self._free_ids += ours.ids()
        ours.forget_nodes()
        ours.closed = True
        self._open.discard(ours)

    @one_at_a_time
    def free_tokens(self) -> int:
        return self.limits.tokens_held - self._cells.live

    @one_at_a_time
    def free_sequences(self) -> int:
        """Sequence ids not in use: for new sequences, forks, and tree leaves beyond the first of each sequence."""
        return len(self._free_ids)

    @one_at_a_time
    def shutdown(self) -> None:
        """Free the cache and the weights; harmless when repeated."""
        for sequence in self._open:
            sequence.closed = True
        self._open.clear()
        self._context.close()
        self._model.close()

    def _check_running(self) -> None:
        if self._context.closed:
            raise ValueError("this runtime is shut down")

    def _ours(self, sequence: Sequence) -> LlamaSequence:
        check_open(sequence)
        self._check_running()
        if not isinstance(sequence, LlamaSequence) or sequence not in self._open:
            raise ValueError("this sequence belongs to another runtime")
        return sequence

    def _take_ids(self, n: int) -> list[int]:
        if n > len(self._free_ids):
            raise KvFull(n, len(self._free_ids), "sequences")
        return [self._free_ids.pop() for _ in range(n)]

    # --- forward ----------------------------------------------------------------------------------------------------

    @one_at_a_time
    def forward(self, work: Seq[Work]) -> list[Output]:
        self._check_running()
        sequences = [self._ours(item.sequence) for item in work]
        check_work(work, vocab_size=self.vocab_size, context_length=self.context_length, capabilities=self.capabilities)
        n = sum(len(item.tokens) for item in work)
        if n > self.free_tokens():
            raise KvFull(n, self.free_tokens())
        growths: list[TreeGrowth | None] = [
            None if item.parents is None else grow(sequence, np.asarray(item.parents).tolist())
            for item, sequence in zip(work, sequences, strict=True)
        ]
        needed = sum(growth.new_ids for growth in growths if growth is not None)
        if needed > len(self._free_ids):
            raise KvFull(needed, len(self._free_ids), "sequences")
        if not work:
            return []
        self._make_room(n)

        placed = [
            place_chain(sequence, item) if growth is None else place_tree(sequence, item, growth, self._take_ids)
            for sequence, item, growth in zip(sequences, work, growths, strict=True)
        ]
        cells = self._cells.take(n)
        try:
            for piece in placed:
                for source, target, end in piece.copies:
                    self._context.copy(source, target, 0, end)
            outputs = self._compute(placed, cells.start)
        except BaseException:
            self._undo(placed, n)
            raise
        at = cells.start
        for piece in placed:
            piece.keep(range(at, at + piece.n))
            at += piece.n
        return outputs

    def _compute(self, placed: list[Placed], first_cell: int) -> list[Output]:
        """Decode everything in blocks of at most `tokens_per_call` tokens and 64 MiB of logits.

        Kernels for one row sum in another order than those for several (`options` says which). A companion token
        beside a lone row (computed, then forgotten) keeps its logits the same.
        """
        tokens, positions, counts, ids = (
            np.concatenate(arrays) for arrays in zip(*(p.arrays for p in placed), strict=True)
        )
        id_ends = np.concatenate([[0], np.cumsum(counts)])
        starts = np.cumsum([0, *(piece.n for piece in placed)])
        wanted = np.concatenate([piece.rows + start for piece, start in zip(placed, starts[:-1], strict=True)])
        is_wanted = np.zeros(len(tokens), np.bool_)
        is_wanted[wanted] = True
        outputs = CallOutputs([piece.want for piece in placed], [piece.n for piece in placed], self.vocab_size)
        begin, block = 0, self.limits.tokens_per_call
        while begin < len(tokens):
            end = min(begin + block, len(tokens))
            low, high = np.searchsorted(wanted, [begin, end])
            if high - low > self._rows_per_call:
                end, high = int(wanted[low + self._rows_per_call]), low + self._rows_per_call
            at = slice(begin, end)
            lone = self._lone_row is not None and first_cell + end > self._lone_row
            if self._lone_row == 0 and high - low == 1 and end - begin > 1:  # the last layers see wanted rows only
                is_wanted[begin if wanted[low] > begin else begin + 1] = True
            arrays = tokens[at], positions[at], counts[at], ids[id_ends[begin] : id_ends[end]], is_wanted[at]
            self._decode(arrays, companion=lone and end - begin == 1)
            for row in wanted[low:high].tolist():
                item = int(np.searchsorted(starts, row, "right")) - 1
                outputs.add_row(item, row - int(starts[item]), self._context.logits(row - begin))
            begin = end
        return outputs.outputs()

    def _decode(self, arrays: tuple[NDArray, ...], *, companion: bool) -> None:
        if companion:
            extra = (np.int32(0), np.int32(0), np.int32(1), np.int32(self._companion), arrays[-1][0])
            arrays = tuple(np.append(array, value) for array, value in zip(arrays, extra, strict=True))
        code = self._context.decode(*arrays)
        if companion:
            self._context.remove(self._companion)
        if code == 1:
            raise KvFull(len(arrays[0]), max(0, min(self.free_tokens(), len(arrays[0]) - 1)))
        if code != 0:
            raise ModelError(self._context.failure(code))
        self._cells.unguard()

    def _undo(self, placed: list[Placed], n: int) -> None:
        for piece in placed:
            for used, start in piece.undo:
                self._context.remove(used, start)
            self._free_ids += piece.new_ids
        self._cells.give_back_last(n)
        self._cells.unguard(failed=True)

    def _make_room(self, n: int) -> None:
        cells = self._cells
        full = cells.top + n + 1 > cells.size
        if not (full or cells.must_compact or cells.dead > max(MANY_DEAD, cells.live)):
            return
        try:
            new_number = cells.compact([used for sequence in self._open for used in sequence.ids()])
        except BaseException:
            self.shutdown()  # the cache may be half written
            raise
        for sequence in self._open:
            sequence.cells = new_number[sequence.cells].tolist() if sequence.cells else []
            sequence.node_cells = new_number[sequence.node_cells].tolist() if sequence.node_cells else []

    # --- numerics ---------------------------------------------------------------------------------------------------

    @one_at_a_time
    def is_invariant(self) -> bool:
        """Whether logits of 24 tokens are the same, bit for bit, in one call, in two, and one by one beside others.

        Probed once on temporary sequences; needs a free sequence (two, to have one beside) and 48 free tokens.
        """
        if self._invariance is None:
            n = min(24, self.context_length, self.limits.tokens_held // 2)
            mine, theirs = np.random.default_rng(0).integers(0, self.vocab_size, (2, n))
            at_once = self._probe(mine, [n])
            self._invariance = np.array_equal(self._probe(mine, [n // 8]), at_once) and np.array_equal(
                self._probe(mine, range(1, n), beside=theirs if self.free_sequences() > 1 else None), at_once
            )
        return self._invariance

    def _probe(self, tokens: IntArray, cuts: Iterable[int], beside: IntArray | None = None) -> FloatArray:
        """Logits (n, V) of the tokens in pieces that end at `cuts`, with pieces of another sequence in the calls."""
        sequence, other = self.open(), None
        try:
            other = None if beside is None else self.open()
            rows = []
            for piece in np.split(np.arange(len(tokens)), list(cuts)):
                if len(piece):
                    work = [] if other is None or beside is None else [Work(other, beside[piece], want=Want.NONE)]
                    rows.append(self.forward([*work, Work(sequence, tokens[piece], want=Want.ALL)])[-1].logits)
            return np.concatenate([np.asarray(row) for row in rows])
        finally:
            self.close(sequence)
            if other is not None:
                self.close(other)


def _check_architecture(pointer: object, header: GgufHeader, path: str | FilePath) -> None:
    name = header.architecture
    if lib.llama_model_is_recurrent(pointer) or lib.llama_model_is_hybrid(pointer):
        raise ModelError(f"{path}: {name} keeps a running state, which cannot be cut or forked; use runtime=torch")
    if lib.llama_model_has_encoder(pointer) or not lib.llama_model_has_decoder(pointer):
        raise ModelError(f"{path}: {name} has an encoder; llamacpp here runs decoder-only models")
    if lib.llama_model_is_diffusion(pointer):
        raise ModelError(f"{path}: {name} is a diffusion model; use runtime=torch")
