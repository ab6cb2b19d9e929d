"""How good a completion is: rewards of text, a Bradley–Terry reward model, a ranker of pairs.  torch.

A reward is any callable from completions to finite numbers (N,), in a scale of its own; a reward model's numbers are
known up to a constant per prompt only.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import softplus

from likely.alignment.scores import Completion
from likely.errors import CapabilityError, DataError
from likely.io.linear_regex import LinearRegex
from likely.io.whole_file import replacing, write_whole_file
from likely.metrics.checks import Floats
from likely.scoring.likelihood import score_pairs
from likely.training.logprobs import TokenBatch
from likely.training.lora import HasRuntime

HEAD, SETTINGS = "reward_head.safetensors", "reward_model.json"
TOGETHER = 16  # completions in one call of a reward model


class Reward(Protocol):
    """Completions -> (N,) finite rewards, the higher the better."""

    def __call__(self, completions: Seq[Completion]) -> npt.ArrayLike: ...


def rewards_of(reward: Reward, completions: Seq[Completion], *, first_row: int = 1) -> Floats:
    """(N,) the rewards as float64; DataError that names the row where one is NaN.  −inf is allowed."""
    values = np.asarray(reward(completions), np.float64)
    if values.shape != (len(completions),):
        raise DataError(f"a reward must give one number per completion: {len(completions)}, got shape {values.shape}")
    if np.isnan(values).any() or (values == np.inf).any():
        row = int((np.isnan(values) | (values == np.inf)).argmax())
        raise DataError(f"row {row + first_row}: the reward is {values[row]}, it must be a number below infinity")
    return values


def check_tokens(reward: Reward | None, tokenizer: str) -> None:
    """DataError for a reward model that reads ids of another tokenizer than the one with this fingerprint."""
    made_for = getattr(reward, "tokenizer", "")
    if made_for and made_for != tokenizer:
        raise DataError("the reward model reads another tokenizer's ids: train it on the model whose texts it judges")


# --- rewards of text --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TextReward:
    """A function of (prompt text, completion text) as a reward."""

    function: Callable[[str, str], float]

    def __call__(self, completions: Seq[Completion]) -> Floats:
        return np.array([self.function(c.prompt_text, c.text) for c in completions], np.float64)


@dataclass(frozen=True)
class LengthReward:
    """scale · tokens of the completion (its end token included): a control that every real reward is compared with."""

    scale: float = 1.0

    def __call__(self, completions: Seq[Completion]) -> Floats:
        return self.scale * np.array([len(c.tokens) for c in completions], np.float64)


@dataclass(frozen=True)
class RegexReward:
    """`found` where the pattern occurs in the completion's text, else `missing`; searched in linear time."""

    pattern: str
    found: float = 1.0
    missing: float = 0.0

    def __call__(self, completions: Seq[Completion]) -> Floats:
        return np.array([self.found if self._search(c.text) else self.missing for c in completions], np.float64)

    @cached_property
    def _search(self) -> Callable[[str], bool]:
        return LinearRegex(self.pattern).search


@dataclass(frozen=True)
class SentimentReward:
    """scale · VADER's compound score of the completion's text, in [−scale, scale]; needs vaderSentiment.

    Hutto and Gilbert 2014, "VADER: a parsimonious rule-based model for sentiment analysis of social media text".
    """

    scale: float = 2.0

    def __call__(self, completions: Seq[Completion]) -> Floats:
        scores = [self._analyzer.polarity_scores(c.text)["compound"] for c in completions]
        return self.scale * np.array(scores, np.float64)

    @cached_property
    def _analyzer(self) -> Any:
        try:
            from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
        except ImportError:
            raise CapabilityError("vaderSentiment is not installed. Run: pip install vaderSentiment") from None
        return SentimentIntensityAnalyzer()


@dataclass(frozen=True)
class MeanReward:
    """The mean of several rewards; `penalty` times their standard deviation is subtracted (conservative ensembles)."""

    rewards: tuple[Reward, ...]
    penalty: float = 0.0

    def __call__(self, completions: Seq[Completion]) -> Floats:
        values = np.array([np.asarray(reward(completions), np.float64) for reward in self.rewards])
        return values.mean(axis=0) - self.penalty * values.std(axis=0)


@dataclass(frozen=True)
class UnfinishedPenalty:
    """A reward less `penalty` for completions that were cut by the length limit (trl's missing_eos_penalty)."""

    reward: Reward
    penalty: float

    def __call__(self, completions: Seq[Completion]) -> Floats:
        cut = np.array([not c.finished for c in completions], np.float64)
        return np.asarray(self.reward(completions), np.float64) - self.penalty * cut


# --- learned rewards --------------------------------------------------------------------------------------------------


def bradley_terry_loss(
    chosen: Tensor, rejected: Tensor, margin: Tensor | float = 0.0, *, center: float = 0.0
) -> Tensor:
    """(B,) −log σ(r_w − r_l − m) + c·(r_w + r_l)²; as trl's RewardTrainer.

    chosen, rejected  (B,) rewards;  margin: (B,) how much better the chosen one is known to be;  center: c, which
                      draws the free constant of the rewards to 0
    Bradley and Terry 1952; the margin as in Touvron et al. 2023, arXiv:2307.09288, eq. 2.
    """
    loss = softplus(-(chosen - rejected - margin))
    return loss + center * (chosen + rejected) ** 2 if center else loss


@dataclass
class RewardModel:
    """r(x, y) = w · h(last token) − offset: a language model's last state and one linear head, kept in float32.

    module  a causal language model, wrapped by peft or not;  head: w (D,)
    offset  subtracted from every reward, such as the mean over samples of the policy (`centered`)
    """

    module: torch.nn.Module
    head: torch.nn.Parameter
    offset: float = 0.0
    tokenizer: str = ""  # fingerprint of the tokenizer whose ids it reads; "": not checked
    together: int = field(default=TOGETHER, repr=False)

    @classmethod
    def fresh(cls, module: torch.nn.Module, *, tokenizer: str = "") -> RewardModel:
        """A head of zeros: every completion has reward 0."""
        inner: Any = module.get_base_model() if hasattr(module, "get_base_model") else module
        width = inner.get_output_embeddings().weight.shape[1]
        return cls(module, torch.nn.Parameter(torch.zeros(width)), tokenizer=tokenizer)

    def values(self, completions: Seq[Completion]) -> Tensor:
        """(N,) rewards with gradients, in one batch."""
        device = next(self.module.parameters()).device
        batch = TokenBatch.of([completion.marked for completion in completions], device=device)
        return self.batch_values(batch) - self.offset

    def batch_values(self, batch: TokenBatch) -> Tensor:
        """(N,) w · h at the last token that the attention mask shows."""
        inner: Any = self.module.get_base_model() if hasattr(self.module, "get_base_model") else self.module
        states = inner.get_decoder()(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False
        ).last_hidden_state
        places = torch.arange(states.shape[1], device=states.device)
        last = (places * batch.attention_mask).argmax(dim=1)
        rows = torch.arange(len(last), device=last.device)
        return states[rows, last].float() @ self.head.float().to(states.device)

    def __call__(self, completions: Seq[Completion]) -> Floats:
        found: list[float] = []
        training = self.module.training
        self.module.eval()
        with torch.no_grad():
            for start in range(0, len(completions), self.together):
                found += self.values(completions[start : start + self.together]).tolist()
        self.module.train(training)
        return np.array(found, np.float64)

    def centered(self, samples: Seq[Completion]) -> RewardModel:
        """The same model with mean reward 0 over these samples."""
        return RewardModel(self.module, self.head, self.offset + float(self(samples).mean()), self.tokenizer)

    def save(self, folder: str | Path, about: dict[str, Any] | None = None) -> None:
        """Write the head and its settings; the module's weights or adapter are saved by whoever owns them."""
        from safetensors.torch import save

        place = Path(folder)
        with replacing(place / HEAD) as out:
            out.write(save({"head": self.head.detach().float().cpu().contiguous()}))
        settings = {**(about or {}), "offset": self.offset, "tokenizer": self.tokenizer}
        write_whole_file(place / SETTINGS, json.dumps(settings, indent=1).encode())

    @classmethod
    def load(cls, folder: str | Path, module: torch.nn.Module, *, tokenizer: str = "") -> RewardModel:
        """The head of a folder on a module; DataError if it was made for another tokenizer."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        place = Path(folder)
        try:
            settings = json.loads((place / SETTINGS).read_text("utf-8"))
            head = load_file(place / HEAD)["head"]
            offset, made_for = float(settings["offset"]), str(settings["tokenizer"])
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise DataError(f"{place}: not a reward model that was trained here ({error})") from None
        if tokenizer and made_for and tokenizer != made_for:
            raise DataError(f"{place}: this reward model reads another tokenizer's ids: train it for this model")
        return cls(module, torch.nn.Parameter(head), offset, made_for)


# --- a ranker of pairs ------------------------------------------------------------------------------------------------

RANKER_PROMPT = "{prompt}\n\nAnswer A: {first}\n\nAnswer B: {second}\n\nThe better answer is"


@dataclass(frozen=True)
class PairRanker:
    """ρ(x, a, b) = p("A") / (p("A") + p("B")): a language model reads both completions and names the better one.

    template  with {prompt}, {first} and {second};  letters: what is compared, as continuations of the template
    Texts are read, so that it may have any tokenizer.  It is not symmetric: see `labellers.Symmetrised`.
    """

    lm: HasRuntime
    template: str = RANKER_PROMPT
    letters: tuple[str, str] = (" A", " B")

    def prompt(self, first: Completion, second: Completion) -> str:
        return self.template.format(prompt=first.prompt_text, first=first.text, second=second.text)

    def __call__(self, firsts: Seq[Completion], seconds: Seq[Completion]) -> Floats:
        """(B,) ρ(x, first, second)."""
        prompts = [self.prompt(a, b) for a, b in zip(firsts, seconds, strict=True)]
        asked = [(prompt, letter) for prompt in prompts for letter in self.letters]
        found = score_pairs(self.lm.runtime, self.lm.tokenizer, asked)
        logs = np.array([scored.sequence_logprob for scored in found], np.float64).reshape(-1, 2)
        with np.errstate(over="ignore"):
            return 1 / (1 + np.exp(logs[:, 1] - logs[:, 0]))

    def examples(
        self, firsts: Seq[Completion], seconds: Seq[Completion], rng: np.random.Generator
    ) -> list[tuple[str, str]]:
        """[(prompt, letter)] to fine-tune it on, the first of each pair being the better one; the order is random."""
        flips = rng.random(len(firsts)) < 0.5
        return [
            (self.prompt(b, a), self.letters[1]) if flip else (self.prompt(a, b), self.letters[0])
            for a, b, flip in zip(firsts, seconds, flips, strict=True)
        ]
