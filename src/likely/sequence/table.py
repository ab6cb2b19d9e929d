"""All layers by name: where each is defined, and what kind it is.  Reading the table imports none of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Literal

from likely.errors import check_choice, missing_extra

if TYPE_CHECKING:
    from likely.sequence.mixer import SequenceMixer, StateKind

LAYERS = "likely.sequence.layers"


@dataclass(frozen=True)
class MixerEntry:
    """One layer of the table.

    place       "module:class";  paradigm: as the survey Mamba-360 sorts them, or "attention"
    lti         mixes along time by a fixed convolution, gates aside
    selective   what is kept of the past depends on the token
    training    how all tokens run at once: "scan", "chunk", "fft" or "attention"
    complexity  of a sequence of length L in training;  step: of one more token in generation
    """

    place: str
    paradigm: Literal["structural", "recurrent", "gating", "attention", "hybrid"]
    lti: bool
    selective: bool
    training: Literal["scan", "chunk", "fft", "attention"]
    complexity: str
    state_kind: StateKind
    about: str
    step: str = "O(1)"


MIXERS: dict[str, MixerEntry] = {
    "attention": MixerEntry(
        f"{LAYERS}.attention:SoftmaxAttention", "attention", False, True, "attention", "O(L²)", "kv",
        "softmax attention with rotary positions and grouped keys", "O(L)",
    ),
    "deltanet": MixerEntry(
        f"{LAYERS}.delta:DeltaNet", "recurrent", False, True, "chunk", "O(L)", "recurrent",
        "overwrites what a key recalls (Yang 2024)",
    ),
    "dss": MixerEntry(
        f"{LAYERS}.diagonal:DSS", "structural", True, False, "fft", "O(L log L)", "recurrent",
        "diagonal state space, softmax over lags (Gupta 2022)",
    ),
    "ema": MixerEntry(
        f"{LAYERS}.ema:EMA", "gating", True, False, "fft", "O(L log L)", "recurrent",
        "damped moving averages (Mega, Ma 2022)",
    ),
    "gated_deltanet": MixerEntry(
        f"{LAYERS}.delta:GatedDeltaNet", "gating", False, True, "chunk", "O(L)", "recurrent",
        "delta rule on a memory that decays (Yang 2024)",
    ),
    "gla": MixerEntry(
        f"{LAYERS}.linear_attention:GatedLinearAttention", "gating", False, True, "chunk", "O(L)", "recurrent",
        "linear attention, learned decay per key dimension (Yang 2023)",
    ),
    "gss": MixerEntry(
        f"{LAYERS}.gated:GSS", "gating", True, False, "fft", "O(L log L)", "recurrent",
        "gated state space on a quarter of the width (Mehta 2022)",
    ),
    "h3": MixerEntry(
        f"{LAYERS}.gated:H3", "gating", True, False, "fft", "O(L log L)", "recurrent",
        "two state spaces between products (Fu 2022)",
    ),
    "hyena": MixerEntry(
        f"{LAYERS}.hyena:Hyena", "gating", True, False, "fft", "O(L log L)", "history",
        "long implicit convolutions between products (Poli 2023)", "O(L)",
    ),
    "linear_attention": MixerEntry(
        f"{LAYERS}.linear_attention:LinearAttention", "recurrent", False, False, "chunk", "O(L)", "recurrent",
        "attention without softmax (Katharopoulos 2020)",
    ),
    "lru": MixerEntry(
        f"{LAYERS}.lru:LRU", "recurrent", True, False, "scan", "O(L)", "recurrent",
        "linear recurrent unit (Orvieto 2023)",
    ),
    "mamba": MixerEntry(
        f"{LAYERS}.mamba:Mamba", "gating", False, True, "scan", "O(L)", "recurrent",
        "selective diagonal state space per channel (Gu and Dao 2023)",
    ),
    "mamba2": MixerEntry(
        f"{LAYERS}.mamba2:Mamba2", "gating", False, True, "chunk", "O(L)", "recurrent",
        "one selective decay per head (Dao and Gu 2024)",
    ),
    "parallel": MixerEntry(
        f"{LAYERS}.parallel:ParallelMixer", "hybrid", False, True, "attention", "O(L²)", "kv",
        "Mamba-2 beside attention on one input (Falcon-H1, 2025)", "O(L)",
    ),
    "retnet": MixerEntry(
        f"{LAYERS}.linear_attention:RetNet", "recurrent", False, False, "chunk", "O(L)", "recurrent",
        "linear attention with a fixed decay per head (Sun 2023)",
    ),
    "s4": MixerEntry(
        f"{LAYERS}.s4:S4", "structural", True, False, "fft", "O(L log L)", "recurrent",
        "HiPPO state space of normal plus low rank as a convolution (Gu 2021)",
    ),
    "s4d": MixerEntry(
        f"{LAYERS}.diagonal:S4D", "structural", True, False, "fft", "O(L log L)", "recurrent",
        "diagonal state space as a convolution (Gu 2022)",
    ),
    "s5": MixerEntry(
        f"{LAYERS}.lru:S5", "structural", True, False, "scan", "O(L)", "recurrent",
        "one state space for all channels (Smith 2022)",
    ),
    "seqboat": MixerEntry(
        "likely.sequence.seqboat.layer:SeqBoat", "hybrid", False, True, "fft", "O(L log L)", "recurrent",
        "attention in a window of the tokens that the layer picks itself (Ren 2023)",
    ),
}  # fmt: skip


def mixer_class(name: str) -> type[SequenceMixer]:
    """The class of a layer by its name in `MIXERS`."""
    check_choice("layer", name, MIXERS)
    module, _, attribute = MIXERS[name].place.partition(":")
    try:
        found: type[SequenceMixer] = getattr(import_module(module), attribute)
    except ModuleNotFoundError as error:
        raise missing_extra(error.name or "torch", "torch") from None
    return found


def make_mixer(name: str, d_model: int, settings: Mapping[str, object] | None = None) -> SequenceMixer:
    """A layer by name: `make_mixer("mamba2", 64, {"d_state": 32})`.

    settings  keyword arguments of its class; ValueError names one that it does not take
    """
    made = mixer_class(name)
    try:
        return made(d_model, **(settings or {}))
    except (TypeError, ValueError) as error:
        raise ValueError(f"layer {name}: {error}") from None


def describe_layers(d_model: int, length: int) -> list[dict[str, object]]:
    """What the table says of every layer, and its parameters and bytes of state at a width and after a length.

    Keys: those of `MixerEntry`, "name", "parameters", "state_bytes" (one sequence, float32, after `length` tokens) and
    "step_bytes": how many more the state holds after one token more.
    """
    if d_model < 1 or length < 0:
        raise ValueError(f"width must be at least 1 and length at least 0, got {d_model} and {length}")
    rows: list[dict[str, object]] = []
    for name, entry in MIXERS.items():
        try:
            mixer = make_mixer(name, d_model)
        except ValueError as error:
            raise ValueError(f"{error}; every layer takes a width that is a multiple of 8") from None
        held = mixer.state_bytes(length)
        rows.append(
            {
                "name": name,
                **asdict(entry),
                "parameters": sum(p.numel() for p in mixer.parameters()),
                "state_bytes": held,
                "step_bytes": mixer.state_bytes(length + 1) - held,
            }
        )
    return rows
