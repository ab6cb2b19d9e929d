"""Training an inverter as an attacker would, and what it recovers: exact matches, word F1, the price of defences."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from likely.audit.inversion.inverter import END, PAD, InverterConfig, PromptPieces, StepScale, build_network
from likely.audit.inversion.trajectories import DEFENCES, Defence, InverterInput, Trajectories, Undefended
from likely.errors import DataError
from likely.metrics.intervals import wilson
from likely.training.loop import import_torch, train


class Inverter:
    """Recovers hidden prompts from what an endpoint returned.

    fit learns `pieces_`, `scale_`, `network_` and `losses_`.
    """

    def __init__(self, config: InverterConfig | None = None):
        self.config = config or InverterConfig()

    def fit(
        self, given: InverterInput, prompts: Sequence[str], *, progress: Callable[[int, float], None] | None = None
    ) -> Self:
        """Train on prompts and what was returned for each; cross-entropy of the prompt's pieces."""
        torch, c = import_torch(), self.config
        if len(given) != len(prompts) or not prompts:
            raise DataError(f"{len(given)} trajectories do not fit {len(prompts)} prompts")
        if given.steps + c.shift > c.most_steps:
            raise DataError(f"{given.steps} steps and a shift of {c.shift} are more than most_steps={c.most_steps}")
        self.pieces_, self.scale_ = PromptPieces(prompts), StepScale.of(given)
        written = self._targets(prompts)
        inputs = self.scale_.applied(given)
        rng = np.random.default_rng(c.seed)
        with torch.random.fork_rng():
            torch.manual_seed(c.seed)
            ratios = None if inputs.ratios is None else inputs.ratios.shape[-1]
            known = 0 if self.scale_.ids is None else len(self.scale_.ids)
            self.network_: Any = build_network(c, len(self.pieces_), ratios=ratios, known_ids=known)
            self.network_.train()
            steps = c.epochs * math.ceil(len(prompts) / c.batch)
            optimizer = torch.optim.AdamW(self.network_.parameters(), lr=c.learning_rate)
            schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, c.warmup, steps))

            def loss(batch: Any) -> Any:
                memory = self.network_.read(inputs.of(batch), int(rng.integers(c.shift + 1)))
                target = torch.from_numpy(written[batch])
                width = max(1, int((target != PAD).sum(1).max()))
                target = target[:, :width]
                before = torch.cat([torch.full((len(batch), 1), END), target[:, :-1]], 1)
                logits = self.network_(memory, before)
                return torch.nn.functional.cross_entropy(logits.flatten(0, 1), target.flatten(), ignore_index=PAD)

            self.losses_ = train(
                self._batches(len(prompts), rng), loss, optimizer, schedule=schedule, clip=1.0, progress=progress
            )
        self.network_.eval()
        return self

    def recover(self, given: InverterInput, *, batch: int = 256) -> list[str]:
        """The likeliest prompt of each trajectory, written greedily."""
        torch = import_torch()
        inputs, found = self.scale_.applied(given), []
        with torch.no_grad():
            for start in range(0, len(inputs), batch):
                memory = self.network_.read(inputs.of(slice(start, start + batch)))
                text = torch.full((len(memory), 1), END)
                done = torch.zeros(len(memory), dtype=torch.bool)
                while text.shape[1] <= self.config.most_pieces and not bool(done.all()):
                    new = self.network_(memory, text)[:, -1].argmax(-1)
                    new = new.where(~done, torch.full_like(new, END))
                    done |= new == END
                    text = torch.cat([text, new[:, None]], 1)
                found += [self._text(row) for row in text[:, 1:].tolist()]
        return found

    def _text(self, row: list[int]) -> str:
        return self.pieces_.decode(row[: row.index(END)] if END in row else row)

    def _targets(self, prompts: Sequence[str]) -> Any:
        """(N, L): pieces, an end, padding."""
        rows = [[*self.pieces_.encode(prompt), END] for prompt in prompts]
        longest = max(map(len, rows))
        if longest > self.config.most_pieces:
            raise DataError(f"a prompt has {longest} pieces, more than most_pieces={self.config.most_pieces}")
        written = np.full((len(rows), longest), PAD, np.int64)
        for line, row in zip(written, rows, strict=True):
            line[: len(row)] = row
        return written

    def _batches(self, n: int, rng: np.random.Generator) -> Iterator[Any]:
        for _ in range(self.config.epochs):
            order = rng.permutation(n)
            for start in range(0, n, self.config.batch):
                yield order[start : start + self.config.batch]


def _rate(step: int, warmup: int, steps: int) -> float:
    """Rising to 1 over the warm-up, then falling to a tenth."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, steps - warmup))))


@dataclass(frozen=True)
class Recovery:
    """How much of n hidden prompts came back.

    exact     share recovered letter by letter, with Wilson's 95 % interval (low, high)
    word_f1   mean F1 of the sets of words
    hits      which prompts came back, in order
    """

    exact: float
    low: float
    high: float
    word_f1: float
    n: int
    hits: tuple[bool, ...]


def recovery(prompts: Sequence[str], found: Sequence[str]) -> Recovery:
    """Recovered texts against the true prompts."""
    if len(prompts) != len(found) or not prompts:
        raise DataError(f"{len(found)} recovered texts do not fit {len(prompts)} prompts")
    hits = tuple(a == b for a, b in zip(prompts, found, strict=True))
    low, high = wilson(sum(hits), len(hits))
    f1 = float(np.mean([word_f1(a, b) for a, b in zip(prompts, found, strict=True)]))
    return Recovery(sum(hits) / len(hits), low, high, f1, len(hits), hits)


def word_f1(truth: str, found: str) -> float:
    """F1 of the sets of words of two texts."""
    a, b = set(truth.split()), set(found.split())
    both = len(a & b)
    return 2 * both / (len(a) + len(b)) if both else float(a == b)


@dataclass(frozen=True)
class DefencePrice:
    """What a defence does.

    unprepared  what an inverter recovers that was trained without the defence; None where it cannot read what is left
    prepared    what one recovers that was trained against it: the price that counts
    error_nats  what honest clients lose: mean |error| of the chosen token's log-probability; None: they get none
    """

    name: str
    prepared: Recovery
    unprepared: Recovery | None
    error_nats: float | None


def price_defences(
    seen: Trajectories,
    prompts: Sequence[str],
    test: Trajectories,
    test_prompts: Sequence[str],
    config: InverterConfig,
    *,
    defences: Sequence[Defence] = DEFENCES,
    trained: Inverter | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> list[DefencePrice]:
    """Undefended first, then each defence: an inverter is trained against each.  trained: the undefended one."""
    plain = trained or Inverter(config).fit(Undefended().returned(seen), prompts)
    first = recovery(test_prompts, plain.recover(Undefended().returned(test)))
    found = [DefencePrice(Undefended().name, first, first, 0.0)]
    for defence in defences:
        given, shown = defence.returned(seen), defence.returned(test)
        readable = shown.ratios is not None
        unprepared = recovery(test_prompts, plain.recover(shown)) if readable else None
        prepared = recovery(test_prompts, Inverter(config).fit(given, prompts).recover(shown))
        found.append(DefencePrice(defence.name, prepared, unprepared, defence.error_nats(test)))
        report(f"{defence.name}: exact match {prepared.exact:.3f} of {prepared.n}")
    return found
