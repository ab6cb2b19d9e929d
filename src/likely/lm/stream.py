"""Text that is read while it is written."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from likely.decoding.loop import Loop
from likely.decoding.request import Event, Request
from likely.decoding.run import events
from likely.lm.requests import check_single
from likely.lm.results import Answer, AnswerStream, Generation
from likely.models.chat_template import Rendered


class _Runs(Protocol):
    """The model that writes."""

    def loop(self) -> Loop: ...
    def run(self, requests: Sequence[Request]) -> list[list[Generation]]: ...
    def generation(self, request: Request, event: Event, seconds: float) -> Generation: ...


class Stream(AnswerStream):
    """Text pieces of one generation of a model on this machine.

    rendered  of an answer: what the model saw;  decide: what is made of the whole answer
    """

    def __init__(
        self,
        lm: _Runs,
        request: Request,
        rendered: Rendered | None = None,
        decide: Callable[[Answer], Answer] | None = None,
    ):
        check_single(request)
        self._lm, self._request, self._rendered, self._decide = lm, request, rendered, decide
        self.prompt = rendered.text if rendered else ""
        self._started = time.perf_counter()
        self._loop = lm.loop()
        self._id = self._loop.add(request)
        self._begun = False
        self._made: Generation | None = None  # the whole text, from the event of its end on
        self._pieces: Iterator[str] = self._run()

    def finish(self) -> Any:
        """Run to the end and give the result.

        A text that breaks its schema is drawn again, as `generate` does it, unless pieces of it were read before.
        """
        form = self._request.form
        if not self._begun and form is not None and form.kind == "schema":
            self._loop.close()
            self._pieces = iter(())
            [[made]] = self._lm.run([self._request])
            self.result = self._whole(made)
        return super().finish()

    def close(self) -> Any:
        if self.result is None and self._made is not None:  # stopped while its last piece was read
            self.result = self._public(self._made)
        elif self.result is None:
            self._loop.cancel(self._id)
            with contextlib.suppress(Exception):
                for event in self._loop.step():
                    if event.finish:
                        self.result = self._public(self._generation(event))
        self._loop.close()
        return self.result

    def _run(self) -> Iterator[str]:
        self._begun = True
        try:
            for event in events(self._loop):
                if event.finish:
                    self._made = self._generation(event)
                if event.text:
                    yield event.text
            assert self._made is not None
            self.result = self._whole(self._made)
        finally:
            self.close()

    def _generation(self, event: Event) -> Generation:
        return self._lm.generation(self._request, event, time.perf_counter() - self._started)

    def _whole(self, made: Generation) -> Generation:
        found = self._public(made)
        return self._decide(found) if self._decide is not None and isinstance(found, Answer) else found

    def _public(self, made: Generation) -> Generation:
        if self._rendered is None:
            return made
        return Answer(**vars(made), prompt=self._rendered.text, system_folded=self._rendered.system_folded)
