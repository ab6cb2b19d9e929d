"""The table of sequence tasks: by which name each is asked for, what it needs, and its size in the benchmark."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from likely.bench.sequence.computation import make_listops, make_modular_sum
from likely.bench.sequence.examples import Examples, Split
from likely.bench.sequence.paths import make_paths
from likely.bench.sequence.recall import make_copy, make_induction, make_mqar, make_recall, make_selective_copy
from likely.bench.sequence.signals import make_bytes, make_delay, make_digits, make_forecast, make_reconstruction
from likely.errors import DataError, nearest

Size = int | float | bool | str


@dataclass(frozen=True)
class SequenceTask:
    """A task of the benchmark.

    make       the generator;  size: what it is called with, besides n, seed and split
    train      examples that exist; None: fresh ones are drawn for every step
    test       examples in the test set
    """

    about: str
    make: Callable[..., Examples]
    size: Mapping[str, Size] = field(default_factory=dict)
    train: int | None = None
    test: int = 512

    def examples(self, n: int, seed: int, split: Split, *, data_dir: Path | None = None) -> Examples:
        place = {"data_dir": data_dir} if "data_dir" in inspect.signature(self.make).parameters else {}
        return self.make(n, seed, split=split, **self.size, **place)

    def with_size(self, name: str, changes: Mapping[str, Size]) -> SequenceTask:
        """The task at another size; DataError for a word that it does not know, or a value of another type."""
        known = {
            key: parameter.default
            for key, parameter in inspect.signature(self.make).parameters.items()
            if isinstance(parameter.default, Size) and key != "split"
        }
        for key, value in changes.items():
            if key not in known:
                raise DataError(
                    f'task {name} has no size "{key}"{nearest(key, known)} (it has {", ".join(sorted(known))})'
                )
            if type(value) is not type(known[key]):
                raise DataError(f"{name}: {key} must be like {known[key]!r}, got {value!r}")
        return SequenceTask(self.about, self.make, {**self.size, **changes}, self.train, self.test)


TASKS: dict[str, SequenceTask] = {
    "copy": SequenceTask("say 8 ids again after 64 blanks", make_copy),
    "selective-copy": SequenceTask("say 8 ids again that stand among 64 blanks", make_selective_copy),
    "induction": SequenceTask("what followed the special id the first time", make_induction, {"length": 64}),
    "mqar": SequenceTask("the values of 8 keys", make_mqar),
    "mqar-16": SequenceTask("the values of 16 keys", make_mqar, {"length": 128, "pairs": 16, "vocabulary": 128}),
    "recall": SequenceTask("the value of one of 8 keys", make_recall),
    "parity": SequenceTask("whether the bits so far are odd in number", make_modular_sum),
    "mod-5": SequenceTask("the sum of the digits so far, modulo 5", make_modular_sum, {"modulus": 5}),
    "listops": SequenceTask("the value of nested lists of digits", make_listops, train=4000),
    "digits": SequenceTask("handwritten digits, pixel by pixel", make_digits, train=1257, test=360),
    "digits-permuted": SequenceTask(
        "the same, pixels in a random order", make_digits, {"permuted": True}, train=1257, test=360
    ),
    "paths": SequenceTask("whether two dots are joined by a dashed path", make_paths, train=2000),
    "delay": SequenceTask("a signal of 64 steps before", make_delay, {"length": 256, "lag": 64}, test=128),
    "reconstruction": SequenceTask("the last 64 values of a signal, at once", make_reconstruction, test=128),
    "bytes": SequenceTask("the next byte of a text", make_bytes, {"length": 128}, test=128),
    "forecast": SequenceTask("the next day of a load or weather series", make_forecast),
}
