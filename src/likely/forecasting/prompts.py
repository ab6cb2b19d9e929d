"""What a language model is told of a patch: its time, its statistics; and a cache of what it makes of such texts.

SMETimes, arXiv:2503.03594, section 3: the last token's hidden state of a short description joins the patch's numbers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from likely.errors import DataError
from likely.io.hashes import fingerprint
from likely.io.whole_file import write_whole_file
from likely.metrics.checks import Floats

PromptKind = Literal["stats", "time", "none"]
PROMPTS = ("stats", "time", "none")
Vectors = NDArray[np.float32]


def time_prompt(first: np.datetime64, last: np.datetime64) -> str:
    return f"From {_shown(first)} to {_shown(last)}"


def stats_prompt(first: np.datetime64, last: np.datetime64, values: Floats) -> str:
    """Time stamps, mean, standard deviation and change (last less first) of a patch, four decimals.

    values  (S,) standardised; what is forecast later is described by its forecast
    """
    change = values[-1] - values[0]
    return f"{time_prompt(first, last)}: mean {values.mean():.4f}, std {values.std():.4f}, change {change:.4f}"


def patch_prompts(
    kind: PromptKind, first: NDArray[np.datetime64], last: NDArray[np.datetime64], values: Floats
) -> list[str]:
    """One text for each of N patches.  first, last (N,), values (N, S)."""
    if kind == "time":
        return [time_prompt(*pair) for pair in zip(first, last, strict=True)]
    return [stats_prompt(*row) for row in zip(first, last, values, strict=True)]


def _shown(time: np.datetime64) -> str:
    return str(time.astype("datetime64[m]")).replace("T", " ")


class EmbeddingCache:
    """Each text is embedded once.

    embed     texts -> (N, D)
    revision  names what embeds: weights and layers
    file      where vectors are kept between runs, read at once and written by `save`; one of another revision is not
              used
    """

    def __init__(self, embed: Callable[[Sequence[str]], Vectors], revision: str, file: str | Path | None = None):
        self._embed, self._revision = embed, revision
        self._file = None if file is None else Path(file)
        self._place: dict[str, int] = {}
        self._vectors: Vectors | None = None
        if self._file is not None and self._file.exists():
            self._read(self._file)

    def __len__(self) -> int:
        return len(self._place)

    def vectors(self, texts: Sequence[str]) -> Vectors:
        """(N, D), one for each text in order."""
        keys = [fingerprint(text, 32) for text in texts]
        new = {key: text for key, text in zip(keys, texts, strict=True) if key not in self._place}
        if new:
            found = self._embed(list(new.values()))
            self._vectors = found if self._vectors is None else np.concatenate([self._vectors, found])
            for key in new:
                self._place[key] = len(self._place)
        assert self._vectors is not None
        return self._vectors[[self._place[key] for key in keys]]

    def save(self) -> None:
        """Write the file, where there is one and something to keep."""
        if self._file is None or self._vectors is None:
            return
        from safetensors.numpy import save

        about = {"revision": self._revision, "keys": " ".join(self._place)}
        write_whole_file(self._file, save({"vectors": self._vectors}, {"prompts": json.dumps(about)}))

    def _read(self, file: Path) -> None:
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(file, "np") as opened:
                about = json.loads((opened.metadata() or {})["prompts"])
                keys, vectors = about["keys"].split(), opened.get_tensor("vectors")
        except (OSError, ValueError, KeyError, AttributeError, SafetensorError) as error:
            raise DataError(f"{file}: not a cache of prompts ({error}): remove it") from None
        if about["revision"] == self._revision and len(keys) == len(vectors):
            self._place, self._vectors = {key: i for i, key in enumerate(keys)}, vectors
