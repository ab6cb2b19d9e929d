"""The tokenizer inside a GGUF file, built from its metadata: ids are those of llama.cpp.

Two families: "gpt2" (byte-level BPE with merges and a named pre-tokeniser) and "llama" (SentencePiece: merge whatever
gives the best-scored token, bytes as a last resort).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers.models import BPE

from likely.errors import ModelError, nearest
from likely.formats.gguf import ArrayRef, GgufHeader, read_header
from likely.tokenizers.huggingface import HFTokenizer, byte_level_bytes, marked_bytes, space_to_mark
from likely.tokenizers.protocol import end_tokens
from tokenizers import AddedToken, Regex, Tokenizer, decoders, pre_tokenizers

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")

# how text is cut before merging: patterns applied one after the other, each inside the pieces of the one before
SPLITS: dict[str, tuple[str, ...]] = {
    "default": (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"),
    "gpt-2": (_GPT2,),
    "smollm": (r"\p{N}", _GPT2),
    "llama-bpe": (_LLAMA3,),
    "qwen2": (_QWEN2,),
}
SAME_AS = {
    **dict.fromkeys(("phi-2", "mpt", "olmo", "jais", "trillion", "granite-docling", "exaone4", "a.x-4.0"), "gpt-2"),
    **dict.fromkeys(("starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"), "smollm"),
    **dict.fromkeys(
        ("llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "lfm2", "dbrx", "smaug-bpe"), "llama-bpe"
    ),
    **dict.fromkeys(("stablelm2", "deepseek-r1-qwen", "megrez", "hunyuan", "solar-open"), "qwen2"),
}
_WHOLE_WORDS_FIRST = {"llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "lfm2"}


def tokenizer_from_gguf(path: str | Path) -> HFTokenizer:
    """The tokenizer of a GGUF file; ModelError names a family or pre-tokeniser that is not known here."""
    return tokenizer_from_header(read_header(path), str(path))


def tokenizer_from_header(header: GgufHeader, path: str = "GGUF") -> HFTokenizer:
    """Like tokenizer_from_gguf, for a header that was read before."""
    try:
        return _Builder(header).build()
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from None


class _Builder:
    """One file's vocabulary on its way to a tokenizer."""

    def __init__(self, header: GgufHeader):
        self.metadata = header.metadata
        self.model = self.value("model", str, "")
        if self.model not in ("gpt2", "llama"):
            raise ModelError(f'tokenizers of kind "{self.model}" are not supported; "gpt2" and "llama" are')
        self.tokens = self.array("tokens").strings()
        self.tokens = [token or f"[EMPTY_{i}]" for i, token in enumerate(self.tokens)]
        self.vocab = {token: i for i, token in enumerate(self.tokens)}
        if len(self.vocab) != len(self.tokens):
            twice = next(token for i, token in enumerate(self.tokens) if self.vocab[token] != i)
            raise ModelError(f"the token {twice!r} occurs twice in the vocabulary")
        self.types = self._types()
        self.add_prefix = self.value("add_space_prefix", bool, self.model == "llama")

    def value(self, name: str, kind: type, default: Any) -> Any:
        found = self.metadata.get(f"tokenizer.ggml.{name}", default)
        if found is not default and type(found) is not kind:
            raise ModelError(f"tokenizer.ggml.{name} must be {kind.__name__}, found {found!r}")
        return found

    def array(self, name: str, *, items: int | None = None) -> ArrayRef:
        found = self.metadata.get(f"tokenizer.ggml.{name}")
        if not isinstance(found, ArrayRef):
            raise ModelError(f"tokenizer.ggml.{name} is missing or no array")
        if items is not None and len(found) != items:
            raise ModelError(f"tokenizer.ggml.{name} has {len(found)} items, the vocabulary {items}")
        return found

    def token_id(self, name: str) -> int | None:
        found = self.value(name, int, None)
        return found if found is not None and 0 <= found < len(self.tokens) else None

    def _types(self) -> NDArray[Any]:
        if "tokenizer.ggml.token_type" not in self.metadata:
            return np.full(len(self.tokens), NORMAL)
        return self.array("token_type", items=len(self.tokens)).numpy()

    def build(self) -> HFTokenizer:
        backend = self._byte_level() if self.model == "gpt2" else self._marked()
        types = self.types.tolist()
        added = [
            AddedToken(token, normalized=False, special=kind != USER_DEFINED)
            for token, kind in zip(self.tokens, types, strict=True)
            if kind in (CONTROL, UNKNOWN, USER_DEFINED)
        ]
        backend.add_special_tokens([token for token in added if token.special])
        backend.add_tokens([token for token in added if not token.special])
        piece = byte_level_bytes if self.model == "gpt2" else marked_bytes
        pieces = [
            piece(token) if kind in (NORMAL, BYTE) else token.encode() if kind == USER_DEFINED else b""
            for token, kind in zip(self.tokens, types, strict=True)
        ]
        control = {token: i for i, (token, kind) in enumerate(zip(self.tokens, types, strict=True)) if kind == CONTROL}
        ends = end_tokens(control, *map(self.token_id, ("eos_token_id", "eot_token_id", "eom_token_id")))
        pre = self.value("pre", str, "default")
        template = self.metadata.get("tokenizer.chat_template")
        return HFTokenizer(
            backend,
            pieces=pieces,
            control=control,
            bos_id=self.token_id("bos_token_id"),
            eos_id=self.token_id("eos_token_id"),
            end_ids=ends,
            add_bos=self.value("add_bos_token", bool, self.model == "llama" or pre in _WHOLE_WORDS_FIRST),
            chat_template=template if isinstance(template, str) else None,
            unk_id=self.token_id("unknown_token_id"),
            pad_id=self.token_id("padding_token_id"),
            byte_level=self.model == "gpt2",
        )

    def _byte_level(self) -> Tokenizer:
        pre = self.value("pre", str, "default")
        family = SAME_AS.get(pre, pre)
        if family not in SPLITS:
            known = sorted([*SPLITS, *SAME_AS])
            raise ModelError(f'the pre-tokenizer "{pre}" is not known{nearest(pre, known)} (known: {", ".join(known)})')
        merges = []
        for i, merge in enumerate(self.array("merges").strings()):
            at = merge.find(" ", 1)
            pair = (merge[:at], merge[at + 1 :])
            if at < 0 or not all(part in self.vocab for part in (*pair, "".join(pair))):
                raise ModelError(f"merge {i} ({merge!r}) does not join two tokens to a third")
            merges.append(pair)
        backend = Tokenizer(BPE(vocab=self.vocab, merges=merges, ignore_merges=pre in _WHOLE_WORDS_FIRST))
        cuts = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in SPLITS[family]]
        level = pre_tokenizers.ByteLevel(add_prefix_space=self.add_prefix, use_regex=False)
        backend.pre_tokenizer = pre_tokenizers.Sequence([*cuts, level])
        backend.decoder = decoders.ByteLevel()
        return backend

    def _marked(self) -> Tokenizer:
        unk_id = self.token_id("unknown_token_id")
        backend = Tokenizer(
            BPE(
                vocab=self.vocab,
                merges=self._merges_from_scores(),
                byte_fallback=True,
                unk_token=None if unk_id is None else self.tokens[unk_id],
                fuse_unk=True,
            )
        )
        backend.normalizer = space_to_mark(prepend=self.add_prefix)
        steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        backend.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if self.add_prefix else steps)
        return backend

    def _merges_from_scores(self) -> list[tuple[str, str]]:
        """Every way to make a normal token from two others, best-scored token first (ids break ties).

        SentencePiece merges the adjacent pair whose joint text is the best-scored token, so the rank of a merge is the
        rank of what it makes. Control, byte and user-defined tokens never come out of a merge.
        """
        scores = self.array("scores", items=len(self.tokens)).numpy()
        normal = np.flatnonzero(self.types == NORMAL)
        normal = normal[np.argsort(-scores[normal], kind="stable")]
        words = [self.tokens[i] for i in normal]
        known = set(words)
        return [
            (word[:at], word[at:])
            for word in words
            for at in range(1, len(word))
            if word[:at] in known and word[at:] in known
        ]
