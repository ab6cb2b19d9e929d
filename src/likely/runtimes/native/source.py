"""Where the native runtime's weights come from: a GGUF file or a safetensors folder, in transformers' names."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from likely.errors import CapabilityError, ModelError
from likely.formats.families import config_from_header, family_of_header, quant_method
from likely.formats.folder import read_folder, read_json
from likely.formats.gguf import read_header
from likely.formats.safetensors_file import FLOATS
from likely.formats.weights import Stored, Weight, weights_of_gguf
from likely.io.hashes import file_sha256, folder_sha256


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
        try:
            family_of_header(header)
        except ModelError as error:  # another runtime may know it
            raise CapabilityError(f"{path}: {error}") from None
        try:
            weights, factors = weights_of_gguf(path, header)
            config = config_from_header(header, factors)
        except ModelError as error:
            raise ModelError(f"{path}: {error}") from None
        return cls(config, weights, file_sha256(path))

    @classmethod
    def of_folder(cls, folder: Path) -> ModelSource:
        config = read_json(folder / "config.json")
        if not config:
            raise ModelError(f"{folder}: config.json is missing or empty")
        codes = quant_method(config)
        if codes not in ("", "mergequant"):
            raise CapabilityError(f"{folder} holds codes of {codes}, which the native runtime has not: runtime='torch'")
        entries = {n: e for n, e in read_folder(folder).items() if not n.endswith("rotary_emb.inv_freq")}
        known = (*FLOATS, "I8", "I32") if codes else FLOATS
        for name, entry in entries.items():
            if entry.dtype not in known:
                raise ModelError(f'{folder}: tensor "{name}" has type {entry.dtype} (known: {", ".join(known)})')
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
