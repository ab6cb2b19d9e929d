"""Rows of logits on a device become the numbers that each piece of work wants; only those move to numpy."""

from __future__ import annotations

from collections.abc import Sequence as Seq

import numpy as np
import torch

from likely.runtimes.protocol import IntArray
from likely.runtimes.rows import CallOutputs, match

CHUNK_BYTES = 16 * 2**20


class RowCollector(CallOutputs):
    """The Outputs of a call from rows on a device, in any grouping."""

    def add(self, logits: torch.Tensor, where: Seq[tuple[int, IntArray]]) -> None:
        """logits (R, V), any float dtype: the rows of each (piece, sorted row numbers), one after the other."""
        if not len(logits):
            return
        logits = logits.float()
        if any(bool(torch.isnan(part).any()) for part in logits.split(_rows_at_once(logits))):
            raise FloatingPointError("a row of logits contains NaN")
        start, places = 0, []
        for piece, rows in where:
            to, at = match(self._asked[piece], rows)
            places.append((piece, to, start + at, start, rows))
            start += len(rows)
        wants = [self._wants[piece] for piece, *_ in places]
        if any(w.logits for w in wants):
            self._add_logits(logits, places)
        if any(w.top or w.entropy or (w.pairs is not None and len(w.pairs)) for w in wants):
            log_norm = torch.cat([torch.logsumexp(part, -1) for part in logits.split(_rows_at_once(logits))])
            self._add_pairs(logits, log_norm, places)
            self._add_top(logits, log_norm, places)
            self._add_entropy(logits, log_norm, places)

    def _add_logits(self, logits: torch.Tensor, places: list[tuple]) -> None:
        chosen = [(p, to, at) for p, to, at, *_ in places if self._wants[p].logits]
        rows = np.concatenate([at for *_, at in chosen])
        every = len(rows) == len(logits) and (rows == np.arange(len(rows))).all()
        values = logits if every else logits[torch.from_numpy(rows).to(logits.device)]
        self._hand_out("logits", values, [(p, to) for p, to, _ in chosen])

    def _add_pairs(self, logits: torch.Tensor, log_norm: torch.Tensor, places: list[tuple]) -> None:
        targets, rows, tokens = [], [], []
        for piece, _, _, start, own_rows in places:
            pairs = self._wants[piece].pairs
            if pairs is None or not len(pairs):
                continue
            pairs = np.asarray(pairs)
            to, at = match(pairs[:, 0], own_rows)
            targets.append((piece, to))
            rows.append(start + at)
            tokens.append(pairs[to, 1])
        if not targets:
            return
        row = torch.from_numpy(np.concatenate(rows)).to(logits.device)
        token = torch.from_numpy(np.concatenate(tokens).astype(np.int64)).to(logits.device)
        self._hand_out("logprobs", logits[row, token] - log_norm[row], targets)

    def _add_top(self, logits: torch.Tensor, log_norm: torch.Tensor, places: list[tuple]) -> None:
        chosen = [(p, to, at) for p, to, at, *_ in places if self._wants[p].top]
        if not chosen:
            return
        rows = torch.from_numpy(np.concatenate([at for *_, at in chosen])).to(logits.device)
        ids, values = top_tokens(logits[rows], max(self._wants[p].top for p, *_ in chosen))
        targets = [(p, to) for p, to, _ in chosen]
        self._hand_out("top_ids", ids, targets)
        self._hand_out("top_logprobs", values - log_norm[rows, None], targets)

    def _add_entropy(self, logits: torch.Tensor, log_norm: torch.Tensor, places: list[tuple]) -> None:
        chosen = [(p, to, at) for p, to, at, *_ in places if self._wants[p].entropy]
        if not chosen:
            return
        rows = torch.from_numpy(np.concatenate([at for *_, at in chosen])).to(logits.device)
        self._hand_out("entropy", entropies(logits, log_norm, rows), [(p, to) for p, to, _ in chosen])

    def _hand_out(self, name: str, values: torch.Tensor, targets: list[tuple[int, IntArray]]) -> None:
        """values, one after the other: to these places of each piece; of wider rows the first columns."""
        found, start = values.cpu().numpy(), 0
        for piece, to in targets:
            field = self._fields[piece][name] if name != "logits" else self._room_for(name, piece, found.shape[1])
            own = found[start : start + len(to)]
            field[to] = own[:, : field.shape[1]] if field.ndim == 2 else own
            start += len(to)


def top_tokens(logits: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and values (R, k) of the k largest entries of each row, largest first; ties go to the smaller id.

    torch.topk breaks ties as it likes, so that rows with a tie at the cut are done again by hand.
    """
    values, ids = logits.topk(k, dim=-1)
    tied = (logits >= values[:, -1:]).sum(-1) > k
    for row in tied.nonzero().flatten().tolist():
        candidates = (logits[row] >= values[row, -1]).nonzero().flatten()
        order = torch.sort(logits[row, candidates], descending=True, stable=True).indices[:k]
        ids[row] = candidates[order]
    ids = ids.sort(-1).values
    values, order = torch.sort(logits.gather(-1, ids), dim=-1, descending=True, stable=True)
    return ids.gather(-1, order), values


def entropies(logits: torch.Tensor, log_norm: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Nats (R,) of the chosen rows, a few rows at a time; an entry of -inf adds 0."""
    parts = []
    for some in rows.split(_rows_at_once(logits)):
        logprobs = logits[some] - log_norm[some, None]
        p = logprobs.exp()
        parts.append(-(p * logprobs.masked_fill_(p == 0, 0)).sum(-1))
    return torch.cat(parts) if parts else log_norm[:0]


def _rows_at_once(logits: torch.Tensor) -> int:
    """Rows whose fp32 copy takes 16 MiB: what a reduction may hold beside the logits."""
    return max(1, CHUNK_BYTES // (4 * logits.shape[-1]))
