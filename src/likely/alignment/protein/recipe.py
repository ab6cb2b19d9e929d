"""The two stages that teach a general model proteins: continued training on sequences, then both tasks.

Each stage trains low-rank factors, adds them to the weights and notes which weights it began with and which it left, so
that stage 2 cannot begin with the wrong ones.  torch and peft.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from likely.alignment.protein.format import RESIDUES, ProteinFormat, TokenKind
from likely.alignment.protein.model import ProteinModel
from likely.alignment.protein.rows import ProteinRow, with_superfamily
from likely.alignment.sft import MaskedText, sft_loss
from likely.errors import DataError, ModelError
from likely.io.hashes import fingerprint
from likely.scoring.likelihood import Item
from likely.training.fit import TrainingSettings, fit
from likely.training.lora import HasRuntime, add_factors, learned_factors, trainable
from likely.training.policy import LoraSettings, Policy

EMBEDDINGS = ("embed_tokens", "lm_head")


@dataclass(frozen=True)
class StageSettings:
    """How one stage trains: AdamW, the rate rises over `warmup` of the steps and falls to 0 as a cosine.

    epochs   passes over the rows, each in a new order;  batch: rows (blocks, where they are joined) of one step
    piece    rows whose graphs are in memory together; it changes time and memory, not the numbers
    longest  tokens of a row; longer ones are left out and counted, never cut: a cut sequence teaches not to close it
    block    joins the documents of stage 1 and cuts blocks of that many tokens, as the paper does (2048); None: one
             protein a row
    """

    epochs: float = 1.0
    batch: int = 16
    piece: int = 16
    lr: float = 5e-5
    warmup: float = 0.05
    weight_decay: float = 0.01
    longest: int = 512
    block: int | None = None
    clip: float = 1.0
    seed: int = 0

    def training(self, rows: int) -> TrainingSettings:
        return TrainingSettings(
            steps=max(1, math.ceil(self.epochs * rows / self.batch)), batch=self.batch, piece=self.piece, lr=self.lr,
            warmup=self.warmup, decay="cosine", clip=self.clip, weight_decay=self.weight_decay, dropout=True,
            seed=self.seed,
        )  # fmt: skip


STAGE1_LORA = LoraSettings(rank=128, alpha=256, dropout=0.05, fully_trained=EMBEDDINGS)
STAGE2_LORA = LoraSettings(rank=64, alpha=128, dropout=0.05)


def stage1(
    lm: HasRuntime | str | Path,
    sequences: Sequence[str],
    lora: LoraSettings | None = STAGE1_LORA,
    settings: StageSettings = StageSettings(),
    *,
    tokens: TokenKind = "residue",
    alphabet: str = RESIDUES,
    checkpoints: Path | None = None,
    progress: Callable[[int, float], None] | None = None,
) -> ProteinModel:
    """Continued training of a model on sequences `Seq=<MKRVL>`; the model's own weights change.

    lm     on the torch runtime, or a name or file to load there
    lora   None trains all weights
    checkpoints  folder of its own for this stage: a run that was stopped goes on from there
    Embeddings that are tied to the head stay one matrix.  Lv et al. 2024, arXiv:2402.16445, section 3.2.
    """
    model = trainable(lm)
    form = ProteinFormat(model.tokenizer, tokens=tokens, alphabet=alphabet)
    items, left_out = _within([form.document(s) for s in sequences], settings.longest, model)
    if settings.block is not None:
        items = _joined(items, settings.block)
    bare = ProteinModel(model.runtime, model.tokenizer, form, {})
    return _learn(bare, items, lora, settings, checkpoints, progress, {
        "stage": 1, "sequences": len(sequences) - left_out, "left_out": left_out,
        "data": fingerprint(list(sequences)),
    })  # fmt: skip


def stage2(
    model: ProteinModel,
    rows: Sequence[ProteinRow],
    lora: LoraSettings | None = STAGE2_LORA,
    settings: StageSettings = StageSettings(epochs=2.0, warmup=0.03, weight_decay=0.0),
    *,
    tasks: Sequence[Literal["generate", "determine"]] = ("generate", "determine"),
    any_base: bool = False,
    checkpoints: Path | None = None,
    progress: Callable[[int, float], None] | None = None,
) -> ProteinModel:
    """Instruction tuning: a sequence of a superfamily, and the superfamily of a sequence, both from every row.

    any_base  also on weights that stage 1 did not write;  checkpoints: as in `stage1`, another folder
    The loss is of the answers and their end tokens alone.  Lv et al. 2024, arXiv:2402.16445, section 3.3.
    """
    written, found = model.record.get("weights"), parameters_digest(trainable(model).runtime.module)
    if not any_base and (model.record.get("stage") != 1 or written != found):
        was = f"stage 1 wrote {written}, this model has {found}" if written else "it has no record of it"
        raise ModelError(f"stage 2 begins with the weights that stage 1 wrote ({was}): run stage1, or any_base=True")
    if not tasks or set(tasks) - {"generate", "determine"}:
        raise ValueError(f'tasks must be "generate", "determine" or both, got {list(tasks)}')
    form, chosen = model.format, with_superfamily(rows, model.format.superfamily_text)
    items = [form.generate_item(r.superfamily, r.sequence) for r in chosen if "generate" in tasks]
    items += [form.determine_item(r.sequence, r.superfamily) for r in chosen if "determine" in tasks]
    items, left_out = _within(items, settings.longest, model)
    names = sorted({r.superfamily for r in chosen})
    return _learn(model, items, lora, settings, checkpoints, progress, {
        "stage": 2, "rows": len(items), "left_out": left_out, "tasks": list(tasks), "superfamilies": names,
        "data": fingerprint([(r.superfamily, r.sequence) for r in chosen]), "before": model.record,
    })  # fmt: skip


def _learn(
    model: ProteinModel, items: Sequence[Item], lora: LoraSettings | None, settings: StageSettings,
    checkpoints: Path | None, progress: Callable[[int, float], None] | None, about: dict[str, Any],
) -> ProteinModel:  # fmt: skip
    """Train on the items, add what was learned to the weights, and name them anew."""
    own, base = settings.training(len(items)), parameters_digest(trainable(model).runtime.module)
    # peft's modules_to_save would train a copy of a tied matrix and leave the other: it is trained in place
    factored = None if lora is None else replace(lora, fully_trained=())
    with Policy(model, factored, seed=settings.seed) as policy:
        module = policy.base
        for matrix in whole_matrices(module, lora.fully_trained if lora else ()):
            matrix.requires_grad_(True)
        trained = sum(p.numel() for p in policy.parameters())

        recipe = {"data": about["data"], "fully_trained": list(lora.fully_trained) if lora else []}

        texts = [
            MaskedText(item.tokens, tuple(place >= item.start for place in range(len(item.tokens)))) for item in items
        ]
        losses = fit(
            policy, texts, sft_loss(policy.module), own, weight=lambda text: text.targets, length=len,
            folder=checkpoints, recipe=recipe, progress=progress,
        )  # fmt: skip
        factors = learned_factors(policy.module) if lora is not None else {}
    if lora is not None:
        add_factors(module, factors, lora.alpha / lora.rank)
    model.runtime.refresh()  # type: ignore[attr-defined]  # a digest of the new weights
    record = {
        **about, "base": base, "weights": parameters_digest(module), "steps": own.steps, "losses": losses,
        "trained_share": trained / sum(p.numel() for p in module.parameters()),
        "lora": None if lora is None else asdict(lora), "settings": asdict(settings),
    }  # fmt: skip
    return ProteinModel(model.runtime, model.tokenizer, model.format, json.loads(json.dumps(record)))


def parameters_digest(module: torch.nn.Module) -> str:
    """16 hex digits of all weights, which are the same after the model was written to a folder and loaded again."""
    digest = hashlib.sha256()
    for name, parameter in sorted(module.named_parameters()):
        digest.update(name.encode())
        digest.update(parameter.detach().float().cpu().contiguous().numpy().data)
    return digest.hexdigest()[:16]


def whole_matrices(module: torch.nn.Module, names: Sequence[str]) -> list[torch.nn.Parameter]:
    """Parameters of the modules with these last names, each once where two share it; ModelError where none has one."""
    found: dict[int, torch.nn.Parameter] = {}
    for name in names:
        own = [m for full, m in module.named_modules() if full.split(".")[-1] == name]
        if not own:
            raise ModelError(f'the model has no module "{name}": leave it out of fully_trained')
        found |= {id(p): p for m in own for p in m.parameters()}
    return list(found.values())


def _within(items: Sequence[Item], longest: int, model: HasRuntime) -> tuple[list[Item], int]:
    most = min(longest, model.runtime.context_length)
    kept = [item for item in items if len(item.tokens) <= most]
    if not kept:
        raise DataError(f"none of the {len(items)} rows has at most {most} tokens, so nothing can be learned")
    return kept, len(items) - len(kept)


def _joined(items: Sequence[Item], block: int) -> list[Item]:
    """Documents behind each other, cut into blocks; the last one may be shorter."""
    tokens = [token for item in items for token in item.tokens]
    pieces = [tokens[i : i + block] for i in range(0, len(tokens), block)]
    return [Item(tuple(piece), 1) for piece in pieces if len(piece) > 1]
