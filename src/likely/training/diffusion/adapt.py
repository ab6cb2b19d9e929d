"""Make a diffusion language model of a causal one (Gong et al. 2025, DiffuLLaMA; Ye et al. 2025, Dream).

The weights stay, a mask token is added (the mean of all embeddings), and the logits keep predicting the next position.
Over the first steps the causal mask goes away: each later position is seen with a probability that rises from 0 to 1.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from likely.errors import DataError
from likely.io.whole_file import write_whole_file
from likely.training.checkpoints import Checkpoints
from likely.training.diffusion.loss import diffusion_loss
from likely.training.loop import import_torch, train
from likely.training.metrics_log import MetricsLog

if TYPE_CHECKING:
    from torch import Tensor

    from likely.runtimes.torch.masked.network import MaskedTransformer

TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json",
    "chat_template.jinja",
)  # fmt: skip


@dataclass(frozen=True)
class AdaptSettings:
    """How a causal model is adapted: AdamW on windows of `length` tokens.

    anneal     share of the steps over which later positions come into sight
    lr         reached after `warmup` steps, then constant;  bfloat16: products in bfloat16, weights stay as they are
    """

    steps: int = 400
    batch: int = 8
    length: int = 256
    lr: float = 5e-5
    warmup: int = 20
    anneal: float = 0.2
    clip: float = 1.0
    bfloat16: bool = False
    seed: int = 0
    checkpoint_every: int = 20

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "length", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")
        if not 0 <= self.anneal <= 1 or not self.lr > 0:
            raise ValueError(f"anneal must lie in [0, 1] and lr be > 0, got {self.anneal} and {self.lr}")

    def in_sight(self, step: int) -> float:
        """The probability with which a later position is seen in this step."""
        return min(1.0, step / (self.anneal * self.steps)) if self.anneal else 1.0


def adapt_causal(
    source: str | Path,
    tokens: Sequence[int],
    folder: str | Path,
    settings: AdaptSettings | None = None,
    *,
    progress: Callable[[int, float], None] | None = None,
) -> list[float]:
    """Adapt the Llama-like model of a transformers folder to a text, into `folder`; the loss of each step.

    tokens  of the text, by the tokenizer of the source; its mask token gets the next free id
    A folder of the same settings goes on where it was stopped.
    """
    from likely.runtimes.torch.masked.checkpoint import save_masked

    torch = import_torch()
    settings, folder, source = settings or AdaptSettings(), Path(folder), Path(source)
    text = np.asarray(tokens, np.int64)
    if len(text) <= settings.length:
        raise DataError(f"a text of {len(text)} tokens is too short for windows of {settings.length}")
    network = causal_as_masked(source)
    if settings.length > network.shape.context or text.max() >= network.shape.mask_id:
        raise DataError(
            f"windows of {settings.length} tokens below {network.shape.mask_id} were expected (context "
            f"{network.shape.context}), got token {text.max()}"
        )
    folder.mkdir(parents=True, exist_ok=True)
    network.requires_grad_(True)
    optimizer = torch.optim.AdamW(network.parameters(), lr=settings.lr, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / max(1, settings.warmup)))
    generator = torch.Generator()

    def batches() -> Iterator[tuple[int, Tensor]]:
        for step in range(settings.steps):
            rng = np.random.default_rng([settings.seed, step])
            starts = rng.integers(0, len(text) - settings.length + 1, settings.batch)
            yield step, torch.from_numpy(np.stack([text[s : s + settings.length] for s in starts]))

    def loss(batch: tuple[int, Tensor]) -> Tensor:
        step, ids = batch
        generator.manual_seed(settings.seed * 1_000_003 + step)
        seen = annealed_mask(settings.length, settings.in_sight(step), generator)
        with torch.autocast("cpu", torch.bfloat16) if settings.bfloat16 else contextlib.nullcontext():
            return diffusion_loss(
                lambda x: next_to_own(network(x, attend=seen)), ids, torch.ones_like(ids, dtype=torch.bool),
                mask_id=network.shape.mask_id, form="count", generator=generator,
            )  # fmt: skip

    recipe = {**asdict(replace(settings, checkpoint_every=1)), "tokens": len(text)}
    losses = train(
        batches(), loss, optimizer, schedule=schedule, clip=settings.clip, progress=progress,
        log=MetricsLog(folder / "training_log.jsonl"),
        checkpoints=Checkpoints(folder / "training_state.safetensors", settings.checkpoint_every, recipe),
    )  # fmt: skip
    save_masked(network, folder)
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            write_whole_file(folder / name, (source / name).read_bytes())
    return losses


def causal_as_masked(folder: str | Path) -> MaskedTransformer:
    """A Llama-like causal model with the mask token behind its vocabulary, in both directions, logits still shifted."""
    from likely.runtimes.torch.masked.checkpoint import load_causal
    from likely.runtimes.torch.masked.network import MaskedTransformer

    torch = import_torch()
    causal = load_causal(folder)
    size = causal.shape.vocab_size
    network = MaskedTransformer(replace(causal.shape, vocab_size=size + 1, mask_id=size, shift=True))
    state = causal.state_dict()
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        state[name] = torch.cat([state[name], state[name].mean(0, keepdim=True)])
    network.load_state_dict(state)
    return network


def annealed_mask(length: int, in_sight: float, generator: Any) -> Tensor:
    """(1, 1, T, T), True where a query sees a key: all earlier ones, later ones with probability in_sight."""
    torch = import_torch()
    seen = torch.ones(length, length, dtype=torch.bool).tril()
    return (seen | (torch.rand(length, length, generator=generator) < in_sight))[None, None]


def next_to_own(logits: Tensor) -> Tensor:
    """Logits (B, T, V) that predict the next position, as those of the position itself; the first one keeps its own."""
    torch = import_torch()
    return torch.cat([logits[:, :1], logits[:, :-1]], 1)
