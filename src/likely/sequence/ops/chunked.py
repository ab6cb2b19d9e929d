"""Linear attention with decay in chunks: matrix products inside a chunk, a scan over the chunks' states.

Every kernel reads a log-decay of −∞ as "a new sequence begins here": what came before has no effect at all.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from likely.sequence.ops.scan import linear_scan

SUB_CHUNK = 16  # of decays per key dimension: exponents inside one stay small
LARGEST = 60.0  # nats of decay inside a sub-chunk up to which exp(−l) is safe in float32
NEVER = -1e4  # a log-decay whose exponential is zero in every dtype, and whose sums stay finite


def ssd(
    x: Tensor, log_a: Tensor, B: Tensor, C: Tensor, *, h0: Tensor | None = None, chunk: int = 64,
    seq_idx: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """S_t = exp(log_a_t) S_{t−1} + x_t B_tᵀ, y_t = S_t C_t: Mamba-2's state-space duality.

    x (B, L, H, P), already multiplied by Δ;  log_a (B, L, H) ≤ 0, −∞ forgets the past;  B, C (B, L, G, N): H/G heads
    share a group;  h0 (B, H, P, N);  seq_idx (B, L) ids of packed documents: the state starts at zero in each
    returns  y (B, L, H, P) and the last state (B, H, P, N)

    Inside a chunk y_i = Σ_{j≤i} exp(l_i − l_j)(C_i·B_j) x_j with l = cumsum(log_a), masked before the exponential.
    Dao and Gu 2024 (arXiv:2405.21060), section 6.
    """
    length, heads, groups = x.shape[1], x.shape[2], B.shape[2]
    if log_a.shape != x.shape[:3] or B.shape != C.shape or B.shape[:2] != x.shape[:2] or heads % groups or not length:
        raise ValueError(
            "ssd takes x (B, L, H, P), log_a (B, L, H), B and C (B, L, G, N) with G dividing H and L > 0, got "
            f"{tuple(x.shape)}, {tuple(log_a.shape)}, {tuple(B.shape)} and {tuple(C.shape)}"
        )
    if length == 1:
        return ssd_by_steps(x, log_a, B, C, h0=h0)
    if seq_idx is not None:
        log_a = log_a.masked_fill(document_starts(seq_idx)[..., None], -torch.inf)
    chunk = max(1, min(chunk, length))
    x, B, C = (_chunks(t, chunk) for t in (x, B, C))  # (B, n, heads, chunk, ·)
    log_a, resets = _without_resets(_chunks(log_a[..., None], chunk)[..., 0])  # (B, n, H, chunk)
    level = log_a.double().cumsum(-1)
    shared = heads // groups
    inside = _causal(_between(level, log_a.dtype), resets)
    y = ((C @ B.mT).repeat_interleave(shared, 2) * inside.exp()) @ x
    B, C = B.repeat_interleave(shared, 2), C.repeat_interleave(shared, 2)
    to_end, from_start, kept = (t.to(log_a.dtype) for t in _edges(level, level[..., -1], resets))
    summaries = (x * to_end[..., None]).mT @ B  # (B, n, H, P, N)
    states, last = linear_scan(kept[..., None, None], summaries, h0)
    before = torch.cat([(torch.zeros_like(last) if h0 is None else h0)[:, None], states[:, :-1]], 1)
    y = y + (C * from_start[..., None]) @ before.mT
    return _joined(y, length), last


def linear_attention(
    q: Tensor, k: Tensor, v: Tensor, *, log_decay: Tensor | None = None, beta: Tensor | None = None,
    h0: Tensor | None = None, chunk: int = 64,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """S_t = diag(exp(log_decay_t)) (I − β_t k_t k_tᵀ) S_{t−1} + β_t k_t v_tᵀ, y_t = S_tᵀ q_t, without any scale.

    q, k (B, L, H, K);  v (B, L, H, V);  h0 and the last state (B, H, K, V)
    log_decay  None, (B, L, H) for one decay per head, or (B, L, H, K) for one per key dimension; −∞ forgets the past
    beta       None: no delta rule and β = 1 in the last term;  (B, L, H): the (gated) delta rule, decay per head only
    returns    y (B, L, H, V) and the last state

    Decay per key: Yang et al. 2023 (arXiv:2312.06635).  Delta rule by the WY form: Yang et al. 2024 (arXiv:2406.06484,
    2412.06464).
    """
    if q.shape != k.shape or k.shape[:3] != v.shape[:3] or not q.shape[1]:
        raise ValueError(
            f"q and k must be (B, L, H, K) and v (B, L, H, V) with L > 0, got {tuple(q.shape)}, {tuple(k.shape)} and "
            f"{tuple(v.shape)}"
        )
    if log_decay is not None and log_decay.shape not in (q.shape, q.shape[:3]):
        raise ValueError(f"log_decay must be {tuple(q.shape[:3])} or {tuple(q.shape)}, got {tuple(log_decay.shape)}")
    if beta is not None and log_decay is not None and log_decay.ndim == 4:
        raise ValueError("the delta rule takes one decay per head (B, L, H), got one per key dimension")
    if q.shape[1] == 1:
        return linear_attention_by_steps(q, k, v, log_decay=log_decay, beta=beta, h0=h0)
    if beta is not None:
        return _delta_rule(q, k, v, q.new_zeros(q.shape[:3]) if log_decay is None else log_decay, beta, h0, chunk)
    if log_decay is not None and log_decay.ndim == 4:
        return _decay_per_key(q, k, v, log_decay, h0)
    log_a = q.new_zeros(q.shape[:3]) if log_decay is None else log_decay
    y, last = ssd(v, log_a, k, q, h0=None if h0 is None else h0.mT, chunk=chunk)
    return y, last.mT


def ssd_by_steps(x: Tensor, log_a: Tensor, B: Tensor, C: Tensor, *, h0: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """`ssd` as a loop: S_t = exp(log_a_t) S_{t−1} + x_t B_tᵀ, y_t = S_t C_t."""
    B, C = (t.repeat_interleave(x.shape[2] // B.shape[2], 2) for t in (B, C))
    S = x.new_zeros(x.shape[0], *x.shape[2:], B.shape[-1]) if h0 is None else h0
    outputs = []
    for t in range(x.shape[1]):
        S = log_a[:, t, :, None, None].exp() * S + x[:, t, ..., None] * B[:, t, :, None]
        outputs.append((S @ C[:, t, ..., None])[..., 0])
    return torch.stack(outputs, 1), S


def linear_attention_by_steps(
    q: Tensor, k: Tensor, v: Tensor, *, log_decay: Tensor | None = None, beta: Tensor | None = None,
    h0: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """`linear_attention` as a loop: decay, then (delta rule) correct what the key recalls, then read."""
    S = q.new_zeros(*q.shape[:1], *q.shape[2:], v.shape[-1]) if h0 is None else h0
    outputs = []
    for t in range(q.shape[1]):
        if log_decay is not None:
            decay = log_decay[:, t].exp()
            S = S * (decay[..., None, None] if decay.ndim == 2 else decay[..., None])
        value = v[:, t]
        if beta is not None:
            value = beta[:, t, :, None] * (value - (k[:, t, :, None] @ S)[..., 0, :])
        S = S + k[:, t, ..., None] * value[..., None, :]
        outputs.append((q[:, t, :, None] @ S)[..., 0, :])
    return torch.stack(outputs, 1), S


def document_starts(seq_idx: Tensor) -> Tensor:
    """(B, L) bool: where the id differs from the one before; the first step continues the state that it is given."""
    return F.pad(seq_idx[:, 1:] != seq_idx[:, :-1], (1, 0))


def _decay_per_key(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, h0: Tensor | None) -> tuple[Tensor, Tensor]:
    length = q.shape[1]
    q, k, v = (_chunks(t, SUB_CHUNK) for t in (q, k, v))  # (B, n, H, c, ·)
    resets = torch.isneginf(log_decay).all(-1)
    log_decay, resets = _without_resets(_chunks(log_decay, SUB_CHUNK), _chunks(resets[..., None], SUB_CHUNK)[..., 0])
    level = log_decay.clamp_min(NEVER).double().cumsum(-2)  # (B, n, H, c, K)
    total = level[..., -1, :]
    if bool((total > -LARGEST).all()):
        scores = (q * level.exp().to(q.dtype)) @ (k * (-level).exp().to(k.dtype)).mT
        scores = scores.masked_fill(torch.isneginf(_causal(torch.zeros_like(scores), resets)), 0.0)
    else:
        pairs = level[..., :, None, :] - level[..., None, :, :]
        mask = torch.isneginf(_causal(pairs[..., 0] * 0, resets))
        pairs = pairs.masked_fill(mask[..., None], -torch.inf)
        scores = torch.einsum("bnhik,bnhjk,bnhijk->bnhij", q, k, pairs.to(q.dtype).exp())
    edges = _edges(level.mT, total, None if resets is None else resets[..., None, :])
    to_end, from_start, kept = (t.to(log_decay.dtype) for t in edges)
    summaries = (k * to_end.mT).mT @ v  # (B, n, H, K, V)
    states, last = linear_scan(kept[..., None], summaries, h0)
    before = torch.cat([(torch.zeros_like(last) if h0 is None else h0)[:, None], states[:, :-1]], 1)
    return _joined(scores @ v + (q * from_start.mT) @ before, length), last


def _delta_rule(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, beta: Tensor, h0: Tensor | None, chunk: int
) -> tuple[Tensor, Tensor]:
    length = q.shape[1]
    chunk = max(1, min(chunk, length))
    q, k, v, beta = (_chunks(t, chunk) for t in (q, k, v, beta[..., None]))  # (B, n, H, c, ·)
    log_decay, resets = _without_resets(_chunks(log_decay[..., None], chunk)[..., 0])
    level = log_decay.double().cumsum(-1)
    to_end, from_start, kept = (t.to(log_decay.dtype) for t in _edges(level, level[..., -1], resets))
    inside = _causal(_between(level, log_decay.dtype), resets).exp()
    system = (beta * (k @ k.mT) * inside).tril(-1)
    system = system + torch.eye(chunk, dtype=q.dtype, device=q.device)
    right = torch.cat([beta * k * from_start[..., None], beta * v], -1)
    solved = torch.linalg.solve_triangular(system, right, upper=False, unitriangular=True)
    W, U = solved.split([k.shape[-1], v.shape[-1]], -1)
    scores = (q @ k.mT) * inside
    S = q.new_zeros(*q.shape[:1], q.shape[2], k.shape[-1], v.shape[-1]) if h0 is None else h0
    outputs = []
    steps = (q * from_start[..., None], (k * to_end[..., None]).mT, scores, W, U, kept)
    for reads, writes, score, w, u, keep in zip(*(t.unbind(1) for t in steps), strict=True):
        values = u - w @ S
        outputs.append(reads @ S + score @ values)
        S = keep[..., None, None] * S + writes @ values
    return _joined(torch.stack(outputs, 1), length), S


def _chunks(t: Tensor, size: int) -> Tensor:
    """(B, L, H, ·) -> (B, n, H, size, ·), filled up with zeros: no input and, as a log-decay, no forgetting."""
    t = F.pad(t, (0, 0, 0, 0, 0, -t.shape[1] % size))
    return t.unflatten(1, (-1, size)).transpose(2, 3)


def _joined(t: Tensor, length: int) -> Tensor:
    return t.transpose(2, 3).flatten(1, 2)[:, :length]


def _without_resets(log_a: Tensor, resets: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """Log-decays without −∞, and how many resets there were up to each step of the chunk (None: none at all)."""
    reset = torch.isneginf(log_a) if resets is None else resets.bool()
    if not bool(reset.any()):
        return log_a, None
    fill = reset if reset.ndim == log_a.ndim else reset[..., None]
    return log_a.masked_fill(fill, 0.0), reset.cumsum(-1)


def _between(level: Tensor, dtype: torch.dtype) -> Tensor:
    """l_i − l_j of summed log-decays (..., c) in double precision, as (..., c, c) of the dtype.

    Sums of many nats lose digits that their differences need: only small ones are narrowed first, which is faster.
    """
    if bool((level[..., -1] > -LARGEST).all()):
        level = level.to(dtype)
    return (level[..., :, None] - level[..., None, :]).to(dtype)


def _causal(pairs: Tensor, resets: Tensor | None) -> Tensor:
    """−∞ where j > i, or where a reset lies between them."""
    later = torch.ones(pairs.shape[-2:], dtype=torch.bool, device=pairs.device).triu(1)
    if resets is not None:
        later = later | (resets[..., :, None] != resets[..., None, :])
    return pairs.masked_fill(later, -torch.inf)


def _edges(level: Tensor, total: Tensor, resets: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Decay from each step to the chunk's end, from the chunk's start to each step, and over the whole chunk."""
    to_end, from_start, kept = (total[..., None] - level).exp(), level.exp(), total.exp()
    if resets is None:
        return to_end, from_start, kept
    last = resets[..., -1:]
    return (
        to_end.masked_fill(resets != last, 0.0),
        from_start.masked_fill(resets > 0, 0.0),
        kept.masked_fill(last[..., 0] > 0, 0.0),
    )
