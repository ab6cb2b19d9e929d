"""Additive codes: exact where they can be, never worse from step to step, better than integers at equal bits."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from tiny_gguf import write_tiny_llama

from likely.compression.calibration_set import CalibrationSet
from likely.compression.evaluate import compare
from likely.compression.methods import check_target, compress
from likely.compression.packed_folder import additive_config
from likely.compression.quantisers.additive.fit import decode, encode, encode_in_order, fit_additive, output_loss
from likely.compression.quantisers.additive.tensor import AdditiveScheme, AdditiveTensor, parse_additive
from likely.compression.quantisers.gptq import output_error, round_by_gptq
from likely.compression.quantisers.walk import second_moment
from likely.compression.quantized import round_to_nearest
from likely.compression.schemes import parse_scheme
from likely.formats.safetensors_file import read_entries
from likely.models.load import load_local


def weights_and_moment(rows=24, width=48, tokens=400, seed=0):
    rng = np.random.default_rng(seed)
    mixed = rng.standard_normal((tokens, width)) @ (np.eye(width) + 0.5 * rng.standard_normal((width, width)))
    return rng.standard_normal((rows, width)).astype(np.float32), second_moment(torch.from_numpy(mixed))


def made_of(scheme, rows=6, groups=4, seed=0, dtype=np.float64):
    """Codebooks and codes, and the weights that they are."""
    rng = np.random.default_rng(seed)
    books = rng.standard_normal((scheme.codebooks, 1 << scheme.bits, scheme.group_size)).astype(np.float16)
    codes = rng.integers(0, 1 << scheme.bits, (rows, groups, scheme.codebooks))
    scales = rng.uniform(0.5, 2, rows).astype(np.float16)
    return codes, books.astype(dtype), scales.astype(dtype)


def slow_dequantize(codes, books, scales):
    rows, groups, count = codes.shape
    found = np.zeros((rows, groups, books.shape[2]))
    for i, k, m in itertools.product(range(rows), range(groups), range(count)):
        found[i, k] += scales[i] * books[m, codes[i, k, m]]
    return found.reshape(rows, -1)


def test_values_are_scaled_sums_of_codewords():
    codes, books, scales = made_of(AdditiveScheme(3, 4, 4))
    expected = slow_dequantize(codes, books, scales)
    tensor = AdditiveTensor(
        codes.astype(np.int16), books.astype(np.float32), scales.astype(np.float32), parse_additive("3x4g4")
    )
    np.testing.assert_allclose(decode(codes, books, scales), expected, rtol=1e-12)
    np.testing.assert_allclose(tensor.dequantize(), expected, rtol=1e-5, atol=1e-6)
    assert tensor.shape == (6, 16)


@pytest.mark.parametrize("text", ["2x8g4", "1x3g2", "2x11g8", "1x15g1"])
def test_packed_codes_decode_to_the_same_weights(text):
    scheme = parse_additive(text)
    codes, books, scales = made_of(scheme, dtype=np.float32)
    tensor = AdditiveTensor(codes.astype(np.int16), books, scales, scheme)
    packed = tensor.pack()
    assert sum(part.nbytes for part in (packed.codes, packed.codebooks, packed.scales)) == tensor.nbytes
    assert tensor.bits_per_weight == 8 * tensor.nbytes / tensor.dequantize().size
    back = packed.unpack()
    assert back.scheme == scheme and np.array_equal(back.codes, codes)
    assert np.array_equal(back.dequantize(), tensor.dequantize())


def test_a_wide_beam_finds_the_best_codes_of_a_group():
    """Against every combination, the other groups as they are."""
    scheme = AdditiveScheme(2, 3, 4)
    _, books, scales = made_of(scheme, rows=5, groups=1)
    weights, moment = weights_and_moment(5, 4, seed=3)
    h = moment.numpy()
    start = np.zeros((5, 1, 2), np.int64)
    found = encode(weights.astype(np.float64), start, books, scales, h, beam=8)
    for i in range(5):
        rows = {}
        for codes in itertools.product(range(8), repeat=2):
            error = weights[i] - scales[i] * (books[0, codes[0]] + books[1, codes[1]])
            rows[codes] = error @ h @ error
        assert tuple(found[i, 0]) == min(rows, key=rows.get)


@pytest.mark.parametrize("beam", [1, 4])
def test_no_group_raises_the_loss(beam):
    scheme = AdditiveScheme(2, 4, 8)
    codes, books, scales = made_of(scheme, rows=24, groups=6, seed=1)
    weights, moment = weights_and_moment()
    h, w = moment.numpy(), weights.astype(np.float64)
    losses = [output_loss(w, codes, books, scales, h)]
    for _ in range(3):
        codes = encode(w, codes, books, scales, h, beam=beam)
        losses.append(output_loss(w, codes, books, scales, h))
    assert losses[1] < 0.7 * losses[0] and losses == sorted(losses, reverse=True)


def test_white_inputs_leave_nothing_to_make_up_for():
    """With H = c I both orders choose the nearest sum for each group by itself."""
    scheme = AdditiveScheme(1, 5, 4)
    codes, books, scales = made_of(scheme, rows=24, groups=12)
    weights, h = weights_and_moment()[0].astype(np.float64), 3.0 * np.eye(48)
    distances = ((weights.reshape(24, 12, 1, 4) - scales[:, None, None, None] * books[0]) ** 2).sum(-1)
    for found in (encode(weights, codes, books, scales, h), encode_in_order(weights, codes, books, scales, h)):
        assert np.array_equal(found[:, :, 0], distances.argmin(-1))


def test_groups_of_one_in_order_are_gptq():
    """Codebook: the integers; the same codes as GPTQ gives on a grid of step 1."""
    from likely.compression.quantisers.gptq import round_in_order

    weights, moment = weights_and_moment(seed=2)
    w, levels = torch.from_numpy(weights).double(), torch.arange(-32, 32).double()
    expected = round_in_order(w, moment, lambda j, values: values.round().clip(-32, 31))
    books, ones = levels.numpy()[None, :, None], np.ones(24)
    codes = encode_in_order(w.numpy(), np.zeros((24, 48, 1), np.int64), books, ones, moment.numpy())
    np.testing.assert_allclose(decode(codes, books, ones), expected.numpy())


@pytest.mark.parametrize("text", ["2x4", "1x6g4", "3x3"])
def test_no_step_raises_the_loss(text):
    weights, moment = weights_and_moment(48, 48)
    losses = []
    tensor = fit_additive(weights, moment, parse_additive(text), rounds=5, losses=losses)
    assert len(losses) > 4 and losses == sorted(losses, reverse=True) and losses[-1] < 0.8 * losses[0]
    scaled = output_error(weights, tensor.dequantize(), moment) / float(moment.diagonal().mean())
    assert scaled == pytest.approx(losses[-1], rel=1e-4)


def test_weights_made_of_codewords_are_found_exactly():
    """Rows of the same norm: each holds every codeword once."""
    rng = np.random.default_rng(0)
    words = rng.standard_normal((16, 8)).astype(np.float32)
    weights = np.stack([words[rng.permutation(16)].reshape(-1) for _ in range(20)])
    _, moment = weights_and_moment(20, 128)
    found = fit_additive(weights, moment, parse_additive("1x4")).dequantize()
    np.testing.assert_allclose(found, weights, atol=2e-3 * np.abs(weights).max())  # fp16


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_single_weights_by_kmeans_beat_rounding_to_nearest(bits):
    for seed in range(1):
        weights, white = np.random.default_rng(seed).standard_normal((16, 512)).astype(np.float32), torch.eye(512)
        ours = fit_additive(weights, white, AdditiveScheme(1, bits, 1)).dequantize()
        nearest = round_to_nearest(weights, parse_scheme(f"w{bits}")).dequantize()
        assert output_error(weights, ours, white) < output_error(weights, nearest, white)


def test_two_bits_lose_less_than_gptq_with_two_bits():
    weights, moment = weights_and_moment(256, 64, 600)
    ours = fit_additive(weights, moment, parse_additive("2x8")).dequantize()
    theirs = round_by_gptq(weights, moment, parse_scheme("w2g64")).dequantize()
    assert output_error(weights, ours, moment) < 0.7 * output_error(weights, theirs, moment)


def test_rows_and_inputs_without_weight():
    weights, moment = weights_and_moment()
    weights[3] = 0
    moment[5], moment[:, 5] = 0, 0
    tensor = fit_additive(weights, moment, parse_additive("1x4"))
    assert np.isfinite(tensor.dequantize()).all() and (tensor.scales > 0).all()


def test_what_is_refused():
    weights, moment = weights_and_moment()
    with pytest.raises(ValueError, match="groups of 7 do not divide rows of 48"):
        fit_additive(weights, moment, AdditiveScheme(1, 4, 7))
    with pytest.raises(ValueError, match="beam must be at least 1, got 0"):
        fit_additive(weights, moment, parse_additive("1x4"), beam=0)
    weights[0, 0] = np.inf
    with pytest.raises(ValueError, match="q_proj"):
        fit_additive(weights, moment, parse_additive("1x4"), name="q_proj")
    for text, said in (("w4g64", "as in 2x8"), ("2x16", "between 1 and 15, got 16"), ("9x8", "between 1 and 8"),
                       ("2x8g0", "at least 1, got 0")):  # fmt: skip
        with pytest.raises(ValueError, match=said):
            parse_additive(text)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    source = write_tiny_llama(tmp_path_factory.mktemp("additive") / "tiny.gguf", tied=True)
    ids = np.random.default_rng(0).integers(3, 300, (8, 32))
    return compress(source, method="additive", scheme="3x6", calibration=CalibrationSet(ids, "made up", "random ids"))


def test_as_a_method_it_keeps_the_distribution_and_every_file_holds_it(made, tmp_path):
    data = CalibrationSet(np.random.default_rng(1).integers(3, 300, (2, 24)), "made up", "random ids")
    original = load_local(made.source, runtime="torch", dtype="float32")
    assert 0 < compare(original, made, data).kl < 0.3
    assert made.settings["scheme"] == "3x6" and made.settings["beam"] == 1 and "bits per quantised" in made.summary()
    for target in (tmp_path / "x.gguf", tmp_path / "folder"):
        made.export(target)
        assert compare(made, load_local(target, runtime="torch", dtype="float32"), data).kl < 2e-4


def test_the_packed_folder_holds_the_codes_of_every_matrix(made, tmp_path):
    made.export(tmp_path / "packed", packed=True)
    [file] = (tmp_path / "packed").glob("*.safetensors")
    entries = read_entries(file)
    stored = {name: entry for name, entry in entries.items() if name.endswith((".codes", ".codebooks", ".scales"))}
    assert len(stored) == 3 * len(made.quantized) and not set(made.quantized) & set(entries)
    assert sum(e.end - e.start for e in stored.values()) == sum(t.nbytes for t in made.quantized.values())
    name, tensor = next(iter(made.quantized.items()))
    entry = entries[name.removesuffix("weight") + "codes"]
    codes = np.fromfile(entry.file, np.int8, offset=entry.start, count=entry.end - entry.start)
    assert entry.dtype == "I8" and np.array_equal(codes.reshape(entry.shape), tensor.pack().codes)
    assert additive_config(tensor.scheme)["nbits_per_codebook"] == 6


def test_check_target_reads_additive_schemes(made, tmp_path):
    for name in ("new.gguf", "new"):
        check_target(
            made.source, tmp_path / name, method="additive", scheme=None, overwrite=False, packed=name == "new"
        )
    with pytest.raises(ValueError, match='"2x8" is not understood'):
        check_target(made.source, tmp_path / "new.gguf", method="gptq", scheme="2x8", overwrite=False)
