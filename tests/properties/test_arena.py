from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from service.contract import StateTensor
from service.engine.arena import Arena
from service.engine.graph import Graph
from service.engine.host import HostStates
from tests.states import summing, tensors


@settings(max_examples=40)
@given(tensors, st.integers(1, 8), st.data())
def test_a_step_moves_the_chosen_rows_by_what_they_got_and_nothing_else(
    states: tuple[StateTensor, ...], capacity: int, data: st.DataObject
) -> None:
    arena = Arena(HostStates(Graph(*summing(states)), capacity), capacity)
    slots = [slot for _ in range(capacity) if (slot := arena.take()) is not None]
    due = dict.fromkeys(slots, 0)
    for _ in range(data.draw(st.integers(1, 4))):
        chosen = data.draw(st.lists(st.sampled_from(slots), unique=True, min_size=1))
        x = np.array(data.draw(st.lists(st.integers(-9, 9), min_size=8, max_size=8)))
        x = x[: len(chosen), None].astype(np.float64)
        feeds = {"x": x, "lengths": np.ones(len(chosen), np.int32)}
        outputs, finite = arena.run(arena.rows_of(chosen), feeds, ["y"])
        assert finite is None
        assert np.array_equal(outputs["y"], 2 * x)
        for slot, value in zip(chosen, x[:, 0], strict=True):
            due[slot] += int(value)
    for slot in slots:
        held = arena.read(slot)
        for state in states:
            assert held[state.input_name].dtype == state.dtype
            assert np.array_equal(held[state.input_name], state.initial_array() + due[slot])


@given(st.integers(1, 5), st.lists(st.booleans(), max_size=60))
def test_slots_given_out_are_distinct_and_counted(capacity: int, takes: list[bool]) -> None:
    arena = Arena(HostStates(Graph(*summing(())), capacity), capacity)
    out = []
    for take in takes:
        if take:
            slot = arena.take()
            assert (slot is None) == (len(out) == capacity)
            if slot is not None:
                out.append(slot)
        elif out:
            arena.give_back(out.pop(0))
        assert arena.used == len(out)
        assert len({slot.index for slot in out}) == len(out)
