"""A masked language model in the place of a runtime: it predicts canvases and keeps no token sequences."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NoReturn

import torch

from likely.errors import CapabilityError, check_choice
from likely.io.hashes import fingerprint, folder_sha256
from likely.runtimes.protocol import Capabilities, Limits, Output, Sequence
from likely.runtimes.torch.masked.checkpoint import load_masked
from likely.runtimes.torch.masked.predictor import MaskedPredictor
from likely.runtimes.turns import SharedByThreads

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class MaskedRuntime(SharedByThreads):
    """The `Runtime` of a diffusion model: `predictor` does the work, and every call on token sequences is refused.

    Whoever decodes or scores left to right so gets a CapabilityError that says what to use, never a wrong number.
    """

    capabilities = Capabilities(canvas=True)

    def __init__(self, predictor: MaskedPredictor, *, revision: str):
        super().__init__()
        self.predictor, self.revision = predictor, revision
        self.vocab_size, self.context_length = predictor.vocab_size, predictor.context
        self.dtype = predictor.network.lm_head.weight.dtype
        self.limits = Limits(
            sequences=1, leaves=1, tokens_held=predictor.context, tokens_per_call=predictor.context
        )  # fmt: skip

    @classmethod
    def from_folder(
        cls,
        folder: str | Path,
        *,
        dtype: str | None = None,
        device: str | None = None,
        threads: int | None = None,
        revision: str | None = None,
    ) -> MaskedRuntime:
        """A folder that `load_masked` reads.  dtype: "float32" (the default), "bfloat16", "float16"."""
        check_choice("dtype", dtype or "float32", DTYPES)
        if threads is not None:
            torch.set_num_threads(threads)
        network = load_masked(folder, dtype=DTYPES[dtype or "float32"], device=device or "cpu")
        name = revision or fingerprint([folder_sha256(folder), dtype or "float32"])
        return cls(MaskedPredictor(network), revision=name)

    def free_tokens(self) -> int:
        return self.context_length

    def shutdown(self) -> None:
        """Nothing is held outside of the network."""

    def open(self) -> Sequence:
        self._refuse()

    def fork(self, sequence: Sequence, length: int | None = None) -> Sequence:
        self._refuse()

    def forward(self, work: Any) -> list[Output]:
        self._refuse()

    def commit(self, accepted: Any) -> None:
        self._refuse()

    def truncate(self, sequence: Sequence, length: int) -> None:
        self._refuse()

    def close(self, sequence: Sequence) -> None:
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise CapabilityError(
            "this is a diffusion model: it predicts all masked tokens of a canvas at once and gives no log-probability "
            "of a next token. Use generate, score (a lower bound) and likely.decoding.diffusion, or a causal model"
        )
