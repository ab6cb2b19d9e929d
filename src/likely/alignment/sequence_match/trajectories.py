"""Trajectories of tokens and deletions, and their prefix trees: every state's row of logits from one forward pass.

A deletion leads back to a state that was there before, so a node per pushed token is enough: its parent is the token
below it on the stack, it sees its ancestors alone, and its position is its depth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from likely.errors import CapabilityError, DataError

Ids = NDArray[np.int64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Trajectory:
    """One text on top of a prompt.

    prompt    token ids, at least one, which are never deleted
    actions   tokens, and deletions where the model has a backspace
    finished  whether the last action ends the text; else it was cut there
    taught    per action whether a model is to learn it (None: all): no wrong token that `corrupt` has put in
    """

    prompt: tuple[int, ...]
    actions: tuple[int, ...]
    finished: bool
    taught: tuple[bool, ...] | None = None

    def text(self, backspace_id: int | None) -> list[int]:
        """The tokens that are left in the end."""
        stack: list[int] = []
        for action in self.actions:
            if action == backspace_id:
                stack.pop()
            else:
                stack.append(action)
        return stack


def corrupt(
    trajectory: Trajectory, rate: float, rng: np.random.Generator, *, backspace_id: int, candidates: Sequence[int]
) -> Trajectory:
    """With probability `rate` before each action: a wrong token, and the deletion that takes it back.

    candidates  ids that a wrong token is drawn from, but for the one that follows; no end token, no backspace
    The deletion is to be learned, the mistake is not (`taught`).
    """
    if not 0 <= rate < 1:
        raise ValueError(f"rate must lie in [0, 1), got {rate}")
    if backspace_id in candidates:
        raise ValueError(f"a wrong token cannot be the backspace itself ({backspace_id}): leave it out of candidates")
    if len(set(candidates)) < 2:
        raise ValueError("candidates must hold at least two tokens: one of them may be the right one")
    old = trajectory.taught or (True,) * len(trajectory.actions)
    actions: list[int] = []
    taught: list[bool] = []
    for action, learned in zip(trajectory.actions, old, strict=True):
        if action != backspace_id and rng.random() < rate:
            wrong = action
            while wrong == action:
                wrong = int(candidates[int(rng.integers(len(candidates)))])
            actions += [wrong, backspace_id]
            taught += [False, True]
        actions.append(action)
        taught.append(learned)
    return Trajectory(trajectory.prompt, tuple(actions), trajectory.finished, tuple(taught))


@dataclass(frozen=True)
class PrefixTrees:
    """B trajectories of at most T actions as trees of at most S nodes; what is past a row's end is padding.

    input_ids, position_ids, parents  (B, S); parents -1: none
    sees      (B, S, S) whether node i attends to node j: its ancestors and itself
    row       (B, T + 1) the node whose logits belong to the state before each action, and after the last one
    action    (B, T);  real (B, T) whether there is such an action;  taught (B, T) whether it is to be learned
    ends      (B, T) whether the action ends its text, so that no state follows
    """

    input_ids: Ids
    position_ids: Ids
    parents: Ids
    sees: Flags
    row: Ids
    action: Ids
    real: Flags
    taught: Flags
    ends: Flags

    def __len__(self) -> int:
        return len(self.input_ids)


def to_trees(trajectories: Sequence[Trajectory], *, backspace_id: int | None) -> PrefixTrees:
    """DataError with the number of a trajectory without a prompt or an action, or that deletes what is not there."""
    if not trajectories:
        raise DataError("no trajectories: at least one is needed")
    found = [_nodes_of(i, trajectory, backspace_id) for i, trajectory in enumerate(trajectories)]
    size = max(len(nodes) for nodes, *_ in found)
    steps = max(len(trajectory.actions) for trajectory in trajectories)
    count = len(trajectories)
    ids, positions = np.zeros((count, size), np.int64), np.zeros((count, size), np.int64)
    parents = np.full((count, size), -1, np.int64)
    sees = np.zeros((count, size, size), np.bool_)
    sees[:, np.arange(size), np.arange(size)] = True  # padding sees itself, so that no row of attention is empty
    row, action = np.zeros((count, steps + 1), np.int64), np.zeros((count, steps), np.int64)
    real, taught, ends = (np.zeros((count, steps), np.bool_) for _ in range(3))
    for i, ((nodes, above, rows), trajectory) in enumerate(zip(found, trajectories, strict=True)):
        n, t = len(nodes), len(trajectory.actions)
        ids[i, :n], parents[i, :n] = nodes, above
        for node, parent in enumerate(above):
            if parent >= 0:
                sees[i, node] |= sees[i, parent]
                positions[i, node] = positions[i, parent] + 1
        row[i, : len(rows)], action[i, :t], real[i, :t] = rows, trajectory.actions, True
        row[i, len(rows) :] = rows[-1]
        taught[i, :t] = True if trajectory.taught is None else trajectory.taught
        ends[i, t - 1] = trajectory.finished
    return PrefixTrees(ids, positions, parents, sees, row, action, real, taught, ends)


def _nodes_of(number: int, trajectory: Trajectory, backspace_id: int | None) -> tuple[list[int], list[int], list[int]]:
    """(token of each node, its parent, the node of the state before each action and after the last)."""
    if not trajectory.prompt or not trajectory.actions:
        raise DataError(f"trajectory {number}: needs a prompt of at least one token, and at least one action")
    if trajectory.taught is not None and len(trajectory.taught) != len(trajectory.actions):
        raise DataError(f"trajectory {number}: {len(trajectory.taught)} flags for {len(trajectory.actions)} actions")
    nodes, parents = list(trajectory.prompt), list(range(-1, len(trajectory.prompt) - 1))
    stack, rows = list(range(len(nodes))), []
    for t, action in enumerate(trajectory.actions):
        rows.append(stack[-1])
        if action == backspace_id:
            if len(stack) == len(trajectory.prompt):
                raise DataError(f"trajectory {number}: action {t} deletes a token of the prompt")
            stack.pop()
            continue
        if trajectory.finished and t + 1 == len(trajectory.actions):
            return nodes, parents, rows  # no state follows
        parents.append(stack[-1])
        stack.append(len(nodes))
        nodes.append(action)
    if trajectory.finished:
        raise DataError(f"trajectory {number}: is said to be finished, and its last action is a deletion")
    return nodes, parents, [*rows, stack[-1]]


def tree_logits(module: torch.nn.Module, trees: PrefixTrees) -> torch.Tensor:
    """(B, S, V) logits of a causal language model of transformers after every node, in one forward pass.

    Equal to a plain forward over the path of each node, up to rounding.
    """
    config: Any = module.config
    size, window = trees.input_ids.shape[1], getattr(config, "sliding_window", None)
    if window is not None and getattr(config, "use_sliding_window", True) and size > window:
        raise CapabilityError(
            f"trees of {size} tokens in a model with a sliding window of {window}: use shorter texts, or another model"
        )
    device = next(module.parameters()).device
    mask = torch.from_numpy(trees.sees)[:, None].to(device)
    if config._attn_implementation != "sdpa":  # other implementations add the mask to the scores
        kind = next(module.parameters()).dtype
        mask = torch.zeros(mask.shape, dtype=kind, device=device).masked_fill(~mask, torch.finfo(kind).min)
    return module(
        input_ids=torch.from_numpy(trees.input_ids).to(device),
        position_ids=torch.from_numpy(trees.position_ids).to(device),
        attention_mask=mask,
        use_cache=False,
    ).logits
