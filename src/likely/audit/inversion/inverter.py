"""The inverter: an encoder reads a step of log-probabilities at each place, a decoder writes the hidden prompt.  torch.

Each step is embedded as Linear(D, hidden) → dropout → GELU → Linear(hidden, width) of its standardised log-ratios, or,
where only tokens are known, as the weighted mean of their embeddings.  Nazir et al. 2025 (PILS), with a small network
of its own in place of T5.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from likely.audit.inversion.trajectories import InverterInput
from likely.errors import DataError
from likely.training.loop import import_torch

if TYPE_CHECKING:
    from torch import Tensor, nn

PIECE = re.compile(r" ?\w+|[^\w]")
PAD, END, UNKNOWN = 0, 1, 2


@dataclass(frozen=True)
class InverterConfig:
    """Sizes and training of an inverter; the defaults train on one processor in minutes.

    most_steps  positions of the encoder;  most_pieces: longest prompt that can be written
    shift       training begins the steps at a random position up to this one, so that more steps can be read later
    """

    width: int = 128
    hidden: int = 256
    heads: int = 4
    encoder_layers: int = 2
    decoder_layers: int = 2
    dropout: float = 0.1
    most_steps: int = 64
    most_pieces: int = 64
    shift: int = 0
    epochs: int = 20
    batch: int = 64
    learning_rate: float = 1e-3
    warmup: int = 100
    seed: int = 0


class PromptPieces:
    """The words and signs of prompts as numbers; texts are joined of pieces without loss."""

    def __init__(self, prompts: Sequence[str]):
        self._set(sorted({piece for prompt in prompts for piece in PIECE.findall(prompt)}))

    @classmethod
    def of_listed(cls, pieces: Sequence[str]) -> PromptPieces:
        """Those of a file."""
        made = cls(())
        made._set([str(piece) for piece in pieces])
        return made

    def _set(self, pieces: Sequence[str]) -> None:
        self._pieces = ["", "", "\N{REPLACEMENT CHARACTER}", *pieces]
        self._number = {piece: i for i, piece in enumerate(self._pieces) if i > UNKNOWN}

    @property
    def listed(self) -> list[str]:
        """The words and signs, in the order of their numbers."""
        return self._pieces[UNKNOWN + 1 :]

    def __len__(self) -> int:
        return len(self._pieces)

    def encode(self, prompt: str) -> list[int]:
        return [self._number.get(piece, UNKNOWN) for piece in PIECE.findall(prompt)]

    def decode(self, numbers: Sequence[int]) -> str:
        return "".join(self._pieces[number] for number in numbers)


@dataclass(frozen=True)
class StepScale:
    """Means and deviations (D,) of the training steps' log-ratios, or the token ids that they know."""

    mean: Any = None
    deviation: Any = None
    ids: Any = None

    @classmethod
    def of(cls, given: InverterInput) -> StepScale:
        if given.ratios is None:
            return cls(ids=np.unique(np.asarray(given.ids)))
        flat = given.ratios.reshape(-1, given.ratios.shape[-1]).astype(np.float64)
        return cls(flat.mean(0), np.maximum(flat.std(0), 1e-6))

    def applied(self, given: InverterInput) -> InverterInput:
        """Standardised; tokens renumbered from 1 where they are known, 0 otherwise."""
        if given.ratios is not None:
            if self.mean is None:
                raise DataError("this inverter reads tokens, not log-ratios")
            if given.ratios.shape[-1] != len(self.mean):
                raise DataError(f"this inverter reads {len(self.mean)} log-ratios, got {given.ratios.shape[-1]}")
            return InverterInput(ratios=((given.ratios - self.mean) / self.deviation).astype(np.float32))
        if self.ids is None:
            raise DataError("this inverter reads log-ratios, not tokens")
        ids = np.asarray(given.ids)
        places = np.searchsorted(self.ids, ids)
        known = self.ids[np.minimum(places, len(self.ids) - 1)] == ids
        return InverterInput(ids=np.where(known, places + 1, 0), weights=given.weights)


def build_network(config: InverterConfig, pieces: int, *, ratios: int | None, known_ids: int) -> nn.Module:
    """The network.  ratios: D of the log-ratios, None where steps are tokens, of which `known_ids` are known."""
    torch = import_torch()
    nn = torch.nn

    class Network(nn.Module):  # type: ignore[name-defined]
        def __init__(self) -> None:
            super().__init__()
            c = config
            if ratios is not None:
                self.step = nn.Sequential(
                    nn.Linear(ratios, c.hidden), nn.Dropout(c.dropout), nn.GELU(), nn.Linear(c.hidden, c.width)
                )
            else:
                self.token = nn.Embedding(known_ids + 1, c.width)
            self.place = nn.Embedding(c.most_steps, c.width)
            self.piece = nn.Embedding(pieces, c.width, padding_idx=PAD)
            self.piece_place = nn.Embedding(c.most_pieces + 1, c.width)
            settings = {
                "d_model": c.width, "nhead": c.heads, "dim_feedforward": 4 * c.width, "dropout": c.dropout,
                "activation": "gelu", "batch_first": True, "norm_first": True,
            }  # fmt: skip
            self.encoder = nn.TransformerEncoder(
                nn.TransformerEncoderLayer(**settings), c.encoder_layers, nn.LayerNorm(c.width),
                enable_nested_tensor=False,
            )  # fmt: skip
            self.decoder = nn.TransformerDecoder(
                nn.TransformerDecoderLayer(**settings), c.decoder_layers, nn.LayerNorm(c.width)
            )
            self.head = nn.Linear(c.width, pieces)

        def read(self, given: InverterInput, shift: int = 0) -> Tensor:
            """(B, T, width) of a batch."""
            if given.ratios is not None:
                steps = self.step(torch.from_numpy(np.ascontiguousarray(given.ratios)))
            else:
                weights = torch.from_numpy(np.ascontiguousarray(given.weights))
                embedded = self.token(torch.from_numpy(np.ascontiguousarray(given.ids)))
                steps = (weights[..., None] * embedded).sum(-2)
            places = torch.arange(shift, shift + steps.shape[1])
            return self.encoder(steps + self.place(places))

        def forward(self, memory: Tensor, before: Tensor) -> Tensor:
            """(B, L, pieces) logits of what follows each of the pieces (B, L) before it."""
            length = before.shape[1]
            mask = torch.triu(torch.full((length, length), float("-inf")), 1)
            x = self.piece(before) + self.piece_place(torch.arange(length))
            return self.head(self.decoder(x, memory, tgt_mask=mask))

    return Network()
