"""log p(completion | prompt) with gradients: the numbers of `lm.score`, on the ids that are given.  torch.

Prompt and completion are token ids, never text: what a model wrote is not tokenised again.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from likely.errors import check_choice
from likely.io.hashes import fingerprint
from likely.io.kept import KeptValues
from likely.training.logprobs import SelectedLogprobs, SequenceScores, inner_module, text_logprobs
from likely.training.policy import Policy
from likely.training.processes import is_sharded

Normaliser = Literal["logp", "logp_mean", "ratio", "ratio_mean"]
NORMALISERS = ("logp", "logp_mean", "ratio", "ratio_mean")
PLAIN_DECODERS = ("llama", "qwen2", "qwen3", "mistral", "smollm3")


@dataclass(frozen=True)
class Completion:
    """A prompt and one completion of it, as token ids.

    prompt    at least one id, the beginning-of-sequence token included where the model wants one
    tokens    at least one id; the last is the end token if it is `finished`, and none of them otherwise
    finished  whether it ended by itself: a text that was cut is never scored as one that ended
    text, prompt_text  the same for people and for rewards of text
    logprob   log p(tokens | prompt) of the model it was drawn from, nats;  sampling_logprob: of the distribution that
              it was really drawn from (temperature, top-k ...).  None: it was given
    """

    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    finished: bool = True
    text: str = ""
    prompt_text: str = ""
    logprob: float | None = None
    sampling_logprob: float | None = None

    def __post_init__(self) -> None:
        if not self.prompt:
            raise ValueError("a prompt needs at least one token: the first token of a text has no condition")
        if not self.tokens:
            raise ValueError("a completion needs at least one token")

    def __len__(self) -> int:
        return len(self.prompt) + len(self.tokens)

    @property
    def marked(self) -> tuple[tuple[int, ...], list[bool]]:
        """(ids of prompt and completion, which of them are scored): the completion's."""
        return (*self.prompt, *self.tokens), [i >= len(self.prompt) for i in range(len(self))]


def alike(completion: Completion) -> tuple[int, tuple[int, ...], int]:
    """A key to sort by: completions of one prompt are neighbours, and so are prompts of like length."""
    return len(completion.prompt), completion.prompt, len(completion.tokens)


def completion_scores(module: torch.nn.Module, completions: Seq[Completion]) -> SequenceScores:
    """`sequence_logprobs` of completions, in one batch.

    Where the architecture allows it (`takes_masks`) completions of one prompt share its computation: the prompt stands
    once with all of them behind it, none sees another; and short texts stand behind each other in one row, where none
    sees another and positions begin anew.  Logits are computed of scored tokens only.  A completion that comes several
    times is computed once.
    """
    unique = {(c.prompt, c.tokens): c for c in completions}
    if len(unique) < len(completions):
        scores = completion_scores(module, list(unique.values()))
        place = {key: i for i, key in enumerate(unique)}
        at = torch.tensor([place[c.prompt, c.tokens] for c in completions], device=scores.mask.device)
        return SequenceScores(scores.token_logprobs[at], scores.mask[at])
    if takes_masks(module):
        packed = _documents(completions)
        rows = packed_rows(list(map(len, packed)))
        if _tokens(rows, list(map(len, packed))) < len(completions) * max(map(len, completions)):
            return packed_scores(module, packed, rows, (len(completions), max(map(len, completions)) - 1))
    return text_logprobs(module, [completion.marked for completion in completions])


def takes_masks(module: torch.nn.Module) -> bool:
    """Whether a module takes positions and a mask of our own, and its logits are its head on the decoder's states."""
    if is_sharded(module):  # its decoder cannot be called alone
        return False
    config = inner_module(module).config
    windows = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    attention = getattr(config, "_attn_implementation", None)
    return config.model_type in PLAIN_DECODERS and windows is None and attention in ("sdpa", "eager")


@dataclass
class PackedText:
    """Tokens that may stand behind others in one row: what all of them see, and branches that do not see each other.

    ids, positions, branch  of each token; branch 0 is what all later ones see
    scored  (place of the token whose state predicts, id that it predicts, row and column of the result)
    """

    ids: list[int]
    positions: list[int]
    branch: list[int]
    scored: list[tuple[int, int, int, int]]

    def __len__(self) -> int:
        return len(self.ids)


def _documents(completions: Seq[Completion]) -> list[PackedText]:
    """One for each prompt, with its completions as branches."""
    found: dict[tuple[int, ...], PackedText] = {}
    for i, completion in enumerate(completions):
        prompt, tokens = completion.prompt, completion.tokens
        start = len(prompt)
        document = found.setdefault(prompt, PackedText(list(prompt), list(range(start)), [0] * start, []))
        number, end = document.branch[-1] + 1, len(document)
        document.ids += tokens[:-1]  # the last token predicts nothing
        document.positions += range(start, start + len(tokens) - 1)
        document.branch += [number] * (len(tokens) - 1)
        places = (start - 1, *range(end, end + len(tokens) - 1))
        document.scored += [
            (place, token, i, start - 1 + k) for k, (place, token) in enumerate(zip(places, tokens, strict=True))
        ]
    return list(found.values())


def packed_rows(sizes: Seq[int]) -> list[list[int]]:
    """Which texts stand behind each other, in rows no longer than the longest text: first fit, longest first."""
    longest = max(sizes)
    rows: list[list[int]] = []
    room: list[int] = []
    for i in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        row = next((r for r, free in enumerate(room) if free >= sizes[i]), len(rows))
        if row == len(rows):
            rows.append([])
            room.append(longest)
        rows[row].append(i)
        room[row] -= sizes[i]
    return rows


def _tokens(rows: Seq[Seq[int]], sizes: Seq[int]) -> int:
    """That are computed, padding included."""
    return len(rows) * max(sum(sizes[i] for i in row) for row in rows)


def packed_scores(
    module: torch.nn.Module, documents: Seq[PackedText], rows: Seq[Seq[int]], shape: tuple[int, int]
) -> SequenceScores:
    """The scored tokens of documents that stand in rows behind each other; shape (N, T−1) of the result."""
    inner, device = inner_module(module), next(module.parameters()).device
    width = max(sum(len(documents[i]) for i in row) for row in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    positions, of, branch = torch.zeros_like(ids), torch.full_like(ids, -1), torch.zeros_like(ids)
    scored: list[tuple[int, int, int, int]] = []  # row, column of the state; id; place in the result
    for row, held in enumerate(rows):
        start = 0
        for i in held:
            document = documents[i]
            stop = start + len(document)
            ids[row, start:stop] = torch.tensor(document.ids)
            positions[row, start:stop] = torch.tensor(document.positions)
            of[row, start:stop], branch[row, start:stop] = i, torch.tensor(document.branch)
            scored += [(row, start + place, token, n * shape[1] + t) for place, token, n, t in document.scored]
            start = stop
    order = torch.arange(width)
    sees = (order[:, None] >= order) & (of[:, None, :] == of[:, :, None])
    sees &= (branch[:, None, :] == 0) | (branch[:, None, :] == branch[:, :, None])
    dtype = next(p.dtype for p in module.parameters() if p.is_floating_point())
    mask = torch.zeros(sees.shape, dtype=dtype).masked_fill(~sees, torch.finfo(dtype).min)[:, None]
    states = inner.get_decoder()(
        input_ids=ids.to(device), attention_mask=mask.to(device), position_ids=positions.to(device), use_cache=False
    ).last_hidden_state
    at, columns, wanted, there = (torch.tensor(part, device=device) for part in zip(*scored, strict=True))
    logits = inner.get_output_embeddings()(states[at, columns])
    values = SelectedLogprobs.apply(logits[None], wanted[None])[0]
    total = shape[0] * shape[1]
    found = torch.zeros(total, device=device, dtype=values.dtype).index_copy(0, there, values)
    shown = torch.zeros(total, device=device, dtype=torch.bool).index_fill(0, there, True)
    return SequenceScores(found.view(shape), shown.view(shape))


def normalise(kind: Normaliser, sums: Tensor, lengths: Tensor | None = None, reference: Tensor | None = None) -> Tensor:
    """(N,) the score s(y) of each completion, in nats (per token for the means).

    kind     "logp": log π(y);  "logp_mean": log π(y) / L;  "ratio": log π(y) − log π_ref(y);  "ratio_mean": that / L
    sums     (N,) log π(y) of the policy;  reference: (N,) of the frozen reference;  lengths: (N,) scored tokens L
    """
    check_choice("normaliser", kind, NORMALISERS)
    if kind.startswith("ratio"):
        if reference is None:
            raise ValueError(f'normaliser "{kind}" needs the reference\'s log-probabilities (reference=)')
        sums = sums - reference
    if kind.endswith("_mean"):
        if lengths is None:
            raise ValueError(f'normaliser "{kind}" needs the number of tokens (lengths=)')
        sums = sums / lengths
    return sums


class ReferenceSums:
    """log π_ref(y | x) of completions, computed once and kept: no second model in memory, no second pass over data.

    path      a JSONL file that a later run reads; None: kept in memory
    together  completions in one call of the model
    A value belongs to the reference's weights, the tokenizer and the ids; of anything else nothing is taken over.
    """

    def __init__(self, policy: Policy, path: str | Path | None = None, *, together: int = 8):
        self._policy, self._kept, self._together = policy, KeptValues(path), together
        self._of = [policy.reference_revision, policy.tokenizer.fingerprint]

    def key(self, completion: Completion) -> str:
        return fingerprint([*self._of, completion.prompt, completion.tokens], 32)

    def prepare(self, completions: Seq[Completion], progress: Callable[[int], None] | None = None) -> None:
        """Compute what is not known yet; progress is called with the number of completions done since."""
        by_key = {self.key(c): c for c in completions}
        todo = sorted(self._kept.missing(by_key), key=lambda key: alike(by_key[key]))
        if progress and len(todo) < len(completions):
            progress(len(completions) - len(todo))
        if not todo:
            return
        with self._policy.reference() as module:
            for start in range(0, len(todo), self._together):
                keys = todo[start : start + self._together]
                sums = completion_scores(module, [by_key[key] for key in keys]).sum.tolist()
                self._kept.add(dict(zip(keys, sums, strict=True)))
                if progress:
                    progress(len(keys))

    def __call__(self, completions: Seq[Completion]) -> Tensor:
        """(N,) nats, on the policy's device."""
        self.prepare(completions)
        return torch.tensor([self._kept[self.key(c)] for c in completions], device=self._policy.device)
