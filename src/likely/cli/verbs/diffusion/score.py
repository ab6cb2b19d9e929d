"""likely diffusion score: a lower bound of the log-probability of given answers."""

from __future__ import annotations

from typing import Annotated

import typer

from likely.cli import flags, options
from likely.cli.printing import print_json, print_table


def score(
    model: Annotated[str, typer.Option("--model", "-m", help="Folder, GGUF file or hub id of a diffusion model.")],
    prompt: Annotated[str, typer.Option("--prompt", help="The prompt.")],
    answer: Annotated[list[str], typer.Option("--answer", help="An answer to score (repeatable).")],
    samples: Annotated[int, typer.Option("--samples", min=2, help="Masks drawn per answer.")] = 128,
    dtype: flags.DtypeOption = None,
    threads: flags.ThreadsOption = None,
    as_json: flags.JsonOption = False,
) -> None:
    """A lower bound of log p(answer | prompt) in nats, with its standard error.

    Examples:

      likely diffusion score -m addition --prompt "345+678=" --answer "5+8+0=13,4+7+1=12,3+6+1=10. The answer is 1023"

      likely diffusion score -m sudoku --prompt "1..43.1.2....32." --answer 1234341221434321 --samples 512 --json
    """
    from likely.training.diffusion.tiny import check_prompt

    check_prompt(model, prompt)
    with flags.ModelFlags(model, dtype=dtype, threads=threads).open_diffusion() as lm:
        lm.with_decoding(score_samples=samples)
        scored = lm.score(prompt, answer)
        if as_json:
            print_json({**options.origin(lm), "prompt": prompt, "answers": [s.to_dict() for s in scored]})
            return
    rows = [
        (repr(s.text), f"{s.sequence_logprob:.4f}", "" if s.standard_error is None else f"{s.standard_error:.4f}",
         "" if s.mean_logprob is None else f"{s.mean_logprob:.4f}", len(s.tokens))
        for s in scored
    ]  # fmt: skip
    print_table(("answer", "log p >=", "± (s.e.)", "mean", "tokens"), rows)
