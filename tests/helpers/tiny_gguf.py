"""Small valid GGUF files with random weights: what llama.cpp and transformers load in milliseconds.

They are written by the public gguf package, so that our own reader and writer are checked against somebody else's.
Token ids 0..2 are <|endoftext|>, <|im_start|>, <|im_end|>; the rest is a byte-level BPE ("gpt2") or a small
SentencePiece vocabulary with byte fallback ("llama").
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Literal

import gguf
import numpy as np
from coded_rows import CODED, random_rows
from numpy.typing import NDArray

DType = Literal["F32", "F16", "BF16", "Q8_0"]
Types = Callable[[str], str]  # of each matrix by its name; codes of these types are random
CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SAMPLE = (
    "the cat sat on the mat and the other cats sat there too. this is the answer to the question, "
    "then they went on and on with the thing that they had done in the sun."
)
FILE_TYPE = {"F32": 0, "F16": 1, "Q8_0": 7, "BF16": 32}


def byte_alphabet() -> dict[int, str]:
    """The printable stand-in of each byte in a byte-level BPE (GPT-2)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [b for b in range(256) if b not in printable]
    return {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(others)}


def learn_merges(text: str, count: int) -> list[tuple[str, str]]:
    """The first `count` merges of a byte-level BPE trained on the text; ties by order of the pair."""
    alphabet = byte_alphabet()
    words = [[alphabet[b] for b in (" " + word).encode()] for word in text.split()]
    merges: list[tuple[str, str]] = []
    while len(merges) < count:
        pairs = Counter(pair for word in words for pair in pairwise(word))
        if not pairs:
            raise ValueError(f"the sample text gives only {len(merges)} merges, {count} wanted")
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        words = [_merged(word, best) for word in words]
    return merges


def _merged(word: list[str], pair: tuple[str, str]) -> list[str]:
    out: list[str] = []
    for piece in word:
        if out and (out[-1], piece) == pair:
            out[-1] += piece
        else:
            out.append(piece)
    return out


def write_tiny_llama(
    path: str | Path,
    *,
    seed: int = 0,
    vocab: int = 320,
    layers: int = 2,
    dim: int = 32,
    heads: int = 4,
    kv_heads: int = 2,
    ffn: int = 64,
    context: int = 256,
    dtype: DType | Types = "F32",
    tied: bool = False,
    tokenizer: Literal["gpt2", "llama"] = "gpt2",
    pre: str = "gpt-2",
    add_bos: bool = False,
    arch: Literal["llama", "qwen2", "qwen3", "llada", "dream"] = "llama",
    chat_template: str | None = CHAT_TEMPLATE,
    mask_id: int | None = None,
) -> Path:
    """A Llama (or Qwen) of `layers` blocks. vocab >= 259: 256 bytes, 3 control tokens, then merges.

    llada has the tensors of a Llama, dream those of a Qwen 2; both are written as llama.cpp's converter does.
    """
    path, rng = Path(path), np.random.default_rng(seed)
    head = 128 if arch == "qwen3" else dim // heads  # transformers reads no other head size of a Qwen 3 from GGUF
    writer = gguf.GGUFWriter(str(path), arch)
    writer.add_context_length(context)
    writer.add_embedding_length(dim)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(ffn)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    if arch == "qwen3":
        writer.add_key_length(head)
        writer.add_value_length(head)
    else:
        writer.add_rope_dimension_count(head)
    writer.add_vocab_size(vocab)
    if arch in ("llada", "dream"):
        writer.add_causal_attention(False)
    if arch == "llada":
        writer.add_diffusion_shift_logits(False)
    if mask_id is not None:
        writer.add_mask_token_id(mask_id)
    _add_tokenizer(writer, tokenizer, vocab, pre, add_bos, chat_template)

    shapes = {"token_embd": (vocab, dim), "output_norm": (dim,)} | ({} if tied else {"output": (vocab, dim)})
    for i in range(layers):
        shapes |= {
            f"blk.{i}.attn_norm": (dim,),
            f"blk.{i}.attn_q": (heads * head, dim),
            f"blk.{i}.attn_k": (kv_heads * head, dim),
            f"blk.{i}.attn_v": (kv_heads * head, dim),
            f"blk.{i}.attn_output": (dim, heads * head),
            f"blk.{i}.ffn_norm": (dim,),
            f"blk.{i}.ffn_gate": (ffn, dim),
            f"blk.{i}.ffn_up": (ffn, dim),
            f"blk.{i}.ffn_down": (dim, ffn),
        }
        if arch == "qwen3":
            shapes |= {f"blk.{i}.attn_q_norm": (head,), f"blk.{i}.attn_k_norm": (head,)}
    tensors = {f"{name}.weight": _random(rng, shape, dim) for name, shape in shapes.items()}
    if arch in ("qwen2", "dream"):
        for i in range(layers):
            for name, width in (("q", heads * head), ("k", kv_heads * head), ("v", kv_heads * head)):
                tensors[f"blk.{i}.attn_{name}.bias"] = 0.1 * _random(rng, (width,), dim)
    return _finish(writer, tensors, dtype, path)


def write_tiny_gemma3(
    path: str | Path,
    *,
    seed: int = 0,
    vocab: int = 320,
    layers: int = 7,
    dim: int = 32,
    heads: int = 2,
    kv_heads: int = 1,
    head: int = 256,
    ffn: int = 64,
    context: int = 256,
    sliding_window: int = 8,
    dtype: DType | Types = "F32",
    tokenizer: Literal["gpt2", "llama"] = "gpt2",
    add_bos: bool = True,
) -> Path:
    """A Gemma 3: five sliding layers, then a full one, and so on; tied embeddings.

    head  keep 256: transformers takes no other attention scale from a GGUF file
    """
    path, rng = Path(path), np.random.default_rng(seed)
    writer = gguf.GGUFWriter(str(path), "gemma3")
    writer.add_context_length(context)
    writer.add_embedding_length(dim)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(ffn)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(1_000_000.0)
    writer.add_sliding_window(sliding_window)
    _add_tokenizer(writer, tokenizer, vocab, "gpt-2", add_bos, CHAT_TEMPLATE)

    shapes: dict[str, tuple[int, ...]] = {"token_embd": (vocab, dim), "output_norm": (dim,)}
    for i in range(layers):
        shapes |= {
            f"blk.{i}.attn_norm": (dim,),
            f"blk.{i}.attn_q": (heads * head, dim),
            f"blk.{i}.attn_k": (kv_heads * head, dim),
            f"blk.{i}.attn_v": (kv_heads * head, dim),
            f"blk.{i}.attn_q_norm": (head,),
            f"blk.{i}.attn_k_norm": (head,),
            f"blk.{i}.attn_output": (dim, heads * head),
            f"blk.{i}.post_attention_norm": (dim,),
            f"blk.{i}.ffn_norm": (dim,),
            f"blk.{i}.ffn_gate": (ffn, dim),
            f"blk.{i}.ffn_up": (ffn, dim),
            f"blk.{i}.ffn_down": (dim, ffn),
            f"blk.{i}.post_ffw_norm": (dim,),
        }
    tensors = {f"{name}.weight": _random(rng, shape, dim) for name, shape in shapes.items()}
    return _finish(writer, tensors, dtype, path)


def _random(rng: np.random.Generator, shape: tuple[int, ...], dim: int) -> NDArray[np.float32]:
    """Norms near 1; matrices scaled so that activations and logits have a standard deviation of about 1 to 2."""
    noise = rng.standard_normal(shape)
    return (1 + 0.1 * noise if len(shape) == 1 else 1.5 * noise / np.sqrt(shape[1])).astype(np.float32)


def _finish(writer: gguf.GGUFWriter, tensors: dict[str, NDArray[np.float32]], dtype: DType | Types, path: Path) -> Path:
    writer.add_file_type(FILE_TYPE[dtype] if isinstance(dtype, str) else 0)
    for name, values in tensors.items():
        own = dtype if isinstance(dtype, str) else dtype(name)
        kind = gguf.GGMLQuantizationType[own]
        if values.ndim == 1 or own == "F32":
            writer.add_tensor(name, values)
        elif own in CODED and not isinstance(dtype, str):
            seed = np.random.default_rng(len(name) + sum(values.shape) + int(1e6 * abs(float(values[0, 0]))))
            writer.add_tensor(name, random_rows(own, values.shape, seed, float(values.std())), raw_dtype=kind)
        else:
            writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_tokenizer(
    writer: gguf.GGUFWriter, kind: str, vocab: int, pre: str, add_bos: bool, chat_template: str | None
) -> None:
    room = vocab - len(CONTROL) - 256
    if room < 0:
        raise ValueError(f"vocab must be at least {256 + len(CONTROL)}, got {vocab}")
    merges = learn_merges(SAMPLE, room)
    types = [gguf.TokenType.CONTROL] * len(CONTROL)
    writer.add_tokenizer_model(kind)
    if kind == "gpt2":
        words = ["".join(pair) for pair in merges]
        tokens = [*CONTROL, *(byte_alphabet()[b] for b in range(256)), *words]
        types += [gguf.TokenType.NORMAL] * (len(tokens) - len(CONTROL))
        writer.add_tokenizer_pre(pre)
        writer.add_token_merges([f"{a} {b}" for a, b in merges])
    else:
        # single letters and the space marker first, then longer pieces; a piece's score is minus its rank
        words = ["".join(pair).replace("Ġ", "▁") for pair in merges]
        words = list(dict.fromkeys(["▁", *"abcdefghijklmnopqrstuvwxyz.,", *words]))[:room]
        filler = [f"[unused{i}]" for i in range(room - len(words))]
        tokens = [*CONTROL, *(f"<0x{b:02X}>" for b in range(256)), *words, *filler]
        types += [gguf.TokenType.BYTE] * 256 + [gguf.TokenType.NORMAL] * len(words)
        types += [gguf.TokenType.UNUSED] * len(filler)
        writer.add_tokenizer_pre("default")
        writer.add_token_scores([0.0] * (len(CONTROL) + 256) + [-float(i) for i in range(room)])
        writer.add_add_space_prefix(False)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_add_bos_token(add_bos)
    if chat_template is not None:
        writer.add_chat_template(chat_template)
