"""Models on prompts: completions of each, what they are worth, and their exact KL to a reference model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from collections.abc import Sequence as Seq
from typing import Any

import numpy as np

from likely.alignment.frontier.bound import Envelope
from likely.alignment.frontier.policies import FrontierPoint, KlEstimator, Mean, PolicySamples, kl_exact, kl_k1, kl_k3
from likely.alignment.rewards import Reward, rewards_of
from likely.alignment.scores import Completion
from likely.alignment.sources import FromPolicy, Prompt
from likely.errors import DataError, ModelError
from likely.metrics.checks import Floats, log_softmax
from likely.runtimes.protocol import Runtime, Want, Work
from likely.training.lora import HasRuntime


def completion_rows(runtime: Runtime, completion: Completion) -> Floats:
    """(T, V) log-probabilities of the next token, at each of the completion's T tokens, given all before it."""
    tokens, start = np.array([*completion.prompt, *completion.tokens], np.int64), len(completion.prompt)
    sequence = runtime.open()
    try:
        want = Want(rows=tuple(range(start - 1, len(tokens) - 1)), logits=True)
        [output] = runtime.forward([Work(sequence, tokens[:-1], want=want)])
    finally:
        runtime.close(sequence)
    assert output.logits is not None
    return log_softmax(output.logits.astype(np.float64))


def sample_policy(
    name: str,
    lm: HasRuntime,
    reference: HasRuntime,
    prompts: Seq[Prompt],
    rewards: Mapping[str, Reward],
    *,
    n: int = 4,
    max_tokens: int = 64,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> PolicySamples:
    """n completions of each prompt at temperature 1, with rewards and the KL of their distributions, step by step.

    lm, reference  models on any runtime that gives logits, with one tokenizer; the same object has a KL of 0
    """
    if lm.tokenizer.fingerprint != reference.tokenizer.fingerprint:
        raise ModelError(f"{name} and the reference have different tokenizers: their KL is not defined")
    if not prompts:
        raise DataError("a frontier needs at least one prompt")
    drawn = FromPolicy(lm, n=n, max_tokens=max_tokens).draw(prompts, seed=seed)
    completions = [completion for candidates in drawn for completion in candidates.completions]
    kl: dict[KlEstimator, list[float]] = {"exact": [], "k3": [], "k1": []}
    for completion in completions:
        exact, k3, k1 = (0.0, 0.0, 0.0) if lm is reference else _kls(lm.runtime, reference.runtime, completion)
        kl["exact"].append(exact)
        kl["k3"].append(k3)
        kl["k1"].append(k1)
        if progress:
            progress(1)
    return PolicySamples(
        name,
        np.repeat(np.arange(len(prompts)), [len(candidates) for candidates in drawn]),
        {key: rewards_of(reward, completions) for key, reward in rewards.items()},
        {key: np.array(values) for key, values in kl.items()},
        [completion.tokens for completion in completions],
    )


def _kls(policy: Runtime, reference: Runtime, completion: Completion) -> tuple[float, float, float]:
    ours, theirs = (completion_rows(runtime, completion) for runtime in (policy, reference))
    places = np.arange(len(ours)), np.array(completion.tokens, np.int64)
    ratios = ours[places] - theirs[places]
    return kl_exact(ours, theirs), kl_k3(ratios), kl_k1(ratios)


def frontier_record(points: Seq[FrontierPoint], bounds: Mapping[str, Envelope]) -> dict[str, Any]:
    """As JSON: the policies, and of each reward the envelope with the β that were refused."""

    def mean(found: Mean) -> dict[str, float | None]:
        return {"value": found.value, "standard_error": None if np.isnan(found.se) else found.se}

    return {
        "policies": [
            {
                "name": point.name,
                "rewards": {name: mean(value) for name, value in point.rewards.items()},
                "kl": {name: mean(value) for name, value in point.kl.items()},
                "kl_estimates_agree": point.kls_agree,
                "win_rate": mean(point.win_rate),
                "mean_length": point.mean_length,
                "distinct_2": point.distinct_2,
                "prompts": point.prompts,
                "completions": point.completions,
            }
            for point in points
        ],
        "envelopes": {
            name: {
                "points": [
                    {
                        "beta": None if np.isinf(p.beta) else p.beta, "reward": mean(p.reward), "kl": mean(p.kl),
                        "ess": p.ess,
                    }
                    for p in bound.points
                ],
                "refused_betas": list(bound.refused),
            }
            for name, bound in bounds.items()
        },
    }  # fmt: skip
