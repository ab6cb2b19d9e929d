"""Fine-tuning on noisy references: the edit-invariant loss of a model's distributions along its own greedy output.

With the reference before its eyes (teacher forcing) a model has seen where each token stands, and matching n-grams at
other places means nothing.  So each step writes first, then scores the reference against what it wrote.  torch.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from likely.alignment.edit_invariant.loss import Position, edit_invariant_loss
from likely.alignment.scores import Completion, completion_scores
from likely.decoding.loop import Loop
from likely.decoding.request import Request
from likely.decoding.run import run
from likely.decoding.sampling import Sampling
from likely.errors import DataError
from likely.io.hashes import fingerprint
from likely.training.fit import TrainingSettings, fit
from likely.training.loop import LossOutput
from likely.training.metrics_log import MetricsLog
from likely.training.policy import Policy


@dataclass(frozen=True)
class EditInvariantSettings:
    """Of `edit_invariant_loss`, and beside it:

    cross_entropy  weight of the teacher-forced −log p(reference | prompt) per token, added to the loss
    longest        tokens of an own output; 0: twice the reference's, and 8 more
    """

    ngrams: tuple[int, ...] = (1, 2)
    weights: tuple[float, ...] | None = None
    position: Position = "gumbel"
    tau: float = 1.0
    floor: float = -20.0
    cross_entropy: float = 0.0
    longest: int = 0


@dataclass(frozen=True)
class WrittenOutput:
    """A reference, and what the model wrote by itself in one step (token ids); noise: seed of the Gumbel weights."""

    reference: Completion
    tokens: tuple[int, ...]
    noise: int = 0


def write_outputs(
    policy: Policy, references: Seq[Completion], *, longest: int = 0, noise: int = 0
) -> list[WrittenOutput]:
    """Greedy outputs of the policy as it was at its last `refresh`, for the prompts of the references."""
    lm = policy.lm
    loop = Loop(lm.runtime, lm.tokenizer.token_bytes, lm.tokenizer.end_ids)
    requests = [
        Request(r.prompt, Sampling(temperature=0.0), max_tokens=longest or 2 * len(r.tokens) + 8) for r in references
    ]
    found = []
    for number, (reference, events) in enumerate(zip(references, run(loop, requests), strict=True)):
        finish = events[0].finish
        assert finish is not None
        found.append(WrittenOutput(reference, tuple(finish.tokens), noise + number))
    return found


def own_output_loss(
    module: torch.nn.Module, outputs: Seq[WrittenOutput], settings: EditInvariantSettings = EditInvariantSettings()
) -> LossOutput:  # fmt: skip
    """The sum over outputs of the edit-invariant loss of their references, nats per token."""
    logits, mask = output_logits(module, outputs)
    losses = []
    for row, seen, output in zip(logits, mask, outputs, strict=True):  # noise of its own: pieces change nothing
        generator = torch.Generator().manual_seed(output.noise)
        ids = torch.tensor(output.reference.tokens, device=row.device)
        losses.append(
            edit_invariant_loss(
                row[seen],
                ids,
                ngrams=settings.ngrams,
                weights=settings.weights,
                position=settings.position,
                tau=settings.tau,
                floor=settings.floor,
                generator=generator,
                from_logits=True,
            )
        )
    loss = torch.stack(losses).sum()
    metrics = {
        "edit_invariant_loss": (loss.item(), float(len(outputs))),
        "output_tokens": (float(mask.sum()), float(len(outputs))),
    }
    if settings.cross_entropy:
        scores = completion_scores(module, [o.reference for o in outputs])
        nats = -scores.mean.sum()
        metrics["nats_per_token"] = (nats.item(), float(len(outputs)))
        loss = loss + settings.cross_entropy * nats
    return LossOutput(loss, metrics)


def output_logits(module: torch.nn.Module, outputs: Seq[WrittenOutput]) -> tuple[Tensor, Tensor]:
    """(B, T, V) logits that stood before each written token, and (B, T) where there is one; one call of the model."""
    device = next(module.parameters()).device
    texts = [(*o.reference.prompt, *o.tokens) for o in outputs]
    ids = torch.zeros(len(texts), max(map(len, texts)), dtype=torch.long)
    seen = torch.zeros_like(ids)
    for i, text in enumerate(texts):
        ids[i, : len(text)], seen[i, : len(text)] = torch.tensor(text), 1
    logits = module(input_ids=ids.to(device), attention_mask=seen.to(device), use_cache=False).logits
    sizes = torch.tensor([len(o.tokens) for o in outputs])
    starts = torch.tensor([len(o.reference.prompt) - 1 for o in outputs])
    places = torch.arange(int(sizes.max()))
    rows = (starts[:, None] + places).clamp(max=ids.shape[1] - 1).to(device)
    found = logits.gather(1, rows[:, :, None].expand(-1, -1, logits.shape[2]))
    return found, (places < sizes[:, None]).to(device)


class OwnOutputs:
    """What `training.fit.fit` needs to train a policy on its own outputs: `loss`, `expand` and `length`.

    References that were cut are refused: lengths are learned, too.
    """

    def __init__(self, policy: Policy, references: Seq[Completion], settings: EditInvariantSettings, *, seed: int = 0):
        for number, reference in enumerate(references, 1):
            if not reference.finished:
                raise DataError(f"reference {number} has no end token, so that a model cannot learn where to stop")
        self.policy, self.settings, self.seed = policy, settings, seed
        self.recipe = {"loss": "eisl", "eisl": repr(settings)}  # what the numbers depend on beside data and training

    def expand(self, step: int, chosen: Seq[Completion]) -> list[WrittenOutput]:
        noise = (self.seed << 40) + (step << 16)
        return write_outputs(self.policy, chosen, longest=self.settings.longest, noise=noise)

    def loss(self, piece: Seq[WrittenOutput]) -> LossOutput:
        return own_output_loss(self.policy.module, piece, self.settings)

    @staticmethod
    def length(item: Completion | WrittenOutput) -> int:
        return len(item.reference.prompt) + len(item.tokens) if isinstance(item, WrittenOutput) else len(item)


def fit_own_outputs(
    policy: Policy,
    references: Seq[Completion],
    training: TrainingSettings,
    settings: EditInvariantSettings = EditInvariantSettings(),
    *,
    folder: Path | None = None,
    log: MetricsLog | None = None,
    progress: Callable[[int, float], None] | None = None,
) -> list[float]:
    """Train a policy that is already fine-tuned by cross-entropy; returns the loss of each step, before it.

    references  prompts and their noisy answers; finished ones, so that lengths are learned
    folder      for checkpoints: a run that was stopped goes on bit for bit
    Liu et al. 2022, arXiv:2106.15078, section 3.3: greedy output first, then one pass along it.
    """
    own = OwnOutputs(policy, references, settings, seed=training.seed)
    recipe = {**own.recipe, "data": fingerprint([(r.prompt, r.tokens) for r in references])}
    return fit(
        policy, references, own.loss, training, length=own.length, expand=own.expand, folder=folder, recipe=recipe,
        log=log, progress=progress,
    )  # fmt: skip
