"""Plain greedy decoding: likely (log-probabilities on) against llama-cpp-python's own generator, same file, same threads."""

from __future__ import annotations

from dataclasses import asdict

import protocol

import likely
from likely.measure import cores, interleaved, speedup
from likely.models.catalog import find_model

PROMPT = "The history of the town goes back to the twelfth century, when monks built a small abbey beside the river."


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
        ends = tuple(ours.tokenizer.end_ids)
        bias = {end: float("-inf") for end in ends}

        def run_theirs(llama: Llama = theirs, ids: list[int] = ids) -> list[int]:
            llama.reset()
            out = []
            for token in llama.generate(ids, temp=0.0, top_k=1, repeat_penalty=1.0, reset=True):
                out.append(token)
                if len(out) == tokens:
                    break
            return out

        def run_ours(lm: likely.Model = ours) -> list[int]:
            return lm.generate(PROMPT, max_tokens=tokens, temperature=0.0, **KEEP_GOING).token_ids

        KEEP_GOING: dict = {}
        got = run_ours()
        if len(got) < tokens:  # an end token came early: forbid it on our side only, which costs us, not them
            KEEP_GOING = {"min_tokens": tokens}
            got = run_ours()
        same = sum(a == b for a, b in zip(run_theirs(), got, strict=False))
        timings = interleaved({"likely": run_ours, "llama-cpp-python": run_theirs}, rounds=options.rounds)
        ratio = speedup(timings["likely"], timings["llama-cpp-python"])
        print(
            f"{name}: {ratio} (ours over theirs, above 1 is faster); {same}/{tokens} tokens alike; min_tokens {KEEP_GOING}"
        )
        record["models"][name] = {
            "ratio": asdict(ratio),
            "likely_tokens_per_s": tokens / timings["likely"].median_s,
            "llama_cpp_python_tokens_per_s": tokens / timings["llama-cpp-python"].median_s,
            "tokens_alike": same,
            "end_forbidden": bool(bias and KEEP_GOING),
        }
        ours.close()
        theirs.close()
    protocol.write("decode", record, quick=options.quick)


if __name__ == "__main__":
    main()
