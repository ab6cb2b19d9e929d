"""Language models, classifiers and regressors of any sequence mixers: embedding, blocks, norm, head.

A block is pre-norm residual: x + mixer(norm(x)), and where the model has feed-forward parts x + mlp(norm(x)).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypedDict, Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput

from likely.errors import ModelError, check_choice
from likely.sequence.mixer import MixerOutput, MixerState, SequenceMesh, SequenceMixer
from likely.sequence.table import MIXERS, make_mixer

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh

    from likely.sequence.parallel import ParallelLM, SequenceGroup

LETTERS = {"M": "mamba2", "S": "mamba", "*": "attention", "N": "attention", "L": "linear_attention"}


def layers_of(pattern: str, letters: Mapping[str, str] = LETTERS) -> list[str]:
    """The mixers that a pattern such as "MMM*" * 4 or "LLLN" names, one letter a layer."""
    if unknown := sorted(set(pattern) - set(letters)):
        raise ModelError(f'the pattern {pattern!r} has "{unknown[0]}" (known: {", ".join(letters)})')
    return [letters[letter] for letter in pattern]


@dataclass(frozen=True)
class ModelState:
    """What a model remembers of the tokens so far: a `MixerState` per layer.  It is never changed in place."""

    layers: tuple[MixerState, ...]

    @property
    def batch(self) -> int:
        return max(layer.batch for layer in self.layers)

    @property
    def nbytes(self) -> int:
        return sum(layer.nbytes for layer in self.layers)

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Of all tensors of a row: states of other shapes hold other numbers of tokens."""
        return tuple(tuple(t.shape[1:]) for layer in self.layers for t in layer.tensors.values())

    def map(self, change: Callable[[MixerState], MixerState]) -> ModelState:
        return ModelState(tuple(map(change, self.layers)))

    def select(self, rows: Sequence[int]) -> ModelState:
        """The states of these rows, copied, in this order."""
        return self.map(lambda layer: layer.select(rows))

    def fork(self, n: int) -> ModelState:
        """Each row n times, side by side."""
        return self.map(lambda layer: layer.fork(n))

    def detach(self) -> ModelState:
        """Cut off from the past's gradients."""
        return self.map(MixerState.detach)

    @staticmethod
    def stack(states: Sequence[ModelState]) -> ModelState:
        """Rows of several states in one."""
        return ModelState(tuple(map(MixerState.stack, zip(*(s.layers for s in states), strict=True))))


class SequenceConfig(PreTrainedConfig):
    """Of every model of this module.

    layers        a mixer per layer, by its name in the registry
    mixers        settings of mixers by name, as their classes take them; d_model is hidden_size
    mlp_size      width of the feed-forward part of each block (SwiGLU); 0: none
    padded_ids    so many of the last ids are no tokens: their logits are -inf
    embedding_multiplier, logits_multiplier  factors of what the embedding gives and of the logits
    input_size    numbers per step where the input is no token ids; classifiers and regressors only
    outputs       classes, or numbers that are predicted
    initializer_range  standard deviation of new embeddings; None: 1/√hidden_size where the head is the same matrix, so
                  that logits start with variance 1, else 1.  The usual 0.02 is drowned by what the first block adds,
                  and recall is learned late.  Matrices are drawn as torch does, uniformly below 1/√inputs
    pool          "mean" or "last" of the real steps; "none": an output per step
    """

    model_type = "likely_sequence"

    vocab_size: int = 256
    hidden_size: int = 64
    layers: list[str] | None = None
    mixers: dict[str, dict[str, Any]] | None = None
    mlp_size: int = 0
    mlp_bias: bool = False
    norm_eps: float = 1e-5
    tie_word_embeddings: bool = True
    max_position_embeddings: int = 2**20
    padded_ids: int = 0
    embedding_multiplier: float = 1.0
    logits_multiplier: float = 1.0
    initializer_range: float | None = None
    input_size: int = 0
    outputs: int = 2
    pool: str = "mean"

    def __post_init__(self, **kwargs: Any) -> None:
        self.layers = ["mamba2", "mamba2"] if self.layers is None else list(self.layers)
        self.mixers = {} if self.mixers is None else self.mixers
        super().__post_init__(**kwargs)
        for name in (*self.layers, *self.mixers):
            check_choice("layer", name, MIXERS)
        if self.initializer_range is not None and not self.initializer_range > 0:
            raise ModelError(f"initializer_range must be > 0 or None, got {self.initializer_range}")
        if self.pool not in ("mean", "last", "none"):
            raise ModelError(f'pool must be mean, last or none, got "{self.pool}"')
        if not 0 <= self.padded_ids < self.vocab_size:
            raise ModelError(f"padded_ids must lie in 0..{self.vocab_size - 1}, got {self.padded_ids}")

    @property
    def num_hidden_layers(self) -> int:
        return len(self.layers or ())


@dataclass
class SequenceOutput(ModelOutput):
    """What a model gives; a field that was not asked for is None.

    logits  (B, T, V) of a language model, (B, outputs) or (B, T, outputs) of the others
    state   after the last step;  states: after the steps asked for with `states_at`, in their order
    aux     sums over the layers of what they report, such as the rate of activation
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    last_hidden_state: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    state: ModelState | None = None
    states: tuple[ModelState, ...] | None = None
    aux: dict[str, Tensor] | None = None


class MixerInputs(TypedDict, total=False):
    """See `SequenceMixer.forward`."""

    mask: Tensor | None
    seq_idx: Tensor | None
    positions: Tensor | None
    mesh: SequenceMesh | None
    return_state: bool
    states_at: Sequence[int] | None


class GatedMLP(nn.Module):
    """down(silu(gate(x)) ⊙ up(x))."""

    def __init__(self, width: int, inner: int, *, bias: bool = False):
        super().__init__()
        self.gate_proj = nn.Linear(width, inner, bias=bias)
        self.up_proj = nn.Linear(width, inner, bias=bias)
        self.down_proj = nn.Linear(inner, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class SequenceBlock(nn.Module):
    def __init__(self, config: SequenceConfig, name: str):
        super().__init__()
        width = config.hidden_size
        self._made_of = name, width, (config.mixers or {}).get(name)
        self.norm = nn.RMSNorm(width, eps=config.norm_eps)
        self.mixer = make_mixer(*self._made_of)
        self.mlp_norm = nn.RMSNorm(width, eps=config.norm_eps) if config.mlp_size else None
        self.mlp = GatedMLP(width, config.mlp_size, bias=config.mlp_bias) if config.mlp_size else None

    def forward(self, x: Tensor, state: MixerState | None, **how: Unpack[MixerInputs]) -> tuple[Tensor, MixerOutput]:
        mixed = self.mixer(self.norm(x), state, **how)
        x = x + mixed.y
        if self.mlp is not None and self.mlp_norm is not None:
            x = x + self.mlp(self.mlp_norm(x))
        return x, mixed

    def derive_buffers(self) -> None:
        """Make anew what the mixer holds but is not saved: `from_pretrained` builds modules without any values."""
        unsaved = {
            (path, name): buffer
            for path, part in self.mixer.named_modules()
            for name, buffer in part.named_buffers(recurse=False)
            if name in part._non_persistent_buffers_set
        }
        if unsaved:
            fresh = make_mixer(*self._made_of)
            for (path, name), buffer in unsaved.items():
                buffer.copy_(fresh.get_submodule(path).get_buffer(name))


class SequencePreTrained(PreTrainedModel):
    """What the models of this module share: their configuration, and how new weights are drawn."""

    config_class = SequenceConfig
    base_model_prefix = "backbone"
    is_head_tied = False
    _no_split_modules: ClassVar[list[str]] = ["SequenceBlock"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Embeddings; other parts draw their own where they are made."""
        if isinstance(module, nn.Embedding):
            std = module.embedding_dim**-0.5 if self.is_head_tied else 1.0
            nn.init.normal_(module.weight, std=self.config.initializer_range or std)
        elif isinstance(module, SequenceBlock):
            module.derive_buffers()


class SequenceBackbone(SequencePreTrained):
    """Embedding, blocks and the last norm; real-valued inputs (`input_size`) instead of tokens pass a linear layer.

    is_head_tied  the embedding is the matrix of a head, too
    """

    def __init__(self, config: SequenceConfig, *, is_head_tied: bool = False):
        super().__init__(config)
        self.is_head_tied = is_head_tied
        width = config.hidden_size
        if config.input_size:
            self.embed_inputs = nn.Linear(config.input_size, width)
        else:
            self.embed_tokens = nn.Embedding(config.vocab_size, width)
        self.layers = nn.ModuleList(SequenceBlock(config, name) for name in config.layers or ())
        self.norm = nn.RMSNorm(width, eps=config.norm_eps)
        self.post_init()

    @property
    def mixers(self) -> list[SequenceMixer]:
        return [block.mixer for block in self.layers]

    def get_input_embeddings(self) -> nn.Module:
        return self.embed_inputs if self.config.input_size else self.embed_tokens

    def init_state(self, batch: int) -> ModelState:
        """Before the first token of so many sequences."""
        return ModelState(tuple(mixer.init_state(batch, device=self.device) for mixer in self.mixers))

    def state_bytes(self, length: int = 0) -> int:
        """Of one sequence's state after `length` tokens."""
        return sum(mixer.state_bytes(length) for mixer in self.mixers)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *,
        inputs_embeds: Tensor | None = None,
        state: ModelState | None = None,
        seq_idx: Tensor | None = None,
        position_ids: Tensor | None = None,
        mesh: SequenceMesh | None = None,
        return_state: bool = False,
        states_at: Sequence[int] | None = None,
        output_hidden_states: bool = False,
    ) -> SequenceOutput:
        """input_ids (B, T), or inputs_embeds (B, T, D), or real-valued inputs (B, T, input_size) as input_ids; the
        rest as `SequenceMixer.forward` has it (attention_mask is its mask)."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give input_ids or inputs_embeds, one of them")
        x = self.get_input_embeddings()(input_ids) if inputs_embeds is None else inputs_embeds
        x = x * self.config.embedding_multiplier if self.config.embedding_multiplier != 1 else x
        hidden, outputs = [x], []
        before = (None,) * len(self.layers) if state is None else state.layers
        for block, own in zip(self.layers, before, strict=True):
            x, mixed = block(
                x, own, mask=attention_mask, seq_idx=seq_idx, positions=position_ids, mesh=mesh,
                return_state=return_state, states_at=states_at,
            )  # fmt: skip
            outputs.append(mixed)
            if output_hidden_states:
                hidden.append(x)
        x = self.norm(x)
        aux: dict[str, Tensor] = {}
        for mixed in outputs:
            for name, value in mixed.aux.items():
                aux[name] = aux[name] + value if name in aux else value
        at = range(len(states_at)) if states_at is not None else ()
        return SequenceOutput(
            last_hidden_state=x,
            hidden_states=(*hidden[:-1], x) if output_hidden_states else None,
            state=ModelState(tuple(_state(mixed) for mixed in outputs)) if return_state else None,
            states=tuple(ModelState(tuple(mixed.states[i] for mixed in outputs)) for i in at) or None,
            aux=aux or None,
        )


def _state(mixed: MixerOutput) -> MixerState:
    if mixed.state is None:
        raise ValueError("this layer has no state to return")
    return mixed.state


class SequenceLM(SequencePreTrained):
    """A causal language model.  `from_pretrained` and `save_pretrained` are those of transformers, in safetensors."""

    _tied_weights_keys: ClassVar[dict[str, str]] = {"lm_head.weight": "backbone.embed_tokens.weight"}

    def __init__(self, config: SequenceConfig):
        super().__init__(config)
        if config.input_size:
            raise ModelError("a language model reads token ids: input_size is for classifiers and regressors")
        self.backbone = SequenceBackbone(config, is_head_tied=config.tie_word_embeddings)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        for mixer in self.backbone.mixers:
            if not mixer.causal:
                raise ModelError(f"{type(mixer).__name__} sees later tokens and cannot be part of a language model")
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.backbone.embed_tokens

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def parallelize(
        self, over: ProcessGroup | DeviceMesh | SequenceGroup | None = None, *,
        order: Literal["contiguous", "zigzag"] = "zigzag",
        attention: Literal["allgather", "ring", "ulysses"] = "allgather",
        states: Literal["allgather", "ring"] = "allgather",
    ) -> ParallelLM:  # fmt: skip
        """This model with each sequence shared by several processes, which hold the same weights; see `ParallelLM`.

        over  None: all that torchrun started, and without torchrun this process alone;  a DeviceMesh: the processes
              along its dimension "sp" share sequences, and those along others take other batches
        """
        from likely.sequence.parallel import ParallelLM

        return ParallelLM.over(self, over, order=order, attention=attention, states=states)

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., V) of last hidden states (..., D)."""
        logits = self.lm_head(hidden)
        if self.config.logits_multiplier != 1:
            logits = logits * self.config.logits_multiplier
        if self.config.padded_ids:
            padded = torch.arange(logits.shape[-1], device=logits.device) >= logits.shape[-1] - self.config.padded_ids
            logits = logits.masked_fill(padded, float("-inf"))
        return logits

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        *,
        inputs_embeds: Tensor | None = None,
        state: ModelState | None = None,
        seq_idx: Tensor | None = None,
        position_ids: Tensor | None = None,
        mesh: SequenceMesh | None = None,
        return_state: bool = False,
        states_at: Sequence[int] | None = None,
        logits_to_keep: int | Tensor = 0,
        output_hidden_states: bool = False,
        use_cache: bool | None = None,
        return_dict: bool | None = None,
    ) -> SequenceOutput:
        """labels (B, T): ids that the tokens before them predict, as transformers has it (shifted here, -100 left out);
        logits_to_keep: only the last so many columns, or these; use_cache=True is return_state=True."""
        found = self.backbone(
            input_ids, attention_mask, inputs_embeds=inputs_embeds, state=state, seq_idx=seq_idx,
            position_ids=position_ids, mesh=mesh, return_state=return_state or bool(use_cache), states_at=states_at,
            output_hidden_states=output_hidden_states,
        )  # fmt: skip
        hidden = found.last_hidden_state
        columns = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        found.logits = self.logits(hidden[:, columns])
        if labels is not None:
            if found.logits.shape[1] != labels.shape[1]:
                raise ValueError("labels need the logits of every column: leave out logits_to_keep")
            rows = found.logits[:, :-1].float().flatten(0, 1)
            found.loss = F.cross_entropy(rows, labels[:, 1:].flatten(), ignore_index=-100)
        return found


class SequenceClassifier(SequencePreTrained):
    """A class per sequence, from the mean or the last of its real steps, or per step (`config.pool`).

    forward gives logits (B, outputs) or (B, T, outputs), and with labels (B,) or (B, T) the cross-entropy; -100 is left
    out of it.
    """

    def __init__(self, config: SequenceConfig):
        super().__init__(config)
        self.backbone = SequenceBackbone(config)
        self.head = nn.Linear(config.hidden_size, config.outputs)
        self.post_init()

    def forward(
        self, inputs: Tensor, attention_mask: Tensor | None = None, labels: Tensor | None = None, *,
        seq_idx: Tensor | None = None, mesh: SequenceMesh | None = None,
    ) -> SequenceOutput:  # fmt: skip
        """inputs: ids (B, T), or real numbers (B, T, input_size)."""
        found = self.backbone(inputs, attention_mask, seq_idx=seq_idx, mesh=mesh)
        found.logits = self.head(_pooled(found.last_hidden_state, attention_mask, self.config.pool))
        if labels is not None:
            found.loss = self.loss(found.logits, labels)
        return found

    def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(outputs.float().flatten(0, -2), labels.flatten(), ignore_index=-100)


class SequenceRegressor(SequenceClassifier):
    """The same for numbers: `logits` are predictions, labels have their shape, and the loss is the mean squared error
    (NaN is left out)."""

    def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        known = ~labels.isnan()
        return F.mse_loss(outputs[known].float(), labels[known].float())


def _pooled(hidden: Tensor, mask: Tensor | None, how: str) -> Tensor:
    """(B, T, D) -> (B, D), over the real steps; "none": as they are."""
    if how == "none":
        return hidden
    if mask is None:
        return hidden.mean(1) if how == "mean" else hidden[:, -1]
    if how == "mean":
        weights = mask.to(hidden.dtype)[..., None]
        return (hidden * weights).sum(1) / weights.sum(1).clamp_min(1)
    last = (mask.shape[1] - 1 - mask.flip(1).long().argmax(1))[:, None, None]
    return hidden.gather(1, last.expand(-1, 1, hidden.shape[2]))[:, 0]


AutoConfig.register(SequenceConfig.model_type, SequenceConfig, exist_ok=True)
AutoModelForCausalLM.register(SequenceConfig, SequenceLM, exist_ok=True)
