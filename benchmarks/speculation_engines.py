"""Prompt lookup of other engines beside ours: same prompts, fp32 or the packaged file, each against its own plain mode.

OpenVINO GenAI runs in its own environment: --openvino PYTHON names an interpreter that can import openvino_genai.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import protocol
import speculation_tasks

import likely
from likely.bench.timing import Timing, speedup
from likely.models.catalog import find_model
from likely.models.convert import convert
from likely.runtimes.machine import cores

Run = Callable[[list[int], int], list[int]]  # prompt ids, most tokens -> tokens


def of_likely(lm: likely.Model, drafter: str | None) -> Run:
    from likely.decoding.request import Request
    from likely.decoding.sampling import Sampling

    def run(ids: list[int], count: int) -> list[int]:
        loop = lm.loop()
        loop.add(Request(tuple(ids), Sampling(temperature=0), max_tokens=count, drafter=lm.drafter(drafter)))
        found: list[int] = []
        while not loop.idle:
            for event in loop.step():
                found += event.tokens
        return found

    return run


def of_llama_cpp_python(path: Path, *, lookup: bool, end_ids: list[int]) -> Run:
    from llama_cpp import Llama
    from llama_cpp.llama_speculative import LlamaPromptLookupDecoding

    draft = LlamaPromptLookupDecoding(num_pred_tokens=10) if lookup else None
    llama = Llama(
        str(path), n_ctx=2048, n_threads=cores(), n_threads_batch=cores(), draft_model=draft, logits_all=lookup,
        verbose=False,
    )  # fmt: skip

    def run(ids: list[int], count: int) -> list[int]:
        llama.reset()
        found: list[int] = []
        for token in llama.generate(ids, temp=0.0, top_k=1, repeat_penalty=1.0, reset=True):
            found.append(token)
            if len(found) == count or token in end_ids:
                break
        return found

    return run


def of_transformers(model: Any, end_ids: list[int], **options: Any) -> Run:
    import torch

    def run(ids: list[int], count: int) -> list[int]:
        with torch.no_grad():
            out = model.generate(
                torch.tensor([ids]), max_new_tokens=count, do_sample=False, eos_token_id=end_ids,
                pad_token_id=end_ids[0], **options,
            )  # fmt: skip
        return out[0, len(ids) :].tolist()

    return run


OPENVINO = """
import json, sys
import openvino_genai as ov
path, lookup, threads = sys.argv[1], sys.argv[2] == "lookup", int(sys.argv[3])
options = {"INFERENCE_NUM_THREADS": threads}
if lookup:
    options["prompt_lookup"] = True
pipe = ov.LLMPipeline(path, "CPU", **options)
for line in sys.stdin:
    ask = json.loads(line)
    config = ov.GenerationConfig()
    config.max_new_tokens, config.do_sample, config.apply_chat_template = ask["count"], False, False
    if lookup:
        config.num_assistant_tokens, config.max_ngram_size = 10, 3
    print(json.dumps({"text": str(pipe.generate(ask["text"], config))}), flush=True)
"""


class OpenVino:
    """OpenVINO GenAI on the packaged file, in its own process."""

    def __init__(self, python: str, path: Path, *, lookup: bool, decode: Callable[[list[int]], str]):
        command = [python, "-c", OPENVINO, str(path), "lookup" if lookup else "plain", str(cores())]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._decode = decode

    def __call__(self, ids: list[int], count: int) -> list[int]:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps({"text": self._decode(ids), "count": count}) + "\n")
        self._process.stdin.flush()
        reply = json.loads(self._process.stdout.readline())
        return list(reply["text"].encode())  # its text stands for its tokens


def decode_seconds(run: Run, prompts: list[list[int]], count: int) -> tuple[list[list[int]], float]:
    """(texts, seconds of all tokens but the first): the time of a one-token run, the prefill, is taken off."""
    texts, spent = [], 0.0
    for ids in prompts:
        started = time.perf_counter()
        run(list(ids), 1)
        middle = time.perf_counter()
        texts.append(run(list(ids), count))
        spent += (time.perf_counter() - middle) - (middle - started)
    return texts, spent


def main() -> None:
    extra = argparse.ArgumentParser(add_help=False)
    extra.add_argument("--openvino", help="python of an environment with openvino_genai")
    extra.add_argument("--draft", help="folder of a draft model for transformers' assisted generation and ours")
    chosen, rest = extra.parse_known_args()
    options = protocol.arguments(__doc__, rest)
    import torch
    from transformers import AutoModelForCausalLM

    from likely.tokenizers.protocol import decode

    torch.set_num_threads(cores())
    count = 8 if options.quick else 32
    path = find_model("smollm2")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "smollm2"
        convert(path, folder, to="safetensors", verify=False)
        theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        cpp = likely.load("smollm2", runtime="llamacpp", threads=cores(), context=2048)
        ours = likely.load(str(folder), runtime="torch", dtype="float32")
        ends = sorted(ours.tokenizer.end_ids)
        pairs: dict[str, tuple[Run, Run]] = {
            "likely, llama.cpp": (of_likely(cpp, None), of_likely(cpp, "lookup")),
            "llama-cpp-python": tuple(of_llama_cpp_python(path, lookup=flag, end_ids=ends) for flag in (False, True)),
            "likely, torch": (of_likely(ours, None), of_likely(ours, "lookup")),
            "transformers": (of_transformers(theirs, ends), of_transformers(theirs, ends, prompt_lookup_num_tokens=10)),
        }
        if chosen.draft:
            draft = AutoModelForCausalLM.from_pretrained(chosen.draft, dtype=torch.float32).eval()
            pairs["likely, torch, draft model"] = (of_likely(ours, None), of_likely(ours, f"model:{chosen.draft}"))
            assisted = of_transformers(theirs, ends, assistant_model=draft)
            pairs["transformers, assisted"] = (of_transformers(theirs, ends), assisted)
        if chosen.openvino:
            text = lambda ids: decode(ours.tokenizer, ids)  # noqa: E731
            pairs["OpenVINO GenAI"] = (
                OpenVino(chosen.openvino, path, lookup=False, decode=text),
                OpenVino(chosen.openvino, path, lookup=True, decode=text),
            )
        record: dict[str, Any] = {"tokens": count, "threads": cores(), "rows": []}
        for task in speculation_tasks.tasks(1)[:3]:
            prompts = [
                (ours.encode_prompt(p) if isinstance(p, str) else ours.render(p).tokens)[-256:] for p in task.prompts
            ]
            seconds: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in pairs}
            same: dict[str, int] = dict.fromkeys(pairs, 0)
            for number in range((1 if options.quick else options.rounds) + 1):
                for name, both in pairs.items():
                    texts = []
                    for run, store in zip(both, seconds[name], strict=True):
                        found, spent = decode_seconds(run, prompts, count)
                        texts.append(found)
                        if number:
                            store.append(spent)
                    same[name] += sum(a == b for a, b in zip(*texts, strict=True)) if number else 0
            for name, (plain_s, drafted_s) in seconds.items():
                ratio = speedup(Timing("drafted", drafted_s), Timing("plain", plain_s))
                row = {
                    "task": task.name,
                    "engine": name,
                    "ratio": asdict(ratio),
                    "plain_s": Timing("plain", plain_s).median_s,
                    "drafted_s": Timing("drafted", drafted_s).median_s,
                    "same_texts": same[name],
                    "texts": len(prompts) * ratio.rounds,
                }
                record["rows"].append(row)
                print(f"{task.name:<16} {name:<28} {ratio}  {same[name]}/{row['texts']} same", flush=True)
        cpp.close()
        ours.close()
    protocol.write("speculation_engines", record, quick=options.quick)


if __name__ == "__main__":
    main()
