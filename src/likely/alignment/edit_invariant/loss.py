"""Edit-invariant sequence loss: how well each n-gram of a noisy reference occurs anywhere in the output.  torch.

Liu et al. 2022, "Don't Take It Literally: An Edit-Invariant Sequence Loss for Text Generation", arXiv:2106.15078.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Generator, Tensor

Position = Literal["softmax", "gumbel"]
# of the paper's translation; other n-grams count the same
PAPER_WEIGHTS: dict[tuple[int, ...], tuple[float, ...]] = {(1, 2): (0.8, 0.2)}
ABOVE_ZERO = 1e-3  # log-probabilities may exceed 0 by rounding, logits do by more


def edit_invariant_loss(
    log_probs: Tensor,
    targets: Tensor | Sequence[int],
    *,
    ngrams: Sequence[int] = (1, 2),
    weights: Sequence[float] | None = None,
    output_mask: Tensor | None = None,
    target_mask: Tensor | None = None,
    position: Position = "softmax",
    tau: float = 1.0,
    floor: float = -20.0,
    per_token: bool = True,
    generator: Generator | None = None,
    from_logits: bool = False,
    reduction: Literal["mean", "sum", "none"] = "mean",
) -> Tensor:
    """Mean over a reference's n-grams of −log p of the n-gram, wherever the output has it; in nats per token.

    log_probs    (T, V) or (B, T, V): row t is the distribution of output position t;  from_logits: not normalised yet
    targets      (T*,) or (B, T*) token ids of the reference, its end of sequence included
    ngrams       lengths n;  weights: of each n, by default 0.8 and 0.2 of (1, 2), else equal ones
    output_mask  (B, T), target_mask (B, T*): True where a position counts, one run in each row; by default everywhere
    position     how the weights q of positions are chosen: "softmax" of the n-grams' log-probabilities, or "gumbel",
                 the same with Gumbel noise of `generator`, for training
    tau          temperature of q; inf: uniform weights
    floor        log-probabilities below it count as it and get no gradient
    per_token    divide an n-gram's log-probability by n, in the loss and in q, so that the n are comparable
    reduction    "mean" or "sum" over the batch, or "none": (B,)

    A_n[t, i] = Σ_{j<n} log p_{t+j}(y*_{i+j}) / n, q = softmax_t(A_n / tau),
    L = Σ_n w_n · −mean_i Σ_t q[t, i] A_n[t, i]; gradients flow through q too.  A row with fewer than n positions or
    target tokens is scored by n-grams as long as it allows.  Memory is B·T·T* beside the log-probabilities.
    Liu et al. 2022, eq. 6-9; the division by n, equal weights and the floor are those of the authors' code.
    """
    import torch

    ids = torch.as_tensor(targets, device=log_probs.device)
    log_probs, ids, outputs, wanted, single = _batched(log_probs, ids, output_mask, target_mask)
    shares = _checked_weights(ngrams, weights)
    _check_settings(position, tau, floor, reduction)
    # masked target positions may hold any id, -100 included
    ids = torch.where(wanted, ids, 0)
    vocabulary = log_probs.shape[-1]
    if int(ids.min()) < 0 or int(ids.max()) >= vocabulary:
        raise ValueError(f"targets must be token ids below {vocabulary}, got {int(ids.min())} to {int(ids.max())}")
    cells = _log_probs_of_targets(log_probs, ids, outputs, from_logits).clamp(min=floor)  # (B, T, T*)
    both = outputs[:, :, None] & wanted[:, None, :]
    cells = torch.where(both, cells, 0.0)
    shortest = torch.minimum(outputs.sum(1), wanted.sum(1))
    loss = cells.new_zeros(len(cells))
    for n, share in zip(ngrams, shares, strict=True):
        lengths = shortest.clamp(max=n)
        for length in lengths.unique().tolist():
            rows = (lengths == length).nonzero()[:, 0]
            found = _ngram_loss(
                cells[rows], outputs[rows], wanted[rows], length, position=position, tau=tau, per_token=per_token,
                generator=generator,
            )  # fmt: skip
            loss = loss.index_add(0, rows, share * found)
    if reduction == "none":
        return loss[0] if single else loss
    return loss.sum() if reduction == "sum" else loss.mean()


def ngram_log_probs(cells: Tensor, n: int) -> Tensor:
    """Sums along diagonals, (B, T − n + 1, T* − n + 1): log p of the n-gram that starts at target i, placed at t.

    cells  (B, T, T*) log p_t(y*_i).  A convolution of `cells` with the n × n identity.
    """
    rows, columns = cells.shape[1] - n + 1, cells.shape[2] - n + 1
    total = cells[:, :rows, :columns]
    for j in range(1, n):
        total = total + cells[:, j : j + rows, j : j + columns]
    return total


def _ngram_loss(
    cells: Tensor, outputs: Tensor, wanted: Tensor, n: int, *, position: Position, tau: float, per_token: bool,
    generator: Generator | None,
) -> Tensor:  # fmt: skip
    """(B,) of rows that all hold at least n positions and n target tokens."""
    import torch

    scores = ngram_log_probs(cells, n) / (n if per_token else 1)
    places = outputs.unfold(1, n, 1).all(-1)  # (B, T − n + 1)
    grams = wanted.unfold(1, n, 1).all(-1)
    logits = scores / tau if math.isfinite(tau) else torch.zeros_like(scores)
    if position == "gumbel":
        where = generator.device if generator is not None else scores.device
        uniform = torch.rand(scores.shape, generator=generator, device=where, dtype=torch.float32).to(scores)
        smallest = torch.finfo(torch.float32).tiny
        logits = logits - torch.log(-torch.log(uniform.clamp(smallest, 1 - 2**-24)))
    q = torch.softmax(logits.masked_fill(~places[:, :, None], -math.inf), dim=1)
    expected = (q * scores).sum(1)  # (B, T* − n + 1)
    return -torch.where(grams, expected, 0.0).sum(1) / grams.sum(1)


def _log_probs_of_targets(log_probs: Tensor, ids: Tensor, outputs: Tensor, from_logits: bool) -> Tensor:
    """(B, T, T*) in float32 or wider; refuses NaN, and logits that pass for log-probabilities."""
    import torch

    precise = log_probs.dtype if log_probs.dtype == torch.float64 else torch.float32
    cells = log_probs.gather(2, ids[:, None, :].expand(-1, log_probs.shape[1], -1)).to(precise)
    if from_logits:
        cells = cells - torch.logsumexp(log_probs.to(precise), dim=2, keepdim=True)
    seen = torch.where(outputs[:, :, None], cells.detach(), 0.0)
    if bool(seen.isnan().any()):
        raise ValueError("log_probs hold NaN: the model's output is not finite")
    if not from_logits:
        highest = float(torch.where(outputs, log_probs.detach().amax(2).to(precise), -math.inf).max())
        if highest > ABOVE_ZERO:
            raise ValueError(f"log_probs must be <= 0, got {highest:.4g}: give logits with from_logits=True")
    return cells


def _batched(
    log_probs: Tensor, ids: Tensor, output_mask: Tensor | None, target_mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, bool]:
    import torch

    single = log_probs.dim() == 2
    if single:
        log_probs, ids = log_probs[None], ids[None]
        output_mask = output_mask if output_mask is None else output_mask[None]
        target_mask = target_mask if target_mask is None else target_mask[None]
    if log_probs.dim() != 3 or ids.dim() != 2 or len(ids) != len(log_probs):
        raise ValueError(
            f"log_probs must be (T, V) with targets (T*,), or (B, T, V) with (B, T*): "
            f"got {tuple(log_probs.shape)} and {tuple(ids.shape)}"
        )
    if ids.is_floating_point() and ids.numel():
        raise ValueError(f"targets must be whole numbers, got {ids.dtype}")
    masks = []
    for name, mask, shape in (
        ("output_mask", output_mask, log_probs.shape[:2]),
        ("target_mask", target_mask, ids.shape),
    ):
        mask = torch.ones(shape, dtype=torch.bool) if mask is None else mask.bool()
        mask = mask.to(log_probs.device)
        if mask.shape != shape:
            raise ValueError(f"{name} must be {tuple(shape)}, got {tuple(mask.shape)}")
        empty = (~mask.any(1)).nonzero()
        if mask.shape[1] == 0 or len(empty):
            raise ValueError(f"{name.split('_')[0]} {int(empty[0]) if len(empty) else 0} is empty: nothing to compare")
        starts = mask[:, 0].long() + (mask[:, 1:] & ~mask[:, :-1]).sum(1)
        if bool((starts > 1).any()):
            raise ValueError(f"{name}: row {int((starts > 1).nonzero()[0])} has a hole; True must be one run")
        masks.append(mask)
    return log_probs, ids.long(), masks[0], masks[1], single


def _checked_weights(ngrams: Sequence[int], weights: Sequence[float] | None) -> Sequence[float]:
    if not ngrams or any(int(n) != n or n < 1 for n in ngrams):
        raise ValueError(f"ngrams must be whole numbers >= 1, got {list(ngrams)}")
    if weights is None:
        return PAPER_WEIGHTS.get(tuple(ngrams), (1 / len(ngrams),) * len(ngrams))
    if len(weights) != len(ngrams):
        raise ValueError(f"weights must be one for each of the {len(ngrams)} ngrams, got {len(weights)}")
    if not all(math.isfinite(w) and w >= 0 for w in weights) or not sum(weights) > 0:
        raise ValueError(f"weights must be >= 0 and not all 0, got {list(weights)}")
    return weights


def _check_settings(position: str, tau: float, floor: float, reduction: str) -> None:
    if position not in ("softmax", "gumbel"):
        raise ValueError(f'position must be "softmax" or "gumbel", got "{position}"')
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f'reduction must be "mean", "sum" or "none", got "{reduction}"')
    if not tau > 0:
        raise ValueError(f"tau must be > 0, got {tau}")
    if not floor < 0:
        raise ValueError(f"floor must be < 0, got {floor}")
