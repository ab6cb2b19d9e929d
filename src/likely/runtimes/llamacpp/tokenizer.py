"""The tokenizer inside llama.cpp: the ids are exactly those that it computes with."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path

import numpy as np

from likely.formats.gguf import ArrayRef, GgufHeader, read_header
from likely.runtimes.llamacpp.library import LlamaModel, lib
from likely.tokenizers.protocol import end_tokens

_ID_KEYS = ("model", "pre", "tokens", "token_type", "scores", "merges", "add_space_prefix", "remove_extra_whitespaces")


class LlamaCppTokenizer:
    """The Tokenizer protocol over a loaded model.

    adds_space  the model was trained with a space in front of the first word ("SentencePiece dummy prefix"), so the
                bytes of an encoded text are the text after one more space
    user_defined_tokens  text -> id of tokens that are found in plain text before all others
    """

    def __init__(self, model: LlamaModel, header: GgufHeader):
        self._model, self._header = model, header
        vocab = model.vocab
        self.vocab_size: int = lib.llama_vocab_n_tokens(vocab)
        self.bos_id = _known(lib.llama_vocab_bos(vocab))
        self.eos_id = _known(lib.llama_vocab_eos(vocab))
        self.add_bos = bool(lib.llama_vocab_get_add_bos(vocab)) and self.bos_id is not None
        self.special_tokens: Mapping[str, int] = self._named(lib.LLAMA_TOKEN_TYPE_CONTROL)
        self.user_defined_tokens: Mapping[str, int] = self._named(lib.LLAMA_TOKEN_TYPE_USER_DEFINED)
        named = (self.eos_id, _known(lib.llama_vocab_eot(vocab)), self._header_id("eom_token_id"))
        self.end_ids = end_tokens(self.special_tokens, *named)
        template = header.metadata.get("tokenizer.chat_template")
        self.chat_template = template if isinstance(template, str) else None
        self.adds_space = lib.llama_vocab_type(vocab) == lib.LLAMA_VOCAB_TYPE_SPM and bool(
            header.metadata.get("tokenizer.ggml.add_space_prefix", True)
        )
        self._names = {token: text for text, token in self.special_tokens.items()}
        self._bytes: dict[int, bytes] = {}

    def _named(self, kind: int) -> dict[str, int]:
        """Text -> id of the tokens that the file declares to be of this kind."""
        types = self._header.metadata.get("tokenizer.ggml.token_type")
        if not isinstance(types, ArrayRef):
            return {}
        ids = np.flatnonzero(types.numpy() == kind).tolist()
        texts = [lib.llama_vocab_get_text(self._model.vocab, i) or b"" for i in ids if i < self.vocab_size]
        return {text.decode("utf-8", "replace"): i for text, i in zip(texts, ids, strict=False)}

    def _header_id(self, name: str) -> int | None:
        found = self._header.metadata.get(f"tokenizer.ggml.{name}")
        return found if isinstance(found, int) and 0 <= found < self.vocab_size else None

    def encode(self, text: str, *, parse_special: bool = False) -> list[int]:
        """Token ids of the text; no beginning-of-sequence token is added.

        parse_special  the text of a control token becomes that token; otherwise it is plain text
        """
        if not isinstance(text, str):
            raise TypeError(f"text must be str, got {type(text).__name__}")
        try:
            raw = text.encode()
        except UnicodeEncodeError:
            raise ValueError("the text holds a lone surrogate, which has no bytes in UTF-8") from None
        vocab, room = self._model.vocab, len(raw) + 16
        while True:
            ids = (lib.llama_token * room)()
            count = lib.llama_tokenize(vocab, raw, len(raw), ids, room, False, parse_special)
            if count >= 0:
                return ids[:count]
            if count == -(1 << 31):
                raise ValueError(f"the text is too long to encode at once ({len(raw)} bytes)")
            room = -count

    def token_bytes(self, token: int) -> bytes:
        found = self._bytes.get(token)
        if found is None:
            found = self._bytes[token] = self._piece(token)
        return found

    def _piece(self, token: int) -> bytes:
        if not 0 <= token < self.vocab_size:
            raise ValueError(f"token id {token} is outside 0..{self.vocab_size - 1}")
        vocab, room = self._model.vocab, 64
        while True:
            buffer = ctypes.create_string_buffer(room)
            count = lib.llama_token_to_piece(vocab, int(token), buffer, room, 0, False)
            if count >= 0:
                return buffer.raw[:count]
            room = -count

    def token_text(self, token: int) -> str:
        raw = self.token_bytes(token)
        return raw.decode("utf-8", "backslashreplace") if raw else self._names.get(token, f"<token {token}>")

    @cached_property
    def missing_bytes(self) -> frozenset[int]:
        """Bytes that no token stands for: llama.cpp drops them from a text without a word (SmolLM2 lacks 0xf1)."""
        singles = {raw[0] for i in range(self.vocab_size) if len(raw := self.token_bytes(i)) == 1}
        return frozenset(range(256)) - singles

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over what determines ids: family, pre-tokeniser, token texts and types, merges or scores."""
        digest = hashlib.sha256()
        for key in _ID_KEYS:
            value = self._header.metadata.get(f"tokenizer.ggml.{key}")
            data = value.data if isinstance(value, ArrayRef) else repr(value).encode()
            digest.update(f"{key}:{len(data)}:".encode())
            digest.update(data)
        return digest.hexdigest()


def _known(token: int) -> int | None:
    return token if token >= 0 else None


@contextlib.contextmanager
def vocabulary_of(path: str | Path) -> Iterator[LlamaCppTokenizer]:
    """llama.cpp's tokenizer of a GGUF file without loading its weights."""
    header = read_header(path)
    model = LlamaModel(path, header, vocab_only=True)
    try:
        yield LlamaCppTokenizer(model, header)
    finally:
        model.close()
