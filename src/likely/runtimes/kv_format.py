"""In what form a runtime keeps keys and values: plain floats, or block floating point; named as in "bfp12/bfp16"."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

PLAIN = ("f32", "bf16", "f16")
KV_EXAMPLES = "bfp12, bfp16, bfp12n16, bf16; keys/values: bfp12/bfp16"
LEAST_EXPONENT, MOST_EXPONENT = -126, 127
_FORM = re.compile(r"bfp(?P<bits>\d+)(?:n(?P<block>\d+))?")


@dataclass(frozen=True)
class BFPFormat:
    """Block floating point: `block` neighbours share an 8-bit exponent e; each is a whole number of steps.

    For a block with m = max|x| = f 2^e, f in [.5, 1):  u = 2^(e - (p - 1)),
    q = clamp(round(x / u), -2^(p-1), 2^(p-1) - 1),  x̂ = q u.  Ties go to even.  m = 0, or e < -126: all zeros.

    mantissa_bits  p, sign included, 2 to 16;  BFPk has k = p + 8.  p = 8 with blocks of 32 is MXINT8 of the OCP
    overflow       of a largest value that rounds up to 2^(p-1): "clamp" keeps e (as MX does), "bump" takes e + 1
    symmetric      the lowest code is left out, so that rounding again changes nothing
    """

    mantissa_bits: int = 4
    block: int = 32
    overflow: Literal["clamp", "bump"] = "clamp"
    symmetric: bool = False

    def __post_init__(self) -> None:
        if not 2 <= self.mantissa_bits <= 16:
            raise ValueError(f"mantissa_bits must lie between 2 and 16, got {self.mantissa_bits}")
        if self.block < 1:
            raise ValueError(f"a block must hold at least 1 value, got {self.block}")
        if self.overflow not in ("clamp", "bump"):
            raise ValueError(f'overflow must be "clamp" or "bump", got "{self.overflow}"')

    @property
    def name(self) -> str:
        return f"bfp{self.mantissa_bits + 8}" + (f"n{self.block}" if self.block != 32 else "")

    @property
    def highest(self) -> int:
        """The largest code."""
        return (1 << (self.mantissa_bits - 1)) - 1

    @property
    def lowest(self) -> int:
        return -self.highest if self.symmetric else -self.highest - 1

    @property
    def bits_per_value(self) -> float:
        """p + 8 / n: what is stored, exponents included."""
        return self.mantissa_bits + 8 / self.block

    def blocks_of(self, width: int) -> int:
        """How many blocks a head of this width has; ValueError where they do not divide it."""
        if width % self.block:
            fitting = ", ".join(str(n) for n in (16, 32, 64, 128) if width % n == 0) or "none of 16, 32, 64, 128"
            raise ValueError(f"blocks of {self.block} do not divide {width} values (allowed here: {fitting})")
        return width // self.block


StoredAs = BFPFormat | str  # a block format, or one of PLAIN


@dataclass(frozen=True)
class KvFormat:
    """What keys and values are stored as, each on its own."""

    keys: StoredAs
    values: StoredAs

    @property
    def name(self) -> str:
        keys, values = (part if isinstance(part, str) else part.name for part in (self.keys, self.values))
        return keys if keys == values else f"{keys}/{values}"


def parse_kv_format(text: str, plain: tuple[str, ...] = PLAIN) -> KvFormat:
    """NAME, or KEYS/VALUES.  bfpK[nN]: mantissas of K - 8 bits in blocks of N (32) along the head; else one of `plain`.

    ValueError for what is neither.
    """
    parts = text.strip().lower().split("/")
    examples = "; ".join([KV_EXAMPLES, *(name for name in plain if name not in PLAIN)])
    if len(parts) > 2:
        raise ValueError(f'kv_dtype "{text}" is not understood: write it as in {examples}')
    found = [_parse_one(part, text, plain, examples) for part in parts]
    return KvFormat(found[0], found[-1])


def _parse_one(part: str, whole: str, plain: tuple[str, ...], examples: str) -> StoredAs:
    if part in plain:
        return part
    if part == "q8_0":
        raise ValueError(f'kv_dtype "{whole}": q8_0 is a format of native and llamacpp alone (here as in {examples})')
    match = _FORM.fullmatch(part)
    if match is None:
        raise ValueError(f'kv_dtype "{whole}" is not understood: write it as in {examples}')
    try:
        return BFPFormat(int(match["bits"]) - 8, int(match["block"] or 32))
    except ValueError as error:
        raise ValueError(f'kv_dtype "{whole}": {error}') from None
