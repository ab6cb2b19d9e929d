"""What an endpoint's log-probabilities give away, and in how many calls: arithmetic first, then measured on your own.

An endpoint that returns the K likeliest tokens and takes a bias b on chosen tokens gives K − 1 log-ratios per call: the
bias lifts the anchor and K − 1 others into the top K, and within it ℓ_j − ℓ_b is what is returned, whatever the
normalisation.  Morris et al. 2023; Nazir et al. 2025 (PILS).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from likely.audit.inversion.compress import Floats, LogprobCompressor, estimate_rank, held_out_error
from likely.audit.report import AuditReport, Finding
from likely.errors import CapabilityError, DataError, check_choice
from likely.runtimes.protocol import Runtime, Want, Work

Returns = Literal["text", "chosen", "top", "full"]
FULL, PARTIAL, NOTHING = "full vectors", "part of each vector", "text alone"


@dataclass(frozen=True)
class EndpointSpec:
    """What an endpoint answers with.

    returns     "text"; "chosen": the log-probability of the token that was chosen; "top": those of the `top` likeliest
                ones; "full": of all
    logit_bias  whether a bias on chosen tokens is taken and changes what is returned;  most_bias: the largest one, nats
    decimals    log-probabilities are rounded to so many; None: they are not
    """

    returns: Returns
    top: int = 0
    logit_bias: bool = False
    most_bias: float = 100.0
    decimals: int | None = None

    def __post_init__(self) -> None:
        check_choice("returns", self.returns, ("text", "chosen", "top", "full"))
        if self.returns == "top" and self.top < 1:
            raise ValueError(f"top must be >= 1 where an endpoint returns the likeliest tokens, got {self.top}")
        if not self.most_bias > 0:
            raise ValueError(f"most_bias must be > 0, got {self.most_bias}")


@dataclass(frozen=True)
class ExposureReport:
    """What an attacker learns.

    log_ratios_per_call   of chosen tokens; 0: none
    calls_per_vector      to know all V log-probabilities after one prompt; None: impossible
    bits_per_call         at the precision of what is returned; a double where it is not rounded
    rank                  hidden size that was measured; None: not measured, or not visible
    error_nats            of log-ratios of unseen prompts, from `rank` of them; None: not measured
    calls                 that the measurement took
    verdict               FULL, PARTIAL or NOTHING
    """

    spec: EndpointSpec
    log_ratios_per_call: int
    calls_per_vector: int | None
    bits_per_call: float
    verdict: str
    rank: int | None = None
    gap: float | None = None
    error_nats: float | None = None
    calls: int = 0

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def exposed(spec: EndpointSpec, hidden_size: int, *, extra: int = 100, range_nats: float = 30.0) -> ExposureReport:
    """What follows from the description alone, for a model of this hidden size (an upper bound serves).

    With a bias, D = hidden_size + extra log-ratios are ⌈D / (K − 1)⌉ calls.  From the chosen token's log-probability
    with a bias it is one call for each token and one for the anchor.  From text alone, the bias at which a token takes
    over from another is found by bisection: ⌈log2(range / precision)⌉ calls for each, precision 0.01 nats.
    """
    if hidden_size < 1:
        raise ValueError(f"hidden_size must be >= 1, got {hidden_size}")
    size = hidden_size + extra
    digits = 52.0 if spec.decimals is None else math.log2(range_nats * 10**spec.decimals)
    if spec.returns == "full":
        return ExposureReport(spec, size, 1, size * digits, FULL)
    if spec.returns == "top":
        ratios = spec.top - 1
        if spec.logit_bias and ratios:
            return ExposureReport(spec, ratios, math.ceil(size / ratios), ratios * digits, FULL)
        if not spec.logit_bias:
            return ExposureReport(spec, 0, None, spec.top * digits, PARTIAL)
    if spec.returns in ("chosen", "top"):
        if spec.logit_bias:
            return ExposureReport(spec, 1, size + 1, digits, FULL)
        return ExposureReport(spec, 0, None, digits, PARTIAL)
    steps = math.ceil(math.log2(range_nats / 0.01))
    if spec.logit_bias:
        return ExposureReport(spec, 0, size * steps, 1.0, FULL)
    return ExposureReport(spec, 0, None, 0.0, NOTHING)


class TopLogprobs(Protocol):
    """An endpoint: the likeliest next tokens after a prompt, with a bias added to the logits of some."""

    def __call__(self, prompt: str, top: int, bias: Mapping[int, float]) -> dict[int, float]:
        """Token id -> log-probability, of at most `top` tokens."""
        ...


@dataclass(frozen=True)
class TopEmulator:
    """An endpoint made of a runtime: what `spec` says, from full log-probabilities.  For tests and for planning.

    encode  text -> token ids
    """

    runtime: Runtime
    encode: Callable[[str], Sequence[int]]
    spec: EndpointSpec

    def __call__(self, prompt: str, top: int, bias: Mapping[int, float]) -> dict[int, float]:
        if bias and not self.spec.logit_bias:
            raise CapabilityError("this endpoint takes no bias")
        tokens = np.asarray(list(self.encode(prompt)), np.int64)
        sequence = self.runtime.open()
        try:
            [out] = self.runtime.forward([Work(sequence, tokens, want=Want.LAST)])
        finally:
            self.runtime.close(sequence)
        assert out.logits is not None
        logits = out.logits[0].astype(np.float64)
        for token, by in bias.items():
            logits[token] += max(-self.spec.most_bias, min(self.spec.most_bias, by))
        logits -= np.logaddexp.reduce(logits)
        if self.spec.decimals is not None:
            logits = np.round(logits, self.spec.decimals)
        best = np.argsort(-logits, kind="stable")[: min(top, self.spec.top)]
        return {int(token): float(logits[token]) for token in best}


def ratios_by_bias(
    endpoint: TopLogprobs, prompt: str, tokens: Sequence[int], *, top: int, bias: float
) -> tuple[Floats, int]:
    """((D,) log-ratios of tokens[1:] to tokens[0], calls): top − 1 of them per call, the bias taken off again.

    CapabilityError where a biased token does not come back, since then the bias is too small or is not taken.
    """
    if top < 2:
        raise CapabilityError(f"log-ratios need an endpoint that returns 2 tokens or more, this one returns {top}")
    anchor, others = int(tokens[0]), [int(token) for token in tokens[1:]]
    found = np.empty(len(others))
    calls = 0
    for start in range(0, len(others), top - 1):
        part = others[start : start + top - 1]
        got = endpoint(prompt, top, {anchor: bias, **dict.fromkeys(part, bias)})
        calls += 1
        if missing := [token for token in (anchor, *part) if token not in got]:
            raise CapabilityError(
                f"{len(missing)} of {len(part) + 1} biased tokens did not come back: the endpoint takes no bias, or "
                f"one larger than {bias:g} is needed"
            )
        found[start : start + len(part)] = [got[token] - got[anchor] for token in part]
    return found, calls


def measure_endpoint(
    endpoint: TopLogprobs,
    prompts: Sequence[str],
    *,
    candidates: Sequence[int],
    hidden_size: int,
    top: int,
    most_bias: float = 100.0,
    most_calls: int = 2000,
    extra: int = 50,
    seed: int = 0,
    progress: Callable[[int], None] = lambda n: None,
) -> ExposureReport:
    """What a live endpoint of your own gives away.

    candidates   token ids whose log-probabilities it can name;  hidden_size: an upper bound of the model's

    Two calls say how many tokens come back, how they are rounded, and whether a bias changes what is returned; then,
    where it does and `most_calls` allow, log-ratios of the same tokens after each prompt give the rank and how well
    unseen prompts follow from it.  Prompts are sent and never stored.
    """
    if not prompts:
        raise DataError("the measurement needs prompts")
    size = hidden_size + extra
    if len(candidates) <= size:
        raise DataError(
            f"{size} tokens beside the anchor are needed, {len(candidates)} can be named: lower hidden_size or extra"
        )
    tokens = np.random.default_rng(seed).permutation(np.asarray(candidates, np.int64))[: size + 1].tolist()
    plain = endpoint(prompts[0], top, {})
    if not plain:
        return _with_calls(exposed(EndpointSpec("text"), hidden_size, extra=extra), 1)
    returned = len(plain)
    decimals = _decimals(list(plain.values()))
    biased = _heeds_bias(endpoint, prompts[0], tokens, plain, most_bias)
    calls = 2
    spec = EndpointSpec("top" if returned > 1 else "chosen", returned, biased, most_bias, decimals)
    found = exposed(spec, hidden_size, extra=extra)
    if not biased or returned < 2:
        return _with_calls(found, calls)
    each = math.ceil(size / (returned - 1))
    rows: list[Floats] = []
    for prompt in prompts:
        if calls + each > most_calls:
            break
        ratios, used = ratios_by_bias(endpoint, prompt, tokens, top=returned, bias=most_bias)
        rows.append(ratios)
        calls += used
        progress(used)
    return _measured(found, np.asarray(rows), calls)


def _heeds_bias(
    endpoint: TopLogprobs, prompt: str, tokens: Sequence[int], plain: Mapping[int, float], bias: float
) -> bool:
    """Whether tokens that were not among the likeliest are so with a bias."""
    wanted = [int(token) for token in tokens if int(token) not in plain][: len(plain)]
    return set(wanted) <= set(endpoint(prompt, len(plain), dict.fromkeys(wanted, bias)))


def measure_runtime(
    runtime: Runtime, texts: Sequence[Sequence[int]], *, hidden_size: int, extra: int = 50, seed: int = 0
) -> ExposureReport:
    """The same of a model on this machine, which hides nothing: every position of the texts (token ids) is one vector.

    The rank shows from hidden_size + 50 positions on.
    """
    compressor = LogprobCompressor(runtime.vocab_size, hidden_size, extra=extra, seed=seed)
    rows = [_selected(runtime, text, compressor.tokens) for text in texts if len(text)]
    if not rows:
        raise DataError("the measurement needs texts")
    found = exposed(EndpointSpec("full"), hidden_size, extra=extra)
    return _measured(found, compressor.of_selected(np.concatenate(rows)), len(rows))


def hidden_size_of(runtime: Runtime) -> int:
    """d, from the last hidden state of one token; CapabilityError where the runtime gives none."""
    sequence = runtime.open()
    try:
        [out] = runtime.forward([Work(sequence, np.zeros(1, np.int64), want=Want(rows="last", hidden=True))])
    finally:
        runtime.close(sequence)
    assert out.hidden is not None
    return int(out.hidden.shape[1])


def random_texts(runtime: Runtime, positions: int, *, seed: int = 0, length: int = 64) -> list[list[int]]:
    """Texts of random tokens with so many positions in all, or a few more."""
    length = min(length, runtime.context_length)
    return np.random.default_rng(seed).integers(0, runtime.vocab_size, (-(-positions // length), length)).tolist()


def _selected(runtime: Runtime, text: Sequence[int], tokens: NDArray[np.int64]) -> Floats:
    n = len(text)
    pairs = np.stack([np.repeat(np.arange(n), len(tokens)), np.tile(tokens, n)], 1)
    sequence = runtime.open()
    try:
        work = Work(sequence, np.asarray(text, np.int64), want=Want(rows="none", pairs=pairs))
        [out] = runtime.forward([work])
    finally:
        runtime.close(sequence)
    assert out.logprobs is not None
    return np.asarray(out.logprobs, np.float64).reshape(n, len(tokens))


def _measured(found: ExposureReport, ratios: Floats, calls: int) -> ExposureReport:
    rank = gap = error = None
    if len(ratios) >= 4:
        estimate = estimate_rank(ratios)
        gap = estimate.gap
        if estimate.rank is not None and estimate.rank < min(ratios.shape) - 1:
            rank = estimate.rank
            if rank <= len(ratios) // 2:
                error = held_out_error(ratios, rank)
            elif rank < int(0.95 * len(ratios)):
                error = held_out_error(ratios, rank, fitted=0.95)
    return ExposureReport(
        found.spec, found.log_ratios_per_call, found.calls_per_vector, found.bits_per_call, found.verdict, rank, gap,
        error, calls,
    )  # fmt: skip


def exposure_report(found: ExposureReport, *, header: Mapping[str, Any]) -> AuditReport:
    """What an endpoint exposes, in sentences."""
    spec = found.spec
    returned = {"text": "text alone", "chosen": "the chosen token's log-probability", "full": "all log-probabilities",
                "top": f"the {spec.top} likeliest tokens"}[spec.returns]  # fmt: skip
    verdicts = [
        f"It returns {returned}{', and takes a bias that changes them' if spec.logit_bias else ''}: {found.verdict}."
    ]
    if found.calls_per_vector is not None:
        verdicts.append(
            f"All log-probabilities after one prompt are known after {found.calls_per_vector} call"
            f"{'s' * (found.calls_per_vector > 1)}."
        )
    else:
        verdicts.append("What it does not return cannot be computed from what it does.")
    if found.rank is not None:
        verdicts.append(
            f"Log-ratios span {found.rank} dimensions: the hidden size shows, and with it which model it is."
        )
    never = "it cannot be computed from what is returned"
    rows = (
        ("log-ratios per call", found.log_ratios_per_call, "log-ratios"),
        ("calls for a whole vector", found.calls_per_vector, "calls"),
        ("information per call", found.bits_per_call, "bits"),
        ("rank", found.rank, "dimensions"),
        ("fall of the singular values behind the rank", found.gap, "factor"),
        ("largest error of unseen log-ratios", found.error_nats, "nats"),
    )
    return AuditReport(
        "Exposure: what log-probabilities give away",
        "How much of the model, and of a hidden prompt, can be computed from what the endpoint returns?",
        verdicts,
        [Finding("endpoint", name, None if value is None else float(value), unit=unit,
                 note=never if name == "calls for a whole vector" else "not measured")
         for name, value, unit in rows],
        {**header, "calls": found.calls},
        caveats=("Exposure is what an attacker can know, not what one recovers: likely audit invert measures that.",),
        reading=(
            "The fewer calls all log-probabilities cost, the more is given away: 1 call is an open book, thousands "
            "cost an attacker money, and where they cannot be had at all, text is all there is.",
            "The rank is the model's hidden size, which tells an attacker which model answers.",
        ),
        advice=[
            "Nothing: text alone gives away the least." if found.calls_per_vector is None and spec.returns == "text"
            else "Return text, or the likeliest few without a bias, to whoever does not need more; and put no secret "
            "into a prompt whose log-probabilities others can ask for."
        ],
    )  # fmt: skip


def _with_calls(found: ExposureReport, calls: int) -> ExposureReport:
    return ExposureReport(**{**vars(found), "calls": calls})


def _decimals(values: Sequence[float]) -> int | None:
    """The least number of decimals, up to 6, that shows all values; None where they have more."""
    for decimals in range(7):
        if all(abs(value - round(value, decimals)) < 1e-9 for value in values):
            return decimals
    return None
