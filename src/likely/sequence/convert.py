"""Checkpoints of Mamba, Mamba-2 and Falcon-H1 as `SequenceLM`, and back.

Sources are folders of transformers, or of the original state-spaces/mamba files (as safetensors).  All weights become
float32, because factors are multiplied into them.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging

from likely.errors import CapabilityError, ModelError
from likely.formats.folder import read_folder, read_json
from likely.io.whole_file import partial_beside
from likely.sequence.backbone import SequenceConfig, SequenceLM
from likely.sequence.families import FAMILIES, family_of

BESIDE = (
    "tokenizer*",
    "special_tokens_map.json",
    "generation_config.json",
    "vocab.*",
    "merges.txt",
    "added_tokens.json",
    "*.jinja",
)
ENDS = ("bos_token_id", "eos_token_id", "pad_token_id")
CHECKED_TOKENS = 64
LARGEST_DIFFERENCE = 1e-3  # of logits, as a part of the largest


@dataclass(frozen=True)
class SequenceConversion:
    """What was written.  largest_difference: of logits on random tokens, over the largest; None: not compared."""

    source: Path
    target: Path
    model_type: str
    parameters: int
    largest_difference: float | None

    def __str__(self) -> str:
        checked = "not compared"
        if self.largest_difference is not None:
            checked = f"logits differ by {self.largest_difference:.1e} of the largest at most"
        return f"{self.target}: {self.parameters / 1e6:.1f}M parameters from {self.model_type}; {checked}"


def load_sequence_lm(folder: str | Path) -> SequenceLM:
    """The model of a folder: one of likely's own, or a checkpoint that is converted in memory.

    ModelError for a folder that cannot be read, CapabilityError for a model that its layers do not compute.
    """
    folder = Path(folder)
    config = _read_config(folder)
    if config.get("model_type") == SequenceConfig.model_type:
        return _own(folder)
    family = family_of(config, folder)
    return _filled(_with_ends(family.config(config), config), family.weights(config, _weights(folder)), folder)


def from_transformers(module: PreTrainedModel) -> SequenceLM:
    """A Mamba, Mamba-2 or Falcon-H1 model of transformers as a `SequenceLM`, in float32; nothing is shared."""
    config = module.config.to_dict()
    family = family_of(config, type(module).__name__)
    weights = {name: t.detach() for name, t in module.state_dict().items()}
    return _filled(_with_ends(family.config(config), config), family.weights(config, weights), type(module).__name__)


def to_transformers(model: SequenceLM) -> PreTrainedModel:
    """The model that transformers has for these layers; `padded_ids` are ids like any other there.

    CapabilityError where it has none: other mixers or hybrids.
    """
    family = next((f for f in FAMILIES.values() if f.fits(model.config)), None)
    if family is None:
        raise CapabilityError(
            f"transformers has no model of the layers {', '.join(sorted(set(model.config.layers or ())))} as they are "
            f"set here; {', '.join(FAMILIES)} can be written back"
        )
    config = family.back(model.config)
    for name in ENDS:
        setattr(config, name, getattr(model.config, name))
    found: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    weights = {family.their_name(name): t for name, t in model.state_dict().items()}
    missing, unknown = found.load_state_dict(weights, strict=False)
    if missing or unknown:
        raise ModelError(f"weights do not fit transformers' {config.model_type}: {[*missing, *unknown][0]}")
    return found.eval()


def convert_folder(
    source: str | Path, target: str | Path, *, back: bool = False, verify: bool = True
) -> SequenceConversion:
    """Write the model of folder `source` as a folder of likely (back: of transformers), tokenizer files included.

    verify  compare the logits of both on random tokens, and write nothing where they differ
    """
    source, target = Path(source), Path(target)
    if not (source / "config.json").is_file():
        raise ModelError(f"{source} holds no config.json, so it is no model folder")
    if target.exists():
        raise ModelError(f"{target} exists already: choose another folder, or remove it first")
    if not target.resolve().parent.is_dir():
        raise ModelError(f"the folder {target.resolve().parent} does not exist")
    config = _read_config(source)
    own = config.get("model_type") == SequenceConfig.model_type
    if own != back:
        what = "a folder of likely already" if own else "no folder of likely, which back=True starts from"
        raise ModelError(f"{source} is {what}")
    model = load_sequence_lm(source)
    written: PreTrainedModel = to_transformers(model) if back else model
    difference = None
    if verify:
        difference = _difference(written, model if back else _reference(source, config, model))
        if not difference <= LARGEST_DIFFERENCE:
            raise ModelError(
                f"{source}: converted logits differ by {difference:.1e} of the largest; nothing was written. Please "
                f"report this model"
            )
    with partial_beside(target.resolve(), folder=True) as partial:
        with _quiet():
            written.save_pretrained(partial)
        for pattern in BESIDE:
            for file in source.glob(pattern):
                shutil.copyfile(file, partial / file.name)
        partial.rename(target)
    parameters = sum(p.numel() for p in model.parameters())
    return SequenceConversion(source, target, str(config.get("model_type", "mamba_ssm")), parameters, difference)


def _own(folder: Path) -> SequenceLM:
    try:
        config = SequenceConfig.from_dict(_read_config(folder))
        return _filled(config, iter(_weights(folder).items()), folder)
    except (ValueError, TypeError) as error:
        raise ModelError(f"{folder}: config.json does not describe a model ({str(error).splitlines()[0]})") from None


def _read_config(folder: Path) -> dict[str, Any]:
    """transformers writes infinity as {"__float__": "Infinity"}."""

    def decoded(value: Any) -> Any:
        if isinstance(value, dict):
            return (
                float(value["__float__"])
                if value.keys() == {"__float__"}
                else {k: decoded(v) for k, v in value.items()}
            )
        return list(map(decoded, value)) if isinstance(value, list) else value

    found: dict[str, Any] = decoded(read_json(folder / "config.json"))
    return found


def _weights(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder's safetensors files."""
    try:
        files = sorted({entry.file for entry in read_folder(folder).values()})
    except ModelError:
        if pickles := sorted(file.name for file in folder.glob("*.bin")):
            raise ModelError(
                f"{folder}: the weights are in {pickles[0]}, a pickle, which can run code when it is opened; get the "
                f"model as .safetensors"
            ) from None
        raise
    found: dict[str, Tensor] = {}
    for file in files:
        try:
            with safe_open(file, framework="pt") as tensors:
                found |= {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise ModelError(f"{file}: cannot be read ({str(error).splitlines()[0]})") from None
    return found


def _filled(config: SequenceConfig, weights: Iterator[tuple[str, Tensor]], where: object) -> SequenceLM:
    model = SequenceLM(config)
    given = dict(weights)
    if config.tie_word_embeddings:
        given.setdefault("lm_head.weight", given.get("backbone.embed_tokens.weight", torch.empty(0)))
    try:
        model.load_state_dict(given, strict=True)
    except RuntimeError as error:
        lines = " ".join(line.strip() for line in str(error).splitlines()[1:3])
        raise ModelError(f"{where}: the weights do not fit its configuration ({lines})") from None
    return model.eval()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """transformers' progress bars stay off the terminal."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _with_ends(config: SequenceConfig, theirs: Mapping[str, Any]) -> SequenceConfig:
    for name in ENDS:
        setattr(config, name, theirs.get(name))
    return config


def _reference(folder: Path, config: Mapping[str, Any], model: SequenceLM) -> PreTrainedModel:
    """What transformers makes of the source, or of the converted weights where it does not read the source's layout."""
    if "model_type" not in config:
        return to_transformers(model)
    with _quiet():
        found: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            str(folder), dtype=torch.float32, use_safetensors=True, trust_remote_code=False, local_files_only=True
        )
    return found.eval()


@torch.inference_mode()
def _difference(one: PreTrainedModel, other: PreTrainedModel) -> float:
    """The largest difference of logits over the largest logit, on random tokens."""
    vocab = one.config.vocab_size - max(getattr(m.config, "padded_ids", 0) for m in (one, other))
    tokens = torch.randint(vocab, (1, CHECKED_TOKENS), generator=torch.Generator().manual_seed(0))
    rows = [model(tokens, use_cache=False).logits[..., :vocab].float() for model in (one, other)]
    return float((rows[0] - rows[1]).abs().max() / rows[1].abs().max())
