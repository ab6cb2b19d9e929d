"""A model at work for one query: holes are decoded, values scored, and the cost is counted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, Protocol
from weakref import WeakKeyDictionary

from likely.decoding.constraint import Constraint, LogitsProcessor
from likely.decoding.drafting.budget import Controller
from likely.decoding.drafting.protocol import DraftSource
from likely.decoding.loop import Loop
from likely.decoding.request import Finished, Request
from likely.decoding.run import events
from likely.decoding.sampling import Sampling
from likely.errors import CapabilityError
from likely.guided.guide import Guide
from likely.guided.vocabulary import Vocabulary
from likely.queries.prefix_cache import PrefixCachingRuntime
from likely.queries.text import Segment, prompt_tokens, scored_item
from likely.queries.trace import CostMeter
from likely.queries.where.constraint import WhereCompiler
from likely.queries.where.stops import Cut, StopRule
from likely.runtimes.protocol import Runtime
from likely.scoring.likelihood import TokenScores, score_items
from likely.tokenizers.protocol import Tokenizer


class Host(Protocol):
    """The model that a user holds, as far as a query needs it."""

    runtime: Runtime
    tokenizer: Tokenizer
    info: Any

    @property
    def guide(self) -> Guide: ...
    @property
    def speculation(self) -> Controller: ...
    def drafter(self, drafter: str | DraftSource | None) -> DraftSource | None: ...


GREEDY = Sampling(temperature=0.0)


@dataclass(frozen=True)
class QuerySettings:
    """What all holes of a run share.

    max_tokens  per hole;  keep: go on from what is computed (False: each hole sends its whole prompt, as a stateless
    server would)
    """

    sampling: Sampling = GREEDY
    max_tokens: int = 128
    drafter: str | DraftSource | None = None
    logits_processors: tuple[LogitsProcessor, ...] = ()
    keep: bool = True


@dataclass(frozen=True)
class Decoded:
    """One decoded hole.

    tokens, logprobs, log_masses  of every emitted token, those behind a stop included (they were paid for);
    text      what the hole says: cut at a stop, without end tokens
    reason    "stop" (end token), "stops_at", "stops_before", "length", "context"
    """

    text: str
    tokens: list[int]
    logprobs: list[float]
    log_masses: list[float]
    reason: str
    complete: bool | None
    approximate: bool
    prompt_tokens: int
    held: int
    written: int  # tokens that hold a part of the text


@dataclass(eq=False)
class Session:
    host: Host
    settings: QuerySettings = QuerySettings()
    meter: CostMeter = field(default_factory=CostMeter)

    def __post_init__(self) -> None:
        if not hasattr(self.host, "runtime"):
            raise CapabilityError(
                "a query needs a model on this machine, which can mask tokens: likely.load of a name or file, not a URL"
            )
        self.runtime = PrefixCachingRuntime(self.host.runtime, self.meter, most=4 if self.settings.keep else 0)
        self.where = _compiler(self.host)
        self.vocabulary = self.host.guide.vocabulary

    @property
    def tokenizer(self) -> Tokenizer:
        return self.host.tokenizer

    @cached_property
    def drafter(self) -> DraftSource | None:
        return self.host.drafter(self.settings.drafter)

    def close(self) -> None:
        self.runtime.release()

    def tokens(self, segments: Sequence[Segment]) -> list[int]:
        return prompt_tokens(self.tokenizer, segments)

    def loop(self) -> Loop:
        return Loop(
            self.runtime,  # type: ignore[arg-type]
            self.tokenizer.token_bytes,
            self.tokenizer.end_ids,
            controller=self.host.speculation,
        )

    def decode(
        self,
        prompt: Sequence[int],
        *,
        constraint: Constraint | None = None,
        rule: StopRule | None = None,
        max_tokens: int | None = None,
        sample: int = 0,
        beams: int = 0,
        logits_processors: tuple[LogitsProcessor, ...] = (),
    ) -> list[Decoded]:
        """The continuation of a prompt; with beams, the best ones, most likely first.

        A text is watched as it comes, and ended at the first cut of the rule.
        """
        settings = self.settings
        request = Request(
            tuple(prompt),
            settings.sampling if not beams else Sampling(temperature=0.0, seed=settings.sampling.seed),
            max_tokens=max_tokens or settings.max_tokens,
            first_sample=sample,
            samples=max(1, beams),
            beams=beams,
            drafter=None if beams else self.drafter,
            constraint=constraint,
            logits_processors=(*settings.logits_processors, *logits_processors),
        )
        with self.meter.timed():
            held = self.runtime.take(prompt)
            kept = held.length if held is not None else 0
            loop = self.loop()
            watches: dict[int, _Watch] = {}
            done: dict[int, Finished] = {}
            try:
                try:
                    request_id = loop.add(request, held=held)
                except Exception:
                    if held is not None:
                        self.runtime.close(held)
                    raise
                for event in events(loop):
                    watch = watches.setdefault(event.sample, _Watch(rule, self.vocabulary))
                    if watch.feed(event.tokens) and not beams:
                        loop.cancel(request_id)
                    if event.finish:
                        done[event.sample] = event.finish
            finally:
                loop.close()
        self.meter.generated(len(prompt), kept, sum(len(d.tokens) for d in done.values()))
        return [watches[k].decoded(done[k], len(prompt), kept) for k in sorted(done)]

    def score(self, segments: Sequence[Segment], answers: Sequence[str]) -> list[TokenScores]:
        """log p(answer | text) token by token, the text computed once."""
        items = [scored_item(self.tokenizer, segments, a) for a in answers]
        with self.meter.timed():
            scores = score_items(self.runtime, items)  # type: ignore[arg-type]
        for item in items:
            self.meter.scored(item.start, len(item.tokens) - item.start)
        return scores


@dataclass(eq=False)
class _Watch:
    """The text of one sample as it comes, and where the rule cuts it."""

    rule: StopRule | None
    vocabulary: Vocabulary
    text: bytes = b""
    count: int = 0
    found: Cut | None = None
    found_at: int = 0  # tokens by then

    def feed(self, tokens: Sequence[int]) -> bool:
        """Whether the text is cut by now."""
        for token in tokens:
            since, self.text = len(self.text), self.text + self.vocabulary.tokens[token]
            self.count += self.vocabulary.tokens[token] != b""
            if self.rule and self.rule.stops and self.found is None:
                self.found, self.found_at = self.rule.cut(self.text, since, self.count), self.count
        return self.found is not None

    def decoded(self, finish: Finished, prompt: int, held: int) -> Decoded:
        text, reason, complete, written = self.text, finish.reason, finish.complete, self.count
        if self.found is not None:
            text, complete, written = text[: self.found.length], True, self.found_at
            reason = "stops_at" if self.found.stop.include else "stops_before"
        return Decoded(
            text.decode("utf-8", "replace"), finish.tokens, finish.logprobs, finish.log_masses, reason,
            complete, finish.approximate, prompt, held, written,
        )  # fmt: skip


_COMPILERS: WeakKeyDictionary[Guide, WhereCompiler] = WeakKeyDictionary()


def _compiler(host: Host) -> WhereCompiler:
    """One per model: its tables and grammars serve all queries."""
    guide = host.guide
    if guide not in _COMPILERS:
        _COMPILERS[guide] = WhereCompiler(guide.vocabulary, partial(getattr, guide, "llguidance"))
    return _COMPILERS[guide]
