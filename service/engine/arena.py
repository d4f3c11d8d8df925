"""States of all resident sessions of one model, in one array per state tensor. No I/O, no locks.

A slot is a row. Slots are taken and given back on the event loop; the engine's thread reads and writes only rows of
steps in flight, and a slot with a step in flight is never given back (`Engine.release`). Row 0 is scratch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from service.contract import StateTensor

Array = npt.NDArray[Any]


class StaleSlot(RuntimeError):
    """A slot was used after it was given back: a fault of the program, never of a caller."""


@dataclass(frozen=True, slots=True, eq=False)
class Slot:
    """A row of the arena and the use it was given out for. No two uses are equal."""

    index: int
    generation: int


class Arena:
    """Fixed-capacity store of states.

    Memory is reserved at once and touched by the operating system page by page, so an idle row that was never used
    costs nothing and no row ever moves.

    Args:
        states: The model's state tensors; may be empty.
        capacity: Slots beside the scratch slot.
    """

    def __init__(self, states: Sequence[StateTensor], capacity: int) -> None:
        self.capacity = capacity
        self._states = tuple(states)
        # np.zeros asks for untouched pages; np.full would touch them all.
        self._rows = {s.input_name: np.zeros((capacity + 1, *s.shape), s.dtype) for s in states}
        self._initial = {s.input_name: s.initial_array() for s in states}
        self._generation = [0] * (capacity + 1)
        self._free = list(range(capacity, 0, -1))
        for name, initial in self._initial.items():
            self._rows[name][0] = initial

    @property
    def used(self) -> int:
        """Slots given out."""
        return self.capacity - len(self._free)

    @property
    def used_bytes(self) -> int:
        """Bytes of state in slots given out."""
        return self.used * sum(s.nbytes for s in self._states)

    def take(self) -> Slot | None:
        """A slot with the initial state, or None when all are given out."""
        if not self._free:
            return None
        index = self._free.pop()
        self._generation[index] += 1
        for name, initial in self._initial.items():
            self._rows[name][index] = initial
        return Slot(index, self._generation[index])

    def give_back(self, slot: Slot) -> None:
        """End the use of a slot.

        Raises:
            StaleSlot: It was given back already.
        """
        self._check(slot)
        self._generation[slot.index] += 1
        self._free.append(slot.index)

    def read(self, slot: Slot) -> dict[str, Array]:
        """A copy of the state of a slot by input name, each of the tensor's shape."""
        self._check(slot)
        return {name: rows[slot.index].copy() for name, rows in self._rows.items()}

    def write(self, slot: Slot, state: Mapping[str, Array]) -> None:
        """Set the state of a slot; `state` as given by `read`."""
        self._check(slot)
        for name, rows in self._rows.items():
            rows[slot.index] = state[name]

    def gather(self, slots: Sequence[Slot]) -> dict[str, Array]:
        """States of several slots as a batch, (B, *shape) by input name."""
        indices = self._indices(slots)
        return {name: rows.take(indices, axis=0) for name, rows in self._rows.items()}

    def scatter(self, slots: Sequence[Slot], outputs: Mapping[str, Array]) -> None:
        """Write next states back; the inverse of `gather`, but by output name."""
        indices = self._indices(slots)
        for state in self._states:
            self._rows[state.input_name][indices] = outputs[state.output_name]

    def _indices(self, slots: Sequence[Slot]) -> npt.NDArray[np.intp]:
        for slot in slots:
            self._check(slot)
        return np.fromiter((slot.index for slot in slots), np.intp, len(slots))

    def _check(self, slot: Slot) -> None:
        if self._generation[slot.index] != slot.generation:
            raise StaleSlot(f"slot {slot.index} generation {slot.generation} was given back")
