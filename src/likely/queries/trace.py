"""The record of a run: what happened, exact enough to check it (token ids, model hash, settings, seed), and its cost.

A trace is plain data: `to_dict` and `QueryTrace.from_dict` go through JSON without loss.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from likely.errors import DataError, LikelyError

VERSION = 1


class ReplayMismatch(LikelyError):
    """A replay did not reproduce its trace; `event`: the number of the first event that differs."""

    def __init__(self, event: int, what: str):
        super().__init__(f"the replay differs from the trace at event {event}: {what}")
        self.event = event


@dataclass(frozen=True)
class QueryEvent:
    """One thing that happened.

    kind     "text": written by the query; "hole": generated; "distribution": values scored, the last hole;
             "score": values scored on the way; "effect": an external call; "nested": what another query gave
    depth    1 and more: inside a nested query, whose text gives way to its value when it ends
    text     what was added to the text (effect, score: "")
    value    hole: the value it stands for, if JSON can hold it;  effect: what the call returned
    tokens, logprobs, log_masses   hole: all emitted tokens, with those that a stop cut off
    scores   distribution, score: {value: log p in nats}
    prompt   hole: token ids it was generated from;  written: how many of `tokens` hold a part of the text
    """

    kind: Literal["text", "hole", "distribution", "score", "effect", "nested"]
    text: str = ""
    name: str = ""
    value: Any = None
    prompt: tuple[int, ...] = ()
    tokens: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    log_masses: tuple[float, ...] = ()
    scores: Mapping[str, float] = field(default_factory=dict)
    probabilities: Mapping[str, float] = field(default_factory=dict)
    written: int = 0
    reason: str = ""
    where: str = ""
    complete: bool | None = None
    approximate: bool = False
    own: bool = True
    depth: int = 0

    @property
    def logprob(self) -> float:
        return float(sum(self.logprobs))


@dataclass(frozen=True)
class QueryTrace:
    """What a run depended on and what came of it.

    model     name, runtime, dtype, sha256 of the weights, tokenizer, revision of the runtime
    settings  decoder and its options, max_tokens, drafter
    sample    the run's number among several
    """

    query: str
    args: Mapping[str, Any]
    model: Mapping[str, Any]
    settings: Mapping[str, Any]
    seed: int
    sample: int
    events: tuple[QueryEvent, ...]
    version: int = VERSION

    @property
    def text(self) -> str:
        return "".join(e.text for e in self.events if not e.depth)

    @property
    def holes(self) -> list[QueryEvent]:
        return [e for e in self.events if e.kind == "hole"]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> QueryTrace:
        if record.get("version") != VERSION:
            raise DataError(f"this trace has version {record.get('version')!r}, expected {VERSION}")
        try:
            events = []
            for each in record["events"]:
                fields = dict(each)
                for name in ("prompt", "tokens", "logprobs", "log_masses"):
                    fields[name] = tuple(fields.get(name, ()))
                events.append(QueryEvent(**fields))
            return cls(**{**record, "events": tuple(events)})
        except (KeyError, TypeError) as error:
            raise DataError(f"not a trace of a query: {error}") from None


# --- cost -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class QueryCost:
    """In the units of the LMQL paper and in those of a local model.

    model_queries    next-token distributions: one per generated token (also of those that a stop cut off), one per
                     scored token
    decoder_calls    requests whose text was not yet held: each sends its whole prompt.  A hole that goes on where the
                     query stands is not a new call; a scored value is one
    billable_tokens  over these: prompt tokens that had to be sent, and generated or scored ones
    forward_tokens   tokens that the model really computed (prefixes held are computed once; drafts count)
    forward_calls    calls of the model;  seconds: wall time inside them and around them
    """

    model_queries: int = 0
    decoder_calls: int = 0
    billable_tokens: int = 0
    forward_tokens: int = 0
    forward_calls: int = 0
    seconds: float = 0.0

    def __add__(self, other: QueryCost) -> QueryCost:
        return QueryCost(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(QueryCost)))

    def __sub__(self, other: QueryCost) -> QueryCost:
        return QueryCost(*(getattr(self, f.name) - getattr(other, f.name) for f in fields(QueryCost)))

    def to_dict(self) -> dict[str, float]:
        return asdict(self)


@dataclass(eq=False)
class CostMeter:
    """Adds up what was requested; the runtime beside it (`PrefixCachingRuntime`) adds what was computed."""

    total: QueryCost = QueryCost()
    _fresh: bool = True

    def begin(self) -> None:
        """A new run: its first request is a call of its own, whatever is held from another."""
        self._fresh = True

    def generated(self, prompt: int, held: int, tokens: int) -> None:
        """A request with a prompt of so many tokens, of which `held` were kept from before, wrote `tokens`."""
        held, self._fresh = 0 if self._fresh else held, False
        self.total += QueryCost(tokens, int(held == 0), prompt - held + tokens)

    def scored(self, prompt: int, tokens: int) -> None:
        """One value of so many tokens was scored after a prompt."""
        self.total += QueryCost(tokens, 1, prompt + tokens)

    def computed(self, tokens: int) -> None:
        self.total += QueryCost(forward_tokens=tokens, forward_calls=1)

    @contextmanager
    def timed(self) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.total += QueryCost(seconds=time.perf_counter() - started)
