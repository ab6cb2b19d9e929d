"""LoRA: a causal language model learns (prompt, answer) pairs through small matrices beside its own.

Needs the torch runtime and peft (extra `train`).  The loss is −log p(answer | prompt), of exactly the tokens that
`score_pairs` scores, so that training and scoring cannot disagree about where an answer begins.
"""

from __future__ import annotations

import contextlib
import inspect
import json
from collections.abc import Callable, Iterator, Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Unpack

import numpy as np

from likely.errors import CapabilityError, DataError, ModelError, missing_extra
from likely.io.hashes import fingerprint
from likely.scoring.likelihood import Item, ScoringSettings, joint_item, score_pairs
from likely.tokenizers.protocol import Tokenizer
from likely.training.loop import train

if TYPE_CHECKING:
    import torch

    from likely.scoring.scored import Scored

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
WEIGHTS, RECIPE = "adapter_model.safetensors", "recipe.json"
WARMUP = 0.05  # of the steps: the rate rises from 0, then falls to 0, both linearly


class HasRuntime(Protocol):
    """A `likely.Model`, or what `load_local` gives."""

    @property
    def runtime(self) -> Any: ...
    @property
    def tokenizer(self) -> Tokenizer: ...


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
    if precision not in ("float32", "bfloat16"):
        raise ValueError(f'precision must be "float32" or "bfloat16", got "{precision}"')
    model = trainable(lm)
    module = model.runtime.module
    items = answer_items(model.tokenizer, pairs, model.runtime.context_length)
    recipe = {
        "revision": model.runtime.revision, "pairs": fingerprint(list(pairs)), "steps": steps, "batch": batch,
        "rank": rank, "alpha": alpha, "dropout": dropout, "lr": lr, "clip": clip, "targets": sorted(targets),
        "precision": precision, "seed": seed,
    }  # fmt: skip
    if folder is not None and (found := _saved_recipe(Path(folder))) and found["recipe"] == recipe:
        return Adapter(model, _read_factors(Path(folder)), alpha / rank, recipe, found["losses"])
    import torch

    with peft_model(module, rank=rank, alpha=alpha, dropout=dropout, targets=targets, seed=seed) as peft:
        optimiser = torch.optim.AdamW([p for p in peft.parameters() if p.requires_grad], lr=lr, weight_decay=0.0)
        rise = max(1, round(WARMUP * steps))
        rate = torch.optim.lr_scheduler.LambdaLR(
            optimiser, lambda t: min((t + 1) / rise, (steps - t) / max(1, steps - rise + 1))
        )
        half = torch.autocast(next(peft.parameters()).device.type, torch.bfloat16, enabled=precision == "bfloat16")

        def loss(chosen: Seq[int]) -> torch.Tensor:
            with half:
                return answer_loss(peft, [items[i] for i in chosen])

        peft.train()
        with torch.random.fork_rng():
            torch.manual_seed(seed + 1)  # dropout
            order = batches([len(i.tokens) for i in items], batch=batch, steps=steps, seed=seed)
            losses = train(order, loss, optimiser, schedule=rate, clip=clip, progress=progress)
        factors = learned_factors(peft)
        if folder is not None:
            Path(folder, RECIPE).unlink(missing_ok=True)  # of an adapter whose weights are replaced now
            peft.save_pretrained(str(folder), safe_serialization=True)
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
    """Mean of −log p(token | all before it) over the answers' tokens, nats; prompts give no loss.

    Texts are padded on the right, where a causal model does not look; positions count from each text's first token.
    """
    import torch

    device = next(module.parameters()).device
    longest = max(len(item.tokens) for item in items)
    ids = torch.zeros(len(items), longest, dtype=torch.long)
    seen, answer = torch.zeros_like(ids), torch.zeros(len(items), longest, dtype=torch.bool)
    for i, item in enumerate(items):
        n = len(item.tokens)
        ids[i, :n], seen[i, :n], answer[i, item.start : n] = torch.tensor(item.tokens), 1, True
    first = min(item.start for item in items) - 1  # rows before it predict no answer's token
    rows = torch.arange(first, longest - 1)
    inner = module.get_base_model() if hasattr(module, "get_base_model") else module
    keeps = "logits_to_keep" in inspect.signature(inner.forward).parameters
    logits = module(
        input_ids=ids.to(device), attention_mask=seen.to(device), use_cache=False,
        **({"logits_to_keep": rows.to(device)} if keeps else {}),
    ).logits  # fmt: skip
    if not keeps:
        logits = logits[:, first : longest - 1]
    wanted = answer[:, first + 1 :].to(device)
    return torch.nn.functional.cross_entropy(logits[wanted].float(), ids[:, first + 1 :].to(device)[wanted])


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

    whole_modules  last names of modules that are trained whole, as copies;  tokens: rows of the embedding
    """
    import torch

    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        raise missing_extra("peft", "train") from None
    linear = {name for name, part in module.named_modules() if type(part) is torch.nn.Linear}
    chosen = {name for name in linear if name.split(".")[-1] in targets}
    if missing := sorted(set(targets) - {name.split(".")[-1] for name in chosen}):
        known = ", ".join(sorted({name.split(".")[-1] for name in linear}))
        raise ModelError(f"the model has no linear layer called {missing[0]} (it has: {known}): give targets=")
    config = LoraConfig(
        r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=sorted(chosen), task_type="CAUSAL_LM",
        modules_to_save=list(whole_modules) or None, trainable_token_indices=list(tokens) or None,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return get_peft_model(module, config)


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

    return _by_module({name: t.detach().clone() for name, t in get_peft_model_state_dict(peft).items()})


def _read_factors(folder: Path) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return _by_module(load_file(folder / WEIGHTS))
    except (OSError, SafetensorError) as error:
        raise DataError(f"{folder / WEIGHTS}: cannot be read ({error})") from None


def _by_module(tensors: Mapping[str, torch.Tensor]) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
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
