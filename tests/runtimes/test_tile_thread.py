"""llama.cpp and torch's bfloat16 in one process, on one thread."""

from __future__ import annotations

import _thread
import subprocess
import sys
import threading
import time

import pytest

from likely.runtimes.llamacpp.library import on_tile_thread

PROGRAM = """
import sys
import torch, likely
with likely.load(sys.argv[1]) as lm:
    text = "The history of the town goes back to the twelfth century. " * 6
    before = lm.perplexity(text).nats_per_token
    x = torch.ones(256, 256, dtype=torch.bfloat16)
    assert (x @ x).float().sum() == 256**3
    assert lm.perplexity(text).nats_per_token == before
"""


@pytest.mark.slow
@pytest.mark.real
@pytest.mark.xdist_group("real")
def test_torch_may_use_tiles_between_two_calls():
    done = subprocess.run([sys.executable, "-c", PROGRAM, "smollm2"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]


def test_results_and_errors_come_back_from_one_thread():
    names = {on_tile_thread(lambda: threading.current_thread().name) for _ in range(3)}
    assert len(names) == 1 and threading.current_thread().name not in names
    with pytest.raises(ZeroDivisionError):
        on_tile_thread(lambda: 1 / 0)


def test_an_interrupt_waits_for_the_call():
    ended = []

    def call():
        _thread.interrupt_main()
        time.sleep(0.05)
        ended.append(True)

    with pytest.raises(KeyboardInterrupt):
        on_tile_thread(call)
    assert ended
