"""Several layers side by side on the same input, as in Falcon-H1: their outputs are scaled and added."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from likely.sequence.mixer import MixerOutput, MixerRows, MixerState, SequenceMesh, SequenceMixer
from likely.sequence.table import make_mixer


class ParallelMixer(SequenceMixer):
    """y = Σ_i out_scales_i · branch_i(in_scales_i · x).

    branches   names of layers, or layers that are made already;  settings: of each branch that is given by name
    in_scales, out_scales  factors, 1 by default

    State: every branch's tensors, as "0.h", "1.keys" ...
    """

    packs = True  # each branch resets, or runs documents apart

    def __init__(
        self, d_model: int, *, branches: Sequence[str | SequenceMixer] = ("mamba2", "attention"),
        settings: Sequence[Mapping[str, object]] | None = None, in_scales: Sequence[float] | None = None,
        out_scales: Sequence[float] | None = None,
    ):  # fmt: skip
        super().__init__(d_model)
        count = len(branches)
        for name, given in (("settings", settings), ("in_scales", in_scales), ("out_scales", out_scales)):
            if given is not None and len(given) != count:
                raise ValueError(f"{name} must have one entry for each of {count} branches, got {len(given)}")
        made = [
            b if isinstance(b, SequenceMixer) else make_mixer(b, d_model, (settings or [{}] * count)[i])
            for i, b in enumerate(branches)
        ]
        if not made or any(b.d_model != d_model for b in made):
            raise ValueError(f"branches must be layers of width {d_model}, got {[b.d_model for b in made]}")
        self.branches = nn.ModuleList(made)
        self.in_scales, self.out_scales = tuple(in_scales or [1.0] * count), tuple(out_scales or [1.0] * count)
        self.causal = all(b.causal for b in made)
        kinds = [b.state_kind for b in made]
        self.state_kind = next((k for k in ("history", "kv", "recurrent") if k in kinds), "none")  # type: ignore[misc]

    def parts(self) -> list[SequenceMixer]:
        return [branch for branch in self.branches if isinstance(branch, SequenceMixer)]

    def state_spec(self, length: int = 0) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        return {f"{i}.{name}": s for i, part in enumerate(self.parts()) for name, s in part.state_spec(length).items()}

    def mix(self, x: Tensor, state: MixerState, rows: MixerRows) -> tuple[Tensor, MixerState, dict[str, Tensor]]:
        tensors: dict[str, Tensor] = {}
        scalars: dict[str, Tensor] = {}
        total = torch.zeros_like(x)
        for i, part in enumerate(self.parts()):
            prefix = f"{i}."
            inner = MixerState({n.removeprefix(prefix): t for n, t in state.tensors.items() if n.startswith(prefix)})
            y, after, aux = part.mix_documents(x * self.in_scales[i], inner, rows)
            total = total + self.out_scales[i] * y
            tensors |= {prefix + name: t for name, t in after.tensors.items()}
            scalars |= {prefix + name: t for name, t in aux.items()}
        return total, MixerState(tensors), scalars

    def forward(
        self, x: Tensor, state: MixerState | None = None, *, mask: Tensor | None = None,
        seq_idx: Tensor | None = None, positions: Tensor | None = None, mesh: SequenceMesh | None = None,
        return_state: bool = False, states_at: Tensor | Sequence[int] | None = None,
    ) -> MixerOutput:  # fmt: skip
        """As `SequenceMixer.forward`; over a mesh every branch exchanges its own states."""
        if mesh is None:
            return super().forward(
                x, state, mask=mask, seq_idx=seq_idx, positions=positions, return_state=return_state,
                states_at=states_at,
            )  # fmt: skip
        if return_state or state is not None or states_at is not None:
            raise ValueError("a mesh takes whole sequences: leave out state, return_state and states_at")
        scalars: dict[str, Tensor] = {}
        total = torch.zeros_like(x)
        for i, part in enumerate(self.parts()):
            out = part(x * self.in_scales[i], mask=mask, seq_idx=seq_idx, positions=positions, mesh=mesh)
            total = total + self.out_scales[i] * out.y
            scalars |= {f"{i}.{name}": value for name, value in out.aux.items()}
        return MixerOutput(total, None, scalars)
