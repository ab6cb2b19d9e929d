"""What estimators of uncertainty are given, and what they return: arrays with one meaning each.

Natural logarithms, float64, log-probabilities of the model itself (temperature 1, nothing masked or penalised).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from likely.metrics.checks import Floats, Ints
from likely.scoring.choices import Normalise
from likely.scoring.scored import PairScorer

Direction = Literal["more_certain", "less_certain"]  # what a higher value means


@dataclass(frozen=True)
class OptionScores:
    """log p(option k | question), nats, for N questions with up to K options each.

    logprobs       (N, K)  sums over the tokens of an option; -inf is an option that cannot be
    tokens         (N, K)  tokens of each option;  sizes_bytes (N, K): its bytes in UTF-8, leading space not counted
    exists         (N, K)  which options there are, where rows have different numbers of them
    unconditional  (N, K)  the same after a prompt without content ("Answer:"), finite, or None
    labels         (N,)    number of the right option, -1: not known
    """

    logprobs: Floats
    tokens: Ints
    sizes_bytes: Ints
    exists: NDArray[np.bool_]
    unconditional: Floats | None = None
    labels: Ints | None = None

    def __post_init__(self) -> None:
        shape = self.logprobs.shape
        if len(shape) != 2:
            raise ValueError(f"logprobs must be (N, K), got shape {shape}")
        for name in ("tokens", "sizes_bytes", "exists", "unconditional"):
            array = getattr(self, name)
            if array is not None and array.shape != shape:
                raise ValueError(f"{name} has shape {array.shape}, logprobs {shape}")
        bad = (np.isnan(self.logprobs) | np.isposinf(self.logprobs)) & self.exists
        if bad.any():
            raise ValueError(f"logprobs: row {int(bad.any(axis=1).argmax())} is not a log-probability (NaN or +inf)")
        if self.unconditional is not None:  # what is divided by: -inf has no ratio
            bad = ~np.isfinite(self.unconditional) & self.exists
            if bad.any():
                raise ValueError(f"unconditional: row {int(bad.any(axis=1).argmax())} is not finite (NaN or infinite)")
        few = self.exists.sum(axis=1) < 2
        if few.any():
            raise ValueError(f"row {int(few.argmax())} has fewer than 2 options: nothing to be unsure about")

    def logits(self, norm: Normalise = "sum") -> Floats:
        """(N, K) what the options are compared by, in nats, -inf where there is none.

        sum: log p(y|x);  token, byte: divided by the option's tokens or bytes;  pmi: log p(y|x) − log p(y|"Answer:")
        """
        if norm == "pmi":
            if self.unconditional is None:
                raise ValueError("pmi needs the unconditional log-probabilities: score with normalise=pmi")
            values = self.logprobs - np.where(self.exists, self.unconditional, 0.0)
        else:
            by = {"sum": np.ones_like(self.tokens), "token": self.tokens, "byte": self.sizes_bytes}[norm]
            if (by[self.exists] < 1).any():
                row = int(((by < 1) & self.exists).any(axis=1).argmax())
                raise ValueError(f'norm="{norm}": row {row} has an option of no {norm}s')
            values = self.logprobs / np.maximum(by, 1)
        return np.where(self.exists, values, -np.inf)

    def probs(self, norm: Normalise = "sum") -> Floats:
        """(N, K) softmax of `logits`: rows sum to 1, 0 where there is no option."""
        z = self.logits(norm)
        best = z.max(axis=1, keepdims=True)
        if np.isneginf(best).any():
            raise ValueError(f"row {int(np.isneginf(best).argmax())}: every option has probability 0")
        p = np.exp(z - best)
        return p / p.sum(axis=1, keepdims=True)


def option_scores(
    lm: PairScorer, prompts: Sequence[str], answers: Sequence[str], *, progress: Callable[[int], None] | None = None
) -> OptionScores:
    """log p(" " + answer | prompt) for N prompts and K answers; what the prompts share is computed once."""
    scored = lm.score_pairs([(prompt, f" {answer}") for prompt in prompts for answer in answers], progress=progress)
    shape = len(prompts), len(answers)
    return OptionScores(
        np.array([s.sequence_logprob for s in scored], np.float64).reshape(shape),
        np.array([len(s.token_logprobs) for s in scored], np.int64).reshape(shape),
        np.array([[len(answer.encode()) for answer in answers]] * len(prompts), np.int64).reshape(shape),
        np.ones(shape, bool),
    )


@dataclass(frozen=True)
class GenerationScores:
    """M generated texts, several of one prompt perhaps.

    token_logprobs  per text, one per emitted token, the end token included if the model ended by itself
    texts, finish_reasons  "stop" or "length" (cut: its log-probability is that of a prefix)
    prompt_ids      (M,) which prompt each belongs to, 0..N-1
    token_entropies per text and token, nats, over the whole vocabulary; None: not asked for
    token_sizes     per text and token, bytes of text that it wrote (an end token: 0); None: not known
    note            what is peculiar about these numbers
    """

    token_logprobs: Sequence[Floats]
    texts: Sequence[str]
    finish_reasons: Sequence[str]
    prompt_ids: Ints
    token_entropies: Sequence[Floats] | None = None
    token_sizes: Sequence[Ints] | None = None
    note: str = ""

    def __post_init__(self) -> None:
        m = len(self.token_logprobs)
        for name in ("texts", "finish_reasons", "prompt_ids", "token_entropies", "token_sizes"):
            value = getattr(self, name)
            if value is not None and len(value) != m:
                raise ValueError(f"{name} has {len(value)} entries, token_logprobs {m}")
        for i, row in enumerate(self.token_logprobs):
            if not len(row):
                raise ValueError(f"text {i} has no tokens: a text that ended at once still has its end token")
            for name in ("token_entropies", "token_sizes"):
                beside = getattr(self, name)
                if beside is not None and len(beside[i]) != len(row):
                    raise ValueError(f"text {i}: {name} has {len(beside[i])} entries, token_logprobs {len(row)}")
            if np.isnan(row).any() or (np.asarray(row) > 1e-6).any():
                raise ValueError(f"text {i}: a token's log-probability must be a number <= 0")

    @property
    def logprobs(self) -> Floats:
        """(M,) log p(text | prompt): the sum over its tokens."""
        return np.array([np.sum(row, dtype=np.float64) for row in self.token_logprobs])

    @property
    def lengths(self) -> Ints:
        return np.array([len(row) for row in self.token_logprobs], np.int64)

    @property
    def mean_logprobs(self) -> Floats:
        return self.logprobs / self.lengths

    @property
    def truncated(self) -> NDArray[np.bool_]:
        """(M,) which texts were cut."""
        return np.array([reason != "stop" for reason in self.finish_reasons])

    def of(self, prompt: int) -> Ints:
        """The numbers of a prompt's texts, in their order."""
        return np.flatnonzero(self.prompt_ids == prompt)


def scores_of(groups: Sequence[Sequence[Any]], sizes: Callable[[Any], Ints | None], note: str = "") -> GenerationScores:
    """The texts of each prompt (records of generated texts) as arrays; sizes: of a text, the bytes of each token."""
    made = [text for group in groups for text in group]
    noted = [getattr(text, "steering", None) for text in made]
    each = [sizes(text) for text in made]
    return GenerationScores(
        [np.array(text.token_logprobs, np.float64) for text in made],
        [text.text for text in made],
        [text.finish_reason for text in made],
        np.repeat(np.arange(len(groups)), [len(group) for group in groups]),
        None if not made or noted[0] is None else [np.array(row, np.float64) for row in noted],
        None if any(one is None for one in each) else each,  # type: ignore[arg-type]
        note,
    )


@dataclass(frozen=True)
class Gathered:
    """What one run of the model gave for N prompts; estimators read what their `needs` name.

    greedy     one text per prompt, in their order;  samples: S per prompt, at temperature 1 without truncation
    beams      the most likely text per prompt that beam search found
    prompts    the questions as text
    extra      further needs by name ("p_true": (N,), "sample_states": (M, D), at the end of each sample)
    """

    prompts: Sequence[str]
    greedy: GenerationScores | None = None
    samples: GenerationScores | None = None
    beams: GenerationScores | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def n(self) -> int:
        """N, the number of prompts."""
        return len(self.prompts)

    def texts(self, name: Literal["greedy", "samples", "beams"]) -> GenerationScores:
        """These texts; ValueError where they were not gathered."""
        found: GenerationScores | None = getattr(self, name)
        if found is None:
            raise ValueError(f'no {name} were gathered: gather(..., needs=["{name}"])')
        return found


@dataclass(frozen=True)
class Uncertainty:
    """One number per prompt.

    kind       "probability": of being right (higher_is "more_certain") or wrong, in [0, 1]; "score": any scale
    missing    (N,) where nothing could be read (a stated confidence that is not there); values are NaN there
    truncated  (N,) where it rests on a text that was cut
    """

    values: Floats
    kind: Literal["probability", "score"]
    higher_is: Direction
    name: str
    truncated: NDArray[np.bool_] | None = None
    note: str = ""

    @property
    def missing(self) -> NDArray[np.bool_]:
        return np.isnan(self.values)

    @property
    def certainty(self) -> Floats:
        """Higher is more certain, on the estimator's own scale: for ranking (AUROC, risk and coverage)."""
        return self.values if self.higher_is == "more_certain" else -self.values

    def confidence(self) -> Floats:
        """The probability of being right; ValueError for a score, which a recalibrator has to map first."""
        if self.kind != "probability":
            raise ValueError(f"{self.name} is a score, not a probability: fit a recalibrator (calibrate fit) to it")
        if self.missing.any():
            warnings.warn(f"{self.name}: {int(self.missing.sum())} of {len(self.values)} missing", stacklevel=2)
        return self.values if self.higher_is == "more_certain" else 1 - self.values
