"""Token healing: the last tokens of a prompt are generated again, so that its end does not fix a token boundary.

A prompt that ends "http:" is cut where the tokenizer would have made one token of "://".  The last tokens are removed;
the first generated ones must write their bytes again, and may write more.  Exact marginals over all tokens of
the prompt are another method (package genlm-bytes), not offered here.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from likely.decoding.constraint import Constraint, ConstraintViolation, Mask, contains, mask_of, pack
from likely.decoding.request import Finished
from likely.guided.vocabulary import Vocabulary, after_bytes, check_bytes

MOST = 4  # tokens removed


def heal(
    vocabulary: Vocabulary, prompt_ids: Sequence[int], special_ids: Collection[int] = ()
) -> tuple[list[int], bytes]:
    """(the prompt without its last tokens, the bytes of these).

    Removed are the last k tokens, k the largest in 0..4 such that some token is longer than their bytes and begins
    with them.  Never past a token without text or one of `special_ids`, and never the first token.
    """
    texts = vocabulary.sorted_texts
    k, rest = 0, b""
    for j in range(1, min(MOST, len(prompt_ids) - 1) + 1):
        token = prompt_ids[-j]
        if token in special_ids or not vocabulary.tokens[token]:
            break
        rest = vocabulary.tokens[token] + rest
        at = bisect_right(texts, rest)
        if at < len(texts) and texts[at].startswith(rest):
            k = j
    kept = list(prompt_ids[: len(prompt_ids) - k])
    return kept, vocabulary.text(prompt_ids[len(prompt_ids) - k :])


def without_healing(finish: Finished, healed: bytes, token_bytes: Callable[[int], bytes]) -> tuple[Finished, float]:
    """(the sample from the first byte of the answer on, Σ log m of the steps before).

    A token that wrote the end of `healed` and more is the answer's first: its log-probability is then the conditional
    one, given that it begins so.
    """
    count, written = 0, 0
    while written < len(healed) and count < len(finish.tokens):
        written += len(token_bytes(finish.tokens[count]))
        count += 1
    weight = float(sum(finish.log_masses[:count]))
    first = count - (written > len(healed))
    logprobs, masses = finish.logprobs[first:], finish.log_masses[first:]
    if first < count:
        logprobs[0], masses[0] = logprobs[0] - masses[0], 0.0
    rest = {name: getattr(finish, name)[first:] for name in ("tokens", "tops", "processed", "entropies")}
    steering = None if finish.steering is None else finish.steering[first:]
    return replace(finish, logprobs=logprobs, log_masses=masses, steering=steering, **rest), weight


@dataclass(eq=False)
class TokenHealing:
    """First the bytes `rest`, as the model likes to cut them, then what `then` allows (None: anything).

    A token that writes more than `rest` has begun the answer: `then` is given what it has too much.
    """

    vocabulary: Vocabulary
    rest: bytes
    then: Constraint | None = None
    _before: list[tuple[bytes, Constraint | None]] = field(default_factory=list)  # the state before each healing token
    _after: int = 0  # tokens since
    _mask: Mask | None = None
    _everything: Mask | None = None

    def __post_init__(self) -> None:
        if self.then is not None and not self._before:
            check_bytes(self.vocabulary)

    @property
    def vocab_size(self) -> int:
        return self.vocabulary.size

    @property
    def accepting(self) -> bool:
        return not self.rest and (self.then is None or self.then.accepting)

    @property
    def finished(self) -> bool:
        return not self.rest and self.then is not None and self.then.finished

    @property
    def approximate(self) -> bool:
        return self.then is not None and self.then.approximate

    def allowed(self, remaining: int | None = None) -> Mask:
        if not self.rest:
            return self._free() if self.then is None else self.then.allowed(remaining)
        if self._mask is None:
            shorter = [i for n in range(1, len(self.rest) + 1) for i in self.vocabulary.ids_of.get(self.rest[:n], ())]
            self._mask = mask_of([*shorter, *self._longer()], self.vocab_size)
        return self._mask

    def _free(self) -> Mask:
        if self._everything is None:
            self._everything = pack(np.ones(self.vocab_size, np.bool_))
        return self._everything

    def _longer(self) -> list[int]:
        """Tokens that write `rest` and begin the answer."""
        texts, rest = self.vocabulary.sorted_texts, self.rest
        low = bisect_right(texts, rest)
        high = bisect_left(texts, True, key=lambda t: t[: len(rest)] > rest)
        found = texts[low:high]
        if self.then is not None:
            mask = self.then.allowed()
            single = {
                byte
                for byte in range(256)
                if (ids := self.vocabulary.ids_of.get(bytes([byte]))) and contains(mask, ids[0])
            }
            found = [text for text in found if text[len(rest)] in single and self._fits(text[len(rest) :], mask)]
        return [i for text in found for i in self.vocabulary.ids_of[text]]

    def _fits(self, begun: bytes, mask: Mask) -> bool:
        """Whether `then` may begin so."""
        assert self.then is not None
        if ids := self.vocabulary.ids_of.get(begun):
            return contains(mask, ids[0])
        return after_bytes(self.then, begun, self.vocabulary) is not None

    def permits(self, token: int) -> bool:
        if not self.rest:
            return token < self.vocab_size if self.then is None else self.then.permits(token)
        text = self.vocabulary.tokens[token]
        if not text:
            return False
        if self.rest.startswith(text):
            return True
        begun = text[len(self.rest) :]
        if not text.startswith(self.rest):
            return False
        return self.then is None or after_bytes(self.then, begun, self.vocabulary) is not None

    def advance(self, token: int) -> None:
        if not self.permits(token):
            raise ConstraintViolation(f"token {token} ({self.vocabulary.tokens[token]!r}) is not allowed here")
        if not self.rest:
            if self.then is not None:
                self.then.advance(token)
            self._after += 1
            return
        text = self.vocabulary.tokens[token]
        self._before.append((self.rest, None if self.then is None else self.then.fork()))
        begun = text[len(self.rest) :]
        if begun and self.then is not None:
            self.then = after_bytes(self.then, begun, self.vocabulary)
        self.rest = self.rest[len(text) :]
        self._mask = None

    def forced(self) -> list[int]:
        return self.then.forced() if self.then is not None and not self.rest else []

    def fork(self) -> TokenHealing:
        then = None if self.then is None else self.then.fork()
        return TokenHealing(
            self.vocabulary, self.rest, then, self._before.copy(), self._after, self._mask, self._everything
        )

    def rollback(self, n: int) -> None:
        if n > self._after + len(self._before):
            raise ValueError(f"cannot take back {n} tokens, {self._after + len(self._before)} were taken")
        late = min(n, self._after)
        if late and self.then is not None:
            self.then.rollback(late)
        self._after -= late
        for _ in range(n - late):
            self.rest, then = self._before.pop()
            self.then = None if then is None else then.fork()  # forks of this one hold the same
            self._mask = None

    def ready(self, wait: bool = False) -> bool:
        return self.then is None or self.then.ready(wait)
