"""Tokens per second and bytes per sequence of a state-space model at lengths of 256 to 65,536 tokens, on one CPU.

A Mamba-2 model and a Llama of as many parameters, with random weights: speed depends on shapes alone.  The first runs
on the recurrent runtime, with steps in C++ and in torch, the second on the torch runtime with its keys and values, and
the first once more by transformers' own cached generation; the last two up to 16,384 tokens, whose reading alone takes
half a minute.  A text of random tokens is read, then 16 tokens follow one by one; bytes are those of what is kept for
one open text: states that it can go back to included, weights not.  Then larger models after 256 tokens, beside what no
step can beat: the time in which this machine reads all weights once.  Before anything is timed the logits of all ways
to run the state-space model are compared.

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
from likely.sequence import SequenceConfig, SequenceLM
from likely.sequence.convert import from_transformers

LENGTHS, QUICK = (256, 1024, 4096, 16384, 65536), (64, 128)
WIDTH, LAYERS, VOCAB, STEPS = 256, 8, 4096, 16
OTHERS_READ = 16384  # attention takes minutes for more, and transformers' Mamba tens of GB
LARGER = {"mamba2, 130M": ("mamba2", 768, 24, 50280), "mamba, 130M": ("mamba", 768, 24, 50280)}


def state_space_model(width: int, layers: int) -> transformers.Mamba2ForCausalLM:
    config = transformers.Mamba2Config(
        vocab_size=VOCAB, hidden_size=width, num_hidden_layers=layers, state_size=64, head_dim=64,
        num_heads=2 * width // 64, n_groups=1, chunk_size=64, tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    return transformers.Mamba2ForCausalLM(config).eval()


def larger_model(kind: str, width: int, layers: int, vocab: int) -> SequenceLM:
    settings = {"mamba2": {"d_state": 128, "head_dim": 64}, "mamba": {"d_state": 16}}[kind]
    torch.manual_seed(0)
    return SequenceLM(
        SequenceConfig(vocab_size=vocab, hidden_size=width, layers=[kind] * layers, mixers={kind: settings})
    ).eval()


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


def decode(runtime: RecurrentRuntime | TorchRuntime, sequence: Sequence, length: int, steps: int = STEPS) -> None:
    """Tokens one by one, of a fork, so that the text is as long in every round."""
    fork = runtime.fork(sequence, length)
    for token in range(steps):
        runtime.forward([Work(fork, np.array([token + 1]), want=Want(rows="last", top=1))])
    runtime.close(fork)


def decode_theirs(module: transformers.Mamba2ForCausalLM, cache: Any) -> None:
    """STEPS tokens by transformers; its state has a fixed size, so that its speed does not depend on the text."""
    with torch.inference_mode():
        for token in range(STEPS):
            module(torch.tensor([[token + 1]]), cache_params=cache, use_cache=True).logits[0, -1].argmax()


def measured(length: int, runtimes: dict[str, Any], theirs: Any, *, rounds: int) -> dict[str, Any]:
    tokens = np.random.default_rng(length).integers(0, VOCAB, length)
    if length > OTHERS_READ:
        runtimes = {name: runtime for name, runtime in runtimes.items() if name != "torch"}
    texts = {name: read_text(runtime, tokens) for name, runtime in runtimes.items()}
    ways: dict[str, Callable[[], None]] = {
        name: partial(decode, runtime, texts[name], length) for name, runtime in runtimes.items()
    }
    if length <= OTHERS_READ:
        with torch.inference_mode():
            cache = theirs(torch.from_numpy(tokens)[None], use_cache=True, logits_to_keep=1).cache_params
        ways["transformers"] = partial(decode_theirs, theirs, cache)
    decoding = interleaved(ways, rounds=rounds)
    reading = interleaved(
        {
            name: partial(lambda r: r.close(read_text(r, tokens)), runtime)
            for name, runtime in runtimes.items()
            if name != "steps in torch"
        },
        rounds=rounds if length <= 1024 else 1,
        warmup=0,  # the text has been read once
    )
    ratios = {
        name: speedup(decoding["recurrent"], decoding[name])
        for name in ("steps in torch", "torch", "transformers")
        if name in decoding
    }
    speeds = {name: STEPS / t.median_s for name, t in decoding.items()}
    held = {"recurrent": runtimes["recurrent"].bytes_held(texts["recurrent"])}
    if "torch" in runtimes:
        held["torch"] = length * runtimes["torch"].kv_bytes_per_token
    for name, runtime in runtimes.items():
        runtime.close(texts[name])
    said = ", ".join(f"{name} {value:.0f}" for name, value in speeds.items())
    print(f"{length:,} tokens: {said} tokens/s; bytes {held}", flush=True)
    return {
        "length": length,
        "tokens_per_s": speeds,
        "read_tokens_per_s": {name: length / t.median_s for name, t in reading.items()},
        "bytes_per_sequence": held,
        "times_as_fast_as": {name: [ratio.median, ratio.low, ratio.high] for name, ratio in ratios.items()},
    }


def bytes_read_per_s() -> float:
    """Of memory that no cache holds, by the sum of it."""
    t = torch.ones(2**27)
    timing = interleaved({"sum": t.sum}, rounds=5)["sum"]
    return t.nbytes / timing.median_s


def larger(name: str, *, rounds: int, steps: int = 8) -> dict[str, Any]:
    """Seconds of a step in C++ and in torch after 256 tokens, and those of reading the weights once."""
    model = larger_model(*LARGER[name])
    tokens = np.random.default_rng(0).integers(0, 50_000, 256)
    ways = {way: RecurrentRuntime(model, revision=name) for way in ("recurrent", "steps in torch")}
    ways["steps in torch"].compiled = False
    texts = {way: read_text(runtime, tokens) for way, runtime in ways.items()}
    timings = interleaved(
        {way: partial(decode, runtime, texts[way], 256, steps) for way, runtime in ways.items()}, rounds=rounds
    )
    ratio = speedup(timings["recurrent"], timings["steps in torch"])
    row = {
        "model": name,
        "parameters": parameters(model),
        "step_s": {way: t.median_s / steps for way, t in timings.items()},
        "weights_read_once_s": 4 * parameters(model) / bytes_read_per_s(),
        "times_as_fast_as": {"steps in torch": [ratio.median, ratio.low, ratio.high]},
    }
    print(row, flush=True)
    return row


def largest_difference(runtime: RecurrentRuntime, theirs: Any) -> float:
    """Between the logits of both ways to run the state-space model: 100 tokens, the last 20 one by one."""
    tokens = np.random.default_rng(0).integers(0, VOCAB, 100)
    sequence = runtime.open()
    pieces = [tokens[:80], *tokens[80:, None]]
    rows = [runtime.forward([Work(sequence, piece, want=Want.ALL)])[0].logits for piece in pieces]
    runtime.close(sequence)
    with torch.inference_mode():
        wanted = theirs(torch.from_numpy(tokens)[None]).logits[0].numpy()
    return float(np.abs(np.concatenate(rows) - wanted).max())


def main(argv: list[str] | None = None) -> None:
    options = protocol.arguments(__doc__.splitlines()[0], argv)
    lengths, width, layers = (QUICK, 128, 2) if options.quick else (LENGTHS, WIDTH, LAYERS)
    threads = 1 if options.quick else cores()
    rounds = 1 if options.quick else options.rounds
    torch.set_num_threads(threads)
    theirs = state_space_model(width, layers)
    attention = attention_model(width, layers, parameters(theirs), 2 * max(lengths))
    held = 2 * max(lengths) + 4 * STEPS
    model = from_transformers(theirs)
    recurrent, in_torch = (RecurrentRuntime(model, tokens_held=held) for _ in range(2))
    in_torch.compiled = False
    runtimes = {
        "recurrent": recurrent, "steps in torch": in_torch, "torch": TorchRuntime(attention, tokens_held=held)
    }  # fmt: skip
    difference = max(largest_difference(runtime, theirs) for runtime in (recurrent, in_torch))
    if difference > 1e-3:
        raise SystemExit(f"the ways to run the model differ by {difference:g}: nothing is measured")
    rows = [measured(length, runtimes, theirs, rounds=rounds) for length in lengths]
    record = {
        "models": {
            "recurrent": {"type": "mamba2", "parameters": parameters(theirs), "width": width, "layers": layers},
            "torch": {"type": "llama", "parameters": parameters(attention), "width": width, "layers": layers},
        },
        "state_bytes": recurrent.state_bytes,
        "largest_difference_of_logits": difference,
        "threads": threads,
        "steps": STEPS,
        "rounds": rounds,
        "rows": rows,
        "larger": [] if options.quick else [larger(name, rounds=rounds) for name in LARGER],
    }
    protocol.write("recurrent_decoding", record, quick=options.quick)


if __name__ == "__main__":
    main()
