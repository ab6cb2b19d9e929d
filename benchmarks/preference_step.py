"""One step of DPO on one batch: here, and in trl's DPOTrainer; tokens per second and the same loss.

SmolLM2-135M with LoRA of rank 16 on all linear layers, the reference's log-probabilities known before (trl:
precompute_ref_log_probs), forwards and backwards; both read the very tensors of trl's collated batch.  A pair is a
prompt of P tokens and two answers of C tokens each; tokens are counted as trl computes them, 2 (P + C) a pair, for both.

  python benchmarks/preference_step.py             SmolLM2
  python benchmarks/preference_step.py --quick     a smoke run; its figures are not kept
"""

from __future__ import annotations

import resource
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import protocol
import torch

from likely.alignment.labellers import PreferencePair
from likely.alignment.methods import dpo, pair_batch_loss
from likely.alignment.scores import Completion, completion_scores
from likely.bench.timing import interleaved, speedup
from likely.models.load import Loaded, load_local
from likely.runtimes.machine import cores
from likely.tokenizers.files import save_tokenizer
from likely.training.policy import LoraSettings, Policy

MODEL, BETA = "smollm2", 0.1
SHAPES = ((64, 64), (256, 64), (64, 256))  # tokens of prompt and of each answer


def trainer_of(lm: Loaded, policy: Policy, folder: Path, batch: int, prompt: int, answer: int) -> Any:
    """trl's trainer of the same module, on random tokens."""
    import datasets
    from transformers import AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    save_tokenizer(lm.tokenizer, folder, context_length=2048)  # type: ignore[arg-type]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rng = np.random.default_rng(0)

    def text(n: int) -> str:
        return tokenizer.decode(rng.integers(300, lm.runtime.vocab_size - 8, n).tolist())

    rows = [{"prompt": text(prompt), "chosen": text(answer), "rejected": text(answer)} for _ in range(batch)]
    config = DPOConfig(
        output_dir=str(folder), report_to=[], use_cpu=True, per_device_train_batch_size=batch, beta=BETA,
        precompute_ref_log_probs=True, max_length=8 * (prompt + answer), save_strategy="no", bf16=False,
        gradient_checkpointing=False,
    )  # fmt: skip
    return DPOTrainer(
        policy.module, args=config, train_dataset=datasets.Dataset.from_list(rows), processing_class=tokenizer
    )


def pairs_of_batch(batch: dict[str, torch.Tensor]) -> list[PreferencePair]:
    """The pairs of a collated batch, from its ids and masks."""
    texts = []
    for ids, seen, scored in zip(batch["input_ids"], batch["attention_mask"], batch["completion_mask"], strict=True):
        tokens, mask = ids[seen.bool()].tolist(), scored[seen.bool()].bool().tolist()
        start = mask.index(True)
        texts.append(Completion(tuple(tokens[:start]), tuple(tokens[start:])))
    half = len(texts) // 2
    return [PreferencePair(a, b) for a, b in zip(texts[:half], texts[half:], strict=True)]


def measured(model: str, batch: int, prompt: int, answer: int, *, rounds: int) -> dict[str, Any]:
    lm = load_local(model, runtime="torch")
    with Policy(lm, LoraSettings()) as policy, tempfile.TemporaryDirectory() as folder:
        trainer = trainer_of(lm, policy, Path(folder), batch, prompt, answer)
        trainer.model.eval()
        collated = dict(next(iter(trainer.get_train_dataloader())))
        pairs = pairs_of_batch(collated)
        texts = [p.first for p in pairs] + [p.second for p in pairs]
        with policy.reference() as module:
            known = completion_scores(module, texts).sum
        collated["ref_chosen_logps"], collated["ref_rejected_logps"] = known.chunk(2)
        losses: dict[str, float] = {}

        def ours() -> None:
            loss = pair_batch_loss(dpo(beta=BETA), policy.module, pairs, known).loss / len(pairs)
            loss.backward()
            losses["likely"] = loss.item()

        def theirs() -> None:
            loss = trainer.compute_loss(trainer.model, dict(collated))
            loss.backward()
            losses["trl"] = loss.item()

        times = interleaved({"likely": ours, "trl": theirs}, rounds=rounds)
        ratio = speedup(times["likely"], times["trl"])
    lm.runtime.shutdown()
    tokens = sum(map(len, texts))
    row = {
        "pairs": batch, "prompt": prompt, "answer": answer, "tokens": tokens, "losses": losses,
        "tokens_per_second": {name: tokens / t.median_s for name, t in times.items()},
        "speedup": [ratio.median, ratio.low, ratio.high],
        "peak_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
    }  # fmt: skip
    print(f"{batch} pairs, prompt {prompt}, answers {answer}: {row['tokens_per_second']}, {ratio}", flush=True)
    return row


def main(argv: list[str] | None = None) -> None:
    options = protocol.arguments(__doc__.splitlines()[0], argv)
    shapes = ((8, 8),) if options.quick else SHAPES
    torch.set_num_threads(1 if options.quick else cores())
    rounds = 1 if options.quick else options.rounds
    rows = [measured(MODEL, 2, prompt, answer, rounds=rounds) for prompt, answer in shapes]
    record = {"model": MODEL, "threads": torch.get_num_threads(), "rounds": rounds, "rows": rows}
    protocol.write("preference_step", record, quick=options.quick)


if __name__ == "__main__":
    main()
