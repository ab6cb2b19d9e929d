"""The native runtime against the plain forward of the same module, for every kind of model it knows."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from native_models import CONFIGS, LENGTH, SIZES, forward, llama, nats_apart, path_to, plain, rows_of, tokens_of
from tiny_torch import folder_of, module_of

from likely.errors import CapabilityError, KvFull, ModelError
from likely.runtimes.native.architecture import Architecture
from likely.runtimes.native.library import DTYPES
from likely.runtimes.native.runtime import NativeRuntime
from likely.runtimes.protocol import LayerPlan, Want
from likely.runtimes.rows import log_softmax


@pytest.mark.parametrize("name", CONFIGS)
def test_fp32_equals_the_plain_forward(made, natives, name):
    tokens, module = tokens_of(LENGTH), made(name)[0]
    expected = plain(module, tokens)
    assert log_softmax(expected).std() > 0.3  # the rows do say something
    assert nats_apart(rows_of(natives(name, "float32"), tokens), expected).max() < 1e-4


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3, short window"])
def test_decoding_one_by_one_equals_the_plain_forward(made, natives, name):
    tokens, runtime = tokens_of(90), natives(name, "float32")
    sequence = runtime.open()
    forward(runtime, sequence, tokens[:20], want=Want.NONE)
    rows = np.stack([forward(runtime, sequence, [t]).logits[0] for t in tokens[20:]])
    runtime.close(sequence)
    assert nats_apart(rows, plain(made(name)[0], tokens)[20:]).max() < 1e-4


def test_positions_far_out_are_rotated_as_in_transformers(made, natives):
    """An angle of 500 in fp32 has an error of 3e-5: both sides must make the same one."""
    tokens = tokens_of(512)
    for name in ("llama", "llama, llama3 scaling", "gemma3, short window"):
        assert nats_apart(rows_of(natives(name, "float32"), tokens), plain(made(name)[0], tokens)).max() < 1e-4


@pytest.mark.parametrize("name", ["llama, heads of 64", "qwen2", "qwen3", "gemma3, a window over blocks"])
def test_bf16_is_as_close_as_transformers_bf16(made, natives, name):
    """Both round weights and activations to 8 bits of mantissa, in other places: neither is the other's reference.

    The runtime keeps the residual stream and all sums in fp32, so it may not be further from fp32 than the module is.
    """
    tokens, (module, folder) = tokens_of(LENGTH), made(name)
    exact = plain(module, tokens)
    rounded = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    theirs = nats_apart(plain(rounded, tokens), exact).mean()
    ours = nats_apart(rows_of(natives(name, "bfloat16"), tokens), exact).mean()
    assert 0 < ours < theirs


@pytest.mark.parametrize("name", CONFIGS)
def test_int8_follows_the_model(made, natives, name):
    """Codes of 8 bits over 64 rotated numbers leave about 1 % of noise in a product, and the sharp attention of random
    weights makes more of it: here 3 to 13 % of the rows' spread."""
    tokens, module = tokens_of(LENGTH), made(name)[0]
    found, expected = rows_of(natives(name, "int8"), tokens), plain(module, tokens)
    found, expected = (x - x.mean(1, keepdims=True) for x in (found, expected))
    noise = np.sqrt(((found - expected) ** 2).mean() / (expected**2).mean())
    assert 1e-4 < noise < 0.2


@pytest.mark.parametrize("name", ["llama", "gemma3, short window"])
def test_trees_equal_the_plain_forward_of_their_paths(made, natives, name):
    """At the border of two blocks of 64 columns; the nodes then become text."""
    runtime, module = natives(name, "float32"), made(name)[0]
    text, nodes = tokens_of(62), tokens_of(9, seed=3)
    parents = [-1, 0, 0, 1, 3, 2, -1, 6, 4]
    sequence = runtime.open()
    forward(runtime, sequence, text, want=Want.NONE)
    rows = forward(runtime, sequence, nodes, parents).logits
    for leaf in (8, 5, 7):
        path = path_to(parents, leaf)
        expected = plain(module, [*text, *nodes[path]])[len(text) :]
        assert nats_apart(rows[path], expected).max() < 1e-4
    runtime.commit([(sequence, path_to(parents, 8))])
    text = [*text, *nodes[path_to(parents, 8)]]
    assert nats_apart(forward(runtime, sequence, [1, 2]).logits, plain(module, [*text, 1, 2])[-2:]).max() < 1e-4
    runtime.close(sequence)


def test_a_canvas_equals_a_forward_without_a_causal_mask(made, natives):
    runtime, module = natives("llama", "float32"), made("llama")[0]
    kept, canvas = tokens_of(60), tokens_of(11, seed=1)
    sequence = runtime.open()
    forward(runtime, sequence, kept, want=Want.NONE)
    found = forward(runtime, sequence, canvas, np.arange(11) - 1, attention="full").logits
    mask = torch.zeros(1, 1, 71, 71)
    mask[..., :60, :] = torch.where(torch.ones(60, 71).tril().bool(), 0.0, -torch.inf)
    expected = plain(module, [*kept, *canvas], attention_mask=mask)[60:]
    assert nats_apart(found, expected).max() < 1e-4
    runtime.commit([(sequence, [])])
    assert nats_apart(forward(runtime, sequence, canvas).logits, plain(module, [*kept, *canvas])[60:]).max() < 1e-4
    runtime.close(sequence)


@pytest.mark.parametrize("name", ["llama", "qwen2", "gemma3, short window"])
def test_layers_left_out_add_nothing(made, natives, name):
    """A sublayer whose last matrix is zero adds nothing; the runtime must give the same without computing it."""
    tokens, runtime = tokens_of(70), natives(name, "float32")
    plans = (
        LayerPlan(skip_attention=frozenset({1})),
        LayerPlan(skip_mlp=frozenset({0, 2})),
        LayerPlan(frozenset({0}), frozenset({1})),
        LayerPlan.exit_after(1, 3),
    )
    for plan in plans:
        module = module_of(CONFIGS[name](), std=0.15, vectors=0.2)
        module.load_state_dict(made(name)[0].state_dict())
        with torch.no_grad():
            for i in plan.skip_attention:
                module.model.layers[i].self_attn.o_proj.weight.zero_()
            for i in plan.skip_mlp:
                module.model.layers[i].mlp.down_proj.weight.zero_()
        sequence = runtime.open()
        found = forward(runtime, sequence, tokens, np.arange(70) - 1, layers=plan).logits
        runtime.close(sequence)
        assert nats_apart(found, plain(module, tokens)).max() < 1e-4
        assert nats_apart(found, plain(made(name)[0], tokens)).max() > 1e-2


@pytest.mark.parametrize("name", ["llama", "gemma3, short window"])
def test_hidden_states_are_those_after_the_final_norm(made, natives, name):
    tokens, (module, _), runtime = tokens_of(80), made(name), natives(name, "float32")
    with torch.no_grad():
        expected = module.base_model(input_ids=torch.tensor([tokens.tolist()]))[0][0].numpy()
    sequence = runtime.open()
    asked = (79, 3, 64, 3)
    found = forward(runtime, sequence, tokens, want=Want(rows=asked, hidden=True, entropy=True))
    np.testing.assert_allclose(found.hidden, expected[list(asked)], rtol=0, atol=1e-4 * expected.std())
    assert found.logits is None and found.entropy.shape == (4,)
    only = forward(runtime, sequence, [7], want=Want(rows="last", hidden=True))
    assert only.hidden.shape == (1, SIZES["hidden_size"]) and only.entropy is None
    runtime.close(sequence)


# --- what would be wrong is seen ------------------------------------------------------------------------------------

WRONG = {
    "a norm's offset": ("gemma3, short window", {"norm_offset": 0.0}),
    "the rotation": ("llama, llama3 scaling", {"frequencies": None}),
    "a window one too long": ("gemma3, short window", {"windows": (9, 0, 9)}),
    "no window": ("qwen2, windows", {"windows": (0, 0, 0)}),
    "the scale of attention": ("gemma3, short window", {"attention_scale": 24**-0.5}),
    "the activation": ("gemma3, short window", {"activation": "silu"}),
    "the embedding's scale": ("gemma3, short window", {"embedding_scale": 1.0}),
    "no soft cap": ("gemma3, soft cap, own head", {"logit_softcap": 0.0}),
    "no soft cap of scores": ("gemma2", {"attention_softcap": 0.0}),
    "epsilon": ("qwen3", {"epsilon": 1e-2}),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_reading_of_the_settings_would_be_seen(made, monkeypatch, tmp_path, what):
    """Negative controls of the comparisons above: the bound of 1e-4 nats is left far behind."""
    name, changes = WRONG[what]
    module, folder = made(name)
    right = Architecture.of_config(json.loads((folder / "config.json").read_text()))
    if "frequencies" in changes:
        exponent = np.arange(0, right.head_dim, 2) / right.head_dim
        changes = {"frequencies": ((1e4**-exponent).astype(np.float32),) * 2}
    monkeypatch.setenv("LIKELY_CACHE", str(tmp_path))
    monkeypatch.setattr(Architecture, "of_config", classmethod(lambda cls, config: replace(right, **changes)))
    runtime = NativeRuntime(folder, dtype="float32", threads=1, tokens_held=512)
    assert nats_apart(rows_of(runtime, tokens_of(60)), plain(module, tokens_of(60))).max() > 1e-3
    runtime.shutdown()


# --- refusals, limits, names ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("epsilon", [-1e-5, float("nan"), "x"])
def test_an_epsilon_of_norms_that_is_not_positive_is_refused(made, epsilon):
    config = json.loads((made("llama")[1] / "config.json").read_text())
    with pytest.raises(ModelError, match="rms_norm_eps must be a"):
        Architecture.of_config(config | {"rms_norm_eps": epsilon})


def test_a_failing_call_leaves_all_state_unchanged(natives, monkeypatch):
    runtime, tokens = natives("llama", "int8", tokens_held=150), tokens_of(30)
    sequence = runtime.open()
    forward(runtime, sequence, tokens[:10], want=Want.NONE)
    free, calls = runtime.free_tokens(), []
    whole = runtime._call

    def second_fails(*arguments):
        calls.append(1)
        if len(calls) == 2:
            raise MemoryError
        return whole(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(runtime, "_call", second_fails)
        with pytest.raises(MemoryError):
            forward(runtime, sequence, tokens_of(100), want=Want.NONE)
    assert (sequence.length, runtime.free_tokens()) == (10, free)
    with pytest.raises(KvFull):
        forward(runtime, sequence, tokens_of(free + 1))
    assert (sequence.length, runtime.free_tokens()) == (10, free)
    np.testing.assert_array_equal(forward(runtime, sequence, tokens[10:]).logits, rows_of(runtime, tokens)[10:])
    runtime.close(sequence)


def test_the_revision_names_weights_kind_and_instructions(made, natives):
    revisions = {natives(name, kind).revision for name in ("llama", "qwen2") for kind in DTYPES}
    assert len(revisions) == 6
    again = NativeRuntime(made("llama")[1], dtype="int8", threads=2)
    assert again.revision == natives("llama", "int8").revision
    again.shutdown()


def test_a_closed_runtime_gives_its_memory_back_once(made):
    runtime = NativeRuntime(made("llama")[1], dtype="int8", threads=2)
    runtime.shutdown()
    runtime.shutdown()


def test_room_is_bounded_by_what_was_asked(made):
    runtime = NativeRuntime(made("llama")[1], dtype="int8", threads=1, tokens_held=99)
    assert runtime.limits.tokens_held == runtime.free_tokens() == 99
    runtime.shutdown()


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"dtype": "int9"}, ModelError, 'did you mean "int8"'),
        ({"threads": 0}, ValueError, "threads"),
        ({"threads": 100_000}, ValueError, "threads"),
    ],
)
def test_wrong_options_are_refused_by_name(made, options, error, words):
    with pytest.raises(error, match=words):
        NativeRuntime(made("llama")[1], **options)


def test_logits_that_are_no_numbers_are_an_error(made, natives, tmp_path, monkeypatch):
    """Weights so large that sums leave fp32."""
    module = module_of(llama(), std=0.15)
    with torch.no_grad():
        module.model.norm.weight.fill_(3e38)
        module.lm_head.weight.mul_(1e4)
        module.model.layers[0].mlp.down_proj.weight.fill_(3e38)
    folder = folder_of(module)
    for kind in DTYPES:
        runtime = NativeRuntime(folder, dtype=kind, threads=1, tokens_held=100)
        sequence, free = runtime.open(), runtime.free_tokens()
        with pytest.raises(FloatingPointError):
            forward(runtime, sequence, tokens_of(5))
        assert sequence.length == 0 and runtime.free_tokens() == free
        runtime.shutdown()
    shutil.rmtree(folder)


def test_an_unknown_architecture_names_torch(native_cache):
    config = transformers.Olmo2Config(**SIZES)
    with pytest.raises(CapabilityError, match="not olmo2: use runtime='torch'"):
        NativeRuntime(folder_of(module_of(config)), dtype="int8")


def test_perplexity_of_int8_is_that_of_the_model(made, natives):
    """The mean log-probability of a text that the model itself has drawn moves by less than 0.05 nats."""
    module, runtime = made("llama")[0], natives("llama", "int8")
    generator, text = torch.Generator().manual_seed(0), [1]
    for _ in range(150):
        law = torch.softmax(torch.tensor(plain(module, text)[-1]), 0)
        text.append(int(torch.multinomial(law, 1, generator=generator)))
    at = np.arange(150)
    theirs = log_softmax(plain(module, text))[at, text[1:]].mean()
    ours = log_softmax(rows_of(runtime, text))[at, text[1:]].mean()
    assert math.isclose(ours, theirs, abs_tol=0.05)


ENVIRONMENT = dict(os.environ)  # of whoever runs the tests, whose cache has the library
LAZY = """
import json, resource, sys
import numpy as np
from likely.errors import ModelError
from likely.runtimes.native.build import library
from likely.runtimes.native.runtime import NativeRuntime
from likely.runtimes.protocol import Want, Work

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()

library()
small = NativeRuntime(sys.argv[1], dtype="float32", threads=1, tokens_held=64)
text = np.arange(40) % 50
rows = small.forward([Work(small.open(), text, want=Want.ALL)])[0].logits
before = resident()
runtime = NativeRuntime(sys.argv[1], dtype="float32", threads=1, tokens_held=2**22, sequences=8)
same = bool((runtime.forward([Work(runtime.open(), text, want=Want.ALL)])[0].logits == rows).all())
taken = resident() - before
address_space = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
_, most = resource.getrlimit(resource.RLIMIT_AS)
resource.setrlimit(resource.RLIMIT_AS, (address_space + 2**27, most))
try:
    NativeRuntime(sys.argv[1], dtype="float32", threads=1, tokens_held=2**22)
    refused = ""
except ModelError as error:
    refused = str(error)
print(json.dumps([same, runtime.kv_bytes_per_token << 22, taken, refused]))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").is_file(), reason="needs /proc")
def test_room_for_millions_of_tokens_costs_nothing_until_it_is_used(made):
    arguments = [sys.executable, "-c", LAZY, str(made("llama")[1])]
    done = subprocess.run(arguments, capture_output=True, text=True, env=ENVIRONMENT)
    same, room, taken, refused = json.loads(done.stdout or done.stderr)
    assert same and room > 2**30 > 2**26 > taken
    assert "tokens: give fewer (context=)" in refused


MANY_THREADS = """
import os, resource, sys
from likely.errors import ModelError
from likely.runtimes import machine
from likely.runtimes.native.build import library
from likely.runtimes.native.runtime import NativeRuntime

library()
os.environ["LIKELY_CACHE"] = sys.argv[2]
NativeRuntime(sys.argv[1], threads=1, tokens_held=64)
machine.processors = lambda: 500
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
_, most = resource.getrlimit(resource.RLIMIT_AS)
resource.setrlimit(resource.RLIMIT_AS, (used + 200 * 2**20, most))  # each thread has a stack
try:
    NativeRuntime(sys.argv[1], threads=500, tokens_held=64)
except ModelError as error:
    print(error)
resource.setrlimit(resource.RLIMIT_AS, (most, most))
NativeRuntime(sys.argv[1], threads=3, tokens_held=64).shutdown()
"""


@pytest.mark.skipif(not Path("/proc/self/statm").is_file(), reason="needs /proc")
def test_threads_that_cannot_start_are_one_line(made, tmp_path):
    arguments = [sys.executable, "-c", MANY_THREADS, str(made("llama")[1]), str(tmp_path)]
    done = subprocess.run(arguments, capture_output=True, text=True, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "the native runtime cannot start 500 threads: give fewer (threads=)"


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="processors can be chosen on Linux alone")
def test_a_team_of_every_processor_has_one_for_each_thread(made):
    before = os.sched_getaffinity(0)  # of tests side by side each has one
    os.sched_setaffinity(0, range(os.cpu_count() or 1))
    try:
        _check_places(made, os.sched_getaffinity(0))
    finally:
        os.sched_setaffinity(0, before)


def _check_places(made, own):
    if len(own) < 2:
        pytest.skip("one processor")

    def workers(threads, keep=True):
        """Where the threads of a new runtime that stay on one processor may run, once it has made a call."""
        before = set(os.listdir("/proc/self/task"))
        runtime = NativeRuntime(made("llama")[1], dtype="float32", threads=threads, tokens_held=64)
        if keep:
            runtime.keep_processors()
        rows_of(runtime, tokens_of(8))
        found = [os.sched_getaffinity(int(task)) for task in set(os.listdir("/proc/self/task")) - before]
        runtime.shutdown()
        return [places for places in found if len(places) == 1]

    places = workers(len(own))
    assert len(set().union(*places)) == len(places) == len(own) - 1
    assert os.sched_getaffinity(0) == own  # the caller is where it was
    assert workers(1) == workers(len(own), keep=False) == []
