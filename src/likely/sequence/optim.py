"""Parameter groups for training: recurrences learn slowly and without weight decay, or training is unstable."""

from __future__ import annotations

from typing import TypedDict

from torch import nn

from likely.sequence.mixer import SequenceMixer

OUTPUTS = ("C", "D", "outputs", "skip")  # held by mixers beside their recurrences; they learn like everything else


class ParameterGroup(TypedDict):
    """As torch's optimisers take it."""

    name: str
    params: list[nn.Parameter]
    lr: float
    weight_decay: float


def param_groups(
    model: nn.Module, *, lr: float, weight_decay: float = 0.05, recurrence_lr: float = 1e-3
) -> list[ParameterGroup]:
    """Groups for an optimiser, such as torch.optim.AdamW(param_groups(model, lr=4e-3)).

    weights     matrices and kernels: lr, weight_decay
    vectors     biases, norms, and what reads states out: lr, no decay
    recurrence  decays, frequencies and time steps, which a mixer holds itself: min(lr, recurrence_lr), no decay

    Parameters that are frozen are left out, and so are groups without any.  Gu et al. 2022 (S4, arXiv:2111.00396).
    """
    if not lr > 0 or not recurrence_lr > 0 or not weight_decay >= 0:
        raise ValueError(f"learning rates must be > 0 and weight_decay >= 0, got {lr}, {recurrence_lr}, {weight_decay}")
    recurrent = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, SequenceMixer)
        for name, parameter in module.named_parameters(recurse=False)
        if name not in OUTPUTS
    }
    found: dict[str, list[nn.Parameter]] = {"weights": [], "vectors": [], "recurrence": []}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        reads = name.rpartition(".")[2] in OUTPUTS
        kind = "vectors" if parameter.dim() < 2 or reads else "weights"
        found["recurrence" if id(parameter) in recurrent else kind].append(parameter)
    rates = {"weights": lr, "vectors": lr, "recurrence": min(lr, recurrence_lr)}
    return [
        {"name": name, "params": parameters, "lr": rates[name], "weight_decay": weight_decay * (name == "weights")}
        for name, parameters in found.items()
        if parameters
    ]
