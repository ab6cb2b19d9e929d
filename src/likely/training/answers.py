"""A causal language model learns (prompt, answer) pairs by LoRA: what it learned is an adapter that comes and goes.

Needs the torch runtime and peft (extra `train`).  The loss is −log p(answer | prompt), of exactly the tokens that
`score_pairs` scores, so that training and scoring cannot disagree about where an answer begins.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from likely.errors import DataError, ModelError, check_choice
from likely.io.hashes import fingerprint
from likely.scoring.likelihood import Item, ScoringSettings, joint_item, score_pairs
from likely.tokenizers.protocol import Tokenizer
from likely.training.fit import PRECISIONS, TrainingSettings, fit
from likely.training.loop import LossOutput
from likely.training.lora import ATTENTION, HasRuntime, add_factors, factors_by_module, learned_factors, trainable
from likely.training.policy import LoraSettings, Policy

if TYPE_CHECKING:
    import torch

    from likely.scoring.scored import Scored

WEIGHTS, RECIPE = "adapter_model.safetensors", "recipe.json"
WARMUP = 0.05  # of the steps: the rate rises from 0, then falls to 0, both linearly


@dataclass
class Adapter:
    """What was learned: per matrix W (out, in) of the model the factors A (rank, in) and B (out, rank).

    The model is untouched until `attached`; then its matrices are W + scale · B A, and all its verbs use them.

    lm      the model it was trained on;  scale: alpha / rank
    losses  mean nats per answer token of each training step (dropout on)
    recipe  everything the numbers depend on
    """

    lm: HasRuntime
    factors: dict[str, tuple[torch.Tensor, torch.Tensor]]  # A, B by the module's name
    scale: float
    recipe: dict[str, Any]
    losses: list[float] = field(default_factory=list)

    @contextlib.contextmanager
    def attached(self) -> Iterator[Any]:
        """The model with the adapter, within a with block; afterwards its own weights are back, bit for bit."""
        import torch

        runtime = self.lm.runtime
        revision = runtime.revision
        if revision != self.recipe["revision"]:
            raise ModelError("the model's weights are not those that the adapter was trained on: train it anew")
        own: dict[str, torch.Tensor] = {}
        try:
            for name in self.factors:
                own[name] = runtime.module.get_submodule(name).weight.detach().clone()
            add_factors(runtime.module, self.factors, self.scale)
            runtime.refresh(f"{revision}+lora-{fingerprint(self.recipe)}")
            yield self.lm
        finally:
            with torch.no_grad():
                for name, weight in own.items():
                    runtime.module.get_submodule(name).weight.copy_(weight)
            runtime.refresh(revision)

    def score_pairs(self, pairs: Seq[tuple[str, str]], **settings: Unpack[ScoringSettings]) -> list[Scored]:
        """log p(answer | prompt) of the adapted model; settings as for `likely.scoring.likelihood.score_pairs`."""
        with self.attached():
            return score_pairs(self.lm.runtime, self.lm.tokenizer, pairs, **settings)


def train_lora(
    lm: HasRuntime | str | Path,
    pairs: Seq[tuple[str, str]],
    *,
    steps: int,
    batch: int = 16,
    rank: int = 8,
    alpha: int = 16,
    dropout: float = 0.05,
    lr: float = 2e-4,
    clip: float = 1.0,
    targets: Seq[str] = ATTENTION,
    precision: str = "float32",
    seed: int = 0,
    folder: str | Path | None = None,
    progress: Callable[[int, float], None] | None = None,
) -> Adapter:
    """Fine-tune on (prompt, answer) pairs; the loss is the mean of −log p over the answers' tokens of a batch.

    lm         a model on the torch runtime, or a name or file to load there
    steps      optimiser steps (AdamW, no weight decay) of `batch` pairs; every pair comes up before one does again
    targets    last names of the linear layers that get factors (Hu et al. 2021, arXiv:2106.09685, section 4.2)
    precision  "bfloat16": products in bfloat16 (fast where the processor has them); weights stay as they are
    clip       largest norm of the gradient
    folder     where the adapter is written, in peft's own format; one of the same recipe found there is read instead
    progress   called with (step, loss)
    The same arguments give the same adapter on one machine.
    """
    if not pairs:
        raise ValueError("no pairs: at least one (prompt, answer) is needed")
    for name, value in (("steps", steps), ("batch", batch), ("rank", rank), ("lr", lr), ("clip", clip)):
        if not value > 0:
            raise ValueError(f"{name} must be > 0, got {value}")
    check_choice("precision", precision, PRECISIONS)
    model = trainable(lm)
    items = answer_items(model.tokenizer, pairs, model.runtime.context_length)
    recipe = {
        "revision": model.runtime.revision, "pairs": fingerprint(list(pairs)), "steps": steps, "batch": batch,
        "rank": rank, "alpha": alpha, "dropout": dropout, "lr": lr, "clip": clip, "targets": sorted(targets),
        "precision": precision, "seed": seed,
    }  # fmt: skip
    if folder is not None and (found := _saved_recipe(Path(folder))) and found["recipe"] == recipe:
        return Adapter(model, _read_factors(Path(folder)), alpha / rank, recipe, found["losses"])
    with Policy(model, LoraSettings(rank, alpha, dropout, tuple(targets)), seed=seed) as policy:
        settings = TrainingSettings(
            steps, batch, batch, lr, WARMUP, "linear", clip, precision=precision, dropout=dropout > 0, seed=seed
        )

        def loss(chosen: Seq[Item]) -> LossOutput:
            return LossOutput(answer_loss(policy.module, chosen))

        losses = fit(
            policy, items, loss, settings, weight=_answered, length=lambda item: len(item.tokens), progress=progress
        )
        factors = learned_factors(policy.module)
        if folder is not None:
            Path(folder, RECIPE).unlink(missing_ok=True)  # of an adapter whose weights are replaced now
            policy.module.save_pretrained(str(folder), safe_serialization=True)
            text = json.dumps({"recipe": recipe, "losses": losses}, indent=1)
            Path(folder, RECIPE).write_text(text, encoding="utf-8")  # last: it says that the rest is there
    return Adapter(model, factors, alpha / rank, recipe, losses)


def load_adapter(lm: HasRuntime | str | Path, folder: str | Path) -> Adapter:
    """An adapter that `train_lora(..., folder=)` wrote; DataError where there is none."""
    found = _saved_recipe(Path(folder))
    if found is None:
        raise DataError(f"{folder} holds no {RECIPE}: no adapter was finished there")
    recipe = found["recipe"]
    return Adapter(
        trainable(lm), _read_factors(Path(folder)), recipe["alpha"] / recipe["rank"], recipe, found["losses"]
    )


def answer_items(tokenizer: Tokenizer, pairs: Seq[tuple[str, str]], context: int) -> list[Item]:
    """Tokens of each pair and where its answer begins, as in scoring; an empty answer is an error."""
    items = [joint_item(tokenizer, prompt, answer)[0] for prompt, answer in pairs]
    for i, item in enumerate(items):
        if item.start == len(item.tokens):
            raise ValueError(f"pair {i}: the answer {pairs[i][1]!r} has no tokens, so nothing can be learned from it")
        if len(item.tokens) > context:
            raise ValueError(f"pair {i} has {len(item.tokens)} tokens, the model's context is {context}: shorten it")
    return items


def answer_loss(module: torch.nn.Module, items: Seq[Item]) -> torch.Tensor:
    """Σ −log p(token | all before it) over the answers' tokens, nats; prompts give no loss."""
    from likely.training.logprobs import text_logprobs

    marked = [(item.tokens, [i >= item.start for i in range(len(item.tokens))]) for item in items]
    return -text_logprobs(module, marked).sum.sum()


def _answered(item: Item) -> int:
    return len(item.tokens) - item.start


def _read_factors(folder: Path) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return factors_by_module(load_file(folder / WEIGHTS))
    except (OSError, SafetensorError) as error:
        raise DataError(f"{folder / WEIGHTS}: cannot be read ({error})") from None


def _saved_recipe(folder: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(Path(folder, RECIPE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise DataError(f"{folder / RECIPE}: not JSON ({error})") from None
    recipe = found.get("recipe") if isinstance(found, dict) else None
    if not isinstance(recipe, dict) or not {"alpha", "rank", "revision"} <= recipe.keys() or "losses" not in found:
        raise DataError(f"{folder / RECIPE}: not the record of an adapter that was trained here")
    return found
