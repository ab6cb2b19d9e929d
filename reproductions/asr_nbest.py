"""n-best prompts: does a model that is shown five transcripts decide better than one that is shown the best?

Utterances that spoken_lists.py had read aloud and recognised: commands of 12 intents, and messages that address no
assistant.  SmolLM2-135M is fine-tuned with LoRA to answer with the intent or "none", with several seeds: shown the
best transcript, five of them, or what was said (--full: also ten, and other styles).  On held-out utterances: how often
it is wrong, how often it is wrong about whether the assistant was addressed at all, and by how much more where
recognition was bad.  Beside these, what the model of one transcript reaches with five prompts averaged by posterior,
and with ROVER's vote.

  python reproductions/spoken_lists.py             makes the lists, once (flite, likely[speech])
  python reproductions/asr_nbest.py --quick        few steps and utterances, nothing is written
  python reproductions/asr_nbest.py                400 utterances to learn from, 649 to be judged by, 3 seeds
  python reproductions/asr_nbest.py --full         640 to learn from, more steps, ten transcripts, other styles

Adapters and scores are kept (--keep): a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from spoken_lists import FILES, INTENTS, MESSAGE, Spoken, chosen, default_file, read_lists, texts
from study import arguments, conclude, data_sources, figure_with, model_source, ratio_figure, run_script, run_study
from transcripts import oracle_word_error_rate, rover, word_errors

import likely
from likely.evidence import Check, Evidence, Figure, Source
from likely.io.hashes import file_sha256, fingerprint
from likely.io.kept import KeptValues
from likely.metrics.bootstrap import bootstrap_ratio, interval
from likely.prompting.speech.intent import SpokenIntentClassifier, training_pairs
from likely.prompting.speech.nbest import NBest, NBestStyle, SpokenTask
from likely.training.answers import train_lora

NONE = "none"  # the answer to a message
TASK = SpokenTask("", (*INTENTS.values(), NONE), listed=False)
ONE, FIVE, SAID, MARGINAL, ROVER = "1-best", "5-best", "what was said", "marginal of 5", "ROVER of 5"
RESAMPLES = 2000
TIE = 0.01  # points; what differs by less is no gain
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Plan:
    """One training per way of showing transcripts and seed."""

    steps: int
    seeds: int
    batch: int = 8
    lr: float = 1e-3
    rank: int = 8
    precision: str = "bfloat16"


@dataclass(frozen=True)
class Way:
    """How transcripts are shown to a model of its own: `n` of them, or what was said."""

    name: str
    n: int = 1
    style: NBestStyle = "plain"
    said: bool = False

    def lists(self, spoken: Iterable[Spoken]) -> list[NBest]:
        return [NBest([words_said(one)], [0.0]) if self.said else one.utterance.nbest for one in spoken]

    def classifier(self, lm: Any) -> SpokenIntentClassifier:
        return SpokenIntentClassifier(lm, TASK, n=self.n, style=self.style)


WAYS = (Way(ONE), Way(FIVE, 5), Way(SAID, said=True))
MORE = (
    Way("10-best", 10), Way("5-best, explained", 5, "explained"),
    Way("5-best, with posteriors", 5, "scores"),
)  # fmt: skip


def words_said(one: Spoken) -> str:
    """The text as a recogniser would write it: no capitals, no punctuation."""
    return " ".join(re.sub(r"[^a-z0-9' ]+", " ", one.utterance.text.lower()).split())


def label_of(one: Spoken) -> int:
    return TASK.answers.index(NONE if one.label == MESSAGE else INTENTS[one.label])


# --- models -----------------------------------------------------------------------------------------------------------


SECONDS = "seconds"  # what making and asking a model took, beside its scores


class Kept:
    """A model whose scores are kept in a file: `make` is called when a pair is not there.

    seconds  what making it and asking it took, in all runs
    """

    def __init__(self, path: Path, make: Callable[[], Any]):
        self._values, self._make, self._lm = KeptValues(path), make, None
        self.seconds = self._values.get(SECONDS, 0.0)

    def score_pairs(self, pairs: Sequence[tuple[str, str]], **options: Any) -> list[Any]:
        pair_of = {fingerprint(pair, 32): pair for pair in pairs}
        if new := self._values.missing(pair_of):
            started = time.perf_counter()
            if self._lm is None:
                self._lm = self._make()
            scored = self._lm.score_pairs([pair_of[key] for key in new], **options)
            self.seconds += time.perf_counter() - started
            values = [(one.sequence_logprob, len(one.token_logprobs)) for one in scored]
            self._values.add({**dict(zip(new, values, strict=True)), SECONDS: self.seconds})
        found = [self._values[fingerprint(pair, 32)] for pair in pairs]
        return [SimpleNamespace(sequence_logprob=lp, token_logprobs=[lp / n] * n) for lp, n in found]


def trained(
    lm: Any, way: Way, train: Sequence[Spoken], seed: int, plan: Plan, keep: Path, report: Callable[[str], None]
) -> Kept:
    """The model fine-tuned for one way of showing transcripts."""
    pairs = training_pairs(way.classifier(lm), way.lists(train), [label_of(one) for one in train])
    settings = {
        "steps": plan.steps, "batch": plan.batch, "lr": plan.lr, "rank": plan.rank, "precision": plan.precision,
        "seed": seed,
    }  # fmt: skip
    digest = fingerprint([lm.runtime.revision, pairs, settings], 12)
    folder = keep / "-".join([*re.findall(r"\w+", way.name), str(seed), digest])
    folder.mkdir(parents=True, exist_ok=True)

    def make() -> Any:
        started = time.perf_counter()
        adapter = train_lora(lm, pairs, folder=folder, alpha=2 * plan.rank, **settings)
        last = np.mean(adapter.losses[-20:])
        report(f"{way.name}, seed {seed}: loss {last:.3f} after {time.perf_counter() - started:.0f} s")
        return adapter

    return Kept(folder / "scores.jsonl", make)


def judge(lm: Kept, way: Way, test: Sequence[Spoken]) -> dict[str, Floats]:
    """(N, K) probabilities by name; the model of one transcript is also asked in the two other ways."""
    lists = way.lists(test)
    found = {way.name: way.classifier(lm).predict_proba(lists)}
    if way.name == ONE:
        labels = [label_of(one) for one in test]
        found[MARGINAL], found[ROVER] = np.zeros_like(found[ONE]), np.zeros_like(found[ONE])
        for half in (0, 1):  # the scale of the recogniser's scores comes from the other half
            fitted = SpokenIntentClassifier(lm, TASK, combine="marginal")
            fitted.fit_kappa(lists[1 - half :: 2], labels[1 - half :: 2])
            found[MARGINAL][half::2] = fitted.predict_proba(lists[half::2])
            voted = [voted_transcript(one, fitted.n, fitted.kappa) for one in lists[half::2]]
            found[ROVER][half::2] = SpokenIntentClassifier(lm, TASK, n=1).predict_proba(voted)
    return found


def voted_transcript(heard: NBest, n: int, kappa: float) -> NBest:
    """The one transcript that the first n vote for, each with its posterior as weight."""
    texts, posteriors = heard.distinct(n, kappa=kappa)
    return NBest((rover(texts, posteriors.tolist()),), (0.0,))


# --- numbers ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Judged:
    """One way, per test utterance, each (N,), the mean over seeds: wrong answers, wrong about none or not, nats."""

    wrong: Floats
    misdirected: Floats
    nats: Floats

    @classmethod
    def of(cls, probs: Sequence[Floats], labels: NDArray[np.int64]) -> Judged:
        """probs  one table per seed"""
        none, rows = TASK.answers.index(NONE), np.arange(len(labels))
        return cls(
            np.mean([p.argmax(axis=1) != labels for p in probs], axis=0),
            np.mean([(p[:, none] > 0.5) != (labels == none) for p in probs], axis=0),
            np.mean([-np.log(np.maximum(p[rows, labels], 1e-12)) for p in probs], axis=0),
        )


def mean_figure(subject: str, quantity: str, values: Floats, unit: str, of: str = "utterances") -> Figure:
    ends = interval(lambda v: float(v.mean()), values, resamples=RESAMPLES)
    return figure_with(subject, quantity, float(values.mean()), ends, unit=unit, n=len(values), of=of)


def fewer(subject: str, one: Floats, other: Floats) -> Figure:
    """How much smaller the errors of `one` are than those of `other`, as a share of them."""
    return ratio_figure(
        subject, "errors fewer by", other - one, other, unit="share of errors", of="utterances", resamples=RESAMPLES
    )


def recognition(test: Sequence[Spoken]) -> list[Figure]:
    """Word error rate of the first n transcripts, the best of them taken, by noise."""
    figures = []
    for name, part in (
        ("recogniser, all", list(test)),
        *((f"recogniser, {s:g} dB", [t for t in test if t.utterance.snr_db == s])
          for s in sorted({t.utterance.snr_db for t in test if t.utterance.snr_db is not None})),
    ):  # fmt: skip
        said = [words_said(one) for one in part]
        heard = [one.utterance.nbest.distinct()[0] for one in part]
        words = [float(len(s.split())) for s in said]
        for n in (1, 5, 10):
            errors = [float(min(word_errors(s, h) for h in hs[:n])) for s, hs in zip(said, heard, strict=True)]
            ends = bootstrap_ratio(errors, words, resamples=RESAMPLES)
            figures.append(
                figure_with(
                    name, "WER, 1-best" if n == 1 else f"WER, best of {n}", oracle_word_error_rate(said, heard, n),
                    ends, unit="share of words", n=len(part), of="utterances",
                )
            )  # fmt: skip
    return figures


def numbers(judged: Mapping[str, Judged], test: Sequence[Spoken]) -> tuple[list[Figure], list[Check], str]:
    """Every way by itself, and against the best transcript on the same utterances."""
    figures = recognition(test)
    for name, one in judged.items():
        figures.append(mean_figure(name, "wrong", one.wrong, "share"))
        figures.append(mean_figure(name, "wrong about directed or not", one.misdirected, "share"))
        figures.append(mean_figure(name, "nats", one.nats, "nats per utterance"))
    base, checks = judged[ONE], []
    bad = np.array([word_errors(words_said(t), t.utterance.nbest.distinct(1)[0][0]) for t in test])
    rates = bad / np.array([max(1, len(words_said(t).split())) for t in test])
    worse = rates > np.median(rates)
    for name, one in judged.items():
        if name == ONE:
            continue
        versus, difference = f"{name} − {ONE}", 100 * (one.wrong - base.wrong)
        directed = 100 * (one.misdirected - base.misdirected)
        figures.append(mean_figure(versus, "change, wrong", difference, "points"))
        figures.append(mean_figure(versus, "change, directed or not", directed, "points"))
        figures.append(mean_figure(versus, "change in likelihood", one.nats - base.nats, "nats per utterance"))
        if base.wrong.any():
            figures.append(fewer(versus, one.wrong, base.wrong))
        for label, rows in (("better heard half", ~worse), ("worse heard half", worse)):
            if rows.any():
                figures.append(mean_figure(versus, f"change, {label}", difference[rows], "points"))
    by = {(f.subject, f.quantity): f for f in figures}
    for quantity in ("change, wrong", "change, directed or not"):
        found = by[f"{FIVE} − {ONE}", quantity]
        assert found.high is not None
        checks.append(
            Check(
                statement=f"{FIVE} − {ONE}, {quantity}: upper end of the interval", value=found.high, bound=-TIE,
                unit="points",
            )
        )  # fmt: skip
    said = "; ".join(
        f"{name}: {by[name, 'wrong'].value:.1%} wrong ({by[name, 'wrong about directed or not'].value:.1%} about "
        f"directed or not), {by[name, 'nats'].value:.2f} nats"
        for name in judged
    )
    found = by[f"{FIVE} − {ONE}", "change, wrong"]
    assert found.low is not None and found.high is not None
    said += f".  {FIVE} − {ONE}: {found.value:+.1f} [{found.low:+.1f}, {found.high:+.1f}] points wrong"
    return figures, checks, said


def study(
    lm: Any,
    train: Sequence[Spoken],
    test: Sequence[Spoken],
    plan: Plan,
    *,
    keep: Path,
    full: bool,
    models: Sequence[Source],
    data: Sequence[Source] = (),
    report: Callable[[str], None] = print,
) -> Evidence:
    tables: dict[str, list[Floats]] = {}
    seconds = 0.0
    for seed in range(plan.seeds):
        for way in (*WAYS, *(MORE if full else ())):
            kept = trained(lm, way, train, seed, plan, keep, report)
            for name, probs in judge(kept, way, test).items():
                tables.setdefault(name, []).append(probs)
            seconds += kept.seconds
    labels = np.array([label_of(one) for one in test], np.int64)
    judged = {name: Judged.of(probs, labels) for name, probs in tables.items()}
    figures, checks, said = numbers(judged, test)
    directed = sum(one.label != MESSAGE for one in test)
    return conclude(
        "asr_nbest",
        title="Leveraging large language models for exploiting ASR uncertainty",
        claim=(
            "A language model fine-tuned with LoRA on prompts that list the n best transcripts decides better than one "
            "fine-tuned on the best transcript: whether the assistant is addressed, and what is asked for."
        ),
        paper_figure=(
            "n-best lists in the prompt beat the 1-best on device-directed speech detection and on keyword spotting "
            "(abstract; no figure that we could check)"
        ),
        ours=said,
        figures=figures,
        checks=checks,
        samples=(
            f"{len(train)} utterances to learn from, {len(test)} to be judged by ({directed} commands of "
            f"{len(INTENTS)} intents, {len(test) - directed} messages); each way trained with {plan.seeds} seeds: "
            f"{plan.steps} steps of {plan.batch}, rank {plan.rank}, learning rate {plan.lr:g}, {plan.precision}"
        ),
        intervals=(
            "95 %, percentile bootstrap over utterances (their mean over seeds), 2000 resamples, fixed seed; "
            "differences and shares are paired"
        ),
        full=full,
        models=models,
        data=data,
        seconds=seconds,
        not_shown=[
            "Real speech: four synthetic voices, white noise, one recogniser with its general language model.",
            "The paper's model (a chat model of 7B), its recordings, and prompts with a description alone: a model of "
            "135M does not follow them.",
            "Keyword spotting: 12 intents stand in for keywords.",
            "That messages are recognised as undirected by their sound: only words are seen.",
            "The marginal's and ROVER's scale of scores is fitted on the other half of the test utterances.",
        ],
    )


def measure(options: argparse.Namespace) -> Evidence:
    plan = Plan(steps=400, seeds=3) if options.full else Plan(steps=100, seeds=3)
    wanted = texts(full=options.full)
    if options.quick:
        plan, wanted = replace(plan, steps=6, seeds=1), wanted[:60]
    spoken = list(chosen(read_lists(options.lists), wanted))
    train, test = ([one for one in spoken if one.split == split] for split in ("train", "test"))
    made = Source(
        name="n-best lists (flite, pocketsphinx)", sha256=file_sha256(options.lists), licence="made from the others"
    )
    with likely.load("smollm2", runtime="torch", threads=1) as lm:
        return study(
            lm, train, test, plan, keep=options.kept, full=options.full, data=[*data_sources(FILES), made],
            models=[model_source("smollm2")],
        )  # fmt: skip


def main() -> None:
    parser = arguments(
        full="more utterances to learn from, all ways, more steps", quick="few steps and utterances", kept="asr_nbest"
    )
    parser.add_argument("--lists", type=Path, default=default_file(), help="the file of spoken_lists.py")
    run_study(parser, measure)


if __name__ == "__main__":
    run_script(main)
