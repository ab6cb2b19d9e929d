"""A language model that is being trained, by LoRA or in all its weights, and the frozen reference it is compared with.

The reference of a policy with adapters is the same module with the adapters off; of one that goes on from an earlier
adapter (SFT, say) it is a frozen copy of that adapter, named "ref", not the bare model.
"""

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from likely.errors import CapabilityError, DataError, ModelError, needs
from likely.io.hashes import fingerprint
from likely.tokenizers.protocol import Tokenizer
from likely.training.lora import HasRuntime, trainable, with_adapters
from likely.training.processes import Processes, shard, whole

if TYPE_CHECKING:
    import torch
    from torch.nn import Parameter

LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
TRAINED, REFERENCE = "default", "ref"
ABOUT = "likely_adapter.json"  # beside peft's own files: which weights the adapter belongs to


@dataclass(frozen=True)
class LoraSettings:
    """Low-rank adapters (Hu et al. 2021, arXiv:2106.09685): W + (alpha / rank) · B A.

    targets        last names of the linear layers that get factors
    fully_trained  last names of modules that are trained in all their weights, such as embed_tokens; none that shares
                   its matrix with another, of which peft would train a copy
    trained_tokens  ids whose rows of the embedding (and of the output, where both are one) are trained; a model with
                   such an adapter is saved merged
    """

    rank: int = 16
    alpha: int = 32
    dropout: float = 0.0
    targets: tuple[str, ...] = LINEARS
    fully_trained: tuple[str, ...] = ()
    trained_tokens: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.rank < 1 or not self.alpha > 0:
            raise ValueError(f"rank and alpha must be > 0, got {self.rank} and {self.alpha}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1), got {self.dropout}")


class Policy:
    """A model on the torch runtime whose weights are trained.  Use it in a `with` block: afterwards the module is free
    of adapters again (full training changes it for good).

    lm       the model; its runtime samples from the policy as it is at the last `refresh`
    module   what is called and trained: peft's wrapper, or the module itself
    adapter  folder of the adapter it goes on from, None for a fresh one
    """

    def __init__(self, lm: HasRuntime | str | Path, lora: LoraSettings | None, *, adapter: str | Path | None = None,
                 seed: int = 0):  # fmt: skip
        """lora: None trains all weights; with `adapter` its settings are the adapter's own and `lora` is not read."""

        self.lm = trainable(lm)
        self.base: torch.nn.Module = self.lm.runtime.module
        self.base_revision: str = self.lm.runtime.revision
        self.lora, self.adapter, self._steps = lora, None if adapter is None else Path(adapter), 0
        self._asked = {name: p.requires_grad for name, p in self.base.named_parameters()}
        self._frozen: torch.nn.Module | None = None
        self.module: Any = self.base
        if self.adapter is not None:
            self.module = self._continued(self.adapter)
        elif lora is not None:
            self.module = self._wrapped(lora, seed)
        else:
            for parameter in self.base.parameters():
                parameter.requires_grad_(True)
        self.module.eval()

    @property
    def tokenizer(self) -> Tokenizer:
        return self.lm.tokenizer

    @property
    def device(self) -> torch.device:
        return next(self.base.parameters()).device

    @property
    def adapts(self) -> bool:
        """Whether adapters are trained, not all weights."""
        return self.module is not self.base

    @property
    def saves_adapter(self) -> bool:
        """Whether what was learned is an adapter that the model itself can take up."""
        return self.adapts and not (self.lora is not None and self.lora.trained_tokens)

    @property
    def reference_revision(self) -> str:
        """Names the reference's weights: the model's revision, and the adapter's it goes on from."""
        return self.base_revision + ("" if self.adapter is None else f"+{_weights_of(self.adapter)}")

    def parameters(self) -> list[Parameter]:
        """Those that are trained, in a fixed order."""
        return [p for p in self.module.parameters() if p.requires_grad]

    @contextlib.contextmanager
    def reference(self) -> Iterator[torch.nn.Module]:
        """The frozen reference, without gradients and dropout, within the block.

        Of full training it is a copy of the weights as they are when it is first asked for: ask before the first step.
        """
        import torch

        training = self.module.training
        self.module.eval()
        try:
            with torch.no_grad():
                if not self.adapts:
                    if self._frozen is None:
                        if self._steps:
                            raise ModelError("the weights were trained already: ask for the reference before that")
                        self._frozen = copy.deepcopy(self.base).requires_grad_(False)
                    yield self._frozen.eval()
                elif self.adapter is None:
                    with self.module.disable_adapter():
                        yield self.module
                else:
                    trained = self.parameters()
                    self.module.base_model.set_adapter(REFERENCE)
                    try:
                        yield self.module
                    finally:
                        self.module.base_model.set_adapter(TRAINED)
                        for parameter in self.module.parameters():
                            parameter.requires_grad_(False)
                        for parameter in trained:
                            parameter.requires_grad_(True)
        finally:
            self.module.train(training)

    def refresh(self) -> None:
        """The weights have changed: what the runtime keeps is invalid, samples are the new policy's from now."""
        self._steps += 1
        self.lm.runtime.refresh(f"{self.base_revision}+training-{self._steps}")

    @contextlib.contextmanager
    def sharded(self, processes: Processes) -> Iterator[None]:
        """Within the block `module` is a copy of which every process holds its share; the model itself has no weights.

        Afterwards it has what was learned, whole in every process.  An error within the block leaves it without.
        """
        if processes.size == 1:
            yield
            return
        plain = self.module
        self.module = copied = copy.deepcopy(plain)
        inner = copied.get_base_model() if plain is not self.base else copied
        for parameter in plain.parameters():
            parameter.data = parameter.new_empty(0)
        shard(copied, inner.get_decoder().layers)
        try:
            yield
            for parameter, part in zip(plain.parameters(), copied.parameters(), strict=True):
                parameter.data = whole(part.detach())
        finally:
            self.module = plain

    # --- to files -----------------------------------------------------------------------------------------------------

    def save_adapter(self, folder: str | Path, about: dict[str, Any] | None = None) -> None:
        """peft's own files, and beside them which weights the adapter belongs to."""
        if not self.saves_adapter:
            raise CapabilityError("weights of the model itself were trained, too: save the merged model")
        from likely.io.whole_file import write_whole_file

        place, base = Path(folder), str((about or {}).get("model", ""))
        self.module.peft_config[TRAINED].base_model_name_or_path = base
        with writing(place):
            self.module.save_pretrained(str(place), selected_adapters=[TRAINED], save_embedding_layers=False)
        (place / "README.md").unlink(missing_ok=True)  # peft's form of a model card, not filled in
        record = {**(about or {}), "base_revision": self.base_revision, "tokenizer": self.tokenizer.fingerprint}
        write_whole_file(place / ABOUT, json.dumps(record, indent=1).encode())  # last: it says that the rest is there

    def save_merged(self, folder: str | Path) -> None:
        """A folder with safetensors weights and tokenizer, which transformers and `likely.load` open."""
        from likely.runtimes.torch.pretrained import quiet
        from likely.tokenizers.files import save_tokenizer

        place = Path(folder)
        place.mkdir(parents=True, exist_ok=True)
        runtime = self.lm.runtime
        with self.merged() as module, quiet(), writing(place):
            module.save_pretrained(str(place), safe_serialization=True)
            save_tokenizer(self.tokenizer, place, context_length=runtime.context_length)  # type: ignore[arg-type]

    @contextlib.contextmanager
    def merged(self) -> Iterator[torch.nn.Module]:
        """The plain module with the adapter added to its weights; afterwards the policy is as before."""
        if not self.adapts:
            yield self.base
            return
        copied = copy.deepcopy(self.module)
        yield copied.merge_and_unload(adapter_names=[TRAINED])

    def close(self) -> None:
        """Take the adapters off; harmless when repeated."""
        if self.adapts:
            self.module.unload()
            self.module = self.base
        if hasattr(self.base, "peft_config"):
            del self.base.peft_config
        self.base.eval()
        for name, parameter in self.base.named_parameters():
            parameter.requires_grad_(self._asked.get(name, parameter.requires_grad))
        self.lm.runtime.refresh(self.base_revision if self.lora is not None or self.adapter is not None else None)

    def __enter__(self) -> Policy:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- adapters -----------------------------------------------------------------------------------------------------

    def _wrapped(self, lora: LoraSettings, seed: int) -> Any:
        check_untied(self.base, lora.fully_trained)
        if not hasattr(self.base, "prepare_inputs_for_generation"):  # peft calls it
            raise CapabilityError(
                f"adapters are for models of transformers; {type(self.base).__name__} is trained in all its weights: "
                f"--full, or lora=None"
            )
        return with_adapters(
            self.base, rank=lora.rank, alpha=lora.alpha, dropout=lora.dropout, targets=lora.targets, seed=seed,
            whole_modules=lora.fully_trained, tokens=lora.trained_tokens,
        )  # fmt: skip

    def _continued(self, folder: Path) -> Any:
        """The adapter of a folder twice: to be trained, and frozen as the reference."""
        about = adapter_record(folder)
        if about["base_revision"] != self.base_revision:
            raise ModelError(
                f"{folder}: this adapter was trained on other weights (revision {about['base_revision']}, this model's "
                f"is {self.base_revision}): load {about.get('model') or 'the model it was trained on'}"
            )
        with needs("peft", "train"):
            from peft import PeftModel
        wrapped = PeftModel.from_pretrained(self.base, str(folder), adapter_name=TRAINED, is_trainable=True)
        wrapped.load_adapter(str(folder), adapter_name=REFERENCE, is_trainable=False)
        wrapped.base_model.set_adapter(TRAINED)
        for name, parameter in wrapped.named_parameters():
            parameter.requires_grad_(f".{TRAINED}." in name)
        return wrapped

    def recipe(self) -> dict[str, Any]:
        """What the policy's numbers depend on, as JSON."""
        return {
            "reference": self.reference_revision, "adapter": self.adapter is not None,
            "lora": None if self.lora is None or self.adapter is not None else asdict(self.lora),
        }  # fmt: skip


@contextlib.contextmanager
def writing(place: Path) -> Iterator[None]:
    """DataError, in one line, where a library cannot write its files: a full disk, say."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:
        raise DataError(f"cannot write to {place}: {error}") from None


def check_untied(module: torch.nn.Module, names: Sequence[str]) -> None:
    """ModelError where a module of these last names shares a parameter with another one."""
    owners: dict[int, set[str]] = {}
    for name, part in module.named_modules():
        for parameter in part._parameters.values():
            if parameter is not None:
                owners.setdefault(id(parameter), set()).add(name.split(".")[-1])
    for shared in owners.values():
        if len(shared) > 1 and shared & set(names):
            raise ModelError(
                f"{' and '.join(sorted(shared))} are one matrix in this model, and peft would train a copy of one of "
                f"them: leave it out of fully_trained, or train all weights (lora=None)"
            )


def adapter_record(folder: str | Path) -> dict[str, Any]:
    """What `Policy.save_adapter` wrote of an adapter; DataError where none was finished."""
    place = Path(folder)
    try:
        found = json.loads((place / ABOUT).read_text("utf-8"))
        if not isinstance(found.get("base_revision"), str) or not (place / "adapter_model.safetensors").is_file():
            raise ValueError("it is not whole")
    except (OSError, ValueError, AttributeError) as error:
        raise DataError(f"{place}: no adapter that was trained here ({error})") from None
    return found


def _weights_of(folder: Path) -> str:
    return fingerprint((folder / "adapter_model.safetensors").read_bytes())
