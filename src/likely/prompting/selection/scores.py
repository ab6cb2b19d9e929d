"""What a model says to every input in every prompt of a pool: arrays, and the file that keeps them.

Shapes: T prompts, N inputs, K answers, C inputs without content.  Log-probabilities in nats, float64.
"""

from __future__ import annotations

import json
import struct
import tokenize
import zipfile
import zlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from likely.errors import DataError, check_choice
from likely.io.whole_file import replacing
from likely.metrics.checks import Floats, Ints, softmax
from likely.prompting.selection.answers import check_logprobs

AnswerNorm = Literal["token", "sum", "first"]
ANSWER_NORMS = get_args(AnswerNorm)
KIND = "likely prompt scores 1"
# what numpy and zipfile raise for a file that is damaged
DAMAGED = (
    ValueError, KeyError, TypeError, AttributeError, EOFError, RuntimeError, SyntaxError, OverflowError, MemoryError,
    struct.error, tokenize.TokenError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip
ARRAYS = ("logprobs", "tokens", "first", "content_free", "content_free_tokens", "content_free_first", "input_logprobs")


@dataclass(frozen=True)
class PromptScores:
    """log p(answer | input in prompt) for a whole pool.

    names          T prompts;  labels (N,): right answers, -1 where not known
    logprobs       (T, N, K)  sums over the tokens of an answer;  tokens (T, N, K): how many;  first: of the first token
    content_free   (C, T, K), likewise, for the inputs `without` ("" for pmi; the mean of all for cc)
    input_logprobs (T, N)     mean log-probability of a token of the filled-in prompt, or None: not asked for
    dynamic        every input brought answers of its own: answer k means position k
    origin         what the numbers depend on (model, hashes, version)
    NaN stands where a prompt has not been scored yet.
    """

    names: tuple[str, ...]
    logprobs: Floats
    tokens: Ints
    first: Floats | None = None
    content_free: Floats | None = None
    content_free_tokens: Ints | None = None
    content_free_first: Floats | None = None
    input_logprobs: Floats | None = None
    without: tuple[str, ...] = ()
    labels: Ints | None = None
    dynamic: bool = False
    origin: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.logprobs.ndim != 3 or len(self.names) != len(self.logprobs):
            raise ValueError(f"logprobs must be ({len(self.names)}, inputs, answers), got {self.logprobs.shape}")
        t, n, k = self.logprobs.shape
        free = (len(self.without), t, k)
        shapes = {"tokens": (t, n, k), "first": (t, n, k), "input_logprobs": (t, n), "labels": (n,)}
        shapes |= {name: free for name in ("content_free", "content_free_tokens", "content_free_first")}
        for name, shape in shapes.items():
            array = getattr(self, name)
            if array is not None and array.shape != shape:
                raise ValueError(f"{name} must have shape {shape}, got {array.shape}")

    @property
    def done(self) -> NDArray[np.bool_]:
        """(T,) which prompts have been scored."""
        return np.asarray(~np.isnan(self.logprobs).any(axis=(1, 2)))

    def logits(self, norm: AnswerNorm = "token") -> Floats:
        """(T, N, K) what answers are compared by, in nats: per token (the default), sums, or the first token alone."""
        return check_logprobs(_normed(self.logprobs, self.tokens, self.first, norm))

    def probs(self, norm: AnswerNorm = "token") -> Floats:
        """P (T, N, K): softmax over the answers."""
        return softmax(self.logits(norm))

    def content_free_logits(self, norm: AnswerNorm = "token") -> Floats:
        """(C, T, K) the same for the inputs without content."""
        if self.content_free is None or self.content_free_tokens is None:
            raise ValueError("there are no scores of inputs without content: score the pool with content_free=")
        return _normed(self.content_free, self.content_free_tokens, self.content_free_first, norm)

    @property
    def perplexity(self) -> Floats | None:
        """(T, N) of the filled-in prompts: exp of minus the mean log-probability of their tokens."""
        return None if self.input_logprobs is None else np.exp(-self.input_logprobs)

    def known_labels(self) -> Ints | None:
        """The labels, if every input has one."""
        return None if self.labels is None or (self.labels < 0).any() else self.labels

    def pick(self, prompts: Any) -> PromptScores:
        """Only these prompts (numbers or a mask), in this order."""
        at = np.arange(len(self.names))[prompts]
        changed: dict[str, Any] = {"names": tuple(self.names[t] for t in at)}
        for name in ARRAYS:
            if (array := getattr(self, name)) is not None:
                changed[name] = array[:, at] if name.startswith("content_free") else array[at]
        return replace(self, **changed)

    def save(self, path: str | Path) -> None:
        """Write an npz file; a reader sees the old one or the new one, whole."""
        head = {
            "kind": KIND, "names": list(self.names), "without": list(self.without), "dynamic": self.dynamic,
            "origin": self.origin,
        }  # fmt: skip
        arrays = {name: getattr(self, name) for name in (*ARRAYS, "labels") if getattr(self, name) is not None}
        with replacing(Path(path)) as out:
            np.savez_compressed(out, head=np.array(json.dumps(head)), **arrays)

    @classmethod
    def load(cls, path: str | Path) -> PromptScores:
        """Read what `save` wrote; DataError for anything else (no pickled object is ever read)."""
        try:
            with np.load(path, allow_pickle=False) as found:
                arrays = {name: found[name] for name in found.files}
            head = json.loads(str(arrays.pop("head")))
            if head["kind"] != KIND:
                raise DataError(f'{path}: made by another version ("{head["kind"]}", here "{KIND}"): score again')
            return cls(
                names=tuple(head["names"]), without=tuple(head["without"]), dynamic=bool(head["dynamic"]),
                origin=head["origin"], **arrays,
            )  # fmt: skip
        except OSError as error:
            raise DataError(f"cannot read {path}: {error.strerror or error}") from None
        except DAMAGED:
            raise DataError(f"{path}: not a file of prompt scores (likely prompts select -o keeps them)") from None


def _normed(sums: Floats, tokens: Ints, first: Floats | None, norm: AnswerNorm) -> Floats:
    check_choice("norm", norm, ANSWER_NORMS)
    if norm == "sum":
        return sums
    if norm == "token":
        return sums / np.maximum(tokens, 1)
    if first is None:
        raise ValueError('norm="first": there are no log-probabilities of first tokens in these scores')
    return first
