"""Log-ratios of few tokens hold all of them; what an endpoint exposes is what it says, and is measured on a toy."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from likely.audit.inversion import (
    EndpointSpec,
    LogprobCompressor,
    TopEmulator,
    estimate_rank,
    exposed,
    exposure_report,
    held_out_error,
    measure_endpoint,
    measure_runtime,
    random_texts,
    ratios_by_bias,
    subspace_angles,
)
from likely.errors import CapabilityError, DataError
from likely.runtimes.toy import ToyRuntime

V, D = 500, 32


def log_softmax(logits):
    return logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)


@pytest.fixture(scope="module")
def linear():
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(V, D))
    return weights, log_softmax(rng.normal(size=(60, D)) @ weights.T)


def test_all_log_probabilities_come_back_from_as_many_ratios_as_hidden_units(linear):
    weights, logprobs = linear
    for extra, within in ((0, 1e-9), (20, 1e-10)):
        compressor = LogprobCompressor(V, D, extra=extra)
        assert len(set(compressor.tokens.tolist())) == D + extra + 1
        again = compressor.reconstruct(compressor.transform(logprobs), weights)
        assert np.abs(again - logprobs).max() < within
    short = LogprobCompressor.of_tokens(V, D, LogprobCompressor(V, D).tokens[: D - 3])
    assert np.abs(short.reconstruct(short.transform(logprobs), weights) - logprobs).max() > 0.5


def test_log_ratios_know_no_constant_and_the_anchor_changes_them_linearly(linear):
    _, logprobs = linear
    compressor = LogprobCompressor(V, D, anchor=7)
    assert compressor.tokens[0] == 7 and 7 not in compressor.tokens[1:]
    ratios = compressor.transform(logprobs)
    np.testing.assert_allclose(compressor.transform(logprobs + 3.5), ratios, atol=1e-12)
    other = compressor.tokens.copy()
    other[[0, 5]] = other[[5, 0]]
    moved = LogprobCompressor.of_tokens(V, D, other).transform(logprobs)
    expected = ratios - ratios[:, 4:5]
    expected[:, 4] = -ratios[:, 4]
    np.testing.assert_allclose(moved, expected, atol=1e-12)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LogprobCompressor(V, V), "tokens beside the anchor"),
        (lambda: LogprobCompressor(V, D, anchor=V), "outside 0..499"),
        (lambda: LogprobCompressor.of_tokens(V, D, [3, 3, 4]), "must be different"),
        (lambda: LogprobCompressor(V, D).transform(np.zeros((2, 9))), "rows of 500"),
        (lambda: estimate_rank(np.zeros((1, 3))), "two vectors"),
        (lambda: held_out_error(np.zeros((4, 9)), 3), "too few"),
    ],
)
def test_bad_input_is_one_line(make, message):
    with pytest.raises(DataError, match=message):
        make()


def test_the_rank_is_the_hidden_size_and_noise_has_none(linear):
    _, logprobs = linear
    ratios = LogprobCompressor(V, D, extra=20).transform(logprobs)
    assert estimate_rank(ratios).rank == D and estimate_rank(ratios).gap > 1e6
    assert held_out_error(ratios, D, fitted=0.7) < 1e-8
    assert estimate_rank(np.random.default_rng(1).normal(size=(60, 52))).rank is None
    assert estimate_rank(ratios + 1e-6 * np.random.default_rng(1).normal(size=ratios.shape)).rank == D
    assert estimate_rank(ratios + np.random.default_rng(1).normal(size=ratios.shape)).rank is None


def test_one_model_has_one_space_and_another_model_another():
    rng = np.random.default_rng(3)
    compressor = LogprobCompressor(V, D, extra=40)
    one, other = rng.normal(size=(2, V, D))
    first, second, third = (
        compressor.transform(log_softmax(rng.normal(size=(50, D)) @ w.T)) for w in (one, one, other)
    )
    assert subspace_angles(first, second, D).max() < 1e-5
    assert subspace_angles(first, third, D).max() > 0.5


# --- exposure ---------------------------------------------------------------------------------------------------------

v, d = 40, 5


def toy(seed=0):
    weights = np.random.default_rng(seed).normal(size=(v, d))

    def logits_of(prefix):
        digest = hashlib.sha256(repr(prefix).encode()).digest()
        return (weights @ np.random.default_rng(int.from_bytes(digest[:8], "little")).normal(size=d)).astype(np.float32)

    return ToyRuntime(logits_of, vocab_size=v)


def encode(text):
    return [ord(c) % v for c in text][:20]


def test_calls_follow_from_the_description():
    top = exposed(EndpointSpec("top", 20, True), 576)
    assert top.log_ratios_per_call == 19 and top.calls_per_vector == -(-676 // 19) and top.verdict == "full vectors"
    assert exposed(EndpointSpec("full"), 576).calls_per_vector == 1
    assert exposed(EndpointSpec("chosen", 0, True), 576).calls_per_vector == 677
    assert exposed(EndpointSpec("text", 0, True), 576).calls_per_vector == 676 * 12
    for spec in (EndpointSpec("top", 20), EndpointSpec("chosen"), EndpointSpec("text")):
        assert exposed(spec, 576).calls_per_vector is None
    assert exposed(EndpointSpec("top", 1, True), 576).calls_per_vector == 677  # one token is the chosen one
    assert exposed(EndpointSpec("text"), 576).verdict == "text alone"
    assert (
        exposed(EndpointSpec("top", 5, decimals=2), 9).bits_per_call < exposed(EndpointSpec("top", 5), 9).bits_per_call
    )
    with pytest.raises(ValueError, match="top must be"):
        EndpointSpec("top")


def test_a_bias_brings_back_the_true_log_ratios():
    runtime = toy()
    endpoint = TopEmulator(runtime, encode, EndpointSpec("top", 4, True))
    tokens = np.random.default_rng(1).permutation(v)[:12].tolist()
    ratios, calls = ratios_by_bias(endpoint, "hidden", tokens, top=4, bias=60.0)
    true = log_softmax(np.asarray(runtime._logits_of(tuple(encode("hidden"))), np.float64))
    np.testing.assert_allclose(ratios, true[tokens[1:]] - true[tokens[0]], atol=1e-5)
    assert calls == 4
    weak = TopEmulator(runtime, encode, EndpointSpec("top", 4, True, most_bias=0.01))
    with pytest.raises(CapabilityError, match="did not come back"):
        ratios_by_bias(weak, "hidden", tokens, top=4, bias=60.0)


@pytest.mark.parametrize(
    ("spec", "rank", "verdict"),
    [
        (EndpointSpec("top", 5, True), d, "full vectors"),
        (EndpointSpec("top", 5, True, decimals=3), d, "full vectors"),
        (EndpointSpec("top", 5), None, "part of each vector"),
        (EndpointSpec("chosen", 1), None, "part of each vector"),
        (EndpointSpec("chosen", 1, True), None, "full vectors"),
    ],
)
def test_an_endpoint_is_measured_within_its_budget(spec, rank, verdict):
    endpoint = TopEmulator(toy(), encode, EndpointSpec("top", spec.top, spec.logit_bias, decimals=spec.decimals))
    if not spec.logit_bias:

        def asked(prompt, top, bias, inner=endpoint):  # a server that takes a bias and does not heed it
            return inner(prompt, top, {})
    else:
        asked = endpoint
    prompts = [f"prompt {i}" for i in range(40)]
    found = measure_endpoint(asked, prompts, candidates=range(v), hidden_size=8, top=20, extra=8, most_calls=200)
    assert (found.rank, found.verdict) == (rank, verdict) and found.calls <= 200
    assert found.spec.top == spec.top and found.spec.logit_bias == spec.logit_bias
    if spec.decimals is not None:
        assert found.spec.decimals == spec.decimals
    elif rank:
        assert found.error_nats < 1e-4
    said = exposure_report(found, header={}).verdicts
    assert any("hidden size shows" in line for line in said) == (rank is not None)
    few = measure_endpoint(asked, prompts, candidates=range(v), hidden_size=8, top=20, extra=8, most_calls=3)
    assert few.rank is None and few.calls <= 3


def test_a_model_on_this_machine_shows_its_hidden_size():
    runtime = toy()
    found = measure_runtime(runtime, random_texts(runtime, 80), hidden_size=12, extra=10)
    assert found.rank == d and found.error_nats < 1e-4
    with pytest.raises(DataError, match="needs texts"):
        measure_runtime(runtime, [], hidden_size=12, extra=10)
    with pytest.raises(DataError, match="can be named"):
        measure_endpoint(lambda *a: {}, ["x"], candidates=range(9), hidden_size=8, top=5, extra=8)
    silent = measure_endpoint(lambda *a: {}, ["x"], candidates=range(v), hidden_size=8, top=5, extra=8)
    assert silent.verdict == "text alone"


@pytest.mark.real
@pytest.mark.slow
def test_the_log_probabilities_of_smollm2_come_back_from_676(smollm2_path):
    pytest.importorskip("torch")
    from likely.audit.inversion import hidden_size_of
    from likely.models.load import load_local

    runtime = load_local(str(smollm2_path), runtime="torch", dtype="float32", threads=1).runtime
    size = hidden_size_of(runtime)
    assert size == 576
    weights = runtime.module.get_output_embeddings().weight.detach().double().numpy()
    logprobs = log_softmax(runtime.plain_logits(random_texts(runtime, 12, length=12)[0]).astype(np.float64))
    compressor = LogprobCompressor(runtime.vocab_size, size)
    assert np.abs(compressor.reconstruct(compressor.transform(logprobs), weights) - logprobs).max() < 1e-3
