"""Every runtime but llama.cpp's (whose own tests run it with its books open) through any interleaving of calls."""

from __future__ import annotations

import pytest
from factories import FACTORIES, runtime_cases
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test
from interleavings import Interleavings

OTHERS = ("torch-recompute", "recurrent-falcon_h1")  # slow, and alike to others in all that interleaves
NAMES = [name for name in FACTORIES if not name.startswith("llamacpp") and name not in OTHERS]


@pytest.mark.sampled(6)
@pytest.mark.parametrize("name", runtime_cases(NAMES))
def test_any_interleaving_equals_fresh_decodes(name):
    build, allowed = FACTORIES[name]

    class Here(Interleavings):
        tolerance = allowed

        def make(self):
            return build()

        def make_oracle(self):
            return build()

    options = settings(max_examples=12, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck))
    run_state_machine_as_test(Here, settings=options)


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

        def make_oracle(self):
            return build()

    options = settings(
        max_examples=60, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck), database=None
    )
    with pytest.raises(AssertionError):
        run_state_machine_as_test(Broken, settings=options)
