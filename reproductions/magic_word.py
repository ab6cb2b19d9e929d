"""Magic words: which next tokens can a few tokens in front of a text force, and what does the search gain over chance?

States of natural text (WikiText-2), the true next token as the target; controls of at most 8 tokens by greedy
back-generation, then GCG, against random search with the same number of evaluations.  Then targets by rank, targets
drawn uniformly from the vocabulary, and the self-attention bound of every head.  Every control is evaluated exactly on
the native runtime; the gradients come from the same file in torch.

  python reproductions/magic_word.py          12 states, 2 of them by rank
  python reproductions/magic_word.py --full   50 states, 8 states by rank

A run that was stopped goes on where it was: each search is one line of the --kept file.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from study import (
    arguments,
    conclude,
    data_sources,
    figure_with,
    model_source,
    ratio_figure,
    report,
    run_script,
    run_study,
    share_figure,
)

from likely.audit.reach import (
    GCG,
    Backoff,
    ControlGradient,
    ControlResult,
    GreedyBack,
    RandomSearch,
    ReachProblem,
    attention_report,
    controllability_curve,
    gradient_of,
    ranked_targets,
    search_control,
)
from likely.data import load_records
from likely.evidence import Check, Evidence, Figure, Source
from likely.models.load import load_local
from likely.runtimes.protocol import Runtime
from likely.tokenizers.protocol import Tokenizer

LENGTHS = (1, 2, 4, 8)
RANKS = (2, 10, 40, 75)
SEED = 11
SEARCH = {"greedy": 128, "candidates": 48, "top": 64, "steps": 20, "short_to": 2}
MOST_EPS, LEAST_GAIN, LEAST_TOP, MOST_UNIFORM = 0.2, 0.2, 0.6, 0.5
TRUE, RANDOM, RANKED, UNIFORM = "true next token", "random search", "targets of rank 2 to 75", "uniform targets"


@dataclass(frozen=True)
class Sizes:
    """How many states of natural text; how many of them are tried by rank, and against uniform targets."""

    states: int
    ranked: int
    uniform: int


def states_of(tokenizer: Tokenizer, text: str, count: int, *, seed: int = SEED) -> list[ReachProblem]:
    """States of 6 to 9 tokens from the beginnings of paragraphs, with the token that follows, after the model's BOS."""
    paragraphs = [line.strip() for line in text.splitlines() if len(line.split()) > 30]
    before = (tokenizer.bos_id,) if tokenizer.add_bos and tokenizer.bos_id is not None else ()
    found = []
    for n, i in enumerate(np.random.default_rng(seed).permutation(len(paragraphs))[:count].tolist()):
        tokens = tokenizer.encode(paragraphs[i])
        length = 6 + n % 4
        found.append(ReachProblem(tuple(tokens[:length]), (tokens[length],), before))
    return found


class Rows:
    """One line of JSON for each search that is done, by its name; a file of other settings is begun anew."""

    def __init__(self, path: Path | None, settings: Mapping[str, Any]):
        self.path, self.found = path, dict[str, dict[str, Any]]()
        header = json.dumps(settings, sort_keys=True)
        if path is None:
            return
        lines = path.read_text("utf-8").splitlines() if path.exists() else []
        if lines[:1] == [header]:
            for line in lines[1:]:
                row = json.loads(line)
                self.found[row.pop("name")] = row
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(header + "\n", "utf-8")

    def of(self, name: str, search: Callable[[], ControlResult]) -> ControlResult:
        if name not in self.found:
            control = search()
            self.found[name] = asdict(control)
            if self.path is not None:
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"name": name, **asdict(control)}) + "\n")
        row = self.found[name]
        return ControlResult(**{**row, "ids": tuple(row["ids"])})


def study(
    runtime: Runtime, tokenizer: Tokenizer, gradient: ControlGradient, text: str, sizes: Sizes, *,
    module: Any = None, rows: Path | None = None, lengths: Sequence[int] = LENGTHS, ranks: Sequence[int] = RANKS,
    sources: Sequence[Source] = (), data: Sequence[Source] = (), full: bool = False, threads: int = 1,
    report: Callable[[str], None] = print,
) -> Evidence:  # fmt: skip
    """All searches.  module: in torch, for the self-attention bound of the first state."""
    started = time.perf_counter()
    kept = Rows(rows, {"revision": runtime.revision, "lengths": list(lengths), "seed": SEED, "search": SEARCH})
    method = Backoff(
        GreedyBack(gradient, SEARCH["greedy"]),
        GCG(gradient, SEARCH["candidates"], SEARCH["top"], SEARCH["steps"]),
        SEARCH["short_to"],
    )
    forbid = sorted(set(tokenizer.special_tokens.values()))

    def found(name: str, problem: ReachProblem, how: Any = method, at: Sequence[int] = lengths) -> ControlResult:
        def run() -> ControlResult:
            return search_control(runtime, problem, how, lengths=at, forbid=forbid, seed=SEED, tokenizer=tokenizer)

        control = kept.of(name, run)
        report(f"{name}: {'reached' if control.token_reachable else 'not reached'}, k = {control.k}, "
               f"loss {control.base_loss:.2f} to {control.loss:.2f}, {control.evaluations} evaluations")  # fmt: skip
        return control

    problems = states_of(tokenizer, text, sizes.states)
    controls = [found(f"state {i}", problem) for i, problem in enumerate(problems)]
    needed = [i for i, control in enumerate(controls) if control.method != "none"]
    chance = {
        i: found(f"random {i}", problems[i], RandomSearch(controls[i].evaluations), (max(lengths),)) for i in needed
    }
    ranked = {
        rank: [
            found(f"rank {rank} of {i}", ranked_targets(runtime, p.after, [rank], before=p.before)[0])
            for i, p in enumerate(problems[: sizes.ranked])
        ]
        for rank in ranks
    }
    rng = np.random.default_rng(SEED + 1)
    usable = np.setdiff1d(np.arange(runtime.vocab_size), forbid)
    uniform = [
        found(f"uniform {i}", ReachProblem(p.after, (int(rng.choice(usable)),), p.before))
        for i, p in enumerate(problems[: sizes.uniform])
    ]
    heads = [] if module is None else attention_report(module, problems[0].after, (1, 10, 1000))
    figures, checks, said = figures_of(controls, needed, chance, ranked, uniform, lengths, heads)
    return conclude(
        "magic_word",
        title="What's the magic word? Control of a language model by a few tokens in front",
        claim=(
            "A few tokens in front of a text force the model's next token: the true one nearly always, likely ones "
            "mostly, and any token of the vocabulary often; a search by gradients finds them, chance does not."
        ),
        paper_figure=(
            "Falcon-7B, Llama-7B and Falcon-40B: the true next token is reached with at most 10 tokens in over 97 % of "
            "WikiText states, the 75 likeliest tokens in at least 85 %, uniform targets in 46 to 65 %"
        ),
        ours=said,
        figures=figures,
        checks=checks,
        samples=(
            f"{len(problems)} states of 6 to 9 tokens from WikiText-2; greedy back-generation up to k = 2 (128 "
            f"candidates by gradient), GCG beyond (48 candidates of the best 64 a position, 20 steps); "
            f"{len(needed)} states needed a control"
        ),
        intervals="95 %: Wilson for shares, percentile bootstrap over states (paired) for the gain, fixed seed",
        full=full,
        models=sources,
        data=data,
        threads=threads,
        seconds=time.perf_counter() - started,
        not_shown=[
            "Models of 7B to 40B, k = 10 and the paper's 768 candidates with 34 steps a length.",
            "That a token is unreachable: a search that fails shows nothing, so that every epsilon is an upper bound.",
            "Instruct templates: states are plain text without a chat template.",
        ],
    )


def figures_of(
    controls: Sequence[ControlResult], needed: Sequence[int], chance: Mapping[int, ControlResult],
    ranked: Mapping[int, Sequence[ControlResult]], uniform: Sequence[ControlResult], lengths: Sequence[int],
    heads: Sequence[Any],
) -> tuple[list[Figure], list[Check], str]:  # fmt: skip
    curve = controllability_curve(controls, lengths)
    figures = [
        figure_with(TRUE, f"epsilon({k})", eps, (low, high), unit="share of states", n=curve.n, of="states")
        for k, eps, low, high in zip(curve.k, curve.eps, curve.low, curve.high, strict=True)
    ]
    hits = [controls[i].token_reachable for i in needed]
    by_chance = [chance[i].token_reachable for i in needed]
    gains = [float(a) - float(b) for a, b in zip(hits, by_chance, strict=True)] or [0.0]
    of = "states that need a control"
    gain = ratio_figure("search less random search", "reached", gains, unit="share of states", of=of)
    if needed:
        figures += [
            share_figure(TRUE, "reached", sum(hits), len(hits), unit="share of states", of=of),
            share_figure(RANDOM, "reached", sum(by_chance), len(hits), unit="share of states", of=of),
        ]
    figures.append(gain)
    texts = [c for c in controls if c.token_reachable and c.method != "none"]
    if texts:
        survived = sum(bool(c.text_reachable) for c in texts)
        figures.append(
            share_figure(TRUE, "reached as text", survived, len(texts), unit="share of controls", of="controls")
        )
    everyone = [c for row in ranked.values() for c in row]
    for rank, row in ranked.items():
        figures.append(
            share_figure(f"target of rank {rank}", "reached", sum(c.token_reachable for c in row), len(row),
                         unit="share of states", of="states")
        )  # fmt: skip
    top = sum(c.token_reachable for c in everyone)
    figures.append(share_figure(RANKED, "reached", top, len(everyone), unit="share of targets", of="targets"))
    out = sum(c.token_reachable for c in uniform)
    figures.append(share_figure(UNIFORM, "reached", out, len(uniform), unit="share of targets", of="targets"))
    for k in sorted({row.k for row in heads}):
        shares = [row.saturation for row in heads if row.k == k]
        figures.append(
            Figure(subject="self-attention bound", quantity=f"heads saturated by k = {k}",
                   value=float(np.mean(np.asarray(shares) > 0.999)), unit="share of heads", n=len(shares), of="heads",
                   note="all heads of one model, one state")
        )  # fmt: skip
    checks = [
        Check(statement=f"epsilon({max(lengths)}) of the true next token", value=curve.eps[-1], bound=MOST_EPS,
              unit="share of states"),
        Check(statement="random search less GCG, of states that need a control, plus 20 points",
              value=-gain.value, bound=-LEAST_GAIN, unit="share of states"),
        Check(statement="targets of rank 2 to 75 that were not reached", value=1 - top / len(everyone),
              bound=1 - LEAST_TOP, unit="share of targets"),
        Check(statement="uniform targets that were reached", value=out / len(uniform), bound=MOST_UNIFORM,
              unit="share of targets"),
    ]  # fmt: skip
    said = (
        f"the true next token is reached in {1 - curve.eps[0]:.0%} of states without a control, in "
        f"{1 - curve.eps[-1]:.0%} with at most {max(lengths)} tokens (epsilon {curve.eps[-1]:.2f}); of states that "
        f"need one {np.mean(hits) if hits else 0:.0%}, random search of equal cost "
        f"{np.mean(by_chance) if hits else 0:.0%}; targets of rank 2 to 75 "
        f"{top / len(everyone):.0%}, uniform ones {out / len(uniform):.0%}"
    )
    return figures, checks, said


def measure(options: argparse.Namespace) -> Evidence:
    import torch

    torch.set_num_threads(options.threads)
    loaded = load_local("smollm2", runtime="native", dtype="file", threads=options.threads)
    gradient = gradient_of("smollm2")
    text = "\n".join(row["text"] for row in load_records("wikitext2", "test"))
    sizes = Sizes(50, 8, 8) if options.full else Sizes(12, 2, 2)
    return study(
        loaded.runtime, loaded.tokenizer, gradient, text, sizes, module=gradient.module, rows=options.kept,
        sources=[model_source("smollm2")], data=data_sources([("wikitext2", "test")]), full=options.full,
        threads=options.threads, report=report,
    )  # fmt: skip


def main() -> Evidence | None:
    parser = arguments(full="50 states, 8 of them by rank", threads="threads of the model", kept="magic_word.jsonl")
    return run_study(parser, measure)


if __name__ == "__main__":
    run_script(main)
