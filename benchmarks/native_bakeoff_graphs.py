"""Graphs made once, run by engines that need neither torch nor a compiler: OpenVINO and ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from native_bakeoff_tables import Shape, causal_mask, rotation

from likely.runtimes.machine import cores

Infer = Callable[[list[np.ndarray]], tuple[np.ndarray, np.ndarray]]


class KeptOutside:
    """A graph of `Portable` as `extend`: this holds the keys and values, the graph reads them where they are."""

    def __init__(self, infer: Infer, shape: Shape, capacity: int, dtype: type[np.floating]):
        self._infer, self._shape, self._capacity = infer, shape, capacity
        self._kept = np.zeros((shape.layers, 2 * shape.kv_heads, capacity, shape.head_dim), dtype)
        self._cos, self._sin = rotation(shape, capacity)

    def extend(self, tokens: list[int], past: int, *, last: bool) -> np.ndarray:
        new = len(tokens)
        rows = np.array([new - 1]) if last else np.arange(new)
        kept = self._kept if past else self._kept[:, :, :0]
        mask = causal_mask(self._shape.group, new, past, kept.shape[2])[0]
        at = slice(past, past + new)
        logits, added = self._infer([np.array(tokens), rows, self._cos[at], self._sin[at], mask, kept])
        self._kept[:, :, at] = added
        return logits


def of_openvino(path: Path, shape: Shape, capacity: int) -> KeptOutside:
    import openvino

    settings = {"INFERENCE_PRECISION_HINT": "bf16", "INFERENCE_NUM_THREADS": cores(), "PERFORMANCE_HINT": "LATENCY"}
    request = openvino.Core().compile_model(path, "CPU", settings).create_infer_request()

    def infer(inputs: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        found = request.infer(inputs, share_inputs=True, share_outputs=True)
        return found[0], found[1]

    return KeptOutside(infer, shape, capacity, np.float16)


def of_onnxruntime(path: Path, shape: Shape, capacity: int) -> KeptOutside:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = cores()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]

    def infer(inputs: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        logits, added = session.run(None, dict(zip(names, inputs, strict=True)))
        return logits, added

    return KeptOutside(infer, shape, capacity, np.float32)
