"""Small vocabularies for constraints: every byte, some longer tokens, duplicates, control tokens, ids with none."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from likely.guided.vocabulary import Vocabulary

MERGES = (
    b"ab", b"abc", b"bc", b"12", b"123", b"20", b"00", b'"}', b'":', b'{"', b'","', b"},", b"[[", b"]]", b"{{", b"  ",
    b" a", b"yes", b"no", b"maybe", b" not", b"true", b"fal", b"se", b"nu", b"\xc3\xa9", b"a\xc3", b"\xa9b", 
    b"://", b"http", b":/", b"a", b"ab",
)  # fmt: skip


def all_bytes(merges: Sequence[bytes] = MERGES) -> Vocabulary:
    """256 bytes, `merges` (some of them twice), two end tokens, a control token, three ids past the tokenizer."""
    tokens = (*(bytes([b]) for b in range(256)), *merges, b"", b"", b"", b"", b"", b"")
    end = 256 + len(merges)
    return Vocabulary(tokens, frozenset({end, end + 1}), end, _longest(tokens))


def of(*texts: bytes) -> Vocabulary:
    """These tokens, then an end token."""
    return Vocabulary((*texts, b""), frozenset({len(texts)}), len(texts), _longest(texts))


def _longest(tokens: Sequence[bytes]):
    ids: dict[bytes, int] = {}
    for i, text in enumerate(tokens):
        if text:
            ids.setdefault(text, i)

    def encode(text: str) -> list[int]:
        raw, out, at = text.encode(), [], 0
        while at < len(raw):
            piece = next((raw[at:end] for end in range(len(raw), at, -1) if raw[at:end] in ids), None)
            if piece is None:
                return []
            out.append(ids[piece])
            at += len(piece)
        return out

    return encode


def all_spellings(vocabulary: Vocabulary, text: bytes) -> set[tuple[int, ...]]:
    """Every token string that writes these bytes: brute force."""
    if not text:
        return {()}
    return {
        (i, *rest)
        for i, token in enumerate(vocabulary.tokens)
        if token and text.startswith(token)
        for rest in all_spellings(vocabulary, text[len(token) :])
    }


def reachable(constraint, vocabulary: Vocabulary, longest: int) -> set[tuple[int, ...]]:
    """Token strings of at most `longest` tokens after which the constraint lets the text end."""
    from likely.decoding.constraint import members

    found, todo = set(), [((), constraint)]
    while todo:
        path, state = todo.pop()
        allowed = members(state.allowed()).tolist()
        if vocabulary.end_ids <= set(allowed):
            found.add(path)
        for token in allowed:
            if token not in vocabulary.end_ids and len(path) < longest:
                child = state.fork()
                child.advance(token)
                todo.append(((*path, token), child))
    return found


def texts_over(alphabet: bytes, longest: int) -> list[bytes]:
    return [bytes(t) for n in range(longest + 1) for t in itertools.product(alphabet, repeat=n)]
