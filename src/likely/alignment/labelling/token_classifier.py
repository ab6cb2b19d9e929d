"""The baseline of tagging: a causal language model as an encoder, with a linear head on every word.  torch.

Some or all layers may look to the right, too: their causal mask is removed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch

from likely.alignment.labelling.sentences import Sentence, labels_of
from likely.alignment.labelling.spans import LabelledSpan, spans_of, tags_of
from likely.errors import CapabilityError, DataError, ModelError
from likely.tokenizers.protocol import begin
from likely.training.fit import TrainingSettings, fit
from likely.training.loop import LossOutput
from likely.training.policy import LoraSettings, Policy

if TYPE_CHECKING:
    from likely.training.lora import HasRuntime

Unmasked = Literal["all", "none"] | range


@dataclass(frozen=True)
class _Words:
    """Tokens of a sentence, the token that stands for each word, and the number of its tag."""

    tokens: tuple[int, ...]
    places: tuple[int, ...]
    tags: tuple[int, ...]


@dataclass(eq=False)
class TokenClassifier:
    """IOB2 tags by cross-entropy on hidden states, trained with LoRA.  Use it in a `with` block: afterwards the model
    is as it was.

    lm      a model on the torch runtime
    labels  types of spans
    unmask  layers that attend in both directions: "all", "none" or a range of their numbers from 0
    A word is read at its first token where the last layer attends in both directions, and at its last where it is
    causal.  Predicted tags are read as `spans_of` reads them: I- after nothing is no span.
    """

    lm: HasRuntime
    labels: Sequence[str]
    unmask: Unmasked = "all"
    lora: LoraSettings = field(default_factory=LoraSettings)
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.labels:
            raise ValueError("no labels: a classifier needs at least one type of span")
        if not isinstance(self.unmask, range) and self.unmask not in ("all", "none"):
            raise ValueError(f'unmask must be "all", "none" or a range of layers, got {self.unmask!r}')
        self.tags = ["O", *(f"{prefix}-{label}" for label in self.labels for prefix in "BI")]
        self.policy = Policy(self.lm, self.lora, seed=self.seed)
        self._layers = decoder_layers(self.policy.base)
        count = len(self._layers)
        chosen = {"all": range(count), "none": range(0)}.get(str(self.unmask), self.unmask)
        assert isinstance(chosen, range)
        if any(not 0 <= layer < count for layer in chosen):
            self.close()
            raise ValueError(f"unmask names layers outside 0..{count - 1}: {self.unmask}")
        self._unmasked = frozenset(chosen)
        self.first_token = count - 1 in self._unmasked
        size = self.policy.base.get_output_embeddings().weight.shape[1]
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            self.head = torch.nn.Linear(size, len(self.tags)).to(self.policy.device)

    def close(self) -> None:
        self.policy.close()

    def __enter__(self) -> TokenClassifier:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def fit(
        self, sentences: Sequence[Sentence], training: TrainingSettings, *,
        progress: Callable[[int, float], None] | None = None,
    ) -> list[float]:  # fmt: skip
        """Train on labelled sentences; returns the mean nats per word of each step."""
        unknown = set(labels_of(sentences)) - set(self.labels)
        if unknown:
            raise DataError(f"label {min(unknown)!r} is none of the classifier's ({', '.join(self.labels)})")
        items = [self._words(sentence, labelled=True) for sentence in sentences]

        def loss(some: Sequence[_Words]) -> LossOutput:
            wanted = torch.tensor([tag for item in some for tag in item.tags], device=self.policy.device)
            return LossOutput(torch.nn.functional.cross_entropy(self.logits(some), wanted, reduction="sum"))

        return fit(
            self.policy, items, loss, training, weight=lambda item: len(item.tags),
            length=lambda item: len(item.tokens), extra_parameters=list(self.head.parameters()), progress=progress,
        )  # fmt: skip

    def predict(self, sentences: Sequence[Sentence], *, batch: int = 16) -> list[tuple[LabelledSpan, ...]]:
        """The spans of each sentence."""
        found: list[tuple[LabelledSpan, ...]] = []
        with torch.no_grad():
            for start in range(0, len(sentences), batch):
                items = [self._words(sentence) for sentence in sentences[start : start + batch]]
                best = self.logits(items).argmax(dim=1).tolist()
                for item in items:
                    own, best = best[: len(item.places)], best[len(item.places) :]
                    found.append(tuple(spans_of([self.tags[i] for i in own])))
        return found

    def logits(self, items: Sequence[_Words]) -> torch.Tensor:
        """(words of all items, tags), float32."""
        longest = max(len(item.tokens) for item in items)
        ids = torch.zeros(len(items), longest, dtype=torch.long)
        seen = torch.zeros_like(ids)
        for i, item in enumerate(items):
            ids[i, : len(item.tokens)], seen[i, : len(item.tokens)] = torch.tensor(item.tokens), 1
        rows = [i for i, item in enumerate(items) for _ in item.places]
        places = [place for item in items for place in item.places]
        device = self.policy.device
        with both_directions(self._layers, self._unmasked, seen.to(device)):
            hidden = decoder_of(self.policy.base)(
                input_ids=ids.to(device), attention_mask=seen.to(device), use_cache=False
            ).last_hidden_state
        return self.head(hidden[rows, places].float())

    def _words(self, sentence: Sentence, labelled: bool = False) -> _Words:
        tokenizer = self.policy.tokenizer
        ids: list[int] = begin(tokenizer, [])
        places: list[int] = []
        for number, word in enumerate(sentence.tokens):
            own = tokenizer.encode(f" {word}" if number else word)
            if not own:
                raise ModelError(f"{sentence.where}: this model's tokenizer has no tokens for {word!r}")
            places.append(len(ids) if self.first_token else len(ids) + len(own) - 1)
            ids += own
        if len(ids) > self.policy.lm.runtime.context_length:
            raise DataError(f"{sentence.where}: {len(ids)} tokens, more than the model's context: cut the sentence")
        tags: list[int] = []
        if labelled:
            if sentence.spans is None:
                raise DataError(f"{sentence.where or 'a sentence'}: no tags to learn from")
            tags = [self.tags.index(tag) for tag in tags_of(sentence.spans, len(sentence.tokens))]
        return _Words(tuple(ids), tuple(places), tuple(tags))


def decoder_of(module: torch.nn.Module) -> Any:
    """The decoder below the head of a causal language model."""
    decoder = getattr(module, getattr(module, "base_model_prefix", ""), None)
    if decoder is None:
        raise CapabilityError(f"{type(module).__name__} has no decoder apart from its head: use a Llama-like model")
    return decoder


def decoder_layers(module: torch.nn.Module) -> list[torch.nn.Module]:
    """Its layers; CapabilityError for an architecture whose layers take no mask."""
    layers = getattr(decoder_of(module), "layers", None)
    if not isinstance(layers, torch.nn.ModuleList):
        raise CapabilityError(
            f'{type(module).__name__}: its layers are not known by the name "layers", so their mask cannot be changed'
        )
    return list(layers)


@contextmanager
def both_directions(layers: Sequence[torch.nn.Module], chosen: frozenset[int], seen: torch.Tensor) -> Iterator[None]:
    """Within, the chosen layers attend to all tokens of a text, later ones too.

    seen  (B, T) 1 for tokens, 0 for padding, which nobody attends to
    """
    hidden = torch.zeros(seen.shape, dtype=torch.float32, device=seen.device).masked_fill(seen == 0, -torch.inf)
    mask = hidden[:, None, None, :].expand(-1, 1, seen.shape[1], -1)

    def without_causal(_layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        if "attention_mask" not in kwargs:
            raise CapabilityError("this architecture's layers take no attention_mask by name")
        return args, {**kwargs, "attention_mask": mask.to(args[0].dtype if args else torch.float32)}

    hooks = [layers[i].register_forward_pre_hook(without_causal, with_kwargs=True) for i in sorted(chosen)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
