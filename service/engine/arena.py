"""Slots: which rows of the states of one model are in use, and for whom. No arrays, no I/O, no locks.

Slots are taken and given back on the event loop; the engine's thread runs only rows of steps in flight, and a slot
with a step in flight is never given back (`Engine.give_back`). Where the rows are is the business of `States`.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Finite = npt.NDArray[np.bool_] | None
"""Which rows are finite, (B,); None is all of them, as nearly always."""
Rows = npt.NDArray[np.int64]


class StaleSlot(RuntimeError):
    """A slot was used after it was given back: a fault of the program, never of a caller."""


@dataclass(frozen=True, slots=True, eq=False)
class Slot:
    """A row of the arena and the use it was given out for. No two uses are equal."""

    index: int
    generation: int


SCRATCH = Slot(0, 0)
"""Row 0, never given out: for rows that only fill a batch up. It holds the initial state, whatever is run on it."""


class States(Protocol):
    """Rows of state of one model and the model that steps them. Row 0 is scratch; the others are reset before use."""

    @property
    def row_bytes(self) -> int:
        """Bytes of state of one row."""

    def reset(self, row: int) -> None:
        """Set a row to the initial state."""

    def read(self, row: int) -> dict[str, Array]:
        """A copy of a row by input name, each of the tensor's shape."""

    def write(self, row: int, state: Mapping[str, Array]) -> None:
        """Set a row; `state` as given by `read`."""

    def run(
        self, rows: Rows, feeds: Mapping[str, Array], wanted: Sequence[str]
    ) -> tuple[dict[str, Array], Finite]:
        """Step rows once; see `Arena.run`."""


class Arena:
    """Slots of a fixed number of rows.

    Args:
        states: `capacity + 1` rows.
        capacity: Slots beside the scratch row.
    """

    def __init__(self, states: States, capacity: int) -> None:
        self.states = states
        self.capacity = capacity
        # Read one by one from the array, many at once from the view of it.
        self._generation = array("q", [0]) * (capacity + 1)
        self._generations = np.frombuffer(self._generation, np.int64)
        self._free = list(range(capacity, 0, -1))

    @property
    def used(self) -> int:
        """Slots given out."""
        return self.capacity - len(self._free)

    @property
    def used_bytes(self) -> int:
        """Bytes of state in slots given out."""
        return self.used * self.states.row_bytes

    def take(self) -> Slot | None:
        """A slot with the initial state, or None when all are given out."""
        if not self._free:
            return None
        index = self._free.pop()
        self._generation[index] += 1
        self.states.reset(index)
        return Slot(index, self._generation[index])

    def give_back(self, slot: Slot) -> None:
        """End the use of a slot.

        Raises:
            StaleSlot: It was given back already.
        """
        self.check(slot)
        self._generation[slot.index] += 1
        self._free.append(slot.index)

    def read(self, slot: Slot) -> dict[str, Array]:
        """A copy of the state of a slot by input name, each of the tensor's shape."""
        self.check(slot)
        return self.states.read(slot.index)

    def write(self, slot: Slot, state: Mapping[str, Array]) -> None:
        """Set the state of a slot; `state` as given by `read`."""
        self.check(slot)
        self.states.write(slot.index, state)

    def run(
        self, rows: Rows, feeds: Mapping[str, Array], wanted: Sequence[str]
    ) -> tuple[dict[str, Array], Finite]:
        """Run the model once on rows, and keep the next states of those that came out finite.

        Args:
            rows: One for each row of the batch, (B,), as `rows_of` gives them, of slots that were not given back since;
                all different, but that of `SCRATCH` may fill up the last ones.
            feeds: The other inputs of the graph, `(B, T, *shape)`, and the lengths, (B,); perhaps `TOP_K`, if the graph
                takes it.
            wanted: Names of the outputs wanted, in the order of the model's.

        Returns:
            The outputs, each `(B, T, *shape)`, or with as many on the last axis as `TOP_K` says; and which rows are
            finite: in every next state, and in every wanted output up to the row's length. The state of any other row
            is as before. What is said of a row of `SCRATCH` means nothing.

        Raises:
            Exception: Whatever the graph raises, or an output is not of the shape its config says. Every state is
                then as before.
        """
        return self.states.run(rows, feeds, wanted)

    def rows_of(self, slots: Sequence[Slot]) -> Rows:
        """Rows of slots, (B,).

        Raises:
            StaleSlot: One was given back.
        """
        rows = np.frombuffer(array("q", [slot.index for slot in slots]), np.int64)
        generations = array("q", [slot.generation for slot in slots])
        if (self._generations[rows] != np.frombuffer(generations, np.int64)).any():
            for slot in slots:
                self.check(slot)
        return rows

    def check(self, slot: Slot) -> None:
        """Raise `StaleSlot` if a slot was given back."""
        if self._generation[slot.index] != slot.generation:
            raise StaleSlot(f"slot {slot.index} generation {slot.generation} was given back")
