"""A masked language model in the place of a runtime: it predicts canvases and keeps no token sequences."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NoReturn, Protocol

from likely.errors import CapabilityError
from likely.runtimes.protocol import Capabilities, FloatArray, IntArray, Limits, Output, Sequence
from likely.runtimes.turns import SharedByThreads


class CanvasPredictor(Protocol):
    """What computes the canvases: see `likely.decoding.diffusion.Predictor`.  context: longest canvas."""

    @property
    def mask_id(self) -> int: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def context(self) -> int: ...
    @property
    def block(self) -> int:
        """Positions of a block of a block-causal model; 0: every position sees all others."""

    def logits(self, ids: IntArray) -> FloatArray: ...


class MaskedRuntime(SharedByThreads):
    """The `Runtime` of a diffusion model: `predictor` does the work, and every call on token sequences is refused.

    Whoever decodes or scores left to right so gets a CapabilityError that says what to use, never a wrong number.
    """

    capabilities = Capabilities(canvas=True)

    def __init__(
        self, predictor: CanvasPredictor, *, dtype: Any, revision: str, free: Callable[[], None] | None = None
    ):
        super().__init__()
        self.predictor, self.dtype, self.revision, self._free = predictor, dtype, revision, free
        self.vocab_size, self.context_length = predictor.vocab_size, predictor.context
        self.limits = Limits(
            sequences=1, leaves=1, tokens_held=predictor.context, tokens_per_call=predictor.context
        )  # fmt: skip

    def free_tokens(self) -> int:
        return self.context_length

    def shutdown(self) -> None:
        """Free what the predictor holds outside of Python; harmless when repeated."""
        if self._free is not None:
            self._free()

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


def check_canvas_options(names: Iterable[str], known: Iterable[str]) -> None:
    """CapabilityError for an option of a runtime that a diffusion model does not have."""
    for name in names:
        if name not in known:
            raise CapabilityError(
                f"{name}= is no option of a diffusion model, which keeps no keys and values by itself"
            )
