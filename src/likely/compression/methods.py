"""Make a model smaller: one table of methods, one function that runs them, one object that holds what came out.

Every method is exact rewrites of the weights (`transforms`) and one rounding or pruning step that loses something.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np
import torch

from likely.compression.architecture import DecoderMap, open_module
from likely.compression.calibration_set import CalibrationSet, calibration_set
from likely.compression.export import folder_changes, gguf_changes, gguf_type
from likely.compression.mergequant.method import parse_merged, run_mergequant, unfold
from likely.compression.packed_folder import NO_FLOAT_INPUTS, merged_changes, packed_changes, quantization_config
from likely.compression.pruning.nirvana import PruningOptions, allocation_of, make_plan, nirvana_plan, prune
from likely.compression.pruning.plan import PruningPlan
from likely.compression.pruning.scores import magnitude
from likely.compression.quantisers.activations import exact_inputs, quantize_inputs
from likely.compression.quantisers.additive.fit import run_additive
from likely.compression.quantisers.additive.tensor import parse_additive
from likely.compression.quantisers.awq import run_awq
from likely.compression.quantisers.gptq import quantize_decoder
from likely.compression.quantisers.rewritten import parse_smoothed, round_decoder, run_rotation, run_smoothquant
from likely.compression.schemes import QuantScheme, parse_scheme
from likely.compression.settings import (
    Codes,
    MethodSettings,
    OtherInputs,
    Progress,
    RoundingStep,
    Scheme,
)
from likely.errors import CapabilityError, ModelError, check_choice
from likely.formats.families import quant_method
from likely.formats.folder import read_folder, read_json
from likely.formats.gguf import read_header
from likely.models.convert import check_places, check_room, rewrite
from likely.models.load import Loaded, load_local, resolve
from likely.models.plans import Changes
from likely.tokenizers.protocol import Tokenizer

if TYPE_CHECKING:
    from likely.runtimes.torch.runtime import TorchRuntime

DEFAULT_CALIBRATION = "c4_sample"
PRUNING_OPTIONS = tuple(PruningOptions.__annotations__)


@dataclass(frozen=True)
class CompressionMethod:
    """One way to compress.

    run         of a quantiser: changes the decoder's module in place and returns the matrices that became codes, by
                name of the weight
    plan        of a pruning method, which takes a sparsity instead of a scheme: what stays
    calibrates  whether it looks at a calibration set
    scheme      where none is asked for;  parse_scheme  what reads one
    rounds_inputs  whether it rounds activations itself; else that follows, where the scheme has bits for them
    unfold      what makes a plain model of (its module, the original): files then hold the rounded weights as floats
    options     of `MethodSettings` that it takes, beside scheme, calibration, sparsity and seed
    """

    about: str
    run: Callable[[DecoderMap, MethodSettings], Codes] | None = None
    calibrates: bool = True
    plan: Callable[[DecoderMap, MethodSettings], PruningPlan] | None = None
    scheme: str = "w4g64"
    parse_scheme: Callable[[Any], Scheme] = parse_scheme
    rounds_inputs: bool = False
    unfold: Callable[[torch.nn.Module, torch.nn.Module], torch.nn.Module] | None = None
    options: tuple[str, ...] = ()

    @property
    def prunes(self) -> bool:
        return self.plan is not None


def _nirvana(decoder: DecoderMap, settings: MethodSettings) -> PruningPlan:
    assert settings.calibration is not None and settings.sparsity is not None and settings.tokenizer is not None
    return nirvana_plan(
        decoder.module, settings.tokenizer, settings.calibration, settings.sparsity, progress=settings.progress,
        **settings.pruning,
    )  # fmt: skip


def _magnitude(decoder: DecoderMap, settings: MethodSettings) -> PruningPlan:
    assert settings.sparsity is not None
    for name in ("objective", "select_calibration"):
        if name in settings.pruning:
            raise ValueError(f"magnitude looks at no text: {name} is a setting of nirvana")
    return make_plan(decoder.module, magnitude(decoder.module), settings.sparsity, **allocation_of(settings.pruning))


METHODS: dict[str, CompressionMethod] = {
    "rtn": CompressionMethod(
        "round each weight to the nearest point of its group's grid", round_decoder, calibrates=False
    ),
    "gptq": CompressionMethod(
        "round column after column, later ones making up for the error on a calibration set",
        quantize_decoder,
        options=("act_order",),
    ),
    "awq": CompressionMethod("scale up the channels that activations use most, clip, then round to nearest", run_awq),
    "smoothquant": CompressionMethod(
        "move part of the activations' range into the weights, then round both",
        run_smoothquant,
        scheme="w8a8",
        parse_scheme=parse_smoothed,
        options=("alpha",),
    ),
    "rotation": CompressionMethod(
        "rotate residual stream and heads by Hadamard matrices, which spreads outliers, then round",
        run_rotation,
        options=("rounding", "act_order"),
    ),
    "mergequant": CompressionMethod(
        "static activation codes for each channel, folded into norms and weights",
        run_mergequant,
        scheme="w4a4",
        parse_scheme=parse_merged,
        rounds_inputs=True,
        unfold=unfold,
        options=("rounding", "other_inputs"),
    ),
    "additive": CompressionMethod(
        "groups of weights as sums of codewords, codebooks and codes fitted to a calibration set (2 and 3 bits)",
        run_additive,
        scheme="2x8",
        parse_scheme=parse_additive,
        options=("beam",),
    ),
    "nirvana": CompressionMethod("prune groups of heads and neurons of least effect on the logits", plan=_nirvana),
    "magnitude": CompressionMethod("prune those of the smallest weights", calibrates=False, plan=_magnitude),
}


@dataclass(eq=False)
class CompressedModel:
    """A model after compression.

    module     computes with the compressed weights as floats: it shows what is lost, never how fast the result runs
    quantized  codes of each matrix that was quantised, by name of the weight; none for a pruned model
    plan       what a pruned model kept; None for a quantised one
    settings   what made it: method, scheme, calibration set and its digest
    """

    module: torch.nn.Module
    tokenizer: Tokenizer
    quantized: Codes
    settings: dict[str, Any]
    source: Path
    backend: str = "fake"
    plan: PruningPlan | None = None
    _runtime: TorchRuntime | None = field(default=None, repr=False)

    @property
    def runtime(self) -> TorchRuntime:
        """For scoring, as `compare` does."""
        if self._runtime is None:
            from likely.runtimes.torch.runtime import TorchRuntime

            with exact_inputs(self.module):  # the runtime checks that slots give what the plain forward gives
                self._runtime = TorchRuntime(self.module)
        return self._runtime

    @property
    def nbytes(self) -> int:
        """Of all weights: codes packed with their scales, all else in 2 bytes a number; a tied head counts once."""
        others = sum(p.numel() for name, p in self.module.named_parameters() if name not in self.quantized)
        return sum(tensor.nbytes for tensor in self.quantized.values()) + 2 * others

    def export(
        self, target: str | Path, *, packed: bool = False, overwrite: bool = False, progress: Progress | None = None
    ) -> int:
        """Write a GGUF file (*.gguf) or a folder that transformers loads; returns its bytes.  See `export`.

        packed  a folder keeps the codes (`packed_folder`); else it holds floats.  A GGUF file has no place for
                additive codes and MergeQuant's, and holds floats, too
        """
        module, quantized, is_file = self.module, self.quantized, Path(target).suffix == ".gguf"
        plain = METHODS[self.settings["method"]].unfold
        if plain is not None and not (packed and not is_file):
            module, quantized = plain(module, open_module(self.source)[1]), {}
        changes_of: Callable[[torch.nn.Module, Codes, torch.nn.Module, str], Changes]
        if is_file:
            changes_of = gguf_changes
        elif plain is not None and packed:
            changes_of = merged_changes
        else:
            changes_of = packed_changes if packed and quantized else folder_changes
        changes = changes_of(module, quantized, open_module(self.source)[1], self.record())
        return rewrite(self.source, target, changes, overwrite=overwrite, progress=progress)

    def summary(self) -> str:
        """In a few words: the method, the bits of its codes, the weights that are left."""
        if not self.quantized:
            return f"{self.settings['method']}, {sum(p.numel() for p in self.module.parameters()) / 1e6:,.1f} M weights"
        bits = (
            8
            * sum(t.nbytes for t in self.quantized.values())
            / sum(math.prod(t.shape) for t in self.quantized.values())
        )
        return f"{self.settings['method']} {self.settings['scheme']}, {bits:.2f} bits per quantised weight"

    def record(self) -> str:
        """The settings as JSON: every export carries it."""
        return json.dumps(self.settings, sort_keys=True)


def compress(
    model: str | Path,
    *,
    method: str = "rtn",
    scheme: str | Scheme | None = None,
    sparsity: float | None = None,
    calibration: str | CalibrationSet | None = None,
    windows: int = 32,
    length: int | None = None,
    seed: int = 0,
    alpha: float = 0.5,
    act_order: bool = False,
    rounding: RoundingStep = "gptq",
    other_inputs: OtherInputs = "dynamic",
    beam: int = 1,
    data_dir: str | Path | None = None,
    progress: Progress | None = None,
    **pruning: Unpack[PruningOptions],
) -> CompressedModel:
    """Compress a known model, GGUF file or folder; the source is not touched.

    scheme       of a quantiser, as in `parse_scheme` (of additive: `parse_additive`); by default that of the method's
                 entry in `METHODS`
    sparsity     of a pruning method, 0 to 1; .2 by default
    calibration  a name or file of `calibration_set`, of which `windows` of `length` tokens are taken (512; for pruning
                  128), or a ready set
    alpha, act_order, rounding, other_inputs, beam  see `MethodSettings`
    pruning      gamma, allocation, recovery and the rest, as in `PruningOptions`: for pruning methods alone
    """
    check_choice("method", method, METHODS)
    entry = METHODS[method]
    if entry.prunes and scheme is not None:
        raise ValueError(f"{method} prunes: it takes a sparsity and no scheme")
    if not entry.prunes and sparsity is not None:
        raise ValueError(f"{method} rounds: it takes a scheme and no sparsity")
    for name in pruning:
        check_choice("setting", name, PRUNING_OPTIONS)
        if not entry.prunes:
            raise ValueError(f"{method} rounds: {name} is a setting of pruning")
    target = None if entry.prunes else entry.parse_scheme(scheme or entry.scheme)
    place, module, tokenizer = open_module(model)
    length = length or (128 if entry.prunes else 512)

    def drawn(count: int, seed: int | None) -> CalibrationSet:
        if isinstance(calibration, CalibrationSet):
            return calibration
        name = DEFAULT_CALIBRATION if calibration is None else calibration
        return calibration_set(name, tokenizer, windows=count, length=length, seed=seed, data_dir=data_dir)

    trials = pruning.get("select_calibration", 1)
    if trials < 1:
        raise ValueError(f"select_calibration must be at least 1, got {trials}")
    chosen = None
    if reads_text(method, target):  # several candidates come from all of the text, with a holdout of the same size
        chosen = drawn(windows, None) if trials == 1 else drawn(windows * (trials + 1), seed)
    settings = MethodSettings(
        scheme=target,
        calibration=chosen,
        sparsity=0.2 if sparsity is None and entry.prunes else sparsity,
        seed=seed,
        progress=progress,
        alpha=alpha,
        act_order=act_order,
        rounding=rounding,
        other_inputs=other_inputs,
        beam=beam,
        tokenizer=tokenizer,
        pruning=pruning,
    )
    text = drawn(pruning.get("recovery_windows", 256), seed) if pruning.get("recovery") else None
    return compress_module(module, tokenizer, method, settings, model=model, source=place, recovery_text=text)


def compress_module(
    module: torch.nn.Module, tokenizer: Tokenizer, method: str, settings: MethodSettings, *, model: str | Path,
    source: Path, recovery_text: CalibrationSet | None = None,
) -> CompressedModel:  # fmt: skip
    """Compress a module of transformers in place, all settings made.  model: its name in records; source: its file."""
    _check_options(method, settings)
    entry, decoder = METHODS[method], DecoderMap.of(module)
    plan = None
    quantized: Codes = {}
    if entry.plan is not None:
        plan = entry.plan(decoder, settings)
        prune(module, plan, recovery_text, seed=settings.seed, progress=settings.progress, **settings.pruning)
    else:
        assert entry.run is not None
        quantized = entry.run(decoder, settings)
        use_codes(module, quantized)
        if isinstance(settings.scheme, QuantScheme) and not entry.rounds_inputs:
            quantize_inputs(DecoderMap.of(module), settings.scheme, settings.calibration)
    return CompressedModel(
        module=module,
        tokenizer=tokenizer,
        quantized=quantized,
        settings=_record(model, method, settings, plan),
        source=source,
        plan=plan,
    )


def reads_text(method: str, scheme: Scheme | None) -> bool:
    """Whether the result depends on a calibration set: by the method, or by static scales of activations."""
    static = isinstance(scheme, QuantScheme) and scheme.activation == "tensor"
    return METHODS[method].calibrates or static


def check_target(
    model: str | Path, target: Path, *, method: str, scheme: str | Scheme | None, overwrite: bool,
    packed: bool = False, other_inputs: str | None = None,
) -> None:  # fmt: skip
    """Raise before the work begins on what `export` would refuse after it."""
    entry = METHODS[method]
    if packed and entry.unfold is not None and other_inputs == "float":
        raise CapabilityError(NO_FLOAT_INPUTS)
    rounding = None if entry.prunes else entry.parse_scheme(scheme or entry.scheme)
    integers = isinstance(rounding, QuantScheme) and entry.unfold is None
    is_file = target.suffix == ".gguf"
    if packed and (entry.prunes or (is_file and not integers)):
        raise CapabilityError(f"the file of a model made by {method} holds floats: leave out --packed")
    if isinstance(rounding, QuantScheme) and integers and is_file:
        gguf_type(rounding)
    elif isinstance(rounding, QuantScheme) and integers and packed:
        quantization_config(rounding)
    kind, place = resolve(model)
    if kind == "hub":
        return
    check_places(Path(place), target, "gguf" if is_file else "safetensors", overwrite)
    if codes := quant_method(read_json(Path(place) / "config.json")):
        raise ModelError(f"{place} holds codes already ({codes}): compress the model that it was made from")
    if rounding is None:
        return
    matrices = _matrices_in(Path(place))
    for width in sorted({shape[-1] for name, shape in matrices.items() if name.startswith(("blk.", "model.layers."))}):
        rounding.groups_of(width)
    least = 2 if packed else 16  # bits of a weight
    if is_file:  # matrices that are left alone keep the source's type
        least = 2
    elif isinstance(rounding, QuantScheme) and integers and packed:
        least = rounding.bits
    check_room(target, sum(map(math.prod, matrices.values())) * least // 8)


def _matrices_in(source: Path) -> dict[str, tuple[int, ...]]:
    """The shapes of its matrices."""
    if source.is_dir():
        shapes = {name: entry.shape for name, entry in read_folder(source).items()}
    else:
        shapes = {tensor.name: tensor.shape for tensor in read_header(source).tensors}
    return {name: shape for name, shape in shapes.items() if len(shape) > 1}


def use_codes(module: torch.nn.Module, quantized: Codes) -> None:
    """Let the module compute with the quantised weights."""
    parameters = dict(module.named_parameters())
    with torch.no_grad():
        for name, tensor in quantized.items():
            parameters[name].copy_(torch.from_numpy(np.ascontiguousarray(tensor.dequantize())))


def reference_of(model: str | Path) -> Loaded:
    """The uncompressed model in fp32, to compare with."""
    return load_local(model, runtime="torch", dtype="float32")


def _check_options(method: str, settings: MethodSettings) -> None:
    """ValueError for an option that was given and that the method does not take."""
    for option in ("alpha", "act_order", "rounding", "other_inputs", "beam"):
        default = MethodSettings.__dataclass_fields__[option].default
        if option not in METHODS[method].options and getattr(settings, option) != default:
            takers = ", ".join(name for name, entry in METHODS.items() if option in entry.options)
            raise ValueError(f"{method} takes no {option}, which is an option of {takers}")


def _record(
    model: str | Path, method: str, settings: MethodSettings, plan: PruningPlan | None = None
) -> dict[str, Any]:
    found: dict[str, Any] = {"method": method, "model": str(model), "likely": version("likely"), "seed": settings.seed}
    if settings.scheme is not None:
        found["scheme"] = settings.scheme.name
    found |= {option: getattr(settings, option) for option in METHODS[method].options}
    if settings.sparsity is not None:
        found["sparsity"] = settings.sparsity
    if plan is not None:
        found["pruning"] = settings.pruning | {
            "removed": plan.sparsity,
            "groups": [len(kept) for kept in plan.groups],
            "neurons": [len(kept) for kept in plan.neurons],
        }
    if settings.calibration is not None:
        chosen = settings.calibration
        found["calibration"] = {
            "name": chosen.name,
            "source": chosen.source,
            "windows": len(chosen),
            "length": int(chosen.input_ids.shape[1]),
            "digest": chosen.digest,
        }
    return found
