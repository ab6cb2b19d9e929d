"""What a change of a model does to its likelihoods: KL(reference ‖ candidate) per token, perplexity, flips, memory.

Both models are any runtimes with one vocabulary; they read the same windows, a piece of one at a time, so that no more
than a piece's rows of log-probabilities are in memory.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from likely.compression.calibration_set import CalibrationSet
from likely.errors import ModelError
from likely.runtimes.protocol import IntArray, Runtime, Want, Work
from likely.runtimes.protocol import Sequence as Held
from likely.tokenizers.parity import compare_tokenizers
from likely.tokenizers.protocol import Tokenizer

Rows = NDArray[np.float32]  # (T, V) log-probabilities
Values = NDArray[np.float64]
PIECE_BYTES = 64 << 20  # of the rows of one model that exist at one time


class Likelihoods(Protocol):
    """A model on this machine: what `likely.load` gives."""

    @property
    def runtime(self) -> Runtime: ...
    @property
    def tokenizer(self) -> Tokenizer: ...


@dataclass(frozen=True, eq=False)
class Compared:
    """A candidate against the reference on T positions.

    kl         (T,) Σ_v p_v (log p_v − log q_v), nats; p the reference's distribution, q the candidate's
    agrees     (T,) whether the most likely token is the same
    reference  (T,) log-probability of the token that followed, by the reference;  candidate  (T,) by the candidate
    """

    kl: Values
    agrees: NDArray[np.bool_]
    reference: Values
    candidate: Values


@dataclass(frozen=True)
class LikelihoodReport:
    """Means over all scored positions.

    Standard errors are over windows, since positions of a window hang together; None for a single window.

    kl, kl_se            mean KL(reference ‖ candidate) per token, nats;  kl_median, kl_p90, kl_p99, kl_p999, kl_max
    top1                 share of positions whose most likely token is the same
    perplexity, reference_perplexity; log_ratio, log_ratio_se  ln(perplexity / reference_perplexity)
    delta_p, delta_p_rms mean and root mean square of q(y) − p(y), y the token that followed
    tokens               scored positions, in `windows` of `length` tokens, of which the first `skip` are not scored
    """

    kl: float
    kl_se: float | None
    kl_median: float
    kl_p90: float
    kl_p99: float
    kl_p999: float
    kl_max: float
    top1: float
    perplexity: float
    reference_perplexity: float
    log_ratio: float
    log_ratio_se: float | None
    delta_p: float
    delta_p_rms: float
    tokens: int
    windows: int
    length: int
    skip: int
    data: str
    data_digest: str

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def compare(
    reference: Likelihoods,
    candidate: Likelihoods,
    data: CalibrationSet,
    *,
    skip: int = 1,
    progress: Callable[[int], None] | None = None,
) -> LikelihoodReport:
    """Teacher-forced on every window: position t predicts token t from those before it.

    skip  tokens at the start of each window that are not scored, at least 1: nothing predicts the first
    ModelError where the two do not share a tokenizer.
    """
    return compare_all(reference, {"candidate": candidate}, data, skip=skip, progress=progress)["candidate"]


def compare_all(
    reference: Likelihoods,
    candidates: dict[str, Likelihoods],
    data: CalibrationSet,
    *,
    skip: int = 1,
    progress: Callable[[int], None] | None = None,
) -> dict[str, LikelihoodReport]:
    """The same for several candidates in one pass of the reference. progress: called with 1 after each window."""
    length = data.input_ids.shape[1]
    _check_skip(skip, length)
    for name, model in candidates.items():
        _check_tokenizers(name, reference.tokenizer, model.tokenizer)
    for name, model in {"the reference": reference, **candidates}.items():
        _check_room(name, model.runtime, length)
    runtimes = {name: model.runtime for name, model in candidates.items()}
    found: dict[str, list[Compared]] = {name: [] for name in candidates}
    for window in data.input_ids:
        for name, compared in compare_window(reference.runtime, runtimes, window, skip).items():
            found[name].append(compared)
        if progress is not None:
            progress(1)
    return {name: report_of(windows, data, skip) for name, windows in found.items()}


class RememberedRows:
    """The reference's rows on a data set, computed once and kept in an unnamed file: for many candidates in turn.

    It takes 4 N T V bytes of disk (2,048 tokens of SmolLM2: 400 MB), which are free again when it is closed.
    """

    def __init__(self, reference: Likelihoods, data: CalibrationSet, *, folder: str | None = None):
        self.data, self._tokenizer = data, reference.tokenizer
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  closed with this object
        windows, length = data.input_ids.shape
        _check_room("the reference", reference.runtime, length)
        shape = (windows, length - 1, reference.runtime.vocab_size)
        self._rows = np.memmap(self._file, np.float32, "w+", shape=shape)
        for number, window in enumerate(data.input_ids):
            for start, rows in _pieces(reference.runtime, window):
                self._rows[number, start : start + len(rows)] = rows

    def compare(self, candidate: Likelihoods, *, skip: int = 1) -> LikelihoodReport:
        """As `compare` with the reference."""
        return report_of(self.windows(candidate, skip=skip), self.data, skip)

    def windows(self, candidate: Likelihoods, *, skip: int = 1) -> list[Compared]:
        """Each window by itself: candidates that are to be compared with each other are so window by window."""
        length = self.data.input_ids.shape[1]
        _check_skip(skip, length)
        _check_tokenizers("the candidate", self._tokenizer, candidate.tokenizer)
        _check_room("the candidate", candidate.runtime, length)
        found = []
        for kept, window in zip(self._rows, self.data.input_ids, strict=True):
            pieces = _pieces(candidate.runtime, window)
            parts = (
                _compare_piece(start, kept[start : start + len(rows)], rows, window, skip) for start, rows in pieces
            )
            found.append(_join(parts))
        return found

    def close(self) -> None:
        del self._rows
        self._file.close()


def _pieces(runtime: Runtime, tokens: IntArray) -> Generator[tuple[int, Rows]]:
    """(position of the first row, rows after each of some tokens) of a window, front to back."""
    piece = max(1, PIECE_BYTES // (4 * runtime.vocab_size))
    sequence = runtime.open()
    try:
        for start, stop in pairwise([*range(0, len(tokens) - 1, piece), len(tokens) - 1]):
            yield start, _rows(runtime, sequence, tokens[start:stop])
    finally:
        runtime.close(sequence)


def compare_window(
    reference: Runtime, candidates: dict[str, Runtime], tokens: IntArray, skip: int = 1
) -> dict[str, Compared]:
    """One window (T,): a piece on the reference, then the same piece on each candidate."""
    found: dict[str, list[Compared]] = {name: [] for name in candidates}
    with ExitStack() as stack:

        def opened(runtime: Runtime) -> Iterator[tuple[int, Rows]]:
            return stack.enter_context(closing(_pieces(runtime, tokens)))

        theirs, ours = opened(reference), {name: opened(runtime) for name, runtime in candidates.items()}
        for start, rows in theirs:
            for name, pieces in ours.items():
                _, candidate = next(pieces)
                found[name].append(_compare_piece(start, rows, candidate, tokens, skip))
    return {name: _join(parts) for name, parts in found.items()}


def _compare_piece(start: int, reference: Rows, candidate: Rows, tokens: IntArray, skip: int) -> Compared:
    """The rows from position `start` of a window on, but for those that predict its first `skip` tokens."""
    scored = slice(max(0, skip - 1 - start), None)
    following = tokens[start + 1 : start + 1 + len(reference)]
    return compare_rows(reference[scored], candidate[scored], following[scored])


def log_softmax(logits: NDArray[Any]) -> Rows:
    """(T, V) natural logarithms in fp32, the sum over V in fp64."""
    rows = logits.astype(np.float32)
    rows -= rows.max(axis=1, keepdims=True)
    rows -= np.log(np.exp(rows).sum(axis=1, keepdims=True, dtype=np.float64)).astype(np.float32)
    return rows


def compare_rows(reference: Rows, candidate: Rows, following: IntArray) -> Compared:
    """Both (T, V) log-probabilities; following (T,) the token that came after each position."""
    if reference.shape != candidate.shape:
        raise ValueError(f"rows of shape {candidate.shape} against the reference's {reference.shape}")
    p = np.exp(reference)
    with np.errstate(invalid="ignore"):
        terms = p * (reference - candidate)
    if (impossible := p == 0).any():  # 0 log 0 = 0
        terms[impossible] = 0
    kl = terms.sum(axis=1, dtype=np.float64)
    if np.isnan(kl).any():
        raise ValueError("a divergence is not a number: some logits are NaN")
    at = np.arange(len(following))
    agrees = reference.argmax(axis=1) == candidate.argmax(axis=1)
    theirs, ours = reference[at, following].astype(np.float64), candidate[at, following].astype(np.float64)
    return Compared(kl, agrees, theirs, ours)


def report_of(windows: list[Compared], data: CalibrationSet, skip: int) -> LikelihoodReport:
    """Of all windows of a set."""
    whole = _join(windows)
    ratio = [w.reference - w.candidate for w in windows]
    quantiles = np.quantile(whole.kl, [0.5, 0.9, 0.99, 0.999, 1.0])
    delta = np.exp(whole.candidate) - np.exp(whole.reference)
    return LikelihoodReport(
        kl=float(whole.kl.mean()),
        kl_se=_standard_error([w.kl for w in windows]),
        kl_median=float(quantiles[0]),
        kl_p90=float(quantiles[1]),
        kl_p99=float(quantiles[2]),
        kl_p999=float(quantiles[3]),
        kl_max=float(quantiles[4]),
        top1=float(whole.agrees.mean()),
        perplexity=math.exp(-float(whole.candidate.mean())),
        reference_perplexity=math.exp(-float(whole.reference.mean())),
        log_ratio=float((whole.reference - whole.candidate).mean()),
        log_ratio_se=_standard_error(ratio),
        delta_p=float(delta.mean()),
        delta_p_rms=float(np.sqrt((delta**2).mean())),
        tokens=len(whole.kl),
        windows=len(windows),
        length=int(data.input_ids.shape[1]),
        skip=skip,
        data=data.name,
        data_digest=data.digest,
    )


def _check_skip(skip: int, length: int) -> None:
    if not 1 <= skip < length:
        raise ValueError(f"skip must lie between 1 and {length - 1} for windows of {length} tokens, got {skip}")


def _check_room(name: str, runtime: Runtime, length: int) -> None:
    most = min(runtime.context_length, runtime.limits.tokens_held)
    if length > most:
        raise ModelError(f"windows of {length} tokens do not fit {name}, which holds {most}: ask for shorter ones")


def _check_tokenizers(name: str, reference: Tokenizer, candidate: Tokenizer) -> None:
    """ModelError unless both give the same ids."""
    if candidate.fingerprint == reference.fingerprint:
        return
    if candidate.vocab_size != reference.vocab_size or compare_tokenizers(reference, candidate):
        raise ModelError(
            f"{name}: another tokenizer than the reference's ({candidate.vocab_size} and {reference.vocab_size} "
            "tokens), so their likelihoods cannot be compared"
        )


def _rows(runtime: Runtime, sequence: Held, tokens: IntArray) -> Rows:
    """(T, V) log-probabilities after each of T tokens, which the sequence then holds."""
    [output] = runtime.forward([Work(sequence, tokens, want=Want.ALL)])
    assert output.logits is not None
    return log_softmax(output.logits)


def _join(parts: Iterable[Compared]) -> Compared:
    found = list(parts)
    names = ("kl", "agrees", "reference", "candidate")
    return Compared(*(np.concatenate([getattr(part, name) for part in found]) for name in names))


def _standard_error(windows: list[Values]) -> float | None:
    """Of the mean over all positions, windows being the independent units; None for a single window."""
    means = np.array([w.mean() for w in windows])
    return float(means.std(ddof=1) / math.sqrt(len(means))) if len(means) > 1 else None
