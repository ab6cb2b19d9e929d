"""Logits with labels for the study of h-calibration: intents by an overfitted network, options of questions, images."""

from __future__ import annotations

import json
import re
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import likely
from likely.calibration.labelled import Labelled, read_labelled
from likely.data import load_arrays, load_records
from likely.io.whole_file import write_whole_file
from likely.scoring.choices import choice_item, score_choices

Floats = NDArray[np.float64]
ROUNDED_TO = 5e-5  # half of the last digit that the file of images keeps
HIDDEN, EPOCHS, BATCH = 128, 8, 128


def intents(target: str, *, rows: int | None = None, epochs: int = EPOCHS, train_rows: int | None = None) -> Labelled:
    """CLINC150 sentences that were not trained on (val and test), scored by a network trained until it is over-sure.

    target  "intent" (150 classes) or "domain" (10)
    """
    train, rest = (
        list(load_records("clinc150", "train")),
        [r for s in ("val", "test") for r in load_records("clinc150", s)],
    )
    train = _some(train, train_rows)
    names = sorted({record[target] for record in train})
    rest = _some([record for record in rest if record[target] in names], rows)
    number = {name: i for i, name in enumerate(names)}
    weigh = Tfidf([record["text"] for record in train])
    y = np.array([number[record[target]] for record in train])
    z = network_logits(weigh([r["text"] for r in train]), y, weigh([r["text"] for r in rest]), len(names), epochs)
    return Labelled("logits", z, np.array([number[record[target]] for record in rest]))


def _some(records: list[dict], count: int | None) -> list[dict]:
    if count is None or count >= len(records):
        return records
    return [records[i] for i in np.sort(np.random.default_rng(0).permutation(len(records))[:count])]


class Tfidf:
    """Words and pairs of neighbouring words in at least 2 training texts: (1 + log tf) · log(1 + n/df), unit length."""

    def __init__(self, texts: list[str], most: int = 1500):
        seen = Counter(gram for text in texts for gram in set(grams(text)))
        kept = sorted((gram for gram, n in seen.items() if n > 1), key=lambda gram: (-seen[gram], gram))[:most]
        self.column = {gram: i for i, gram in enumerate(kept)}
        self.rarity = np.log1p(len(texts) / np.array([seen[gram] for gram in kept]))

    def __call__(self, texts: list[str]) -> NDArray[np.float32]:
        found = np.zeros((len(texts), len(self.column)), np.float32)
        for row, text in zip(found, texts, strict=True):
            for gram, n in Counter(grams(text)).items():
                if gram in self.column:
                    row[self.column[gram]] = (1 + np.log(n)) * self.rarity[self.column[gram]]
        return found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-9)


def grams(text: str) -> list[str]:
    words = re.findall(r"[\w']+", text.lower())
    return words + [f"{a} {b}" for a, b in pairwise(words)]


def network_logits(
    x: NDArray[np.float32], y: NDArray[np.int64], fresh: NDArray[np.float32], classes: int, epochs: int
) -> Floats:
    """One hidden layer, no weight decay, no early stopping."""
    import torch

    generator = torch.Generator().manual_seed(0)
    inputs, labels = torch.as_tensor(x), torch.as_tensor(y)
    layers = [
        (torch.randn(a, b, generator=generator) * (2 / b) ** 0.5).requires_grad_()
        for a, b in ((HIDDEN, x.shape[1]), (classes, HIDDEN))
    ]
    scale = (torch.ones(()) * 8).requires_grad_()  # rows have length 1: without it, training takes many epochs more
    optimizer = torch.optim.Adam([*layers, scale], lr=2e-3)

    def forward(given: torch.Tensor) -> torch.Tensor:
        return torch.relu(scale * given @ layers[0].T) @ layers[1].T

    for _ in range(epochs):
        for some in torch.randperm(len(x), generator=generator).split(BATCH):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(forward(inputs[some]), labels[some]).backward()
            optimizer.step()
    with torch.no_grad():
        return forward(torch.as_tensor(fresh)).numpy().astype(np.float64)


def option_scores(model: str, sha256: str, each: int, keep: Path | None) -> Labelled:
    """ARC-Easy questions of 4 options, log p of each option's words; at most `each` from calibration and from test.

    model, sha256  of a GGUF file;  keep: a folder where scores are written, and read from the next time
    """
    kept = None if keep is None else keep / f"arc-easy.{sha256[:16]}.{each}.jsonl"
    if kept is not None and kept.exists():
        return read_labelled(kept)
    items = []
    for split in ("calibration", "test"):
        four = (r for r in load_records("arc-easy", split) if len(r["choices"]) == 4)
        items += [choice_item(record) for record, _ in zip(four, range(each), strict=False)]
    with likely.load(model, runtime="native", threads=1) as lm:
        results = score_choices(lm, items).results
    if kept is not None:
        lines = [json.dumps({"logits": r.values, "label": r.label}) + "\n" for r in results]
        write_whole_file(kept, "".join(lines).encode())
    return Labelled("logits", np.array([r.values for r in results]), np.array([r.label for r in results]))


def images(rows: int | None = None) -> Labelled:
    """CIFAR-10 test images scored by a VGG16; probabilities were rounded to 4 digits, so log p is clipped."""
    found = load_arrays("cifar10-vgg-probs", "probs.npz")
    probs, labels = np.asarray(found["probs"], np.float64)[:rows], np.asarray(found["labels"], np.int64)[:rows]
    probs = np.maximum(probs, ROUNDED_TO)
    return Labelled("logits", np.log(probs / probs.sum(axis=1, keepdims=True)), labels)
