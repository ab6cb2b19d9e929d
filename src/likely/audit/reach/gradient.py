"""The gradient of the loss in the tokens of a control, from a transformers module.  torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from likely.audit.reach.problem import ReachProblem
from likely.training.loop import import_torch

if TYPE_CHECKING:
    from torch.nn import Module


class ControlGradient(Protocol):
    """Where GCG's candidates come from."""

    def __call__(self, problem: ReachProblem, control: Sequence[int]) -> NDArray[np.float64]:
        """(k, V) ∂L/∂onehot."""
        ...


class TokenGradient:
    """∂L/∂E of the one-hot matrix E (k, V) of the control, at E: the embeddings of the control are E·W_E.

    module  any causal language model of transformers that takes `inputs_embeds`; only the input embedding is asked
            for, so that no architecture is named here.  Its weights get no gradients
    """

    def __init__(self, module: Module):
        self.module: Any = module
        self._torch = import_torch()
        self._table: Any = None

    def __call__(self, problem: ReachProblem, control: Sequence[int]) -> NDArray[np.float64]:
        torch = self._torch
        if not len(control):
            raise ValueError("an empty control has no gradient")
        loss, embedded = self.loss(problem, control)
        [slope] = torch.autograd.grad(loss, embedded)
        start = len(problem.before)
        with torch.no_grad():
            found = slope[0, start : start + len(control)].to(self._rows().dtype) @ self._rows().T
        return np.asarray(found.double().cpu().numpy(), np.float64)

    def loss(self, problem: ReachProblem, control: Sequence[int]) -> tuple[Any, Any]:
        """(mean of −log p of the target, the embeddings (1, n, d) that it was computed from) as tensors."""
        torch = self._torch
        table = self.module.get_input_embeddings()
        text, target = problem.text(control), problem.target
        ids = torch.tensor([[*text, *target[:-1]]], device=next(self.module.parameters()).device)
        with torch.no_grad():
            embedded = table(ids)
        embedded = embedded.detach().requires_grad_(True)
        with torch.enable_grad():
            logits = self.module(inputs_embeds=embedded, use_cache=False).logits[0, len(text) - 1 :]
            logprobs = torch.log_softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)), -1)
            return -logprobs[torch.arange(len(target)), torch.tensor(target)].mean(), embedded

    def _rows(self) -> Any:
        """(V, d): what the model embeds each token as."""
        if self._table is None:
            table = self.module.get_input_embeddings()
            with self._torch.no_grad():
                self._table = table(self._torch.arange(table.num_embeddings, device=table.weight.device)).detach()
        return self._table


def gradient_of(model: str) -> TokenGradient:
    """The gradient of a model by name or path, from its weights in torch, in float32.

    The controls that it proposes may be evaluated on another runtime of the same model, in other numbers: the gradient
    only says which ones are worth it.
    """
    from likely.models.load import load_local

    runtime: Any = load_local(model, runtime="torch", dtype="float32").runtime
    for parameter in runtime.module.parameters():
        parameter.requires_grad_(False)
    return TokenGradient(runtime.module)
