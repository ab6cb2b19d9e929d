"""Activation statistics: as numpy and scipy compute them on all values, in any pieces."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from random_decoders import calibration, random_decoder, windows
from scipy.stats import kurtosis

from likely.compression.statistics import (
    INPUTS,
    ActivationStats,
    ChannelMoments,
    agreement,
    agreement_table,
    divergent_channels,
    outlier_table,
    summarise,
)
from likely.compression.transforms import inject_outliers

RNG = np.random.default_rng(0)
HEAVY = RNG.standard_t(3, (4000, 6)) * np.array([1, 1, 1, 5, 0.2, 40])


def test_moments_are_those_of_all_values():
    found = ChannelMoments.of(HEAVY)
    np.testing.assert_allclose(found.absmax, np.abs(HEAVY).max(0))
    np.testing.assert_allclose(found.mean_abs, np.abs(HEAVY).mean(0))
    np.testing.assert_allclose(found.sums[1], (HEAVY**2).sum(0))
    np.testing.assert_allclose(found.sums[3], (HEAVY**4).sum(0))
    np.testing.assert_allclose(found.token_max, np.abs(HEAVY).max(1))
    assert found.kurtosis == pytest.approx(kurtosis(HEAVY.reshape(-1)), rel=1e-6)
    assert ChannelMoments.of(HEAVY + 3).kurtosis == pytest.approx(kurtosis(HEAVY.reshape(-1) + 3), rel=1e-6)
    assert found.channel_ratio == pytest.approx(np.abs(HEAVY).max() / np.median(np.abs(HEAVY).max(0)))
    assert found.top_energy == pytest.approx((HEAVY[:, 5] ** 2).sum() / (HEAVY**2).sum())


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99, 0.999])
def test_quantiles_are_within_one_percent(share):
    assert ChannelMoments.of(HEAVY).quantile(share) == pytest.approx(np.quantile(np.abs(HEAVY), share), rel=0.01)


def test_two_halves_merge_to_the_whole():
    whole, halves = ChannelMoments.of(HEAVY), ChannelMoments.of(HEAVY[:1500]).merged(ChannelMoments.of(HEAVY[1500:]))
    for name in ("absmax", "sums", "abs_sum", "large", "token_max", "bins"):
        np.testing.assert_allclose(getattr(halves, name), getattr(whole, name), rtol=1e-12)
    assert halves.record() == pytest.approx(whole.record())


def test_a_constant_has_no_kurtosis_and_nothing_at_all_no_metrics_that_fail():
    assert ChannelMoments.of(np.ones((5, 2))).kurtosis == 0
    zero = ChannelMoments.of(np.zeros((5, 2))).record()
    assert zero["absmax"] == 0 and zero["channel_ratio"] == 1 and zero["q5"] == 0


def test_a_pass_over_the_model_sees_every_input():
    decoder, ids = random_decoder(), windows(3, 10)
    seen = []
    hook = decoder.blocks[1].down.register_forward_pre_hook(lambda _, args: seen.append(args[0].double().numpy()))
    with torch.no_grad():
        decoder.module(input_ids=torch.from_numpy(ids), use_cache=False)
    hook.remove()
    stats = ActivationStats.collect(decoder, ids, hessians=True)
    values = seen[0].reshape(-1, 64)
    np.testing.assert_allclose(stats.all(1, "down").absmax, np.abs(values).max(0), rtol=1e-5)
    np.testing.assert_allclose(stats.hessians[1, "down"], values.T @ values, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(stats.first[1, "down"].absmax, np.abs(seen[0][:, 0]).max(0), rtol=1e-5)
    assert stats.first[1, "down"].count == 3 and stats.rest[1, "down"].count == 27
    assert {name for _, name in stats.rest} == set(INPUTS) and stats.layers == 2


def test_half_passes_merge_and_padding_changes_nothing():
    decoder, ids = random_decoder(), windows(4, 10)
    whole = ActivationStats.collect(decoder, ids, hessians=True)
    halves = ActivationStats.collect(decoder, ids[:2], hessians=True).merged(
        ActivationStats.collect(decoder, ids[2:], hessians=True)
    )
    padded = np.pad(ids, ((0, 0), (0, 3)))
    masked = ActivationStats.collect(decoder, padded, mask=np.arange(13)[None].repeat(4, 0) < 10, hessians=True)
    for other in (halves, masked):
        for key, moments in whole.rest.items():
            np.testing.assert_allclose(other.rest[key].sums, moments.sums, rtol=1e-9, atol=1e-9)
            np.testing.assert_allclose(other.hessians[key], whole.hessians[key], rtol=1e-9, atol=1e-9)


def test_outlier_channels_are_large_in_many_layers_and_positions():
    decoder = random_decoder()
    assert ActivationStats.collect(decoder, windows()).outlier_channels("attention") == []
    chosen = {0: np.array([3]), 1: np.array([3])}
    inject_outliers(decoder, beta=100, chosen=chosen)
    assert ActivationStats.collect(decoder, windows()).outlier_channels("attention") == [3]


def test_the_table_names_set_layer_input_and_tokens():
    decoder = random_decoder()
    sets = {"one": calibration(2, 8), "two": calibration(2, 8, seed=5)}
    rows = outlier_table(decoder, sets)
    assert len(rows) == 2 * 2 * len(INPUTS) * 3
    assert {row["tokens"] for row in rows} == {"all", "first", "rest"} and all(
        np.isfinite(row["kurtosis"]) for row in rows
    )
    with_first = next(r for r in rows if (r["layer"], r["input"], r["tokens"]) == (1, "mlp", "all"))
    without = next(r for r in rows if (r["layer"], r["input"], r["tokens"]) == (1, "mlp", "rest"))
    assert with_first["absmax"] >= without["absmax"]


def test_a_set_agrees_with_itself_and_saturates_nothing():
    decoder = random_decoder()
    stats = ActivationStats.collect(decoder, windows(2, 8))
    for row in agreement(stats, stats):
        assert (row["spearman"], row["range_ratio"], row["saturation"]) == (pytest.approx(1), 1, 0)
    small = ActivationStats.collect(decoder, windows(1, 2))
    assert any(row["saturation"] > 0 and row["range_ratio"] < 1 for row in agreement(small, stats))


def test_a_summary_takes_the_largest_and_the_middle_of_the_layers():
    def row(layer, tokens, absmax, kurtosis):
        return {"set": "a", "layer": layer, "input": "mlp", "tokens": tokens, "absmax": absmax, "kurtosis": kurtosis,
                "channel_ratio": 2.0, "top_energy": 0.5}  # fmt: skip

    rows = [row(n, tokens, 10.0 * n + (tokens == "first"), n) for n in range(3) for tokens in ("all", "first", "rest")]
    [line] = summarise(rows)
    assert (line.first, line.rest, line.kurtosis, line.channel_ratio) == (21.0, 20.0, 1.0, 2.0)


def test_the_table_of_agreement_takes_medians_and_leaves_first_tokens_out_where_asked():
    decoder = random_decoder()
    stats = {"one": ActivationStats.collect(decoder, windows(2, 8)), "two": ActivationStats.collect(decoder, windows())}
    pairs = [(a.calibrated, a.used) for a in agreement_table(stats, stats)]
    assert len(pairs) == 2 * len(INPUTS) and set(pairs) == {("one", "two"), ("two", "one")}
    rows = [row for row in agreement(stats["one"], stats["two"], first=False) if row["input"] == "down"]
    [line] = [
        a for a in agreement_table({"one": stats["one"]}, {"two": stats["two"]}, first=False) if a.input == "down"
    ]
    assert line.spearman == pytest.approx(np.median([row["spearman"] for row in rows]))
    assert line.saturation == max(row["saturation"] for row in rows)
    ours, theirs = stats["one"].rest[0, "down"].absmax, stats["two"].rest[0, "down"].absmax
    assert rows[0]["range_ratio"] == pytest.approx(ours.max() / theirs.max())


def test_outliers_that_depend_on_the_data_stand_where_two_sets_differ_most():
    decoder = random_decoder()
    one, other = (ActivationStats.collect(decoder, windows(4, 8, seed=s)) for s in (1, 2))
    for moments in (other.rest[0, "attention"], other.rest[0, "mlp"]):
        moments.absmax[[5, 9]] *= (30, 1 / 30)
    chosen = divergent_channels(one, other, 2)
    assert chosen[0].tolist() == [5, 9] and len(chosen[1]) == 2
    ratio = np.abs(np.log(one.rest[1, "attention"].absmax / other.rest[1, "attention"].absmax))
    ratio += np.abs(np.log(one.rest[1, "mlp"].absmax / other.rest[1, "mlp"].absmax))
    assert set(chosen[1]) == set(np.argsort(ratio)[-2:])
    before = ActivationStats.collect(decoder, windows())
    inject_outliers(decoder, beta=50, chosen=chosen)
    after = ActivationStats.collect(decoder, windows())
    for layer, name in ((0, "attention"), (1, "mlp")):
        factors = np.ones(len(before.all(layer, name).absmax))
        factors[chosen[layer]] = 50
        np.testing.assert_allclose(after.all(layer, name).absmax, factors * before.all(layer, name).absmax, rtol=1e-4)
        assert after.all(layer, name).kurtosis > before.all(layer, name).kurtosis
    with pytest.raises(ValueError, match="channels must lie between 1 and 32"):
        divergent_channels(one, other, 0)
