"""Texts that turn out not to follow their schema are drawn again, a bounded number of times.

What an engine cannot enforce (uniqueItems, if, a validator in Python) is tried on the finished text.  Draw k of sample
i has its own noise, keyed by (seed, i, k), so that results stay a function of prompt, settings and seed, whatever else
is in the batch.  The law of the accepted text is the guided law conditioned on validity; its log-probabilities are
those of the guided law itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

from likely.decoding.request import Event, Request
from likely.guided.json_schema.errors import SchemaUnsatisfied
from likely.lm.results import Generation

DRAWS_APART = 1 << 32  # sample numbers of one draw and the next: more than any request has samples

Ended = tuple[Event, float]  # the last event of a sample, and the seconds until then


class Finish(Protocol):
    def __call__(self, requests: Sequence[Request], /) -> list[list[Ended]]: ...


def redraw(request: Request, sample: int, attempt: int) -> Request:
    """The request that draws this sample anew.  Greedy texts and beams would come out the same: those are sampled at
    temperature 1 under the same constraint."""
    sampling = replace(request.sampling, temperature=1.0) if request.sampling.greedy else request.sampling
    return replace(request, samples=1, beams=0, first_sample=sample + attempt * DRAWS_APART, sampling=sampling)


def draw_until_valid(
    requests: Sequence[Request], finish: Finish, record: Callable[[Request, Event, float], Generation]
) -> list[list[Generation]]:
    """The public records of every sample of each request.  All redraws of one round share the loop.

    finish  runs requests to their ends;  record  makes the public record, SchemaUnsatisfied for a text that breaks its
            schema.  SchemaUnsatisfied if every draw of some sample does
    """
    done: list[dict[int, Generation]] = [{} for _ in requests]
    waiting: list[tuple[int, Request, int | None]] = [(i, request, None) for i, request in enumerate(requests)]
    attempt = 0
    while waiting:
        ended = finish([request for _, request, _ in waiting])
        failed: list[tuple[int, int, SchemaUnsatisfied]] = []
        for (i, request, sample), group in zip(waiting, ended, strict=True):
            for event, seconds in group:
                number = event.sample if sample is None else sample
                try:
                    made = record(request, event, seconds)
                except SchemaUnsatisfied as error:
                    failed.append((i, number, error))
                    continue
                done[i][number] = told(made, requests[i], number, attempt)
        attempt += 1
        waiting = []
        for i, number, broken in failed:
            form = requests[i].form
            if form is None or attempt > form.settings.retries:
                raise SchemaUnsatisfied(broken.text, broken.errors, attempt)
            waiting.append((i, redraw(requests[i], number, attempt), number))
    return [[samples[k] for k in sorted(samples)] for samples in done]


def told(made: Generation, request: Request, sample: int, attempt: int) -> Generation:
    """The record of a redraw as that of the sample that was asked for, with a warning that says so."""
    if not attempt:
        return made
    how = " at temperature 1" if request.sampling.greedy else ""
    told = f"draw {attempt + 1}{how}: {attempt} before it did not follow the schema"
    return replace(made, sample=sample, warnings=(*made.warnings, told))
