"""Where completions come from: a given list, samples of a policy through the decoding loop, the best of them."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np

from likely.alignment.rejection import RejectionStatistics, accept_candidates
from likely.alignment.rewards import Reward, rewards_of
from likely.alignment.scores import Completion
from likely.decoding.constraint import LogitsProcessor
from likely.decoding.loop import Loop
from likely.decoding.request import Finished, Request
from likely.decoding.run import run
from likely.decoding.sampling import Sampling
from likely.metrics.checks import Floats
from likely.runtimes.protocol import IntArray
from likely.tokenizers.protocol import decode
from likely.training.lora import HasRuntime


@dataclass(frozen=True)
class Prompt:
    """A prompt as token ids, and its text for people and for rewards of text.

    row  where it stood in the user's file, from 1; 0: not from a file
    """

    tokens: tuple[int, ...]
    text: str = ""
    row: int = 0


@dataclass(frozen=True)
class Candidates:
    """Completions of one prompt; rewards (n,) where somebody gave them some.

    drawn  how they were drawn, in words for reports
    """

    prompt: Prompt
    completions: tuple[Completion, ...]
    rewards: Floats | None = None
    drawn: str = "given"

    def __len__(self) -> int:
        return len(self.completions)

    def rewarded(self, reward: Reward) -> Candidates:
        """The same with the rewards of `reward`; DataError that names prompt and completion for NaN."""
        return replace(self, rewards=rewards_of(reward, self.completions))

    def take(self, places: Seq[int] | IntArray) -> Candidates:
        """Those at these places, in this order."""
        chosen = tuple(self.completions[i] for i in places)
        return replace(
            self, completions=chosen, rewards=None if self.rewards is None else self.rewards[np.asarray(places, int)]
        )


class CandidateSource(Protocol):
    """Prompts -> the candidates of each."""

    def draw(self, prompts: Seq[Prompt], *, seed: int) -> list[Candidates]: ...


@dataclass(frozen=True)
class Given:
    """Candidates that somebody wrote or drew before, found by their prompts' ids."""

    candidates: Seq[Candidates]

    def draw(self, prompts: Seq[Prompt], *, seed: int = 0) -> list[Candidates]:
        known = {c.prompt.tokens: c for c in self.candidates}
        missing = [p for p in prompts if p.tokens not in known]
        if missing:
            raise ValueError(f"no candidates were given for the prompt {missing[0].text[:60]!r}")
        return [known[p.tokens] for p in prompts]


@dataclass(frozen=True)
class FromPolicy:
    """n samples per prompt from a model as it is now, with the log-probabilities of what was drawn.

    lm           a model with runtime and tokenizer; one that is being trained is refreshed after its steps
    temperature, top_k, top_p  1, 0 and 1: from the model's own distribution, what theory asks for
    max_tokens   of a sample; one that was cut is not `finished`
    processors   changes of the logits, such as a mixture with a reference
    together     prompts whose samples run in one loop
    A sample depends on model, prompt, settings, seed and its number alone, not on what runs beside it.
    """

    lm: HasRuntime
    n: int = 2
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    max_tokens: int = 64
    processors: tuple[LogitsProcessor, ...] = ()
    together: int = 64
    stop_tokens: frozenset[int] = field(default_factory=frozenset)

    def draw(self, prompts: Seq[Prompt], *, seed: int = 0) -> list[Candidates]:
        tokenizer, found = self.lm.tokenizer, []
        ends = tokenizer.end_ids | self.stop_tokens
        sampling = Sampling(temperature=self.temperature, top_k=self.top_k, top_p=self.top_p, seed=seed)
        drawn = f"policy, temperature {self.temperature:g}, top-k {self.top_k}, top-p {self.top_p:g}"
        for start in range(0, len(prompts), self.together):
            part = prompts[start : start + self.together]
            loop = Loop(self.lm.runtime, tokenizer.token_bytes, tokenizer.end_ids)
            requests = [
                Request(
                    prompt.tokens, sampling, max_tokens=self.max_tokens, samples=self.n, processed=True,
                    stop_tokens=self.stop_tokens, logits_processors=self.processors,
                )
                for prompt in part
            ]  # fmt: skip
            for prompt, events in zip(part, run(loop, requests), strict=True):
                done = [event.finish for event in events if event.finish]
                texts = tuple(self._completion(prompt, finish, ends) for finish in done)
                found.append(Candidates(prompt, texts, drawn=drawn))
        return found

    def _completion(self, prompt: Prompt, finish: Finished, ends: frozenset[int]) -> Completion:
        return Completion(
            prompt.tokens,
            tuple(finish.tokens),
            finished=finish.tokens[-1] in ends,
            text=decode(self.lm.tokenizer, [t for t in finish.tokens if t not in ends]),
            prompt_text=prompt.text,
            logprob=sum(finish.logprobs),
            sampling_logprob=sum(finish.processed),
        )


@dataclass(frozen=True)
class BestOfN:
    """Of the candidates of a source the `keep` with the highest rewards, best first."""

    source: CandidateSource
    reward: Reward
    keep: int = 1

    def draw(self, prompts: Seq[Prompt], *, seed: int = 0) -> list[Candidates]:
        found = []
        for candidates in self.source.draw(prompts, seed=seed):
            if self.keep > len(candidates):
                raise ValueError(f"keep must be <= the {len(candidates)} candidates of a prompt, got {self.keep}")
            ranked = candidates.rewarded(self.reward)
            assert ranked.rewards is not None
            best = np.argsort(-ranked.rewards, kind="stable")[: self.keep]
            found.append(replace(ranked.take(best), drawn=f"best {self.keep} of {len(candidates)}: {candidates.drawn}"))
        return found


@dataclass(frozen=True)
class RejectionSampled:
    """Of the candidates of a source k by statistical rejection sampling (RSO), in the order of acceptance.

    source  draws at temperature 1 from the policy whose tilted form π·e^{r/β} is the target; 64 candidates, say
    beta    in units of the reward, or "ess:0.1": see `rejection.accept_candidates`
    unique  equal token sequences count once; a prompt with fewer than k different ones gives all of them
    Liu et al. 2024, arXiv:2309.06657, section 3.3, with n 64, k 8, β 0.5.
    """

    source: CandidateSource
    reward: Reward
    k: int = 8
    beta: float | str = 0.5
    unique: bool = False

    def draw(self, prompts: Seq[Prompt], *, seed: int = 0) -> list[Candidates]:
        return self.draw_counted(prompts, seed=seed)[0]

    def draw_counted(self, prompts: Seq[Prompt], *, seed: int = 0) -> tuple[list[Candidates], RejectionStatistics]:
        """The same, and how candidates were accepted."""
        rng, found, samples = np.random.default_rng(seed), [], []
        for candidates in self.source.draw(prompts, seed=seed):
            ranked = candidates.rewarded(self.reward)
            assert ranked.rewards is not None
            row = candidates.prompt.row
            sample = accept_candidates(
                ranked.rewards, self.k, self.beta, rng, dedup="unique" if self.unique else "keep",
                completions=[c.tokens for c in ranked.completions],
                where=f"row {row}" if row else f"the prompt {candidates.prompt.text[:60]!r}",
            )  # fmt: skip
            drawn = f"{self.k} of {len(candidates)} by rejection sampling, beta {sample.beta:g}: {candidates.drawn}"
            found.append(replace(ranked.take(sample.indices), drawn=drawn))
            samples.append(sample)
        return found, RejectionStatistics.of(samples)
