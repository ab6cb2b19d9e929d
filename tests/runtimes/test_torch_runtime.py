"""The torch runtime against the plain forward of the same module, for every kind of attention."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
import transformers
from tiny_torch import CONFIGS, RECOMPUTED, VOCAB, WINDOW, tiny_module

from likely.errors import KvFull, ModelError
from likely.runtimes.protocol import Want, Work
from likely.runtimes.rows import log_softmax
from likely.runtimes.slots import sharing
from likely.runtimes.torch.runtime import TorchRuntime

CACHED = [name for name in CONFIGS if name not in RECOMPUTED]


def tokens_of(n, seed=0):
    return np.random.default_rng(seed).integers(0, VOCAB, n)


@pytest.fixture(scope="module")
def runtimes():
    made = {}

    def get(name):
        if name not in made:
            made[name] = TorchRuntime(tiny_module(name), tokens_held=2048, tokens_per_call=64)
        return made[name]

    return get


@pytest.fixture(params=CACHED)
def runtime(request, runtimes):
    return runtimes(request.param)


def forward(runtime, sequence, tokens, parents=None, want=Want.ALL, attention="causal"):
    parents = None if parents is None else np.asarray(parents)
    return runtime.forward([Work(sequence, np.asarray(tokens), parents, attention=attention, want=want)])[0]


def plain(runtime, tokens):
    """The module called by hand: the reference knows nothing of this package."""
    with torch.no_grad():
        logits = runtime.module(input_ids=torch.tensor([list(map(int, tokens))]), use_cache=False).logits
    return logits[0].float().numpy()


def close(found, expected, atol=2e-5):
    np.testing.assert_allclose(found, expected, atol=atol * max(1.0, float(expected.std())), rtol=0)


@pytest.mark.parametrize("name", CONFIGS)
def test_each_architecture_says_whether_it_is_cached(runtimes, name):
    runtime = runtimes(name)
    assert runtime.cached == (name not in RECOMPUTED)
    assert (runtime.not_cached_because is None) == runtime.cached
    assert runtime.capabilities.trees and runtime.capabilities.fork and runtime.capabilities.truncate
    assert runtime.vocab_size == VOCAB


def test_a_long_text_equals_the_plain_forward(runtime):
    """150 tokens: far beyond a window of 8, cut into calls of at most 64."""
    tokens = tokens_of(150)
    sequence = runtime.open()
    close(forward(runtime, sequence, tokens).logits, plain(runtime, tokens))
    runtime.close(sequence)


def test_decoding_far_beyond_the_window_equals_the_plain_forward(runtime):
    tokens = tokens_of(6 * WINDOW)
    sequence = runtime.open()
    forward(runtime, sequence, tokens[: 3 * WINDOW], want=Want.NONE)
    rows = [forward(runtime, sequence, [t]).logits[0] for t in tokens[3 * WINDOW :]]
    close(np.stack(rows), plain(runtime, tokens)[3 * WINDOW :])
    runtime.close(sequence)


def test_commits_of_any_branch_far_beyond_the_window(runtime):
    """Rounds of a tree with siblings; each time another path is kept and the next round stands on it."""
    rng = np.random.default_rng(5)
    text = list(tokens_of(2 * WINDOW))
    parents, paths = [-1, 0, 0, -1, 3, 1, 4], [[3, 4, 6], [0, 2], [0, 1, 5], [], [3]]
    sequence = runtime.open()
    forward(runtime, sequence, text, want=Want.NONE)
    for round_ in range(6):
        nodes = rng.integers(0, VOCAB, len(parents))
        rows = forward(runtime, sequence, nodes, parents).logits
        path = paths[round_ % len(paths)]
        for branch in ([0, 1, 5], [0, 2], [3, 4, 6]):
            close(rows[branch], plain(runtime, [*text, *nodes[branch]])[len(text) :])
        runtime.commit([(sequence, path)])
        text += nodes[path].tolist()
        assert sequence.length == len(text)
    close(forward(runtime, sequence, [1, 2]).logits, plain(runtime, [*text, 1, 2])[-2:])
    runtime.close(sequence)


@pytest.mark.parametrize("name", ["llama", "gemma3", "gemma2", "gpt2"])
def test_pending_nodes_grow_over_several_calls(runtimes, name):
    runtime, text, nodes = runtimes(name), tokens_of(3 * WINDOW), tokens_of(12, seed=3)
    parents = [-1, 0, 0, -1, 1, 4, 3, 2, 5, 8, 6, 9]
    sequence, free = runtime.open(), runtime.free_tokens()
    forward(runtime, sequence, text, want=Want.NONE)
    rows = [
        forward(runtime, sequence, nodes[a:b], parents[a:b]).logits
        for a, b in ((0, 2), (2, 5), (5, 6), (6, 10), (10, 12))
    ]
    rows = np.concatenate(rows)
    for leaf in (11, 10, 7):
        path = _path(parents, leaf)
        close(rows[path], plain(runtime, [*text, *nodes[path]])[len(text) :])
    runtime.truncate(sequence, len(text) - 2)
    assert (sequence.pending, free - runtime.free_tokens()) == (0, len(text) - 2)
    runtime.close(sequence)


@pytest.mark.slow
@pytest.mark.parametrize("tokens_per_call", [3, 64])
def test_random_histories_equal_the_plain_forward(runtimes, tokens_per_call, monkeypatch):
    """Chains, trees, forks, cuts and closings of several sequences, interleaved; every row is checked."""
    for name in ("LEAST_TOKENS", "RUN_COST", "SHARING_COST"):  # 64 tokens per call: all that can be shared is
        monkeypatch.setattr(sharing, name, 0 if tokens_per_call == 64 else 10**6)
    for name in ("gemma3", "gemma2", "llama", "gpt2"):
        runtime = TorchRuntime(runtimes(name).module, tokens_held=600, tokens_per_call=tokens_per_call, revision="x")
        rng = np.random.default_rng(11)
        texts = {runtime.open(): [] for _ in range(3)}
        checks = []
        for _ in range(25):
            work, expect = [], []
            for sequence, text in list(texts.items()):
                verb = rng.choice(["chain", "tree", "fork", "cut", "rest"], p=[0.35, 0.35, 0.1, 0.1, 0.1])
                new = rng.integers(0, VOCAB, rng.integers(1, 8))
                if verb == "chain":
                    work.append(Work(sequence, new, want=Want.ALL))
                    expect.append([(sequence, [*text, *new], len(new), np.arange(len(new)))])
                    text += new.tolist()
                elif verb == "tree":
                    parents = np.array([rng.integers(-1, i) for i in range(len(new))])
                    work.append(Work(sequence, new, parents, want=Want.ALL))
                    paths = [_path(parents, node) for node in range(len(new))]
                    expect.append([(sequence, [*text, *new[p]], len(p), np.array(p)) for p in paths])
                elif verb == "fork" and len(texts) < 6 and text:
                    cut = int(rng.integers(0, len(text) + 1))
                    texts[runtime.fork(sequence, cut)] = text[:cut]
                elif verb == "cut" and text:
                    cut = int(rng.integers(0, len(text) + 1))
                    runtime.truncate(sequence, cut)
                    del text[cut:]
            for output, wanted in zip(runtime.forward(work), expect, strict=True):
                checks += [(text, n, output.logits[rows]) for _, text, n, rows in wanted]
                sequence, _, _, rows = wanted[-1]
                if sequence.pending:
                    path = rows.tolist() if rng.random() < 0.7 else []
                    new = next(w.tokens for w in work if w.sequence is sequence)
                    runtime.commit([(sequence, path)])
                    texts[sequence] += new[path].tolist()
            if len(texts) > 4:
                gone = list(texts)[int(rng.integers(len(texts)))]
                runtime.close(gone)
                del texts[gone]
        for text, n, rows in checks[:: max(1, len(checks) // 60)]:
            close(rows, plain(runtime, text)[-n:])
        for sequence in texts:
            runtime.close(sequence)
        assert runtime.free_tokens() == 600


def _path(parents, node):
    path = []
    while node != -1:
        path.append(int(node))
        node = parents[node]
    return path[::-1]


def test_companions_do_not_change_numbers(runtime):
    tokens = tokens_of(30)
    alone = runtime.open()
    expected = forward(runtime, alone, tokens).logits
    others = [runtime.open() for _ in range(4)]
    sequence = runtime.open()
    work = [Work(s, tokens_of(n, seed=n), want=Want.LAST) for s, n in zip(others, (1, 7, 50, 29), strict=True)]
    found = runtime.forward([*work[:2], Work(sequence, tokens, want=Want.ALL), *work[2:]])[2].logits
    close(found, expected, atol=1e-5)
    step = forward(runtime, alone, [5]).logits
    mixed = runtime.forward([*(Work(s, np.array([3]), want=Want.ALL) for s in others), Work(sequence, np.array([5]))])
    close(mixed[-1].logits, step, atol=1e-5)
    for s in (alone, sequence, *others):
        runtime.close(s)


def test_a_canvas_equals_a_forward_without_a_causal_mask(runtimes):
    runtime = runtimes("llama")
    kept, canvas = tokens_of(9), tokens_of(5, seed=1)
    sequence = runtime.open()
    forward(runtime, sequence, kept, want=Want.NONE)
    found = forward(runtime, sequence, canvas, np.arange(5) - 1, attention="full").logits
    mask = torch.zeros(1, 1, 14, 14)
    mask[..., :9, :] = torch.where(torch.ones(9, 14).tril().bool(), 0.0, -torch.inf)
    with torch.no_grad():
        expected = runtime.module(
            input_ids=torch.tensor([[*kept, *canvas]]), attention_mask=mask, use_cache=False
        ).logits[0, 9:]
    close(found, expected.numpy())
    runtime.commit([(sequence, [])])
    close(forward(runtime, sequence, canvas).logits, plain(runtime, [*kept, *canvas])[9:])
    runtime.close(sequence)


def test_a_canvas_larger_than_a_call_is_not_cut(runtimes):
    whole, cut = runtimes("llama"), TorchRuntime(runtimes("llama").module, tokens_held=200, tokens_per_call=4)
    canvas, rows = tokens_of(20), []
    for runtime in (whole, cut):
        sequence, other = runtime.open(), runtime.open()
        work = Work(sequence, canvas, np.arange(20) - 1, attention="full", want=Want.ALL)
        rows.append(runtime.forward([Work(other, tokens_of(3)), work])[1].logits)
        runtime.close(sequence)
        runtime.close(other)
    close(rows[1], rows[0])


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2", "mamba"])
def test_hidden_states_are_those_after_the_final_norm(runtimes, name):
    runtime, tokens = runtimes(name), tokens_of(12)
    with torch.no_grad():
        expected = runtime.module.base_model(input_ids=torch.tensor([tokens.tolist()]))[0][0].numpy()
    sequence = runtime.open()
    output = forward(runtime, sequence, tokens, want=Want(rows=(11, 3, 4), hidden=True, entropy=True))
    close(output.hidden, expected[[11, 3, 4]])
    assert output.logits is None and output.entropy.shape == (3,)
    only = forward(runtime, sequence, [7], want=Want(rows="last", hidden=True))
    assert only.hidden.shape == (1, expected.shape[1])
    runtime.close(sequence)


def test_the_head_sees_only_wanted_rows(runtimes):
    runtime, seen = runtimes("llama"), []
    hook = runtime.module.lm_head.register_forward_hook(lambda _m, inputs, _o: seen.append(inputs[0].shape[1]))
    sequence = runtime.open()
    forward(runtime, sequence, tokens_of(20), want=Want(rows="none", pairs=np.array([[3, 1], [3, 2], [9, 0]])))
    forward(runtime, sequence, tokens_of(20), want=Want.NONE)
    hook.remove()
    runtime.close(sequence)
    assert seen == [2, 0]


def test_rows_are_cut_by_memory(runtimes, monkeypatch):
    """A call never holds more rows of logits than allowed, whatever it was asked."""
    runtime, seen = runtimes("gemma3"), []
    monkeypatch.setattr("likely.runtimes.torch.runtime.ROWS_BYTES", 5 * 4 * VOCAB)
    hook = runtime.module.lm_head.register_forward_hook(lambda _m, inputs, _o: seen.append(inputs[0].shape[1]))
    a, b = runtime.open(), runtime.open()
    texts = tokens_of(23), tokens_of(9, seed=1)
    found = runtime.forward([Work(a, texts[0], want=Want.ALL), Work(b, texts[1], np.arange(9) - 1, want=Want.ALL)])
    hook.remove()
    assert max(seen) <= 5 and sum(seen) == 32
    for text, output in zip(texts, found, strict=True):
        close(output.logits, plain(runtime, text))
    runtime.close(a)
    runtime.close(b)


def test_the_end_token_is_a_token_like_others(runtimes):
    """Padding is a matter of positions: no token id is special, not even pad = end = 2."""
    runtime = runtimes("llama")
    tokens = np.array([2, 2, 5, 2, 0, 2, 2, 9])
    sequence = runtime.open()
    close(forward(runtime, sequence, tokens).logits, plain(runtime, tokens))
    runtime.close(sequence)


@pytest.mark.parametrize("name", ["llama", "gemma3", "gemma2", "gpt_oss"])
def test_bfloat16_is_close_to_its_own_plain_forward(name):
    runtime = TorchRuntime(tiny_module(name, dtype=torch.bfloat16), tokens_held=256)
    assert runtime.cached and runtime.dtype == torch.bfloat16
    tokens = tokens_of(40)
    sequence = runtime.open()
    forward(runtime, sequence, tokens[:20], want=Want.NONE)
    rows = np.stack([forward(runtime, sequence, [t]).logits[0] for t in tokens[20:]])
    expected = plain(runtime, tokens)[20:]
    assert rows.dtype == np.float32
    assert np.abs(rows - expected).mean() < 0.03 * expected.std()


def test_forks_share_slots_and_outlive_each_other(runtimes):
    runtime, tokens = runtimes("llama"), tokens_of(40)
    free = runtime.free_tokens()
    base = runtime.open()
    forward(runtime, base, tokens, want=Want.NONE)
    forks = [runtime.fork(base, n) for n in (40, 17, 0)]
    assert free - runtime.free_tokens() == 40
    runtime.close(base)
    close(forward(runtime, forks[1], [1, 2]).logits, plain(runtime, [*tokens[:17], 1, 2])[-2:])
    close(forward(runtime, forks[0], [3]).logits, plain(runtime, [*tokens, 3])[-1:])
    for fork in forks:
        runtime.close(fork)
    assert runtime.free_tokens() == free


def test_a_failing_call_leaves_all_state_unchanged(runtimes, monkeypatch):
    runtime, tokens = runtimes("llama"), tokens_of(10)
    sequence = runtime.open()
    forward(runtime, sequence, tokens, want=Want.NONE)
    free, calls = runtime.free_tokens(), []
    whole = runtime._call.__class__.__call__

    def second_fails(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            raise MemoryError
        return whole(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(runtime._call.__class__, "__call__", second_fails)
        with pytest.raises(MemoryError):
            forward(runtime, sequence, tokens_of(100), want=Want.NONE)
    assert (sequence.length, runtime.free_tokens()) == (10, free)
    with pytest.raises(KvFull):
        runtime.forward([Work(runtime.open(), tokens_of(200), want=Want.NONE) for _ in range(12)])
    assert runtime.free_tokens() == free
    close(forward(runtime, sequence, [4]).logits, plain(runtime, [*tokens, 4])[-1:])
    runtime.close(sequence)


def test_refresh_renames_the_weights_and_invalidates_sequences():
    runtime = TorchRuntime(tiny_module("llama"), tokens_held=128)
    assert runtime.capabilities.gradients
    before, old = runtime.revision, runtime.open()
    forward(runtime, old, tokens_of(10), want=Want.NONE)
    with torch.no_grad():
        next(runtime.module.parameters())[3, 1] += 1e-3
    runtime.refresh()
    assert runtime.revision != before and runtime.free_tokens() == 128
    for call in (
        lambda: forward(runtime, old, [1]),
        lambda: runtime.fork(old),
        lambda: runtime.truncate(old, 0),
        lambda: runtime.commit([(old, [])]),
    ):
        with pytest.raises(ModelError, match="refresh"):
            call()
    runtime.close(old)
    sequence = runtime.open()
    close(forward(runtime, sequence, tokens_of(5)).logits, plain(runtime, tokens_of(5)))


def test_the_revision_names_the_weights():
    module = tiny_module("llama")
    same, other = TorchRuntime(copy.deepcopy(module)), TorchRuntime(tiny_module("llama", seed=1))
    assert TorchRuntime(module).revision == same.revision != other.revision
    assert TorchRuntime(tiny_module("llama", dtype=torch.bfloat16)).revision != same.revision


def test_the_module_trains_and_attends_as_before(runtimes):
    """Outside a call the module keeps its own attention, its mode and its gradients."""
    runtime = TorchRuntime(tiny_module("gemma3"), tokens_held=128)
    before = runtime.config._attn_implementation
    runtime.module.train()
    runtime.module.config.attention_dropout = 0.5
    sequence = runtime.open()
    rows = forward(runtime, sequence, tokens_of(20)).logits
    assert runtime.module.training and runtime.config._attn_implementation == before
    runtime.module.eval()
    close(rows, plain(runtime, tokens_of(20)))
    ids = torch.tensor([tokens_of(20).tolist()])
    runtime.module(input_ids=ids, labels=ids).loss.backward()
    assert all(p.grad is not None for p in runtime.module.parameters())


def test_sequences_of_another_runtime_are_refused(runtimes):
    with pytest.raises(ModelError, match="another runtime"):
        forward(runtimes("llama"), runtimes("gpt2").open(), [1])


@pytest.mark.parametrize("name", RECOMPUTED)
def test_recomputing_models_hold_trees_and_forks(runtimes, name):
    runtime, text = runtimes(name), tokens_of(12)
    sequence = runtime.open()
    forward(runtime, sequence, text, want=Want.NONE)
    nodes = tokens_of(5, seed=2)
    rows = forward(runtime, sequence, nodes, [-1, 0, 0, -1, 2]).logits
    for path in ([0, 1], [0, 2, 4], [3]):
        close(rows[path], plain(runtime, [*text, *nodes[path]])[12:])
    runtime.commit([(sequence, [0, 2])])
    fork = runtime.fork(sequence, 13)
    close(forward(runtime, fork, [1]).logits, plain(runtime, [*text, nodes[0], 1])[-1:])
    close(forward(runtime, sequence, [1]).logits, plain(runtime, [*text, *nodes[[0, 2]], 1])[-1:])
    runtime.close(sequence)
    runtime.close(fork)


def test_a_window_that_a_layer_does_not_announce_is_not_trusted():
    """Texts of the check are shorter than usual windows: the configuration is compared, too."""
    module = tiny_module("gemma3")
    module.config.sliding_window = 100
    for layer in module.model.layers:
        layer.self_attn.sliding_window = 100 if layer.self_attn.is_sliding else None
    assert TorchRuntime(module).cached
    module.model.layers[0].self_attn.sliding_window = None
    runtime = TorchRuntime(module)
    assert not runtime.cached and "window" in runtime.not_cached_because


def test_a_model_that_looks_ahead_is_refused():
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        initializer_range=0.5,  # with the usual small weights a later token may show by rounding errors only
    )  # fmt: skip
    with pytest.raises(ModelError, match="no causal"):
        TorchRuntime(transformers.BertLMHeadModel(config).eval())


def test_the_context_ends_where_rotary_frequencies_would_change():
    """Frequencies that follow the length of the input would make cached keys, and companions, matter."""
    config = transformers.Phi3Config(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=256,
        original_max_position_embeddings=32,
        pad_token_id=0,
        rope_parameters={
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "short_factor": [1.0] * 4,
            "long_factor": [4.0] * 4,
            "original_max_position_embeddings": 32,
        },
    )
    runtime = TorchRuntime(transformers.AutoModelForCausalLM.from_config(config).eval())
    assert runtime.cached and runtime.context_length == 32
    with pytest.raises(ModelError, match="context of 32"):
        forward(runtime, runtime.open(), tokens_of(33))


def test_folders_round_trip_and_damaged_ones_are_refused(tmp_path, runtimes, monkeypatch):
    module = runtimes("gemma3").module
    module.save_pretrained(tmp_path)
    runtime = TorchRuntime.from_pretrained(tmp_path, tokens_held=64)
    sequence = runtime.open()
    close(forward(runtime, sequence, tokens_of(20)).logits, plain(runtimes("gemma3"), tokens_of(20)))
    assert "float32" in runtime.revision

    from safetensors.torch import load_file, save_file

    weights = load_file(tmp_path / "model.safetensors")
    weights.pop("model.layers.1.mlp.up_proj.weight")
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="missing"):
        TorchRuntime.from_pretrained(tmp_path)
    config = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(json.dumps(json.loads(config) | {"num_hidden_layers": 1 << 30}))
    with pytest.raises(ModelError, match="names 1073741824 layers, and there are"):
        TorchRuntime.from_pretrained(tmp_path)
    for wrong in ({"num_attention_heads": 0}, {"num_key_value_heads": 0}, {"rms_norm_eps": "x"}):
        (tmp_path / "config.json").write_text(json.dumps(json.loads(config) | wrong))
        with pytest.raises(ModelError, match="cannot be loaded by transformers"):
            TorchRuntime.from_pretrained(tmp_path)
    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", lambda *_, **__: pytest.fail("was made"))
    for size in ("head_dim", "intermediate_size", "vocab_size"):
        (tmp_path / "config.json").write_text(json.dumps(json.loads(config) | {size: 10**6}))
        with pytest.raises(ModelError, match=r"has shape \(.*\), and \(.*000, .* by config.json"):
            TorchRuntime.from_pretrained(tmp_path)
    monkeypatch.undo()
    (tmp_path / "config.json").write_text(config)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="cannot be loaded"):
        TorchRuntime.from_pretrained(tmp_path)


@pytest.mark.slow
@pytest.mark.real
def test_smollm2_equals_its_plain_forward_on_many_texts(smollm2_path):
    runtime = TorchRuntime.from_gguf(smollm2_path, tokens_held=4096)
    rng = np.random.default_rng(0)
    texts = [rng.integers(0, runtime.vocab_size, n) for n in rng.integers(2, 60, 20)]
    pairs = [np.stack([np.arange(len(t) - 1), t[1:]], axis=1) for t in texts]
    sequences = [runtime.open() for _ in texts]
    outputs = runtime.forward(
        [Work(s, t, want=Want(rows="none", pairs=p)) for s, t, p in zip(sequences, texts, pairs, strict=True)]
    )
    for text, pair, output in zip(texts, pairs, outputs, strict=True):
        expected = log_softmax(plain(runtime, text))[pair[:, 0], pair[:, 1]]
        np.testing.assert_allclose(output.logprobs, expected, atol=1e-4)
