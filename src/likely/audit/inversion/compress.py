"""Log-probabilities of a whole vocabulary from those of a few tokens, and the rank that gives a hidden size away.

With hidden state h (d) and output matrix W (V, d), ℓ = log softmax(W h) = W h − c.  The additive log-ratio to an anchor
token b drops the constant: ℓ_j − ℓ_b = (w_j − w_b)·h, so that all V−1 of them are a linear image of d numbers.  Nazir
et al. 2025 (PILS).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from likely.errors import DataError

Floats = NDArray[np.float64]
EXTRA = 100
LEAST_GAP = 20.0  # singular values of a model fall by this factor behind the rank, those of noise do not


class LogprobCompressor:
    """Additive log-ratios of a fixed random set of tokens to one anchor.

    hidden_size  d of the model, or an upper bound of it;  extra: spare tokens against rows that nearly depend
    anchor       token id; None: a random one
    tokens       (D + 1,) the anchor, then D = hidden_size + extra others
    """

    def __init__(
        self, vocab_size: int, hidden_size: int, *, extra: int = EXTRA, anchor: int | None = None, seed: int = 0
    ):
        size = hidden_size + extra
        if not 1 <= size < vocab_size:
            raise DataError(
                f"{size} tokens beside the anchor are needed, the vocabulary has {vocab_size}: lower hidden_size, extra"
            )
        order = np.random.default_rng(seed).permutation(vocab_size)
        if anchor is not None:
            if not 0 <= anchor < vocab_size:
                raise DataError(f"the anchor {anchor} is outside 0..{vocab_size - 1}")
            order = np.concatenate([[anchor], order[order != anchor]])
        self.vocab_size, self.hidden_size = vocab_size, hidden_size
        self.tokens: NDArray[np.int64] = order[: size + 1].astype(np.int64)

    @classmethod
    def of_tokens(cls, vocab_size: int, hidden_size: int, tokens: ArrayLike) -> LogprobCompressor:
        """With these tokens, the anchor first; DataError for one that comes twice."""
        chosen = np.asarray(tokens, np.int64)
        if len(set(chosen.tolist())) != len(chosen) or len(chosen) < 2:
            raise DataError("the anchor and the other tokens must be different, and at least two")
        made = cls(vocab_size, 1, extra=0)
        if chosen.min() < 0 or chosen.max() >= vocab_size:
            raise DataError(f"tokens must lie in 0..{vocab_size - 1}")
        made.hidden_size, made.tokens = hidden_size, chosen
        return made

    @property
    def size(self) -> int:
        """D."""
        return len(self.tokens) - 1

    def transform(self, logprobs: ArrayLike) -> Floats:
        """(..., V) log-probabilities, or logits -> (..., D)."""
        values = np.asarray(logprobs, np.float64)
        if values.shape[-1] != self.vocab_size:
            raise DataError(f"rows of {self.vocab_size} log-probabilities are expected, got {values.shape[-1]}")
        return self.of_selected(values[..., self.tokens])

    def of_selected(self, logprobs: ArrayLike) -> Floats:
        """(..., D + 1) log-probabilities of `tokens` -> (..., D)."""
        values = np.asarray(logprobs, np.float64)
        return np.asarray(values[..., 1:] - values[..., :1])

    def reconstruct(self, ratios: ArrayLike, weights: ArrayLike) -> Floats:
        """(..., D) -> (..., V) log-probabilities: h = (W_S − w_b)⁺ a, then log softmax(W h).

        weights  (V, d) W, without a bias
        Exact where the rows of the chosen tokens span the space, so for D >= d in general.
        """
        w = np.asarray(weights, np.float64)
        rows = w[self.tokens[1:]] - w[self.tokens[0]]
        hidden = np.asarray(ratios, np.float64) @ np.linalg.pinv(rows).T
        logits = hidden @ w.T
        logits -= logits.max(-1, keepdims=True)
        return np.asarray(logits - np.log(np.exp(logits).sum(-1, keepdims=True)))


@dataclass(frozen=True)
class RankEstimate:
    """How many numbers lie behind n vectors of log-ratios.

    rank  the place of the largest fall between neighbouring singular values; None where none falls by 20 or more
    gap   that fall, as a factor;  singular_values: all, falling
    """

    rank: int | None
    gap: float
    singular_values: Floats


def estimate_rank(ratios: ArrayLike) -> RankEstimate:
    """The rank of (n, D) log-ratios; a hidden size of d shows if both n and D exceed d."""
    values = np.asarray(ratios, np.float64)
    if values.ndim != 2 or min(values.shape) < 2 or not np.isfinite(values).all():
        raise DataError(f"the rank needs two vectors of two finite log-ratios or more, got shape {values.shape}")
    found = np.asarray(np.linalg.svd(values, compute_uv=False), np.float64)
    floor = max(found[0] * np.finfo(np.float64).eps * max(values.shape), np.finfo(np.float64).tiny)
    falls = np.maximum(found[:-1], floor) / np.maximum(found[1:], floor)
    place = int(falls.argmax())
    gap = float(falls[place])
    return RankEstimate(place + 1 if gap >= LEAST_GAP else None, gap, found)


def subspace_angles(one: ArrayLike, other: ArrayLike, rank: int) -> Floats:
    """(rank,) principal angles, rising, in radians, between the spaces that two sets of log-ratios of the same tokens
    span: near 0 for one model, whatever the prompts were."""
    bases = [np.linalg.svd(np.asarray(values, np.float64), full_matrices=False)[2][:rank] for values in (one, other)]
    cosines = np.linalg.svd(bases[0] @ bases[1].T, compute_uv=False)
    return np.asarray(np.arccos(np.clip(cosines, -1, 1)))


def held_out_error(ratios: ArrayLike, rank: int, *, fitted: float = 0.5) -> float:
    """How well D log-ratios of unseen prompts follow from the first `rank` of them: largest error in nats.

    The linear map is fitted by least squares on the first share of the (n, D) vectors, and judged on the rest.
    """
    values = np.asarray(ratios, np.float64)
    cut = int(len(values) * fitted)
    if not 0 < rank <= min(cut, values.shape[1]) or cut == len(values):
        raise DataError(f"{len(values)} vectors of {values.shape[1]} log-ratios are too few for rank {rank}")
    known, rest = values[:cut], values[cut:]
    solved = np.linalg.lstsq(known[:, :rank], known, rcond=None)[0]
    return float(np.abs(rest[:, :rank] @ solved - rest).max())
