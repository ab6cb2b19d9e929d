"""Several drafters as one: the first that has a guess.

Later parts are asked where the earlier ones have none, so that a sampled draft is never chosen for what was sampled:
that would bias the text.
"""

from __future__ import annotations

from collections.abc import Sequence

from likely.decoding.drafting.protocol import (
    FIXED_ONLY,
    NO_DRAFT,
    Draft,
    DraftDistribution,
    Drafter,
    DraftSource,
    DraftsTogether,
    SamplingContext,
    UsesTarget,
)
from likely.errors import CapabilityError
from likely.runtimes.protocol import Runtime
from likely.runtimes.protocol import Sequence as Held


class FirstOf:
    """The first source's draft, or if it has none the next one's; free if all of them are."""

    def __init__(self, *sources: DraftSource):
        if len(sources) < 2:
            raise ValueError(f"FirstOf joins two or more drafters, got {len(sources)}")
        self.sources = sources
        self.name = "+".join(source.name for source in sources)
        self.distributions = frozenset[DraftDistribution]().union(*(source.distributions for source in sources))
        self.free = all(source.free for source in sources)

    def begin(self, prompt: Sequence[int], context: SamplingContext) -> FirstOfDrafter:
        if context.verification == "spectr":
            for source in self.sources:
                if DraftDistribution.IID not in source.distributions and source.distributions != FIXED_ONLY:
                    raise CapabilityError(
                        f'verification="spectr" needs independent draws, and {source.name} draws without replacement: '
                        f'use verification="rejection"'
                    )
        parts = [source.begin(prompt, context) for source in self.sources]
        kind = _OnTarget if any(isinstance(part, UsesTarget) for part in parts) else FirstOfDrafter
        return kind(self, parts)

    def propose_many(self, drafters: Sequence[Drafter], budgets: Sequence[int]) -> list[Draft]:
        """One part after the other, each for all sequences that still lack a guess."""
        found = [NO_DRAFT] * len(drafters)
        for part in range(len(self.sources)):
            lacking = [i for i, draft in enumerate(found) if not len(draft)]
            drafts = self._ask(part, [drafters[i] for i in lacking], [budgets[i] for i in lacking])
            for i, draft in zip(lacking, drafts, strict=True):
                if self._passes(draft):
                    found[i] = draft
        return found

    def _passes(self, draft: Draft) -> bool:
        return len(draft) > 0

    def _ask(self, part: int, drafters: Sequence[Drafter], budgets: Sequence[int]) -> list[Draft]:
        """Drafts of one part for some sequences, together where it gains from that."""
        own = []
        for drafter in drafters:
            assert isinstance(drafter, FirstOfDrafter)
            own.append(drafter.parts[part])
        source = self.sources[part]
        if own and isinstance(source, DraftsTogether):
            return source.propose_many(own, budgets)
        return [drafter.propose(budget) for drafter, budget in zip(own, budgets, strict=True)]


class FirstOfDrafter:
    """One drafter of each part; all of them see the whole text."""

    def __init__(self, source: FirstOf, parts: list[Drafter]):
        self.source, self.parts = source, parts

    def propose(self, budget: int) -> Draft:
        return self.source.propose_many([self], [budget])[0]

    def observe(self, tokens: Sequence[int]) -> None:
        for part in self.parts:
            part.observe(tokens)

    def rollback(self, n: int) -> None:
        for part in self.parts:
            part.rollback(n)

    def fork(self, context: SamplingContext) -> FirstOfDrafter:
        return type(self)(self.source, [part.fork(context) for part in self.parts])

    def end(self) -> None:
        for part in self.parts:
            part.end()


class _OnTarget(FirstOfDrafter):
    """One with parts that run the target's own weights."""

    def attach(self, runtime: Runtime, held: Held, root: int) -> None:
        for part in self.parts:
            if isinstance(part, UsesTarget):
                part.attach(runtime, held, root)
