"""All layers by name: where each is defined, and what kind it is.  Reading the table imports none of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Literal

from likely.errors import check_choice

if TYPE_CHECKING:
    from likely.sequence.mixer import SequenceMixer, StateKind

LAYERS = "likely.sequence.layers"


@dataclass(frozen=True)
class MixerEntry:
    """One layer of the table.

    place       "module:class";  paradigm: as the survey Mamba-360 sorts them, or "attention"
    lti         the same transition at every step;  selective: transition or input depends on the token
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
    "ema": MixerEntry(
        f"{LAYERS}.ema:EMA", "structural", True, False, "fft", "O(L log L)", "recurrent",
        "several damped moving averages of each channel (Ma 2022)",
    ),
    "linear_attention": MixerEntry(
        f"{LAYERS}.linear_attention:LinearAttention", "recurrent", False, True, "chunk", "O(L)", "recurrent",
        "attention without softmax (Katharopoulos 2020)",
    ),
    "mamba2": MixerEntry(
        f"{LAYERS}.mamba2:Mamba2", "gating", False, True, "chunk", "O(L)", "recurrent",
        "one selective decay per head (Dao and Gu 2024)",
    ),
    "s4": MixerEntry(
        f"{LAYERS}.s4:S4", "structural", True, False, "fft", "O(L log L)", "recurrent",
        "HiPPO state space of normal plus low rank as a convolution (Gu 2021)",
    ),
    "s4d": MixerEntry(
        f"{LAYERS}.diagonal:S4D", "structural", True, False, "fft", "O(L log L)", "recurrent",
        "diagonal state space as a convolution (Gu 2022)",
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
    found: type[SequenceMixer] = getattr(import_module(module), attribute)
    return found


def make_mixer(name: str, d_model: int, settings: Mapping[str, object] | None = None) -> SequenceMixer:
    """A layer by name: `make_mixer("mamba2", 64, {"d_state": 32})`.

    settings  keyword arguments of its class; ValueError names one that it does not take
    """
    made = mixer_class(name)
    try:
        return made(d_model, **(settings or {}))  # type: ignore[arg-type]
    except TypeError as error:
        raise ValueError(f"layer {name}: {error}") from None
