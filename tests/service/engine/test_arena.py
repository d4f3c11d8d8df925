from __future__ import annotations

import numpy as np
import pytest

from service.contract import StateTensor
from service.engine.arena import SCRATCH, Arena, Slot, StaleSlot
from service.engine.graph import Graph
from service.engine.host import HostStates
from tests.states import summing

STATES = (
    StateTensor(input_name="h", output_name="h_out", shape=(2, 3), initial=0.5),
    StateTensor(input_name="n", output_name="n_out", shape=(), dtype="int64", initial=7),
)


def make(capacity: int, states: tuple[StateTensor, ...] = STATES) -> Arena:
    return Arena(HostStates(Graph(*summing(states)), capacity), capacity)


def taken(arena: Arena) -> Slot:
    slot = arena.take()
    assert slot is not None
    return slot


def feeds(*values: float) -> dict[str, np.ndarray]:
    return {"x": np.array(values, np.float64)[:, None], "lengths": np.ones(len(values), np.int32)}


def test_a_fresh_slot_holds_the_initial_state() -> None:
    arena = make(2)
    state = arena.read(taken(arena))
    assert np.array_equal(state["h"], np.full((2, 3), 0.5, np.float32))
    assert state["n"].dtype == np.int64
    assert state["n"] == 7


def test_a_slot_used_again_holds_the_initial_state_again() -> None:
    arena = make(1)
    slot = taken(arena)
    arena.write(slot, {"h": np.ones((2, 3)), "n": np.int64(9)})
    arena.give_back(slot)
    assert arena.read(taken(arena))["n"] == 7


def test_capacity_is_a_bound_and_row_0_is_never_given_out() -> None:
    arena = make(3)
    slots = [taken(arena) for _ in range(3)]
    assert sorted(slot.index for slot in slots) == [1, 2, 3]
    assert SCRATCH.index == 0
    assert arena.take() is None
    assert (arena.used, arena.used_bytes) == (3, 3 * (24 + 8))
    for slot in slots:
        arena.give_back(slot)
    assert (arena.used, arena.used_bytes) == (0, 0)


def test_a_slot_given_back_is_stale_for_every_use() -> None:
    arena = make(1)
    old = taken(arena)
    arena.give_back(old)
    new = taken(arena)
    assert new.index == old.index
    for use in (
        arena.read,
        arena.give_back,
        lambda slot: arena.write(slot, arena.read(new)),
        lambda slot: arena.run(arena.rows_of([new, slot]), feeds(1, 2), ["y"]),
    ):
        with pytest.raises(StaleSlot, match="slot 1 generation 1 was given back"):
            use(old)
    assert arena.used == 1
    assert arena.read(new)["n"] == 7


def test_what_is_read_is_a_copy() -> None:
    arena = make(1)
    slot = taken(arena)
    arena.read(slot)["h"][:] = 99
    assert arena.read(slot)["h"].max() == 0.5


def test_a_model_without_state_needs_no_memory() -> None:
    arena = make(1, ())
    outputs, finite = arena.run(arena.rows_of([taken(arena)]), feeds(3), ["y"])
    assert outputs["y"].tolist() == [[6]]
    assert finite is None
    assert arena.used_bytes == 0
