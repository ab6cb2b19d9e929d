"""The model that OpenVINO makes of a GGUF file, in a process of its own that times its calls itself."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from likely.bench.timing import Timing
from likely.errors import LikelyError
from likely.runtimes.machine import cores

_PROCESS = """
import json, sys, time
import numpy as np, openvino as ov
gguf, path, threads, context = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
rng, core, pipeline = np.random.default_rng(0), ov.Core(), None
request = core.compile_model(path, "CPU", {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"})
request = request.create_infer_request()
names = {name for i in request.model_inputs for name in i.names}
if gguf:
    import openvino_genai as genai
    pipeline = genai.LLMPipeline(gguf, "CPU", INFERENCE_NUM_THREADS=threads)
    config = genai.GenerationConfig()
    config.max_new_tokens, config.do_sample, config.apply_chat_template = 1, False, False
def call(tokens, past):
    n = len(tokens)
    given = {"input_ids": np.array([tokens], np.int64), "attention_mask": np.ones((1, past + n), np.int64),
             "position_ids": np.arange(past, past + n, dtype=np.int64)[None], "beam_idx": np.zeros(1, np.int32)}
    request.infer({k: v for k, v in given.items() if k in names})
    return request.get_output_tensor(0).data
for line in sys.stdin:
    ask = json.loads(line)
    request.reset_state()
    if ask["what"] == "logits":
        np.save(ask["to"], call(ask["tokens"], 0)[0].astype(np.float32))
        print(json.dumps({}), flush=True)
        continue
    tokens = rng.integers(3, 20000, ask["n"]).tolist()
    past = context if ask["what"] == "positions" else 0
    if past:
        call(rng.integers(3, 20000, past).tolist(), 0)
    given = ov.Tensor(np.array([tokens], np.int64))
    started = time.perf_counter()
    if past or pipeline is None:
        call(tokens, past)
    else:
        pipeline.generate(given, config)
    print(json.dumps({"seconds": time.perf_counter() - started}), flush=True)
"""


class OpenVino:
    """The graph that OpenVINO GenAI writes of a GGUF file: every row has logits, and texts are not batched.

    python    an interpreter that can import openvino_genai
    context   tokens that a text of "positions" holds
    pipeline  prefill by the library's own pipeline, which computes the last row alone; it refuses a made-up vocabulary
    LikelyError if it does not read the file.
    """

    def __init__(self, python: str, gguf: Path, folder: Path, context: int, *, pipeline: bool = True):
        folder.mkdir(exist_ok=True)
        path = folder / gguf.name  # its graph is written beside it
        path.symlink_to(gguf.resolve())
        make = "import sys, openvino_genai as g; g.LLMPipeline(sys.argv[1], 'CPU', enable_save_ov_model=True)"
        ran = subprocess.run([python, "-c", make, str(path)], capture_output=True, text=True, check=False)
        graph = folder / "openvino_model.xml"
        if not graph.is_file() or (pipeline and ran.returncode):
            said = ran.stderr.strip().splitlines() or ["it does not say why"]
            raise LikelyError(f"OpenVINO does not read {gguf}: {said[-1]}")
        self._process = subprocess.Popen(
            [python, "-c", _PROCESS, str(path) if pipeline else "", str(graph), str(cores()), str(context)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self._seconds: list[float] = []

    def ask(self, **question: Any) -> dict[str, Any]:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def call(self, column: str) -> None:
        """One call of a column, "positions 4" or "prefill 512"; its own time is kept for `timing`."""
        what, n = column.split()
        self._seconds.append(float(self.ask(what=what, n=int(n))["seconds"]))

    def timing(self, warmup: int) -> Timing:
        """What its calls took since the last time, `interleaved` having made two in each round, of which one counts."""
        seconds, self._seconds = self._seconds[1::2][warmup:], []
        return Timing("OpenVINO", seconds)

    def close(self) -> None:
        self._process.kill()
