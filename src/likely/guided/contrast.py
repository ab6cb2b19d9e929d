"""Contrastive decoding: what the model says, less what it would say in another context or what a weaker model says.

One transform, four presets:
  uscd  log p - η log p⁻ where the model is unsure   Wang et al. 2024, arXiv:2409.05923 (η = 0.1, α = 0.1)
  cad   (1 + w) log p - w log p⁻                     context-aware decoding, Shi et al. 2023, arXiv:2305.14739 (w = 0.5)
  cfg   the same, w = γ - 1                          classifier-free guidance, Sanchez et al. 2023, arXiv:2306.17806
  cd    log p - log p⁻, p⁻ of a smaller model        contrastive decoding, Li et al. 2022, arXiv:2210.15097 (α = 0.1)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from likely.errors import KvFull, ModelError
from likely.runtimes.protocol import FloatArray, Output, Runtime, Sequence, Want, Work
from likely.runtimes.rows import log_softmax
from likely.tokenizers.protocol import Tokenizer

Mode = Literal["uscd", "cad", "cfg", "cd"]
LEAST = np.float32(-50.0)  # stands for log p⁻ = -inf: no token may win by that alone


# --- when the model counts as unsure ----------------------------------------------------------------------------------


def root_collision(p: FloatArray) -> float:
    """sqrt(Σ p²) in [1/√V, 1]: 1 for a certain token, 1/√V for the uniform distribution.

    Σ p² is the probability that two samples agree (the collision probability); sqrt(Σ p²) = exp(-H₂ / 2), H₂ the Rényi
    entropy of order 2 in nats.
    """
    return float(np.sqrt(np.square(p, dtype=np.float64).sum()))


def spread(p: FloatArray) -> float:
    """μ = sqrt(Σ (p - 1/V)² / V), the standard deviation of p over the vocabulary.

    It is bounded by about 1/√V, so that the same μ means different things for different vocabularies; exactly
    μ² V = Σ p² - 1/V, which is why the gate asks for sqrt(Σ p²).
    """
    p = np.asarray(p, np.float64)
    return float(np.sqrt(np.square(p - 1 / len(p)).sum() / len(p)))


@dataclass(frozen=True)
class CollisionGate:
    """Opens where sqrt(Σ p²) <= tau: the flatter the distribution, the smaller the sum.

    tau  in (0, 1]; at 1 the gate is always open.  The default is the paper's threshold 4e-3 on μ, read at a vocabulary
         of 32,000.
    """

    tau: float = 0.72

    def __post_init__(self) -> None:
        if not 0 < self.tau <= 1:
            raise ValueError(f"tau must lie in (0, 1], got {self.tau}")

    @property
    def always(self) -> bool:
        """It opens at every step, so that both contexts may be computed in the same call."""
        return self.tau == 1

    @classmethod
    def from_spread(cls, mu: float, vocab_size: int) -> CollisionGate:
        """The gate that opens where `spread` <= mu, as the paper states it; mu must lie in (0, √(1/V (1 - 1/V)))."""
        most = spread(np.eye(1, vocab_size)[0])
        if not 0 < mu < most:
            raise ValueError(
                f"with {vocab_size} tokens the spread of a distribution lies in [0, {most:.3g}]: "
                f"a threshold of {mu:g} would say the same at every step"
            )
        return cls(float(np.sqrt(mu * mu * vocab_size + 1 / vocab_size)))

    def opens(self, collision: float) -> bool:
        """collision  `root_collision` of the next-token distribution"""
        return self.always or collision <= self.tau


# --- the contrast -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Preset:
    """The numbers of a mode: score = a log p - b log p⁻ where the gate is open.

    eta     (a, b) = (1, eta);  weight: (a, b) = (1 + weight, weight).  One of the two
    alpha   only tokens with p >= alpha max p compete; None: all
    """

    gate: CollisionGate
    eta: float | None = None
    weight: float | None = None
    alpha: float | None = None


ALWAYS_OPEN = CollisionGate(1.0)
PRESETS: dict[str, Preset] = {
    "uscd": Preset(CollisionGate(0.72), eta=0.1, alpha=0.1),
    "cad": Preset(ALWAYS_OPEN, weight=0.5),
    "cfg": Preset(ALWAYS_OPEN, weight=0.5),
    "cd": Preset(ALWAYS_OPEN, eta=1.0, alpha=0.1),
}


@dataclass(frozen=True)
class StepInfo:
    """The contrast at one token.

    gated      whether the gate was open, so that the contrast applied
    collision  sqrt(Σ p²) of the model's distribution, in (0, 1]
    js         Jensen-Shannon divergence of the two distributions in bits, None where the gate was closed
    """

    gated: bool
    collision: float
    js: float | None


def contrasted(logp: FloatArray, log_negative: FloatArray, *, a: float, b: float, alpha: float | None) -> FloatArray:
    """Scores (V,) = a log p - b log p⁻; -inf where p < alpha max p.  Not normalised.

    logp, log_negative  (V,) fp32 log-probabilities.  The most likely token is always within the set, by definition.
    Within a set log p⁻ is not taken below -50.  Without one (alpha None) only p⁻ = 0 counts as that, so that the scores
    are those of classifier-free guidance in the far tail, too.
    """
    above = log_negative > (-np.inf if alpha is None else LEAST)
    least = np.where(above, log_negative, LEAST)
    scores: FloatArray = (np.float32(a) * logp - np.float32(b) * least).astype(np.float32)
    if alpha is not None:
        scores[logp < logp.max() + np.float32(np.log(alpha))] = -np.inf
    return scores


def jensen_shannon(logp: FloatArray, logq: FloatArray) -> float:
    """Jensen-Shannon divergence in bits, so that it lies in [0, 1]: 0 for equal distributions, 1 for disjoint
    ones.

    logp, logq  (V,) natural log-probabilities; -inf is a legal entry
    JS = ½ Σ p log₂(p / m) + ½ Σ q log₂(q / m),  m = (p + q) / 2.  Lin 1991, IEEE Trans. Inf. Theory 37(1).
    Multiply by log 2 for nats.
    """
    p, q = np.exp(logp), np.exp(logq)
    with np.errstate(divide="ignore", invalid="ignore"):
        log_m = np.log((p + q) / 2)
        parts = np.where(p > 0, p * (logp - log_m), 0) + np.where(q > 0, q * (logq - log_m), 0)
    return float(np.clip(parts.sum(dtype=np.float64) / (2 * np.log(2)), 0.0, 1.0))


class LoadedModel(Protocol):
    """The other model of mode "cd"."""

    runtime: Runtime
    tokenizer: Tokenizer


class Contrast:
    """A LogitsProcessor: the next-token distribution, contrasted with the one after a negative context.

    negative  what takes the prompt's place: a text (rendered as the prompt is: raw for generate, by the chat template
              for ask and chat), a list of messages, token ids; for "cd" another loaded model of the same vocabulary,
              which sees the prompt itself
    mode      a preset; `eta`, `weight`, `alpha` and `gate` replace its numbers (weight of "cfg" is the guidance scale
              less 1)
    eager     whether the negative context is computed in every call together with the text, or lazily: tokens wait, and
              are computed in one call of their own when the gate next opens.  None: eager where the gate is always open

    Where the gate is closed, the logits stay as they are.  Otherwise s = a log p - b log p⁻ over tokens with
    p >= alpha max p; p and p⁻ are taken over what a constraint allows, and temperature, top-p and penalties follow.
    End tokens are contrasted as any other.  The two contexts hold the same continuation and nothing else in common.
    `steps` holds a StepInfo per emitted token.
    """

    def __init__(
        self,
        negative: Any,
        mode: Mode = "uscd",
        *,
        eta: float | None = None,
        weight: float | None = None,
        alpha: float | None = None,
        gate: CollisionGate | None = None,
        eager: bool | None = None,
    ):
        if mode not in PRESETS:
            raise ValueError(f"mode must be one of {', '.join(PRESETS)}, got {mode!r}")
        if eta is not None and weight is not None:
            raise ValueError("eta and weight are two ways to say how strong the contrast is: give one")
        for name, value in (("eta", eta), ("weight", weight)):
            if value is not None and not (np.isfinite(value) and value >= 0):
                raise ValueError(f"{name} must be >= 0, got {value}")
        if alpha is not None and not 0 < alpha <= 1:
            raise ValueError(f"alpha must lie in (0, 1], got {alpha}")
        preset = PRESETS[mode]
        if eta is None and weight is None:
            eta, weight = preset.eta, preset.weight
        self.a, self.b = (1.0, eta) if eta is not None else (1.0 + (weight or 0.0), weight or 0.0)
        self.alpha = preset.alpha if alpha is None else alpha
        self.mode, self.negative = mode, negative
        self.gate = gate or preset.gate
        self.eager = self.gate.always if eager is None else eager
        self._check_negative()
        self._steps: list[StepInfo] = []
        self._pending_steps: list[StepInfo] = []  # of tokens that are not emitted yet
        self._model: Runtime | None = None  # where the negative context is computed
        self._beside = False  # in the same calls as the text
        self._prompt_length = 0
        self._text: list[int] = []  # negative context and emitted tokens
        self._held = 0  # of those (and of tokens that will be emitted for certain), how many the sequence keeps
        self._sequence: Sequence | None = None
        self._rows: dict[tuple[int, ...], FloatArray] = {}  # path after the text -> logits of the negative context
        self._paths: list[tuple[int, ...]] = []  # the paths whose rows come out of this call

    def _check_negative(self) -> None:
        negative = self.negative
        if (self.mode == "cd") != _is_model(negative):
            raise ValueError(
                'mode="cd" contrasts with another loaded model, the other modes with another prompt: '
                f"got {type(negative).__name__} for mode {self.mode!r}"
            )
        if not _is_model(negative) and (not isinstance(negative, Seq) or not len(negative)):
            raise ValueError(f"the negative prompt is empty or no prompt: got {negative!r}")
        if isinstance(negative, str) and not negative.strip():
            raise ValueError("the negative prompt is empty; contrast with a neutral prompt instead")

    @property
    def steps(self) -> list[StepInfo]:
        """One per emitted token."""
        return [*self._steps, *self._pending_steps]

    @property
    def room(self) -> int:
        """The most tokens that fit behind the negative context."""
        assert self._model is not None
        return self._model.context_length - self._prompt_length

    # --- before the text begins -----------------------------------------------------------------------------------

    def prepared(self, tokenizer: Tokenizer, vocab_size: int, encode: Callable[[Any], Seq[int]]) -> Contrast:
        """A copy whose negative context is token ids.

        tokenizer, vocab_size  of the model that writes the text: another model must have the same tokens
        encode                 text or messages -> ids, as the prompt itself was made
        """
        if _is_model(self.negative):
            check_same_tokens(self.negative, tokenizer, vocab_size)
            return self
        if isinstance(self.negative, str) or isinstance(self.negative[0], Mapping):
            return self._with(list(encode(self.negative)))
        bad = [t for t in self.negative if not 0 <= t < vocab_size]
        if bad:
            raise ValueError(f"token id {bad[0]} of the negative prompt is outside 0..{vocab_size - 1}")
        return self

    def _with(self, negative: Any) -> Contrast:
        copy = object.__new__(Contrast)
        copy.__dict__ |= self.__dict__
        copy.negative = negative
        copy._steps, copy._pending_steps, copy._text, copy._rows = [], [], [], {}
        return copy

    def begin(self, runtime: Runtime, prompt: Seq[int]) -> Contrast:
        copy = self._with(self.negative)
        other = _is_model(self.negative)
        if not other and not isinstance(self.negative[0], int | np.integer):
            raise ValueError("the negative prompt is text: give it as contrast=, or as token ids")
        copy._model = self.negative.runtime if other else runtime
        if copy._model.vocab_size != runtime.vocab_size:
            raise ValueError(
                f"the contrasting model has {copy._model.vocab_size} tokens, this one {runtime.vocab_size}: "
                f"both must have the same vocabulary"
            )
        copy._beside = self.eager and not other
        copy._text = [int(t) for t in (prompt if other else self.negative)]
        copy._prompt_length = len(copy._text)
        if len(copy._text) >= copy._model.context_length:
            raise ModelError(
                f"the negative context has {len(copy._text)} tokens; the model's context is "
                f"{copy._model.context_length}: shorten it or load the model with a larger context="
            )
        return copy

    # --- one call ---------------------------------------------------------------------------------------------------

    def work(self, work: Work) -> list[Work]:
        if not self._beside:
            return []
        self._paths = [()]
        if work.parents is None:
            rest = self._text[self._held :]
            return [Work(self._opened(), np.array(rest), want=Want.LAST)] if rest else []
        # a draft: its first node is the newest token, the last of our text
        self._catch_up(self._text[:-1])
        paths: list[tuple[int, ...]] = [()]
        for token, parent in zip(work.tokens[1:].tolist(), work.parents[1:].tolist(), strict=True):
            paths.append((*paths[parent], token))
        self._paths = paths
        return [Work(self._opened(), work.tokens, work.parents, want=Want.ALL)]

    def read(self, outputs: list[Output]) -> None:
        if not outputs:
            return
        rows = outputs[0].logits
        assert rows is not None and self._sequence is not None
        if not self._sequence.pending:
            self._held = len(self._text)
        self._rows = dict(zip(self._paths, rows, strict=True))

    def apply(self, path: Seq[int], logits: FloatArray) -> FloatArray:
        logp = log_softmax(logits)
        collision = root_collision(np.exp(logp))
        gated = self.gate.opens(collision)
        js = None
        if gated:
            other = np.where(logp > -np.inf, self._row(tuple(path)), np.float32(-np.inf))
            possible = other.max() > -np.inf
            other = log_softmax(other) if possible else other
            js = jensen_shannon(logp, other) if possible else 1.0
            logits = contrasted(logp, other, a=self.a, b=self.b, alpha=self.alpha)
        self._pending_steps[len(path) :] = [StepInfo(gated, collision, js)]
        return logits

    def _row(self, path: tuple[int, ...]) -> FloatArray:
        """Logits of the negative context after the text and `path`, whose tokens will be emitted for certain."""
        if path not in self._rows:
            self._rows[path] = self._catch_up([*self._text, *path])
        return self._rows[path]

    def _catch_up(self, tokens: list[int]) -> Any:
        """Compute what is not held yet of `tokens`, in a call of its own; the last row of logits, if there was any."""
        assert self._model is not None
        rest = tokens[self._held :]
        if not rest:
            return None
        output = self._model.forward([Work(self._opened(), np.array(rest), want=Want.LAST)])[0]
        self._held = len(tokens)
        assert output.logits is not None
        return output.logits[-1]

    def _opened(self) -> Sequence:
        assert self._model is not None
        if self._sequence is None:
            self._sequence, self._held = self._model.open(), 0
        return self._sequence

    # --- between calls ----------------------------------------------------------------------------------------------

    def advance(self, tokens: Seq[int], accepted: Seq[int]) -> None:
        if self._sequence is not None and self._sequence.pending:
            assert self._model is not None
            self._model.commit([(self._sequence, list(accepted))])
            self._held += len(accepted)
        self._text += tokens
        self._steps += self._pending_steps[: len(tokens)]
        self._pending_steps, self._rows = [], {}

    def fork(self) -> Contrast:
        copy = self._with(self.negative)
        copy._steps, copy._pending_steps = self._steps.copy(), self._pending_steps.copy()
        copy._text, copy._rows = self._text.copy(), self._rows.copy()
        if self._sequence is not None:
            assert self._model is not None
            try:
                copy._sequence = self._model.fork(self._sequence)
            except KvFull:  # computed anew when there is room
                copy._sequence, copy._held = None, 0
        return copy

    def drop(self) -> None:
        if self._sequence is not None:
            assert self._model is not None
            self._model.close(self._sequence)
        self._sequence, self._held, self._rows = None, 0, {}


def _is_model(negative: Any) -> bool:
    return hasattr(negative, "runtime") and hasattr(negative, "tokenizer")


def check_same_tokens(
    model: LoadedModel, tokenizer: Tokenizer, vocab_size: int, *, role: str = "contrasting model"
) -> None:
    """ValueError unless each id means the same bytes in both models; role: what `model` is here."""
    if model.runtime.vocab_size != vocab_size:
        raise ValueError(
            f"the {role} has {model.runtime.vocab_size} tokens, this one {vocab_size}: both must have the same "
            f"vocabulary"
        )
    other = model.tokenizer
    if other.fingerprint == tokenizer.fingerprint:
        return
    for token in range(min(tokenizer.vocab_size, other.vocab_size)):
        if tokenizer.token_bytes(token) != other.token_bytes(token):
            raise ValueError(
                f"token {token} is {tokenizer.token_text(token)!r} here and {other.token_text(token)!r} in the "
                f"{role}: both must have the same vocabulary"
            )
