"""What static codes of activations save on the native runtime: MergeQuant's model against dynamic int8 activations.

The model has the shape of a Llama of 1.1B parameters and random weights in 4 bits, made here, in a folder that goes
again.  The same calls on four forms of it:

  per 32, dynamic     the runtime's usual path: Q4_0, a scale of weights and of activations for each 32 inputs
  per token, dynamic  one scale for each row of weights and for each token: whole sums, scales found at each product
  static norms        MergeQuant's default: norms emit codes; inputs of o and down have a scale for each token
  static              all inputs are codes; nothing is found as the model runs

The second and the last differ in nothing but how activations become codes: their ratio is what MergeQuant's static
codes save.  The first and the second differ in how many scales there are.  Tables of tokens have 8 bits in all of them.
Runtimes take turns, in another order in every round.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import packed_weights as packed
import protocol

from likely.bench.timing import Timing, interleaved, speedup
from likely.formats.writing import write_safetensors_header
from likely.runtimes.machine import cores
from likely.runtimes.native.build import library
from likely.runtimes.native.runtime import NativeRuntime

USUAL = "per 32, dynamic"
FORMS = {"per token, dynamic": "none", "static norms": "norms", "static": "all"}
PAIRS = ((USUAL, "static"), (USUAL, "static norms"), (USUAL, "per token, dynamic"), ("per token, dynamic", "static"))
ROWS = 1024  # written at one time


def write_folder(folder: Path, s: packed.Shape, static: str, seed: int = 0) -> Path:
    """A Llama of random codes as `likely compress --method mergequant --scheme w4a8 --packed` writes one."""
    rng, dim = np.random.default_rng(seed), s.hidden // s.heads
    kv, tensors = s.kv_heads * dim, [("model.embed_tokens.weight", (s.vocab, s.hidden), "F16")]
    for i in range(s.layers):
        at = f"model.layers.{i}."
        sizes = {"self_attn.q_proj": (s.hidden, s.hidden), "self_attn.k_proj": (kv, s.hidden),
                 "self_attn.v_proj": (kv, s.hidden), "self_attn.o_proj": (s.hidden, s.hidden),
                 "mlp.gate_proj": (s.mlp, s.hidden), "mlp.up_proj": (s.mlp, s.hidden),
                 "mlp.down_proj": (s.hidden, s.mlp)}  # fmt: skip
        tensors += [
            (f"{at}{name}.weight_packed", (out, 4 + inputs // 2), "I8") for name, (out, inputs) in sizes.items()
        ]
        tensors += [
            (f"{at}{name}.weight", (s.hidden,), "F32") for name in ("input_layernorm", "post_attention_layernorm")
        ]
    tensors += [("model.norm.weight", (s.hidden,), "F32"), ("lm_head.weight", (s.vocab, s.hidden), "F16")]
    folder.mkdir()
    with (folder / "model.safetensors").open("wb") as file:
        write_safetensors_header(file, tensors)
        for name, shape, kind in tensors:
            for at in range(0, shape[0], ROWS):
                size = (min(ROWS, shape[0] - at), *shape[1:])
                if kind == "F32":  # norms that emit codes up to some 100
                    values = np.full(size, 1.0 if name == "model.norm.weight" else 30.0, np.float32)
                elif kind == "F16":
                    values = (rng.standard_normal(size, np.float32) * s.hidden**-0.5).astype(np.float16)
                else:
                    values = rng.integers(0, 256, size, dtype=np.uint8)
                    inputs = 2 * (size[1] - 4)
                    values[:, :4] = np.array([inputs**-0.5 / 4.6 / 30], "<f4").view(np.uint8)
                file.write(values.tobytes())
    config = {
        "model_type": "llama", "hidden_size": s.hidden, "num_hidden_layers": s.layers, "num_attention_heads": s.heads,
        "num_key_value_heads": s.kv_heads, "intermediate_size": s.mlp, "vocab_size": s.vocab, "hidden_act": "silu",
        "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": False,
        "quantization_config": {"quant_method": "mergequant", "weight_bits": 4, "activation_bits": 8, "static": static},
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def opened(scratch: Path, shape: packed.Shape, stack: ExitStack) -> dict[str, NativeRuntime]:
    path = scratch / "model.gguf"
    packed.write_random(path, shape, "Q4_0", "Q8_0", 0)
    places = {USUAL: path, **{name: write_folder(scratch / static, shape, static) for name, static in FORMS.items()}}
    found = {}
    for name, place in places.items():
        found[name] = NativeRuntime(place, dtype="file", threads=cores(), tokens_held=4096)
        stack.callback(found[name].shutdown)
    return found


def measure(shape: str, *, rounds: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        stack.enter_context(packed.own_cache(Path(scratch) / "cache"))
        runtimes = opened(Path(scratch), packed.SHAPES[shape], stack)
        calls = {name: packed.Calls(runtime).columns() for name, runtime in runtimes.items()}
        columns: dict[str, Any] = {}
        for column in calls[USUAL]:
            few = max(2, rounds // 2) if column.startswith("prefill") else rounds
            turns = {name: own[column] for name, own in calls.items()}
            columns[column] = _row(interleaved(turns, rounds=few, warmup=1, settled=True))
            print(json.dumps({"shape": shape, "column": column, **columns[column]}), flush=True)
        return {"shape": shape, "weights_bytes": {name: r.weights_bytes for name, r in runtimes.items()},
                "weights": {name: r.weights_format for name, r in runtimes.items()}, "columns": columns}  # fmt: skip


def _row(timings: dict[str, Timing]) -> dict[str, Any]:
    ratios = [{"of": new, "over": old, **asdict(speedup(timings[new], timings[old]))} for old, new in PAIRS]
    spans = {name: [1e3 * t.median_s, *(1e3 * x for x in t.interval_s())] for name, t in timings.items()}
    return {"milliseconds": spans, "speedups": ratios}


def main(argv: list[str] | None = None) -> None:
    extra = argparse.ArgumentParser(add_help=False)
    extra.add_argument("--shape", choices=packed.SHAPES, default="1b")
    chosen, rest = extra.parse_known_args(argv)
    options = protocol.arguments(__doc__, rest)
    print("native library:", " ".join(library().features()) or "plain")
    shape, rounds = ("tiny", 2) if options.quick else (chosen.shape, options.rounds)
    record = {"threads": cores(), "context": packed.CONTEXT, "features": library().features(),
              "model": measure(shape, rounds=rounds)}  # fmt: skip
    protocol.write("static_codes" if shape != "8b" else "static_codes_8b", record, quick=options.quick)


if __name__ == "__main__":
    main()
