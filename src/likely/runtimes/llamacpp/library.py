"""The low-level llama.cpp library behind two owners: `LlamaModel` (weights), `LlamaContext` (a cache and its batch).

A wrong argument ends the whole process inside native code, so everything here expects arguments that were checked.
"""

from __future__ import annotations

import ctypes
import math
import os
import re
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from likely.errors import ModelError, needs
from likely.formats.gguf import ArrayRef, GgufHeader
from likely.runtimes.protocol import FloatArray
from likely.runtimes.turns import freeing

with needs("llama-cpp-python", "local"):
    import llama_cpp
    import llama_cpp.llama_cpp as lib

Int32s: TypeAlias = NDArray[np.int32]
MAX_SEQUENCE_IDS = 256
KV_TYPES = {
    "f16": lib.GGML_TYPE_F16,
    "f32": lib.GGML_TYPE_F32,
    "bf16": 30,
    "q8_0": lib.GGML_TYPE_Q8_0,
}  # 30: GGML_TYPE_BF16
KV_BYTES = {"f16": 2.0, "f32": 4.0, "bf16": 2.0, "q8_0": 34 / 32}
_ERROR_LEVEL, _CONTINUED = 4, 5
_EVERY_POSITION = 1 << 30

_errors: deque[str] = deque(maxlen=20)
_was_error = False


@lib.llama_log_callback
def _log(level: int, text: bytes, _: Any) -> None:
    """Keep error lines for messages of our own, drop all else."""
    global _was_error
    if level != _CONTINUED:
        _was_error = level == _ERROR_LEVEL
    if _was_error and text.strip():
        _errors.append(text.decode("utf-8", "replace").strip())


_start_lock = threading.Lock()
_started = False


def _start_library() -> None:
    """Silence the log (again, should another user of the library have set it) and start the backend once."""
    global _started
    with _start_lock:
        lib.llama_log_set(_log, ctypes.c_void_p(0))
        if not _started:
            lib.llama_backend_init()
            _started = True


def _last_error(otherwise: str) -> str:
    """The most telling of the collected error lines, in one line."""
    lines = [line for line in _errors if "failed to load model" not in line] or list(_errors)
    text = lines[0] if lines else otherwise
    return " ".join(text.split(": ", 1)[-1].split()) or otherwise


def library_version() -> str:
    return f"{llama_cpp.__version__}/{lib.llama_version().decode()}"


@lru_cache(maxsize=1)
def has_amx() -> bool:
    """Whether this processor multiplies tiles: llama.cpp then repacks weights for blocks of rows."""
    try:
        return " amx_int8" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False


def check_header(header: GgufHeader) -> None:
    """ModelError for headers that are sound as GGUF, but make llama.cpp abort, read past an array or run for ever."""
    blocks = {int(m[1]) for tensor in header.tensors if (m := re.match(r"blk\.(\d{1,6})\.", tensor.name))}
    count = header.hparam("block_count")
    if count is not None and not (isinstance(count, int) and 1 <= count <= max(blocks, default=0) + 1):
        raise ModelError(f"block_count is {count!r}, but the file has tensors of {len(blocks)} blocks")
    for key, value in header.metadata.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ModelError(f"{key} is {value}")
        if key.endswith("_epsilon") and not (isinstance(value, float) and value >= 0):
            raise ModelError(f"{key} must be a number >= 0, found {value!r}")
    tokens = header.metadata.get("tokenizer.ggml.tokens")
    for name in ("scores", "token_type"):
        found = header.metadata.get(f"tokenizer.ggml.{name}")
        if isinstance(found, ArrayRef) and isinstance(tokens, ArrayRef) and len(found) != len(tokens):
            raise ModelError(f"tokenizer.ggml.{name} has {len(found)} items, the vocabulary {len(tokens)}")


class LlamaModel:
    """Weights and vocabulary of one GGUF file, whose header was read before."""

    def __init__(self, path: str | Path, header: GgufHeader, *, vocab_only: bool = False, repack: bool = True):
        try:
            check_header(header)
        except ModelError as error:
            raise ModelError(f"{path}: {error}") from None
        _start_library()
        _errors.clear()
        params = lib.llama_model_default_params()
        params.n_gpu_layers = 0
        params.vocab_only = vocab_only
        params.use_extra_bufts = repack
        made: list[Any] = []
        try:  # on another thread, since a Ctrl-C in the log callback of this one would be lost
            on_tile_thread(lambda: made.append(lib.llama_model_load_from_file(os.fsencode(path), params)))
        except KeyboardInterrupt:
            for loaded in filter(None, made):
                lib.llama_model_free(loaded)
            raise
        [pointer] = made
        if not pointer:
            raise ModelError(f"{path}: llama.cpp cannot load it ({_last_error('no reason given')})")
        self._pointer = pointer
        self._free = freeing(self, lib.llama_model_free, pointer)

    @property
    def pointer(self) -> Any:
        if not self._free.alive:
            raise ValueError("this model is shut down")
        return self._pointer

    @property
    def vocab(self) -> Any:
        return lib.llama_model_get_vocab(self.pointer)

    def close(self) -> None:
        self._free()


@dataclass(frozen=True)
class ContextSettings:
    """cells: room of the cache in tokens; ubatch: tokens computed at once; outputs: rows of logits kept per call.

    cached  False: of a model that keeps no keys and values and whose tokens see each other in both directions; a call
            then holds whole sequences
    """

    cells: int
    ids: int
    ubatch: int
    outputs: int
    threads: int
    kv: str
    flash: bool
    cached: bool = True


class LlamaContext:
    """A cache of cells that carry sequence ids, and a batch that is filled through numpy."""

    def __init__(self, model: LlamaModel, settings: ContextSettings):
        _errors.clear()
        params = lib.llama_context_default_params()
        params.n_ctx = settings.cells
        params.n_batch = params.n_ubatch = settings.ubatch
        params.n_seq_max = settings.ids
        params.n_outputs_max = params.n_outputs_max_per_seq = max(settings.outputs, settings.ids)
        params.kv_unified = True
        params.swa_full = True  # otherwise sliding-window layers forget what a truncation or fork needs
        params.flash_attn_type = (
            lib.LLAMA_FLASH_ATTN_TYPE_ENABLED if settings.flash else lib.LLAMA_FLASH_ATTN_TYPE_DISABLED
        )
        params.type_k = params.type_v = KV_TYPES[settings.kv]
        params.n_threads = params.n_threads_batch = settings.threads
        params.no_perf = True
        context = lib.llama_init_from_model(model.pointer, params)
        if not context:
            raise ModelError(f"llama.cpp cannot make a context of {settings.cells} tokens ({_last_error('no reason')})")
        self._model, self._context = model, context  # the model outlives the context
        self._free = freeing(self, lib.llama_free, context)
        memory = lib.llama_get_memory(context)
        if not settings.cached:
            lib.llama_set_causal_attn(context, False)
        elif not memory:
            self.close()
            raise ModelError("this architecture keeps no key-value cache; llamacpp cannot hold sequences with it")
        self._memory: Any = memory
        self.cells = lib.llama_n_ctx(context)
        self.vocab_size = lib.llama_vocab_n_tokens(model.vocab)
        self._row_type = ctypes.c_float * self.vocab_size
        self._batch = _Batch(settings.ubatch)

    def close(self) -> None:
        self._free()

    @property
    def closed(self) -> bool:
        return not self._free.alive

    def decode(
        self, tokens: Int32s, positions: Int32s, id_counts: Int32s, ids: Int32s, wanted: NDArray[np.bool_]
    ) -> int:
        """Compute n <= ubatch tokens; token i carries id_counts[i] of the flat `ids`. Returns llama.cpp's code."""
        return self._compute(lib.llama_decode, self._batch.fill(tokens, positions, id_counts, ids, wanted))

    def encode(self, sequences: Int32s) -> int:
        """Compute whole sequences (N, T) of one length, all rows of logits wanted, N T <= ubatch."""
        count, length = sequences.shape
        tokens = sequences.reshape(-1)
        positions = np.tile(np.arange(length, dtype=np.int32), count)
        ids = np.repeat(np.arange(count, dtype=np.int32), length)
        wanted = np.ones(len(tokens), np.bool_)
        return self._compute(lib.llama_encode, self._batch.fill(tokens, positions, np.ones_like(ids), ids, wanted))

    def _compute(self, call: Callable[..., int], batch: lib.llama_batch) -> int:
        _errors.clear()
        return on_tile_thread(call, self._context, batch) if has_amx() else call(self._context, batch)

    def logits(self, index: int) -> FloatArray:
        """A view (V,) of the logits after token `index` of the last call, valid until the next one."""
        pointer = lib.llama_get_logits_ith(self._context, index)
        if not pointer:
            raise ModelError("llama.cpp returned no logits for a row that was asked for")
        address = ctypes.cast(pointer, ctypes.c_void_p).value
        assert address is not None
        return np.frombuffer(self._row_type.from_address(address), np.float32)

    def failure(self, code: int) -> str:
        return f"llama.cpp failed to compute ({_last_error(f'code {code}')})"

    # positions are half-open ranges [start, end)

    def copy(self, source: int, target: int, start: int = 0, end: int = _EVERY_POSITION) -> None:
        """The cells of `source` in the range carry `target`, too."""
        lib.llama_memory_seq_cp(self._memory, source, target, start, end)

    def remove(self, id: int, start: int = 0, end: int = _EVERY_POSITION) -> None:
        """The cells of `id` in the range no longer carry it; a cell without ids is free."""
        if not lib.llama_memory_seq_rm(self._memory, id, start, end):
            raise ModelError("this architecture cannot forget a part of a sequence")

    def clear(self) -> None:
        lib.llama_memory_clear(self._memory, False)

    def compact(self) -> None:
        """Move all used cells to the front, in their order: saved and restored byte for byte."""
        size = lib.llama_state_get_size(self._context)
        buffer = (ctypes.c_uint8 * size)()
        written = lib.llama_state_get_data(self._context, buffer, size)
        if not 0 < written <= size or lib.llama_state_set_data(self._context, buffer, written) != written:
            raise ModelError(f"llama.cpp failed to rearrange its cache ({_last_error('no reason given')})")


class _Batch:
    """A llama_batch over numpy arrays, so that filling it costs no Python per token."""

    def __init__(self, capacity: int):
        self.tokens = np.zeros(capacity, np.int32)
        self.positions = np.zeros(capacity, np.int32)
        self.id_counts = np.ones(capacity, np.int32)
        self.id_pointers = np.zeros(capacity, np.uintp)
        self.wanted = np.zeros(capacity, np.int8)
        self.ids = np.zeros(capacity, np.int32)
        self.struct = lib.llama_batch(
            n_tokens=0,
            token=self.tokens.ctypes.data_as(ctypes.POINTER(lib.llama_token)),
            embd=None,
            pos=self.positions.ctypes.data_as(ctypes.POINTER(lib.llama_pos)),
            n_seq_id=self.id_counts.ctypes.data_as(ctypes.POINTER(ctypes.c_int32)),
            seq_id=self.id_pointers.ctypes.data_as(ctypes.POINTER(ctypes.POINTER(lib.llama_seq_id))),
            logits=self.wanted.ctypes.data_as(ctypes.POINTER(ctypes.c_int8)),
        )

    def fill(
        self, tokens: Int32s, positions: Int32s, id_counts: Int32s, ids: Int32s, wanted: NDArray[np.bool_]
    ) -> lib.llama_batch:
        n = len(tokens)
        self.tokens[:n], self.positions[:n], self.wanted[:n], self.id_counts[:n] = tokens, positions, wanted, id_counts
        if len(ids) > len(self.ids):
            self.ids = np.zeros(2 * len(ids), np.int32)
        self.ids[: len(ids)] = ids
        self.id_pointers[:n] = self.ids.ctypes.data + 4 * (np.cumsum(id_counts) - id_counts)
        self.struct.n_tokens = n
        return self.struct


# --- a thread of its own on processors with tile registers (AMX) ------------------------------------------------------
#
# llama.cpp sets up the tiles of a thread once and trusts that they stay so.  torch, in bfloat16, sets up its own and
# gives them back: the next call of llama.cpp on that thread dies of an illegal instruction, or reads tiles of another
# shape and returns numbers from nowhere.  torch never runs on the thread here.


class _Job:
    """A call to make, a lock that is free once it is made, and (the result, the error), which are there before that."""

    def __init__(self, function: Callable[..., Any], arguments: tuple[Any, ...]):
        self.function, self.arguments = function, arguments
        self.made = threading.Lock()
        self.made.acquire()
        self.outcome: tuple[Any, BaseException | None] | None = None

    def make(self) -> None:
        try:
            self.outcome = self.function(*self.arguments), None
        except BaseException as error:
            self.outcome = None, error
        self.made.release()


@lru_cache(maxsize=1)
def _jobs() -> SimpleQueue[_Job]:
    jobs: SimpleQueue[_Job] = SimpleQueue()

    def work() -> None:
        while True:
            jobs.get().make()

    threading.Thread(target=work, name="llama.cpp", daemon=True).start()
    return jobs


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_jobs.cache_clear)  # threads stay behind with the parent


def on_tile_thread(function: Callable[..., Any], *arguments: Any) -> Any:
    """The function's result, computed on the one thread.  Ctrl-C is raised when it has ended, as in a plain call."""
    job = _Job(function, arguments)
    _jobs().put(job)
    interrupted = False
    while True:
        try:
            job.made.acquire()
            break
        except KeyboardInterrupt:
            interrupted = True
            if job.outcome is not None:  # it came between taking the lock and knowing so
                break
    assert job.outcome is not None
    value, error = job.outcome
    if interrupted:
        raise KeyboardInterrupt
    if error is not None:
        raise error
    return value
