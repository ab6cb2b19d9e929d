"""A tokenizer over any list of byte strings: the longest piece that fits, from left to right."""

from __future__ import annotations

from collections.abc import Sequence


class PieceTokenizer:
    """pieces: bytes of each token;  control: names of further tokens without text, after the pieces."""

    chat_template = None

    def __init__(self, pieces: Sequence[bytes], *, control: Sequence[str] = (), bos: str = "", adds_space=False):
        self._pieces = [*pieces, *(b"" for _ in control)]
        self.vocab_size = len(self._pieces)
        self.special_tokens = {text: len(pieces) + i for i, text in enumerate(control)}
        self.bos_id = self.special_tokens.get(bos)
        self.add_bos = self.bos_id is not None
        self.eos_id = self.special_tokens.get("<end>")
        self.end_ids = frozenset() if self.eos_id is None else frozenset({self.eos_id})
        self.fingerprint = f"pieces:{self._pieces}{self.special_tokens}"
        self._adds_space = adds_space
        self.encoded = 0  # bytes encoded so far

    def encode(self, text: str, *, parse_special: bool = False) -> list[int]:
        raw = text.encode()
        if self._adds_space and raw:
            raw = b" " + raw
        self.encoded += len(raw)
        ids, at = [], 0
        order = sorted((i for i, p in enumerate(self._pieces) if p), key=lambda i: -len(self._pieces[i]))
        while at < len(raw):
            found = next((i for i in order if raw.startswith(self._pieces[i], at)), None)
            if found is None:  # as llama.cpp does with bytes that it does not know
                at += 1
                continue
            ids.append(found)
            at += len(self._pieces[found])
        return ids

    def token_bytes(self, token: int) -> bytes:
        return self._pieces[token]

    def token_text(self, token: int) -> str:
        return self._pieces[token].decode("utf-8", "backslashreplace")
