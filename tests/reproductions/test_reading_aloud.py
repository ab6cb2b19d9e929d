"""Texts read aloud and recognised: noise in the stated ratio, files of lists, and the same list twice."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from scripts import script

from likely.errors import CapabilityError, DataError
from likely.prompting.speech.nbest import NBest

speech = script("reading_aloud")
PAD_S, RATE, Utterance = speech.PAD_S, speech.RATE, speech.Utterance
synthesise, with_noise = speech.synthesise, speech.with_noise

TONE = (3000 * np.sin(np.arange(RATE) / 5)).astype(np.int16)
ONE = Utterance("turn on the light", "slt", 20.0, "general", NBest(["turn on", "turn in"], [-10.5, -11.0]))


@pytest.mark.parametrize("snr_db", [0.0, 10.0, 20.0])
def test_noise_has_the_stated_ratio(snr_db):
    noisy = with_noise(TONE, snr_db, seed=1)
    pad = round(PAD_S * RATE)
    assert len(noisy) == len(TONE) + 2 * pad
    clean = np.concatenate([np.zeros(pad), TONE, np.zeros(pad)])
    noise = noisy - clean  # over the pauses, too
    found = 10 * np.log10(np.mean(TONE.astype(float) ** 2) / np.mean(noise**2))
    assert found == pytest.approx(snr_db, abs=0.3)  # 24,000 samples: s.e. of the power below 1 %
    assert np.std(noise[:pad]) == pytest.approx(np.std(noise[pad:-pad]), rel=0.15)
    assert (with_noise(TONE, snr_db, seed=1) == noisy).all() and (with_noise(TONE, snr_db, seed=2) != noisy).any()


def test_without_noise_only_the_pauses_are_added():
    quiet = with_noise(TONE, None, seed=1, pad_s=0.1)
    assert (quiet[1600:-1600] == TONE).all() and not quiet[:1600].any() and not quiet[-1600:].any()
    loud = with_noise(np.full(RATE, 32000, np.int16), 0.0, seed=1)
    assert loud.max() == 32767 and loud.min() < 0  # cut, not wrapped round
    for silent in (np.zeros(100, np.int16), np.zeros(0, np.int16)):
        with pytest.raises(ValueError, match="silent"):
            with_noise(silent, 20.0, seed=0)


def test_lists_come_back_from_json():
    assert Utterance.from_dict(json.loads(json.dumps(ONE.to_dict())), "lists.jsonl:1") == ONE
    bad = {"text": "x", "voice": "slt", "snr_db": 1, "model": "m", "nbest": {"hyps": ["a"], "logscores": []}}
    with pytest.raises(DataError, match=r"lists\.jsonl:3: .*1 transcripts have 0 scores"):
        Utterance.from_dict(bad, "lists.jsonl:3")


def test_the_list_is_shortened_to_different_words():
    heard = NBest(["a", "<sil> a", "b", "c", "b"], [-1.0, -2.0, -3.0, -4.0, -5.0])
    assert speech._shortened(heard, 2) == NBest(["a", "b"], [-1.0, -3.0])
    assert speech._shortened(NBest([], []), 2) == NBest([], [])


def test_without_flite_the_error_says_how_to_get_it(monkeypatch):
    monkeypatch.delenv("LIKELY_FLITE", raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(CapabilityError, match="apt install flite"):
        synthesise("hello")
    monkeypatch.setenv("LIKELY_FLITE", "/no/such/flite")
    with pytest.raises(CapabilityError, match="flite could not read 'hello'"):
        synthesise("hello")


needs_flite = pytest.mark.skipif(shutil.which("flite") is None, reason="flite is not installed")


@needs_flite
def test_flite_reads_the_same_twice():
    samples = synthesise("turn on the light")
    assert 0.5 * RATE < len(samples) < 4 * RATE and np.abs(samples).max() > 1000
    assert (synthesise("turn on the light") == samples).all()
    assert len(synthesise("-o /tmp/x")) > 0  # read, not taken for an option
    with pytest.raises(ValueError, match="unknown voice"):
        synthesise("hello", "nobody")
    with pytest.raises(ValueError, match="empty"):
        synthesise("  ")


@needs_flite
def test_the_same_sound_gives_the_same_list_whatever_was_heard_before():
    pytest.importorskip("pocketsphinx")
    recogniser = speech.Recogniser()

    def hear(text, seed):
        return speech.speak_and_listen(text, recogniser, voice="slt", snr_db=30.0, seed=seed, model="general")

    first = hear("wake me up at seven", 3)
    assert hear("what is my balance", 4).nbest != first.nbest
    assert hear("wake me up at seven", 3) == first
    texts, posteriors = first.nbest.distinct()
    assert 1 < len(texts) == len(first.nbest.hyps) <= 10 and posteriors.sum() == pytest.approx(1)
    assert "wake me up" in " / ".join(texts)
