"""Draft with a model of another tokenizer by way of the text: decode, let it write on, encode again.

Any draft is exact under rules M and G, so that this only has to guess well.  Timor et al. 2025, arXiv:2502.05202
(string-level exact match); transformers has a relative in `AssistedCandidateGeneratorDifferentTokenizers`.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence as Seq

import numpy as np

from likely.decoding.drafting.protocol import (
    FIXED_ONLY,
    NO_DRAFT,
    Draft,
    Drafter,
    SamplingContext,
    check_rollback,
)
from likely.errors import CapabilityError, KvFull
from likely.runtimes.kinds import kinds_with
from likely.runtimes.protocol import Runtime, Sequence, Want, Work
from likely.tokenizers.protocol import Tokenizer, begin, common_length

TAIL = 10  # tokens before the end that are encoded again, since what follows may change them


def encode_exactly(tokenizer: Tokenizer, text: bytes) -> list[int] | None:
    """Ids whose bytes are `text`; None if it is no UTF-8 or this tokenizer cannot spell it.

    A tokenizer that puts a space in front of every text is given one less.
    """
    try:
        string = text.decode()
    except UnicodeDecodeError:
        return None
    for given in (string, string[1:]) if string.startswith(" ") else (string,):
        ids = tokenizer.encode(given)
        if b"".join(map(tokenizer.token_bytes, ids)) == text:
            return ids
    return None


def whole_characters(text: bytes) -> bytes:
    """Without a UTF-8 character that has only begun at the end."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    decoder.decode(text)
    return text[: len(text) - len(decoder.getstate()[0])]


class Translation:
    """The text of the target's tokens as ids of another tokenizer, kept up as it grows and shrinks.

    Control tokens become the other's control token of the same name or, for the beginning of the sequence, of the same
    task; others are spelled out.  The text between them is encoded as a whole; when it goes on, only its last tokens
    are encoded again.  Bytes that are no UTF-8 become U+FFFD.
    """

    def __init__(self, target: Tokenizer, other: Tokenizer):
        self._target, self._other = target, other
        self._named = {token: text for text, token in target.special_tokens.items()}
        self._head: list[int] = []  # ids of everything up to the last control token
        self._seen: list[int] | None = None  # the tokens behind _head
        self._body: list[int] = []  # ids of the text after it
        self._ends: list[int] = []  # bytes of that text up to each id of _body; [] if they are unknown

    def ids(self, tokens: Seq[int]) -> tuple[list[int], bytes]:
        """(the other's ids, bytes of a character begun at the end that they leave out)."""
        last = next((i for i in range(len(tokens) - 1, -1, -1) if tokens[i] in self._named), -1)
        before = list(tokens[: last + 1])
        if before != self._seen:
            self._seen, self._head = before, self._head_of(before)
            self._body, self._ends = [], []
        raw = b"".join(self._target.token_bytes(t) for t in tokens[last + 1 :])
        whole = whole_characters(raw)
        self._follow(whole.decode("utf-8", "replace").encode())
        return [*self._head, *self._body], raw[len(whole) :]

    def _head_of(self, tokens: Seq[int]) -> list[int]:
        text, ids = b"", list[int]()
        for token in tokens:
            name = self._named.get(token)
            if name is None:
                text += self._target.token_bytes(token)
                continue
            same = self._other.special_tokens.get(name)
            if same is None and token == self._target.bos_id and not ids and not text:
                same = self._other.bos_id
            if same is None:
                text += name.encode()
                continue
            ids += [*self._other.encode(text.decode("utf-8", "replace")), same]
            text = b""
        ids += self._other.encode(text.decode("utf-8", "replace")) if text else []
        return begin(self._other, ids)

    def _follow(self, text: bytes) -> None:
        """Make _body the encoding of `text`, keeping what lies well before its end."""
        known = sum(end <= len(text) for end in self._ends)
        keep = max(0, known - TAIL)
        while keep and not _boundary(text, self._ends[keep - 1]):
            keep -= 1
        start = self._ends[keep - 1] if keep else 0
        rest = encode_exactly(self._other, text[start:])
        if rest is None:  # this tokenizer rewrites such text: nothing can be kept for the next time
            self._body, self._ends = self._other.encode(text.decode()), []
            return
        sizes = np.cumsum([len(self._other.token_bytes(t)) for t in rest], dtype=np.int64) + start
        self._body, self._ends = [*self._body[:keep], *rest], [*self._ends[:keep], *sizes.tolist()]


def _boundary(text: bytes, at: int) -> bool:
    """Whether a word ends at `at`: tokenizers cut text there whatever stands before."""
    return at < len(text) and text[at : at + 1].isspace() and not text[at - 1 : at].isspace()


class CrossTokenizerModel:
    """DraftSource: greedy chains of another model, `length` of its tokens, in the target's tokens.

    Its drafts are fixed, so that rules R and K cannot judge them; `shared_vocabulary_model` knows a q instead.
    """

    distributions, free = FIXED_ONLY, False

    def __init__(
        self,
        runtime: Runtime,
        tokenizer: Tokenizer,
        target_tokenizer: Tokenizer,
        *,
        length: int = 5,
        name: str = "cross-tokenizer model",
    ):
        if length < 1:
            raise ValueError(f"length must be >= 1, got {length}")
        if not runtime.capabilities.truncate:
            raise CapabilityError(
                f"{name}: a draft model needs a runtime that can drop tokens again: {kinds_with('truncate')}"
            )
        self.runtime, self.tokenizer, self.target_tokenizer = runtime, tokenizer, target_tokenizer
        self.length, self.name = length, name

    def begin(self, prompt: Seq[int], context: SamplingContext) -> CrossTokenizerDrafter:
        return CrossTokenizerDrafter(self, prompt)

    def propose_many(self, drafters: Seq[Drafter], budgets: Seq[int]) -> list[Draft]:
        """The draft model writes on for all texts together, one call per token."""
        turns: dict[int, _Turn] = {}
        for i, (drafter, budget) in enumerate(zip(drafters, budgets, strict=True)):
            assert isinstance(drafter, CrossTokenizerDrafter)
            if budget > 0 and (turn := drafter.take_turn()) is not None:
                turns[i] = turn
        active = [t for t in turns.values() if t.todo]
        for step in range(self.length):
            active = self._write(active, last=step == self.length - 1)
        drafts = [NO_DRAFT] * len(drafters)
        for i, turn in turns.items():
            drafter = drafters[i]
            assert isinstance(drafter, CrossTokenizerDrafter)
            drafts[i] = drafter.in_target_tokens(turn, budgets[i])
        return drafts

    def _write(self, turns: list[_Turn], *, last: bool) -> list[_Turn]:
        """One more token for each; those that go on.  The last turns leave until the rest fits."""
        while turns:
            try:
                work = [Work(t.sequence, np.array(t.todo), want=Want(rows="last", top=1)) for t in turns]
                outputs = self.runtime.forward(work)
                break
            except KvFull:
                turns = turns[:-1]
        else:
            return []
        going = []
        for turn, output in zip(turns, outputs, strict=True):
            assert output.top_ids is not None
            token = int(output.top_ids[0, 0])
            turn.held += turn.todo
            if token in self.tokenizer.end_ids or not self.tokenizer.token_bytes(token):
                continue  # it ends here, or it says something that is no text
            turn.written += self.tokenizer.token_bytes(token)
            turn.todo = [token]
            if not last and len(turn.held) + 1 < self.runtime.context_length:
                going.append(turn)
        return going


class _Turn:
    """One text's part in a round: what the draft model must see, what it holds, what it wrote."""

    def __init__(self, sequence: Sequence, held: list[int], todo: list[int], begun: bytes):
        self.sequence, self.held, self.todo, self.begun = sequence, held, todo, begun
        self.written = b""


class CrossTokenizerDrafter:
    """One text, as both models see it."""

    def __init__(self, source: CrossTokenizerModel, prompt: Seq[int]):
        self._source = source
        self._tokens = [int(t) for t in prompt]
        self._prompt = len(self._tokens)
        self._translation = Translation(source.target_tokenizer, source.tokenizer)
        self._sequence: Sequence | None = None
        self._held: list[int] = []  # ids that the sequence holds
        self._ended = False

    def propose(self, budget: int) -> Draft:
        return self._source.propose_many([self], [budget])[0]

    def take_turn(self) -> _Turn | None:
        runtime = self._source.runtime
        if self._ended:
            return None
        ids, begun = self._translation.ids(self._tokens)
        if not ids or len(ids) >= runtime.context_length:
            return None
        try:
            sequence = self._sequence = self._sequence or runtime.open()
        except KvFull:
            return None
        same = common_length(self._held, ids[:-1])
        runtime.truncate(sequence, same)
        self._held = ids[:same]
        return _Turn(sequence, self._held, ids[same:], begun)

    def in_target_tokens(self, turn: _Turn, budget: int) -> Draft:
        """What was written, encoded behind the last tokens of the text; if that changes them, encoded by itself."""
        text = whole_characters(turn.written)
        if len(text) <= len(turn.begun) or not text.startswith(turn.begun):
            return NO_DRAFT
        new = text[len(turn.begun) :]
        tokenizer = self._source.target_tokenizer
        tail = self._tail()
        behind = encode_exactly(tokenizer, b"".join(map(tokenizer.token_bytes, tail)) + new)
        if behind is not None and behind[: len(tail)] == tail:
            return Draft.chain(behind[len(tail) :][:budget])
        alone = encode_exactly(tokenizer, new)
        return Draft.chain(alone[:budget]) if alone is not None else NO_DRAFT

    def _tail(self) -> list[int]:
        """The last tokens of the text, from a character's beginning on, no control token among them."""
        tokenizer = self._source.target_tokenizer
        tail: list[int] = []
        for token in reversed(self._tokens):
            raw = tokenizer.token_bytes(token)
            starts = bool(raw) and (raw[0] & 0xC0) != 0x80
            if not raw or (len(tail) >= TAIL and starts):
                break
            tail.append(token)
            if len(tail) >= TAIL and starts:
                break
        return tail[::-1]

    def observe(self, tokens: Seq[int]) -> None:
        self._tokens += [int(t) for t in tokens]

    def rollback(self, n: int) -> None:
        check_rollback(n, len(self._tokens) - self._prompt)
        del self._tokens[len(self._tokens) - n :]

    def fork(self, context: SamplingContext) -> CrossTokenizerDrafter:
        """For another sample: the prompt is computed once, and what is computed is shared."""
        copy = CrossTokenizerDrafter(self._source, self._tokens)
        copy._prompt = self._prompt
        runtime = self._source.runtime
        turn = self.take_turn() if runtime.capabilities.fork else None
        if turn is not None:
            try:
                if turn.todo[:-1]:
                    runtime.forward([Work(turn.sequence, np.array(turn.todo[:-1]), want=Want.NONE)])
                    self._held += turn.todo[:-1]
                copy._sequence = runtime.fork(turn.sequence)
                copy._held = self._held.copy()
            except KvFull:
                pass  # each computes it for itself when there is room
        return copy

    def end(self) -> None:
        self._ended = True
        if self._sequence is not None:
            self._source.runtime.close(self._sequence)
            self._sequence = None
