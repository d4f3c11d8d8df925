from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from service.contract import StateTensor
from service.engine.arena import Arena

shapes = st.lists(st.integers(1, 3), max_size=3).map(tuple)
states = st.lists(
    st.tuples(shapes, st.sampled_from(["float32", "float64", "int32", "int64"])), max_size=3
).map(
    lambda kinds: tuple(
        StateTensor(input_name=f"s{i}", output_name=f"o{i}", shape=shape, dtype=dtype)
        for i, (shape, dtype) in enumerate(kinds)
    )
)


@given(states, st.integers(1, 8), st.data())
def test_what_is_scattered_is_gathered_and_nothing_else_moves(
    states: tuple[StateTensor, ...], capacity: int, data: st.DataObject
) -> None:
    arena = Arena(states, capacity)
    slots = [slot for _ in range(capacity) if (slot := arena.take()) is not None]
    random = np.random.default_rng(data.draw(st.integers(0, 99)))

    def values(rows: int) -> dict[str, np.ndarray]:
        return {
            s.output_name: random.integers(-99, 99, (rows, *s.shape)).astype(s.dtype)
            for s in states
        }

    arena.scatter(slots, values(capacity))
    before = [arena.read(slot) for slot in slots]
    chosen = data.draw(st.lists(st.sampled_from(range(capacity)), unique=True))
    new = values(len(chosen))
    arena.scatter([slots[i] for i in chosen], new)

    gathered = arena.gather([slots[i] for i in chosen])
    for state in states:
        assert gathered[state.input_name].dtype == state.dtype
        assert np.array_equal(gathered[state.input_name], new[state.output_name])
    for i, slot in enumerate(slots):
        for state in states:
            name = state.input_name
            due = new[state.output_name][chosen.index(i)] if i in chosen else before[i][name]
            assert np.array_equal(arena.read(slot)[name], due)


@given(st.integers(1, 5), st.lists(st.booleans(), max_size=60))
def test_slots_given_out_are_distinct_and_counted(capacity: int, takes: list[bool]) -> None:
    arena = Arena((), capacity)
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
