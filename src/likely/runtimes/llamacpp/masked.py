"""Masked diffusion language models (LLaDA, Dream) in GGUF files, through llama.cpp: canvases in, logits out."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from likely.errors import ModelError
from likely.formats.gguf import GgufHeader, read_header
from likely.io.hashes import file_sha256
from likely.runtimes.llamacpp.library import ContextSettings, LlamaContext, LlamaModel, lib, library_version
from likely.runtimes.llamacpp.options import DEFAULT_CONTEXT, choose_settings
from likely.runtimes.llamacpp.tokenizer import LlamaCppTokenizer
from likely.runtimes.masked import MaskedRuntime
from likely.runtimes.protocol import FloatArray, IntArray
from likely.runtimes.turns import SharedByThreads, one_at_a_time

ARCHITECTURES = ("llada", "dream")
LEAST = 64  # tokens that a context has room for


class LlamaCppPredictor(SharedByThreads):
    """Logits of a GGUF file's model, in the types of its file; it keeps no keys and values.

    mask_id, vocab_size   of the model;  context: longest canvas, that of training (at most 8192) unless given
    shift_logits  row i of the logits predicts position i + 1
    sequences     canvases in one call of llama.cpp.  1: their logits do not depend, bit for bit, on what else is asked;
                  more: faster for short canvases, and logits move by rounding, which may change a text at near ties
    """

    block, block_causal = 0, False

    def __init__(self, path: str | Path, *, context: int | None = None, sequences: int = 1, threads: int | None = None):
        super().__init__()
        header = read_header(path)
        if header.architecture not in ARCHITECTURES:
            raise ModelError(f"{path}: {header.architecture} is none of {', '.join(ARCHITECTURES)}")
        self._settings = choose_settings(
            header, context=context, sequences=sequences, threads=threads, invariant=None, kv_dtype=None
        )
        self.sequences, self.shift_logits = sequences, _shifts(header)
        self.dtype, self.threads = self._settings.dtype, self._settings.threads
        self._model = LlamaModel(path, header, repack=self._settings.repack)
        self._context: LlamaContext | None = None
        self._room = 0
        try:
            self.tokenizer = LlamaCppTokenizer(self._model, header)
            self.vocab_size = self.tokenizer.vocab_size
            self.mask_id: int = lib.llama_vocab_mask(self._model.vocab)
            if not 0 <= self.mask_id < self.vocab_size:
                raise ModelError(f"{path}: the file names no mask token (tokenizer.ggml.mask_token_id)")
            trained = max(1, lib.llama_model_n_ctx_train(self._model.pointer))
            self.context = min(trained, DEFAULT_CONTEXT if context is None else context)
        except BaseException:
            self._model.close()
            raise

    @one_at_a_time
    def logits(self, ids: IntArray) -> FloatArray:
        """(B, T) canvases -> (B, T, V)."""
        canvases = np.asarray(ids, np.int64)
        if canvases.ndim != 2 or not canvases.size:
            raise ValueError(f"canvases must have shape (B, T), got {canvases.shape}")
        rows, length = canvases.shape
        if length > self.context:
            raise ModelError(f"a canvas of {length} tokens is longer than this model's context of {self.context}")
        if (bad := canvases[(canvases >= self.vocab_size) | (canvases < 0)]).size:
            raise ValueError(f"token id {bad[0]} is outside 0..{self.vocab_size - 1}")
        together = min(rows, self.sequences)
        context = self._with_room(together * length)
        found = np.empty((rows, length, self.vocab_size), np.float32)
        for at in range(0, rows, together):
            part = canvases[at : at + together].astype(np.int32)
            if code := context.encode(part):
                raise ModelError(context.failure(code))
            for index, row in enumerate(found[at : at + together].reshape(-1, self.vocab_size)):
                row[:] = context.logits(index)  # copied: the next call writes over it
        return found

    @one_at_a_time
    def close(self) -> None:
        """Free the weights; harmless when repeated."""
        if self._context is not None:
            self._context.close()
        self._context, self._room = None, 0
        self._model.close()

    def _with_room(self, tokens: int) -> LlamaContext:
        """A context for so many tokens in a call: made when it is first needed, since its buffers grow with them."""
        if self._context is None or tokens > self._room:
            if self._context is not None:
                self._context.close()
            self._context = None
            room = max(LEAST, 1 << (tokens - 1).bit_length())
            settings = ContextSettings(
                cells=room, ids=self.sequences, ubatch=room, outputs=room, threads=self.threads, kv=self._settings.kv,
                flash=self._settings.flash, cached=False,
            )  # fmt: skip
            self._context, self._room = LlamaContext(self._model, settings), room
        return self._context


def open_masked_gguf(
    path: Path, *, context: int | None = None, sequences: int = 1, threads: int | None = None
) -> tuple[MaskedRuntime, LlamaCppTokenizer]:
    """A GGUF file of one of `ARCHITECTURES` as a runtime, and its tokenizer."""
    predictor = LlamaCppPredictor(path, context=context, sequences=sequences, threads=threads)
    revision = f"{file_sha256(path)}:llamacpp-{library_version()}:sequences={sequences}"
    runtime = MaskedRuntime(predictor, dtype=predictor.dtype, revision=revision, free=predictor.close)
    return runtime, predictor.tokenizer


def _shifts(header: GgufHeader) -> bool:
    """As the file says; Dream's do where it says nothing."""
    said = header.metadata.get("diffusion.shift_logits")
    return said if isinstance(said, bool) else header.architecture == "dream"
