"""Text read aloud and recognised again: n-best lists without recordings.

flite reads (program `flite`, in Debian `apt install flite`), pocketsphinx recognises (extra `speech`; its wheel holds a
model of US English).  The same text, voice, noise and seed give the same list.
"""

from __future__ import annotations

import itertools
import math
import os
import shutil
import subprocess
import tempfile
import wave
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from likely.errors import CapabilityError, DataError, missing_extra
from likely.prompting.speech.nbest import NBest, plain_words

RATE = 16_000  # samples a second, of flite's voices but kal and of the recogniser's model
VOICES = ("slt", "rms", "awb", "kal16")
PAD_S = 0.25
SCORE_UNIT = 1024  # pocketsphinx shifts scores 10 bits down (SENSCR_SHIFT)
MOST_ENTRIES = 500  # of an n-best list; most of them are duplicates in words
Samples = NDArray[np.int16]


@dataclass(frozen=True)
class Utterance:
    """One text, how it was read, and what was heard.

    model  name of the recogniser's language model
    """

    text: str
    voice: str
    snr_db: float | None
    model: str
    nbest: NBest

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "nbest": {"hyps": self.nbest.hyps, "logscores": self.nbest.logscores}}

    @classmethod
    def from_dict(cls, record: dict[str, Any], where: str) -> Utterance:
        try:
            nbest = NBest(**record["nbest"])
            return cls(record["text"], record["voice"], record["snr_db"], record["model"], nbest)
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{where}: not an utterance with its n-best list ({error})") from None


def synthesise(text: str, voice: str = "slt") -> Samples:
    """The text read by flite, 16 kHz, one channel.  CapabilityError where there is no flite (or LIKELY_FLITE)."""
    program = os.environ.get("LIKELY_FLITE") or shutil.which("flite")
    if program is None:
        raise CapabilityError("flite is not installed, which reads texts aloud. Run: apt install flite")
    if voice not in VOICES:
        raise ValueError(f'unknown voice "{voice}" (allowed: {", ".join(VOICES)})')
    if not text.strip():
        raise ValueError("the text is empty: nothing to read")
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder, "speech.wav")
        command = [program, "-voice", voice, "-t", f" {text}", "-o", str(target)]  # a space: never read as an option
        try:
            subprocess.run(command, check=True, capture_output=True, timeout=60)
            with wave.open(str(target)) as file:
                if (file.getframerate(), file.getnchannels(), file.getsampwidth()) != (RATE, 1, 2):
                    raise CapabilityError(f"flite's voice {voice} does not give 16 kHz, one channel, 16 bits")
                return np.frombuffer(file.readframes(file.getnframes()), np.int16)
        except (OSError, subprocess.SubprocessError, wave.Error, EOFError) as error:
            raise CapabilityError(f"flite could not read {text[:40]!r} ({str(error).splitlines()[0]})") from None


def with_noise(samples: Samples, snr_db: float | None, *, seed: int, pad_s: float = PAD_S) -> Samples:
    """The samples between two pauses, with white noise over all of it.

    snr_db  10 log10(power of the speech / power of the noise), the pauses not counted; None: no noise (a recogniser
            does badly on digital silence; 20 to 30 dB serve as "clean")
    """
    speech = samples.astype(np.float64)
    if not len(speech) or not np.any(speech):
        raise ValueError("the samples are silent: a ratio to noise is not defined")
    pause = np.zeros(round(pad_s * RATE))
    out = np.concatenate([pause, speech, pause])
    if snr_db is not None:
        power = np.mean(speech**2) / 10 ** (snr_db / 10)
        out += np.random.default_rng(seed).standard_normal(len(out)) * math.sqrt(power)
    return np.clip(np.rint(out), -32768, 32767).astype(np.int16)


class Recogniser:
    """pocketsphinx with its model of US English.

    language_model  an ARPA file; None: the general one of the package
    """

    def __init__(self, language_model: str | Path | None = None):
        try:
            import pocketsphinx
        except ImportError:
            raise missing_extra("pocketsphinx", "speech") from None
        pocketsphinx.set_loglevel("FATAL")
        given = {"lm": str(language_model)} if language_model is not None else {}
        self._decoder = pocketsphinx.Decoder(samprate=RATE, **given)

    def nbest(self, samples: Samples, *, entries: int = MOST_ENTRIES) -> NBest:
        """What was heard: the best path, then the n-best list of the word lattice, scores in nats.

        Each utterance is recognised as if it were the first: the mean of the features, which the decoder would carry
        over, starts anew.
        """
        decoder = self._decoder
        decoder.reinit_feat()
        decoder.start_utt()
        decoder.process_raw(samples.tobytes(), full_utt=True)
        decoder.end_utt()
        best = decoder.hyp()
        if best is None:
            return NBest((), ())
        listed = itertools.islice(decoder.nbest() or (), entries)
        return NBest.heard(best.hypstr, (entry and (entry.hypstr, _nats(entry.score)) for entry in listed))


def _nats(score: float) -> float:
    """The decoder's scores come exponentiated and 10 bits down; one that underflowed is -inf."""
    return SCORE_UNIT * math.log(score) if score > 0 else -math.inf


def speak_and_listen(
    text: str, recogniser: Recogniser, *, voice: str, snr_db: float | None, seed: int, model: str, keep: int = 10
) -> Utterance:
    """Read a text, add noise, recognise it; the list holds the first `keep` transcripts that differ in words.

    Of entries with the same words the first and best is kept (hundreds differ in pauses alone).
    """
    heard = recogniser.nbest(with_noise(synthesise(text, voice), snr_db, seed=seed))
    return Utterance(text, voice, snr_db, model, _shortened(heard, keep))


def _shortened(heard: NBest, keep: int) -> NBest:
    """The first entry of each of the first `keep` transcripts that differ in words."""
    if not heard.hyps:
        return heard
    texts, _ = heard.distinct(keep)
    best: dict[str, float] = {}
    for text, score in zip(heard.hyps, heard.logscores, strict=True):
        best.setdefault(plain_words(text), score)
    return NBest(tuple(texts), tuple(best[text] for text in texts))
