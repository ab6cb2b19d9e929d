"""Trajectories are plain greedy decoding; an inverter learns prompts from them and nothing from pairs that are not."""

from __future__ import annotations

import hashlib
import re

import numpy as np
import pytest

from likely.audit.inversion import (
    Inverter,
    InverterConfig,
    InverterInput,
    NoisyLogprobs,
    RoundedLogprobs,
    SavedInverter,
    TextOnly,
    TopTokensOnly,
    Trajectories,
    Undefended,
    collect_trajectories,
    price_defences,
    recover_with,
    recovery,
    word_f1,
)
from likely.audit.inversion.inverter import PromptPieces
from likely.audit.inversion.recovered import RecoveryPlan, audit_recovery, kept_trajectories
from likely.errors import DataError
from likely.runtimes.toy import ToyRuntime, exact_logprob

V, STEPS = 30, 5
TOKENS = (3, 9, 14, 20, 21, 28)


@pytest.fixture(scope="module")
def toy():
    return ToyRuntime.random(V, seed=2, order=6)


def prompts_of(count, seed=0):
    rng = np.random.default_rng(seed)
    words = ("red", "blue", "cat", "dog", "runs", "sleeps", "fast", "now")
    found = dict.fromkeys(" ".join(rng.choice(words, 3, replace=False)) + "." for _ in range(9 * count))
    return list(found)[:count]


def tokens_of(prompt):
    """Six tokens that differ from those of any other prompt."""
    return [1, *(b % V for b in hashlib.sha256(prompt.encode()).digest()[:5])]


def test_trajectories_are_plain_greedy_decoding_in_any_batch(toy):
    prompts = [[1, 2, 7, 5], [1, 2, 7], [1, 2, 9, 9, 4]]
    found = collect_trajectories(toy, prompts, TOKENS, STEPS, top=3, batch=2)
    for i, prompt in enumerate(prompts):
        text = list(prompt)
        for step in range(STEPS):
            row = np.asarray(toy._logits_of(tuple(text)), np.float64)
            assert found.top_ids[i, step].tolist() == np.argsort(-row, kind="stable")[:3].tolist()
            for j, token in enumerate(TOKENS):
                assert found.selected[i, step, j] == pytest.approx(exact_logprob(toy, [token], given=text), abs=1e-5)
            text.append(int(row.argmax()))
    one = collect_trajectories(toy, prompts, TOKENS, STEPS, top=3, batch=1)
    np.testing.assert_array_equal(one.selected, found.selected)
    assert np.isfinite(found.selected).all() and toy.free_tokens() == toy.limits.tokens_held
    assert found.first(2).selected.shape[1] == 2 and len(found.of(slice(1, None))) == 2


def test_an_end_token_does_not_end_a_trajectory():
    always = ToyRuntime(lambda prefix: np.eye(V, dtype=np.float32)[4] * 9, vocab_size=V)
    found = collect_trajectories(always, [[1]], TOKENS, STEPS)
    assert (found.top_ids[:, :, 0] == 4).all() and found.selected.shape == (1, STEPS, len(TOKENS))


@pytest.mark.parametrize(
    ("prompts", "steps", "error"),
    [([], 2, "one token or more"), ([[1], []], 2, "one token or more"), ([[1] * 60], 9, "the context has 64")],
)
def test_bad_prompts_are_one_line(toy, prompts, steps, error):
    with pytest.raises(DataError, match=error):
        collect_trajectories(toy, prompts, TOKENS, steps)


def test_kept_parts_are_not_computed_again_and_hold_no_prompt(toy, tmp_path):
    prompts = [tokens_of(p) for p in prompts_of(8)]
    first = kept_trajectories(toy, prompts, TOKENS, 3, folder=tmp_path)
    calls = toy.calls
    again = kept_trajectories(toy, prompts, TOKENS, 3, folder=tmp_path)
    assert toy.calls == calls
    np.testing.assert_array_equal(first.selected, again.selected)
    [file] = tmp_path.iterdir()
    with np.load(file, allow_pickle=False) as held:
        assert set(held) == {"selected", "top_ids", "top_logprobs"}
    kept_trajectories(toy, prompts, TOKENS, 4, folder=tmp_path)
    assert toy.calls > calls


def test_defences_return_what_they_say(toy):
    seen = collect_trajectories(toy, [[1, 2, 3], [1, 5, 6]], TOKENS, 3)
    plain = Undefended().returned(seen).ratios
    np.testing.assert_allclose(plain, seen.selected[..., 1:] - seen.selected[..., :1])
    rounded = RoundedLogprobs(0).returned(seen).ratios
    assert (rounded == np.round(rounded)).all() and np.abs(rounded - plain).max() <= 1
    assert 0 < RoundedLogprobs(1).error_nats(seen) <= 0.05 and Undefended().error_nats(seen) == 0
    noisy = NoisyLogprobs(0.5)
    np.testing.assert_array_equal(noisy.returned(seen).ratios, noisy.returned(seen).ratios)
    assert noisy.error_nats(seen) == pytest.approx(0.5 * np.sqrt(2 / np.pi))
    assert TopTokensOnly(2).returned(seen).ids.shape == (2, 3, 2) and TextOnly().error_nats(seen) is None
    np.testing.assert_array_equal(TextOnly().returned(seen).ids[..., 0], seen.top_ids[..., 0])
    with pytest.raises(DataError, match="were collected"):
        TopTokensOnly(9).returned(seen)


def test_pieces_join_to_the_prompt():
    prompts = ["Write a poem, please!", "  two  spaces", "naïve café\nnew line", ""]
    pieces = PromptPieces(prompts)
    assert [pieces.decode(pieces.encode(p)) for p in prompts] == prompts
    assert "\N{REPLACEMENT CHARACTER}" in pieces.decode(pieces.encode("Write zebra"))


def test_recovery_counts_letters_and_words():
    found = recovery(["a b", "c d", "e f"], ["a b", "d c", "x"])
    assert found.hits == (True, False, False) and found.exact == pytest.approx(1 / 3) and found.n == 3
    assert found.word_f1 == pytest.approx((1 + 1 + 0) / 3) and found.low < found.exact < found.high
    assert word_f1("a b c", "a x") == pytest.approx(2 / 5) and word_f1("", "") == 1
    with pytest.raises(DataError, match="do not fit"):
        recovery(["a"], [])


SMALL = InverterConfig(width=32, hidden=64, heads=2, encoder_layers=1, decoder_layers=1, dropout=0.0, epochs=80,
                       batch=16, learning_rate=5e-3, warmup=10)  # fmt: skip


@pytest.fixture(scope="module")
def learned(toy):
    pytest.importorskip("torch").set_num_threads(1)
    prompts = prompts_of(32)
    seen = collect_trajectories(toy, [tokens_of(p) for p in prompts], TOKENS, STEPS)
    given = Undefended().returned(seen)
    return prompts, seen, given, Inverter(SMALL).fit(given, prompts)


def test_an_inverter_learns_its_prompts_by_heart_and_reads_the_order_of_steps(learned):
    prompts, _, given, inverter = learned
    assert recovery(prompts, inverter.recover(given)).exact == 1
    turned = InverterInput(ratios=given.ratios[:, ::-1].copy())
    assert recovery(prompts, inverter.recover(turned)).exact < 0.5
    others = InverterInput(ratios=np.roll(given.ratios, 1, axis=0))
    assert recovery(prompts, inverter.recover(others)).exact == 0
    assert inverter.losses_[-1] < 0.3 * inverter.losses_[0]


def test_one_seed_one_inverter_and_no_global_noise(learned):
    import torch

    prompts, _, given, _ = learned
    short = InverterConfig(**{**vars(SMALL), "epochs": 2})
    state = torch.get_rng_state()
    losses = Inverter(short).fit(given, prompts).losses_
    assert torch.equal(torch.get_rng_state(), state)
    assert Inverter(short).fit(given, prompts).losses_ == losses


def test_text_is_read_too_and_inputs_are_not_mixed_up(learned):
    prompts, seen, given, inverter = learned
    text = TextOnly().returned(seen)
    reader = Inverter(InverterConfig(**{**vars(SMALL), "epochs": 3})).fit(text, prompts)
    assert len(reader.recover(text)) == len(prompts)
    unknown = InverterInput(ids=np.full_like(text.ids, V - 1), weights=text.weights)
    assert len(reader.recover(unknown)) == len(prompts)
    with pytest.raises(DataError, match="reads tokens"):
        reader.recover(given)
    with pytest.raises(DataError, match="reads log-ratios"):
        inverter.recover(text)
    with pytest.raises(DataError, match="reads 5 log-ratios"):
        inverter.recover(InverterInput(ratios=given.ratios[..., :2]))
    with pytest.raises(DataError, match="do not fit"):
        Inverter(SMALL).fit(given, prompts[:3])
    with pytest.raises(ValueError, match="or ids with weights"):
        InverterInput()


def test_defences_are_priced(learned):
    prompts, seen, _, inverter = learned
    short = InverterConfig(**{**vars(SMALL), "epochs": 2})
    prices = price_defences(
        seen, prompts, seen, prompts, short, defences=(NoisyLogprobs(30.0), TextOnly()), trained=inverter
    )
    assert [p.name for p in prices] == ["none", "noise of 30 nats", "text only"]
    assert prices[0].prepared.exact == 1 and prices[1].unprepared.exact < 0.2
    assert prices[2].unprepared is None and prices[2].error_nats is None


def test_an_audit_tells_rates_and_no_prompt(toy):
    pytest.importorskip("torch").set_num_threads(1)

    prompts = prompts_of(24)
    config = InverterConfig(**{**vars(SMALL), "epochs": 2})
    plan = RecoveryPlan(3, (1, 3), 0.25, config, (RoundedLogprobs(1), TextOnly()))
    found = audit_recovery(WithHidden(toy), prompts, tokens_of, plan, header={"model": "toy"})
    text = found.to_jsonl() + found.to_markdown()
    assert not any(prompt in text for prompt in prompts)
    assert found.finding("log-probabilities of 3 steps", "exact match").n == 6
    assert found.finding("defence: text only", "error of the chosen token's log-probability").value is None
    again = audit_recovery(WithHidden(toy), prompts, tokens_of, plan, header={"model": "toy"})
    assert again.to_jsonl() == found.to_jsonl()
    with pytest.raises(DataError, match="too few"):
        audit_recovery(WithHidden(toy), prompts[:2], tokens_of, plan, header={})


class WithHidden:
    """A toy with states that say nothing: the audit only asks how wide they are."""

    def __init__(self, toy):
        self.toy = toy

    def __getattr__(self, name):
        return getattr(self.toy, name)

    def forward(self, work):
        if work[0].want.hidden:
            from likely.runtimes.protocol import Output

            return [Output(hidden=np.zeros((1, 8), np.float32))]
        return self.toy.forward(work)


@pytest.mark.parametrize("defence", [Undefended(), TextOnly()])
def test_a_saved_inverter_recovers_what_it_did_and_is_the_same_file_again(learned, tmp_path, defence):
    prompts, seen, _, trained = learned
    given = defence.returned(seen)
    short = InverterConfig(**{**vars(SMALL), "epochs": 2})
    inverter = trained if given.ratios is not None else Inverter(short).fit(given, prompts)
    path, again = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    saved = SavedInverter(inverter, "model", TOKENS, STEPS)
    saved.save(path)
    loaded = SavedInverter.load(path)
    assert (loaded.revision, loaded.tokens, loaded.steps) == ("model", TOKENS, STEPS)
    assert loaded.inverter.config == inverter.config
    assert loaded.inverter.recover(given) == inverter.recover(given)
    loaded.save(again)
    assert again.read_bytes() == path.read_bytes()
    assert not any(prompt.encode() in path.read_bytes() for prompt in prompts)
    loaded.check_model("model")
    with pytest.raises(DataError, match="trained on another model"):
        loaded.check_model("other")


def test_a_file_that_is_no_whole_inverter_is_refused(learned, tmp_path):
    from safetensors.numpy import load_file, save_file

    path, other = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    SavedInverter(learned[3], "model", TOKENS, STEPS).save(path)
    whole = path.read_bytes()
    turned = bytearray(whole)
    turned[-1] ^= 1
    header = re.sub(rb'(steps\\+": )5', rb"\g<1>6", whole)
    assert header != whole
    for raw, message in ((bytes(turned), "digest does not fit"), (header, "digest does not fit"),
                         (whole[:-9], "damaged"), (b"", "damaged"), (b"\x00" * 64, "damaged")):  # fmt: skip
        other.write_bytes(raw)
        with pytest.raises(DataError, match=message):
            SavedInverter.load(other)
    save_file(load_file(path), other)
    with pytest.raises(DataError, match="no saved inverter"):
        SavedInverter.load(other)
    with pytest.raises(DataError, match="cannot read"):
        SavedInverter.load(tmp_path / "none.safetensors")
    with pytest.raises(ValueError, match="must end in"):
        SavedInverter(learned[3], "model", TOKENS, STEPS).save(tmp_path / "a.bin")


def test_sizes_that_the_arrays_do_not_have_are_refused_before_memory_is_taken(learned, tmp_path):
    import json

    from safetensors.numpy import load_file, save_file

    from likely.audit.inversion.saved import FORMAT, _digest

    path = tmp_path / "a.safetensors"
    SavedInverter(learned[3], "model", TOKENS, STEPS).save(path)
    arrays = dict(sorted(load_file(path).items()))
    about = {"config": {**vars(SMALL), "width": 2**20, "most_steps": 2**30}, "pieces": ["a"], "revision": "model",
             "tokens": list(TOKENS), "steps": STEPS}  # fmt: skip
    text = json.dumps(about)
    head = {"format": FORMAT, "about": text, "digest": _digest(arrays, text)}
    save_file(arrays, path, {"likely": json.dumps(head)})
    with pytest.raises(DataError, match="damaged"):
        SavedInverter.load(path)


def test_an_audit_keeps_its_inverter_which_reads_other_prompts_without_training(toy, tmp_path, monkeypatch):
    pytest.importorskip("torch").set_num_threads(1)
    runtime, path, header = WithHidden(toy), tmp_path / "kept.safetensors", {"model": "toy"}
    config = InverterConfig(**{**vars(SMALL), "epochs": 2})
    prompts = prompts_of(24)
    plan = RecoveryPlan(3, (1, 3), 0.25, config, ())
    whole = audit_recovery(runtime, prompts, tokens_of, plan, header=header, save_to=path)
    order = np.random.default_rng(plan.seed).permutation(24).tolist()
    hidden = [prompts[i] for i in order[18:]]
    monkeypatch.setattr(Inverter, "fit", lambda *_, **__: pytest.fail("nothing is trained"))
    found = recover_with(SavedInverter.load(path), runtime, hidden, tokens_of, header=header)
    for quantity in ("exact match", "word F1"):
        name = "log-probabilities of 3 steps"
        assert found.finding(name, quantity).value == whole.finding(name, quantity).value
    text = found.to_jsonl() + found.to_markdown()
    assert not any(prompt in text for prompt in hidden)
    with pytest.raises(DataError, match="no prompts"):
        recover_with(SavedInverter.load(path), runtime, [], tokens_of, header=header)


def test_arrays_of_other_shapes_fit_together():
    seen = Trajectories(np.zeros((2, 3, 4), np.float32), np.zeros((2, 3, 5), np.int64), np.zeros((2, 3, 5), np.float32))
    assert len(seen) == 2 and seen.first(1).of(np.array([1])).selected.shape == (1, 1, 4)
