"""Which family a sequence belongs to, by something that is no language model: profile HMMs and counts of k-mers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import log_softmax

from likely.errors import CapabilityError, DataError

MOST_SEQUENCES = 5000  # of one profile or comparison


class ProfileHMM:
    """A profile hidden Markov model of a family, by HMMER (package pyhmmer, MIT)."""

    def __init__(self, hmm: Any):
        """hmm  a pyhmmer.plan7.HMM; see `from_stockholm` and `from_sequences`"""
        self.hmm = hmm

    @classmethod
    def from_stockholm(cls, path: str | Path) -> Self:
        """From a seed alignment in Stockholm format."""
        easel, _ = _pyhmmer()
        alphabet = easel.Alphabet.amino()
        try:
            with easel.MSAFile(str(path), digital=True, alphabet=alphabet) as file:
                alignment = file.read()
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: not a Stockholm alignment of proteins ({error})") from None
        if alignment is None:
            raise DataError(f"{path}: no alignment")
        if not alignment.name:
            alignment.name = _text(Path(path).stem)
        return cls(_built(alignment, alphabet))

    @classmethod
    def from_sequences(cls, sequences: Sequence[str], *, name: str = "family", rounds: int = 2) -> Self:
        """From unaligned sequences: a profile of the one of median length, to which all are aligned, `rounds` times."""
        easel, plan7 = _pyhmmer()
        import pyhmmer

        if not 1 <= len(sequences) <= MOST_SEQUENCES:
            raise ValueError(f"sequences must be 1 to {MOST_SEQUENCES}, got {len(sequences)}")
        alphabet = easel.Alphabet.amino()
        block = _block(easel, alphabet, sequences)
        median = sorted(block, key=len)[len(block) // 2]
        builder, background = plan7.Builder(alphabet), plan7.Background(alphabet)
        hmm = builder.build(median, background)[0]
        for _ in range(rounds if len(sequences) > 1 else 0):
            alignment = pyhmmer.hmmer.hmmalign(hmm, block, digitize=True, trim=True)
            alignment.name = _text(name)
            hmm = _built(alignment, alphabet)
        return cls(hmm)

    def evalues(self, sequences: Sequence[str], *, searched: int = 1) -> NDArray[np.float64]:
        """(N,) E-values of each sequence: how many of `searched` random sequences would score as high; inf: no hit."""
        easel, plan7 = _pyhmmer()
        alphabet = self.hmm.alphabet
        pipeline = plan7.Pipeline(alphabet, Z=searched, E=1e9, T=None)
        hits = pipeline.search_hmm(self.hmm, _block(easel, alphabet, sequences))
        found = np.full(len(sequences), np.inf)
        for hit in hits:
            found[int(hit.name)] = hit.evalue
        return found


class KmerClassifier:
    """Multinomial logistic regression on the counts of a sequence's k-mers, each row of counts divided by its norm.

    k        length of the pieces;  l2: of the penalty l2/2 · ‖W‖² on the summed log-likelihood
    classes_, pieces_, weights_  (K, D + 1) what `fit` learned, the intercept last
    """

    def __init__(self, *, k: int = 3, l2: float = 0.01):
        self.k, self.l2 = k, l2

    def fit(self, sequences: Sequence[str], labels: Sequence[str]) -> Self:
        if len(sequences) != len(labels) or not len(sequences):
            raise ValueError(f"sequences and labels must be as many, at least one: got {len(sequences)}, {len(labels)}")
        self.classes_ = sorted(set(labels))
        seen = {sequence[i : i + self.k] for sequence in sequences for i in range(len(sequence) - self.k + 1)}
        self.pieces_ = {piece: i for i, piece in enumerate(sorted(seen))}
        x, y = self._features(sequences), np.array([self.classes_.index(label) for label in labels])
        shape, one_hot = (len(self.classes_), x.shape[1]), np.eye(len(self.classes_))[y]

        def objective(flat: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
            weights = flat.reshape(shape)
            logp = log_softmax(x @ weights.T, axis=1)
            penalised = weights * np.append(np.ones(shape[1] - 1), 0.0)
            gradient = (np.exp(logp) - one_hot).T @ x + self.l2 * penalised
            return -float((logp * one_hot).sum()) + self.l2 / 2 * float((penalised**2).sum()), gradient.ravel()

        start = np.zeros(shape[0] * shape[1])
        found = minimize(objective, start, jac=True, method="L-BFGS-B", options={"maxiter": 500})
        self.weights_ = found.x.reshape(shape)
        return self

    def predict_proba(self, sequences: Sequence[str]) -> NDArray[np.float64]:
        """(N, K), columns in the order of classes_."""
        return np.exp(log_softmax(self._features(sequences) @ self.weights_.T, axis=1))

    def predict(self, sequences: Sequence[str]) -> list[str]:
        return [self.classes_[i] for i in self.predict_proba(sequences).argmax(axis=1)]

    def _features(self, sequences: Sequence[str]) -> NDArray[np.float64]:
        counts = np.zeros((len(sequences), len(self.pieces_) + 1))
        for row, sequence in zip(counts, sequences, strict=True):
            for i in range(len(sequence) - self.k + 1):
                if (at := self.pieces_.get(sequence[i : i + self.k])) is not None:
                    row[at] += 1
            row /= max(float(np.linalg.norm(row)), 1.0)
            row[-1] = 1.0
        return counts


def group_by_similarity(sequences: Sequence[str], *, most: float = 0.5, k: int = 3) -> NDArray[np.int64]:
    """(N,) numbers of groups: two sequences are in one if a chain of sequences joins them whose k-mers overlap by more
    than `most` (shared over all, each counted once).

    Near neighbours on both sides of a split make a test of memory; splitting whole groups keeps them together.
    """
    if not 0 <= most < 1:
        raise ValueError(f"most must lie in [0, 1), got {most}")
    if len(sequences) > MOST_SEQUENCES:
        raise ValueError(f"at most {MOST_SEQUENCES} sequences can be compared, got {len(sequences)}")
    pieces = [{s[i : i + k] for i in range(max(1, len(s) - k + 1))} for s in sequences]
    groups = np.arange(len(sequences))
    for i in range(len(sequences)):
        for j in range(i):
            if groups[i] != groups[j]:
                shared = len(pieces[i] & pieces[j])
                if shared > most * (len(pieces[i]) + len(pieces[j]) - shared):
                    groups[groups == groups[i]] = groups[j]
    return np.unique(groups, return_inverse=True)[1].astype(np.int64)


def _pyhmmer() -> tuple[Any, Any]:
    try:
        from pyhmmer import easel, plan7
    except ImportError:
        raise CapabilityError("profile HMMs need pyhmmer, which is not installed. Run: pip install pyhmmer") from None
    return easel, plan7


def _built(alignment: Any, alphabet: Any) -> Any:
    _, plan7 = _pyhmmer()
    return plan7.Builder(alphabet).build_msa(alignment, plan7.Background(alphabet))[0]


def _block(easel: Any, alphabet: Any, sequences: Sequence[str]) -> Any:
    """Sequences by number."""
    digital = []
    for number, sequence in enumerate(sequences):
        try:
            digital.append(easel.TextSequence(name=_text(str(number)), sequence=sequence).digitize(alphabet))
        except ValueError as error:
            raise DataError(f"sequence {number}: {error}") from None
    return easel.DigitalSequenceBlock(alphabet, digital)


def _text(name: str) -> Any:
    """pyhmmer's names are str since its version 0.11, and were bytes before."""
    import pyhmmer

    return name if tuple(map(int, pyhmmer.__version__.split(".")[:2])) >= (0, 11) else name.encode()
