"""From a GGUF header and a user's options to settings of a context, checked before llama.cpp sees any of them."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass

from likely.errors import CapabilityError, ModelError, nearest
from likely.formats.gguf import ArrayRef, GgufHeader
from likely.runtimes.llamacpp.library import KV_TYPES, MAX_SEQUENCE_IDS, has_amx
from likely.runtimes.machine import choose_threads

DEFAULT_CONTEXT = 8192  # tokens

# Measured on AVX-512 (`LlamaCppRuntime.is_invariant` probes the machine at hand). Products of these types do not depend
# on how many rows are computed together; those of the second set only differ between one row and several.
ROW_BLIND_TYPES = frozenset({"Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"})
PAIRED_TYPES = frozenset({"F32", "F16", "BF16"})
# with more rows than this, flash attention over an f16 cache takes a kernel that sums in another order
INVARIANT_ROWS = 63
# products of the other types are blocked from 8 rows on, unless weights are repacked: then always
UNBLOCKED_ROWS = 7
FAST_ROWS = 512
# with several threads, flash attention over more cells of an f16 cache than this splits a lone row between them and so
# sums in another order than for two rows
ONE_BLOCK = 256

NARROW = 64  # weights in a row of a matrix


@dataclass(frozen=True)
class LlamaSettings:
    """Settings of a context.

    ubatch    rows computed at once
    lone_row  a row computed alone gets a companion if the cache then spans more cells than this; None: never
    """

    threads: int
    kv: str
    flash: bool
    ubatch: int
    repack: bool
    lone_row: int | None
    dtype: str


def choose_settings(
    header: GgufHeader,
    *,
    context: int | None,
    sequences: int,
    threads: int | None,
    invariant: bool | None,
    kv_dtype: str | None,
) -> LlamaSettings:
    """Choose settings; ValueError for options out of range, CapabilityError for ones that exclude each other."""
    if context is not None and context < 1:
        raise ValueError(f"context must be at least 1 token, got {context}")
    if not 1 <= sequences <= MAX_SEQUENCE_IDS:
        raise ValueError(f"sequences must lie in 1..{MAX_SEQUENCE_IDS}, got {sequences}")
    threads = choose_threads(threads)
    if kv_dtype is not None and kv_dtype not in KV_TYPES:
        raise ValueError(
            f'unknown kv_dtype "{kv_dtype}"{nearest(kv_dtype, KV_TYPES)} (allowed on llama.cpp: {", ".join(KV_TYPES)}; '
            'block formats such as bfp12 need runtime="native" or "torch")'
        )
    if int(header.metadata.get("split.count", 0) or 0) > 1:
        raise ModelError("this is one part of a split model; join the parts first: llama-gguf-split --merge")

    types = {tensor.type for tensor in header.tensors if len(tensor.shape) > 1}
    if kv_dtype is None:
        kv_dtype = "f32" if types == {"F32"} and invariant is not True else "f16"
    flash = kv_dtype != "f32"  # flash attention casts an f32 cache to f16
    if invariant and not flash:
        raise CapabilityError("invariant=True needs flash attention, which has no f32 form; use kv_dtype=f16 or bf16")
    safe_types = types <= ROW_BLIND_TYPES | PAIRED_TYPES
    # a lone row does not use tiles, and their numbers differ by tenths of a nat: they are left to who asks for speed
    tiles = has_amx()
    # with rows of a single block of 32 weights its tiles give other numbers for 32 tokens and more
    too_narrow = tiles and any(len(t.shape) > 1 and t.shape[-1] < NARROW for t in header.tensors)
    strict = flash and (safe_types if invariant is None else invariant)
    lone_row = None
    if strict and types & PAIRED_TYPES:
        lone_row = 0
    elif invariant and kv_dtype == "f16" and threads > 1:  # not by default: a companion doubles the time of a token
        lone_row = ONE_BLOCK
    return LlamaSettings(
        threads=threads,
        kv=kv_dtype,
        flash=flash,
        ubatch=FAST_ROWS if not strict else INVARIANT_ROWS if safe_types else UNBLOCKED_ROWS,
        repack=not too_narrow and (not strict or (safe_types and not tiles)),
        lone_row=lone_row,
        dtype="+".join(sorted(types)).lower() or "f32",
    )


def kv_values_per_token(header: GgufHeader) -> int:
    """Numbers cached per token, keys and values over all layers."""
    layers = int(header.hparam("block_count", 0))
    width = int(header.hparam("embedding_length", 0))
    heads = _per_layer(header, "attention.head_count", layers, 1)
    kv_heads = _per_layer(header, "attention.head_count_kv", layers, None)
    total = 0
    for i in range(layers):
        head = width // max(1, heads[i] or 1)
        key = int(header.hparam("attention.key_length", head))
        value = int(header.hparam("attention.value_length", head))
        total += (heads[i] if kv_heads[i] is None else kv_heads[i]) * (key + value)  # type: ignore[operator]
    return total


def _per_layer(header: GgufHeader, name: str, layers: int, default: int | None) -> list[int | None]:
    value = header.hparam(name, default)
    if isinstance(value, ArrayRef):
        found = [int(v) for v in value.tolist()]
        return [*found, *[default] * layers][:layers]
    return [None if value is None else int(value)] * layers


def check_memory(cells: int, bytes_per_token: float) -> None:
    """Refuse a cache that is larger than the machine: the system would end the process."""
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return
    if cells * bytes_per_token > total:
        raise ModelError(
            f"a cache of {cells} tokens needs {cells * bytes_per_token / 2**30:.1f} GiB and this machine has "
            f"{total / 2**30:.1f} GiB: load the model with a smaller context="
        )


def padded_cells(context: int, spare: int) -> int:
    return 256 * math.ceil((context + spare) / 256)
