"""The one driver of the loop: what is in it runs to its end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from likely.decoding.loop import Loop
from likely.decoding.request import Event, Request


def events(loop: Loop) -> Iterator[Event]:
    """News of all requests in the loop until it is idle; what ended a request with an error is raised.

    Between two events the caller may add requests to the loop and cancel others.
    """
    while not loop.idle:
        for event in loop.step():
            if event.error:
                raise event.error
            yield event


def run(loop: Loop, requests: Sequence[Request]) -> list[list[Event]]:
    """The last event of every sample of each request, samples in order; no other thread has a step between."""
    ids = [loop.add(request) for request in requests]
    done: dict[int, dict[int, Event]] = {number: {} for number in ids}
    with loop.runtime.turn:
        for event in events(loop):
            if event.finish:
                done[event.request][event.sample] = event
    return [[samples[k] for k in sorted(samples)] for samples in done.values()]
