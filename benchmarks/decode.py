"""Plain greedy decoding: likely (log-probabilities on) against llama-cpp-python's generator, same file and threads."""

from __future__ import annotations

import itertools
from dataclasses import asdict
from functools import partial
from typing import Any

import protocol

import likely
from likely.bench.timing import interleaved, speedup
from likely.models.catalog import find_model
from likely.runtimes.machine import cores

PROMPT = "The history of the town goes back to the twelfth century, when monks built a small abbey beside the river."


def by_likely(lm: likely.Model, settings: dict) -> list[int]:
    return lm.generate(PROMPT, **settings).token_ids


def by_llama_cpp_python(llama: Any, ids: list[int], tokens: int) -> list[int]:
    llama.reset()
    return list(itertools.islice(llama.generate(ids, temp=0.0, top_k=1, repeat_penalty=1.0, reset=True), tokens))


def main() -> None:
    options = protocol.arguments(__doc__)
    from llama_cpp import Llama

    tokens = 32 if options.quick else 192
    record = {"tokens": tokens, "threads": cores(), "models": {}}
    for name in ("smollm2", "gemma3"):
        path = find_model(name)
        theirs = Llama(str(path), n_ctx=2048, n_threads=cores(), n_threads_batch=cores(), verbose=False)
        ours = likely.load(name, threads=cores(), context=2048)
        ids = ours.encode_prompt(PROMPT)
        # a text that ends early is made to go on, on our side only: that costs us a little, and them nothing
        settings = {"max_tokens": tokens, "temperature": 0.0}
        if len(ours.generate(PROMPT, **settings).token_ids) < tokens:
            settings["min_tokens"] = tokens
        run_ours = partial(by_likely, ours, settings)
        run_theirs = partial(by_llama_cpp_python, theirs, ids, tokens)
        same = sum(a == b for a, b in zip(run_theirs(), run_ours(), strict=False))
        timings = interleaved({"likely": run_ours, "llama-cpp-python": run_theirs}, rounds=options.rounds)
        ratio = speedup(timings["likely"], timings["llama-cpp-python"])
        print(f"{name}: {ratio} (theirs over ours in time: above 1 we are faster); {same}/{tokens} tokens alike")
        record["models"][name] = {
            "ratio": asdict(ratio),
            "likely_tokens_per_s": tokens / timings["likely"].median_s,
            "llama_cpp_python_tokens_per_s": tokens / timings["llama-cpp-python"].median_s,
            "tokens_alike": same,
            "end_forbidden_for_likely": "min_tokens" in settings,
        }
        ours.close()
        theirs.close()
    protocol.write("decode", record, quick=options.quick)


if __name__ == "__main__":
    main()
