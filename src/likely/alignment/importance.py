"""Self-normalised importance weights: what samples of one distribution say about another.  numpy, in log space.

Samples y_i ~ q with log-weights w_i = log p(y_i) − log q(y_i), up to a constant; the last axis runs over samples.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from likely.errors import DataError
from likely.metrics.checks import Floats, as_floats, softmax

_SMALLEST, _LARGEST = 1e-3, 1e6  # a temperature, in units of the spread of rewards


def normalized_weights(log_weights: ArrayLike) -> Floats:
    """Weights that sum to 1 over the last axis.

    −inf is a weight of 0.  DataError where all weights of a row are 0, or one is NaN or +inf.
    """
    values = np.asarray(log_weights, np.float64)
    if not values.size:
        raise DataError("log-weights are empty: at least one sample is needed")
    if np.isnan(values).any() or np.isposinf(values).any():
        raise DataError("a log-weight is NaN or +inf: finite numbers and -inf are allowed")
    if np.isneginf(values).all(axis=-1).any():
        raise DataError("all log-weights of a row are -inf: no sample is possible under the target")
    return softmax(values)


def effective_sample_size(log_weights: ArrayLike) -> Floats:
    """1 / Σ w², between 1 and the number of samples.

    Kong 1992: about how many samples of the target itself would say as much.
    """
    return np.asarray(1 / (normalized_weights(log_weights) ** 2).sum(axis=-1))


def weighted_mean(values: ArrayLike, log_weights: ArrayLike) -> Floats:
    """Σ w_i f(y_i): consistent for E_p[f], biased by O(1/n)."""
    weights = normalized_weights(log_weights)
    found = np.asarray(values, np.float64)
    return np.asarray((weights * np.where(weights > 0, found, 0)).sum(axis=-1))


def tilted_kl(rewards: ArrayLike, beta: float) -> Floats:
    """KL(π*‖π) in nats of π* ∝ π·e^{r/β}, from the rewards (..., n) of samples of π.

    E*[r]/β − log mean e^{r/β}, both estimated on the same samples: between 0 and log n.
    """
    _check_beta(beta)
    scaled = np.asarray(rewards, np.float64) / beta
    largest = scaled.max(axis=-1, keepdims=True)
    log_mean = largest[..., 0] + np.log(np.exp(scaled - largest).mean(axis=-1))
    return weighted_mean(scaled, scaled) - log_mean


def temperature_for_ess(rewards: ArrayLike, share: float) -> float:
    """The β at which weights e^{r/β} have an effective sample size of `share` of the n samples.

    rewards  (n,); −inf counts as a sample of weight 0
    share    in (0, 1): small is sharp
    The size grows with β; where ties of the largest reward alone are more than asked for, β is 1/1000 of the spread
    of the rewards, and where the −inf leave fewer, a million times it.  Equal rewards: 1, since β then changes nothing.
    """
    values = as_floats(rewards, "rewards", 1)
    if not 0 < share < 1:
        raise ValueError(f"the share of an effective sample size must lie between 0 and 1, got {share:g}")
    finite = values[np.isfinite(values)]
    if np.isposinf(values).any() or not len(finite):
        raise DataError("rewards must hold a finite number, and +inf is not allowed")
    spread = float(finite.max() - finite.min())
    if spread == 0:
        return 1.0
    low, high = np.log(_SMALLEST * spread), np.log(_LARGEST * spread)
    for _ in range(60):
        middle = (low + high) / 2
        if effective_sample_size(values / np.exp(middle)) < share * len(values):
            low = middle
        else:
            high = middle
    return float(np.exp(high))


def temperature(rewards: ArrayLike, beta: float | str) -> float:
    """β as a number, from a number or from "ess:0.1" (see `temperature_for_ess`)."""
    if isinstance(beta, str):
        kind, _, share = beta.partition(":")
        try:
            if kind != "ess":
                raise ValueError
            wanted = float(share)
        except ValueError:
            raise ValueError(f'beta must be a number > 0 or "ess:SHARE" such as "ess:0.1", got "{beta}"') from None
        return temperature_for_ess(rewards, wanted)
    _check_beta(beta)
    return float(beta)


def _check_beta(beta: float) -> None:
    if not beta > 0 or np.isinf(beta):
        raise ValueError(f"beta must be a finite number > 0, got {beta}")
