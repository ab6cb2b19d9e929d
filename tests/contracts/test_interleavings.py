"""Every runtime but llama.cpp's (whose own tests run it with its books open) through any interleaving of calls."""

from __future__ import annotations

import pytest
from factories import FACTORIES, runtime_cases
from hypothesis import Phase
from interleavings import Interleavings, check_interleavings

# alike to others in all that interleaves: formats have trees, forks and cuts of their own in test_runtimes.py
OTHERS = (
    "torch-recompute", "recurrent-falcon_h1", "torch-repad-gemma3", "native-bf16", "native-fp32", "native-int4",
    "native-file-gemma3",
)  # fmt: skip
NAMES = [name for name in FACTORIES if not name.startswith("llamacpp") and name not in OTHERS]


@pytest.mark.sampled(6)
@pytest.mark.parametrize("name", runtime_cases(NAMES))
def test_any_interleaving_equals_fresh_decodes(name):
    build, allowed = FACTORIES[name]

    class Here(Interleavings):
        tolerance = allowed

        def make(self):
            return build()

        @classmethod
        def make_oracle(cls):
            return build()

    check_interleavings(Here, max_examples=12, stateful_step_count=25)


@pytest.mark.slow
def test_a_runtime_that_forgets_to_drop_nodes_is_caught():
    """Negative control: a commit that keeps one node too many."""
    build, _ = FACTORIES["toy"]

    class Broken(Interleavings):
        def make(self):
            runtime = build()
            right = runtime.commit

            def commit(accepted):
                right([(s, s.path(s.pending - 1) if p else p) for s, p in accepted])

            runtime.commit = commit
            return runtime

        @classmethod
        def make_oracle(cls):
            return build()

    with pytest.raises(AssertionError):
        check_interleavings(Broken, max_examples=60, stateful_step_count=30, database=None, phases=[Phase.generate])
