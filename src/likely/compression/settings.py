"""What a method of compression is given, and what it gives back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from likely.compression.calibration_set import CalibrationSet
from likely.compression.pruning.nirvana import PruningOptions
from likely.compression.quantisers.additive.tensor import AdditiveScheme, AdditiveTensor
from likely.compression.quantized import QuantizedTensor
from likely.compression.schemes import QuantScheme
from likely.tokenizers.protocol import Tokenizer

Quantized = dict[str, QuantizedTensor]  # by name of the weight
Codes = Mapping[str, QuantizedTensor | AdditiveTensor]  # what any method makes, likewise
Scheme = QuantScheme | AdditiveScheme
Progress = Callable[[int, int], None]  # done, in all
RoundingStep = Literal["rtn", "gptq"]
OtherInputs = Literal["dynamic", "static", "float"]


@dataclass(frozen=True)
class MethodSettings:
    """What a method works with; each takes what it needs.

    sparsity      of a pruning method: share of the blocks' weights that goes
    alpha         of smoothquant: how much of the range of activations moves into the weights, 0 to 1
    act_order     of gptq: columns with large inputs are rounded first
    rounding      of rotation and mergequant: the rounding step after the exact rewrites
    other_inputs  of mergequant: how inputs that come from no norm (of o and down) are quantised
    beam          of additive: sets of codes kept while those of a group are chosen
    tokenizer, pruning  of pruning methods: for trials on other text; see `PruningOptions`
    """

    scheme: Scheme | None = None
    calibration: CalibrationSet | None = None
    sparsity: float | None = None
    seed: int = 0
    progress: Progress | None = None
    alpha: float = 0.5
    act_order: bool = False
    rounding: RoundingStep = "gptq"
    other_inputs: OtherInputs = "dynamic"
    beam: int = 1
    tokenizer: Tokenizer | None = None
    pruning: PruningOptions = field(default_factory=PruningOptions)

    def needed(self) -> tuple[QuantScheme, CalibrationSet]:
        """Scheme of integers and calibration set, for a method that cannot do without."""
        if not isinstance(self.scheme, QuantScheme) or self.calibration is None:
            raise ValueError("this method needs a scheme and a calibration set")
        return self.scheme, self.calibration
