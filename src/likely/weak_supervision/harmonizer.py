"""The harmonizer: a small text classifier that agrees as well as possible with a model's answers and with rules.

No labels are needed.  It learns h: x → Δ^K from votes that contradict each other, by minimising a Pareto scalarizer of
the sources' losses; 1 − h(x)[answer] is then the risk of an answer (`polar`).  Zhao et al. 2023, arXiv:2306.16564.
"""

from __future__ import annotations

import json
import re
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from scipy.sparse import csr_array

from likely.calibration.recalibrators.protocol import Parameters
from likely.errors import DataError, check_choice
from likely.metrics.checks import Floats, Ints, as_floats
from likely.uncertainty.types import Uncertainty
from likely.weak_supervision.labelling_rules import Votes, check_votes
from likely.weak_supervision.risk import polar
from likely.weak_supervision.train import SCALARIZERS, Layers, Recipe, forward, train_network

CONSTANT = 0.99  # a source that gives one class to so many of the texts says nothing about them
SETTINGS, WEIGHTS = "harmonizer.json", "harmonizer.safetensors"
VERSION = 1
_WORD = re.compile(r"\w\w+|[^\w\s]")

Encoder = Literal["tfidf", "given"] | Callable[[Sequence[str]], Any]


@dataclass(eq=False)
class Harmonizer(Recipe, Parameters):
    """Fuse votes: fit on texts and `Votes` whose first source usually is the model, then ask for probabilities or risk.

    classes     K, or their names
    encoder     "tfidf"; "given": texts are features already, (N, D); or a function texts → (N, D), such as
                `likely.scoring.HiddenFeatures`, whose features are put on one scale
    scalarizer  "quadratic", "linear", "euclidean", "chebyshev"; see `train.SCALARIZERS`
    hidden      width of the hidden layer, 0: none (h is then linear in the features)
    weights     (M,) one per source, None: 1 each
    normalize_by_votes  divide a text's losses by its number of votes (see `pareto_loss`)
    deduplicate  sources with identical votes count once
    validation  share of the texts that is kept apart: training stops `patience` epochs after the lowest loss there
    epochs      at most so many; None: 20 (the paper's), and where texts are few as many as make 500 steps
    Further: learning_rate, weight_decay, batch (of AdamW) and seed.

    After fit: sources_ (numbers of the sources that counted), curve_ (loss after each epoch), coverage_ (M,), and
    votes_per_text_ (mean number of votes): under "quadratic" texts with many votes weigh most.
    """

    classes: int | Sequence[str]
    encoder: Encoder = "tfidf"
    _: KW_ONLY
    weights: Any = None
    deduplicate: bool = True

    @property
    def k(self) -> int:
        return self.classes if isinstance(self.classes, int) else len(self.classes)

    def fit(self, texts: Any, votes: Votes | Any) -> Self:
        """Learn from N texts (or features) and their votes, `Votes` or (N, M) of -1..K-1; returns self.

        All texts are used, those without a vote for the vocabulary only.
        """
        self._check_params()
        matrix = check_votes(votes.matrix if isinstance(votes, Votes) else votes, self.k)
        names = votes.names if isinstance(votes, Votes) else tuple(map(str, range(matrix.shape[1])))
        if len(texts) != len(matrix):
            raise ValueError(f"{len(texts)} texts, but votes of {len(matrix)}")
        if (matrix < 0).all():
            raise ValueError("no source votes on any text: nothing to learn from")
        self.coverage_: Floats = (matrix >= 0).mean(axis=0)
        self.votes_per_text_ = float((matrix >= 0).sum(axis=1).mean())
        self.sources_ = usable_sources(matrix, names, deduplicate=self.deduplicate)
        weights = None
        if self.weights is not None:
            weights = as_floats(self.weights, "weights", 1)
            if len(weights) != matrix.shape[1] or not (weights > 0).all():
                raise ValueError(f"weights must be {matrix.shape[1]} numbers > 0, one per source")
            weights = weights[self.sources_]
        self._learn_features(texts)
        voted = (matrix[:, self.sources_] >= 0).any(axis=1)
        x = self._features(texts)
        self.layers_: Layers
        self.layers_, self.curve_ = train_network(x[voted], matrix[voted][:, self.sources_], self.k, weights, self)
        self._warn_if_collapsed(forward(self.layers_, x), matrix[:, self.sources_])
        return self

    def predict_proba(self, texts: Any) -> Floats:
        """(N, K) h(x); rows sum to 1."""
        self.check_fitted("layers_")
        return forward(self.layers_, self._features(texts))

    def predict(self, texts: Any) -> Ints:
        """(N,) the most likely classes."""
        return self.predict_proba(texts).argmax(axis=1)

    def polar(self, texts: Any, answers: Any) -> Uncertainty:
        """The risk of a model's answers (N,), -1 where it gave none; see `risk.polar`."""
        return polar(self.predict_proba(texts), answers)

    def save(self, folder: str | Path) -> None:
        """Write harmonizer.json (settings, vocabulary) and harmonizer.safetensors (numbers) into a folder."""
        from safetensors.numpy import save_file

        self.check_fitted("layers_")
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        arrays = {"coverage": self.coverage_, "sources": self.sources_, "curve": np.array(self.curve_)}
        for i, (weight, bias) in enumerate(self.layers_):
            arrays |= {f"layer.{i}.weight": weight, f"layer.{i}.bias": bias}
        encoder = self.encoder if isinstance(self.encoder, str) else "function"
        params = {**self.get_params(deep=False), "encoder": encoder}
        params["classes"] = self.classes if isinstance(self.classes, int) else list(self.classes)
        params["weights"] = None if self.weights is None else [float(w) for w in self.weights]
        record: dict[str, Any] = {"version": VERSION, "params": params, "votes_per_text": self.votes_per_text_}
        if self.encoder == "tfidf":
            record["terms"] = self.tfidf_.terms_
            arrays["idf"] = self.tfidf_.idf_
        elif self.encoder != "given":
            arrays |= {"mean": self.mean_, "scale": self.scale_}
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, target / WEIGHTS)
        (target / SETTINGS).write_text(json.dumps(record, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path, *, encoder: Callable[[Sequence[str]], Any] | None = None) -> Self:
        """What `save` wrote.  encoder: the function it was fitted with, where it was one (a function is not saved)."""
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        source = Path(folder)
        try:
            record = json.loads((source / SETTINGS).read_text(encoding="utf-8"))
            arrays = load_file(source / WEIGHTS)
            if record["version"] != VERSION:
                raise DataError(f"{source / SETTINGS}: version {record['version']}, this release reads {VERSION}")
            params = record["params"]
            if (params["encoder"] == "function") != (encoder is not None):
                need = "give load(..., encoder=)" if encoder is None else "leave encoder= out"
                raise DataError(f'{source / SETTINGS}: its encoder is "{params["encoder"]}": {need}')
            made = cls(**{**params, "encoder": encoder or params["encoder"]})
            made.coverage_, made.sources_ = arrays["coverage"], arrays["sources"]
            made.curve_, made.votes_per_text_ = arrays["curve"].tolist(), float(record["votes_per_text"])
            count = 2 if made.hidden else 1
            made.layers_ = [(arrays[f"layer.{i}.weight"], arrays[f"layer.{i}.bias"]) for i in range(count)]
            if made.encoder == "tfidf":
                made.tfidf_ = TfIdf()
                made.tfidf_.terms_, made.tfidf_.idf_ = list(record["terms"]), arrays["idf"]
            elif encoder is not None:
                made.mean_, made.scale_ = arrays["mean"], arrays["scale"]
            made._check_shapes(source)
        except OSError as error:
            raise DataError(f"cannot read {source}: {error.strerror or error}") from None
        except (KeyError, TypeError, ValueError, SafetensorError) as error:
            raise DataError(f"{source} holds no harmonizer as save wrote it: {type(error).__name__} {error}") from None
        return made

    def _check_params(self) -> None:
        if self.k < 2:
            raise ValueError(f"at least 2 classes are needed, got {self.k}")
        check_choice("scalarizer", self.scalarizer, SCALARIZERS)
        if isinstance(self.encoder, str) and self.encoder not in ("tfidf", "given"):
            raise ValueError(f'encoder must be "tfidf", "given" or a function, got "{self.encoder}"')
        if not 0 <= self.validation < 1:
            raise ValueError(f"validation must lie in 0..1 (less than 1), got {self.validation}")
        for name in ("learning_rate", "batch", "epochs", "patience"):
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise ValueError(f"{name} must be > 0, got {getattr(self, name)}")
        for name in ("weight_decay", "hidden"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be >= 0, got {getattr(self, name)}")
        if self.normalize_by_votes and self.scalarizer == "chebyshev":
            raise ValueError("normalize_by_votes has no meaning for chebyshev: the greatest loss is one source's")

    def _learn_features(self, texts: Any) -> None:
        if self.encoder == "tfidf":
            self.tfidf_ = TfIdf().fit(texts)
        elif callable(self.encoder):
            found = _finite(self.encoder(texts))
            self.mean_, self.scale_ = found.mean(axis=0), np.maximum(found.std(axis=0), 1e-6)

    def _features(self, texts: Any) -> Any:
        if self.encoder == "tfidf":
            return self.tfidf_.transform(texts)
        if callable(self.encoder):
            return (_finite(self.encoder(texts)) - self.mean_) / self.scale_
        return _finite(texts)

    def _warn_if_collapsed(self, h: Floats, votes: Ints) -> None:
        chosen = h.argmax(axis=1)
        if (chosen == chosen[0]).all() and len(np.unique(votes[votes >= 0])) > 1:
            warnings.warn(
                f"the harmonizer gives class {int(chosen[0])} to every text, though its sources also vote for others: "
                f"add rules for these, or weigh them",
                stacklevel=3,
            )

    def _check_shapes(self, source: Path) -> None:
        widths = [self.layers_[0][0].shape[1], *(weight.shape[0] for weight, _ in self.layers_)]
        fits = all(w.shape == (b, a) for (w, _), a, b in zip(self.layers_, widths, widths[1:], strict=False))
        fits &= all(b.shape == (w.shape[0],) and np.isfinite(w).all() and np.isfinite(b).all() for w, b in self.layers_)
        features = {"tfidf": lambda: len(self.tfidf_.terms_), "given": lambda: widths[0]}
        wanted = features[self.encoder]() if isinstance(self.encoder, str) else len(self.mean_)
        if not fits or widths[-1] != self.k or widths[0] != wanted:
            raise DataError(f"{source / WEIGHTS}: the layers do not fit together, or hold numbers that are not finite")


def _finite(features: Any) -> Floats:
    array = as_floats(features, "features", 2)
    bad = ~np.isfinite(array).all(axis=1)
    if bad.any():
        raise ValueError(f"features: row {int(bad.argmax())} holds a value that is not finite")
    return array


def usable_sources(votes: Ints, names: Sequence[str], *, deduplicate: bool = True) -> Ints:
    """Numbers of the sources that count, at least one; a warning says which are left out and why.

    Left out: one that gives the same class to (almost) every text, as it says nothing and only pulls h towards this
    class; and of sources with identical votes all but the first, which would count several times.  Sources that never
    vote are left out silently.
    """
    kept: list[int] = []
    constant, twins = [], []
    seen: dict[bytes, str] = {}
    for j in range(votes.shape[1]):
        column = votes[:, j]
        counts = np.bincount(column[column >= 0], minlength=1)
        key = column.tobytes()
        if not counts.sum():
            continue
        if counts.max() >= CONSTANT * len(votes):
            constant.append(names[j])
        elif deduplicate and key in seen:
            twins.append(f"{names[j]} (as {seen[key]})")
        else:
            seen[key] = names[j]
            kept.append(j)
    if not kept:
        raise ValueError("every source that votes gives one class to every text: nothing to learn from")
    if constant:
        warnings.warn(f"left out, one class for every text: {', '.join(constant)}", stacklevel=3)
    if twins:
        warnings.warn(f"left out, identical votes: {', '.join(twins)}", stacklevel=3)
    return np.array(kept, np.int64)


class TfIdf:
    """(1 + ln count) · (ln((1 + N) / (1 + document frequency)) + 1), rows of length 1; terms are words and pairs.

    words      longest terms, in words;  at_least: texts that a term must occur in;  most: so many terms, the commonest
    Words are runs of at least two letters or digits and single punctuation marks, in lower case.  Weights as those of
    scikit-learn's TfidfVectorizer(sublinear_tf=True).
    """

    def __init__(self, *, words: int = 2, at_least: int = 2, most: int = 5000):
        self.words, self.at_least, self.most = words, at_least, most

    def fit(self, texts: Sequence[str]) -> Self:
        if not len(texts):
            raise ValueError("no texts: at least one is needed")
        found: Counter[str] = Counter()
        for text in texts:
            found.update(set(self.terms(text)))
        kept = sorted(((-n, term) for term, n in found.items() if n >= self.at_least))[: self.most]
        if not kept:
            raise ValueError(f"no term occurs in {self.at_least} of the {len(texts)} texts: lower at_least")
        chosen = sorted((term, -n) for n, term in kept)
        self.terms_ = [term for term, _ in chosen]
        self.idf_ = np.log((1 + len(texts)) / (1 + np.array([n for _, n in chosen], np.float64))) + 1
        return self

    def terms(self, text: str) -> list[str]:
        words = _WORD.findall(text.lower())
        return [" ".join(words[i : i + n]) for n in range(1, self.words + 1) for i in range(len(words) - n + 1)]

    def transform(self, texts: Sequence[str]) -> Any:
        """(N, D) sparse, a row of zeros for a text without a known term."""
        place = {term: i for i, term in enumerate(self.terms_)}
        rows, columns, values = [], [], []
        for row, text in enumerate(texts):
            counts = Counter(place[term] for term in self.terms(text) if term in place)
            weights: Floats = np.array([1 + np.log(n) for n in counts.values()]) * self.idf_[list(counts)]
            rows += [row] * len(counts)
            columns += list(counts)
            values += (weights / max(float(np.linalg.norm(weights)), 1e-12)).tolist()
        return csr_array((values, (rows, columns)), shape=(len(texts), len(self.terms_)), dtype=np.float64)
