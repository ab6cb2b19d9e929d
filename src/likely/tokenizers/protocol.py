"""Text becomes token ids and back: what every tokenizer here offers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol


class Tokenizer(Protocol):
    """One tokenizer, with exact bytes per token.

    `encode` adds no beginning-of-sequence token: `add_bos` says whether the model wants one, and the one place that
    adds it is `begin`. `token_bytes` are the raw bytes a token adds to the text (b"" for control tokens), so that
    joining them gives the text even where a token ends inside a UTF-8 character.
    """

    @property
    def vocab_size(self) -> int: ...
    @property
    def bos_id(self) -> int | None: ...
    @property
    def eos_id(self) -> int | None: ...
    @property
    def end_ids(self) -> frozenset[int]: ...  # tokens that end a generation
    @property
    def add_bos(self) -> bool: ...
    @property
    def chat_template(self) -> str | None: ...
    @property
    def special_tokens(self) -> Mapping[str, int]: ...  # text of each control token -> id
    @property
    def fingerprint(self) -> str: ...  # equal fingerprints: same ids for the same text

    def encode(self, text: str, *, parse_special: bool = False) -> list[int]: ...
    def token_bytes(self, token: int) -> bytes: ...
    def token_text(self, token: int) -> str: ...  # for people: control tokens by name, odd bytes escaped


# texts of control tokens that end an answer, whatever a model file names as its end-of-text token
END_TEXTS = frozenset({
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<end_of_turn>", "<|endoftext|>", "<|eom_id|>", "<EOT>",
    "<|end_of_text|>", "<end_of_utterance>", "<eos>", "</s>",
})  # fmt: skip


def end_tokens(control: Mapping[str, int], *named: int | None) -> frozenset[int]:
    """Ids that end a generation: the ones a model file names, and control tokens known to end an answer."""
    return frozenset(control[text] for text in END_TEXTS if text in control) | {i for i in named if i is not None}


def begin(tokenizer: Tokenizer, tokens: list[int]) -> list[int]:
    """The tokens with one beginning-of-sequence token in front if the model wants one and it is not there yet."""
    if tokenizer.add_bos and tokenizer.bos_id is not None and tokens[:1] != [tokenizer.bos_id]:
        return [tokenizer.bos_id, *tokens]
    return tokens


def opening(tokenizer: Tokenizer) -> list[int]:
    """The one token that an empty prompt is instead: beginning or end of a text; none where neither exists."""
    return [token for token in (tokenizer.bos_id, tokenizer.eos_id) if token is not None][:1]


def common_length(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the common beginning."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def decode(tokenizer: Tokenizer, tokens: Iterable[int]) -> str:
    """The text of the tokens; bytes that are no UTF-8 become U+FFFD."""
    return b"".join(map(tokenizer.token_bytes, tokens)).decode("utf-8", "replace")
