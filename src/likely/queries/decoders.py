"""How the holes of a program are decided: argmax, sample, beam, best_k.

Decoders that branch do not copy a running program: they run it again with the holes decided so far, up to the first
one that is open.  Bodies must therefore be deterministic, external calls marked with @effect.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, TypedDict, Unpack

from likely.decoding.sampling import Sampling
from likely.errors import nearest
from likely.queries.holes import Undecided, hole_event
from likely.queries.run import QueryRun
from likely.queries.session import Session
from likely.queries.trace import QueryEvent

Program = Callable[[QueryRun], Any]
_SAMPLING = tuple(f.name for f in fields(Sampling) if f.name != "seed")


@dataclass(frozen=True)
class Decoder:
    """name  argmax, sample, beam or best_k;  n: samples, or width;  options: of sampling, or of the search.

    max_tokens  per hole, None: the run's
    """

    name: str = "argmax"
    n: int = 1
    max_tokens: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def sampling(self, seed: int) -> Sampling:
        if self.name != "sample":
            return Sampling(temperature=0.0, seed=seed)
        return Sampling(**{"temperature": 1.0, **self.options, "seed": seed})

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, "n": self.n, "max_tokens": self.max_tokens, "options": dict(self.options)}


class DecoderOptions(TypedDict, total=False):
    """n: samples, or width of beam;  temperature ... logit_bias: of sample;  k ... heap: of best_k (see its function).

    max_tokens  per hole (LMQL's max_len is understood, too)
    """

    n: int
    max_tokens: int | None
    max_len: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    typical_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    logit_bias: Mapping[int, float]
    k: int
    budget: int
    kappa: float
    beta: float
    gamma: float
    continuations: int
    heap: int


OPTIONS = {
    "argmax": (),
    "sample": ("n", *_SAMPLING),
    "beam": ("n",),
    "best_k": ("k", "budget", "kappa", "beta", "gamma", "continuations", "heap"),
}


def make_decoder(name: str, *values: int, **settings: Unpack[DecoderOptions]) -> Decoder:
    """argmax(), sample(n=1, temperature=1, top_p=...), beam(n), best_k(k=4, budget=30, ...); each takes max_tokens."""
    if name not in OPTIONS:
        raise ValueError(f"decoder must be one of {', '.join(OPTIONS)}, got {name!r}{nearest(name, OPTIONS)}")
    options: dict[str, Any] = {"max_tokens" if key == "max_len" else key: value for key, value in settings.items()}
    if values:
        if len(values) > 1 or not OPTIONS[name] or OPTIONS[name][0] in options:
            raise ValueError(f"{name} takes at most one value without a name")
        options[OPTIONS[name][0]] = values[0]
    allowed = (*OPTIONS[name], "max_tokens")
    for key in options:
        if key not in allowed:
            raise ValueError(f'{name} has no option "{key}"{nearest(key, allowed)} (it takes {", ".join(allowed)})')
    most = options.pop("max_tokens", None)
    n = options.pop("n", options.get("k", {"beam": 4, "best_k": 4}.get(name, 1)))
    for what, value in (("n", n), ("max_tokens", most)):
        if value is not None and not (isinstance(value, int) and value >= 1):
            raise ValueError(f"{what} must be a whole number >= 1, got {value!r}")
    decoder = Decoder(name, n, most, options)
    decoder.sampling(0)  # refuses wrong values
    return decoder


@dataclass(frozen=True)
class CompletedProgram:
    """A program that ran to its end.  score: summed log-probability of its holes under the constraints, in nats."""

    run: QueryRun
    value: Any
    score: float


def score_of(events: Sequence[QueryEvent]) -> float:
    return sum(sum(e.logprobs) - sum(e.log_masses) for e in events if e.kind == "hole")


def beam(program: Program, make_run: Callable[..., QueryRun], session: Session, width: int) -> list[CompletedProgram]:
    """Beam search over programs, best first.

    Each open hole is continued by beam search of this width; the `width` best programs over all of them go on.  They
    are compared where a hole ends, by the summed log-probability of their holes (the query's own text is certain).
    """
    live: list[tuple[float, list[QueryEvent]]] = [(0.0, [])]
    done: list[CompletedProgram] = []
    while live:
        grown: list[tuple[float, list[QueryEvent]]] = []
        for score, script in live:
            run = make_run(script=script, branches=True)
            try:
                value = program(run)
            except Undecided as open_hole:
                pending = open_hole.pending
                compiled = pending.compiled
                constraint = compiled.constraint
                if constraint is None and compiled.rule.stops:
                    constraint = session.where.stops_only(compiled.rule, pending.where)
                found = session.decode(
                    pending.prompt,
                    constraint=constraint,
                    rule=compiled.rule,
                    max_tokens=pending.max_tokens,
                    beams=width,
                    logits_processors=() if compiled.peek is None else (compiled.peek,),
                )
                for decoded in found:
                    event = hole_event(pending, decoded)
                    grown.append((score + score_of([event]), [*run.events, event]))
            else:
                done.append(CompletedProgram(run, value, score))
        grown.sort(key=lambda g: -g[0])
        live = grown[:width]
    return sorted(done, key=lambda e: -e.score)[:width]
