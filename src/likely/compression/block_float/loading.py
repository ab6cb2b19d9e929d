"""Open a model whose keys and values are kept in blocks, its key channels sorted first."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch

from likely.compression.architecture import DecoderMap, open_module
from likely.compression.block_float.scores import Score, k_sort, v_sort
from likely.compression.calibration_set import CalibrationSet
from likely.errors import check_choice
from likely.io.hashes import file_sha256, folder_sha256
from likely.models.load import Loaded, ModelInfo, load_local
from likely.runtimes.kv_format import PLAIN, BFPFormat, parse_kv_format
from likely.runtimes.native.model import KvOrders
from likely.runtimes.native.runtime import NativeRuntime
from likely.runtimes.torch.runtime import DTYPES, TorchRuntime


def load_block_float(
    source: str | Path,
    kv_dtype: str = "bfp12/bfp16",
    *,
    sort: Score | None = "weight",
    calibration: CalibrationSet | None = None,
    runtime: Literal["torch", "native"] = "torch",
    dtype: str = "float32",
    context: int | None = None,
    threads: int | None = None,
) -> Loaded:
    """A known model, GGUF file or folder on the torch or the native runtime.  `lm.Model` of its three parts generates.

    kv_dtype  what keys and values are kept as, see `parse_kv_format`; of native, `LocalOptions`
    sort      what key channels are sorted by, see `k_sort` (and values by the norms of W_v); None: they are not.  The
              file stays as it is: torch permutes the weights when it is opened, native what it stores
    dtype     that the runtime computes in
    """
    check_choice("runtime", runtime, ("torch", "native"))
    if runtime == "native" and sort is None:
        return load_local(source, runtime=runtime, dtype=dtype, kv_dtype=kv_dtype, context=context, threads=threads)
    place, module, tokenizer = open_module(source)
    sha256 = folder_sha256(place) if place.is_dir() else file_sha256(place)
    name = f"torch-{dtype}-{sha256[:16]}"
    opened: TorchRuntime | NativeRuntime
    if sort is not None:
        decoder = DecoderMap.of(module)
        keys = parse_kv_format(kv_dtype, plain=(*PLAIN, "q8_0")).keys
        fmt = keys if isinstance(keys, BFPFormat) else None
        by_keys, by_values = k_sort(decoder, score=sort, calibration=calibration, fmt=fmt), v_sort(decoder)
        name += f"-sorted-{sort}"
    if runtime == "native":
        orders = KvOrders(by_keys.orders, by_values.orders)
        opened = NativeRuntime(
            place, dtype=dtype, kv_dtype=kv_dtype, kv_orders=orders, tokens_held=context, threads=threads
        )
    else:
        if sort is not None:
            by_keys.apply(decoder)
            by_values.apply(decoder)
        if threads is not None:
            torch.set_num_threads(threads)
        opened = TorchRuntime(module.to(DTYPES[dtype]), revision=name, kv_dtype=kv_dtype, tokens_held=context)
    info = ModelInfo(
        name=str(source), source=str(place), runtime=runtime, dtype=dtype, sha256=sha256,
        tokenizer=tokenizer.fingerprint, template=tokenizer.chat_template is not None, kv_dtype=opened.kv_dtype,
        kv_bytes_per_token=opened.kv_bytes_per_token,
    )  # fmt: skip
    return Loaded(opened, tokenizer, info)
