"""Make a draft model for SmolLM2-135M: its first layers, with a head of their own, taught the target's next-token law.

1. Keep the first layers.  What they put out is mapped on the target's final hidden state by least squares (a closed
   form), and the map is folded into the head: top-1 agreement before any training.
2. Train layers and map on local text: KL(target || draft) over the most frequent tokens, plus the squared distance of
   the final hidden states, which is the other tokens' share at the price of one vector.

The result is a folder that `likely.load(FOLDER)` and `likely generate --drafter model:FOLDER` take.  It is kept in the
cache and made once per recipe.  Embeddings are the target's; everything stays in the target's family (Llama).

  python reproductions/distil_draft.py                   5 minutes of training
  python reproductions/distil_draft.py --minutes 20 --out drafts/smollm2

Printed for the bare first layers, the fitted and the trained draft: top-1 agreement with the target on held-out text;
for the last two, tokens per call (τ) of speculative decoding on held-out questions.
"""

from __future__ import annotations

import argparse
import copy
import json
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from study import run_script
from torch.nn.functional import cross_entropy

import likely
from likely.data import load_records
from likely.decoding.drafting.model.drafter import DraftModel
from likely.decoding.drafting.trees.shapes import Chain
from likely.io.hashes import cache_dir, file_sha256
from likely.io.whole_file import write_whole_file
from likely.metrics.bootstrap import median_interval
from likely.metrics.intervals import wilson
from likely.models.catalog import find_model, known_model
from likely.runtimes.machine import cores
from likely.runtimes.torch.runtime import TorchRuntime
from likely.tokenizers.files import save_tokenizer
from likely.tokenizers.gguf import tokenizer_from_gguf
from likely.tokenizers.huggingface import HFTokenizer

Tokens = NDArray[np.int64]
HIDDEN_WEIGHT = 0.5  # of the squared distance of final hidden states, beside the KL
WARM_UP = 0.05  # share of the training in which the learning rate rises; it then falls to a tenth
RIDGE = 1e-3  # of the least squares, in units of the mean square of a coordinate


@dataclass(frozen=True)
class Recipe:
    """Everything that the draft depends on, beside the target.

    layers   how many of the target's first layers are kept
    fitted   windows of text that the map is fitted on
    columns  tokens over which the KL is taken: the most frequent ones of the text
    steps    of training; 0: as many as fit into `minutes`
    """

    layers: int = 6
    minutes: float = 5.0
    steps: int = 0
    fitted: int = 64
    columns: int = 8192
    window: int = 256
    batch: int = 4
    rate: float = 5e-4
    seed: int = 0


def first_layers(target: torch.nn.Module, layers: int) -> torch.nn.Module:
    """A model of the target's family with copies of its first layers, its embeddings, norm and head (untied)."""
    config = copy.deepcopy(target.config)
    if not 1 <= layers <= config.num_hidden_layers:
        raise ValueError(f"layers must lie in 1..{config.num_hidden_layers}, got {layers}")
    config.num_hidden_layers, config.tie_word_embeddings = layers, False
    draft = type(target)(config).to(next(target.parameters()).dtype)
    weights = target.state_dict() | {"lm_head.weight": target.get_output_embeddings().weight}
    draft.load_state_dict({name: weights[name] for name in draft.state_dict()})
    return draft.eval()


class States:
    """Final hidden states of the target, (T, D) per window after the final norm; computed once."""

    def __init__(self, target: torch.nn.Module, windows: Tokens):
        self._decoder = copy.deepcopy(target.get_decoder()).bfloat16()
        self._windows, self._known = windows, {}

    def of(self, numbers: Sequence[int] | Tokens) -> torch.Tensor:
        if any(int(n) not in self._known for n in numbers):
            with torch.no_grad():
                states = self._decoder(input_ids=torch.from_numpy(self._windows[numbers]), use_cache=False)[0]
            self._known.update((int(n), s) for n, s in zip(numbers, states, strict=True))
        return torch.stack([self._known[int(n)] for n in numbers])


def fitted_map(draft: torch.nn.Module, states: States, windows: Tokens, recipe: Recipe) -> torch.Tensor:
    """W (D, D) that minimises the sum of |y - W x|², x the draft's final states and y the target's; a little ridge."""
    width = draft.config.hidden_size
    xx, xy = torch.zeros(width, width, dtype=torch.float64), torch.zeros(width, width, dtype=torch.float64)
    numbers = np.random.default_rng(recipe.seed).permutation(len(windows))[: recipe.fitted]
    for some in np.array_split(numbers, max(1, len(numbers) // recipe.batch)):
        with torch.no_grad():
            x = draft.get_decoder()(input_ids=torch.from_numpy(windows[some]), use_cache=False)[0]
        x, y = x.flatten(0, 1).double(), states.of(some).flatten(0, 1).double()
        xx += x.T @ x
        xy += x.T @ y
    xx += RIDGE * xx.trace() / width * torch.eye(width, dtype=torch.float64)
    return torch.linalg.solve(xx, xy).T.float()


def fold(draft: torch.nn.Module, target: torch.nn.Module, mapping: torch.Tensor) -> torch.nn.Module:
    """The draft with `mapping` (D, D) inside its head: logits = (target's head) W x."""
    with torch.no_grad():
        draft.get_output_embeddings().weight.copy_(target.get_output_embeddings().weight @ mapping)
    return draft


def divergence(target: torch.Tensor, draft: torch.Tensor) -> torch.Tensor:
    """Mean over rows of KL(p || q), p and q the softmax of logits (N, C) of target and draft; in fp32."""
    p = target.float().softmax(-1)
    return cross_entropy(draft.float(), p) - cross_entropy(target.float(), p)


def distil(
    target: torch.nn.Module,
    draft: torch.nn.Module,
    mapping: torch.Tensor,
    states: States,
    windows: Tokens,
    recipe: Recipe,
    report: Callable[[str], None],
) -> tuple[torch.Tensor, int]:
    """Train the draft's layers and norm in place on windows (W, T) of ids; returns (the trained map, steps)."""
    head = target.get_output_embeddings().weight.detach()
    frequent = np.argsort(-np.bincount(windows.ravel(), minlength=len(head)), kind="stable")[: recipe.columns]
    head = head[torch.from_numpy(frequent.copy())].clone()
    mapping = torch.nn.Parameter(mapping.clone())
    decoder = draft.get_decoder()
    draft.requires_grad_(False)
    learned = [*decoder.layers.parameters(), *decoder.norm.parameters()]
    for parameter in learned:
        parameter.requires_grad_(True)
    learned.append(mapping)
    optimiser = torch.optim.AdamW(learned, lr=recipe.rate, betas=(0.9, 0.95), weight_decay=0.0)
    started, step, recent = time.monotonic(), 0, []
    draft.train()
    for numbers in _batches(len(windows), recipe):
        done = step / recipe.steps if recipe.steps else (time.monotonic() - started) / (60 * recipe.minutes)
        if done >= 1:
            break
        for group in optimiser.param_groups:
            group["lr"] = recipe.rate * (max(done, 0.002) / WARM_UP if done < WARM_UP else 1 - 0.9 * (done - WARM_UP))
        wanted = states.of(numbers)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = decoder(input_ids=torch.from_numpy(windows[numbers]), use_cache=False)[0] @ mapping.T
            loss = divergence((wanted @ head.T).flatten(0, 1), (found @ head.T).flatten(0, 1))
            distance = (found.float() - wanted.float()).square().mean() / wanted.float().square().mean()
        (loss + HIDDEN_WEIGHT * distance).backward()
        torch.nn.utils.clip_grad_norm_(learned, 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        step += 1
        recent.append(float(loss.detach()))
        if step % 20 == 0:
            report(f"step {step}: KL {np.mean(recent[-20:]):.3f} nats, {100 * done:.0f} %")
    draft.requires_grad_(True)
    draft.eval()
    return mapping.detach(), step


def _batches(n: int, recipe: Recipe) -> Iterator[Tokens]:
    rng = np.random.default_rng(recipe.seed)
    size = min(recipe.batch, n)
    while True:
        order = rng.permutation(n)
        yield from order[: n - n % size].reshape(-1, size)


# --- text -------------------------------------------------------------------------------------------------------------


def training_pieces(lm: likely.Model) -> Iterator[list[int]]:
    """Encyclopedia and web pages; school mathematics and Python as conversations.

    Spec-Bench took questions from GSM8K: those are left out, so that all of Spec-Bench is held out.
    """
    asked = "\n".join(turn for row in load_records("spec-bench") for turn in row["turns"])
    for rows in (load_records("wikitext2", "wiki.test.raw.gz"), load_records("c4_sample")):
        yield lm.tokenizer.encode("\n".join(row["text"] for row in rows))
    talks = [(row["question"], row["answer"]) for row in list(load_records("gsm8k"))[:700]]
    talks = [(question, answer) for question, answer in talks if question.strip() not in asked]
    talks += [(row["text"], row["code"]) for row in load_records("mbpp", "mbpp.train.jsonl.gz")]
    for question, answer in talks:
        messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        yield lm.render(messages).tokens


def held_out_text() -> str:
    return "\n".join(row["text"] for row in list(load_records("wikitext2", "wiki.valid.raw.gz"))[:400])


def held_out_questions() -> list[str]:
    found = [row["turns"][0] for row in load_records("spec-bench")]
    return [text for text in found if len(text) < 1500][::4]


def windows_of(pieces: Sequence[Sequence[int]], window: int) -> Tokens:
    """(W, T) of all pieces one after the other."""
    tokens = np.concatenate([np.asarray(p, np.int64) for p in pieces])
    return tokens[: len(tokens) - len(tokens) % window].reshape(-1, window)


# --- what it is worth -------------------------------------------------------------------------------------------------


def agreement(target: torch.nn.Module, draft: torch.nn.Module, windows: Tokens) -> tuple[int, int]:
    """(positions of the windows (W, T) at which both find the same token likeliest, all positions)."""
    same = 0
    with torch.no_grad():
        for batch in torch.from_numpy(windows).split(4):
            same += int((target(batch).logits.argmax(-1) == draft(batch).logits.argmax(-1)).sum())
    return same, windows.size


def tokens_per_call(
    lm: likely.Model, draft: torch.nn.Module, prompts: Sequence[str], *, length: int = 5, max_tokens: int = 64,
    temperature: float = 0.0,
) -> tuple[list[float], int]:  # fmt: skip
    """(τ per prompt, answers whose tokens are those of plain decoding): chat answers, chains of `length`."""
    runtime = TorchRuntime(draft, revision="draft")
    source = DraftModel(runtime, shape=Chain(length), name="distilled")
    taus, same = [], 0
    for text in prompts:
        options: dict[str, Any] = {"max_tokens": max_tokens, "temperature": temperature, "seed": 1}
        plain = lm.chat([{"role": "user", "content": text}], **options)
        drafted = lm.chat([{"role": "user", "content": text}], drafter=source, draft_budget=length, **options)
        taus.append(len(drafted.token_ids or []) / max(drafted.target_calls, 1))
        same += plain.token_ids == drafted.token_ids
    runtime.shutdown()
    return taus, same


def describe(lm: likely.Model, draft: torch.nn.Module, held: Tokens, prompts: Sequence[str]) -> dict[str, Any]:
    same, n = agreement(lm.runtime.module, draft, held)  # type: ignore[attr-defined]
    worth: dict[str, Any] = {"top1_agreement": same / n, "top1_interval": list(wilson(same, n)), "positions": n}
    if prompts:
        taus, identical = tokens_per_call(lm, draft, prompts)
        low, high = median_interval(taus) if len(taus) > 1 else (taus[0], taus[0])
        worth |= {
            "tokens_per_call": float(np.mean(taus)), "tokens_per_call_interval": [float(low), float(high)],
            "prompts": len(prompts), "identical_to_plain": identical,
        }  # fmt: skip
    return worth


def line(worth: dict[str, Any]) -> str:
    a, b = worth["top1_interval"]
    text = f"top-1 agreement {worth['top1_agreement']:.3f} [{a:.3f}, {b:.3f}] on {worth['positions']} tokens"
    if "prompts" in worth:
        c, d = worth["tokens_per_call_interval"]
        text += (
            f"; {worth['tokens_per_call']:.2f} [{c:.2f}, {d:.2f}] tokens per call on {worth['prompts']} answers, "
            f"{worth['identical_to_plain']} of them identical to plain decoding"
        )
    return text


def make(
    source: Path, folder: Path, recipe: Recipe, *, held_tokens: int = 4096, prompts: int = 8,
    report: Callable[[str], None] = print,
) -> dict[str, Any]:  # fmt: skip
    """Make a draft of the GGUF file `source`, write it to `folder`, and return what it is worth."""
    torch.manual_seed(recipe.seed)
    tokenizer = tokenizer_from_gguf(source)
    with likely.load(str(source), runtime="torch", dtype="float32") as lm:
        target = lm.runtime.module  # type: ignore[attr-defined]
        windows = windows_of(list(training_pieces(lm)), recipe.window)
        held = windows_of([tokenizer.encode(held_out_text())[:held_tokens]], recipe.window)
        asked = held_out_questions()[:prompts]
        draft, states = first_layers(target, recipe.layers), States(target, windows)
        report(f"{recipe.layers} of {target.config.num_hidden_layers} layers, {windows.size:,} tokens of text")
        found = {"first layers": describe(lm, draft, held, ())}
        report(f"first layers: {line(found['first layers'])}")
        mapping = fitted_map(draft, states, windows, recipe)
        found["fitted"] = describe(lm, fold(draft, target, mapping), held, asked)
        report(f"fitted: {line(found['fitted'])}")
        mapping, steps = distil(target, draft, mapping, states, windows, recipe, report)
        found["trained"] = describe(lm, fold(draft, target, mapping), held, asked)
        report(f"trained: {line(found['trained'])}")
    facts = {"recipe": asdict(recipe), "target": file_sha256(source), "steps": steps, "worth": found}
    save(draft, tokenizer, folder, facts)
    return facts


def save(draft: torch.nn.Module, tokenizer: HFTokenizer, folder: Path, facts: dict[str, Any]) -> None:
    """A folder that transformers and likely load; draft.json says how it was made."""
    from transformers.utils import logging

    folder.mkdir(parents=True, exist_ok=True)
    logging.disable_progress_bar()
    draft.save_pretrained(folder, safe_serialization=True)
    save_tokenizer(tokenizer, folder, context_length=draft.config.max_position_embeddings)
    write_whole_file(folder / "draft.json", (json.dumps(facts, indent=1) + "\n").encode())


def kept(folder: Path, recipe: Recipe, source: Path) -> dict[str, Any] | None:
    """What is known of a draft made earlier by the same recipe from the same target; None if there is none."""
    try:
        facts = json.loads((folder / "draft.json").read_text("utf-8"))
    except (OSError, ValueError):
        return None
    same = facts.get("recipe") == json.loads(json.dumps(asdict(recipe))) and facts.get("target") == file_sha256(source)
    return facts if same else None


def main() -> None:
    defaults = Recipe()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=defaults.minutes, help="of training")
    parser.add_argument("--steps", type=int, default=0, help="of training, instead of minutes: the same result again")
    parser.add_argument("--layers", type=int, default=defaults.layers, help="of the target to keep")
    parser.add_argument("--rate", type=float, default=defaults.rate, help="learning rate")
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument("--threads", type=int, default=cores())
    parser.add_argument("--out", type=Path, help="folder of the draft; default: in the cache")
    parser.add_argument("--again", action="store_true", help="train even if this recipe's draft is there")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    recipe = Recipe(
        layers=options.layers, minutes=options.minutes, steps=options.steps, rate=options.rate, seed=options.seed,
    )  # fmt: skip
    model = known_model("smollm2")
    assert model is not None
    source = find_model(model.name)
    folder = options.out or cache_dir() / "drafts" / "smollm2"
    facts = None if options.again else kept(folder, recipe, source)
    if facts is None:
        facts = make(source, folder, recipe)
    else:
        for name, worth in facts["worth"].items():
            print(f"{name}: {line(worth)}")
    print(f"{facts['steps']} steps; likely generate --drafter model:{folder}")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    run_script(main)
