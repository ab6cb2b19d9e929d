"""A diffusion model that is trained in about two seconds: three letters, written backwards."""

from __future__ import annotations

from dataclasses import dataclass

from likely.training.diffusion import TinySettings, train_tiny


@dataclass(frozen=True)
class Backwards:
    """abca -> acba"""

    name: str = "backwards"
    alphabet: str = "abc"
    prompt_length: int = 4
    answer_length: int = 4
    answer_span: None = None

    def draw(self, rng, count, *, held_out=False):
        prompts = ["".join(row) for row in rng.choice(list(self.alphabet), (count, self.prompt_length))]
        return [(prompt, prompt[::-1]) for prompt in prompts]

    def is_right(self, prompt, answer):
        return answer == prompt[::-1]


def train_backwards(folder, *, steps=150):
    """A model that has learned some of it: sure of a part, and not of all."""
    train_tiny(
        Backwards(), folder, TinySettings(steps=steps, width=16, layers=1, heads=2, batch=32, warmup=10, lr=1e-2)
    )
    return folder
