"""Clients of ATTS without a model: texts, scores and times written down, and what was asked of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from likely.scoring.scored import Scored
from likely.serving.scaling.clients import WrittenText


def written(text: str, *, ended: bool = False, logprob: float | None = -1.0) -> WrittenText:
    return WrittenText(text, len(text.split()), ended, logprob)


def scored(text: str, mean_logprob: float) -> Scored:
    return Scored(text, None, [mean_logprob], mean_logprob, mean_logprob, [text])


@dataclass
class ScriptedClient:
    """write (prompt, seed) -> text;  rate (prompt, text) -> mean_logprob;  takes (prompt) -> seconds of a call"""

    name: str = "d"
    write: Callable[[str, int], WrittenText] = lambda prompt, seed: written(f" w{seed % 1000}")
    rate: Callable[[str, str], float] = lambda prompt, text: float(np.random.default_rng(len(prompt)).normal())
    takes: Callable[[str], float] = lambda prompt: 0.0
    asked: list[tuple[str, str]] = field(default_factory=list)
    running: int = 0
    most_running: int = 0
    cancelled: int = 0

    def prompt(self, question: str) -> str:
        return f"<{self.name}>{question}:"

    async def _busy(self, what: str, prompt: str) -> None:
        self.asked.append((what, prompt))
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            await asyncio.sleep(self.takes(prompt))
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.running -= 1

    async def sample(self, prompt: str, *, max_tokens: int, temperature: float, seed: int) -> WrittenText:
        await self._busy("sample", prompt)
        return self.write(prompt, seed)

    async def score(self, prompt: str, text: str) -> Scored:
        await self._busy("score", prompt + text)
        return scored(text, self.rate(prompt, text))

    async def close(self) -> None:
        self.asked.append(("close", ""))


def normal_rate(prompt: str, text: str) -> float:
    """A score that depends on the text alone, standard normal over texts."""
    return float(np.random.default_rng([ord(c) for c in prompt + text]).normal())
