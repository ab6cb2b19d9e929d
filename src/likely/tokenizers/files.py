"""A tokenizer from one kind of model file to the other: into a transformers folder, or into GGUF metadata."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from likely.errors import ModelError
from likely.formats.folder import write_json
from likely.formats.gguf import ArrayRef, GgufHeader
from likely.formats.writing import FLOAT32, INT32, Typed, number_array, string_array, u32
from likely.tokenizers.gguf import BYTE, CONTROL, NORMAL, SPLITS, UNUSED, USER_DEFINED, tokenizer_from_header
from likely.tokenizers.huggingface import HFTokenizer
from likely.tokenizers.parity import compare_tokenizers, mismatch_message

Pairs = dict[str, str | bool | Typed | ArrayRef]


def save_tokenizer(tokenizer: HFTokenizer, folder: Path, *, context_length: int) -> None:
    """Write tokenizer.json, tokenizer_config.json and generation_config.json; transformers gives the same ids."""
    (folder / "tokenizer.json").write_text(tokenizer.to_json(), "utf-8")
    named = {"bos_token": tokenizer.bos_id, "eos_token": tokenizer.eos_id, "unk_token": tokenizer.unk_id}
    named["pad_token"] = tokenizer.pad_id
    texts = {name: tokenizer.backend.id_to_token(i) for name, i in named.items() if i is not None}
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": tokenizer.add_bos,
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": context_length,
        **texts,
    }
    if tokenizer.chat_template is not None:
        settings["chat_template"] = tokenizer.chat_template
    write_json(folder / "tokenizer_config.json", settings)
    ends = sorted(tokenizer.end_ids, key=lambda i: (i != tokenizer.eos_id, i))
    ids = {"bos_token_id": tokenizer.bos_id, "eos_token_id": ends or None, "pad_token_id": tokenizer.pad_id}
    write_json(folder / "generation_config.json", {name: value for name, value in ids.items() if value is not None})


def metadata_from_folder(folder: Path, *, vocab_size: int) -> Pairs:
    """The tokenizer of a folder as GGUF metadata, for a model of vocab_size rows.

    GGUF names a pre-tokenizer instead of describing it, so the candidates are tried on the parity battery; ModelError
    if none gives the ids of the folder.
    """
    original = HFTokenizer.from_folder(folder)
    kind = type(original.backend.model).__name__
    if kind != "BPE":
        raise ModelError(f"{folder}: a {kind} tokenizer cannot be written to GGUF (BPE can)")
    if original.vocab_size > vocab_size:
        raise ModelError(f"{folder}: the tokenizer has {original.vocab_size} tokens, the model only {vocab_size} rows")
    pairs = _ids(original) | _vocabulary(original, vocab_size)
    candidates: list[Pairs]
    if original.byte_level:
        pairs["tokenizer.ggml.model"] = "gpt2"
        candidates = [{"tokenizer.ggml.pre": pre} for pre in sorted(SPLITS, key="default".__eq__)]
    else:
        pairs |= {"tokenizer.ggml.model": "llama", "tokenizer.ggml.pre": "default"}
        candidates = [{"tokenizer.ggml.add_space_prefix": prefix} for prefix in (False, True)]
    failures = []
    for candidate in candidates:
        mismatches = compare_tokenizers(original, _tokenizer_of(pairs | candidate))
        if not mismatches:
            return pairs | candidate
        failures.append(mismatches)
    best = min(failures, key=len)
    raise ModelError(
        f"{folder}: GGUF cannot express this tokenizer. {mismatch_message(best, a='it', b='its nearest form')}"
    )


def _tokenizer_of(pairs: Pairs) -> HFTokenizer:
    plain = {key: value.value if isinstance(value, Typed) else value for key, value in pairs.items()}
    header = GgufHeader(3, {"general.architecture": "none", **plain}, [], 0, 32)
    return tokenizer_from_header(header, "the GGUF form")


def _ids(tokenizer: HFTokenizer) -> Pairs:
    pairs: Pairs = {"tokenizer.ggml.add_bos_token": tokenizer.add_bos}
    named = {"bos": tokenizer.bos_id, "eos": tokenizer.eos_id, "unknown": tokenizer.unk_id, "padding": tokenizer.pad_id}
    named["eot"] = min(tokenizer.end_ids - {tokenizer.eos_id}, default=None)
    pairs |= {f"tokenizer.ggml.{name}_token_id": u32(i) for name, i in named.items() if i is not None}
    if tokenizer.chat_template is not None:
        pairs["tokenizer.chat_template"] = tokenizer.chat_template
    return pairs


def _vocabulary(tokenizer: HFTokenizer, vocab_size: int) -> Pairs:
    """Tokens, their types, and merges or scores; rows without a token become unused ones."""
    tokens = [f"[PAD{i}]" for i in range(vocab_size)]
    types = [UNUSED] * vocab_size
    for token, i in tokenizer.backend.get_vocab(with_added_tokens=True).items():
        byte = not tokenizer.byte_level and re.fullmatch(r"<0x[0-9A-F]{2}>", token)
        tokens[i], types[i] = token, BYTE if byte else NORMAL
    for i, added in tokenizer.backend.get_added_tokens_decoder().items():
        tokens[i], types[i] = added.content, CONTROL if added.special else USER_DEFINED
    found = json.loads(tokenizer.backend.model.__getstate__())["merges"]
    merges = [pair if isinstance(pair, list) else pair.split(" ", 1) for pair in found]
    pairs: Pairs = {
        "tokenizer.ggml.tokens": string_array(tokens),
        "tokenizer.ggml.token_type": number_array(types, INT32),
    }
    if tokenizer.byte_level:
        pairs["tokenizer.ggml.merges"] = string_array(" ".join(pair) for pair in merges)
    else:
        pairs["tokenizer.ggml.scores"] = number_array(_scores(tokens, types, merges), FLOAT32)
    return pairs


def _scores(tokens: list[str], types: list[int], merges: list[list[str]]) -> list[float]:
    """Minus the order in which merges first make each token; letters, which no merge makes, come last."""
    order: dict[str, int] = {}
    for left, right in merges:
        order.setdefault(left + right, len(order))
    rest = iter(range(len(order), len(order) + len(tokens)))
    ranks = (order[token] if token in order else next(rest) for token in tokens)
    return [-float(rank) if kind == NORMAL else 0.0 for rank, kind in zip(ranks, types, strict=True)]
