"""SeqBoat: does a layer learn which tokens need attention, and does it then see further for the same work?

(a) rates: two layers on a copy of the token three before, which the recurrence alone can do, and on associative recall,
    which it cannot: where do the routers let the attention unit run?
(b) recall of 4 pairs among noise, 128 tokens: SeqBoat with a window of 32 activated tokens, against the same unit on
    every token within chunks of 32, and on every token with attention over all of them.
(c) text: bits per byte of SeqBoat, of the recurrence alone, and of the unit on every token.

  python reproductions/seqboat.py            2 seeds
  python reproductions/seqboat.py --full     5 seeds, more steps
  python reproductions/seqboat.py --quick    tiny, no result is written
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from sequence_models import SmallNetwork, fit, loss_of, mean_figure, predictions
from shared_steps import Cells
from study import arguments, conclude, data_sources, report, run_script, run_study
from torch import Tensor, nn

from likely.bench.sequence import Examples, TaskMeta, make_bytes
from likely.evidence import Check, Evidence, Figure
from likely.metrics.ranking import auroc
from likely.sequence.seqboat import SeqBoat, WindowedKeys

NAME = "seqboat"
SPARSE, CHUNKED, ALL, NEVER = "SeqBoat", "in chunks, every token", "every token", "recurrence alone"
COPY, RECALL = "copy", "recall"
LEAST_RATE = 0.1  # by which recall's activation rate must be above the copy's, in one layer
LEAST_AUC = 0.8  # of the router's logit, pairs and questions against noise
LEAST_GAIN = 0.2  # accuracy over chunks
NEAR = 0.05  # bits per byte from attention on every token
MOST_ACTIVE = 0.9  # of the tokens of a text
WIDTH, PAIRS, ASKED, VOCABULARY, NOISE = 64, 4, 4, 16, 16


@dataclass(frozen=True)
class Size:
    """Steps of training and rows of test of each part;  window: of activated tokens, and the length of a chunk"""

    seeds: int
    length: int
    window: int
    recall_steps: int
    copy_steps: int
    text_steps: int
    batch: int
    tested: int
    text_length: int = 128
    rate: float = 5e-3


SMOKE = Size(2, 40, 4, 3, 2, 2, 4, 8, 16)
QUICK = Size(2, 128, 32, 800, 150, 300, 16, 256)
FULL = Size(5, 256, 32, 4000, 800, 3000, 32, 1024)


class ChunkedUnit(SeqBoat):
    """Attention within chunks that do not overlap, as long as the window."""

    def attend(self, queries: Tensor, memory: WindowedKeys) -> Tensor:
        keys, values = memory.keys[:, self.window :], memory.values[:, self.window :]  # no state: the rest is empty
        count = queries.shape[1]
        place = torch.arange(count)
        seen = (place[:, None] // self.window == place // self.window) & (place[:, None] >= place)
        scores = (queries @ keys.mT / self.z_dim**0.5).masked_fill(~seen, -math.inf)
        return torch.softmax(scores, -1) @ values


def layers(name: str, size: Size, length: int) -> list[nn.Module]:
    """Two layers of one of the four kinds."""
    made: list[nn.Module] = []
    for _ in range(2):
        settings: dict[str, Any] = {"z_dim": 32, "window": size.window}
        if name == ALL:
            settings |= {"always_act": True, "window": length}
        mixer = ChunkedUnit(WIDTH, always_act=True, **settings) if name == CHUNKED else SeqBoat(WIDTH, **settings)
        if name == NEVER:
            with torch.no_grad():
                mixer.hx_proj.bias[1] = -1e4
        made.append(mixer)
    return made


def recall(n: int, seed: int, size: Size, split: str = "train") -> tuple[Examples, np.ndarray, np.ndarray]:
    """Pairs of key and value, then noise with questions in it; (examples, where pairs or questions are, questions).

    Each of PAIRS keys is asked ASKED times, at random places; its value is the target there.  The target of noise,
    whose ids occur nowhere else, is the token itself: what attention writes there only disturbs.  Pairs have no target.
    """
    rng = np.random.default_rng([seed, n, split == "test"])
    half, length = VOCABULARY // 2, size.length
    keys = rng.permuted(np.broadcast_to(np.arange(half), (n, half)), axis=1)[:, :PAIRS]
    values = half + rng.integers(0, half, (n, PAIRS))
    inputs = rng.integers(VOCABULARY, VOCABULARY + NOISE, (n, length))
    inputs[:, 0 : 2 * PAIRS : 2], inputs[:, 1 : 2 * PAIRS : 2] = keys, values
    count = min(PAIRS * ASKED, length - 2 * PAIRS)
    places = 2 * PAIRS + rng.random((n, length - 2 * PAIRS)).argsort(1)[:, :count]
    which = rng.permuted(np.broadcast_to(np.arange(count) % PAIRS, (n, count)), axis=1)
    np.put_along_axis(inputs, places, np.take_along_axis(keys, which, 1), 1)
    targets, asked = inputs.copy(), np.zeros(inputs.shape, bool)
    np.put_along_axis(targets, places, np.take_along_axis(values, which, 1), 1)
    np.put_along_axis(asked, places, True, 1)
    targets[:, : 2 * PAIRS] = -100
    needed = asked.copy()
    needed[:, : 2 * PAIRS] = True
    ids = VOCABULARY + NOISE
    return (
        Examples(inputs, targets, TaskMeta("recall", "tokens", "tokens", ids, 1 / half, vocabulary=ids)),
        needed,
        asked,
    )


def copies(n: int, seed: int, size: Size) -> Examples:
    """The token of three places before."""
    ids = np.random.default_rng([1, seed, n]).integers(0, VOCABULARY, (n, size.length // 2))
    targets = np.full_like(ids, -100)
    targets[:, 3:] = ids[:, :-3]
    meta = TaskMeta("copy", "tokens", "tokens", VOCABULARY, 1 / VOCABULARY, vocabulary=VOCABULARY)
    return Examples(ids, targets, meta)


def network(name: str, ids: int, size: Size, length: int, *, tied: bool = False) -> SmallNetwork:
    """tied: head and embedding are one, so that to say a token again need not be learned."""
    return SmallNetwork(ids, ids, layers(name, size, length), width=WIDTH, tokens=True, tied=tied)


def routed(model: SmallNetwork, examples: Examples) -> tuple[np.ndarray, list[np.ndarray], list[np.ndarray]]:
    """(predictions, the router's u₁ − u₀ of every layer, activation of every layer), each (n, L)."""
    logits: list[list[Tensor]] = [[] for _ in model.layers]
    hooks = [
        layer.hx_proj.register_forward_hook(
            lambda module, inputs, out, i=i: logits[i].append(out[..., 1] - out[..., 0])
        )
        for i, layer in enumerate(model.layers)
    ]
    found = predictions(model, examples).argmax(-1)
    for hook in hooks:
        hook.remove()
    scores = [torch.cat(parts).numpy() for parts in logits]
    always = [bool(layer.always_act) for layer in model.layers]
    return found, scores, [np.ones_like(s, bool) if every else s > 0 for s, every in zip(scores, always, strict=True)]


def keys_seen(active: np.ndarray, name: str, window: int) -> float:
    """Products of a query and a key for each token of the text."""
    place = active.cumsum(1)
    if name == CHUNKED:
        seen = np.broadcast_to(np.arange(active.shape[1]) % window + 1, active.shape)
    else:
        seen = place if name == ALL else np.minimum(place, window + 1)
    return float((seen * active).sum() / active.size)


def recall_numbers(name: str, size: Size, seed: int) -> dict[str, Any]:
    torch.manual_seed(seed)
    model = network(name, VOCABULARY + NOISE, size, size.length, tied=True)
    fit(model, lambda step: recall(size.batch, seed * 100_000 + step, size)[0], steps=size.recall_steps, rate=size.rate)
    test, needed, asked = recall(size.tested, 0, size, "test")
    found, scores, active = routed(model, test)
    return {
        "accuracy": float((found == test.targets)[asked].mean()),
        "rates": [float(a.mean()) for a in active],
        "aucs": [float(auroc(s.ravel(), needed.ravel())) for s in scores],
        "keys": float(np.mean([keys_seen(a, name, size.window) for a in active])),
    }


def copy_numbers(size: Size, seed: int) -> dict[str, Any]:
    torch.manual_seed(seed)
    model = network(SPARSE, VOCABULARY, size, size.length)
    fit(model, lambda step: copies(size.batch, seed * 100_000 + step, size), steps=size.copy_steps, rate=size.rate)
    test = copies(size.tested, 10**9 + seed, size)
    found, _, active = routed(model, test)
    right = float((found == test.targets)[test.targets != -100].mean())
    return {"accuracy": right, "rates": [float(a.mean()) for a in active]}


def text_numbers(name: str, size: Size, seed: int) -> dict[str, Any]:
    torch.manual_seed(seed)
    model = network(name, 256, size, size.text_length)

    def batch(step: int) -> Examples:
        return make_bytes(size.batch, seed * 100_000 + step, length=size.text_length)

    fit(model, batch, steps=size.text_steps, rate=size.rate)
    test = make_bytes(min(size.tested, 128), 0, split="test", length=size.text_length)
    with torch.no_grad():
        bits = float(loss_of(model, test)) / math.log(2)
    return {"bits": bits, "rates": [float(a.mean()) for a in routed(model, test)[2]]}


# --- the study --------------------------------------------------------------------------------------------------------


def study(
    cells: Cells, size: Size, *, full: bool, threads: int = 1, command: str = "", say: Callable[[str], None] = report,
) -> Evidence:  # fmt: skip
    started = time.perf_counter()
    torch.set_num_threads(threads)
    figures: list[Figure] = []
    checks: list[Check] = []

    def must_be(statement: str, value: float, bound: float, unit: str) -> None:
        checks.append(Check(statement=statement, value=float(value), bound=bound, unit=unit))

    def rows(cell: str, measure: Callable[[int], dict[str, Any]]) -> list[dict[str, Any]]:
        found = [cells.value(f"{cell}, seed {s}", lambda s=s: measure(s)) for s in range(size.seeds)]
        say(f"{cell}: {found}")
        return found

    def figure(subject: str, quantity: str, values: list[float], unit: str) -> Figure:
        figures.append(mean_figure(subject, quantity, values, unit))
        return figures[-1]

    recalled = {
        name: rows(f"recall, {name}", lambda s, name=name: recall_numbers(name, size, s))
        for name in (SPARSE, CHUNKED, ALL)
    }
    copied = rows("copy", lambda s: copy_numbers(size, s))
    texts = {
        name: rows(f"text, {name}", lambda s, name=name: text_numbers(name, size, s)) for name in (SPARSE, NEVER, ALL)
    }
    rates: dict[tuple[str, int], Figure] = {}
    for task, found in ((COPY, copied), (RECALL, recalled[SPARSE])):
        for i in range(2):
            shares = [row["rates"][i] for row in found]
            rates[task, i] = figure(f"{SPARSE}, layer {i + 1}", f"activation, {task}", shares, "share of tokens")
    figure(SPARSE, "accuracy, copy", [row["accuracy"] for row in copied], "accuracy")
    right = {
        name: figure(name, "accuracy, recall", [row["accuracy"] for row in found], "accuracy")
        for name, found in recalled.items()
    }
    for name, found in recalled.items():
        figure(name, "keys per token, recall", [row["keys"] for row in found], "keys")
    best = figure(
        SPARSE, "AUC of the router, recall", [max(row["aucs"]) for row in recalled[SPARSE]], "area under the curve"
    )
    bits = {
        name: figure(name, "text", [row["bits"] for row in found], "bits per byte") for name, found in texts.items()
    }
    on_text = figure(SPARSE, "activation, text", [float(np.mean(row["rates"])) for row in texts[SPARSE]],
                     "share of tokens")  # fmt: skip

    difference = max(rates[RECALL, i].value - rates[COPY, i].value for i in range(2))
    must_be(
        f"{LEAST_RATE} less what the activation of recall is above that of the copy, in one layer",
        LEAST_RATE - difference, 0.0, "share of tokens",
    )  # fmt: skip
    must_be(f"{LEAST_AUC} less the AUC of the router, pairs and questions against noise", LEAST_AUC - best.value, 0.0,
            "area under the curve")  # fmt: skip
    must_be(
        f"recall: accuracy in chunks of {size.window}, plus {LEAST_GAIN}, less that of SeqBoat",
        right[CHUNKED].value + LEAST_GAIN - right[SPARSE].value, 0.0, "accuracy",
    )  # fmt: skip
    must_be(
        "text: bits per byte of SeqBoat less those of the recurrence alone", bits[SPARSE].value - bits[NEVER].value,
        0.0, "bits per byte",
    )  # fmt: skip
    must_be(
        "text: bits per byte of SeqBoat less those of attention on every token", bits[SPARSE].value - bits[ALL].value,
        NEAR, "bits per byte",
    )  # fmt: skip
    must_be("text: share of the tokens that SeqBoat activates", on_text.value, MOST_ACTIVE, "share of tokens")
    return conclude(
        NAME,
        title="SeqBoat: sparse modular activation",
        claim=(
            "A layer that decides by itself on which tokens its attention runs needs little of it, shows where it is "
            "needed, and with a window of activated tokens reaches further than chunks do."
        ),
        paper_figure=(
            "best among hybrids of linear complexity in language modelling, speech and Long Range Arena; enwik8 about "
            "1.02 bits per character"
        ),
        ours=(
            f"activation by layer {rates[COPY, 0].value:.0%}, {rates[COPY, 1].value:.0%} on a copy and "
            f"{rates[RECALL, 0].value:.0%}, {rates[RECALL, 1].value:.0%} on recall (router's AUC {best.value:.2f}); "
            f"recall of {PAIRS} pairs in {size.length} tokens: SeqBoat {right[SPARSE].value:.1%}, chunks "
            f"{right[CHUNKED].value:.1%}, full attention {right[ALL].value:.1%}; text: {bits[SPARSE].value:.3f} bits "
            f"per byte at {on_text.value:.0%} activated, recurrence alone {bits[NEVER].value:.3f}, every token "
            f"{bits[ALL].value:.3f}"
        ),
        figures=figures,
        checks=checks,
        samples=(
            f"{size.seeds} seeds; two layers of width {WIDTH}, window {size.window}; {size.recall_steps} steps of "
            f"{size.batch} rows of {size.length} tokens for recall, {size.copy_steps} for the copy, {size.text_steps} "
            f"of {size.text_length} bytes of Tiny Shakespeare; {size.tested} rows to test"
        ),
        intervals="95 %: Student's t over seeds",
        full=full,
        data=data_sources([("tinyshakespeare", None)]),
        threads=threads,
        seconds=time.perf_counter() - started,
        command=command,
        not_shown=[
            "enwik8, the Long Range Arena, speech commands: days on GPUs.",
            "Seconds: work is counted in keys that a token is compared with.",
        ],
    )


def measure(options: argparse.Namespace) -> Evidence:
    size = SMOKE if options.quick else FULL if options.full else QUICK
    cells = Cells(options.kept, json.loads(json.dumps(asdict(size))))
    return study(cells, size, full=options.full, threads=options.threads)


def main() -> None:
    parser = arguments(full="5 seeds, more steps", quick="tiny", threads="of torch", kept="seqboat_cells.jsonl")
    parser.set_defaults(threads=1)
    run_study(parser, measure)


if __name__ == "__main__":
    run_script(main)
