"""The object a user holds: score, generate, stream, ask, chat, extract on a model of this machine.

`likely.load` makes one; `RemoteModel` offers the same verbs over an OpenAI-compatible server.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from functools import cached_property
from threading import RLock
from typing import TYPE_CHECKING, Any, NoReturn, Unpack

from likely.decoding.drafting.budget import Controller
from likely.decoding.drafting.protocol import DraftSource
from likely.decoding.loop import Loop
from likely.decoding.options import check_names
from likely.decoding.request import Event, Request, longest_text
from likely.decoding.run import run
from likely.decoding.scheduling import SchedulingPolicy
from likely.errors import DataError, LikelyError, ModelError
from likely.guided.conditional_sampling import Ensemble, SamplerSettings, prepare
from likely.guided.guide import Guide
from likely.guided.vocabulary import Vocabulary
from likely.io.hashes import fingerprint
from likely.io.jsonl import chunked
from likely.lm.base import BaseLanguageModel, Decide
from likely.lm.confidence import system_of
from likely.lm.extract import Extracted, extracted, extraction_prompt
from likely.lm.options import (
    ASK_DEFAULTS,
    EXTRACT_DEFAULTS,
    SAMPLER,
    CompleteCodeOptions,
    ExtractOptions,
    GenerateOptions,
    ScoringOptions,
    TextOptions,
)
from likely.lm.outcomes import FinishedSample, ensembles, generation_of, outcomes
from likely.lm.questions import BATCH, QuestionLine
from likely.lm.requests import Drafters, check_single, make_request, take_sampler
from likely.lm.results import Answer, Generation
from likely.lm.stream import Stream
from likely.models.chat_template import ChatTemplate, Message, Rendered, check_messages, render_chat
from likely.models.load import ModelInfo
from likely.runtimes.prefix_cache import PrefixCache
from likely.runtimes.protocol import Capabilities, Runtime
from likely.runtimes.turns import refuse_copy
from likely.scoring.likelihood import score_pairs
from likely.scoring.rolling import Perplexity, perplexity
from likely.scoring.scored import Scored
from likely.tokenizers.protocol import Tokenizer, begin, opening

if TYPE_CHECKING:
    from likely.code.buffer import CodeBuffer
    from likely.code.complete import CodeCompletion

PLAIN_QUESTION = "Question: {question}\nAnswer:"  # for models without a chat template


class Model(BaseLanguageModel[tuple[Request, Rendered]]):
    """A model on this machine.

    Verbs: score, perplexity, generate, stream, ask, chat, extract.  `tokenizer`, `capabilities`, `info`, `runtime` and
    `drafters` are open to look at.  Threads may share it: each call of a verb, and each piece of a stream, waits its
    turn.  `close()` frees it; it is also a context manager.
    """

    def __init__(self, runtime: Runtime, tokenizer: Tokenizer, info: ModelInfo):
        self.runtime, self.info = runtime, info
        self.tokenizer: Tokenizer = tokenizer
        self.own_settings = info.settings
        self.drafters = Drafters(runtime, tokenizer, info)
        self._preparing = RLock()
        super().__init__()

    @property
    def capabilities(self) -> Capabilities:
        return self.runtime.capabilities

    @cached_property
    def template(self) -> ChatTemplate | None:
        """The model's chat template, None if it has none."""
        source = self.tokenizer.chat_template
        if source is None:
            return None
        names = {number: text for text, number in self.tokenizer.special_tokens.items()}
        bos, eos = self.tokenizer.bos_id, self.tokenizer.eos_id
        return ChatTemplate(
            source,
            bos_token=names.get(bos, "") if bos is not None else "",
            eos_token=names.get(eos, "") if eos is not None else "",
        )

    @cached_property
    def template_hash(self) -> str:  # type: ignore[override]
        """Of what turns a question into the model's text."""
        if self.template is None:
            return fingerprint(PLAIN_QUESTION)
        own = self.info.system
        return fingerprint(self.template.source if own is None else [self.template.source, own])

    def close(self) -> None:
        """Free weights and caches, after what other threads are doing; harmless when repeated."""
        with self.runtime.turn:
            self.runtime.shutdown()
            self.drafters.close()
        super().close()

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        refuse_copy(self)

    # --- scoring --------------------------------------------------------------------------------------------------

    def score_pairs(
        self,
        pairs: Sequence[tuple[str, str]],
        *,
        progress: Callable[[int], None] | None = None,
        **options: Unpack[ScoringOptions],
    ) -> list[Scored]:
        check_names(options, ScoringOptions.__annotations__)
        return score_pairs(
            self.runtime, self.tokenizer, pairs, top=options.get("top_logprobs", 0),
            entropy=options.get("entropy", False), window=options.get("window"), stride=options.get("stride"),
            progress=progress,
        )  # fmt: skip

    def perplexity(
        self,
        text: str,
        *,
        window: int | None = None,
        stride: int | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> Perplexity:
        """Perplexity, nats per token and bits per byte of a text, in sliding windows."""
        return perplexity(self.runtime, self.tokenizer, text, window=window, stride=stride, progress=progress)

    # --- generation -----------------------------------------------------------------------------------------------

    def _samples(self, prompts: Sequence[str], options: Mapping[str, Any]) -> Sequence[Sequence[Generation]]:
        settings = take_sampler(options)
        if settings.sampler == "local":
            return self.run([self.request(self.encode_prompt(p), options, raw=True) for p in prompts])
        drawn = [e.draw(options.get("n", 1)) for e in self._ensembles(prompts, settings, options)]
        return [[make() for make in group] for group in drawn]

    def ensemble(self, prompt: str, **options: Unpack[GenerateOptions]) -> Ensemble[Generation]:
        """The weighted texts from which `generate` draws with sampler="importance" (here the default) or "smc".

        n  rejection: texts to accept; else without effect
        """
        settings = take_sampler(options, "importance")
        if settings.sampler == "local":
            raise ValueError('sampler="local" has no weights: use "importance", "smc" or "rejection"')
        [found] = self._ensembles([prompt], settings, options)
        return found.holding([make() for make in found.texts])

    def stream(self, prompt: str | Sequence[Message], **options: Unpack[GenerateOptions]) -> Stream:
        """The streaming form of `generate` (n=1, no beams)."""
        if isinstance(prompt, str):
            return Stream(self, self.request(self.encode_prompt(prompt), options, raw=True))
        return Stream(self, *self._turn(prompt, {"stop_repetition": False, **options}))

    def _answer(self, prepared: tuple[Request, Rendered]) -> Answer:
        request, seen = prepared
        check_single(request)
        [[made]] = self.run([request])
        return Answer(**vars(made), prompt=seen.text, system_folded=seen.system_folded)

    def _answer_stream(self, prepared: tuple[Request, Rendered], decide: Decide) -> Stream:
        return Stream(self, *prepared, decide)

    def _answer_all(
        self, questions: Sequence[QuestionLine], system: str | None, settings: Mapping[str, Any]
    ) -> Iterator[Answer]:
        with closing(self.loop()) as loop:
            for batch in chunked(questions, BATCH):
                prepared = [self._question(q.asked, q.system or system, settings) for q in batch]
                found = outcomes(loop, [request for request, _ in prepared], self.generation)
                for (_, seen), made in zip(prepared, found, strict=True):
                    if isinstance(made, LikelyError):
                        raise made
                    yield Answer(**vars(made[0]), prompt=seen.text, system_folded=seen.system_folded)

    def question(
        self, question: str, *, system: str | None = None, **options: Unpack[TextOptions]
    ) -> tuple[Request, Rendered]:
        """What `ask` sends to the model, for callers that schedule requests themselves."""
        return self._question(question, system, self.settings(ASK_DEFAULTS, options))

    def _question(self, question: str, system: str | None, options: Mapping[str, Any]) -> tuple[Request, Rendered]:
        if not question.strip():
            raise ValueError("the question is empty")
        options = {"stop_repetition": True, **options}
        if self.template is None:
            options = {"stop": ("\n\n", "\nQuestion:"), **options}
        rendered = self._rendered_question(question, system)
        return self.request(rendered.tokens, options, lambda q: self._rendered_question(q, system).tokens), rendered

    def _rendered_question(self, question: str, system: str | None) -> Rendered:
        if self.template is None:
            text = PLAIN_QUESTION.format(question=question if system is None else f"{system}\n{question}")
            return Rendered(text, self.encode_prompt(text), system_folded=system is not None)
        messages = [{"role": "system", "content": system}] if system is not None else []
        return self.render([*messages, {"role": "user", "content": question}])

    def preview(self, question: str, *, system: str | None = None, **options: Unpack[TextOptions]) -> str:
        request, rendered = self.question(question, system=system, **options)
        with closing(self.loop()) as trial:
            trial.add(request)
        return rendered.text

    def _turn(self, messages: Sequence[Message], options: Mapping[str, Any]) -> tuple[Request, Rendered]:
        """The next assistant message as a request; a contrast's text stands in the place of the last message."""
        rendered = self.render(messages)

        def with_other_end(text: str) -> Sequence[int]:
            return self.render([*messages[:-1], {**messages[-1], "content": text}]).tokens

        return self.request(rendered.tokens, {"stop_repetition": True, **options}, with_other_end), rendered

    def extract_each(
        self, documents: Sequence[str], *, schema: Any, **options: Unpack[ExtractOptions]
    ) -> Iterator[Extracted]:
        def request(document: str) -> Request | LikelyError:
            try:
                return self._extraction(document, schema, options)[0]
            except (DataError, ModelError) as error:  # empty, or nothing that this model's template takes
                return error

        with closing(self.loop()) as loop:
            for batch in chunked(list(documents), BATCH):
                yield from map(extracted, outcomes(loop, [request(d) for d in batch], self.generation))

    def preview_extraction(self, document: str, *, schema: Any, **options: Unpack[ExtractOptions]) -> str:
        return self._extraction(document, schema, options)[1].text

    def _extraction(self, document: str, schema: Any, options: Mapping[str, Any]) -> tuple[Request, Rendered]:
        if not document.strip():
            raise DataError("the document is empty")
        options = {**EXTRACT_DEFAULTS, **options, "schema": schema}
        prompt = extraction_prompt(document, schema, options.pop("instruction", None))
        if self.template is None:
            rendered = Rendered(prompt, self.encode_prompt(prompt))
        else:
            rendered = self.render([{"role": "user", "content": prompt}])
        return self.request(rendered.tokens, options), rendered

    def complete_code(self, buffer: CodeBuffer, **options: Unpack[CompleteCodeOptions]) -> CodeCompletion:
        """Code at the cursor of a `CodeBuffer`, held by monitors; options as in `code.complete.complete_code`."""
        from likely.code.complete import complete_code

        return complete_code(self, buffer, **options)

    # --- prompts and requests -------------------------------------------------------------------------------------

    def render(self, messages: Sequence[Message]) -> Rendered:
        """A conversation as the model reads it; where it has no system message, it begins with that of `info`."""
        if self.template is None:
            raise ModelError(
                f"{self.info.name} has no chat template (it is a base model): use generate or ask, or a chat model"
            )
        if self.info.system is not None and system_of(messages := check_messages(messages)) is None:
            messages = [{"role": "system", "content": self.info.system}, *messages]
        return render_chat(self.tokenizer, self.template, messages)

    def fitting(self, messages: Sequence[Message], max_tokens: int) -> list[Message]:
        context = longest_text(self.runtime)
        most = context - min(max_tokens, context // 4)
        kept = list(messages)
        oldest = sum(message["role"] == "system" for message in kept[:1])
        while len(kept) > oldest + 1 and len(self.render(kept).tokens) > most:
            del kept[oldest]
            while len(kept) > oldest + 1 and kept[oldest]["role"] != "user":  # what answered it
                del kept[oldest]
        return kept

    def encode_prompt(self, prompt: str) -> list[int]:
        """Token ids of a raw prompt, the beginning-of-sequence token in front where the model wants one."""
        return begin(self.tokenizer, self.tokenizer.encode(prompt, parse_special=True)) or opening(self.tokenizer)

    def request(
        self,
        tokens: Sequence[int],
        options: Mapping[str, Any],
        as_prompt: Callable[[str], Sequence[int]] | None = None,
        *,
        raw: bool = False,
    ) -> Request:
        """The request that continues these tokens; see `lm.requests.make_request`."""
        with self._preparing:
            return make_request(self, tokens, options, as_prompt, raw=raw)

    @cached_property
    def guide(self) -> Guide:
        """Compiles forms into constraints on this model's tokens."""
        return Guide(Vocabulary.of(self.tokenizer, self.runtime.vocab_size))

    # --- running --------------------------------------------------------------------------------------------------

    def loop(
        self,
        *,
        policy: SchedulingPolicy | None = None,
        prefixes: PrefixCache | None = None,
        prefill_tokens: int = 0,
        prefill_slowdown: float = 0.0,
    ) -> Loop:
        """A fresh loop on this model, for callers that schedule requests themselves; see `Loop`."""
        return Loop(
            self.runtime,
            self.tokenizer.token_bytes,
            self.tokenizer.end_ids,
            controller=self.speculation,
            policy=policy,
            prefixes=prefixes,
            prefill_tokens=prefill_tokens,
            prefill_slowdown=prefill_slowdown,
        )

    def drafter(self, drafter: str | DraftSource | None, *, remembered: bool = True) -> DraftSource | None:
        """A drafter by name or object; see `lm.requests.Drafters.get`."""
        return self.drafters.get(drafter, remembered=remembered)

    @property
    def speculation(self) -> Controller:
        """What this model's calls cost and its drafters achieved so far, for draft_budget="auto"."""
        return self.drafters.controller

    def run(self, requests: Sequence[Request]) -> list[list[Generation]]:
        """The public records of every sample of each request.  Texts that break their schema are drawn again."""
        done = []
        with self.runtime.turn, closing(self.loop()) as loop:
            for found in outcomes(loop, requests, self.generation):
                if isinstance(found, LikelyError):
                    raise found
                done.append(found)
        return done

    def generation(self, request: Request, event: Event, seconds: float) -> Generation:
        """The public record of a finished sample."""
        return generation_of(self.tokenizer, request, event, seconds)

    def _ensembles(
        self, prompts: Sequence[str], settings: SamplerSettings, options: Mapping[str, Any]
    ) -> list[Ensemble[Callable[[], Generation]]]:
        """Per prompt: weighted texts, each a function that makes its public record."""
        plain = {name: value for name, value in options.items() if name not in SAMPLER and name != "n"}
        if settings.sampler == "smc":
            plain.setdefault("drafter", None)
        requests = [prepare(self.request(self.encode_prompt(p), plain), settings) for p in prompts]

        def finish(wanted: Sequence[Request]) -> list[list[FinishedSample]]:
            started = time.perf_counter()
            with closing(self.loop()) as loop:
                groups = run(loop, wanted)
            seconds = time.perf_counter() - started
            return [[(event, seconds) for event in group] for group in groups]

        return ensembles(
            requests, settings, finish, self.generation, end_ids=self.tokenizer.end_ids, wanted=options.get("n", 1)
        )
