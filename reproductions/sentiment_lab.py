"""The sentiment lab: a small language model of movie reviews, a gold reward, and a reward model that stands in for it.

What studies of alignment share: a Llama of a million parameters trained from scratch on the snippets, prompts (the
beginnings of other snippets), the gold reward (VADER's compound score of the completion, times 2) and a Bradley-Terry
proxy that counts tokens.  Policy and proxy are trained once and kept in the cache folder.

  python reproductions/sentiment_lab.py     train both, print perplexity, rewards and a few samples
"""

from __future__ import annotations

import argparse
import copy
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.sparse import csr_array
from study import arguments, data_sources, report, run_script
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils import logging

from likely.alignment.frontier import KL_ESTIMATORS, KlEstimator, PolicySamples
from likely.data import load_records
from likely.errors import missing_extra
from likely.evidence import Source
from likely.io.hashes import cache_dir, fingerprint
from likely.io.kept import KeptValues
from likely.io.whole_file import write_whole_file
from likely.training import train
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

DATA = ("sentiment-snippets", "movie_train.jsonl.gz"), ("sentiment-snippets", "movie_test.jsonl.gz")
EOS = 0  # begins and ends every text
MAX_NEW = 24
REWARD_SCALE = 2.0
TRAINING_PROMPTS = 800  # the first of the prompts; evaluation takes from the rest
ROWS = 1024  # sequences in one forward without gradients
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class LabSettings:
    """What policy and proxy are trained with; another value is another lab in the cache folder."""

    vocab: int = 2048
    width: int = 128
    layers: int = 4
    epochs: int = 5
    batch: int = 32
    learning_rate: float = 2e-3
    texts: int = 8000
    prompt_tokens: int = 6
    proxy_pairs: int = 6000
    proxy_prior: float = 3.0
    seed: int = 0


@dataclass(frozen=True)
class Candidates:
    """N sampled completions.

    prompt   (N,) row of the prompt among those that were sampled for
    ids      prompt and completion, the end of text included where the completion ended
    starts   (N,) where the completion begins in `ids`
    logprob  (N,) of the completion under the law that it was sampled from, in nats
    finished (N,) whether it ended before the limit
    texts    of the completions
    """

    prompt: NDArray[np.int64]
    ids: list[list[int]]
    starts: NDArray[np.int64]
    logprob: Floats
    finished: NDArray[np.bool_]
    texts: list[str]

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, rows: Iterable[int]) -> Candidates:
        at = np.asarray(list(rows), np.int64)
        return Candidates(
            self.prompt[at], [self.ids[i] for i in at], self.starts[at], self.logprob[at], self.finished[at],
            [self.texts[i] for i in at],
        )  # fmt: skip

    @property
    def lengths(self) -> NDArray[np.int64]:
        return np.array([len(ids) for ids in self.ids]) - self.starts


# --- the model --------------------------------------------------------------------------------------------------------


def train_tokenizer(texts: Sequence[str], vocab: int) -> Tokenizer:
    """Byte-level BPE whose words keep the blank before them, so that a prompt's tokens are those of the whole text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab, special_tokens=["<|end|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def new_policy(settings: LabSettings) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=settings.vocab, hidden_size=settings.width, intermediate_size=3 * settings.width,
        num_hidden_layers=settings.layers, num_attention_heads=max(1, settings.width // 32),
        num_key_value_heads=max(1, settings.width // 32), max_position_embeddings=256, tie_word_embeddings=True,
        bos_token_id=EOS, eos_token_id=EOS, pad_token_id=None,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        return LlamaForCausalLM(config)


def padded(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """(ids, attention mask), each (N, T), padded on the right."""
    longest = max(len(row) for row in rows)
    ids = torch.tensor([[*row, *[EOS] * (longest - len(row))] for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    return ids, mask


def completion_logprobs(module: nn.Module, rows: Candidates) -> tuple[Tensor, Tensor]:
    """(token log-probabilities, mask of the completion), each (N, C) from the first completion's start on, in nats.

    With gradients where they are on.
    """
    ids, mask, first = _batch(rows)
    logits = _rows_of(module, ids, mask, first)
    chosen = logits.gather(-1, ids[:, first:, None]).squeeze(-1) - logits.logsumexp(-1)
    counted = _completion_mask(rows, mask, first)
    return chosen * counted, counted


def _batch(rows: Candidates) -> tuple[Tensor, Tensor, int]:
    """ids and mask (N, T), and the first place of a completion."""
    return *padded(rows.ids), int(rows.starts.min())


def _rows_of(module: nn.Module, ids: Tensor, mask: Tensor, first: int) -> Tensor:
    """(N, T − first, V) logits of the tokens from `first` on."""
    return module(input_ids=ids, attention_mask=mask, logits_to_keep=ids.shape[1] - first + 1).logits[:, :-1].float()


def _completion_mask(rows: Candidates, mask: Tensor, first: int) -> Tensor:
    return mask[:, first:].bool() & (torch.arange(first, mask.shape[1]) >= torch.from_numpy(rows.starts)[:, None])


@torch.no_grad()
def sequence_logprob(module: nn.Module, rows: Candidates) -> Floats:
    """(N,) log-probability of each completion, in nats."""
    found = np.zeros(len(rows))
    for at in by_length([len(ids) for ids in rows.ids], ROWS):
        found[at] = completion_logprobs(module, rows.take(at))[0].sum(-1).double().numpy()
    return found


@torch.no_grad()
def kl_of(policy: nn.Module, reference: nn.Module, rows: Candidates) -> dict[KlEstimator, Floats]:
    """KL of each completion by estimator, (N,) in nats; see `likely.alignment.frontier`."""
    found: dict[KlEstimator, Floats] = {name: np.zeros(len(rows)) for name in KL_ESTIMATORS}
    if policy is reference:
        return found
    for at in by_length([len(ids) for ids in rows.ids], ROWS // 4):
        chunk = rows.take(at)
        ids, mask, first = _batch(chunk)
        ours, theirs = (_rows_of(module, ids, mask, first).log_softmax(-1) for module in (policy, reference))
        counted = _completion_mask(chunk, mask, first)
        ratio = (ours - theirs).gather(-1, ids[:, first:, None]).squeeze(-1).double()
        steps = (ours.exp() * (ours - theirs)).sum(-1).double()
        sums = {"exact": steps, "k1": ratio, "k3": torch.expm1(-ratio) + ratio}
        for name in KL_ESTIMATORS:
            found[name][at] = (sums[name] * counted).sum(-1).numpy()
    return found


def by_length(lengths: Sequence[int], size: int) -> Iterator[NDArray[np.int64]]:
    """Row numbers in batches of about one length."""
    order = np.argsort(lengths, kind="stable")
    for first in range(0, len(order), size):
        yield order[first : first + size]


@torch.no_grad()
def sample(
    module: nn.Module,
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[int]],
    n: int,
    *,
    seed: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    next_logits: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> Candidates:
    """n completions of each prompt, in the order of the prompts.

    next_logits  of (tokens so far (N, T), the policy's logits (N, V)): what to sample from instead
    """
    generator = torch.Generator().manual_seed(seed)
    rows: list[Any] = [None] * (len(prompts) * n)
    for length in sorted({len(prompt) for prompt in prompts}):
        same = [i for i, prompt in enumerate(prompts) if len(prompt) == length for _ in range(n)]
        for first in range(0, len(same), ROWS):
            chunk = same[first : first + ROWS]
            tokens = torch.tensor([list(prompts[i]) for i in chunk])
            drawn = _sample_rows(module, tokens, generator, temperature, top_k, next_logits)
            for at, (i, (ids, logprob, finished)) in enumerate(zip(chunk, drawn, strict=True), start=first):
                place = i * n + at % n
                text = tokenizer.decode(ids, skip_special_tokens=True)
                rows[place] = i, [*prompts[i], *ids], length, logprob, finished, text
    prompt, ids, starts, logprob, finished, texts = zip(*rows, strict=True)
    return Candidates(
        np.array(prompt), list(ids), np.array(starts), np.array(logprob), np.array(finished), list(texts)
    )  # fmt: skip


def _sample_rows(
    module: nn.Module, tokens: Tensor, generator: torch.Generator, temperature: float, top_k: int | None,
    next_logits: Callable[[Tensor, Tensor], Tensor] | None,
) -> Iterator[tuple[list[int], float, bool]]:  # fmt: skip
    start, seen = tokens.shape[1], tokens
    total, ended = torch.zeros(len(tokens), dtype=torch.float64), torch.zeros(len(tokens), dtype=torch.bool)
    cache: Any = None
    for _ in range(MAX_NEW):
        step = module(input_ids=seen, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache, logits = step.past_key_values, step.logits[:, -1].float()
        if next_logits is not None:
            logits = next_logits(tokens, logits)
        logits = logits / temperature
        if top_k is not None:
            logits = logits.masked_fill(logits < logits.topk(top_k).values[:, -1:], -math.inf)
        logprobs = logits.log_softmax(-1)
        seen = torch.multinomial(logprobs.exp(), 1, generator=generator)
        total += logprobs.gather(-1, seen).squeeze(-1).double() * ~ended
        tokens = torch.cat([tokens, seen], 1)
        ended |= seen.squeeze(-1) == EOS
        if bool(ended.all()):
            break
    for row, logprob, finished in zip(tokens[:, start:].tolist(), total.tolist(), ended.tolist(), strict=True):
        yield (row[: row.index(EOS) + 1] if finished else row), logprob, finished


# --- the lab ----------------------------------------------------------------------------------------------------------


def train_policy(
    lab: Lab,
    batches: Iterable[NDArray[np.int64]],
    loss: Callable[[LlamaForCausalLM, NDArray[np.int64]], Tensor],
    learning_rate: float,
    checkpoints: Mapping[int, Callable[[LlamaForCausalLM], None]],
) -> LlamaForCausalLM:
    """The reference after a step of AdamW for each batch; checkpoints: what is done after so many steps."""
    policy = lab.policy()
    optimizer = torch.optim.AdamW(policy.parameters(), lr=learning_rate, weight_decay=0.0)
    warm_up = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 5))

    def after(step: int, _: float) -> None:
        if step + 1 in checkpoints:
            checkpoints[step + 1](policy)

    train(batches, lambda batch: loss(policy, batch), optimizer, schedule=warm_up, clip=1.0, progress=after)
    return policy


def kept_samples(samples: PolicySamples) -> dict[str, Any]:
    """As JSON, see `read_samples`."""
    return {
        "name": samples.name,
        "prompt": samples.prompt.tolist(),
        "rewards": {name: np.round(values, 5).tolist() for name, values in samples.rewards.items()},
        "kl": {name: np.round(values, 5).tolist() for name, values in samples.kl.items()},
        "tokens": [list(tokens) for tokens in samples.tokens],
    }


def read_samples(record: Mapping[str, Any]) -> PolicySamples:
    return PolicySamples(
        record["name"], np.array(record["prompt"]), {k: np.array(v) for k, v in record["rewards"].items()},
        {k: np.array(v) for k, v in record["kl"].items()}, record["tokens"],
    )  # fmt: skip


def pooled(name: str, samples: Sequence[PolicySamples]) -> PolicySamples:
    """Of several seeds on the same prompts, as one policy with the completions of all."""
    return PolicySamples(
        name, np.concatenate([one.prompt for one in samples]),
        {key: np.concatenate([one.rewards[key] for one in samples]) for key in samples[0].rewards},
        {key: np.concatenate([one.kl[key] for one in samples]) for key in samples[0].kl},
        [tokens for one in samples for tokens in one.tokens],
    )  # fmt: skip


@dataclass(frozen=True, eq=False)
class Lab:
    """settings, tokenizer, the reference (frozen), the proxy, and prompts for training and for evaluation."""

    settings: LabSettings
    tokenizer: Tokenizer
    reference: LlamaForCausalLM
    proxy: TokenReward
    prompts: list[list[int]]
    held_out: list[list[int]]
    sources: list[Source]

    def policy(self) -> LlamaForCausalLM:
        """A copy of the reference to train; dropout is off in both."""
        module = copy.deepcopy(self.reference)
        module.requires_grad_(True)
        return module

    def sample(self, module: nn.Module, prompts: Sequence[Sequence[int]], n: int, **settings: Any) -> Candidates:
        """See `sample`."""
        return sample(module, self.tokenizer, prompts, n, **settings)

    def measure(
        self, name: str, module: nn.Module, prompts: Sequence[Sequence[int]], n: int, seed: int
    ) -> PolicySamples:
        """n completions of each prompt at temperature 1: gold and proxy reward, and KL by all three estimators."""
        rows = self.sample(module, prompts, n, seed=seed)
        return PolicySamples(
            name, rows.prompt, {"gold": self.gold(rows), "proxy": self.proxy_reward(rows)},
            kl_of(module, self.reference, rows),
            [ids[start:] for ids, start in zip(rows.ids, rows.starts, strict=True)],
        )  # fmt: skip

    def gold(self, rows: Candidates) -> Floats:
        """(N,) 2 · VADER's compound score of the completion, in [−2, 2]."""
        return np.array([REWARD_SCALE * self._compound(text) for text in rows.texts])

    def proxy_reward(self, rows: Candidates) -> Floats:
        """(N,) rewards of the Bradley-Terry model."""
        return self.proxy.rewards(rows)

    @cached_property
    def _compound(self) -> Callable[[str], float]:
        return gold_reward()


def gold_reward() -> Callable[[str], float]:
    """Text -> VADER's compound score."""
    try:
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
    except ImportError:
        raise missing_extra("vaderSentiment", "test") from None
    analyzer = SentimentIntensityAnalyzer()
    return lambda text: float(analyzer.polarity_scores(text)["compound"])


@dataclass(frozen=True, eq=False)
class TokenReward:
    """r(y) = Σ_t w[y_t]: what each token is worth, weights (V,); it cannot know negation, or more than a token."""

    weights: Floats

    def rewards(self, rows: Candidates) -> Floats:
        return np.array([self.weights[ids[start:]].sum() for ids, start in zip(rows.ids, rows.starts, strict=True)])


def open_lab(folder: Path | None = None, settings: LabSettings | None = None) -> Lab:
    """The lab of these settings, trained where the folder (by default the cache) does not hold it yet."""
    settings = settings or LabSettings()
    logging.disable_progress_bar()
    texts = [row["text"] for row in load_records(*DATA[0])][: settings.texts]
    others = [row["text"] for row in load_records(*DATA[1])]
    home = (folder or cache_dir() / "sentiment_lab") / fingerprint(asdict(settings))
    if not (home / "proxy.json").is_file():
        _train_lab(home, settings, texts)
    tokenizer = Tokenizer.from_file(str(home / "tokenizer.json"))
    reference = LlamaForCausalLM.from_pretrained(home / "policy", dtype=torch.float32).eval()
    reference.requires_grad_(False)
    proxy = TokenReward(np.array(json.loads((home / "proxy.json").read_text("utf-8"))["weights"]))
    prompts = prompts_of(tokenizer, others, settings.prompt_tokens)
    return Lab(
        settings, tokenizer, reference, proxy, prompts[:TRAINING_PROMPTS], prompts[TRAINING_PROMPTS:],
        data_sources(DATA),
    )  # fmt: skip


def lab_arguments(full: str) -> argparse.ArgumentParser:
    """The command line of a study in the lab."""
    parser = arguments(full=full, quick="the smallest lab", threads="threads of torch")
    parser.add_argument("--work", type=Path, default=None, help="folder of the rows  [default: the cache]")
    parser.add_argument("--plot", type=Path, default=None, help="write the frontier here (.png, .svg, .pdf)")
    return parser


def open_for_study(options: argparse.Namespace, name: str, *recipe: object) -> tuple[Lab, KeptValues]:
    """The lab, and the rows of the study that a stopped run left; recipe: what they depend on beside the lab."""
    torch.set_num_threads(options.threads)
    lab = open_lab(settings=SMALLEST if options.quick else None)
    size, *more = recipe
    path = (options.work or cache_dir() / name) / f"{fingerprint([str(size), str(lab.settings), *more])}.jsonl"
    return lab, KeptValues(None if options.quick else path)


def prompts_of(tokenizer: Tokenizer, texts: Sequence[str], tokens: int) -> list[list[int]]:
    """The first tokens of each text that has twice as many: prompts of one length are sampled in one batch."""
    encoded = [tokenizer.encode(text).ids for text in texts]
    different = dict.fromkeys(tuple(ids[:tokens]) for ids in encoded if len(ids) >= 2 * tokens)
    return [[EOS, *ids] for ids in different]


def _train_lab(home: Path, settings: LabSettings, texts: Sequence[str]) -> None:
    home.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer(texts, settings.vocab)
    write_whole_file(home / "tokenizer.json", tokenizer.to_str().encode())
    if not (home / "policy").is_dir():
        policy = new_policy(settings)
        train_on_texts(policy, [[EOS, *tokenizer.encode(text).ids[:62], EOS] for text in texts], settings)
        policy.save_pretrained(home / "unfinished")
        (home / "unfinished").rename(home / "policy")
    proxy, accuracy = train_proxy(tokenizer, texts, settings)
    written = {"settings": asdict(settings), "pair_accuracy": accuracy, "weights": proxy.weights.tolist()}
    write_whole_file(home / "proxy.json", json.dumps(written).encode())


def train_on_texts(policy: nn.Module, rows: Sequence[Sequence[int]], settings: LabSettings) -> None:
    """Next-token cross-entropy over batches of about one length."""
    rng = np.random.default_rng(settings.seed)
    lengths = [len(row) for row in rows]

    def batches() -> Iterator[NDArray[np.int64]]:
        for _ in range(settings.epochs):
            jittered = np.array(lengths) + rng.random(len(rows))
            found = list(by_length(jittered.tolist(), settings.batch))
            yield from (found[i] for i in rng.permutation(len(found)))

    def loss(batch: NDArray[np.int64]) -> Tensor:
        ids, mask = padded([rows[i] for i in batch])
        logits = policy(input_ids=ids, attention_mask=mask).logits[:, :-1].float()
        labels = ids[:, 1:].masked_fill(mask[:, 1:] == 0, -100)
        return nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)

    steps = settings.epochs * math.ceil(len(rows) / settings.batch)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=settings.learning_rate, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, settings.learning_rate, total_steps=steps + 1, pct_start=min(0.5, 50 / steps)
    )
    policy.train()
    train(
        batches(), loss, optimizer, schedule=schedule, clip=1.0,
        progress=lambda step, value: report(f"step {step}/{steps}: {value:.3f}") if step % 100 == 0 else None,
    )  # fmt: skip


def train_proxy(tokenizer: Tokenizer, texts: Sequence[str], settings: LabSettings) -> tuple[TokenReward, float]:
    """A Bradley-Terry model of token counts, and its accuracy on pairs that it has not seen.

    Pairs of training texts, which the gold reward labels by a draw with p = σ(Δr); maximum likelihood with a normal
    prior on each weight.
    """
    compound, rng = gold_reward(), np.random.default_rng(settings.seed)
    gold = REWARD_SCALE * np.array([compound(text) for text in texts])
    places, tokens = [], []
    for row, text in enumerate(texts):
        ids = tokenizer.encode(text).ids
        places += [row] * len(ids)
        tokens += ids
    counts = csr_array((np.ones(len(tokens)), (places, tokens)), shape=(len(texts), settings.vocab))
    fitted = 7 * len(texts) // 8
    pairs = rng.integers(0, fitted, (settings.proxy_pairs, 2))
    difference = counts[pairs[:, 0]] - counts[pairs[:, 1]]
    wins = rng.random(len(pairs)) < 1 / (1 + np.exp(gold[pairs[:, 1]] - gold[pairs[:, 0]]))
    signs = np.where(wins, 1.0, -1.0)

    def loss(weights: Floats) -> tuple[float, Floats]:
        margin = signs * (difference @ weights)
        slope = difference.T @ (-signs / (1 + np.exp(margin))) + settings.proxy_prior * weights
        return float(np.logaddexp(0, -margin).sum() + settings.proxy_prior * weights @ weights / 2), slope

    weights = minimize(loss, np.zeros(settings.vocab), jac=True, method="L-BFGS-B").x
    other = rng.integers(fitted, len(texts), (4000, 2))
    told = gold[other[:, 0]] != gold[other[:, 1]]
    margin = (counts[other[:, 0]] - counts[other[:, 1]]) @ weights
    right = (margin > 0) == (gold[other[:, 0]] > gold[other[:, 1]])
    return TokenReward(weights), float(right[told].mean()) if told.any() else math.nan


SMALLEST = LabSettings(vocab=300, width=32, layers=1, epochs=1, texts=64, batch=16, proxy_pairs=60)


def main() -> None:
    torch.set_num_threads(1)
    lab = open_lab()
    rows = lab.sample(lab.reference, lab.held_out[:100], 4, seed=1)
    gold, proxy = lab.gold(rows), lab.proxy_reward(rows)
    per_token = -sequence_logprob(lab.reference, rows).sum() / rows.lengths.sum()
    report(
        f"{len(lab.prompts)} + {len(lab.held_out)} prompts; entropy {per_token:.2f} nats per token, "
        f"{rows.lengths.mean():.1f} tokens, {rows.finished.mean():.0%} finished; gold {gold.mean():.3f} "
        f"(s.d. {gold.std():.3f}), proxy {proxy.mean():.3f} (s.d. {proxy.std():.3f}), correlation "
        f"{np.corrcoef(gold, proxy)[0, 1]:.2f}"
    )
    for i in range(0, 40, 4):
        prompt = lab.tokenizer.decode(lab.held_out[rows.prompt[i]])
        report(f"  [{prompt}]{rows.texts[i]}  {gold[i]:+.2f} {proxy[i]:+.2f}")


if __name__ == "__main__":
    run_script(main)
