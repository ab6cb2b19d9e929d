"""What a quantiser rounds to: bits, groups, symmetry, clipping; named as in "w4g64", "w4g32-sym", "w8a8-static"."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

_FORM = re.compile(r"w(?P<bits>\d+)(?:a(?P<activations>\d+))?(?:g(?P<group>\d+))?(?P<options>(?:-[a-z]+)*)")
_OPTIONS = ("sym", "asym", "static")
EXAMPLES = "w4g64, w4g32-sym, w8, w3g64, w8a8, w8a8-static"


@dataclass(frozen=True)
class QuantScheme:
    """How weights (out, in), and perhaps the activations that meet them, become integers.

    bits        of a weight's code
    group_size  neighbours along the input that share a scale; None: a whole output row
    symmetric   codes -2^(b-1) .. 2^(b-1)-1 and a scale; else codes 0 .. 2^b-1, a scale and a minimum
    zero_point  of an asymmetric scheme: "min", ŵ = s q + m, or "int", ŵ = s (q - z) with a whole z
    clip_ratio  the scale covers this share of the largest weight
    restricted  a symmetric scheme leaves out its lowest code
    activation_bits  of the inputs, None: they stay floats;  activation  one scale for each "token", computed as the
                     model runs, or for the whole "tensor", from a calibration set (static)
    """

    bits: int
    group_size: int | None = 64
    symmetric: bool = False
    zero_point: Literal["min", "int"] = "min"
    clip_ratio: float = 1.0
    restricted: bool = False
    activation_bits: int | None = None
    activation: Literal["token", "tensor"] = "token"

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 8:
            raise ValueError(f"bits must lie between 2 and 8, got {self.bits}")
        if self.group_size is not None and self.group_size < 1:
            raise ValueError(f"group_size must be at least 1, got {self.group_size}")
        if not 0 < self.clip_ratio <= 1:
            raise ValueError(f"clip_ratio must lie in (0, 1], got {self.clip_ratio}")
        if self.activation_bits is not None and not 2 <= self.activation_bits <= 8:
            raise ValueError(f"activation_bits must lie between 2 and 8, got {self.activation_bits}")

    @property
    def name(self) -> str:
        """The shortest name that `parse_scheme` reads as this scheme, clipping and zero points left out."""
        activations = f"a{self.activation_bits}" if self.activation_bits else ""
        group = f"g{self.group_size}" if self.group_size else ""
        usual = bool(activations) or self.bits == 8  # see parse_scheme
        symmetric = "" if self.symmetric == usual else "-sym" if self.symmetric else "-asym"
        return f"w{self.bits}{activations}{group}{symmetric}{'-static' if self.activation == 'tensor' else ''}"

    @property
    def lowest(self) -> int:
        """The smallest code."""
        return (-(1 << (self.bits - 1)) + self.restricted) if self.symmetric else 0

    @property
    def highest(self) -> int:
        """The largest code."""
        return (1 << (self.bits - 1)) - 1 if self.symmetric else (1 << self.bits) - 1

    def groups_of(self, width: int) -> int:
        """How many groups an output row of `width` weights has; ValueError where they do not divide it."""
        size = self.group_size or width
        if width % size:
            fitting = ", ".join(str(g) for g in (32, 64, 96, 128) if width % g == 0)
            raise ValueError(f"groups of {size} do not divide rows of {width} weights (allowed here: {fitting})")
        return width // size

    def bits_per_weight(self, width: int) -> float:
        """b + (bits of scale and minimum) / group size, with 16 bits for each of them."""
        size = self.group_size or width
        return self.bits + (16 if self.symmetric else 32) / size


def parse_scheme(text: str | QuantScheme) -> QuantScheme:
    """wB[aA][gG][-sym|-asym][-static]: bits of weights and of activations, group size (none: a scale for each row).

    Weights of 8 bits, and those that meet quantised activations, are symmetric (integer kernels add products of plain
    codes); others are asymmetric, which loses less, unless -sym is said.
    """
    if isinstance(text, QuantScheme):
        return text
    found = _FORM.fullmatch(text.strip().lower())
    options = [option for option in found["options"].split("-") if option] if found else []
    if found is None or (unknown := [option for option in options if option not in _OPTIONS]):
        wrong = f' (unknown "-{unknown[0]}"; known: {", ".join("-" + o for o in _OPTIONS)})' if found else ""
        raise ValueError(f'scheme "{text}" is not understood{wrong}: write it as in {EXAMPLES}')
    activations = int(found["activations"]) if found["activations"] else None
    if "sym" in options and "asym" in options:
        raise ValueError(f'scheme "{text}": either -sym or -asym')
    if activations and "asym" in options:
        raise ValueError(f'scheme "{text}": with quantised activations weights are symmetric')
    if "static" in options and not activations:
        raise ValueError(f'scheme "{text}": -static is about activations; name their bits, as in w8a8-static')
    bits = int(found["bits"])
    return QuantScheme(
        bits=bits,
        group_size=int(found["group"]) if found["group"] else None,
        symmetric="sym" in options or activations is not None or (bits == 8 and "asym" not in options),
        activation_bits=activations,
        activation="tensor" if "static" in options else "token",
    )
