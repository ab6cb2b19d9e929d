"""Every runtime among threads, forks and copies: the numbers of whoever is alone, or one clear line."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
import threading

import numpy as np
import pytest
from factories import FACTORIES, runtime_cases

from likely.decoding.loop import Loop
from likely.decoding.request import Request
from likely.decoding.run import run
from likely.decoding.sampling import Sampling
from likely.errors import LikelyError
from likely.lm.model import Model
from likely.models.load import ModelInfo
from likely.runtimes.protocol import Want, Work
from likely.runtimes.toy import CharTokenizer, ToyRuntime
from likely.runtimes.turns import Turn
from likely.scoring.likelihood import Item, score_items

THREADS = 8


# one of each class: formats and layers of one class share its turns
NAMES = (
    "toy", "torch", "torch-bfp12", "torch-repad", "llamacpp", "native", "native-file", "recurrent", "torch-recompute",
)  # fmt: skip


@pytest.fixture(scope="module", params=runtime_cases(NAMES))
def made(request):
    build, tolerance = FACTORIES[request.param]
    runtime = build()
    yield runtime, tolerance
    runtime.shutdown()


@pytest.fixture
def often():
    """Threads take turns as often as the interpreter can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def together(task, count=THREADS):
    """task(i) for each i, all at once; what each returned."""
    start, results, errors = threading.Barrier(count), [None] * count, []

    def one(i):
        start.wait()
        try:
            results[i] = task(i)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=one, args=(i,)) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors, errors
    return results


def text_of(runtime, seed, n=20):
    return np.random.default_rng(seed).integers(3, min(runtime.vocab_size, 60), n)


def rows_of_every_operation(runtime, seed):
    """Logits from a chain, a fork, a tree that is committed, and a cut."""
    tokens = text_of(runtime, seed)
    sequence, rows = runtime.open(), []

    def forward(held, part, parents=None):
        work = Work(held, part, None if parents is None else np.array(parents), want=Want.ALL)
        rows.append(runtime.forward([work])[0].logits)

    forward(sequence, tokens[:9])
    fork = runtime.fork(sequence, 5)
    forward(fork, tokens[9:12])
    forward(sequence, tokens[12:16], [-1, 0, 0, 2])
    runtime.commit([(sequence, [0, 2])])
    forward(sequence, tokens[16:])
    runtime.truncate(sequence, 3)
    forward(sequence, tokens[:4])
    runtime.close(fork)
    runtime.close(sequence)
    return np.concatenate(rows)


def test_calls_of_threads_give_the_numbers_of_one(made, often):
    runtime, tolerance = made
    alone = [rows_of_every_operation(runtime, i) for i in range(THREADS)]
    free = runtime.free_tokens()
    for found, expected in zip(together(lambda i: rows_of_every_operation(runtime, i)), alone, strict=True):
        np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)
    assert runtime.free_tokens() == free


def test_scores_of_threads_are_those_of_one(made, often):
    runtime, tolerance = made

    def scores(i):
        items = [Item(tuple(text_of(runtime, 10 * i + k).tolist()), 8) for k in range(3)]
        return [score.logprobs for score in score_items(runtime, items)]

    alone = [scores(i) for i in range(THREADS)]
    np.testing.assert_allclose(together(scores), alone, rtol=0, atol=tolerance)


def test_texts_of_threads_are_those_of_one(made, often):
    runtime, _ = made

    def written(i):
        loop = Loop(runtime, lambda token: bytes([97 + token % 26]), frozenset())
        request = Request(
            tuple(text_of(runtime, i, 6).tolist()), Sampling(temperature=float(i % 2), seed=i), max_tokens=8, samples=2
        )
        [samples] = run(loop, [request])
        return [event.finish.tokens for event in samples]

    alone = [written(i) for i in range(THREADS)]
    assert together(written) == alone


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_copy_is_refused(made, duplicate):
    with pytest.raises(LikelyError, match="cannot be copied or pickled"):
        duplicate(made[0])


def in_child(task):
    """What the task returned in a child process made by fork."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.write(write, str(task()).encode()[:4000])
        except BaseException as error:
            os.write(write, f"{type(error).__name__}: {error}".encode()[:4000])
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        said = pipe.read().decode()
    os.waitpid(child, 0)
    return said


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_refuses(made):
    runtime, _ = made
    held = runtime.open()
    assert "ModelError: this model was loaded in process" in in_child(runtime.open)
    assert "cannot be used in process" in in_child(
        lambda: score_items(runtime, [Item(tuple(text_of(runtime, 0).tolist()), 3)])
    )
    with runtime.turn:  # held by a thread that the child does not have
        assert "cannot be used in process" in in_child(lambda: runtime.forward([Work(held, text_of(runtime, 0))]))
    runtime.close(held)


@pytest.mark.parametrize("name", runtime_cases(NAMES))
def test_shutdown_waits_for_a_call_and_may_be_repeated(name):
    runtime = FACTORIES[name][0]()
    inside, go_on, order = threading.Event(), threading.Event(), []

    def hold():
        with runtime._method:
            inside.set()
            go_on.wait()
            order.append("call")

    def stop():
        runtime.shutdown()
        order.append("shutdown")

    threads = [threading.Thread(target=hold), threading.Thread(target=stop)]
    threads[0].start()
    inside.wait()
    threads[1].start()
    threads[1].join(0.02)
    go_on.set()
    for thread in threads:
        thread.join()
    assert order == ["call", "shutdown"]
    runtime.shutdown()


AT_EXIT = """
import sys, threading
sys.path[:0] = {paths!r}
from factories import FACTORIES
from likely.runtimes.protocol import Work
import numpy as np
runtime = FACTORIES[{name!r}][0]()
begun = threading.Event()
def work():
    while True:
        sequence = runtime.open()
        runtime.forward([Work(sequence, np.arange(3, 8))])
        runtime.close(sequence)
        begun.set()
threading.Thread(target=work, daemon=True).start()
begun.wait()
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["toy", "torch", "llamacpp", "native"])
def test_a_daemon_thread_does_not_crash_the_exit(name):
    paths = [path for path in sys.path if path]
    ended = subprocess.run([sys.executable, "-c", AT_EXIT.format(paths=paths, name=name)], capture_output=True)
    assert ended.returncode == 0, ended.stderr.decode()


# --- models and the lock ----------------------------------------------------------------------------------------------


def toy_model():
    tokenizer = CharTokenizer("abcd ")
    runtime = ToyRuntime.random(tokenizer.vocab_size, seed=4, order=3)
    info = ModelInfo("toy", "toy", "toy", "float32", "0", tokenizer.fingerprint, template=False)
    return Model(runtime, tokenizer, info)


def test_every_verb_of_a_model_is_for_threads(often):
    lm = toy_model()

    def everything(i):
        prompt = "abcd"[i % 4] * 3
        generated = lm.generate([prompt, "ab"], max_tokens=6, seed=i, n=2)
        stream = lm.stream(prompt, max_tokens=6, seed=i)
        pieces = "".join(stream)
        return (
            [scored.sequence_logprob for scored in lm.score(prompt, ["a", "bc"])],
            [[sample.text for sample in group] for group in generated],
            (pieces, stream.result.text),
            lm.generate(prompt, regex="[ab]{2,4}", max_tokens=6, seed=i).text,
        )

    alone = [everything(i) for i in range(THREADS)]
    assert together(everything) == alone


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_copy_of_a_model_is_refused(duplicate):
    with pytest.raises(LikelyError, match="a Model cannot be copied or pickled"):
        duplicate(toy_model())


def test_a_model_may_be_closed_twice():
    lm = toy_model()
    lm.close()
    lm.close()


def test_whoever_waits_comes_before_the_owner_again():
    turn, order = Turn(), []
    waiting = threading.Event()

    def other():
        waiting.set()
        with turn:
            order.append("other")

    thread = threading.Thread(target=other)
    with turn, turn:  # its owner may take it again
        thread.start()
        waiting.wait()
        while not turn._first_in_line.locked():
            pass
    with turn:
        order.append("owner")
    thread.join()
    assert order == ["other", "owner"]
