"""Runtime parity: the same strings, scored by every engine and in every file format, token by token.

The reference is a plain forward pass of transformers in fp32 with a log-softmax in fp64.  Against it stand likely's
torch runtime, and llama.cpp on F32 weights (the same numbers), on Q8_0 weights (rounded once more) and on the packaged
file.  SmolLM2-135M, prose, code and 14 languages.

  python reproductions/runtime_parity.py           60 strings
  python reproductions/runtime_parity.py --full   200 strings
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from study import arguments, conclude, data_sources, run_script, run_study

import likely
from likely.data import load_records
from likely.evidence import Check, Evidence, Figure, Source
from likely.io.hashes import file_sha256
from likely.models.catalog import find_model, known_model
from likely.models.convert import convert
from likely.runtimes.protocol import Want, Work
from likely.scoring.likelihood import joint_item

FILES = (("wikitext2", "wiki.valid.raw.gz"), ("mbpp", "mbpp.test.jsonl.gz"), ("udhr", "udhr.jsonl.gz"))
TORCH, F32, Q8, PACKAGED = "likely, torch fp32", "llama.cpp, F32", "llama.cpp, Q8_0", "llama.cpp, the packaged file"
BOUNDS = {TORCH: 1e-4, F32: 1e-3}
RESAMPLES = 1000


def strings(*, full: bool) -> list[str]:
    """200 fixed strings (100 of prose, 60 of code, 40 in 14 languages), or 60 of them in the same shares."""
    prose = [row["text"].strip()[:64] for row in load_records(*FILES[0]) if len(row["text"]) >= 200][:100]
    code = [row["code"][:60] for row in load_records(*FILES[1])][:60]
    languages = [text[:24] for row in load_records(*FILES[2]) for text in row["text"].split("\n")[4:7]][:40]
    return [*prose, *code, *languages] if full else [*prose[:28], *code[:18], *languages[::3]]


@dataclass(frozen=True)
class Compared:
    """One form against the reference, one entry per string. T: its tokens but the first."""

    gaps: list[NDArray[np.float64]]  # (T,) |difference| of the token's log-probability, nats
    divergences: list[NDArray[np.float64]]  # (T,) KL(reference || form) of the whole distribution there, nats
    flips: list[NDArray[np.bool_]]  # (T,) whether the most likely token differs


def logprobs_of(logits: NDArray[np.floating]) -> NDArray[np.float64]:
    """(T, V) log-softmax in fp64."""
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=1, keepdims=True)
    return wide - np.log(np.exp(wide).sum(axis=1, keepdims=True))


def reference_rows(folder: Path, items: Sequence[Sequence[int]], store: Path) -> None:
    """Logits (T, V) of every string by a plain transformers forward, kept as store/N.npy."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    for number, tokens in enumerate(items):
        with torch.no_grad():
            logits = plain(torch.tensor([list(tokens)])).logits[0, :-1].float().numpy()
        np.save(store / f"{number}.npy", logits, allow_pickle=False)


def compare(lm: likely.Model, texts: Sequence[str], items: Sequence[Sequence[int]], store: Path) -> Compared:
    """Score the strings as a user does (one call of score_pairs), and compare whole distributions row by row."""
    scored = lm.score_pairs([("", text) for text in texts])
    gaps, divergences, flips = [], [], []
    for number, (tokens, result) in enumerate(zip(items, scored, strict=True)):
        theirs = logprobs_of(np.load(store / f"{number}.npy", allow_pickle=False))
        wanted = list(tokens[len(tokens) - len(theirs) :])
        if result.token_ids is None or list(result.token_ids) != wanted:
            raise SystemExit(f"{lm.info.source}: other tokens for {texts[number]!r}; nothing can be compared")
        chosen = theirs[np.arange(len(wanted)), wanted]
        gaps.append(np.abs(np.array(result.token_logprobs) - chosen))
        ours = logprobs_of(rows_of(lm, tokens))
        divergences.append((np.exp(theirs) * (theirs - ours)).sum(axis=1))
        flips.append(theirs.argmax(axis=1) != ours.argmax(axis=1))
    return Compared(gaps, divergences, flips)


def rows_of(lm: likely.Model, tokens: Sequence[int]) -> NDArray[np.float32]:
    """(T, V) logits after each token but the last."""
    sequence = lm.runtime.open()
    try:
        work = Work(sequence, np.array(tokens[:-1], np.int64), want=Want(rows="all", logits=True))
        [output] = lm.runtime.forward([work])
    finally:
        lm.runtime.close(sequence)
    assert output.logits is not None
    return output.logits


def bootstrap(per_string: Sequence[NDArray], statistic: Callable[[NDArray], float]) -> tuple[float, float, float]:
    """(value, low, high): percentile interval over resampled strings, since tokens of one string belong together."""
    rng = np.random.default_rng(0)
    value = statistic(np.concatenate(per_string))
    draws = [
        statistic(np.concatenate([per_string[i] for i in rng.integers(0, len(per_string), len(per_string))]))
        for _ in range(RESAMPLES)
    ]
    low, high = (float(v) for v in np.quantile(draws, [0.025, 0.975]))
    return value, min(low, value), max(high, value)


def figures_of(form: str, found: Compared) -> list[Figure]:
    n = sum(map(len, found.gaps))
    figures = []
    for quantity, unit, values, statistic in (
        ("p50 of |difference|", "nats per token", found.gaps, lambda v: float(np.quantile(v, 0.5))),
        ("p99 of |difference|", "nats per token", found.gaps, lambda v: float(np.quantile(v, 0.99))),
        ("median KL", "nats per token", found.divergences, lambda v: float(np.median(v))),
        ("mean KL", "nats per token", found.divergences, lambda v: float(v.mean())),
        ("argmax differs", "share of tokens", found.flips, lambda v: float(v.mean())),
    ):
        value, low, high = bootstrap(values, statistic)
        ends = {"low": low, "high": high}
        if unit.startswith("share") and value == 0:
            ends = {"note": "a bootstrap gives no interval for a share of zero"}
        figures.append(Figure(subject=form, quantity=quantity, value=value, unit=unit, n=n, of="tokens", **ends))
    largest = Figure(
        subject=form, quantity="max of |difference|", value=max(float(v.max()) for v in found.gaps),
        unit="nats per token", n=n, of="tokens", note="a bootstrap gives no interval for a maximum",
    )  # fmt: skip
    return [*figures[:2], largest, *figures[2:]]


@contextmanager
def forms(source: Path, folder: Path) -> Iterator[dict[str, tuple[Path, str]]]:
    """(path, runtime) of each form, made from one GGUF file."""
    made = {F32: ("f32.gguf", "f32"), Q8: ("q8_0.gguf", "q8_0"), TORCH: ("hf", "safetensors")}
    for target, to in made.values():
        convert(source, folder / target, to=to, verify=False)
    yield {
        TORCH: (folder / "hf", "torch"),
        F32: (folder / "f32.gguf", "llamacpp"),
        Q8: (folder / "q8_0.gguf", "llamacpp"),
        PACKAGED: (source, "llamacpp"),
    }


def study(
    source: Path,
    texts: Sequence[str],
    *,
    full: bool = False,
    threads: int = 1,
    licence: str = "",
    about: str = "",
    data: Sequence[Source] = (),
    report: Callable[[str], None] = print,
) -> Evidence:
    """All forms of one GGUF file against the reference."""
    import torch

    started = time.perf_counter()
    torch.set_num_threads(threads)
    figures: list[Figure] = []
    largest: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="likely-parity-") as place:
        folder = Path(place)
        report(f"converting {source.name} to safetensors, F32 and Q8_0")
        with forms(source, folder) as paths:
            items: list[list[int]] = []
            for form, (path, runtime) in paths.items():
                options = {"dtype": "float32"} if runtime == "torch" else {"threads": threads}
                with likely.load(str(path), runtime=runtime, **options) as lm:
                    if not items:
                        items = [list(joint_item(lm.tokenizer, "", text)[0].tokens) for text in texts]
                        report(f"reference: transformers, {len(items)} strings")
                        reference_rows(path, items, folder)
                    found = compare(lm, texts, items, folder)
                figures += figures_of(form, found)
                largest[form] = max(float(v.max()) for v in found.gaps)
                report(f"{form}: largest |difference| {largest[form]:.2e} nats")
    checks = [
        Check(
            statement=f"{form}: the largest |difference| of a token's log-probability from the reference",
            value=largest[form], bound=bound, unit="nats",
        )
        for form, bound in BOUNDS.items()
    ]  # fmt: skip
    return conclude(
        "runtime_parity",
        title="Runtime parity: does every engine give the same number?",
        claim=(
            "The same weights give the same token log-probabilities as a plain transformers forward in fp32: "
            f"to {BOUNDS[TORCH]:g} nats in likely's torch runtime, to {BOUNDS[F32]:g} in llama.cpp with F32 weights."
        ),
        paper_figure=None,
        ours=(
            f"largest difference {largest[TORCH]:.1e} nats (torch), {largest[F32]:.1e} (llama.cpp, F32), "
            f"{largest[Q8]:.2f} (Q8_0), {largest[PACKAGED]:.2f} (packaged file); "
            f"{sum(len(i) - 1 for i in items):,} tokens"
        ),
        figures=figures,
        checks=checks,
        samples=f"{len(texts)} strings{about}, {sum(len(i) - 1 for i in items):,} tokens",
        intervals=f"95 %, percentile bootstrap over strings, {RESAMPLES} resamples, fixed seed",
        full=full,
        models=[Source(name=source.name, sha256=file_sha256(source), licence=licence)],
        data=data,
        threads=threads,
        seconds=time.perf_counter() - started,
        not_shown=[
            "Strings of at most 64 characters: long contexts are tested elsewhere, not measured here.",
            "One family of models (Llama) of 135M parameters on one kind of processor; no GPU.",
            "Why a few tokens near the beginning of some texts differ much more than all others under 8-bit rounding "
            "(they make the mean KL far larger than its median) was not examined.",
            "The Q8_0 and packaged rows hold two effects together: llama.cpp rounds activations to 8 bit where weights "
            "are quantised, and Q8_0 rounds the weights once more.",
        ],
    )


def measure(options: argparse.Namespace) -> Evidence:
    model = known_model("smollm2")
    assert model is not None
    return study(
        find_model(model.name), strings(full=options.full), full=options.full, threads=options.threads,
        licence=model.licence, about=" (prose, code, 14 languages)", data=data_sources(FILES),
    )  # fmt: skip


def main() -> None:
    found = run_study(arguments(full="200 strings instead of 60", threads="of every runtime"), measure)
    if found is not None and found.verdict != "reproduced":
        raise SystemExit(1)


if __name__ == "__main__":
    run_script(main)
