"""What becomes of requests: public records, texts sampled again where they break their schema, weighted ensembles."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from likely.decoding.loop import Loop
from likely.decoding.request import Event, Finished, Request
from likely.errors import LikelyError, ModelError
from likely.guided.conditional_sampling import Ensemble, SamplerSettings, reject, weighted
from likely.guided.fields import read_fields
from likely.guided.json_schema.errors import InvalidText, SchemaUnsatisfied
from likely.guided.token_healing import TokenHealing, without_healing
from likely.lm.results import Generation
from likely.scoring.scored import TopLogprob, sums
from likely.tokenizers.protocol import Tokenizer

DRAWS_APART = 1 << 32  # sample numbers of one draw and the next: more than any request has samples

FinishedSample = tuple[Event, float]  # the last event of a sample, and the seconds until then
Record = Callable[[Request, Event, float], Generation]


def generation_of(tokenizer: Tokenizer, request: Request, event: Event, seconds: float) -> Generation:
    """The public record of a finished sample.  SchemaUnsatisfied for a whole text that breaks its schema."""
    finish = event.finish
    assert finish is not None
    healing, drafted = None, finish.drafted
    if request.healed is not None:
        finish, healing = without_healing(finish, request.healed, tokenizer.token_bytes)
        drafted = drafted[len(drafted) - len(finish.tokens) :]
    total, mean = sums(finish.logprobs)
    name = tokenizer.token_text
    tops = [[TopLogprob(i, name(i), lp) for i, lp in row] for row in finish.tops] if request.top_logprobs else None
    return Generation(
        text=finish.text,
        token_ids=finish.tokens,
        token_logprobs=finish.logprobs,
        sequence_logprob=total,
        mean_logprob=mean,
        finish_reason=finish.reason,
        target_calls=finish.target_calls,
        seconds=seconds,
        tokens=[name(t) for t in finish.tokens],
        prompt_tokens=len(request.prompt),
        proposed=finish.proposed,
        accepted=finish.accepted,
        tokens_per_call=len(finish.tokens) / len(finish.rounds) if finish.rounds else None,
        sample=event.sample,
        seed=request.sampling.seed,
        top_logprobs=tops,
        entropies=finish.entropies if request.entropy else None,
        actions=finish.actions if request.backspace_id is not None else None,
        drafted=drafted if finish.proposed else None,
        processed_logprobs=finish.processed if request.processed else None,
        steering=finish.steering,
        healing_log_weight=healing,
        **_guided_fields(tokenizer, request, finish, total),
    )


def _guided_fields(tokenizer: Tokenizer, request: Request, finish: Finished, total: float) -> dict[str, Any]:
    """What a constraint adds."""
    constraint = request.constraint
    if constraint is None or (isinstance(constraint, TokenHealing) and constraint.then is None):
        return {}
    weight = float(sum(finish.log_masses))
    form, value, shares = request.form, None, None
    if form is not None and finish.complete:
        try:
            value = form.read(finish.text)
        except InvalidText as error:
            raise SchemaUnsatisfied(finish.text, error.errors) from None
        shares = None if request.healed else read_fields(
            finish.text, form, constraint, finish.tokens, tokenizer.token_bytes,
            finish.logprobs, finish.log_masses,
        )  # fmt: skip
    return {
        "token_log_masses": finish.log_masses,
        "log_weight": weight,
        "guided_logprob": total - weight,
        "complete": finish.complete,
        "approximate": finish.approximate,
        "value": value,
        "warnings": form.warnings if form is not None else (),
        "fields": shares[0] if shares else None,
        "structure": shares[1] if shares else None,
    }


# --- texts that break their schema ------------------------------------------------------------------------------------
#
# What a backend cannot enforce (uniqueItems, if, a validator in Python) is tried on the finished text, and a text that
# fails is sampled again, a bounded number of times.  Draw k of sample i has its own noise, keyed by (seed, i, k), so
# that results stay a function of prompt, settings and seed, whatever else is in the batch.  The distribution of the
# accepted text is the guided one conditioned on validity; its log-probabilities are those of the guided one itself.


@dataclass
class _Draw:
    """A request in the loop.

    place    of the request that it is for;  attempt: how many draws were made before
    sample   the sample that is drawn again; None: the request as it was asked
    left     samples that have not finished
    """

    place: int
    request: Request
    attempt: int
    sample: int | None
    left: int


def outcomes(
    loop: Loop, requests: Sequence[Request | LikelyError], record: Record
) -> Iterator[list[Generation] | LikelyError]:
    """What became of each request, in their order: its samples in order, or what ended it; errors in the list stay.

    A text that breaks its schema is drawn again beside the others, up to `retries` times, then SchemaUnsatisfied.
    """
    started = time.perf_counter()
    ended: dict[int, LikelyError] = {}
    done: list[dict[int, Generation]] = [{} for _ in requests]
    running: dict[int, _Draw] = {}  # by the loop's number

    def add(place: int, request: Request, attempt: int = 0, sample: int | None = None) -> None:
        try:
            running[loop.add(request)] = _Draw(place, request, attempt, sample, request.samples)
        except ModelError as error:  # it can never run
            ended[place] = error

    def take(event: Event, draw: _Draw) -> None:
        first = requests[draw.place]
        assert isinstance(first, Request)
        number, attempt = event.sample if draw.sample is None else draw.sample, draw.attempt
        try:
            made = record(draw.request, event, time.perf_counter() - started)
            done[draw.place][number] = _as_asked(made, first, number, attempt)
        except SchemaUnsatisfied as broken:
            if first.form is None or attempt + 1 > first.form.settings.retries:
                ended[draw.place] = SchemaUnsatisfied(broken.text, broken.errors, attempt + 1)
            else:
                add(draw.place, redraw(first, number, attempt + 1), attempt + 1, number)

    for i, request in enumerate(requests):
        if isinstance(request, LikelyError):
            ended[i] = request
        else:
            add(i, request)
    for i, request in enumerate(requests):
        while i not in ended and isinstance(request, Request) and len(done[i]) < request.samples:
            for event in loop.step():
                if event.request not in running or not (event.finish or event.error):
                    continue
                draw = running[event.request]
                draw.left -= 1
                if event.error or not draw.left:
                    del running[event.request]
                if event.error is None:
                    take(event, draw)
                elif isinstance(event.error, LikelyError):
                    ended[draw.place] = event.error
                else:
                    raise event.error
        yield ended[i] if i in ended else [done[i][k] for k in sorted(done[i])]


def redraw(request: Request, sample: int, attempt: int) -> Request:
    """The request that draws this sample anew.  Greedy texts and beams would come out the same: those are sampled at
    temperature 1 under the same constraint."""
    sampling = replace(request.sampling, temperature=1.0) if request.sampling.greedy else request.sampling
    return replace(request, samples=1, beams=0, first_sample=sample + attempt * DRAWS_APART, sampling=sampling)


def _as_asked(made: Generation, request: Request, sample: int, attempt: int) -> Generation:
    """The record of a redraw as that of the sample that was asked for, with a warning that says so."""
    if not attempt:
        return made
    how = " at temperature 1" if request.sampling.greedy else ""
    warning = f"draw {attempt + 1}{how}: {attempt} before it did not follow the schema"
    return replace(made, sample=sample, warnings=(*made.warnings, warning))


# --- texts conditioned on their form ----------------------------------------------------------------------------------


def ensembles(
    requests: Sequence[Request], settings: SamplerSettings,
    run: Callable[[Sequence[Request]], list[list[FinishedSample]]], record: Record, *, end_ids: frozenset[int],
    wanted: int,
) -> list[Ensemble[Callable[[], Generation]]]:  # fmt: skip
    """Per request (of `prepare`): weighted texts, each a function that makes its public record.

    run  runs requests to their ends;  wanted: texts to accept, by rejection
    """
    if settings.sampler == "rejection":
        found = reject(requests, run, lambda text: bool(_end(text).complete), end_ids=end_ids, wanted=wanted,
                       settings=settings)  # fmt: skip
    else:
        found = [weighted(request, group, _end) for request, group in zip(requests, run(requests), strict=True)]

    def particle(request: Request, ensemble: Ensemble, event: Event, seconds: float) -> Generation:
        made = replace(record(request, event, seconds), log_evidence=ensemble.log_evidence, ess=ensemble.ess)
        if ensemble.tries is None:
            return made
        return replace(made, token_log_masses=None, log_weight=None, guided_logprob=None)  # nothing was masked

    return [
        e.holding([partial(particle, request, e, event, seconds) for event, seconds in e.texts])
        for request, e in zip(requests, found, strict=True)
    ]


def _end(text: FinishedSample) -> Finished:
    assert text[0].finish is not None
    return text[0].finish
