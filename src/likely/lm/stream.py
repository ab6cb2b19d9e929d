"""Text that is read while it is written."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from likely.decoding.request import Event, Request
from likely.errors import CapabilityError
from likely.lm.records import record_of
from likely.lm.results import Answer, Generation
from likely.models.chat_template import Rendered

if TYPE_CHECKING:
    from likely.lm.model import Model


@dataclass(eq=False)
class Stream:
    """Text pieces of one generation, as an iterator; then `.result`.

    Stopped early (`close()`, or an exception such as Ctrl-C in the consumer), `.result` is the partial text with
    finish_reason "cancelled".
    """

    model: Model
    request: Request
    rendered: Rendered | None
    result: Answer | Generation | None = None
    _started: float = field(default_factory=time.perf_counter)
    _begun: bool = False

    def __post_init__(self) -> None:
        if self.request.samples > 1 or self.request.beams:
            raise CapabilityError("a stream is one text: use generate for n > 1 or beams")
        self._loop = self.model.loop()
        self._id = self._loop.add(self.request)
        self._pieces: Iterator[str] = self._run()

    @property
    def prompt(self) -> str:
        """The text that the model sees."""
        return self.rendered.text if self.rendered else ""

    def __iter__(self) -> Iterator[str]:
        return self._pieces

    def __next__(self) -> str:
        return next(self._pieces)

    def finish(self) -> Any:
        """Run to the end and give the result.

        A text that breaks its schema is drawn again, as `generate` does it, unless pieces of it were read before.
        """
        form = self.request.form
        if not self._begun and form is not None and form.kind == "schema":
            self._loop.close()
            self._pieces = iter(())
            [[made]] = self.model.run([self.request])
            self.result = self._public({f.name: getattr(made, f.name) for f in fields(made)})
        for _ in self._pieces:
            pass
        return self.result

    def close(self) -> Any:
        """Stop here; gives the partial result."""
        if self.result is None:
            self._loop.cancel(self._id)
            with contextlib.suppress(Exception):
                for event in self._loop.step():
                    self._take(event)
        self._loop.close()
        return self.result

    def _run(self) -> Iterator[str]:
        self._begun = True
        try:
            while not self._loop.idle:
                for event in self._loop.step():
                    if event.error:
                        raise event.error
                    self._take(event)
                    if event.text:
                        yield event.text
        finally:
            self.close()

    def _take(self, event: Event) -> None:
        if event.finish is None:
            return
        seconds = time.perf_counter() - self._started
        self.result = self._public(record_of(self.model.tokenizer, self.request, event.finish, event.sample, seconds))

    def _public(self, values: dict[str, Any]) -> Answer | Generation:
        if self.rendered is None:
            return Generation(**values)
        return Answer(**values, prompt=self.rendered.text, system_folded=self.rendered.system_folded)
