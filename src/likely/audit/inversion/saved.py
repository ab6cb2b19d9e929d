"""A trained inverter in one safetensors file, for other prompts and other days, without training again.

The file holds the network, the scale of what it reads, and the words that it can write: those of the prompts that it
was trained on, though not the prompts.  What it belongs to stands beside them as JSON: the model's revision, the tokens
whose log-probabilities it reads, and how many steps.  A digest over all of it shows a file that was changed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from likely.audit.inversion.inverter import InverterConfig, PromptPieces, StepScale, build_network
from likely.audit.inversion.train import Inverter
from likely.errors import DataError
from likely.io.whole_file import check_target, write_for_user
from likely.training.loop import import_torch

FORMAT = "likely-inverter-1"
MOST_BYTES = 2**30
_SCALE = ("mean", "deviation", "ids")


@dataclass(frozen=True)
class SavedInverter:
    """An inverter of undefended log-probabilities, and what it reads.

    revision  of the runtime whose answers it was trained on
    tokens    whose log-probabilities each step holds, the anchor first;  steps: of each answer
    """

    inverter: Inverter
    revision: str
    tokens: tuple[int, ...]
    steps: int

    def check_model(self, revision: str) -> None:
        """DataError for a model whose log-probabilities it has never read."""
        if revision != self.revision:
            raise DataError(
                f"the inverter was trained on another model or runtime ({self.revision[:24]}, this one is "
                f"{revision[:24]}): train one for this model"
            )

    def save(self, path: Path) -> None:
        """Write the file, whole or not at all."""
        from safetensors.numpy import save

        check_target(path, (".safetensors",))
        inverter = self.inverter
        arrays = {f"network.{name}": value.numpy() for name, value in inverter.network_.state_dict().items()}
        scale = {name: value for name in _SCALE if (value := getattr(inverter.scale_, name)) is not None}
        arrays |= {f"scale.{name}": np.asarray(value) for name, value in scale.items()}
        arrays = {name: np.ascontiguousarray(value) for name, value in sorted(arrays.items())}
        about = {
            "config": asdict(inverter.config), "pieces": inverter.pieces_.listed, "revision": self.revision,
            "tokens": list(self.tokens), "steps": self.steps,
        }  # fmt: skip
        text = json.dumps(about, ensure_ascii=False)
        head = {"format": FORMAT, "digest": _digest(arrays, text), "about": text}
        write_for_user(path, save(arrays, {"likely": json.dumps(head)}))  # one field: several come in any order

    @classmethod
    def load(cls, path: Path) -> SavedInverter:
        """What `save` wrote; DataError for any other file."""
        from safetensors import SafetensorError, safe_open

        try:
            if path.stat().st_size > MOST_BYTES:
                raise DataError(f"{path} is larger than {MOST_BYTES // 2**20} MiB: no saved inverter")
            with safe_open(path, framework="numpy") as file:
                head = json.loads((file.metadata() or {}).get("likely", "{}"))
                if head.get("format") != FORMAT:
                    raise DataError(f"{path} is no saved inverter: likely audit invert --save-inverter writes them")
                arrays = {name: file.get_tensor(name) for name in sorted(file.keys())}
            if _digest(arrays, head["about"]) != head["digest"]:
                raise DataError(f"{path} was changed after it was written: its digest does not fit")
            return _restored(arrays, json.loads(head["about"]))
        except OSError as error:
            raise DataError(f"cannot read {path}: {error.strerror or error}") from None
        except (AttributeError, KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"{path} is damaged ({type(error).__name__}): {str(error).splitlines()[0][:200]}") from None


def _restored(arrays: Mapping[str, Any], about: Mapping[str, Any]) -> SavedInverter:
    torch = import_torch()
    inverter = Inverter(InverterConfig(**about["config"]))
    scale = StepScale(**{name: arrays.get(f"scale.{name}") for name in _SCALE})
    inverter.scale_, inverter.pieces_ = scale, PromptPieces.of_listed(about["pieces"])
    ratios = None if scale.mean is None else len(scale.mean)
    known = 0 if scale.ids is None else len(scale.ids)
    with torch.device("meta"):  # sizes that the arrays do not have cost nothing and are refused below
        network = build_network(inverter.config, len(inverter.pieces_), ratios=ratios, known_ids=known)
    state = {name.removeprefix("network."): torch.from_numpy(value) for name, value in arrays.items()
             if name.startswith("network.")}  # fmt: skip
    network.load_state_dict(state, strict=True, assign=True)
    inverter.network_ = network.eval()
    return SavedInverter(inverter, str(about["revision"]), tuple(map(int, about["tokens"])), int(about["steps"]))


def _digest(arrays: Mapping[str, Any], about: str) -> str:
    """sha256 over names, types, shapes and bytes of the arrays, and the JSON beside them."""
    found = hashlib.sha256(about.encode())
    for name, value in arrays.items():
        found.update(f"{name} {value.dtype} {value.shape} ".encode())
        found.update(np.ascontiguousarray(value).tobytes())
    return found.hexdigest()
