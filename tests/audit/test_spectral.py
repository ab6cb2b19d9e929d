"""Matrix nuclear norm and its relatives: closed forms, bounds, a plain transcription of the published formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest
from tiny_gguf import write_tiny_llama

import likely
from likely.audit import effective_rank, matrix_entropy, matrix_nuclear_norm, measure_spectra, nuclear_norm
from likely.audit.spectral import CAVEATS, normalized
from likely.errors import CapabilityError, DataError

RNG = np.random.default_rng(0)


def transcribed(R):
    """The published formulas, one line each: full singular values, columns sorted, no shortcut."""
    A = R - R.mean(0)
    A = A / np.linalg.norm(A, axis=1, keepdims=True)
    n, d = A.shape
    columns = sorted((np.linalg.norm(A[:, j]) for j in range(d)), reverse=True)
    eigen = np.linalg.svd(A.T @ A / n, compute_uv=False)
    eigen = eigen[eigen > 1e-12]
    entropy = -(eigen * np.log(eigen)).sum() / math.log(d)
    return sum(columns[: min(n, d)]), np.linalg.svd(A, compute_uv=False).sum(), entropy


@pytest.mark.parametrize("shape", [(40, 12), (12, 40), (20, 20), (2, 7)])
def test_values_equal_the_published_formulas(shape):
    R = RNG.normal(size=shape) @ np.diag(RNG.gamma(1.0, size=shape[1])) + 3
    mnn, nuclear, entropy = transcribed(R)
    assert matrix_nuclear_norm(R) == pytest.approx(mnn, abs=1e-6)
    assert nuclear_norm(R) == pytest.approx(nuclear, abs=1e-6)
    assert matrix_entropy(R) == pytest.approx(entropy, abs=1e-6)
    assert effective_rank(R) == pytest.approx(shape[1] ** entropy, rel=1e-6)


def test_orthogonal_columns_give_the_nuclear_norm():
    assert matrix_nuclear_norm(np.eye(6), normalize=False) == nuclear_norm(np.eye(6), normalize=False) == 6
    A = np.linalg.qr(RNG.normal(size=(30, 8)))[0] @ np.diag(RNG.gamma(2.0, size=8))
    assert matrix_nuclear_norm(A, normalize=False) == pytest.approx(nuclear_norm(A, normalize=False), abs=1e-12)
    rotated = A @ np.linalg.qr(RNG.normal(size=(8, 8)))[0]  # the basis changes MNN and nothing else
    assert nuclear_norm(rotated, normalize=False) == pytest.approx(nuclear_norm(A, normalize=False))
    assert matrix_nuclear_norm(rotated, normalize=False) > 1.01 * matrix_nuclear_norm(A, normalize=False)
    assert matrix_entropy(rotated, normalize=False) == pytest.approx(matrix_entropy(A, normalize=False))


def test_bounds_hold_where_there_are_as_many_tokens_as_dimensions_and_only_there():
    for _ in range(100):
        n, d = sorted(RNG.integers(2, 24, size=2))[::-1]
        A = RNG.normal(size=(n, d))
        assert matrix_nuclear_norm(A) >= nuclear_norm(A) - 1e-6
        assert matrix_nuclear_norm(A, D=int(d)) <= math.sqrt(n * d) + 1e-9
    A = np.random.default_rng(1).normal(size=(12, 64))
    truncated, whole = (matrix_nuclear_norm(A, normalize=False, D=D) for D in (None, 64))
    assert truncated < nuclear_norm(A, normalize=False) < whole


def test_scale_and_shift_change_nothing_and_constants_give_no_nan():
    R = RNG.normal(size=(15, 9))
    moved = 7.5 * R + RNG.normal(size=9)
    for measure in (matrix_nuclear_norm, nuclear_norm, matrix_entropy, effective_rank):
        assert measure(moved) == pytest.approx(measure(R), rel=1e-9)
        assert measure(np.full((5, 4), 0.1)) == 0
    part = np.vstack([R, R.mean(0)])  # one token equals the mean: its row is 0
    assert not normalized(part)[-1].any() and np.isfinite(matrix_nuclear_norm(part))
    assert math.isnan(matrix_nuclear_norm(R[:1])) and matrix_nuclear_norm(R[:1], normalize=False) > 0


def test_entropy_of_known_spectra():
    assert matrix_entropy(np.outer(RNG.normal(size=6), RNG.normal(size=4)), normalize=False) == pytest.approx(
        0, abs=1e-9
    )
    Q = np.linalg.qr(RNG.normal(size=(20, 3)))[0] @ np.linalg.qr(RNG.normal(size=(8, 8)))[0][:3]
    assert matrix_entropy(Q, normalize=False) == pytest.approx(math.log(3) / math.log(8))
    assert effective_rank(Q, normalize=False) == pytest.approx(3)
    assert matrix_entropy(Q.T, normalize=False) * math.log(20) == pytest.approx(math.log(3))  # either Gram matrix


@pytest.mark.parametrize(
    ("R", "D", "message"),
    [(np.zeros(3), None, "matrix"), (np.zeros((0, 3)), None, "matrix"), (np.full((2, 2), np.nan), None, "finite"),
     (np.eye(3), 4, "between 1 and the 3 columns"), (np.eye(3), 0, "between 1")],
)  # fmt: skip
def test_what_is_no_matrix_is_refused(R, D, message):
    with pytest.raises(ValueError, match=message):
        matrix_nuclear_norm(R, D=D)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return str(write_tiny_llama(tmp_path_factory.mktemp("spectral") / "tiny.gguf"))


def test_any_layer_of_torch_and_the_last_of_every_runtime(path):
    torch = pytest.importorskip("torch")
    texts = ["the cat sat on the mat", "a", "they went on and on", ""]
    with likely.load(path, runtime="torch", threads=1) as lm:
        ids = [lm.encode_prompt(text) for text in texts]
        reports = measure_spectra(lm, texts, layers=(0, 1, -1), tokens=5)
        with torch.no_grad():
            states = lm.runtime.module(input_ids=torch.tensor([ids[0][:5]]), output_hidden_states=True).hidden_states
        for report, layer in zip(reports, (0, 1, len(states) - 1), strict=True):
            assert report.layer == layer and report.layers == len(states) - 1
            assert report.texts[0].mnn == pytest.approx(matrix_nuclear_norm(states[layer][0]), rel=1e-6)
        assert reports[0].skipped == [i for i, tokens in enumerate(ids) if len(tokens) < 2]
        assert list(CAVEATS) == reports[0].to_dict()["caveats"]
        with pytest.raises(ValueError, match="layer must lie between"):
            measure_spectra(lm, texts, layers=(99,))
        with pytest.raises(DataError, match="two tokens"):
            measure_spectra(lm, [[1]])
        last = reports[-1]
        own = lm.runtime.module  # the same through the protocol, as native and others give it
        del lm.runtime.module
        try:
            assert measure_spectra(lm, texts, tokens=5)[0].mean("mnn") == pytest.approx(last.mean("mnn"), rel=1e-4)
            with pytest.raises(CapabilityError, match='runtime="torch"'):
                measure_spectra(lm, texts, layers=(1,))
        finally:
            lm.runtime.module = own
    pytest.importorskip("llama_cpp")
    with likely.load(path, runtime="llamacpp", threads=1) as lm, pytest.raises(CapabilityError, match="hidden states"):
        measure_spectra(lm, texts)
