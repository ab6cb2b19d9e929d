"""LoRA by peft: adapters around a module and off it again, what they learned as factors, batches of like length."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from collections.abc import Sequence as Seq
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from likely.errors import CapabilityError, ModelError, needs
from likely.tokenizers.protocol import Tokenizer

if TYPE_CHECKING:
    import torch


ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")


class HasRuntime(Protocol):
    """A `likely.Model`, or what `load_local` gives."""

    @property
    def runtime(self) -> Any: ...
    @property
    def tokenizer(self) -> Tokenizer: ...


def batches(lengths: Seq[int], *, batch: int, steps: int, seed: int) -> list[list[int]]:
    """Which pairs each step reads: every pass over all of them is a new order, and texts of a batch are of like length.

    A pass is shuffled, cut into pieces of 8 batches that are sorted by length, and its batches are shuffled again; the
    last batch of a pass may be smaller.
    """
    rng = np.random.default_rng(seed)
    chosen: list[list[int]] = []
    while len(chosen) < steps:
        order = rng.permutation(len(lengths))
        pieces = [order[i : i + 8 * batch] for i in range(0, len(order), 8 * batch)]
        alike = np.concatenate([p[np.argsort([lengths[i] for i in p], kind="stable")] for p in pieces])
        groups = [alike[i : i + batch].tolist() for i in range(0, len(alike), batch)]
        chosen += [groups[i] for i in rng.permutation(len(groups))]
    return chosen[:steps]


def with_adapters(
    module: torch.nn.Module, *, rank: int, alpha: int, dropout: float, targets: Seq[str], seed: int,
    whole_modules: Seq[str] = (), tokens: Seq[int] = (),
) -> Any:  # fmt: skip
    """The module wrapped by peft, adapters on; ModelError where no linear layer has one of the names.

    whole_modules  last names of modules that are trained whole, as copies;  tokens: rows of embedding and output
    """
    import torch

    with needs("peft", "train"):
        from peft import LoraConfig, get_peft_model
    linear = {name for name, part in module.named_modules() if type(part) is torch.nn.Linear}
    chosen = {name for name in linear if name.split(".")[-1] in targets}
    if missing := sorted(set(targets) - {name.split(".")[-1] for name in chosen}):
        known = ", ".join(sorted({name.split(".")[-1] for name in linear}))
        raise ModelError(
            f"the model has no linear layer called {missing[0]} (it has: {known}): give targets=, or train all "
            f"weights (--full)"
        )
    config = LoraConfig(
        r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=sorted(chosen), task_type="CAUSAL_LM",
        modules_to_save=list(whole_modules) or None, trainable_token_indices=_token_rows(module, tokens),
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return get_peft_model(module, config)


def _token_rows(module: Any, tokens: Seq[int]) -> dict[str, list[int]] | None:
    """By name of the embedding, and of the output where that is another matrix."""
    if not tokens:
        return None
    tables = {id(table.weight): table for table in (module.get_output_embeddings(), module.get_input_embeddings())}
    return {name: list(tokens) for name, part in module.named_modules() if any(part is t for t in tables.values())}


@contextlib.contextmanager
def peft_model(
    module: torch.nn.Module, *, rank: int, alpha: int, dropout: float, targets: Seq[str], seed: int
) -> Iterator[Any]:
    """The module wrapped by peft; afterwards it is as it was."""
    asked = {name: parameter.requires_grad for name, parameter in module.named_parameters()}
    wrapped = with_adapters(module, rank=rank, alpha=alpha, dropout=dropout, targets=targets, seed=seed)
    try:
        yield wrapped
    finally:
        wrapped.unload()
        module.eval()
        if hasattr(module, "peft_config"):
            del module.peft_config
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(asked[name])


def add_factors(
    module: torch.nn.Module, factors: Mapping[str, tuple[torch.Tensor, torch.Tensor]], scale: float
) -> None:
    """W + scale · B A for every matrix that has factors, in place."""
    import torch

    with torch.no_grad():
        for name, (a, b) in factors.items():
            weight: Any = module.get_submodule(name).weight
            weight.copy_(weight.float() + (scale * (b.float() @ a.float())).to(weight.device))


def learned_factors(peft: Any) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    from peft import get_peft_model_state_dict

    return factors_by_module({name: t.detach().clone() for name, t in get_peft_model_state_dict(peft).items()})


def factors_by_module(tensors: Mapping[str, torch.Tensor]) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    names = [n.removesuffix(".lora_A.weight") for n in tensors if n.endswith(".lora_A.weight")]
    return {
        n.removeprefix("base_model.model."): (tensors[f"{n}.lora_A.weight"], tensors[f"{n}.lora_B.weight"])
        for n in names
    }


def trainable(lm: HasRuntime | str | Path) -> HasRuntime:
    if isinstance(lm, str | Path):
        from likely.models.load import load_local

        return load_local(str(lm), runtime="torch")
    capabilities = getattr(getattr(lm, "runtime", None), "capabilities", None)
    if capabilities is None or not capabilities.gradients:
        raise CapabilityError('LoRA needs gradients, which this model does not give: load it with runtime="torch"')
    return lm
