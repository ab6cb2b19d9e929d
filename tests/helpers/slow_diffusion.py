"""Static decoding of one row, written out plainly: what every fast way must equal."""

from __future__ import annotations

import numpy as np

from likely.decoding.sampling import gumbel, noise_of, stream_key, uniform_bits


def slow_static(predictor, prompt, *, length, block_length, steps, proposal="probability", temperature=0.0, seed=0):
    """(ids of the answer, step of each position, calls)."""
    mask, vocab, prompt = predictor.mask_id, predictor.vocab_size, list(prompt)
    answer, order, calls, committed = [mask] * length, [-1] * length, 0, 0
    noise, per_block = noise_of(seed, prompt), steps // (length // block_length)
    for begin in range(0, length, block_length):
        each, more = divmod(block_length, per_block)
        for step in range(per_block):
            here = [i for i in range(begin, begin + block_length) if answer[i] == mask]
            if not here:
                break
            logits = np.array(predictor.logits(np.array([prompt + answer]))[0, len(prompt) :], np.float64)
            logits[:, mask] = -np.inf
            calls += 1
            found = []
            for i in here:
                row = logits[i]
                p = np.exp(row - row.max()) / np.exp(row - row.max()).sum()
                drawn = row
                if temperature:
                    ids = i * vocab + np.arange(vocab)
                    drawn = row / temperature + gumbel(noise, committed, 0, ids)
                token = int(np.argmax(drawn))
                best = np.sort(p)[::-1]
                confidence = {
                    "probability": p[token],
                    "margin": best[0] - best[1],
                    "entropy": sum(x * np.log(x) for x in p if x > 0),
                    "random": uniform_bits(stream_key(noise, committed, 1), np.array([i]))[0] / 2**32,
                    "left_to_right": -i,
                }[proposal]
                found.append((-confidence, i, token))
            for _, i, token in sorted(found)[: each + (step < more)]:
                answer[i], order[i] = token, calls - 1
            committed = sum(a != mask for a in answer)
    return answer, order, calls
