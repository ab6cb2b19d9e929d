"""A masked diffusion language model of this machine: `generate` fills a canvas, `score` gives a bound."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NoReturn, Self, Unpack

from likely.code.buffer import CodeBuffer
from likely.decoding.diffusion.likelihood import likelihood_bound
from likely.decoding.loop import Loop
from likely.decoding.options import check_names
from likely.decoding.request import Event, Request
from likely.decoding.scheduling import SchedulingPolicy
from likely.errors import CapabilityError, ModelError
from likely.guided.form import make_form
from likely.lm.diffusion.loop import CanvasLoop
from likely.lm.diffusion.settings import DecodingFields, DiffusionSettings, refuse_options
from likely.lm.model import Model
from likely.lm.options import CompleteCodeOptions, GenerateOptions, ScoringOptions
from likely.lm.results import Generation
from likely.models.load import ModelInfo
from likely.runtimes.prefix_cache import PrefixCache
from likely.runtimes.protocol import Runtime
from likely.scoring.likelihood import joint_item, surface_lengths
from likely.scoring.rolling import Perplexity
from likely.scoring.scored import Scored
from likely.tokenizers.protocol import Tokenizer


class DiffusionModel(Model):
    """As `Model`, with the differences of a diffusion model.

    generate, stream, ask, chat  fill a canvas of max_tokens, block by block; `decoding` says how, see `with_decoding`
    score        returns estimates of a lower bound of log p, with `kind="lower_bound"` and a standard error
    choices=     of `generate`: the choice with the largest bound

    What it cannot follow (drafters, grammars, log-probabilities of tokens ...) is a CapabilityError that names it.
    """

    def __init__(self, runtime: Runtime, tokenizer: Tokenizer, info: ModelInfo):
        super().__init__(runtime, tokenizer, info)
        self.decoding = DiffusionSettings(block_length=self.predictor.block or None)
        self.own_settings = {"top_p": 1.0, **info.settings}  # `chat` samples with temperature alone

    @property
    def predictor(self) -> Any:
        """What `likely.decoding.diffusion.diffusion_generate` takes."""
        return self.runtime.predictor  # type: ignore[attr-defined]

    def with_decoding(self, **settings: Unpack[DecodingFields]) -> Self:
        """Bind how canvases are filled: fields of `DiffusionSettings`, the others as they were."""
        check_names(settings, DecodingFields.__annotations__)
        self.decoding = replace(self.decoding, **settings)
        return self

    # --- scoring --------------------------------------------------------------------------------------------------

    def score_pairs(
        self,
        pairs: Sequence[tuple[str, str]],
        *,
        progress: Callable[[int], None] | None = None,
        **options: Unpack[ScoringOptions],
    ) -> list[Scored]:
        """Lower bounds: mean and standard error over `decoding.score_samples` masks of each answer."""
        check_names(options, ScoringOptions.__annotations__)
        for name, value in options.items():
            if value:
                raise CapabilityError(
                    f"{name}= needs log-probabilities of tokens; a diffusion model gives a lower bound of the answer's"
                )
        found = []
        for prompt, answer in pairs:
            found.append(self._scored(prompt, answer))
            if progress:
                progress(1)
        return found

    def _scored(self, prompt: str, answer: str) -> Scored:
        item, straddles = joint_item(self.tokenizer, prompt, answer)
        given, tokens = item.tokens[: item.start], item.tokens[item.start :]
        value: float = 0.0
        error: float | None = 0.0
        if tokens:
            with self.runtime.turn:
                bound = likelihood_bound(self.predictor, given, tokens, samples=self.decoding.score_samples)
            value, error = bound.value, bound.standard_error
        return Scored(
            text=answer, token_ids=list(tokens), token_logprobs=[], sequence_logprob=value,
            mean_logprob=value / len(tokens) if tokens else None, tokens=[self.tokenizer.token_text(t) for t in tokens],
            context_tokens=len(given), straddles=straddles, kind="lower_bound", standard_error=error,
        )  # fmt: skip

    def perplexity(
        self,
        text: str,
        *,
        window: int | None = None,
        stride: int | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> Perplexity:
        self._refuse("perplexity", "it is defined by log-probabilities of next tokens; score gives a lower bound")

    # --- generation -----------------------------------------------------------------------------------------------

    def _samples(self, prompts: Sequence[str], options: Mapping[str, Any]) -> Sequence[Sequence[Generation]]:
        rest = {name: value for name, value in options.items() if name != "choices"}
        refuse_options(rest)
        if options.get("choices") is None:
            return super()._samples(prompts, options)
        if rest.get("n", 1) != 1:
            raise CapabilityError("choices= is answered with the likeliest one by a diffusion model: drop n=")
        choices = make_form(choices=options["choices"]).source
        return [[self._choose(prompt, choices)] for prompt in prompts]

    def _choose(self, prompt: str, choices: Sequence[str]) -> Generation:
        started = time.perf_counter()
        scored = self.score(prompt, choices)
        best = max(scored, key=lambda each: each.sequence_logprob)
        return Generation(
            text=best.text, token_ids=best.token_ids, token_logprobs=None, sequence_logprob=None, mean_logprob=None,
            finish_reason="stop", target_calls=None, seconds=time.perf_counter() - started, tokens=best.tokens,
            prompt_tokens=best.context_tokens, complete=True, value=best.text,
        )  # fmt: skip

    def request(
        self,
        tokens: Sequence[int],
        options: Mapping[str, Any],
        as_prompt: Callable[[str], Sequence[int]] | None = None,
        *,
        raw: bool = False,
    ) -> Request:
        refuse_options(options)
        if options.get("choices") is not None:
            raise CapabilityError("choices= of a diffusion model is for generate")
        return super().request(tokens, {**options, "drafter": None}, as_prompt, raw=raw)

    def encode_prompt(self, prompt: str) -> list[int]:
        """Token ids; ModelError for characters that a small vocabulary does not have."""
        tokens = super().encode_prompt(prompt)
        written = self.tokenizer.encode(prompt, parse_special=True)
        if sum(surface_lengths(self.tokenizer, written)) != len(prompt.encode()):
            known = sorted({self.tokenizer.token_text(t) for t in range(self.tokenizer.vocab_size)})
            raise ModelError(
                f"the prompt {prompt[:40]!r} holds characters that this model has no tokens for"
                + (f" (it has {''.join(k for k in known if len(k) == 1)!r})" if len(known) < 100 else "")
            )
        return tokens

    def loop(
        self,
        *,
        policy: SchedulingPolicy | None = None,
        prefixes: PrefixCache | None = None,
        prefill_tokens: int = 0,
        prefill_slowdown: float = 0.0,
    ) -> Loop:
        """A fresh loop on this model; it has no prefix cache and no prefill."""
        return CanvasLoop(
            self.runtime, self.tokenizer.token_bytes, self.tokenizer.end_ids, policy=policy, settings=self.decoding,
            encode=self.tokenizer.encode,
        )  # fmt: skip

    def generation(self, request: Request, event: Event, seconds: float) -> Generation:
        made = super().generation(request, event, seconds)
        return replace(made, token_logprobs=None, sequence_logprob=None, mean_logprob=None)

    def ensemble(self, prompt: str, **options: Unpack[GenerateOptions]) -> NoReturn:
        self._refuse("ensemble", "texts are not weighed token by token")

    def complete_code(self, buffer: CodeBuffer, **options: Unpack[CompleteCodeOptions]) -> NoReturn:
        self._refuse("complete_code", "monitors judge code from left to right")

    def _refuse(self, verb: str, why: str) -> NoReturn:
        raise CapabilityError(f"{verb} is nothing for a diffusion model: {why}")
