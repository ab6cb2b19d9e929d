"""Open a model whose keys and values are kept in blocks, its key channels sorted first."""

from __future__ import annotations

from pathlib import Path

import torch

from likely.compression.architecture import DecoderMap, open_module
from likely.compression.block_float.scores import Score, k_sort, v_sort
from likely.compression.calibration_set import CalibrationSet
from likely.io.hashes import file_sha256, folder_sha256
from likely.models.load import Loaded, ModelInfo
from likely.runtimes.kv_format import BFPFormat, parse_kv_format
from likely.runtimes.torch.runtime import DTYPES, TorchRuntime


def load_block_float(
    source: str | Path,
    kv_dtype: str = "bfp12/bfp16",
    *,
    sort: Score | None = "weight",
    calibration: CalibrationSet | None = None,
    dtype: str = "float32",
    context: int | None = None,
    threads: int | None = None,
) -> Loaded:
    """A known model, GGUF file or folder on the torch runtime.  `lm.Model` of its three parts generates.

    kv_dtype  what keys and values are kept as, see `parse_kv_format`
    sort      what key channels are sorted by, see `k_sort` (and values by the norms of W_v); None: they are not.  The
              weights of a model that runs elsewhere stay as they are: the sort happens here, when it is opened
    """
    wanted = parse_kv_format(kv_dtype)
    place, module, tokenizer = open_module(source)
    sha256 = folder_sha256(place) if place.is_dir() else file_sha256(place)
    name = f"torch-{dtype}-{sha256[:16]}"
    if sort is not None:
        decoder = DecoderMap.of(module)
        fmt = wanted.keys if isinstance(wanted.keys, BFPFormat) else None
        k_sort(decoder, score=sort, calibration=calibration, fmt=fmt).apply(decoder)
        v_sort(decoder).apply(decoder)
        name += f"-sorted-{sort}"
    if threads is not None:
        torch.set_num_threads(threads)
    runtime = TorchRuntime(module.to(DTYPES[dtype]), revision=name, kv_dtype=kv_dtype, tokens_held=context)
    info = ModelInfo(
        name=str(source), source=str(place), runtime="torch", dtype=dtype, sha256=sha256,
        tokenizer=tokenizer.fingerprint, template=tokenizer.chat_template is not None,
    )  # fmt: skip
    return Loaded(runtime, tokenizer, info)
