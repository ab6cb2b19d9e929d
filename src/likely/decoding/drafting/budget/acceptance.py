"""How often drafted tokens are accepted: of drafts cut by their length, and of drafts followed beside the text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from likely.decoding.drafting.budget.call_costs import CallCosts
from likely.decoding.drafting.protocol import Draft
from likely.metrics.checks import Floats

LIMIT = 64  # most drafted tokens per sequence and call
FORGET = 0.98  # per recorded draft
SLOWLY = 0.998  # per draft of any text
# a new text is trusted less than usual, and the beginnings of its own drafts soon decide
DOUBT, WEIGHT, FADE, BEGINNING = 0.7, 2.0, 0.8, 8
SMALL, PAUSE = 8, 2  # size of a draft while none pays; tokens between two of them
_RANKS = np.arange(LIMIT)
_NOTHING = np.zeros(LIMIT)
CAUTION = 0.5  # standard errors
SHRINK = 20.0  # imagined drafts by which a position's rate is drawn to that of all positions
OWN = 30.0  # imagined tokens by which a text's rate is drawn to that of all texts


class AcceptanceEstimate:
    """α_j, the probability that drafted token j is accepted given that those before it were, from chains cut anywhere.

    A draft of k tokens of which a were accepted says nothing about what lies behind its first rejection, and nothing
    about what lies behind its end: the maximum-likelihood estimate is accepted / (accepted + rejected), at each
    position and over all of them.  (Accepted per proposed token is no estimate of α but of (ℓ(α, k) - 1) / k.)

    prior, weight  before anything is seen: this rate, that counts as many tokens.  A prior that is an estimate itself,
                   of many texts, gives the positions; what is learned is how this text compares
    shrink         positions are drawn to the rate of all positions with this weight
    forget         what was seen counts that much less after each update; 1: nothing is forgotten
    """

    def __init__(
        self,
        prior: float | AcceptanceEstimate = 0.7,
        *,
        weight: float = 2.0,
        shrink: float = SHRINK,
        forget: float = FORGET,
    ):
        if not isinstance(prior, AcceptanceEstimate) and not 0 <= prior <= 1:
            raise ValueError(f"an acceptance rate must lie in [0, 1], got {prior}")
        if not 0 < forget <= 1 or weight < 0 or shrink < 0:
            raise ValueError(f"expected forget in (0, 1], weight and shrink >= 0, got {forget}, {weight} and {shrink}")
        self._prior, self._weight, self._shrink, self._forget = prior, weight, shrink, forget
        self._accepted, self._rejected = np.zeros(LIMIT), np.zeros(LIMIT)
        self._of_all = 0.0, 0.0  # accepted, rejected
        self._updates = 0
        self._rates: tuple[tuple[int, int], Floats, Floats] | None = None  # as of these updates

    def update(self, proposed: int, accepted: int) -> None:
        """One verified chain of `proposed` drafted tokens, the first `accepted` of which were kept."""
        if not 0 <= accepted <= proposed:
            raise ValueError(f"accepted must lie in 0..{proposed}, got {accepted}")
        proposed, accepted = min(proposed, LIMIT), min(accepted, LIMIT)
        keep = self._forget
        if keep < 1:
            self._accepted *= keep
            self._rejected *= keep
        self._accepted[:accepted] += 1
        if accepted < proposed:
            self._rejected[accepted] += 1
        self._of_all = keep * self._of_all[0] + accepted, keep * self._of_all[1] + (accepted < proposed)
        self._updates += 1

    @property
    def alpha(self) -> float:
        """Over all positions."""
        prior = self._prior.alpha if isinstance(self._prior, AcceptanceEstimate) else self._prior
        accepted, rejected = self._of_all
        seen = accepted + rejected + self._weight
        return (accepted + self._weight * prior) / seen if seen else prior

    @property
    def by_position(self) -> Floats:
        """(LIMIT,) α_1, α_2, ..."""
        return self._both()[0]

    @property
    def gains(self) -> Floats:
        """(LIMIT,) the probability that the i-th drafted token is kept."""
        return self._both()[1]

    def _both(self) -> tuple[Floats, Floats]:
        prior = self._prior
        seen = self._updates, prior._updates if isinstance(prior, AcceptanceEstimate) else 0
        if self._rates is None or self._rates[0] != seen:
            if isinstance(prior, AcceptanceEstimate):  # as this text is better or worse than usual, at all positions
                rates = prior.by_position * (self.alpha / prior.alpha if prior.alpha else 1.0)
            else:
                seen_there = self._accepted + self._rejected + self._shrink
                rates = (self._accepted + self._shrink * self.alpha) / np.maximum(seen_there, 1e-12)
            rates = np.minimum(rates, 1.0)
            found = seen, rates, np.asarray(np.cumprod(rates), np.float64)
            self._rates = found
            return found[1:]
        return self._rates[1:]


@dataclass(eq=False)
class SourceRecord:
    """What is known of one source of drafts.

    By classes of how well the origin of a guess matched: how often the i-th node of a draft was kept.  Of drafts whose
    length is decided before they are seen: `runs`, and seconds of one level of drafting by the number of sequences.
    together  whether the source drafts for all sequences in one call per level;  trees: whether its drafts are trees,
              whose nodes are counted by their number in the draft
    credit_s  seconds that may be spent on trials of a source that does not pay at present
    """

    runs: AcceptanceEstimate = field(default_factory=lambda: AcceptanceEstimate(forget=SLOWLY))
    levels: CallCosts = field(default_factory=lambda: CallCosts(growth=1 / 16))
    together: bool = False
    trees: bool = False
    trials: int = 0
    credit_s: float = 0.0
    _hits: dict[int, np.ndarray] = field(default_factory=dict)
    _tries: dict[int, np.ndarray] = field(default_factory=dict)
    _known: dict[int, np.ndarray] = field(default_factory=dict)  # results of `expected` since the last record

    def record(self, key: int, kept: Sequence[int], judged: int) -> None:
        """Of a draft of class `key`, `kept` nodes of the first `judged` ones were what the target said."""
        hits = self._hits.setdefault(key, np.zeros(LIMIT))
        tries = self._tries.setdefault(key, np.zeros(LIMIT))
        hits *= FORGET
        tries *= FORGET
        tries[:judged] += 1
        self._known.pop(key, None)
        hits[[k for k in kept if k < LIMIT]] += 1

    def expected(self, key: int) -> np.ndarray:
        """(LIMIT + 1,) expected number of kept nodes among the first n, n = 0.. ."""
        known = self._known.get(key)
        if known is not None:
            return known
        first = min(0.25 + 0.08 * key, 0.9) if key <= 8 else 0.2 * (key - 15)
        prior = first * (0.5 + first / 2) ** _RANKS  # two imagined drafts; real ones soon outweigh them
        hits, tries = self._hits.get(key, _NOTHING), self._tries.get(key, _NOTHING)
        rate = (hits + 2 * prior) / (tries + 2)
        # the best of many uncertain sizes is mostly the luckiest one: count what is nearly certain
        rate = np.maximum(rate - CAUTION * np.sqrt(rate * (1 - rate) / (tries + 2)), 0.0)
        self._known[key] = known = np.concatenate([[0.0], np.cumsum(rate)])
        return known

    def judge(self, draft: Draft, kept: Sequence[int], drafted: int, own: AcceptanceEstimate | None) -> None:
        """Of a draft whose first `drafted` nodes are the source's, those `kept`; own: of this text alone."""
        if not self.trees and drafted and not (draft.parents[:drafted] == np.arange(-1, drafted - 1)).all():
            self.trees = True
        if self.trees:
            self.record(0, kept, min(drafted, LIMIT))
            return
        for estimate in (self.runs, own):
            if estimate is not None:
                estimate.update(drafted, len(kept))

    @property
    def gains(self) -> Floats:
        """(LIMIT,) expected kept tokens that each further drafted one adds."""
        return np.diff(self.expected(0)) if self.trees else self.runs.gains

    def time(self, levels: int, nodes: int, seconds: float) -> None:
        """A call of a source that costs time: drafts of `nodes` tokens in all, the longest of `levels` tokens."""
        levels = max(levels, 1)
        self.levels.record(max(round(nodes / levels), 1), seconds / levels)

    def level_seconds(self, sequences: np.ndarray) -> np.ndarray:
        """Predicted seconds in which the drafts of that many sequences grow by one token."""
        if self.together:
            return self.levels.seconds(sequences)
        return sequences * self.levels.seconds(np.ones(1))


def match_class(draft: Draft) -> int:
    """How much a guess can be trusted before it was tried: 0 unknown, 1..8 by the match, 16..20 by its own estimate."""
    if draft.match:
        return draft.match if draft.match < 4 else min(1 + draft.match.bit_length(), 8)
    if draft.expected is not None and len(draft):
        return 16 + int(4 * min(draft.expected / len(draft), 1.0))
    return 0


class AcceptanceTracker:
    """Compares drafts of a free drafter with what is emitted, verified or not: its acceptance is known without a call.

    One draft at a time is followed until the text leaves it.
    trust  how the drafts of this text did so far, as a share of what was expected of them, the last ones most
    """

    def __init__(self, record: SourceRecord):
        self._record = record
        self._kept, self._expected = DOUBT * WEIGHT, WEIGHT
        self._draft: Draft | None = None
        self._children: dict[int, dict[int, int]] = {}
        self._path: list[int] = []
        self._size, self._rest, self._pause = SMALL, 0, 0

    def wish(self) -> int:
        """How long a draft to ask for now: short ones while nothing is verified, and not at every token."""
        if self._rest:
            self._rest -= 1
            return 0
        return self._size

    def verified(self, n: int) -> None:
        """n nodes of the last draft go to the model."""
        self._size = min(max(SMALL, 4 * n), LIMIT)
        self._pause = 0 if n else min(2 * self._pause + 1, PAUSE)
        self._rest = self._pause

    def propose(self, draft: Draft) -> None:
        if self._draft is None and len(draft):
            self._draft, self._path = draft, []
            self._children = draft.children()

    def observe(self, tokens: Sequence[int]) -> None:
        if self._draft is None:
            return
        for token in tokens:
            node = self._children.get(self._path[-1] if self._path else -1, {}).get(token)
            if node is not None:
                self._path.append(node)
            if node is None or node not in self._children:
                self._judge(self._draft)
                self._draft = None
                return

    @property
    def trust(self) -> float:
        return min(self._kept / self._expected, 1.0)

    def _judge(self, draft: Draft) -> None:
        key, judged = match_class(draft), min(len(draft), LIMIT)
        first = min(judged, BEGINNING)
        self._kept = FADE * self._kept + sum(node < first for node in self._path)
        self._expected = FADE * self._expected + float(self._record.expected(key)[first])
        self._record.record(key, self._path, judged)
