"""Where the native runtime's weights come from: a GGUF file or a safetensors folder, in transformers' names."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from likely.errors import ModelError
from likely.formats import families
from likely.formats.gguf import read_header
from likely.formats.safetensors_file import FLOATS, read_folder
from likely.formats.weights import Stored, read_values
from likely.io.hashes import file_sha256, folder_sha256
from likely.runtimes.protocol import FloatArray
from likely.tokenizers.huggingface import read_json


@dataclass(frozen=True)
class Weight:
    stored: Stored
    change: families.Change | None = None

    def whole(self) -> FloatArray:
        """In memory at once, as fp32."""
        values = np.concatenate(list(read_values(self.stored))).reshape(self.stored.shape)
        values = values if self.change is None else np.ascontiguousarray(self.change(values), np.float32)
        if not np.isfinite(values).all():
            raise ModelError(f"{self.stored.file}: a weight is not a finite number")
        return values

    def row_blocks(self, rows: int) -> Iterator[FloatArray]:
        """(rows, width) fp32 blocks from the top, the last one perhaps shorter; only one is in memory."""
        if self.change is not None:
            whole = self.whole()
            yield from (whole[at : at + rows] for at in range(0, len(whole), rows))
            return
        width = self.stored.shape[-1]
        kept = np.empty((0, width), np.float32)
        for values in read_values(self.stored):
            kept = np.concatenate([kept, values.reshape(-1, width)])
            if not np.isfinite(kept).all():
                raise ModelError(f"{self.stored.file}: a weight is not a finite number")
            while len(kept) >= rows:
                yield kept[:rows]
                kept = kept[rows:]
        if len(kept):
            yield kept


@dataclass(frozen=True)
class ModelSource:
    """A model's settings (as in config.json) and weights by transformers' names, and the sha256 of its files."""

    config: dict[str, Any]
    weights: dict[str, Weight]
    sha256: str

    @classmethod
    def open(cls, place: Path) -> ModelSource:
        return cls.of_folder(place) if place.is_dir() else cls.of_gguf(place)

    @classmethod
    def of_gguf(cls, path: Path) -> ModelSource:
        header = read_header(path)
        stored = Stored.in_gguf(path, header)
        try:
            family = families.family_of_header(header)
            factors = None
            if (factors_stored := stored.pop(families.ROPE_FACTORS, None)) is not None:
                factors = np.concatenate(list(read_values(factors_stored)))
            config = families.config_from_header(header, factors)
            heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
            weights = {
                families.folder_name(family, name): Weight(
                    tensor, families.change_to_folder(family, name, heads, kv_heads)
                )
                for name, tensor in stored.items()
            }
        except ModelError as error:
            raise ModelError(f"{path}: {error}") from None
        return cls(config, weights, file_sha256(path))

    @classmethod
    def of_folder(cls, folder: Path) -> ModelSource:
        config = read_json(folder / "config.json")
        if not config:
            raise ModelError(f"{folder}: config.json is missing or empty")
        entries = {n: e for n, e in read_folder(folder).items() if not n.endswith("rotary_emb.inv_freq")}
        for name, entry in entries.items():
            if entry.dtype not in FLOATS:
                raise ModelError(f'{folder}: tensor "{name}" has type {entry.dtype} (known: {", ".join(FLOATS)})')
        weights = {name: Weight(Stored.in_safetensors(entry)) for name, entry in entries.items()}
        return cls(config, weights, folder_sha256(folder))

    def take(self, name: str, shape: tuple[int, ...]) -> Weight:
        """The weight of that name; ModelError where it is missing or has another shape."""
        if name not in self.weights:
            raise ModelError(f'the model has no tensor "{name}"')
        found = self.weights[name]
        if found.stored.shape != shape:
            raise ModelError(f'tensor "{name}" has shape {found.stored.shape}, expected {shape}')
        return found
