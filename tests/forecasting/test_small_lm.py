"""The small language model's forecaster: causal, its backbone untouched, its parts what their formulas say."""

from __future__ import annotations

import numpy as np
import pytest
from toy_series import tiny_lm, waves

from likely.errors import CapabilityError, DataError, ModelError
from likely.forecasting.prompts import EmbeddingCache, stats_prompt, time_prompt
from likely.forecasting.series import TimeSeries, split_series
from likely.forecasting.windows import windows_of

torch = pytest.importorskip("torch")
from likely.forecasting.backbone import LMBackbone  # noqa: E402
from likely.forecasting.network import (  # noqa: E402
    MixtureHead,
    NextPatches,
    PatchNetwork,
    balance_loss,
    next_patch_loss,
)
from likely.forecasting.small_lm import SmallLMForecaster  # noqa: E402

PATCH, LOOKBACK = 6, 24


def small(**settings):
    settings = {"patch": PATCH, "lookback": LOOKBACK, "epochs": 1, "experts": 2, "prompt": "none"} | settings
    return SmallLMForecaster(tiny_lm(), **settings)


def network(**settings):
    torch.manual_seed(0)
    return PatchNetwork(PATCH, 32, size=1.0, **settings).double()


@pytest.fixture(scope="module")
def parts():
    return split_series(waves(), LOOKBACK)


# --- the network ------------------------------------------------------------------------------------------------------


def test_one_expert_is_a_linear_map():
    torch.manual_seed(0)
    head, states = MixtureHead(8, 1), torch.randn(3, 4, 8)
    mixed, gates = head(states)
    assert torch.equal(gates, torch.ones(3, 4, 1))
    assert torch.allclose(mixed, torch.nn.functional.linear(states, head.experts[0]))


def test_experts_are_weighted_by_the_router():
    torch.manual_seed(0)
    head, states = MixtureHead(5, 3), torch.randn(2, 2, 5)
    weights = torch.softmax(states @ head.router.weight.T + head.router.bias, -1)
    slow = torch.stack([
        sum(weights[b, n, k] * (head.experts[k] @ states[b, n]) for k in range(3)) for b in range(2) for n in range(2)
    ]).view(2, 2, 5)  # fmt: skip
    assert torch.allclose(head(states)[0], slow, atol=1e-6)


@pytest.mark.parametrize(("shares", "expected"), [([0.25] * 4, 0.0), ([1.0, 0, 0, 0], 3.0), ([0.5, 0.5, 0, 0], 1.0)])
def test_balance_loss_is_zero_where_experts_are_used_alike(shares, expected):
    assert balance_loss(torch.tensor(shares).expand(5, 7, 4)).item() == pytest.approx(expected, abs=1e-6)


def test_balance_loss_pulls_the_router():
    torch.manual_seed(0)
    head, states = MixtureHead(8, 4), torch.randn(16, 8)
    optimizer = torch.optim.Adam(head.router.parameters(), lr=0.05)
    with torch.no_grad():
        head.router.bias[0] = 3.0
    before = balance_loss(head(states)[1]).item()
    for _ in range(60):
        optimizer.zero_grad()
        balance_loss(head(states)[1]).backward()
        optimizer.step()
    assert balance_loss(head(states)[1]).item() < 0.1 * before
    # what the published code would penalise is constant: the sum of a softmax
    assert head(states)[1].abs().sum(-1).detach().numpy() == pytest.approx(1.0, abs=1e-5)


def test_the_gates_ends_are_pure_patch_and_pure_text():
    net = network()
    patches, text = torch.randn(2, 3, PATCH).double(), torch.randn(2, 3, 32).double()
    encoded = net.encode(patches)
    scaled = text / text.pow(2).mean(-1, keepdim=True).sqrt()
    for gate, expected in ((60.0, encoded), (-60.0, scaled), (0.0, (encoded + scaled) / 2)):
        with torch.no_grad():
            net.gate.fill_(gate)
        assert torch.allclose(net.fuse(encoded, text), expected)
    assert torch.equal(net.fuse(encoded, None), encoded)
    assert torch.allclose(network(fusion="add").fuse(encoded, text), encoded + scaled)
    assert torch.equal(network(fusion="none").fuse(encoded, text), encoded)


def test_vectors_begin_at_the_size_that_is_set():
    torch.manual_seed(0)
    net = PatchNetwork(96, 576, size=0.13)
    with torch.no_grad():
        assert net.encode(torch.randn(64, 7, 96)).pow(2).mean().sqrt().item() == pytest.approx(0.13, rel=0.05)


def test_densities_are_torchs():
    mean, scale, values = torch.randn(3, 2, 2, 4, dtype=torch.float64)
    df, gates = 2 + torch.rand(2, 2, 4, dtype=torch.float64) * 5, torch.ones(2, 2, 1)
    gaussian, student = NextPatches(mean, scale, None, gates), NextPatches(mean, scale, df, gates)
    assert torch.allclose(gaussian.log_prob(values), torch.distributions.Normal(mean, scale.exp()).log_prob(values))
    theirs = torch.distributions.StudentT(df, mean, scale.exp()).log_prob(values)
    assert torch.allclose(student.log_prob(values), theirs)
    with pytest.raises(ValueError, match="no density"):
        NextPatches(mean, None, None, gates).log_prob(values)


def test_the_loss_is_in_standardised_units():
    found = NextPatches(torch.zeros(1, 2, 3), None, None, torch.tensor([[[0.9, 0.1], [0.9, 0.1]]]))
    target, mean, std = torch.full((1, 2, 3), 5.0), torch.full((1, 2, 1), 2.0), torch.full((1, 2, 1), 7.0)
    assert next_patch_loss(found, target, mean, std).item() == pytest.approx(9.0)
    assert next_patch_loss(found, target, mean, std, balance=2.0).item() == pytest.approx(9.0 + 2 * 0.64)
    gaussian = NextPatches(torch.zeros(1, 2, 3), torch.zeros(1, 2, 3), None, found.gates)
    expected = -torch.distributions.Normal(2.0, 7.0).log_prob(torch.tensor(5.0)).item()
    assert next_patch_loss(gaussian, target, mean, std).item() == pytest.approx(expected)


# --- the backbone -----------------------------------------------------------------------------------------------------


def test_fewer_layers_are_the_models_own_layers():
    module = tiny_lm().runtime.module
    ids = torch.tensor([[1, 5, 9, 2]])
    with torch.no_grad():
        states = module.model(ids, output_hidden_states=True, use_cache=False).hidden_states
        vectors = module.model.embed_tokens(ids)
        assert torch.allclose(LMBackbone(tiny_lm())(vectors), states[-1], atol=1e-6)
        one = LMBackbone(tiny_lm(), layers=1)
        assert torch.allclose(one(vectors), module.model.norm(states[1]), atol=1e-6)
    assert one.layers == 1 and module.config.num_hidden_layers == 2 and len(module.model.layers) == 2
    for layers in (0, 3):
        with pytest.raises(ModelError, match=r"must lie in 1\.\.2"):
            LMBackbone(tiny_lm(), layers=layers)


def test_texts_are_their_last_tokens_states_whatever_stands_beside_them():
    backbone = LMBackbone(tiny_lm())
    texts = ["mean 1.25", "std", "From 2024-01-01 00:00 to 2024-01-01 05:00"]
    together = backbone.embed_texts(texts)
    for text, vector in zip(texts, together, strict=True):
        ids = torch.tensor([tiny_lm().tokenizer.encode(text)])
        with torch.no_grad():
            alone = tiny_lm().runtime.module.model(ids, use_cache=False).last_hidden_state[0, -1]
        assert np.allclose(vector, alone.numpy(), atol=1e-5)


@pytest.mark.parametrize("kind", ["frozen", "lora", "random", "none"])
def test_the_models_weights_stay_as_they_are(parts, kind):
    module = tiny_lm().runtime.module
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    asked = [p.requires_grad for p in module.parameters()]
    forecaster = small(backbone=kind).fit(*parts[:2], horizon=PATCH)
    assert all(torch.equal(p, before[name]) for name, p in module.named_parameters())
    assert [p.requires_grad for p in module.parameters()] == asked
    assert all(p.grad is None for p in module.parameters())
    trained = forecaster.backbone_.parameters()
    assert bool(trained) == (kind == "lora")
    if kind == "lora":  # B begins at 0
        assert any(p.abs().max() > 0 for name, p in trained.items() if "lora_B" in name)
    else:
        assert all(p.grad is None for p in forecaster.backbone_.decoder.parameters())


def test_random_weights_are_the_seeds():
    one, again, other = (LMBackbone(tiny_lm(), kind="random", seed=seed) for seed in (1, 1, 2))
    vectors = torch.randn(1, 3, 32)
    with torch.no_grad():
        assert torch.equal(one(vectors), again(vectors))
        assert not torch.allclose(one(vectors), other(vectors))
        assert not torch.allclose(one(vectors), LMBackbone(tiny_lm())(vectors))
    assert one.revision == again.revision != other.revision


# --- causality and rolling --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backbone", ["frozen", "lora", "random", "none"])
def test_later_patches_change_no_earlier_prediction(parts, backbone):
    forecaster = small(backbone=backbone, norm="causal").fit(parts[0], horizon=PATCH)
    patches = np.random.default_rng(0).normal(size=(2, 4, PATCH))
    changed = patches.copy()
    changed[:, 2] += 3.0
    one, mean, std = forecaster._read(patches, None)
    other, mean2, std2 = forecaster._read(changed, None)
    assert torch.allclose(one.mean[:, :2], other.mean[:, :2], atol=1e-6)
    assert np.array_equal(mean[:, :2], mean2[:, :2]) and np.array_equal(std[:, :2], std2[:, :2])
    assert not torch.allclose(one.mean[:, 2], other.mean[:, 2], atol=1e-3)
    lookback = small(backbone=backbone, norm="lookback").fit(parts[0], horizon=PATCH)
    assert not np.array_equal(lookback._read(patches, None)[1], lookback._read(changed, None)[1])  # as published


def test_rolled_patches_are_described_by_their_forecast(parts):
    """The published code describes the true future: a forecaster that does is caught by hiding the future."""

    class Leaky(SmallLMForecaster):
        def describe(self, windows, patches, first):
            if first * self.patch >= windows.lookback:
                patches = windows.future[:, first * self.patch - windows.lookback :][:, : self.patch][:, None]
            return super().describe(windows, patches, first)

    train, _, test = parts
    settings = {"patch": PATCH, "lookback": LOOKBACK, "epochs": 1, "layers": 1}
    found = {}
    for kind in (SmallLMForecaster, Leaky):
        forecaster = kind(tiny_lm(), **settings).fit(train, horizon=PATCH)
        series = forecaster.scale_.apply(test)
        moved = TimeSeries(series.times, np.where(np.arange(len(series))[:, None] < LOOKBACK, 1, 5) * series.values,
                           series.names)  # fmt: skip
        found[kind] = [
            forecaster.forecast(windows_of(s, LOOKBACK, 3 * PATCH).take(slice(0, 1)), 3 * PATCH)
            for s in (series, moved)
        ]
    honest, leaky = found[SmallLMForecaster], found[Leaky]
    assert np.array_equal(honest[0], honest[1])
    assert np.allclose(leaky[0][:, :PATCH], leaky[1][:, :PATCH]) and not np.allclose(leaky[0], leaky[1])
    assert not np.allclose(leaky[0][:, 2 * PATCH :], honest[0][:, 2 * PATCH :])


def test_texts_of_rolled_patches_stand_at_their_times(parts):
    train, _, test = parts
    told = []

    class Listening(SmallLMForecaster):
        def describe(self, windows, patches, first):
            told.append((first, super().describe(windows, patches, first)))
            return told[-1][1]

    forecaster = Listening(tiny_lm(), patch=PATCH, lookback=LOOKBACK, epochs=1, layers=1).fit(train, horizon=PATCH)
    told.clear()
    made = forecaster.predict(test.rows(0, LOOKBACK), 3 * PATCH)
    assert [first for first, _ in told] == [0, 4, 5]
    means = ((made.mean - forecaster.scale_.mean) / forecaster.scale_.std)[PATCH : 2 * PATCH]
    for c, text in enumerate(told[2][1]):
        expected = stats_prompt(made.times[PATCH], made.times[2 * PATCH - 1], means[:, c])
        assert text.split(": ")[0] == expected.split(": ")[0]
        said, wanted = ([float(part.split()[1]) for part in t.split(": ")[1].split(", ")] for t in (text, expected))
        assert said == pytest.approx(wanted, abs=2e-4)


# --- learning ---------------------------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_forecaster(parts):
    one, again, other = (small(seed=seed).fit(*parts[:2], horizon=PATCH) for seed in (0, 0, 1))
    assert one.losses_ == again.losses_ != other.losses_
    assert np.array_equal(one.predict(parts[2], 9).mean, again.predict(parts[2], 9).mean)


def test_the_state_of_the_lowest_validation_error_is_kept(parts):
    forecaster = small(epochs=6, patience=2, lr=0.05, backbone="none").fit(*parts[:2], horizon=PATCH)
    val = forecaster.scale_.apply(parts[1])
    assert forecaster._error(forecaster._stop_windows(val), None) == pytest.approx(
        min(forecaster.validation_), rel=1e-5
    )


def test_log_probabilities_are_densities_in_the_units_of_the_data(parts):
    train, val, test = parts
    forecaster = small(likelihood="student_t", epochs=4, backbone="none").fit(train, val, horizon=PATCH)
    history, future = test.rows(0, LOOKBACK + 3), test.rows(LOOKBACK + 3, LOOKBACK + 3 + 8)
    found = forecaster.log_prob(history, future)
    assert found.shape == (8, 2) and np.isfinite(found).all()
    # each conditional density integrates to one over its value
    grid = np.linspace(-15, 25, 161)
    dense = []
    for value in grid:
        values = future.values[:1].copy()
        values[0, 1] = value
        dense.append(forecaster.log_prob(history, TimeSeries(future.times[:1], values, future.names))[0, 1])
    assert np.trapezoid(np.exp(dense), grid) == pytest.approx(1.0, abs=0.03)
    # the same data in other units: densities are divided by the factor
    scaled = [TimeSeries(s.times, 10 * s.values, s.names) for s in (train, val, history, future)]
    other = small(likelihood="student_t", epochs=4, backbone="none").fit(*scaled[:2], horizon=PATCH)
    assert np.allclose(other.log_prob(*scaled[2:]), found - np.log(10), atol=1e-3)
    with pytest.raises(CapabilityError, match="no density"):
        small().fit(train, horizon=PATCH).log_prob(history, future)
    with pytest.raises(ValueError, match="the lookback is 24"):
        forecaster.log_prob(test.rows(0, 5), test.rows(5, 9))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"lookback": 25}, "multiple of patch"), ({"lookback": 3}, "multiple of patch"), ({"experts": 0}, "experts"),
        ({"fusion": "sum"}, "unknown fusion"), ({"prompt": "stat"}, 'did you mean "stats"'),
        ({"backbone": "frosen"}, 'did you mean "frozen"'), ({"likelihood": "laplace"}, "unknown likelihood"),
        ({"balance": -1.0}, "balance"), ({"lr": 0.0}, "lr must be > 0"), ({"norm": "none"}, "unknown norm"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be_are_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        small(**settings)


def test_a_forecaster_of_other_weights_is_refused(parts, tmp_path, monkeypatch):
    from types import SimpleNamespace

    from likely.forecasting import backbone
    from likely.forecasting.selection import load_forecaster

    small().fit(parts[0], horizon=PATCH).save(tmp_path / "one.safetensors")
    other = SimpleNamespace(
        runtime=SimpleNamespace(module=tiny_lm().runtime.module, revision="other"), tokenizer=tiny_lm().tokenizer
    )
    monkeypatch.setattr(backbone, "trainable", lambda model: other)
    with pytest.raises(ModelError, match="not the weights"):
        load_forecaster(tmp_path / "one.safetensors")


# --- prompts ----------------------------------------------------------------------------------------------------------


def test_prompts_say_what_a_patch_holds():
    first, last = np.datetime64("2017-01-01T00:00:00"), np.datetime64("2017-01-01T23:30:00")
    assert time_prompt(first, last) == "From 2017-01-01 00:00 to 2017-01-01 23:30"
    told = stats_prompt(first, last, np.array([1.0, 2.0, 4.5]))
    assert told == "From 2017-01-01 00:00 to 2017-01-01 23:30: mean 2.5000, std 1.4720, change 3.5000"


def test_each_text_is_embedded_once(tmp_path):
    asked = []

    def embed(texts):
        asked.extend(texts)
        return np.array([[len(text), text.count("a")] for text in texts], np.float32)

    cache = EmbeddingCache(embed, "one", tmp_path / "cache.safetensors")
    assert cache.vectors(["a", "bb", "a"]).tolist() == [[1, 1], [2, 0], [1, 1]]
    assert cache.vectors(["caa", "bb"]).tolist() == [[3, 2], [2, 0]]
    assert asked == ["a", "bb", "caa"] and len(cache) == 3
    cache.save()
    again = EmbeddingCache(embed, "one", tmp_path / "cache.safetensors")
    assert again.vectors(["caa"]).tolist() == [[3, 2]] and len(asked) == 3
    assert len(EmbeddingCache(embed, "two", tmp_path / "cache.safetensors")) == 0
    (tmp_path / "cache.safetensors").write_bytes(b"no")
    with pytest.raises(DataError, match="not a cache of prompts"):
        EmbeddingCache(embed, "one", tmp_path / "cache.safetensors")


@pytest.mark.real
@pytest.mark.slow
def test_a_real_model_forecasts(smollm2_path):
    train, val, test = split_series(waves(600, 1), 96)
    forecaster = SmallLMForecaster(str(smollm2_path), patch=24, lookback=96, layers=1, epochs=3, prompt="time")
    made = forecaster.fit(train, val, horizon=24).predict(test, 24)
    assert np.isfinite(made.mean).all() and (made.low < made.mean).all()
    assert forecaster.validation_[-1] < 1.0


def test_little_data_are_read_often_enough(parts):
    settings = {"epochs": None, "backbone": "none", "batch": 64, "patience": 99}
    forecaster = small(**settings).fit(parts[0].rows(0, 90), parts[1], horizon=PATCH)
    assert 200 <= len(forecaster.losses_) < 230 and len(forecaster.validation_) <= 12
