from __future__ import annotations

import numpy as np
import pytest

from service.contract import StateTensor
from service.engine.graph import Graph
from service.engine.host import HostStates
from tests.states import summing

STATES = (
    StateTensor(input_name="a", output_name="a_out", shape=(2,), dtype="float64"),
    StateTensor(input_name="n", output_name="n_out", shape=(), dtype="float32", initial=5),
)


class Bent(Graph):
    """Gives the states in a shape of their own."""

    def run(self, feeds: object, outputs: object) -> dict[str, np.ndarray]:
        result = super().run(feeds, outputs)  # type: ignore[arg-type]
        return result | {"n_out": result["n_out"][:, None]}


def make(rows: int) -> HostStates:
    states = HostStates(Graph(*summing(STATES)), rows)
    for row in range(1, rows + 1):
        states.reset(row)
    return states


def step(states: HostStates, rows: list[int], x: list[list[float]], lengths: list[int]) -> object:
    feeds = {"x": np.array(x, np.float64), "lengths": np.array(lengths, np.int32)}
    finite = states.run(np.array(rows), feeds, ["y"])[1]
    return [True] * len(rows) if finite is None else finite.tolist()


def test_a_row_that_is_not_finite_keeps_its_state_and_the_others_move_on() -> None:
    states = make(3)
    assert step(states, [1, 2, 3], [[1], [np.nan], [3]], [1, 1, 1]) == [True, False, True]
    assert [states.read(row)["n"] for row in (1, 2, 3)] == [6, 5, 8]
    assert [states.read(row)["a"].tolist() for row in (1, 2, 3)] == [[1, 1], [0, 0], [3, 3]]


def test_what_lies_beyond_a_rows_length_may_be_anything() -> None:
    states = make(2)
    assert step(states, [1, 2], [[1, np.inf], [2, np.inf]], [1, 2]) == [True, False]
    assert [states.read(row)["n"] for row in (1, 2)] == [6, 5]


def test_rows_of_scratch_fill_a_batch_up_and_leave_nothing_behind() -> None:
    states = make(2)
    step(states, [2, 0, 0, 0], [[1], [9], [np.nan], [7]], [1, 1, 1, 1])
    assert [states.read(row)["n"] for row in (0, 1, 2)] == [5, 5, 6]


def test_an_answer_of_another_shape_raises_before_anything_is_written() -> None:
    states = HostStates(Bent(*summing(STATES)), 1)
    with pytest.raises(ValueError, match="the graph's n_out is"):
        step(states, [1], [[1]], [1])
    assert states.read(1)["a"].tolist() == [0, 0]
