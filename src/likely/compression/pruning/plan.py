"""Which groups of heads and which neurons of a model stay: as data, applied to it, and made alike in all layers."""

from __future__ import annotations

import copy
import json
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import torch

from likely.compression.architecture import DecoderMap
from likely.compression.pruning.allocation import KeptUnits
from likely.compression.pruning.sizes import BlockSizes, heads_fit, take_units
from likely.errors import DataError, ModelError
from likely.runtimes.torch.module import weights_digest

FORMAT = "likely pruning plan 1"
MOST_FILLED = 1024  # groups of zeros


@dataclass(frozen=True)
class PruningPlan:
    """The units that stay, per layer in ascending order, and the model that they are units of.

    model       digest of the weights it was made for: it fits no others
    parameters  of that model, all of them
    """

    model: str
    parameters: int
    sizes: BlockSizes
    groups: KeptUnits
    neurons: KeptUnits

    def __post_init__(self) -> None:
        for what, kept, count in (
            ("groups", self.groups, self.sizes.groups), ("neurons", self.neurons, self.sizes.neurons),
        ):  # fmt: skip
            if len(kept) != self.sizes.layers:
                raise DataError(f"a pruning plan of {self.sizes.layers} layers lists {what} of {len(kept)}")
            for layer, units in enumerate(kept):
                ascending = all(type(u) is int for u in units) and sorted(set(units)) == list(units)
                if not units or not ascending or units[0] < 0 or units[-1] >= count:
                    raise DataError(
                        f"pruning plan, layer {layer}: {what} must be some of 0 to {count - 1}, in ascending order"
                    )

    @property
    def removed(self) -> int:
        """Weights that go."""
        sizes = self.sizes
        groups = sizes.layers * sizes.groups - sum(map(len, self.groups))
        neurons = sizes.layers * sizes.neurons - sum(map(len, self.neurons))
        return groups * sizes.group_weights + neurons * sizes.neuron_weights

    @property
    def sparsity(self) -> float:
        """Share of the blocks' matrices that goes; embedding, head and norms do not count."""
        return self.removed / self.sizes.weights

    @property
    def uniform(self) -> bool:
        """Whether all layers keep the same number of groups and of neurons."""
        return len({(len(g), len(n)) for g, n in zip(self.groups, self.neurons, strict=True)}) == 1

    def parameter_count(self) -> int:
        """Of the pruned model, embedding, head and norms included; a tied head counts once."""
        return self.parameters - self.removed

    def apply(self, module: torch.nn.Module, *, inplace: bool = False) -> torch.nn.Module:
        """The pruned model: a copy, or the module itself.  ModelError where the plan is another model's.

        Layers may come to differ; the configuration then says the largest sizes.
        """
        if (found := weights_digest(module)) != self.model:
            raise ModelError(
                f"this pruning plan was made for other weights (digest {self.model}, this model's is {found}): "
                "make a plan of this model"
            )
        pruned = module if inplace else copy.deepcopy(module)
        decoder = DecoderMap.of(pruned)
        sizes = BlockSizes.of(decoder)
        for block, groups, neurons in zip(decoder.blocks, self.groups, self.neurons, strict=True):
            take_units(block, sizes, groups, neurons)
        _say_sizes(pruned, sizes, max(map(len, self.groups)), max(map(len, self.neurons)))
        return pruned

    def to_json(self) -> str:
        return json.dumps({"format": FORMAT, **asdict(self)})

    @classmethod
    def from_json(cls, text: str) -> PruningPlan:
        """DataError where the text is no plan."""
        try:
            found: dict[str, Any] = json.loads(text)
            if found.pop("format") != FORMAT or set(found) != {f.name for f in fields(cls)}:
                raise ValueError("another format")
            sizes = BlockSizes(**found.pop("sizes"))
            sizes = replace(sizes, loadable=tuple(sizes.loadable))
            numbers = [found["parameters"], *sizes.loadable, *(v for k, v in asdict(sizes).items() if k != "loadable")]
            if not all(type(number) is int and number > 0 for number in numbers) or type(found["model"]) is not str:
                raise ValueError("a size is no positive number")
            groups, neurons = (tuple(tuple(layer) for layer in found[name]) for name in ("groups", "neurons"))
            return cls(found["model"], found["parameters"], sizes, groups, neurons)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"not a pruning plan ({type(error).__name__}: {error})") from None


def with_equal_layers(module: torch.nn.Module) -> torch.nn.Module:
    """The same function with all layers of one size, as files have them: smaller layers are filled up with zeros.

    The module itself where its layers are alike and engines load its number of heads (`heads_fit`).
    """
    decoder = DecoderMap.of(module)
    head_dim = decoder.head_dim
    per_group = decoder.heads // decoder.kv_heads
    groups = max(block.k.out_features // head_dim for block in decoder.blocks)
    neurons = max(block.gate.out_features for block in decoder.blocks)
    groups = next((n for n in range(groups, groups + MOST_FILLED) if heads_fit(decoder, n)), groups)
    widths = {"q": groups * per_group * head_dim, "k": groups * head_dim, "v": groups * head_dim}
    widths |= {"o": widths["q"], "gate": neurons, "up": neurons, "down": neurons}
    if all(_width(part, linear) == widths[part] for _, _, part, linear in decoder.linears()):
        return module
    filled = copy.deepcopy(module)
    for _, _, part, linear in DecoderMap.of(filled).linears():
        _fill(linear, widths[part], rows=part not in ("o", "down"))
    config: Any = filled.config
    config.num_attention_heads, config.num_key_value_heads = groups * per_group, groups
    config.intermediate_size = neurons
    return filled


def _say_sizes(module: torch.nn.Module, sizes: BlockSizes, groups: int, neurons: int) -> None:
    config: Any = module.config
    config.head_dim = sizes.head_dim  # no longer hidden size / heads
    config.num_attention_heads, config.num_key_value_heads = groups * sizes.heads_per_group, groups
    config.intermediate_size = neurons


def _width(part: str, linear: torch.nn.Linear) -> int:
    return linear.in_features if part in ("o", "down") else linear.out_features


def _fill(linear: torch.nn.Linear, width: int, *, rows: bool) -> None:
    """Zeros after the last row (and bias) or column, up to a width."""
    more = width - (linear.out_features if rows else linear.in_features)
    with torch.no_grad():
        padding = (0, 0, 0, more) if rows else (0, more)
        linear.weight = torch.nn.Parameter(torch.nn.functional.pad(linear.weight, padding))
        if rows and linear.bias is not None:
            linear.bias = torch.nn.Parameter(torch.nn.functional.pad(linear.bias, (0, more)))
    linear.out_features, linear.in_features = linear.weight.shape
