"""SuffixDecoding: draft what usually followed, in this text and in the answers of earlier requests.

Oliaro et al. 2024, arXiv:2411.04975.
"""

from __future__ import annotations

import threading
from array import array
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from likely.decoding.drafting.memory_file import checked_ids, load_memory, save_memory
from likely.decoding.drafting.protocol import FIXED_ONLY, NO_DRAFT, Draft, SamplingContext
from likely.decoding.drafting.suffix.guess import NO_GUESS, DraftLimits, Guess, best_guess
from likely.decoding.drafting.suffix.tree import END, GrowingText, SuffixTree
from likely.errors import DataError

_KIND = "suffix"
_LARGEST = 2**31 - 1


class SuffixMemory:
    """DraftSource: the answers of all finished requests, and for each running one its own prompt and answer.

    max_depth     D: a match and its continuation have at most D tokens together
    max_requests  answers kept;  max_tokens: tokens kept (None: no limit); the oldest answers go first
    scope         "all": answers serve later requests; "request": each request sees itself alone, nothing is kept
    spec_factor, spec_offset, min_prob, tree   see `DraftLimits`; defaults of the paper's code

    An answer is remembered when its drafter ends, cancelled or not: what was emitted is true text.  Safe to use from
    many threads.  Memory: about 170 bytes per token of new text, 30 per token that repeats earlier answers.
    """

    name = "suffix"
    distributions, free = FIXED_ONLY, True

    def __init__(
        self,
        *,
        max_depth: int = 64,
        max_requests: int = 100_000,
        max_tokens: int | None = None,
        scope: Literal["all", "request"] = "all",
        spec_factor: float = 1.0,
        spec_offset: float = 0.0,
        min_prob: float = 0.1,
        tree: bool = False,
    ):
        if max_depth < 2:
            raise ValueError(f"max_depth must be >= 2, got {max_depth}")
        if max_requests < 1:
            raise ValueError(f"max_requests must be >= 1, got {max_requests}")
        if max_tokens is not None and max_tokens < 1:
            raise ValueError(f"max_tokens must be >= 1, or None for no limit, got {max_tokens}")
        if scope not in ("all", "request"):
            raise ValueError(f'scope must be "all" or "request", got "{scope}"')
        self.limits = DraftLimits(spec_factor, spec_offset, min_prob, tree)
        self.max_depth, self.max_requests, self.max_tokens, self.scope = max_depth, max_requests, max_tokens, scope
        self._lock = threading.Lock()
        self._tree = SuffixTree(max_depth, newest=True)
        self._kept: deque[int] = deque()  # tokens of each answer, oldest first
        self._gone = 0  # tokens at the front of the tree's text that nothing refers to
        self._tokens = 0
        self._version = 0  # of the tree

    def begin(self, prompt: Sequence[int], context: SamplingContext) -> SuffixDrafter:
        return SuffixDrafter(self, GrowingText(self.max_depth, checked(prompt)), len(prompt))

    @property
    def tokens(self) -> int:
        """Tokens remembered of finished requests."""
        return self._tokens

    @property
    def requests(self) -> int:
        """Finished requests remembered."""
        return len(self._kept)

    @property
    def size_bytes(self) -> int:
        """Memory of what is remembered; looks at all of it."""
        with self._lock:
            return self._tree.size_bytes

    def remember(self, answer: Sequence[int]) -> None:
        """Add an answer that was given elsewhere."""
        if self.scope != "all":
            raise ValueError('a memory of scope "request" keeps no answers: use scope "all"')
        self._finish(array("i", checked(answer)))

    def forget(self) -> None:
        """Drop everything that is remembered."""
        with self._lock:
            self._tree = SuffixTree(self.max_depth, newest=True)
            self._kept.clear()
            self._gone = self._tokens = 0
            self._version += 1

    # --- files --------------------------------------------------------------------------------------------------------

    def save(self, path: str | Path, *, tokenizer: str) -> None:
        """Write the remembered tokens; `tokenizer` is the fingerprint of the tokenizer whose ids they are."""
        with self._lock:
            answers = self._answers()
        arrays = {
            "tokens": np.concatenate([np.zeros(0, np.int32), *(np.asarray(answer, np.int32) for answer in answers)]),
            "lengths": np.array([len(answer) for answer in answers], np.int64),
        }
        save_memory(path, _KIND, arrays, tokenizer=tokenizer, settings={})

    def load(self, path: str | Path, *, tokenizer: str, vocab_size: int) -> SuffixMemory:
        """Remember a saved file's answers, counted anew (about 10 s per million tokens); returns itself."""
        found, _ = load_memory(path, _KIND, tokenizer=tokenizer, names=("tokens", "lengths"))
        tokens = checked_ids(path, "tokens", found["tokens"], vocab_size)
        lengths = found["lengths"]
        kinds = tokens.dtype.kind + lengths.dtype.kind
        if kinds != "ii" or (lengths < 1).any() or lengths.sum() != len(tokens):
            raise DataError(f"{path}: lengths do not divide the tokens into answers: build the memory again")
        for answer in np.split(tokens, np.cumsum(lengths)[:-1]) if len(lengths) else []:
            self.remember(answer.tolist())
        return self

    # --- what drafters do; the lock is held only here and above -----------------------------------------------------

    def _finish(self, answer: array) -> None:
        with self._lock:
            if len(answer) and self.scope == "all":
                self._add(answer)
                self._version += 1

    def _guess(self, text: array, seen: Seen, budget: int, above: float) -> Guess:
        """The best draft from the answers of others, if it is expected to keep more than `above` tokens."""
        with self._lock:
            if not self._kept:
                return NO_GUESS
            if seen.version != self._version:
                seen.version, seen.ceiling = self._version, self.max_depth
            longest = longest_match(self._tree, text, min(self.max_depth, len(text)) - 1, seen)
            return best_guess(self._tree, text, longest, budget, self.limits, above=above)

    def _add(self, answer: array) -> None:
        limit = self.max_tokens
        if limit is not None:
            answer = answer[-limit:]
        n = len(answer)
        while self._kept and (len(self._kept) >= self.max_requests or (limit is not None and self._tokens + n > limit)):
            self._evict()
        tree = self._tree
        at = tree.base + len(tree.text)
        tree.text.extend(answer)
        tree.text.append(END)
        for i in range(n):
            tree.insert(at + i, min(self.max_depth, n - i))
        self._kept.append(n)
        self._tokens += n

    def _evict(self) -> None:
        tree = self._tree
        n = self._kept.popleft()
        at = tree.base + self._gone
        for i in range(n):
            tree.remove(at + i, min(self.max_depth, n - i))
        self._gone += n + 1
        self._tokens -= n
        if self._gone * 4 > len(tree.text):  # seldom, since it moves what stays
            del tree.text[: self._gone]
            tree.base += self._gone
            self._gone = 0

    def _answers(self) -> list[array]:
        answers, at = [], self._gone
        for n in self._kept:
            answers.append(self._tree.text[at : at + n])
            at += n + 1
        return answers


@dataclass
class Seen:
    """Where a drafter stands in the shared tree: how much of its text matched, and the most that can match now."""

    version: int = -1
    longest: int = 0
    ceiling: int = 0

    def grown(self, n: int) -> None:
        self.longest += n
        self.ceiling += n


class SuffixDrafter:
    """One request: its own text, and the memory of others."""

    def __init__(self, memory: SuffixMemory, own: GrowingText, prompt: int):
        self._memory, self._own, self._prompt = memory, own, prompt
        self._seen = Seen()
        self._ended = False

    def propose(self, budget: int) -> Draft:
        own, memory = self._own, self._memory
        if budget <= 0 or not len(own):
            return NO_DRAFT
        guess = best_guess(own.tree, own.text, own.repeated, budget, memory.limits, waiting=own.ends)
        if memory.scope == "all":
            other = memory._guess(own.text, self._seen, budget, guess.expected)
            if other.expected > guess.expected:
                guess = other
        if not guess.tokens:
            return NO_DRAFT
        tokens, parents = np.array(guess.tokens, np.int64), np.array(guess.parents, np.int64)
        return Draft(tokens, parents, match=guess.match, expected=guess.expected)

    def observe(self, tokens: Sequence[int]) -> None:
        for token in checked(tokens):
            self._own.append(token)
        self._seen.grown(len(tokens))

    def rollback(self, n: int) -> None:
        self._own.cut(n)
        self._prompt = min(self._prompt, len(self._own))
        self._seen = Seen()

    def fork(self, context: SamplingContext) -> SuffixDrafter:
        return SuffixDrafter(self._memory, self._own.copy(), self._prompt)

    def end(self) -> None:
        if not self._ended:
            self._ended = True
            self._memory._finish(self._own.text[self._prompt :])
            self._own = GrowingText(self._memory.max_depth)


def longest_match(tree: SuffixTree, text: array, top: int, seen: Seen) -> int:
    """The largest m <= top such that the last m tokens have a place in the tree; notes it in `seen`.

    Fewer tokens match wherever more do, so this is a bisection, begun where the last match would be if it went on.
    """
    n = len(text)
    low, high = 0, min(top, seen.ceiling) + 1
    m = min(seen.longest, high - 1)
    while high - low > 1:
        m = m if low < m < high else (low + high) // 2
        if tree.find(text, n - m, n) is None:
            high = m
            m = 0
        else:
            low = m
            m += 1
    seen.longest = seen.ceiling = low
    return low


def checked(tokens: Sequence[int]) -> list[int]:
    """Token ids as ints; ValueError for one that cannot be a token."""
    ids = [int(t) for t in tokens]
    if ids and (min(ids) < 0 or max(ids) > _LARGEST):
        raise ValueError(f"a token id must lie in 0..{_LARGEST}, got {min(ids) if min(ids) < 0 else max(ids)}")
    return ids
