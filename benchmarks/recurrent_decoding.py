"""Tokens per second and bytes per sequence of a state-space model at lengths of 256 to 65,536 tokens, on one CPU.

A Mamba-2 model and a Llama of as many parameters, with random weights: speed depends on shapes alone.  The first runs
on the recurrent runtime, the second on the torch runtime with its keys and values, and the first once more by
transformers' own cached generation.  A text of random tokens is read, then 16 tokens follow one by one; bytes are those
of what is kept for one open text: states that it can go back to included, weights not.  Before anything is timed the
logits of both ways to run the state-space model are compared.

  python benchmarks/recurrent_decoding.py             up to 65,536 tokens
  python benchmarks/recurrent_decoding.py --quick     a smoke run; its figures are not kept
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import protocol
import torch
import transformers

from likely.bench.timing import interleaved, speedup
from likely.runtimes.machine import cores
from likely.runtimes.protocol import Sequence, Want, Work
from likely.runtimes.recurrent.runtime import RecurrentRuntime
from likely.runtimes.torch.runtime import TorchRuntime
from likely.sequence.convert import from_transformers

LENGTHS, QUICK = (256, 1024, 4096, 16384, 65536), (64, 128)
WIDTH, LAYERS, VOCAB, STEPS = 256, 8, 4096, 16
THEIRS_READS = 16384  # transformers keeps all of a text's intermediate values: longer ones take tens of GB


def state_space_model(width: int, layers: int) -> transformers.Mamba2ForCausalLM:
    config = transformers.Mamba2Config(
        vocab_size=VOCAB, hidden_size=width, num_hidden_layers=layers, state_size=64, head_dim=64,
        num_heads=2 * width // 64, n_groups=1, chunk_size=64, tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    return transformers.Mamba2ForCausalLM(config).eval()


def attention_model(width: int, layers: int, parameters: int, positions: int) -> transformers.LlamaForCausalLM:
    """As many parameters: the feed-forward part is as wide as it takes."""
    per_layer = (parameters - VOCAB * width) // layers
    inner = max(8, (per_layer - 3 * width * width) // (3 * width) // 8 * 8)  # queries, outputs; keys, values by half
    config = transformers.LlamaConfig(
        vocab_size=VOCAB, hidden_size=width, intermediate_size=inner, num_hidden_layers=layers,
        num_attention_heads=width // 64, num_key_value_heads=max(1, width // 128),
        max_position_embeddings=positions, tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(config).eval()


def parameters(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def read_text(runtime: RecurrentRuntime | TorchRuntime, tokens: np.ndarray) -> Sequence:
    sequence = runtime.open()
    runtime.forward([Work(sequence, tokens, want=Want.NONE)])
    return sequence


def decode(runtime: RecurrentRuntime | TorchRuntime, sequence: Sequence, length: int) -> None:
    """STEPS tokens, one by one, of a fork, so that the text is as long in every round."""
    fork = runtime.fork(sequence, length)
    for token in range(STEPS):
        runtime.forward([Work(fork, np.array([token + 1]), want=Want(rows="last", top=1))])
    runtime.close(fork)


def decode_theirs(module: transformers.Mamba2ForCausalLM, cache: Any) -> None:
    """STEPS tokens by transformers; its state has a fixed size, so that its speed does not depend on the text."""
    with torch.inference_mode():
        for token in range(STEPS):
            module(torch.tensor([[token + 1]]), cache_params=cache, use_cache=True).logits[0, -1].argmax()


def measured(length: int, runtimes: dict[str, Any], theirs: Any, *, rounds: int) -> dict[str, Any]:
    tokens = np.random.default_rng(length).integers(0, VOCAB, length)
    texts = {name: read_text(runtime, tokens) for name, runtime in runtimes.items()}
    ways: dict[str, Callable[[], None]] = {
        name: partial(decode, runtime, texts[name], length) for name, runtime in runtimes.items()
    }
    if length <= THEIRS_READS:
        with torch.inference_mode():
            cache = theirs(torch.from_numpy(tokens)[None], use_cache=True, logits_to_keep=1).cache_params
        ways["transformers"] = partial(decode_theirs, theirs, cache)
    decoding = interleaved(ways, rounds=rounds)
    reading = interleaved(
        {name: partial(lambda r: r.close(read_text(r, tokens)), runtime) for name, runtime in runtimes.items()},
        rounds=max(1, rounds // 2),
    )
    ratio = speedup(decoding["recurrent"], decoding["torch"])
    row = {
        "length": length,
        "tokens_per_s": {name: STEPS / t.median_s for name, t in decoding.items()},
        "read_tokens_per_s": {name: length / t.median_s for name, t in reading.items()},
        "bytes_per_sequence": {
            "recurrent": runtimes["recurrent"].bytes_held(texts["recurrent"]),
            "torch": length * runtimes["torch"].kv_bytes_per_token,
        },
        "speedup_over_attention": [ratio.median, ratio.low, ratio.high],
    }
    for name, runtime in runtimes.items():
        runtime.close(texts[name])
    speeds = ", ".join(f"{name} {value:.0f}" for name, value in row["tokens_per_s"].items())
    held = ", ".join(f"{name} {value:,}" for name, value in row["bytes_per_sequence"].items())
    print(f"{length:,} tokens: {speeds} tokens/s; {held} bytes", flush=True)
    return row


def largest_difference(runtime: RecurrentRuntime, theirs: Any) -> float:
    """Between the logits of both ways to run the state-space model, over a text of 100 tokens."""
    tokens = np.random.default_rng(0).integers(0, VOCAB, 100)
    sequence = runtime.open()
    rows = runtime.forward([Work(sequence, tokens, want=Want.ALL)])[0].logits
    runtime.close(sequence)
    with torch.inference_mode():
        return float(np.abs(rows - theirs(torch.from_numpy(tokens)[None]).logits[0].numpy()).max())


def main(argv: list[str] | None = None) -> None:
    options = protocol.arguments(__doc__.splitlines()[0], argv)
    lengths, width, layers = (QUICK, 128, 2) if options.quick else (LENGTHS, WIDTH, LAYERS)
    threads = 1 if options.quick else cores()
    rounds = 1 if options.quick else options.rounds
    torch.set_num_threads(threads)
    theirs = state_space_model(width, layers)
    attention = attention_model(width, layers, parameters(theirs), 2 * max(lengths))
    held = 2 * max(lengths) + 4 * STEPS
    runtimes = {
        "recurrent": RecurrentRuntime(from_transformers(theirs), tokens_held=held),
        "torch": TorchRuntime(attention, tokens_held=held),
    }
    difference = largest_difference(runtimes["recurrent"], theirs)
    if difference > 1e-3:
        raise SystemExit(f"the two ways to run the model differ by {difference:g}: nothing is measured")
    rows = [measured(length, runtimes, theirs, rounds=rounds) for length in lengths]
    record = {
        "models": {
            "recurrent": {"type": "mamba2", "parameters": parameters(theirs), "width": width, "layers": layers},
            "torch": {"type": "llama", "parameters": parameters(attention), "width": width, "layers": layers},
        },
        "state_bytes": runtimes["recurrent"].state_bytes,
        "largest_difference_of_logits": difference,
        "threads": threads,
        "steps": STEPS,
        "rounds": rounds,
        "rows": rows,
    }
    protocol.write("recurrent_decoding", record, quick=options.quick)


if __name__ == "__main__":
    main()
