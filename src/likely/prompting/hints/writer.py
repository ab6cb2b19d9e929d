"""A small model that learns to write hints: GRPO on a LoRA adapter, rewarded by what another model makes of them.

Kriz et al. 2025, "Prompt4Trust", arXiv:2507.09279.  Needs the torch runtime and peft (extra `train`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from likely.io.hashes import fingerprint
from likely.prompting.hints.downstream import ChoiceQuestion
from likely.prompting.hints.reward import group_advantages
from likely.training.answers import Adapter
from likely.training.grpo import grpo_loss
from likely.training.loop import train
from likely.training.lora import ATTENTION, learned_factors, peft_model, trainable

if TYPE_CHECKING:
    import torch

TASK = (
    "Another model will answer the question below. You do not know the answer. Write one short, neutral hint: what "
    "should it think about, and how careful should it be?"
)
HintRewards = Callable[[Sequence[int], Sequence[str]], Any]  # (numbers of questions, their hints) -> rewards


def hint_prompt(question: ChoiceQuestion) -> str:
    """What the writer reads; its hint is the line that follows."""
    options = "".join(f"- {choice}\n" for choice in question.choices)
    return f"{TASK}\n\nQuestion: {question.question}\n{options}Hint:"


@dataclass(frozen=True)
class WriterSettings:
    """Group size and inner steps, clip and KL of GRPO (the paper's: 8, 4, 0.2, 0.04), sampling, LoRA.

    questions  per step;  max_tokens of a hint (the paper's hints have up to 512)
    """

    group: int = 8
    questions: int = 2
    inner: int = 4
    clip: float = 0.2
    beta: float = 0.04
    lr: float = 1e-4
    max_norm: float = 1.0
    temperature: float = 0.6
    top_p: float = 0.95
    top_k: int = 100
    max_tokens: int = 24
    rank: int = 8
    alpha: int = 16
    targets: Sequence[str] = ATTENTION
    seed: int = 0


@dataclass
class HintWriter:
    """Trained by `train_hint_writer`: `write` gives the greedy hint of each question.

    rewards  mean reward of each step;  hints: those of the last step, for inspection
    """

    adapter: Adapter
    settings: WriterSettings
    rewards: list[float] = field(default_factory=list)
    hints: list[str] = field(default_factory=list)

    def write(self, questions: Sequence[ChoiceQuestion]) -> list[str]:
        """One hint per question, greedily, the first line of what the model writes."""
        with self.adapter.attached() as lm:
            found = lm.generate(
                [hint_prompt(q) for q in questions], temperature=0.0, max_tokens=self.settings.max_tokens, stop="\n"
            )
        return [one.text.strip() for one in found]


def train_hint_writer(
    lm: Any, questions: Sequence[ChoiceQuestion], rewards: HintRewards, *, steps: int,
    settings: WriterSettings = WriterSettings(), progress: Callable[[int, float], None] | None = None,
) -> HintWriter:  # fmt: skip
    """Train by GRPO: each step samples hints for a few questions and rewards the better ones of each group.

    lm        a `likely.Model` on the torch runtime; it is unchanged afterwards
    rewards   of hints for questions given by their numbers, see `Downstream` and `confidence_reward`
    progress  called with (step, mean reward)
    The log-probabilities of old, new and reference policy are those of the sampling temperature.
    """
    import torch

    if not questions:
        raise ValueError("no questions: there is nothing to write hints for")
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    model, s = trainable(lm), settings
    runtime, tokenizer = model.runtime, model.tokenizer
    prompts = [lm.encode_prompt(hint_prompt(q)) for q in questions]  # as `write` will read them
    rng = np.random.default_rng(s.seed)
    means: list[float] = []
    last: list[str] = []
    with peft_model(
        runtime.module, rank=s.rank, alpha=s.alpha, dropout=0.0, targets=s.targets, seed=s.seed
    ) as peft, torch.random.fork_rng():  # fmt: skip
        torch.manual_seed(s.seed + 1)
        learned = [p for p in peft.parameters() if p.requires_grad]
        optimiser = torch.optim.AdamW(learned, lr=s.lr, weight_decay=0.0)

        def rollouts() -> Iterator[list[tuple[Sequence[int], list[list[int]], Any, Any, Any]]]:
            """Groups of hints, each set as often as there are inner steps: per question prompt, tokens, log p of the
            policy that wrote them and of the one before training, advantages."""
            nonlocal last
            for step in range(steps):
                chosen = rng.choice(len(questions), min(s.questions, len(questions)), replace=False)
                written = [_draw(peft, tokenizer, prompts[i], s) for i in chosen]
                last = [text for _, texts in written for text in texts]
                numbers = np.repeat(chosen, s.group).tolist()
                got = np.asarray(rewards(numbers, last), np.float64).reshape(len(chosen), s.group)
                means.append(float(got.mean()))
                gains = torch.tensor(group_advantages(got), dtype=torch.float32)
                with torch.no_grad():
                    old = [_logprobs(peft, prompts[i], ids, s) for i, (ids, _) in zip(chosen, written, strict=True)]
                    with peft.disable_adapter():
                        own = [_logprobs(peft, prompts[i], ids, s) for i, (ids, _) in zip(chosen, written, strict=True)]
                ready = [(prompts[i], written[k][0], old[k], own[k], gains[k]) for k, i in enumerate(chosen)]
                for _ in range(s.inner):
                    yield ready
                if progress:
                    progress(step, means[-1])

        def losses(ready: Sequence[Any]) -> Iterator[torch.Tensor]:
            for prompt, ids, old, own, gain in ready:
                now = _logprobs(peft, prompt, ids, s)
                mask = torch.tensor([[float(t >= 0) for t in row] for row in ids], device=now.device)
                loss = grpo_loss(now, old, own, mask, gain.to(now.device), clip=s.clip, beta=s.beta)
                yield loss / len(ready)

        train(rollouts(), losses, optimiser, clip=s.max_norm)
        factors = learned_factors(peft)
    recipe = {
        "revision": runtime.revision, "questions": fingerprint([hint_prompt(q) for q in questions]), "steps": steps,
        **{name: getattr(s, name) for name in s.__dataclass_fields__}, "targets": sorted(s.targets),
    }  # fmt: skip
    return HintWriter(Adapter(model, factors, s.alpha / s.rank, recipe), s, means, last)


def _draw(peft: Any, tokenizer: Any, prompt: Sequence[int], s: WriterSettings) -> tuple[list[list[int]], list[str]]:
    """A group of hints for one question: tokens, padded with -1, and texts.  A hint ends with its line."""
    import torch

    ends = frozenset(tokenizer.end_ids)
    peft.eval()
    ids = torch.tensor([list(prompt)], device=next(peft.parameters()).device)
    with torch.no_grad():
        out = peft.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids),
            do_sample=True, temperature=s.temperature, top_p=s.top_p, top_k=s.top_k, max_new_tokens=s.max_tokens,
            num_return_sequences=s.group, eos_token_id=sorted(ends), pad_token_id=min(ends),
        )  # fmt: skip
    rows = [_one_line(tokenizer, row[len(prompt) :].tolist(), ends) for row in out]
    longest = max(len(tokens) for tokens, _ in rows)
    return [tokens + [-1] * (longest - len(tokens)) for tokens, _ in rows], [text for _, text in rows]


def _one_line(tokenizer: Any, tokens: list[int], ends: frozenset[int]) -> tuple[list[int], str]:
    """The tokens up to the first that ends the text or its first line, that one included; and the line."""
    kept: list[int] = []
    text = b""
    for token in tokens:
        kept.append(token)
        if token in ends:
            break
        piece = tokenizer.token_bytes(token)
        text += piece.partition(b"\n")[0]
        if b"\n" in piece:
            break
    return kept, text.decode("utf-8", "replace").strip()


def _logprobs(peft: Any, prompt: Sequence[int], rows: Sequence[Sequence[int]], s: WriterSettings) -> torch.Tensor:
    """(group, T) log p of each token at the sampling temperature; padding (-1) gets whatever stands there."""
    import torch

    device = next(peft.parameters()).device
    ids = torch.tensor([[*prompt, *(max(t, 0) for t in row)] for row in rows], device=device)
    seen = torch.tensor([[1] * len(prompt) + [int(t >= 0) for t in row] for row in rows], device=device)
    width = len(rows[0])
    logits = peft(input_ids=ids, attention_mask=seen, use_cache=False).logits[:, -width - 1 : -1].float()
    law = torch.log_softmax(logits / s.temperature, dim=-1)
    return law.gather(2, ids[:, -width:, None])[..., 0]
