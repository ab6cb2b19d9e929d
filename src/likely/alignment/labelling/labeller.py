"""A causal language model that labels the spans of sentences by writing them, with demonstrations in its prompt."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from likely.alignment.labelling.codec import SpanCodec, SpanProblem
from likely.alignment.labelling.constraint import SpanAutomaton, SpanConstraint
from likely.alignment.labelling.prompt import LEAD, DemonstrationSelector, RandomDemonstrations, SpanPrompt
from likely.alignment.labelling.sentences import Sentence
from likely.alignment.labelling.spans import LabelledSpan, SpanCounts, count_spans, span_f1, tags_of
from likely.decoding.loop import Loop
from likely.decoding.request import Finished, Request, longest_text
from likely.decoding.run import events
from likely.decoding.sampling import Sampling
from likely.errors import DataError, KvFull
from likely.guided.fields import owners
from likely.guided.vocabulary import Vocabulary
from likely.io.jsonl import chunked
from likely.metrics.bootstrap import bootstrap_ratio
from likely.runtimes.protocol import Runtime, Work
from likely.runtimes.protocol import Sequence as HeldSequence
from likely.tokenizers.protocol import Tokenizer, common_length

TOGETHER = 32  # sentences whose responses are written in one loop
LEAST_SHARED = 16  # tokens of a common beginning that are worth a sequence of their own
FREE_TOKENS = 64  # of a free response, beside the tokens of its sentence


class LocalModel(Protocol):
    """A `likely.Model`, or what `load_local` gives."""

    @property
    def runtime(self) -> Runtime: ...
    @property
    def tokenizer(self) -> Tokenizer: ...


@dataclass(frozen=True)
class SpanPrediction:
    """What the model says of one sentence.

    logprobs  per span the sum of log p of the tokens that wrote it, nats;  sequence_logprob: of the whole response
    problems  what of the response could not be used; always empty where decoding was constrained and `complete`
    complete  whether the response ended by itself
    demonstrations  that were in its prompt
    """

    sentence: Sentence
    spans: tuple[LabelledSpan, ...]
    response: str
    problems: tuple[SpanProblem, ...]
    logprobs: tuple[float, ...]
    sequence_logprob: float
    complete: bool
    demonstrations: int

    @property
    def tags(self) -> list[str]:
        """IOB2."""
        return tags_of(self.spans, len(self.sentence.tokens))

    def to_dict(self) -> dict[str, Any]:
        spans = [
            {**self.sentence.with_offsets(span), "logprob": logprob}
            for span, logprob in zip(self.spans, self.logprobs, strict=True)
        ]
        return {
            "tokens": list(self.sentence.tokens), "tags": self.tags, "spans": spans, "response": self.response,
            "problems": [{"kind": p.kind, "at": p.at, "item": p.item} for p in self.problems],
            "sequence_logprob": self.sequence_logprob, "complete": self.complete,
            "demonstrations": self.demonstrations,
        }  # fmt: skip


@dataclass(eq=False)
class SpanLabeller:
    """In-context labelling with demonstrations from `pool`; with an adapter attached to the model it is SIFT.

    lm        a model on this machine, on any runtime
    pool      labelled sentences; k of them, chosen by `selector`, stand before each sentence
    instruction  what the task is, with the labels; None: no instruction
    Use it as a context manager where it holds an adapter (`open_labeller`): closing it gives the model back.
    """

    lm: LocalModel
    codec: SpanCodec
    pool: Sequence[Sentence]
    k: int = 4
    selector: DemonstrationSelector = field(default_factory=RandomDemonstrations)
    instruction: str | None = None
    resources: ExitStack = field(default_factory=ExitStack, repr=False)
    _vocabulary: Vocabulary | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if not 0 <= self.k <= len(self.pool):
            raise ValueError(f"k must lie in 0..{len(self.pool)}, the sentences to demonstrate with, got {self.k}")
        self.prompt = SpanPrompt(self.codec, self.lm.tokenizer, longest_text(self.lm.runtime), self.instruction)

    def close(self) -> None:
        """Give the model back without the adapter."""
        self.resources.close()

    def __enter__(self) -> SpanLabeller:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def predict(
        self, sentences: Sequence[Sentence], *, constrained: bool = True, progress: Callable[[int], None] | None = None
    ) -> list[SpanPrediction]:
        """The spans of each sentence, from greedy decoding.

        constrained  hold responses to the sentence's words and the labels: every one can be read.  A response that
                     already was of this form is the same with and without
        progress     called with the number of sentences that were done
        """
        loop = Loop(self.lm.runtime, self.lm.tokenizer.token_bytes, self.lm.tokenizer.end_ids)
        found: list[SpanPrediction] = []
        for some in chunked(list(sentences), TOGETHER):
            asked = [self._request(sentence, constrained) for sentence in some]
            done = self._run(loop, [request for request, _ in asked])
            for sentence, (_, shown), finished in zip(some, asked, done, strict=True):
                found.append(self._read(sentence, finished, shown))
            if progress:
                progress(len(some))
        return found

    def _request(self, sentence: Sentence, constrained: bool) -> tuple[Request, int]:
        automaton = SpanAutomaton(self.codec, sentence.tokens, LEAD)
        length = automaton.longest + 1 if constrained else FREE_TOKENS + 2 * len(sentence.tokens)
        demonstrations = [self.pool[i] for i in self.selector.select(sentence, self.pool, self.k)]
        made = self.prompt.build(sentence, demonstrations, answered=False, reserve=length)
        request = Request(
            made.tokens, Sampling(temperature=0.0), length,
            constraint=SpanConstraint(automaton, self.vocabulary) if constrained else None,
            stop=() if constrained else ("\n",),
        )  # fmt: skip
        return request, made.demonstrations

    def _run(self, loop: Loop, requests: Sequence[Request]) -> list[Finished]:
        """The beginning that all prompts share is computed once."""
        runtime = self.lm.runtime
        done: dict[int, Finished] = {}
        with runtime.turn:
            held = self._shared_beginning(requests)
            try:
                ids = [loop.add(one, held=None if held is None else runtime.fork(held)) for one in requests]
            finally:
                if held is not None:
                    runtime.close(held)
            for event in events(loop):
                if event.finish is not None:
                    done[event.request] = event.finish
        return [done[number] for number in ids]

    def _shared_beginning(self, requests: Sequence[Request]) -> HeldSequence | None:
        runtime, first = self.lm.runtime, requests[0].prompt
        common = min(min(common_length(first, one.prompt), len(one.prompt) - 1) for one in requests)
        if len(requests) < 2 or common < LEAST_SHARED or not runtime.capabilities.fork:
            return None
        held = runtime.open()
        try:
            for start in range(0, common, runtime.limits.tokens_per_call):
                part = first[start : min(common, start + runtime.limits.tokens_per_call)]
                runtime.forward([Work(held, np.array(part, np.int64))])
        except KvFull:
            runtime.close(held)
            return None
        return held

    @property
    def vocabulary(self) -> Vocabulary:
        if self._vocabulary is None:
            self._vocabulary = Vocabulary.of(self.lm.tokenizer, self.lm.runtime.vocab_size)
        return self._vocabulary

    def _read(self, sentence: Sentence, done: Finished, demonstrations: int) -> SpanPrediction:
        read = self.codec.decode_spans(done.text, sentence.tokens)
        in_order = sorted(zip(read.spans, self._item_logprobs(done, read.places), strict=True))
        return SpanPrediction(
            sentence, tuple(span for span, _ in in_order), done.text.strip(), read.problems,
            tuple(logprob for _, logprob in in_order), float(sum(done.logprobs)), done.reason == "stop",
            demonstrations,
        )  # fmt: skip

    def _item_logprobs(self, done: Finished, places: Sequence[tuple[int, int]]) -> list[float]:
        ranges = [(len(done.text[:start].encode()), len(done.text[:end].encode())) for start, end in places]
        mine, _ = owners(ranges, [self.lm.tokenizer.token_bytes(token) for token in done.tokens])
        sums = [0.0] * len(places)
        for owner, logprob in zip(mine, done.logprobs, strict=True):
            if owner is not None:
                sums[owner] += logprob
        return sums

    def evaluate(
        self, sentences: Sequence[Sentence], *, constrained: bool = True, progress: Callable[[int], None] | None = None
    ) -> LabellingReport:
        """Predict labelled sentences and compare."""
        return report_of(self.predict(sentences, constrained=constrained, progress=progress))


@dataclass(frozen=True)
class LabellingReport:
    """Strict span F1 over sentences, with what went wrong in reading the responses.

    counts    right, predicted and gold spans of each sentence
    interval  95 % of the F1: bootstrap over sentences
    problems  how many items were dropped, by kind;  unread: sentences with at least one;  cut: responses without an end
    """

    counts: tuple[SpanCounts, ...]
    interval: tuple[float, float]
    per_type: dict[str, dict[str, Any]]
    problems: dict[str, int]
    unread: int
    cut: int

    @property
    def total(self) -> SpanCounts:
        return total(self.counts)

    def to_dict(self) -> dict[str, Any]:
        return {
            **self.total.to_dict(), "f1_interval": list(self.interval), "sentences": len(self.counts),
            "problems": self.problems, "unread": self.unread, "cut": self.cut, "per_type": self.per_type,
        }  # fmt: skip


def total(counts: Sequence[SpanCounts]) -> SpanCounts:
    """The sum over sentences."""
    return SpanCounts(sum(c.right for c in counts), sum(c.predicted for c in counts), sum(c.gold for c in counts))


def report_of(predictions: Sequence[SpanPrediction]) -> LabellingReport:
    """Compare predictions with the spans that their sentences came with; DataError names one that came without."""
    if not predictions:
        raise ValueError("no sentences: there is nothing to evaluate")
    for one in predictions:
        if one.sentence.spans is None:
            raise DataError(f"{one.sentence.where or 'the sentence'}: no tags to compare with")
    counts = [count_spans(one.sentence.spans or (), one.spans) for one in predictions]
    kinds = Counter(problem.kind for one in predictions for problem in one.problems)
    gold = [tags_of(one.sentence.spans or (), len(one.sentence.tokens)) for one in predictions]
    return LabellingReport(
        tuple(counts), f1_interval(counts), span_f1(gold, [one.tags for one in predictions])["per_type"],
        dict(sorted(kinds.items())), sum(bool(one.problems) for one in predictions),
        sum(not one.complete for one in predictions),
    )  # fmt: skip


def f1_interval(counts: Sequence[SpanCounts], *, resamples: int = 2000) -> tuple[float, float]:
    """95 % of the F1 by a bootstrap over sentences: Σ 2 · right / Σ (predicted + gold)."""
    tops, bottoms = [2.0 * c.right for c in counts], [float(c.predicted + c.gold) for c in counts]
    if not any(bottoms):
        return 0.0, 0.0
    low, high = bootstrap_ratio(tops, bottoms, resamples=resamples)
    return low, high
