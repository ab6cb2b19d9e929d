"""A language model of proteins: sequences of a superfamily, the superfamily of a sequence, effects of mutations."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax

from likely.alignment.protein.format import CLOSE, SUPERFAMILY, ProteinFormat
from likely.decoding.loop import Loop
from likely.decoding.request import Finished, Request
from likely.decoding.run import run
from likely.decoding.sampling import Sampling
from likely.errors import DataError, nearest
from likely.guided import Guide, Vocabulary, make_form
from likely.io.whole_file import write_whole_file
from likely.models.load import load_local
from likely.runtimes.protocol import Runtime
from likely.scoring.likelihood import Item, score_items
from likely.tokenizers.protocol import Tokenizer, begin, decode

ABOUT = "protein.json"  # beside the weights: how proteins are written, and which stages made the model


@dataclass(frozen=True)
class GeneratedProtein:
    """One sequence that a model wrote.

    sequence   residues, the prefix that was given included
    finished   whether the model closed it with `>`; False: it was cut by max_residues
    logprob    log p(what was generated | prompt) of the model, nats, before temperature and constraint
    """

    sequence: str
    finished: bool
    logprob: float


@dataclass(eq=False)
class ProteinModel:
    """A model, how proteins are written for it, and which stages made it.

    record  what `stage1` or `stage2` say of the weights; {} for a model that was not trained here
    """

    runtime: Runtime
    tokenizer: Tokenizer
    format: ProteinFormat
    record: dict[str, Any]

    # --- files --------------------------------------------------------------------------------------------------------

    @classmethod
    def load(cls, folder: str | Path, *, runtime: str | None = None, threads: int | None = None) -> ProteinModel:
        """A model that `save` wrote; DataError for another folder."""
        try:
            about = json.loads((Path(folder) / ABOUT).read_text("utf-8"))
            settings, record = dict(about["format"]), dict(about["record"])
        except (OSError, ValueError, KeyError, TypeError):
            raise DataError(f"{folder}: no {ABOUT}, so this is no model of proteins: make one with stage1") from None
        loaded = load_local(str(folder), runtime=runtime, threads=threads)
        return cls(loaded.runtime, loaded.tokenizer, ProteinFormat(loaded.tokenizer, **settings), record)

    def save(self, folder: str | Path) -> None:
        """Weights, tokenizer and record in a folder that `likely.load` and transformers open too."""
        from likely.runtimes.torch.pretrained import quiet
        from likely.tokenizers.files import save_tokenizer
        from likely.tokenizers.huggingface import HFTokenizer
        from likely.training.policy import writing

        if not isinstance(self.tokenizer, HFTokenizer) or not hasattr(self.runtime, "module"):
            raise DataError("only a model on the torch runtime with a tokenizer.json can be saved")
        place = Path(folder)
        place.mkdir(parents=True, exist_ok=True)
        (place / ABOUT).unlink(missing_ok=True)
        with quiet(), writing(place):
            self.runtime.module.save_pretrained(str(place), safe_serialization=True)
        save_tokenizer(self.tokenizer, place, context_length=self.runtime.context_length)
        own = self.format
        settings = {"tokens": own.tokens, "alphabet": own.alphabet, "replacements": dict(own.replacements)}
        text = json.dumps({"format": settings, "record": self.record}, indent=1)
        write_whole_file(place / ABOUT, text.encode())  # last: it says that the rest is there

    # --- tasks --------------------------------------------------------------------------------------------------------

    def determine(self, sequences: Sequence[str], superfamilies: Sequence[str]) -> NDArray[np.float64]:
        """(N, K) log p(superfamily k | sequence, one of these superfamilies), by the likelihood of each one's text.

        The tokens of a name and its `>` are summed: no name is preferred for being short but by the model.  Rows are
        log-probabilities that add up to 1, which likely.calibration takes.
        """
        names = list(superfamilies)
        if not names or len(set(names)) < len(names):
            raise ValueError("superfamilies must be at least one, each named once")
        items = []
        for sequence in sequences:
            prompt = self.format.determine_prompt(sequence)
            start = len(begin(self.tokenizer, self.format.encode(prompt)))
            for name in names:
                ids = self.format.conditioned(prompt, self.format.superfamily_text(name))
                items.append(Item(tuple(ids), start))
        sums = np.array([sum(s.logprobs) for s in score_items(self.runtime, items)], np.float64)
        return log_softmax(sums.reshape(len(sequences), len(names)), axis=1)

    def probabilities(
        self, sequences: Sequence[str], superfamilies: Sequence[str] | None = None
    ) -> list[dict[str, float]]:
        """The same as probabilities by name, the most likely first; None: of all superfamilies that were learned."""
        names = list(superfamilies or self.record.get("superfamilies") or ())
        if not names:
            raise DataError("this model has learned no superfamilies (stage 2 does): name those to choose from")
        rows = np.exp(self.determine(sequences, names))
        return [dict(sorted(zip(names, row.tolist(), strict=True), key=lambda pair: -pair[1])) for row in rows]

    def name_superfamily(self, sequences: Sequence[str], superfamilies: Sequence[str]) -> list[str]:
        """What the model writes for each sequence, greedily, held to one of these superfamilies.

        For lists too long to score each name of, which `determine` does and which is exact.
        """
        form = make_form(choices=[f"{name}{CLOSE}" for name in superfamilies])
        guide = Guide(Vocabulary.of(self.tokenizer, self.runtime.vocab_size))
        requests = [
            Request(
                tuple(self.format.conditioned(self.format.determine_prompt(sequence), SUPERFAMILY)),
                Sampling(temperature=0.0), max_tokens=256, constraint=guide.constraint(form),
            )
            for sequence in sequences
        ]  # fmt: skip
        return [self._text(samples[0]).removesuffix(CLOSE) for samples in self._run(requests)]

    def generate(
        self, superfamily: str | None = None, *, n: int = 1, prefix: str = "", max_residues: int = 400,
        temperature: float = 0.2, top_k: int = 40, top_p: float = 0.9, repetition_penalty: float = 1.0, seed: int = 0,
        constrained: bool = True,
    ) -> list[GeneratedProtein]:  # fmt: skip
        """n sequences of a superfamily (None: of any), which begin with the residues of `prefix`.

        temperature, top_k, top_p  the paper's;  repetition_penalty: the paper's 1.2 makes real repeats unlikely
        constrained   only letters of the alphabet and `>` can be written, so that every text is a sequence.  False:
                      what stands before the first `>` is given back, whatever it is
        Of one seed the samples differ, and are the same in every run.
        """
        if repetition_penalty > 1:
            warnings.warn("a repetition penalty above 1 punishes the repeats that proteins really have", stacklevel=2)
        known = self.record.get("superfamilies")
        if constrained and superfamily is not None and known and superfamily not in known:
            raise DataError(
                f'the model has not learned a superfamily "{superfamily}"{nearest(superfamily, known)} '
                f"(it knows {len(known)}); constrained=False generates nevertheless"
            )
        request = Request(
            tuple(self.format.started(superfamily, prefix)),
            Sampling(
                temperature=temperature, top_k=top_k, top_p=top_p, repetition_penalty=repetition_penalty, seed=seed
            ),
            max_tokens=max_residues - len(prefix) + 2, samples=n, stop=() if constrained else (CLOSE,),
            constraint=self._residue_guide.constraint(self._residue_form) if constrained else None,
        )  # fmt: skip
        found = []
        for finish in self._run([request])[0]:
            text = self._text(finish)
            closed = text.endswith(CLOSE) if constrained else finish.reason == "stop"
            residues = text.split(CLOSE)[0][: max_residues - len(prefix)]
            found.append(GeneratedProtein(prefix + residues, closed, float(sum(finish.logprobs))))
        return found

    def sequence_logprobs(self, sequences: Sequence[str], superfamily: str | None = None) -> list[NDArray[np.float64]]:
        """log p of each residue and of the closing `>`, nats, given what stands before it.

        superfamily  the instruction to generate it stands in front; None: a bare protein, as in stage 1
        With tokens="bpe" there is one number per token instead.
        """
        items = []
        for sequence in sequences:
            start = len(self.format.started(superfamily))
            prompt = None if superfamily is None else self.format.generate_prompt(superfamily)
            ids = self.format.conditioned(prompt, self.format.sequence_text(sequence))
            items.append(Item(tuple(ids), min(start, len(ids) - 1)))
        return [np.array(s.logprobs, np.float64) for s in score_items(self.runtime, items)]

    def fitness(
        self, wild: str, mutants: Sequence[str], *, superfamily: str | None = None,
        reduction: Literal["sum", "mean"] = "sum",
    ) -> NDArray[np.float64]:  # fmt: skip
        """NLL(wild type) − NLL(mutant) of each mutant, nats; higher is fitter, and 0 is as the wild type.

        reduction  "sum": the log-odds;  "mean": of nats per token, as the paper's script has it
        """
        if reduction not in ("sum", "mean"):
            raise ValueError(f'reduction must be "sum" or "mean", got "{reduction}"')
        rows = self.sequence_logprobs([wild, *mutants], superfamily)
        values = np.array([row.sum() if reduction == "sum" else row.mean() for row in rows])
        return values[1:] - values[0]

    # --- parts --------------------------------------------------------------------------------------------------------

    @cached_property
    def _residue_form(self) -> Any:
        return make_form(regex=f"[{re.escape(self.format.alphabet)}]*{CLOSE}")

    @cached_property
    def _residue_guide(self) -> Guide:
        """With residue tokens, the vocabulary of constraints holds nothing but them, so that no others are written."""
        whole = Vocabulary.of(self.tokenizer, self.runtime.vocab_size)
        if self.format.tokens == "bpe":
            return Guide(whole)
        kept = set(self.format.letter_ids.values())
        tokens = tuple(text if i in kept else b"" for i, text in enumerate(whole.tokens))
        return Guide(Vocabulary(tokens, whole.end_ids, whole.eos_id, self._spell))

    def _spell(self, text: str) -> list[int]:
        return [self.format.letter_ids[letter] for letter in text]

    def _run(self, requests: Sequence[Request]) -> list[list[Finished]]:
        loop = Loop(self.runtime, self.tokenizer.token_bytes, self.tokenizer.end_ids)
        return [[e.finish for e in events if e.finish] for events in run(loop, requests)]

    def _text(self, finish: Finished) -> str:
        return decode(self.tokenizer, [t for t in finish.tokens if t not in self.tokenizer.end_ids])


def mutated(sequence: str, mutations: str) -> str:
    """The sequence with substitutions such as "K2R:L5V": residue, place from 1, new residue; DataError where it has
    another residue there."""
    letters = list(sequence)
    for mutation in mutations.split(":"):
        match = re.fullmatch(r"([A-Z])([0-9]{1,6})([A-Z])", mutation)
        if match is None:
            raise DataError(f'"{mutation}" is no substitution: write residue, place and new residue, such as K2R')
        old, place, new = match[1], int(match[2]), match[3]
        if not 1 <= place <= len(sequence) or sequence[place - 1] != old:
            has = f'"{sequence[place - 1]}"' if 1 <= place <= len(sequence) else f"nothing, it ends at {len(sequence)}"
            raise DataError(f"{mutation}: the sequence has {has} at place {place}")
        letters[place - 1] = new
    return "".join(letters)
