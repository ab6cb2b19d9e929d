"""Preference games on a finite set of K answers, where every expectation is an exact sum: Nash equilibria, best
responses, and what online IPO, IPO-MD, Nash-MD and online DPO do there.

Two players choose distributions π and π' over the answers; the payoff of the first is
  P(π ≻ π') - τ KL(π‖π_ref) + τ KL(π'‖π_ref),   P(π ≻ π') = Σ π(y) p(y ≻ y') π'(y').
Its one symmetric Nash equilibrium satisfies π(y) ∝ π_ref(y) exp(p(y ≻ π) / τ)  (Munos et al. 2023, arXiv:2312.00886;
Calandriello et al. 2024, arXiv:2403.08635).  Distributions are log-probabilities (K,) in float64; preferences (K, K)
hold p(row ≻ column) and are symmetrised.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import minimize
from scipy.special import expit, log_softmax, logsumexp

from likely.metrics.checks import Floats

TOLERANCE = 1e-13  # of a fixed point, in nats
LARGEST_MISMATCH = 1e-3  # of p(a ≻ b) + p(b ≻ a) - 1, before it is worth a warning


def symmetrised(preferences: ArrayLike) -> Floats:
    """½ [p(a ≻ b) + 1 - p(b ≻ a)]  (K, K): complementary by construction, ½ on the diagonal.

    ValueError for what are no probabilities; a warning where p(a ≻ b) + p(b ≻ a) is not 1, to 1e-3.
    """
    p = np.asarray(preferences, np.float64)
    if p.ndim != 2 or p.shape[0] != p.shape[1] or not p.size:
        raise ValueError(f"preferences must be a square matrix (K, K), got shape {p.shape}")
    wrong = ~((p >= 0) & (p <= 1))
    if wrong.any():
        a, b = np.argwhere(wrong)[0]
        raise ValueError(f"preferences[{a}, {b}] must be a probability in [0, 1], got {p[a, b]}")
    gap = np.abs(p + p.T - 1)
    if gap.max() > LARGEST_MISMATCH:
        a, b = np.unravel_index(gap.argmax(), gap.shape)
        warnings.warn(
            f"preferences[{a}, {b}] + preferences[{b}, {a}] is {p[a, b] + p[b, a]:.4g} instead of 1: symmetrised",
            stacklevel=2,
        )
    return (p + 1 - p.T) / 2


def nash(preferences: ArrayLike, log_reference: ArrayLike, tau: float) -> Floats:
    """The symmetric Nash equilibrium of the regularised game: log π (K,), normalised.

    preferences    (K, K) p(row ≻ column)
    log_reference  (K,) log π_ref, normalised here; -inf for answers that no policy gives
    tau            > 0: strength of the regularisation, nats of KL are worth tau wins

    Solves log π = log π_ref + P π / τ + const by Newton's method, following the solution from a large τ down.  With
    the skew part A = P - ½ and Σ the covariance of π its Jacobian I - A Σ / τ has no eigenvalue below 1 in size, so
    that the path has no turning point and the equilibrium is found for every game.
    """
    p, reference = _game(preferences, log_reference, tau)
    support = np.flatnonzero(reference > -np.inf)
    advantage, start = p[np.ix_(support, support)] - 0.5, reference[support]
    at, solution = max(1.0, tau), start
    found = _newton(advantage, start, at, solution)
    if found is None:  # cannot be: at τ >= 1 the map is close to linear
        raise ValueError("the game has no equilibrium that can be computed: are the preferences finite?")
    solution, factor = found, 0.5
    while at > tau:
        smaller = max(at * factor, tau)
        found = _newton(advantage, start, smaller, solution)
        if found is None:
            factor = factor**0.5
            continue
        at, solution, factor = smaller, found, max(factor**1.5, 0.5)
    out = np.full(len(reference), -np.inf)
    out[support] = log_softmax(solution)
    return out


def _newton(advantage: Floats, reference: Floats, tau: float, start: Floats) -> Floats | None:
    """log π (K,) with log π = log π_ref + A π / τ up to a constant, from a start nearby; None if it was not near."""
    z = log_softmax(start)
    last = np.inf
    for _ in range(40):
        policy = np.exp(z)
        miss = z - log_softmax(reference + advantage @ policy / tau)
        size = float(np.abs(miss).max())
        if size < TOLERANCE * max(1.0, float(np.abs(z).max())):
            return z
        if size > 2 * last + 1 or not np.isfinite(size):
            return None
        last = size
        # derivative of miss by z, up to constants: I - (A - 1 (Aᵀπ')ᵀ) Σ / τ, with Σ = diag(π) - π πᵀ
        slope = advantage @ (np.diag(policy) - np.outer(policy, policy)) / tau
        best = np.exp(log_softmax(reference + advantage @ policy / tau))
        jacobian = np.eye(len(z)) - (slope - best @ slope)
        z = log_softmax(z - np.linalg.solve(jacobian, miss))
    return z if last < 1e-10 else None


def best_response(preferences: ArrayLike, log_policy: ArrayLike, log_reference: ArrayLike, tau: float) -> Floats:
    """log π' (K,) that maximises P(π' ≻ π) - τ KL(π'‖π_ref): π' ∝ π_ref exp(p(· ≻ π) / τ)."""
    p, reference = _game(preferences, log_reference, tau)
    return np.asarray(log_softmax(reference + p @ np.exp(_distribution(log_policy, len(p))) / tau))


def exploitability(preferences: ArrayLike, log_policy: ArrayLike, log_reference: ArrayLike, tau: float) -> float:
    """What a best response gains on π: max over π' of the payoff of π' against π, less the ½ of π against itself.

    = τ log Σ π_ref exp(p(· ≻ π) / τ) + τ KL(π‖π_ref) - ½ >= 0, and 0 at the Nash equilibrium alone.
    """
    p, reference = _game(preferences, log_reference, tau)
    policy = _distribution(log_policy, len(p))
    most = tau * logsumexp(reference + p @ np.exp(policy) / tau)
    return float(most + tau * kl(policy, reference) - 0.5)


def kl(log_p: ArrayLike, log_q: ArrayLike) -> float:
    """KL(p‖q) in nats of two distributions (K,)."""
    p, q = np.asarray(log_p, np.float64), np.asarray(log_q, np.float64)
    with np.errstate(invalid="ignore"):
        return float(np.where(p > -np.inf, np.exp(p) * (p - q), 0.0).sum())


def mixture(log_policy: ArrayLike, log_reference: ArrayLike, beta: float) -> Floats:
    """The geometric mixture π^(1-β) π_ref^β, normalised: log μ (K,)."""
    policy, reference = np.asarray(log_policy, np.float64), np.asarray(log_reference, np.float64)
    check_beta(beta)
    if beta in (0, 1):
        return np.asarray(log_softmax(reference if beta else policy))
    return np.asarray(log_softmax((1 - beta) * policy + beta * reference))


def check_beta(beta: float) -> None:
    if not 0 <= beta <= 1:
        raise ValueError(f"beta must lie in [0, 1] (0: the policy alone, 1: the reference alone), got {beta}")


def mirror_descent_fixed_point(
    preferences: ArrayLike, log_reference: ArrayLike, tau: float, *, beta: float = 0.0
) -> Floats:
    """Where IPO-MD(β) and Nash-MD-PG(β) stand still: log π (K,) with π ∝ π_ref exp(p(· ≻ π^(1-β) π_ref^β) / τ).

    Its mixture is the Nash equilibrium at τ / (1 - β), from which it is one best response away.  β = 0 is online IPO
    and self-play, whose fixed point is the equilibrium itself; β = 1 is IPO on samples of the reference.
    """
    check_beta(beta)
    p, reference = _game(preferences, log_reference, tau)
    opponent = reference if beta == 1 else nash(p, reference, tau / (1 - beta))
    return best_response(p, opponent, reference, tau)


# --- exact gradients by the logits of a softmax policy ----------------------------------------------------------------
# Completions are drawn from a distribution ρ that takes no gradient; lr = log π - log π_ref.


def ipo_gradient(
    preferences: ArrayLike,
    log_policy: ArrayLike,
    log_reference: ArrayLike,
    tau: float,
    *,
    log_sampling: ArrayLike | None = None,
) -> Floats:
    """Gradient (K,) of E_{y,y'~ρ} p (δ - 1/2τ)² + (1-p) (δ + 1/2τ)², δ = lr(y) - lr(y'), p = p(y ≻ y').

    = -(4/τ) ρ(y) [p(y ≻ ρ) - ½ - τ (lr(y) - E_ρ lr)].  log_sampling: log ρ, by default the policy (online IPO); for
    IPO-MD the mixture.  At ρ = π it is -4/τ times the gradient of self-play.
    """
    p, reference = _game(preferences, log_reference, tau)
    policy = _distribution(log_policy, len(p))
    sampling = policy if log_sampling is None else _distribution(log_sampling, len(p))
    rho, ratio = np.exp(sampling), policy - reference
    return np.asarray(-4 / tau * rho * (p @ rho - 0.5 - tau * (ratio - rho @ ratio)))


def nash_md_gradient(
    preferences: ArrayLike, log_policy: ArrayLike, log_reference: ArrayLike, tau: float, *, beta: float = 0.0
) -> Floats:
    """Direction of ascent (K,) of Nash-MD-PG(β): E_{y~π} ∇log π(y) [p(y ≻ π_β) - ½ - τ lr(y)], π_β the mixture."""
    p, reference = _game(preferences, log_reference, tau)
    policy = _distribution(log_policy, len(p))
    gain = p @ np.exp(mixture(policy, reference, beta)) - 0.5 - tau * (policy - reference)
    chances = np.exp(policy)
    return np.asarray(chances * (gain - chances @ gain))


def dpo_gradient(preferences: ArrayLike, log_policy: ArrayLike, log_reference: ArrayLike, gamma: float) -> Floats:
    """Gradient (K,) of online DPO, E_{y,y'~π} -p log σ(γδ) - (1-p) log σ(-γδ); its fixed points are no equilibria
    unless preferences follow a Bradley-Terry model."""
    p, reference = _game(preferences, log_reference, gamma)
    policy = _distribution(log_policy, len(p))
    chances, ratio = np.exp(policy), policy - reference
    margins = gamma * (ratio[:, None] - ratio[None, :])
    return np.asarray(-2 * gamma * chances * ((p - expit(margins)) @ chances))


def descend(gradient: Callable[[Floats], Floats], log_start: ArrayLike, *, learning_rate: float, steps: int) -> Floats:
    """log π (K,) after that many steps of gradient descent on the logits; gradient: of log π."""
    logits = np.array(log_start, np.float64)
    for _ in range(steps):
        logits -= learning_rate * gradient(np.asarray(log_softmax(logits)))
    return np.asarray(log_softmax(logits))


# --- a reward in the place of the preferences -------------------------------------------------------------------------


def bradley_terry_fit(preferences: ArrayLike, log_sampling: ArrayLike) -> Floats:
    """Rewards (K,) of the Bradley-Terry model that is most likely under pairs drawn from a distribution, mean 0.

    Maximises E_{y,y'~ρ} p(y ≻ y') log σ(r(y) - r(y')).  For a cyclic game it is a poor summary: rock, paper and
    scissors get rewards by how often each was met.
    """
    p = symmetrised(preferences)
    rho = np.exp(_distribution(log_sampling, len(p)))
    pairs = np.outer(rho, rho)

    def loss(rewards: Floats) -> tuple[float, Floats]:
        margins = rewards[:, None] - rewards[None, :]
        value = (pairs * (p * np.logaddexp(0, -margins))).sum()
        slope = pairs * (expit(margins) - p)
        return float(value), slope.sum(axis=1)

    fitted = minimize(loss, np.zeros(len(p)), jac=True, method="BFGS", options={"gtol": 1e-10}).x
    return np.asarray(fitted - fitted.mean(), np.float64)


def reward_optimum(rewards: ArrayLike, log_reference: ArrayLike, tau: float) -> Floats:
    """log π (K,) that maximises E r - τ KL(π‖π_ref): π_ref exp(r / τ), normalised."""
    _check_tau(tau)
    return np.asarray(log_softmax(np.asarray(log_reference, np.float64) + np.asarray(rewards, np.float64) / tau))


# --- input checks -----------------------------------------------------------------------------------------------------


def _game(preferences: ArrayLike, log_reference: ArrayLike, tau: float) -> tuple[Floats, Floats]:
    _check_tau(tau)
    p = symmetrised(preferences)
    return p, _distribution(log_reference, len(p))


def _check_tau(tau: float) -> None:
    if not (np.isfinite(tau) and tau > 0):
        raise ValueError(f"tau must be a finite number > 0, got {tau}")


def _distribution(logprobs: ArrayLike, k: int) -> Floats:
    """Log-probabilities (K,), normalised."""
    values = np.asarray(logprobs, np.float64)
    if values.shape != (k,):
        raise ValueError(f"log-probabilities of {k} answers must have shape ({k},), got {values.shape}")
    if np.isnan(values).any() or values.max() in (np.inf, -np.inf):
        raise ValueError("log-probabilities hold NaN, inf or nothing but -inf: give log π, -inf where π is 0")
    return np.asarray(log_softmax(values))
