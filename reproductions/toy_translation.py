"""A small real translation task: German dates and number words into English ones, noise on its references, and an
encoder-decoder that writes one token after another or all at once.

Dates by Babel (locale data of CLDR), number words by num2words.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

PAD, BOS, EOS, BLANK = range(4)
SPECIAL = ("<pad>", "<s>", "</s>", "<blank>")
FORMATS = ("EEEE, MMMM d, y", "EEEE, d MMMM y", "y MMMM d, EEEE")  # of the same English date
GERMAN_PIECES = re.compile(
    "dreizehn|vierzehn|fünfzehn|sechzehn|siebzehn|achtzehn|neunzehn|zwanzig|dreißig|vierzig|fünfzig|sechzig|siebzig|"
    "achtzig|neunzig|tausend|hundert|sieben|zwölf|sechs|eins|null|zehn|zwei|drei|vier|fünf|acht|neun|und|elf|ein"
)
Words = list[str]


@dataclass(frozen=True)
class Pair:
    """A source and its references: one, or a date in every format."""

    source: Words
    references: list[Words]


def words(text: str) -> Words:
    """Words and punctuation; digits one by one, hyphens left out."""
    return re.findall(r"\d|[^\W\d]+|[^\w\s-]", text)


def date_pairs(count: int, rng: np.random.Generator, formats: Sequence[str] = FORMATS[:1]) -> list[Pair]:
    from babel.dates import format_date

    pairs = []
    for day in rng.integers(0, 200 * 365, count):
        date = datetime.date(1900, 1, 1) + datetime.timedelta(days=int(day))
        english = [words(format_date(date, pattern, locale="en")) for pattern in formats]
        pairs.append(Pair(words(format_date(date, "full", locale="de")), english))
    return pairs


def number_pairs(count: int, rng: np.random.Generator, highest: int = 10_000) -> list[Pair]:
    from num2words import num2words

    pairs = []
    for number in rng.integers(0, highest, count):
        german = num2words(int(number), lang="de")
        pieces = GERMAN_PIECES.findall(german)
        if "".join(pieces) != german:
            raise ValueError(f"{german} is not made of the known pieces")
        pairs.append(Pair(pieces, [words(num2words(int(number), lang="en"))]))
    return pairs


def add_noise(tokens: Sequence[int], kinds: Sequence[str], level: int, rng: np.random.Generator) -> list[int]:
    """Shuffle: `level` swaps of neighbours.  Repeat, blank: each token doubled or lost with probability level/10."""
    found = list(tokens)
    if "shuffle" in kinds and len(found) > 1:
        for _ in range(level):
            at = int(rng.integers(len(found) - 1))
            found[at], found[at + 1] = found[at + 1], found[at]
    if "repeat" in kinds:
        doubled = rng.random(len(found)) < level / 10
        found = [t for token, twice in zip(found, doubled, strict=True) for t in [token] * (1 + twice)]
    if "blank" in kinds:
        lost = rng.random(len(found)) < level / 10
        found = [BLANK if gone else token for token, gone in zip(found, lost, strict=True)]
    return found


class Vocabulary:
    """Token ids of words, one list for both languages."""

    def __init__(self, pairs: Sequence[Pair]):
        seen = {word for pair in pairs for text in (pair.source, *pair.references) for word in text}
        self.words = [*SPECIAL, *sorted(seen)]
        self.ids = {word: i for i, word in enumerate(self.words)}

    def __len__(self) -> int:
        return len(self.words)

    def encode(self, text: Words) -> list[int]:
        return [self.ids[word] for word in text]

    def decode(self, ids: Sequence[int]) -> str:
        """Up to the end of sequence; blanks say nothing and are left out."""
        found = list(ids)
        found = found[: found.index(EOS)] if EOS in found else found
        return " ".join(self.words[i] for i in found if i > BLANK)


def padded(rows: Sequence[Sequence[int]]) -> Tensor:
    return nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=PAD)


class Translator(nn.Module):
    """Transformer encoder-decoder.

    parallel  positions written at once from the source alone; 0: one token after another
    """

    def __init__(self, size: int, *, width: int = 96, layers: int = 2, parallel: int = 0, longest: int = 48):
        super().__init__()
        self.parallel = parallel
        self.embed = nn.Embedding(size, width, padding_idx=PAD)
        self.place = nn.Embedding(longest, width)
        self.core = nn.Transformer(
            width, 4, layers, layers, 2 * width, dropout=0.0, batch_first=True, activation="gelu"
        )
        self.head = nn.Linear(width, size)

    def encode(self, source: Tensor) -> Tensor:
        vectors = self.embed(source) + self.place.weight[: source.shape[1]]
        return self.core.encoder(vectors, src_key_padding_mask=source == PAD)

    def decode(self, memory: Tensor, source: Tensor, written: Tensor | None) -> Tensor:
        """Log-probabilities (B, T, V) after each token of `written` (B, T), which begins with BOS; no PAD, no BOS."""
        if written is None:
            vectors, mask = self.place.weight[: self.parallel].expand(len(source), -1, -1), None
        else:
            length = written.shape[1]
            vectors = self.embed(written) + self.place.weight[:length]
            mask = nn.Transformer.generate_square_subsequent_mask(length)
        hidden = self.core.decoder(
            vectors, memory, tgt_mask=mask, tgt_is_causal=mask is not None, memory_key_padding_mask=source == PAD
        )
        logits = self.head(hidden)
        return torch.log_softmax(torch.cat([torch.full_like(logits[..., :EOS], -1e4), logits[..., EOS:]], -1), -1)

    def forward(self, source: Tensor, written: Tensor | None = None) -> Tensor:
        return self.decode(self.encode(source), source, written)

    @torch.no_grad()
    def greedy(self, source: Tensor, longest: int = 20) -> Tensor:
        """(B, T) most likely tokens, the end of sequence included, then padding."""
        memory = self.encode(source)
        if self.parallel:
            found = self.decode(memory, source, None).argmax(-1)
        else:
            written = torch.full((len(source), 1), BOS)
            done = torch.zeros(len(source), dtype=torch.bool)
            for _ in range(longest):
                following = self.decode(memory, source, written)[:, -1].argmax(-1)
                written = torch.cat([written, following.masked_fill(done, PAD)[:, None]], 1)
                done |= following == EOS
                if bool(done.all()):
                    break
            return written[:, 1:]
        ended = (found == EOS).long().cumsum(1)
        return found.masked_fill(ended - (found == EOS).long() > 0, PAD)
