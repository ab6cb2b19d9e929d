"""The torch runtime with keys and values in storage formats: rounded by hand it is the same, in the bytes it tells."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from drafter_factories import MADE  # noqa: E402
from factories import FACTORIES  # noqa: E402
from speculation_product import requests  # noqa: E402
from tiny_gguf import write_tiny_llama  # noqa: E402
from tiny_torch import tiny_module  # noqa: E402

from likely.decoding.loop import Loop  # noqa: E402
from likely.errors import CapabilityError  # noqa: E402
from likely.models.load import load_local  # noqa: E402
from likely.runtimes.kv_format import parse_kv_format  # noqa: E402
from likely.runtimes.protocol import Want, Work  # noqa: E402
from likely.runtimes.torch.block_float import bfp_quantize  # noqa: E402
from likely.runtimes.torch.runtime import TorchRuntime  # noqa: E402
from likely.runtimes.torch.slots import SlotPool  # noqa: E402

TEXT = np.random.default_rng(0).integers(0, 64, 40)


def rows(runtime, tokens=TEXT):
    sequence = runtime.open()
    [output] = runtime.forward([Work(sequence, tokens, want=Want.ALL)])
    runtime.close(sequence)
    return output.logits


def rounded_by_hand(module, kv):
    """The module's own forward with keys and values rounded on their way into attention."""
    from transformers import AttentionInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    stored = parse_kv_format(kv)

    def attend(layer, query, key, value, mask, **others):
        key, value = (
            x if fmt == "f32" else bfp_quantize(x, fmt).dequantize()
            for x, fmt in ((key, stored.keys), (value, stored.values))
        )
        return sdpa_attention_forward(layer, query, key, value, mask, **others)

    AttentionInterface.register("rounded_by_hand", attend)
    module.config._attn_implementation = "rounded_by_hand"
    seen = torch.ones(len(TEXT), len(TEXT), dtype=torch.bool).tril()[None, None]
    with torch.no_grad():
        return module(input_ids=torch.from_numpy(TEXT)[None], attention_mask=seen).logits[0].numpy()


@pytest.mark.parametrize("kv", ["bfp12n8/f32", "bfp16n8", "bfp13n4/bfp11n8"])
def test_it_is_the_model_with_rounded_keys_and_values(kv):
    found = rows(TorchRuntime(tiny_module("llama"), kv_dtype=kv, tokens_held=64))
    plain = rows(TorchRuntime(tiny_module("llama"), tokens_held=64))
    np.testing.assert_allclose(found, rounded_by_hand(tiny_module("llama"), kv), rtol=0, atol=1e-3)
    assert np.abs(found - plain).max() > 0.01


@pytest.mark.parametrize(
    ("kv", "bits"),
    [
        (None, 64),
        ("f32", 64),
        ("bf16", 32),
        ("f16", 32),
        ("bfp16n8", 18),
        ("bfp12n8", 10),
        ("bfp12n8/bfp16n8", 14),
        ("bfp11n4", 10),
    ],
)
def test_bytes_per_token_are_told_and_held(kv, bits):
    """Per pair of a key and a value: two layers, two heads of 8."""
    runtime = TorchRuntime(tiny_module("llama"), kv_dtype=kv, tokens_held=2048)
    assert runtime.kv_bytes_per_token == 2 * 2 * 8 * bits / 8
    assert runtime.kv_dtype == (kv or "f32")
    assert ("-kv-" in runtime.revision) == (kv is not None)
    before = runtime.revision
    runtime.refresh()
    assert runtime.revision == before
    runtime.refresh(f"{before}+lora")
    assert runtime.revision == f"{before}+lora"
    runtime.refresh("named")
    assert runtime.revision == ("named" if kv is None else f"named-kv-{kv}")


def test_half_the_bytes_hold_twice_the_tokens(monkeypatch):
    import likely.runtimes.torch.runtime as module

    monkeypatch.setattr(module, "_free_bytes", lambda device: 8 * 256 * 2000)
    held = [TorchRuntime(tiny_module("llama"), kv_dtype=kv).limits.tokens_held for kv in ("f32", "bf16", "bfp12n8")]
    assert held == [2000, 4000, 12800]


def test_storage_grows_with_what_it_holds():
    pool = SlotPool(2000, parse_kv_format("bfp12n8/bf16"))
    keys, values = torch.randn(300, 2, 16), torch.randn(300, 2, 16)
    slots = torch.from_numpy(pool.allocate(200))
    pool.write(0, keys[:200], values[:200], slots)
    more = torch.from_numpy(pool.allocate(100))
    stored = pool.write(0, keys[200:], values[200:], more)
    assert pool.capacity == 512
    both = torch.cat([slots, more])
    assert torch.equal(stored[0][both], bfp_quantize(keys, parse_kv_format("bfp12n8").keys).dequantize())
    assert torch.equal(stored[1][both], values.bfloat16().float())
    assert stored[0][both.view(3, 100)].shape == (3, 100, 2, 16)
    assert pool.bytes_per_token == 2 * (8 + 2) + 2 * 16 * 2


def test_bfloat16_models_read_what_they_wrote():
    runtime = TorchRuntime(tiny_module("llama", dtype=torch.bfloat16), kv_dtype="bfp16n8", tokens_held=64)
    plain = TorchRuntime(tiny_module("llama", dtype=torch.bfloat16), tokens_held=64)
    assert plain.kv_dtype == "bf16"
    assert 0 < np.abs(rows(runtime) - rows(plain)).mean() < 0.2


def test_it_is_an_option_of_loading(tmp_path):
    path = write_tiny_llama(tmp_path / "tiny.gguf", dtype="F32")
    opened = load_local(path, runtime="torch", kv_dtype="bfp12n8", threads=1)
    assert opened.runtime.kv_dtype == "bfp12n8"
    with pytest.raises(CapabilityError, match="do not divide"):
        load_local(path, runtime="torch", kv_dtype="bfp12n96", threads=1)
    with pytest.raises(ValueError, match="bfp12, bfp16"):
        load_local(path, runtime="torch", kv_dtype="q4_0", threads=1)
    with pytest.raises(CapabilityError, match="needs cached keys"):
        TorchRuntime(tiny_module("mamba"), kv_dtype="bf16")


@pytest.mark.sampled(8)
@pytest.mark.parametrize("choice", ["greedy", "sampled, keyed", "penalties and bias"])
@pytest.mark.parametrize("drafter", ["copy", "suffix, trees", "trigram", "model, RSD-S", "skip"])
def test_drafts_change_no_token(drafter, choice):
    """Chains, trees and skipped layers over packed keys: the text of plain decoding, alone and in a batch."""
    runtime = FACTORIES["torch-bfp12"][0]()
    source = MADE[drafter].build(runtime)
    for batch in (1, 3):
        plain = requests(choice, batch, runtime.vocab_size)
        texts = []
        for wanted in (plain, [replace(request, drafter=source) for request in plain]):
            loop = Loop(runtime, token_bytes=lambda t: bytes([97 + t % 26]), end_ids=frozenset())
            order = [loop.add(request) for request in wanted]
            done = {}
            while not loop.idle:
                done |= {event.request: event.finish.tokens for event in loop.step() if event.finish}
            texts.append([done[number] for number in order])
        assert texts[0] == texts[1]
