"""Chains on a virtual clock: what waiting for each other costs, with the package's own driver and simulated models."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from virtual_clock import run_on_virtual_clock

from likely.scoring.scored import Scored
from likely.serving.scaling import ATTS, RejectionGate, WrittenText

DRAFT_S, TARGET_S, SCORE_S = 10.0, 20.0, 0.5  # medians of a turn, and of a scoring
REJECT_RATE = 0.4


@dataclass
class SimulatedModel:
    """Turns whose length in seconds is log-normal, the same for the same seed; scores are standard normal."""

    median_s: float
    sigma: float

    def prompt(self, question: str) -> str:
        return question

    async def sample(self, prompt: str, *, max_tokens: int, temperature: float, seed: int) -> WrittenText:
        await asyncio.sleep(self.median_s * math.exp(self.sigma * np.random.default_rng(seed).normal()))
        return WrittenText(f" {seed}", 1, False, -1.0)

    async def score(self, prompt: str, text: str) -> Scored:
        await asyncio.sleep(SCORE_S)
        value = float(np.random.default_rng(abs(int(text)) + 1).normal())
        return Scored(text, None, [value], value, value, [text])

    async def close(self) -> None:
        pass


@dataclass(frozen=True)
class Setting:
    """samples, rounds: m and R;  slots: (draft, target) calls at a time;  sigma: of the logarithm of a turn's length"""

    samples: int
    rounds: int
    slots: tuple[int, int]
    sigma: float


@dataclass(frozen=True)
class Times:
    """Seconds of one question: of both ways, and how long a chain waits at barriers on average."""

    asynchronous_s: float
    barrier_s: float
    waiting_s: float

    @property
    def ratio(self) -> float:
        return self.barrier_s / self.asynchronous_s


def asynchronous_s(setting: Setting, seed: int) -> float:
    """ATTS: nobody waits for a chain."""
    gate = RejectionGate(REJECT_RATE)
    gate.add(np.random.default_rng(seed).normal(size=999))
    system = ATTS(
        SimulatedModel(DRAFT_S, setting.sigma), SimulatedModel(TARGET_S, setting.sigma), samples=setting.samples,
        rounds=setting.rounds, reject_rate=REJECT_RATE, gate=gate, seed=seed,
        draft_concurrency=setting.slots[0], target_concurrency=setting.slots[1], answers="choice",
    )  # fmt: skip
    found, seconds = run_on_virtual_clock(system.solve("q"))
    assert all(len(chain.turns) == setting.rounds for chain in found.chains)
    return seconds


async def _barrier(setting: Setting, seed: int) -> tuple[float, float]:
    """Each round: all drafts, all scores, the worst B are taken over, and the next round begins when all are done."""
    rng = np.random.default_rng([seed, 1])
    draft, target = SimulatedModel(DRAFT_S, setting.sigma), SimulatedModel(TARGET_S, setting.sigma)
    slots = [asyncio.Semaphore(n) for n in setting.slots]
    loop, waiting = asyncio.get_running_loop(), 0.0
    worst = round(REJECT_RATE * setting.samples)

    async def write(model: SimulatedModel, slot: asyncio.Semaphore) -> tuple[str, float]:
        async with slot:
            made = await model.sample("", max_tokens=1, temperature=1.0, seed=int(rng.integers(2**62)))
        return made.text, loop.time()

    async def drafted() -> tuple[float, float]:
        text, _ = await write(draft, slots[0])
        async with slots[1]:
            scored = await target.score("", text)
        return scored.sequence_logprob, loop.time()

    for _ in range(setting.rounds):
        scores = await asyncio.gather(*(drafted() for _ in range(setting.samples)))
        ranked = loop.time()
        waiting += sum(ranked - at for _, at in scores)
        ends = await asyncio.gather(*(write(target, slots[1]) for _ in range(worst)))
        over = loop.time()
        waiting += sum(over - at for _, at in ends) + (setting.samples - worst) * (over - ranked)
    return loop.time(), waiting / setting.samples


def times(setting: Setting, seed: int) -> Times:
    """One question both ways."""
    (seconds, waiting), _ = run_on_virtual_clock(_barrier(setting, seed))
    return Times(asynchronous_s(setting, seed), seconds, waiting)


def compare(settings: Sequence[Setting], questions: int) -> dict[Setting, list[Times]]:
    return {setting: [times(setting, seed) for seed in range(questions)] for setting in settings}
