"""llama.cpp's own tokenizer, through the low-level API: the reference for ids of a GGUF file."""

from __future__ import annotations

import ctypes
from pathlib import Path

import llama_cpp.llama_cpp as lib
from llama_cpp import llama_log_callback, llama_log_set

_quiet = llama_log_callback(lambda *_: None)


class LlamaVocab:
    """Vocabulary only: no weights are loaded."""

    def __init__(self, path: str | Path):
        llama_log_set(_quiet, None)
        lib.llama_backend_init()
        params = lib.llama_model_default_params()
        params.vocab_only = True
        self._model = lib.llama_model_load_from_file(str(path).encode(), params)
        assert self._model, f"llama.cpp refuses {path}"
        self._vocab = lib.llama_model_get_vocab(self._model)
        self.vocab_size = lib.llama_vocab_n_tokens(self._vocab)
        self.add_bos = bool(lib.llama_vocab_get_add_bos(self._vocab))

    def encode(self, text: str, *, parse_special: bool = False) -> list[int]:
        raw = text.encode()
        room = len(raw) + 8
        ids = (lib.llama_token * room)()
        count = lib.llama_tokenize(self._vocab, raw, len(raw), ids, room, False, parse_special)
        assert count >= 0
        return list(ids[:count])

    def token_bytes(self, token: int) -> bytes:
        buffer = ctypes.create_string_buffer(4096)
        count = lib.llama_token_to_piece(self._vocab, token, buffer, 4096, 0, False)
        assert count >= 0
        return buffer.raw[:count]

    def close(self) -> None:
        lib.llama_model_free(self._model)
