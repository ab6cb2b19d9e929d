"""Whether a compiled library computes rightly: small products and small models against numpy, before it is trusted."""

from __future__ import annotations

import ctypes
import itertools

import numpy as np
from numpy.typing import NDArray

from likely.formats.gguf import TENSOR_TYPES
from likely.runtimes.native.architecture import Architecture
from likely.runtimes.native.library import (
    BF16,
    CODES,
    DTYPES,
    FP32,
    INT8,
    TYPES,
    Library,
    NativeCall,
    Queries,
    Team,
    address,
    padded,
)
from likely.runtimes.native.model import native_model
from likely.runtimes.protocol import FloatArray

WIDTH, VOCAB, LENGTH = 64, 32, 70  # of the small models; their text reaches into a second block of columns
CUTS = [1, 1, 2, 50, 1, 6, 1, 3, 1, 1, 1, 1, 1]
GROUPS = (1, 7)  # query heads of one key head: rows that attention takes alone and together


def disagreement(library: Library) -> str | None:
    """What is wrong, None if all is right."""
    with library.team(1) as team:
        for kind in range(len(DTYPES)):
            if (reason := _wrong_products(library, team, kind)) is not None:
                return f"{DTYPES[kind]}: {reason}"
        for type_name in TYPES:
            if (reason := _wrong_codes(library, team, type_name)) is not None:
                return f"{type_name}: {reason}"
    for kind in range(len(DTYPES)):
        for group in GROUPS:
            if (reason := _wrong_attention(library, kind, group)) is not None:
                return f"{DTYPES[kind]}: {reason}"
    return None


def _wrong_products(library: Library, team: Team, kind: int) -> str | None:
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((40, 130)).astype(np.float32)
    x = rng.standard_normal((23, 130)).astype(np.float32)
    x[:, 3] *= 30  # an outlier: its group alone is coarse
    exact = x.astype(np.float64) @ weights.T.astype(np.float64)
    packed = library.pack(kind, weights)
    several = team.multiply(kind, x, packed, padded(40))[:, :40]
    alone = np.concatenate([team.multiply(kind, row[None], packed, padded(40))[:, :40] for row in x])
    if not np.array_equal(several, alone):
        return "rows depend on the rows beside them"
    worst = float(np.abs(several - exact).max() / exact.std())
    if not worst < (0.1 if kind == INT8 else 0.05 if kind == BF16 else 1e-5):
        return f"a product is off by {worst:.2g} standard deviations"
    return None


def _wrong_codes(library: Library, team: Team, type_name: str) -> str | None:
    """A file's codes, any of them, against the numbers that they stand for."""
    rng = np.random.default_rng(0)
    sizes = {name: (values, nbytes) for name, values, nbytes in TENSOR_TYPES.values()}
    values, nbytes = sizes.get(type_name, (0, 0))
    if type_name.startswith("MQ"):
        scales = rng.uniform(0.01, 0.02, (40, 1)).astype(np.float32).view(np.uint8)
        codes = rng.integers(-127, 128, (40, 32 * int(type_name[2]))).astype(np.int8).view(np.uint8)
        raw = np.concatenate([scales, codes], axis=1)
    elif values == 1:
        floats: np.ndarray = rng.standard_normal((40, 256)).astype(np.float16 if type_name == "F16" else np.float32)
        if type_name == "BF16":
            floats = (floats.view(np.uint32) >> 16).astype(np.uint16)
        raw = floats.view(np.uint8)
    else:
        blocks = rng.integers(0, 256, (40, 256 // values, nbytes)).astype(np.uint8)
        for at in {"Q6_K": (208,), "Q4_0": (0,), "Q5_0": (0,), "Q8_0": (0,)}.get(type_name, (0, 2)):
            scales = rng.uniform(0.01, 0.02, blocks.shape[:2]).astype(np.float16)
            blocks[..., at : at + 2] = scales[..., None].view(np.uint8)
        raw = blocks.reshape(40, -1)
    panels = library.pack_rows(type_name, raw, 256)
    if panels is None:
        return "a number is said not to be finite"
    weights = np.stack([library.unpack_row(type_name, panels, 256, row) for row in range(40)]).astype(np.float64)
    x = rng.standard_normal((11, 256)).astype(np.float32)

    def product(rows: FloatArray) -> FloatArray:
        bits = 0 if values else -8
        return team.multiply(CODES, rows, panels, 40, type_name=type_name, merged_bits=bits)[:, :40]

    several, alone = product(x), [product(row[None]) for row in x]
    if not np.array_equal(several, np.concatenate(alone)):
        return "rows depend on the rows beside them"
    exact = x.astype(np.float64) @ weights.T
    worst = float(np.abs(several - exact).max() / exact.std())
    if not worst < (1e-5 if values == 1 else 0.1):
        return f"a product is off by {worst:.2g} standard deviations"
    return None


def _wrong_attention(library: Library, kind: int, group: int) -> str | None:
    """A text at once, cut into calls, and (in fp32) by numpy."""
    model = _SmallModel(group)
    at_once, cut = model.hidden(library, kind, [LENGTH]), model.hidden(library, kind, CUTS)
    if not np.array_equal(at_once, cut):
        return f"attention of {group} heads depends on how a text is cut"
    worst = float(np.abs(at_once - model.exact()).max())
    if kind == FP32 and not worst < 1e-4:
        return f"attention of {group} heads is off by {worst:.2g}"
    return None


class _SmallModel:
    """One layer without a feed-forward part or rotation, one key head, and its text."""

    def __init__(self, group: int):
        rng = np.random.default_rng(group)

        def matrix(rows: int, columns: int) -> FloatArray:
            return (rng.standard_normal((rows, columns)) / columns**0.5).astype(np.float32)

        self._heads, self._text = group, rng.integers(0, VOCAB, LENGTH).astype(np.int32)
        self._embedding, self._qkv = matrix(VOCAB, WIDTH), 2 * matrix((group + 2) * WIDTH, WIDTH)
        self._out = matrix(WIDTH, group * WIDTH)

    def hidden(self, library: Library, kind: int, cuts: list[int]) -> FloatArray:
        """(LENGTH, WIDTH) final states, computed in calls of these sizes."""
        shape = Architecture(
            "check", VOCAB, LENGTH, layers=1, hidden=WIDTH, heads=self._heads, kv_heads=1, head_dim=WIDTH, mlp=WIDTH,
            activation="silu", epsilon=1e-6, attention_scale=WIDTH**-0.5, embedding_scale=1.0, logit_softcap=0.0,
            attention_softcap=0.0,
            windows=(0,), frequencies=(np.zeros(WIDTH // 2, np.float32),) * 2, tied=True, qkv_bias=False,
            query_key_norms=False, norms_after=False, norm_offset=0.0,
        )  # fmt: skip
        square, ones = np.zeros((WIDTH, WIDTH), np.float32), np.ones(WIDTH, np.float32)
        matrices = {"head": self._embedding, "layers.0.qkv": self._qkv, "layers.0.out": self._out,
                    "layers.0.gate_up": np.concatenate([square, square]), "layers.0.down": square}  # fmt: skip
        weights: dict[str, np.ndarray] = {name: library.pack(kind, matrix) for name, matrix in matrices.items()}
        weights |= {"final_norm": ones, "layers.0.attention_norm": ones, "layers.0.mlp_norm": ones}
        model = native_model(shape, kind, weights)
        session = library.open(ctypes.byref(model[0]), 1)
        try:
            library.reserve(session, LENGTH)
            edges = np.cumsum([0, *cuts]).tolist()
            return np.concatenate([self._call(library, session, *of) for of in itertools.pairwise(edges)])
        finally:
            library.close(session)

    def _call(self, library: Library, session: int, start: int, stop: int) -> FloatArray:
        n = stop - start
        columns, rows, none = np.arange(stop, dtype=np.int32), np.arange(n, dtype=np.int32), np.zeros(n, np.int32)
        positions, text = columns[start:], self._text[start:stop]
        counts, piece = positions + np.int32(1), np.array([0, n, 0, stop], np.int32)
        hidden, skip = np.empty((n, WIDTH), np.float32), np.ones(1, np.uint8)
        queries = Queries(address(piece), 1, address(columns), address(positions), address(counts), address(none),
                          address(none))  # fmt: skip
        call = NativeCall(n, address(text), address(positions), address(positions), queries, n, address(rows),
                          address(hidden), None, address(skip))  # fmt: skip
        library.forward(session, ctypes.byref(call))
        return hidden

    def exact(self) -> NDArray[np.float64]:
        stream = self._embedding[self._text].astype(np.float64)
        heads = (_normed(stream) @ self._qkv.T).reshape(LENGTH, self._heads + 2, WIDTH).swapaxes(0, 1)
        scores = heads[:-2] @ heads[-2].T * WIDTH**-0.5
        scores = np.where(np.tri(LENGTH, dtype=bool), scores, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        seen = weights / weights.sum(-1, keepdims=True) @ heads[-1]
        return _normed(stream + seen.swapaxes(0, 1).reshape(LENGTH, -1) @ self._out.T)


def _normed(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6)
