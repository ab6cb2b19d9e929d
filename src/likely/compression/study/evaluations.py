"""What a study measures of a compressed model: anything with a name that turns a model into numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from likely.compression.calibration_set import CalibrationSet, calibration_set
from likely.compression.evaluate import Likelihoods, RememberedRows

KEPT = ("kl", "kl_se", "kl_median", "kl_p99", "top1", "perplexity", "reference_perplexity", "log_ratio", "delta_p_rms")


class Evaluation(Protocol):
    """One column of a study's table.

    name     as the table calls it
    key      what the numbers depend on beside both models, as JSON: a cell is measured again when it changes
    measure  numbers by name; None for one that this data cannot give
    close    frees what was kept of an original; it may be measured again afterwards
    """

    @property
    def name(self) -> str: ...

    def key(self, original: Likelihoods) -> Mapping[str, Any]: ...

    def measure(self, original: Likelihoods, candidate: Likelihoods) -> Mapping[str, float | None]: ...

    def close(self) -> None: ...


@dataclass(eq=False)
class LikelihoodEvaluation:
    """KL(original ‖ candidate) per token and its companions (`LikelihoodReport`) on windows of a text.

    name  of the text, as for `calibration_set`: its first `windows` windows of `length` tokens
    The rows of one original are kept on disk for all its candidates (4 · tokens · vocabulary bytes).
    """

    name: str
    windows: int = 8
    length: int = 256
    data_dir: str | Path | None = None
    _texts: dict[str, CalibrationSet] = field(default_factory=dict, repr=False)  # by fingerprint of the tokenizer
    _rows: tuple[Likelihoods, RememberedRows] | None = field(default=None, repr=False)

    def text(self, original: Likelihoods) -> CalibrationSet:
        """The windows in the tokens of a model."""
        known = original.tokenizer.fingerprint
        if known not in self._texts:
            self._texts[known] = calibration_set(
                self.name, original.tokenizer, windows=self.windows, length=self.length, data_dir=self.data_dir
            )
        return self._texts[known]

    def key(self, original: Likelihoods) -> dict[str, Any]:
        return {"likelihoods": self.text(original).digest}

    def measure(self, original: Likelihoods, candidate: Likelihoods) -> dict[str, float | None]:
        if self._rows is None or self._rows[0] is not original:
            self.close()
            self._rows = original, RememberedRows(original, self.text(original))
        report = self._rows[1].compare(candidate).to_dict()
        return {name: report[name] for name in KEPT}

    def close(self) -> None:
        if self._rows is not None:
            self._rows[1].close()
            self._rows = None
