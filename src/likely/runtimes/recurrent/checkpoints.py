"""What a sequence remembers: the state after its last token, and a few states from before, to go back to.

A recurrent state cannot be cut.  Going back to n tokens takes a state from before n and reads the tokens since then
again.  States are never written to, so that forks share them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from likely.runtimes.slots.runtime import SlotSequence
from likely.sequence.backbone import ModelState, SequenceBackbone
from likely.sequence.mixer import MixerState


def kept_checkpoints(length: int, every: int) -> list[int]:
    """Lengths whose states a sequence of `length` tokens keeps, ascending: some multiples of `every`.

    Of the multiples of every · 2^j the last two, for each j.  So a sequence of m tokens keeps O(log m) states, and
    going back by d tokens reads fewer than 2 d + `every` of them again.
    """
    kept, step = set(), every
    while step <= length:
        last = length // step * step
        kept |= {last, last - step}
        step *= 2
    return sorted(kept - {0})


@dataclass(frozen=True)
class StateRow:
    """The state of one sequence: a row of the states of those that were computed together."""

    states: ModelState
    row: int = 0

    @property
    def nbytes(self) -> int:
        return self.states.nbytes // self.states.batch

    @property
    def size_class(self) -> tuple[int, ...]:
        """Alike for states that fit together: of one model, with numbers of tokens that are within a factor of two."""
        return tuple(shape[0].bit_length() if shape else 0 for shape in self.states.shapes)

    def alone(self) -> StateRow:
        """The same without its companions, whose memory it would keep."""
        return self if self.states.batch == 1 else StateRow(self.states.select([self.row]))

    @staticmethod
    def together(rows: Sequence[StateRow]) -> ModelState:
        """Their states as one batch, in this order."""
        states, places = rows[0].states, [row.row for row in rows]
        if all(row.states is states for row in rows):
            return states if places == list(range(states.batch)) else states.select(places)
        return ModelState.stack([row.alone().states for row in rows])


class StateParts:
    """What of a model's state grows with the text (keys and values) and can be cut, and what cannot."""

    def __init__(self, model: SequenceBackbone):
        specs = [(mixer.state_spec(0), mixer.state_spec(1)) for mixer in model.mixers]
        self._growing = [{name for name in one if one[name] != none[name]} for none, one in specs]

    def fixed(self, state: StateRow) -> StateRow:
        """A copy without what grows."""
        alone = state.alone()
        if not any(self._growing):
            return alone
        return StateRow(self._changed(alone.states, lambda _, name, t: t[:, :0].clone()))

    def completed(self, fixed: StateRow, later: StateRow, length: int) -> StateRow:
        """The state after `length` tokens, from what was kept of it and a state after more of the same tokens."""
        if not any(self._growing):
            return fixed
        whole = later.alone().states
        return StateRow(self._changed(fixed.states, lambda layer, name, _: whole.layers[layer][name][:, :length]))

    def _changed(self, states: ModelState, change: Callable[[int, str, Tensor], Tensor]) -> ModelState:
        """With other tensors in place of what grows."""
        layers = []
        for i, (layer, growing) in enumerate(zip(states.layers, self._growing, strict=True)):
            changed = {name: change(i, name, t) if name in growing else t for name, t in layer.tensors.items()}
            layers.append(MixerState(changed, layer.document))
        return ModelState(tuple(layers))


@dataclass(eq=False)
class RecurrentSequence(SlotSequence):
    """held: its token ids.

    state        after the first `known` of its kept tokens; those after them are read before anything else is
    checkpoints  length -> what of the state after so many tokens cannot be cut; 0 is always there
    node_states  of pending nodes
    """

    state: StateRow = field(kw_only=True)
    parts: StateParts = field(kw_only=True)
    known: int = 0
    checkpoints: dict[int, StateRow] = field(default_factory=dict)
    node_states: list[StateRow] = field(default_factory=list)

    def go_back(self, length: int, source: RecurrentSequence | None = None) -> None:
        """Start again from the last state of `source`, or of itself, that has seen at most `length` tokens."""
        source = self if source is None else source
        state, known = source.state, source.known
        self.checkpoints = {at: kept for at, kept in source.checkpoints.items() if at <= length}
        if known > length:
            known = max(self.checkpoints)
            state = self.parts.completed(self.checkpoints[known], source.state, known)
        self.state, self.known = state, known

    def advance(self, length: int, state: StateRow, passed: Iterable[tuple[int, StateRow]], every: int) -> None:
        """It has read on to `length` tokens; passed: (length, state) of places between that it may keep."""
        self.state, self.known = state, length
        kept = {0, *kept_checkpoints(length, every)}
        self.checkpoints.update((at, self.parts.fixed(found)) for at, found in passed if at in kept)
        self.checkpoints = {at: found for at, found in self.checkpoints.items() if at in kept}

    @property
    def nbytes(self) -> int:
        """Of its states; forks share them."""
        return self.state.nbytes + sum(s.nbytes for s in (*self.checkpoints.values(), *self.node_states))
