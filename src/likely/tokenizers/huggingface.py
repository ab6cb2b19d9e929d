"""A tokenizer over the `tokenizers` package: from a safetensors folder here, from a GGUF file in tokenizers/gguf.py."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers.normalizers import Normalizer
from tokenizers.processors import TemplateProcessing

from likely.errors import ModelError
from likely.formats.folder import read_json
from likely.io.hashes import fingerprint
from tokenizers import Tokenizer as BackendTokenizer

SPACE_MARK = "▁"
LONG_TEXT = 2048  # characters; such a text is encoded without Python's lock, which other threads would miss for long
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def byte_alphabet() -> list[str]:
    """The printable character that stands for each byte in a byte-level BPE (Radford et al. 2019, GPT-2).

    Printable Latin-1 bytes stand for themselves, the others for the characters from U+0100 on.
    """
    keep = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    spare = iter(range(0x100, 0x200))
    return [chr(b) if b in keep else chr(next(spare)) for b in range(256)]


_BYTE_OF = {char: b for b, char in enumerate(byte_alphabet())}


def byte_level_bytes(token: str) -> bytes:
    """Bytes of a byte-level token; a token that is not spelled in the alphabet stands for itself."""
    try:
        return bytes(_BYTE_OF[char] for char in token)
    except KeyError:
        return token.encode("utf-8", "replace")


def marked_bytes(token: str) -> bytes:
    """Bytes of a SentencePiece token: <0xNN> is one byte, the mark U+2581 is a space."""
    if match := _BYTE_TOKEN.fullmatch(token):
        return bytes([int(match[1], 16)])
    return token.replace(SPACE_MARK, " ").encode("utf-8", "replace")


class HFTokenizer:
    """The Tokenizer protocol over a tokenizers.Tokenizer.

    pieces   for each id the bytes it adds to the text; b"" for control tokens and for ids without a token
    control  text of each control token -> id
    Text between "special" tokens is encoded the same whether they are parsed or not; they are plain text unless
    parse_special is given, so that a document that contains "<|im_end|>" cannot end a turn.
    """

    def __init__(
        self,
        backend: BackendTokenizer,
        *,
        pieces: list[bytes],
        control: Mapping[str, int],
        bos_id: int | None,
        eos_id: int | None,
        end_ids: Iterable[int] = (),
        add_bos: bool = False,
        chat_template: str | None = None,
        unk_id: int | None = None,
        pad_id: int | None = None,
        byte_level: bool = True,
    ):
        if backend.post_processor is not None:
            backend.post_processor = None  # `begin` is the one place that adds a beginning-of-sequence token
        backend.no_truncation()
        backend.no_padding()
        self._backend, self._pieces, self._lock = backend, pieces, threading.Lock()
        self.vocab_size = len(pieces)
        self.bos_id, self.eos_id, self.unk_id, self.pad_id = bos_id, eos_id, unk_id, pad_id
        self.end_ids = frozenset(end_ids) | (frozenset() if eos_id is None else frozenset({eos_id}))
        self.add_bos = add_bos and bos_id is not None
        self.chat_template = chat_template
        self.special_tokens: Mapping[str, int] = dict(control)
        self.byte_level = byte_level
        self._name_of = {token: text for text, token in control.items()}

    @classmethod
    def from_folder(cls, folder: str | Path) -> HFTokenizer:
        """From tokenizer.json and, where present, tokenizer_config.json, special_tokens_map.json,
        generation_config.json, config.json (end-of-text ids) and chat_template.jinja."""
        folder = Path(folder)
        file = folder / "tokenizer.json"
        if not file.is_file():
            raise ModelError(f"{folder}: tokenizer.json is missing; a slow tokenizer must be saved as a fast one first")
        try:
            backend = BackendTokenizer.from_str(file.read_text("utf-8"))
        except Exception as error:  # the package raises plain Exception for a malformed file
            raise ModelError(f"{file}: not a tokenizer ({str(error).splitlines()[0]})") from None
        settings = read_json(folder / "special_tokens_map.json") | read_json(folder / "tokenizer_config.json")
        return cls(backend, **_from_settings(backend, settings, folder))

    def encode(self, text: str, *, parse_special: bool = False) -> list[int]:
        """Token ids of the text; no beginning-of-sequence token is added."""
        try:
            with self._lock:  # the switch belongs to the backend, which other threads may be using
                self._backend.encode_special_tokens = not parse_special
                if len(text) < LONG_TEXT:
                    return list(self._backend.encode(text, add_special_tokens=False).ids)
                [found] = self._backend.encode_batch([text], add_special_tokens=False)
                return list(found.ids)
        except (TypeError, UnicodeEncodeError):
            if not isinstance(text, str):
                raise TypeError(f"text must be str, got {type(text).__name__}") from None
            raise ValueError("the text holds a lone surrogate, which has no bytes in UTF-8") from None

    def token_bytes(self, token: int) -> bytes:
        if not 0 <= token < self.vocab_size:
            raise ValueError(f"token id {token} is outside 0..{self.vocab_size - 1}")
        return self._pieces[token]

    def token_text(self, token: int) -> str:
        raw = self.token_bytes(token)
        return raw.decode("utf-8", "backslashreplace") if raw else self._name_of.get(token, f"<token {token}>")

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over what determines ids: normaliser, pre-tokeniser, vocabulary, merges and added tokens."""
        with self._lock:
            decoder, self._backend.decoder = self._backend.decoder, None
            self._backend.encode_special_tokens = False
            try:
                return fingerprint(self._backend.to_str(), 64)
            finally:
                self._backend.decoder = decoder

    def to_json(self) -> str:
        """The content of a tokenizer.json, which adds the beginning-of-sequence token where the model wants one."""
        with self._lock:
            self._backend.encode_special_tokens = False
            if self.add_bos and self.bos_id is not None:
                text = self._name_of.get(self.bos_id) or str(self._backend.id_to_token(self.bos_id))
                self._backend.post_processor = TemplateProcessing(
                    single=f"{text} $A", pair=f"{text} $A {text}:1 $B:1", special_tokens=[(text, self.bos_id)]
                )
            try:
                return self._backend.to_str(pretty=True)
            finally:
                if self._backend.post_processor is not None:
                    self._backend.post_processor = None

    @property
    def backend(self) -> BackendTokenizer:
        """The wrapped tokenizers.Tokenizer, without a post-processor. Do not change it."""
        return self._backend


def _from_settings(backend: BackendTokenizer, settings: dict, folder: Path) -> dict[str, Any]:
    """Arguments of HFTokenizer for a folder's files."""
    byte_level = _is_byte_level(backend, folder)
    piece_bytes = byte_level_bytes if byte_level else marked_bytes
    vocab = backend.get_vocab(with_added_tokens=True)
    pieces = [b""] * (max(vocab.values(), default=-1) + 1)
    for text, token in vocab.items():
        pieces[token] = piece_bytes(text)
    control = {}
    for token, added in backend.get_added_tokens_decoder().items():
        pieces[token] = b"" if added.special else added.content.encode()
        if added.special:
            control[added.content] = token

    def id_of(name: str) -> int | None:
        value = settings.get(name)
        text = value.get("content") if isinstance(value, dict) else value
        return vocab.get(text) if isinstance(text, str) else None

    bos_id, eos_id = id_of("bos_token"), id_of("eos_token")
    end_ids = _end_ids(folder, len(pieces))
    add_bos = settings.get("add_bos_token")
    if not isinstance(add_bos, bool):
        first = backend.encode("a", add_special_tokens=True).ids[:1]
        add_bos = bos_id is not None and first == [bos_id]
    return {
        "pieces": pieces,
        "control": control,
        "bos_id": bos_id,
        "eos_id": eos_id if eos_id is not None or not end_ids else end_ids[0],
        "end_ids": end_ids,
        "add_bos": add_bos,
        "chat_template": _chat_template(folder, settings),
        "unk_id": id_of("unk_token"),
        "pad_id": id_of("pad_token"),
        "byte_level": byte_level,
    }


def _is_byte_level(backend: BackendTokenizer, folder: Path) -> bool:
    """Whether tokens are spelled in the byte alphabet; ModelError for families with neither spelling."""
    kind = type(backend.model).__name__
    if kind not in ("BPE", "Unigram"):
        raise ModelError(f"{folder}: {kind} tokenizers are not supported; BPE and Unigram are")
    steps = [part for part in (backend.decoder, backend.pre_tokenizer) if part is not None]
    return any(b'"ByteLevel"' in step.__getstate__() for step in steps)


def _end_ids(folder: Path, vocab_size: int) -> list[int]:
    """Ids that end a generation: those of generation_config.json, else of config.json."""
    for name in ("generation_config.json", "config.json"):
        value = read_json(folder / name).get("eos_token_id")
        found = value if isinstance(value, list) else [value]
        ids = [i for i in found if isinstance(i, int) and 0 <= i < vocab_size]
        if ids:
            return ids
    return []


def _chat_template(folder: Path, settings: dict) -> str | None:
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text("utf-8")
    value = settings.get("chat_template")
    if isinstance(value, list):  # several named templates
        named = {item.get("name"): item.get("template") for item in value if isinstance(item, dict)}
        value = named.get("default")
    return value if isinstance(value, str) else None


def space_to_mark(*, prepend: bool) -> Normalizer:
    """Spaces become U+2581; with `prepend` every stretch of text gets one in front."""
    from tokenizers import normalizers

    replace = normalizers.Replace(" ", SPACE_MARK)
    return normalizers.Sequence([normalizers.Prepend(SPACE_MARK), replace]) if prepend else replace
