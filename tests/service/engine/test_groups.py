"""Steps that go through the engine as a group: alike in all that matters to each going alone."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.contract import Batching
from service.engine.arena import Slot
from service.engine.engine import Engine
from service.engine.shapes import Shapes
from service.engine.work import Group, flow_of
from service.errors import (
    DeadlineExceeded,
    Draining,
    ModelFailed,
    NonFinite,
    Overloaded,
    StepCancelled,
)
from tests.engines import (
    PATIENCE_S,
    Clock,
    Run,
    WatchedGraph,
    add,
    load_graph,
    running,
    total,
    turned,
    until,
)


class Outcome:
    """What became of each step of a group.

    Attributes:
        rows: Place to totals, or to the error.
        parts: Places and numbers of rows that ended together.
        alone: Places of rows that ended by themselves.
    """

    def __init__(self) -> None:
        self.rows: dict[int, Any] = {}
        self.parts: list[tuple[int, int]] = []
        self.alone: list[int] = []

    def end(self, first: int, outputs: dict[str, np.ndarray]) -> None:
        totals = outputs["total"]
        self.parts.append((first, len(totals)))
        for row, values in enumerate(totals.tolist()):
            self._note(first + row, values)

    def end_row(self, place: int, outcome: Any) -> None:
        self.alone.append(place)
        failed = isinstance(outcome, Exception)
        self._note(place, outcome if failed else outcome["total"].tolist())

    def _note(self, place: int, outcome: Any) -> None:
        assert place not in self.rows, f"row {place} ended twice"
        self.rows[place] = outcome

    async def all(self, rows: int) -> list[Any]:
        await asyncio.wait_for(until(lambda: len(self.rows) == rows), PATIENCE_S)
        return [self.rows[place] for place in range(rows)]


def taken(engine: Engine, count: int) -> list[Slot]:
    slots = [engine.take() for _ in range(count)]
    return [slot for slot in slots if slot is not None]


def add_all(
    engine: Engine,
    slots: Sequence[Slot],
    values: Sequence[Sequence[float]],
    deadline: float = np.inf,
    **more: Any,
) -> tuple[Group, Outcome]:
    """Have the accumulators of some slots add numbers, as many for each."""
    outcome = Outcome()
    inputs = {"x": np.array(values, np.float64)}
    group = engine.begin_group(
        list(slots), inputs, ("total",), deadline, outcome.end, outcome.end_row, **more
    )
    return group, outcome


async def held(engine: Engine, graph: WatchedGraph) -> asyncio.Future[Any]:
    """Have a step enter the model and stay there, so that what comes next waits."""
    graph.shut()
    (slot,) = taken(engine, 1)
    future = add(engine, slot, 0.0)[1]
    await graph.entered()
    return future


def state(engine: Engine, slot: Slot) -> float:
    return float(engine.read(slot)["state"])


async def test_a_group_is_one_run_and_ends_as_one(accumulator: Path) -> None:
    graph = load_graph(accumulator)
    async with running(graph) as engine:
        slots = taken(engine, 5)
        for round_ in (1, 2):
            _, outcome = add_all(engine, slots, [[i] for i in range(5)])
            assert await outcome.all(5) == [[i * round_] for i in range(5)]
            assert outcome.parts == [(0, 5)]
        assert [run.lengths for run in graph.runs] == [[1] * 5] * 2
        assert [state(engine, slot) for slot in slots] == [0, 2, 4, 6, 8]
        assert engine.pending == 0


async def test_all_outputs_of_all_time_steps_come_back(accumulator: Path) -> None:
    async with running(load_graph(accumulator)) as engine:
        _, outcome = add_all(engine, taken(engine, 2), [[1, 2, 3], [10, 20, 30]])
        assert await outcome.all(2) == [[1, 3, 6], [10, 30, 60]]


async def test_groups_and_single_steps_share_batches_in_the_order_they_came(
    accumulator: Path,
) -> None:
    graph = load_graph(accumulator, Batching(max_batch_size=4))
    async with running(graph) as engine:
        await held(engine, graph)
        _, first = add_all(engine, taken(engine, 3), [[1], [2], [3]])
        single = add(engine, taken(engine, 1)[0], 4.0)[1]
        _, second = add_all(engine, taken(engine, 6), [[i] for i in range(5, 11)])
        await turned()
        graph.open()
        assert await first.all(3) == [[1], [2], [3]]
        assert await total(single) == [4]
        assert await second.all(6) == [[i] for i in range(5, 11)]
        order = [run.feeds["x"].ravel().tolist() for run in graph.runs[1:]]
        assert order == [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10]]
        assert second.parts == [(0, 4), (4, 2)]


async def test_a_row_whose_caller_left_is_dropped_and_the_others_are_not(accumulator: Path) -> None:
    graph = load_graph(accumulator)
    async with running(graph) as engine:
        await held(engine, graph)
        slots = taken(engine, 3)
        group, outcome = add_all(engine, slots, [[1], [2], [3]])
        await turned()
        group.leave(1)
        graph.open()
        first, second, third = await outcome.all(3)
        assert (first, third) == ([1], [3])
        assert isinstance(second, StepCancelled)
        assert [state(engine, slot) for slot in slots] == [1, 0, 3]


async def test_a_row_is_dropped_also_from_the_rest_of_a_group_that_was_cut(
    accumulator: Path,
) -> None:
    graph = load_graph(accumulator, Batching(max_batch_size=2))
    async with running(graph) as engine:
        await held(engine, graph)
        slots = taken(engine, 6)
        group, outcome = add_all(engine, slots, [[i] for i in range(1, 7)])
        await turned()
        # While the first two are in the model, and the others wait.
        graph.before = lambda run: group.leave(4) if len(graph.runs) == 2 else None
        graph.open()
        found = await outcome.all(6)
        assert found[:4] + found[5:] == [[1], [2], [3], [4], [6]]
        assert isinstance(found[4], StepCancelled)
        assert outcome.parts[0] == (0, 2)
        assert [state(engine, slot) for slot in slots] == [1, 2, 3, 4, 0, 6]


async def test_a_row_left_between_two_chunks_goes_no_further(accumulator: Path) -> None:
    graph = load_graph(accumulator, Batching(max_chunk_length=2))
    async with running(graph) as engine:
        slots = taken(engine, 2)
        group, outcome = add_all(engine, slots, [[1] * 6, [10] * 6])
        graph.before = lambda run: group.leave(0)
        found = await outcome.all(2)
        assert isinstance(found[0], StepCancelled)
        assert found[1] == [10, 20, 30, 40, 50, 60]
        assert group.works[0].done == 2
        assert state(engine, slots[0]) == 2


async def test_a_group_whose_deadline_has_passed_never_runs(accumulator: Path) -> None:
    clock = Clock()
    graph = load_graph(accumulator)
    async with running(graph, clock) as engine:
        await held(engine, graph)
        slots = taken(engine, 2)
        _, outcome = add_all(engine, slots, [[1], [2]], deadline=clock.now + 1)
        clock.now += 2
        await turned()
        graph.open()
        for found in await outcome.all(2):
            assert isinstance(found, DeadlineExceeded)
        assert [state(engine, slot) for slot in slots] == [0, 0]
        assert len(graph.runs) == 1


@pytest.mark.parametrize("bad", [np.nan, np.inf])
async def test_a_row_that_is_not_finite_fails_alone(accumulator: Path, bad: float) -> None:
    async with running(load_graph(accumulator)) as engine:
        slots = taken(engine, 3)
        group, outcome = add_all(engine, slots, [[1, 1], [5, bad], [3, 3]])
        found = await outcome.all(3)
        assert (found[0], found[2]) == ([1, 2], [3, 6])
        assert isinstance(found[1], NonFinite)
        assert group.works[1].done == 0
        assert [state(engine, slot) for slot in slots] == [2, 0, 6]


async def test_a_model_that_raises_fails_only_the_row_it_raises_on(accumulator: Path) -> None:
    graph = load_graph(accumulator)

    def refuse(run: Run) -> None:
        if 13.0 in run.feeds["x"]:
            raise RuntimeError("no thirteen")

    graph.before = refuse
    async with running(graph) as engine:
        slots = taken(engine, 3)
        _, outcome = add_all(engine, slots, [[1], [13], [3]])
        found = await outcome.all(3)
        assert (found[0], found[2]) == ([1], [3])
        assert isinstance(found[1], ModelFailed)
        assert [state(engine, slot) for slot in slots] == [1, 0, 3]


async def test_an_output_nobody_computes_fails_every_row_and_applies_none(
    accumulator: Path,
) -> None:
    async with running(load_graph(accumulator)) as engine:
        slots = taken(engine, 2)
        outcome = Outcome()
        inputs = {"x": np.ones((2, 1))}
        engine.begin_group(slots, inputs, ("no",), np.inf, outcome.end, outcome.end_row)
        assert [type(found) for found in await outcome.all(2)] == [ModelFailed] * 2
        assert [state(engine, slot) for slot in slots] == [0, 0]


@pytest.mark.parametrize("limits", [{"max_pending": 3}, {"max_pending_tokens": 3}])
async def test_a_group_that_finds_no_room_is_refused_as_a_whole(
    accumulator: Path, limits: dict[str, int]
) -> None:
    graph = load_graph(accumulator)
    async with running(graph, **limits) as engine:
        first = await held(engine, graph)
        slots = taken(engine, 3)
        with pytest.raises(Overloaded):
            add_all(engine, slots, [[1], [2], [3]])
        assert engine.pending == 1
        _, outcome = add_all(engine, slots[:2], [[1], [2]])
        assert engine.pending == 3
        await turned()
        graph.open()
        assert await outcome.all(2) == [[1], [2]]
        assert await total(first) == [0]


async def test_longer_steps_than_a_chunk_go_one_by_one_and_are_right(accumulator: Path) -> None:
    limits = Batching(max_batch_size=3, max_chunk_length=4, max_batch_tokens=8)
    graph = load_graph(accumulator, limits)
    async with running(graph) as engine:
        _, outcome = add_all(engine, taken(engine, 4), [[i] * 10 for i in range(1, 5)])
        expected = [[i * n for n in range(1, 11)] for i in range(1, 5)]
        assert await outcome.all(4) == expected
        assert max(run.tokens for run in graph.runs) <= 8


async def test_steps_of_several_time_steps_keep_to_the_tokens_of_a_batch(accumulator: Path) -> None:
    graph = load_graph(accumulator, Batching(max_batch_size=8, max_batch_tokens=9))
    async with running(graph) as engine:
        _, outcome = add_all(engine, taken(engine, 5), [[i, i, i] for i in range(5)])
        assert await outcome.all(5) == [[i, 2 * i, 3 * i] for i in range(5)]
        assert [run.lengths for run in graph.runs] == [[3] * 3, [3] * 2]
        assert outcome.parts == [(0, 3), (3, 2)]


async def test_a_group_shares_the_model_with_other_flows_by_weight(accumulator: Path) -> None:
    graph = load_graph(accumulator, Batching(max_batch_size=2))
    async with running(graph) as engine:
        await held(engine, graph)
        _, many = add_all(
            engine, taken(engine, 8), [[1]] * 8, flow=flow_of("a", "session", "normal")
        )
        _, few = add_all(
            engine, taken(engine, 2), [[2]] * 2, flow=flow_of("b", "session", "normal")
        )
        await turned()
        graph.open()
        assert await many.all(8) == [[1]] * 8
        assert await few.all(2) == [[2]] * 2
        order = [x for run in graph.runs[1:] for x in run.feeds["x"].ravel().tolist()]
        assert order.index(2.0) < 4, "the few wait behind all of the many"
        assert all(len(run.lengths) <= 2 for run in graph.runs)
        # And stays a group, if in parts.
        assert (many.alone, few.alone) == ([], [])


async def test_groups_of_several_lengths_and_flows_stay_groups(accumulator: Path) -> None:
    graph = load_graph(accumulator, Batching(max_batch_size=4))
    async with running(graph) as engine:
        await held(engine, graph)
        singles = [add_all(engine, taken(engine, 3), [[i]] * 3)[1] for i in (1, 2)]
        longer = add_all(engine, taken(engine, 3), [[1, 1, 1]] * 3)[1]
        other = add_all(engine, taken(engine, 3), [[5]] * 3, flow=flow_of("b", "session", "high"))[
            1
        ]
        alone = add(engine, taken(engine, 1)[0], 7.0)[1]
        await turned()
        graph.open()
        for i, outcome in zip((1, 2), singles, strict=True):
            assert await outcome.all(3) == [[i]] * 3
        assert await longer.all(3) == [[1, 2, 3]] * 3
        assert await other.all(3) == [[5]] * 3
        assert await total(alone) == [7]
        assert [o.alone for o in (*singles, longer, other)] == [[]] * 4
        assert all(run.tokens <= 4 * max(run.lengths) for run in graph.runs)
        assert len(graph.runs) < 1 + 6


async def test_of_a_group_that_waits_with_others_those_left_and_late_are_dropped(
    accumulator: Path,
) -> None:
    clock = Clock()
    graph = load_graph(accumulator)
    async with running(graph, clock) as engine:
        await held(engine, graph)
        slots = taken(engine, 6)
        group, outcome = add_all(engine, slots[:3], [[1], [2], [3]])
        late = add_all(engine, slots[3:], [[1, 1]] * 3, deadline=clock.now + 1)[1]
        clock.now += 2
        await turned()
        group.leave(0)
        graph.open()
        first, *others = await outcome.all(3)
        assert isinstance(first, StepCancelled)
        assert others == [[2], [3]]
        assert [type(found) for found in await late.all(3)] == [DeadlineExceeded] * 3
        assert [state(engine, slot) for slot in slots] == [0, 2, 3, 0, 0, 0]


async def test_fixed_shapes_are_filled_up(accumulator: Path) -> None:
    graph = load_graph(accumulator)
    shapes = Shapes({1: [4, 8], 2: [4, 8], 4: [4]}, stable=True)
    async with running(graph, shapes=shapes) as engine:
        slots = taken(engine, 3)
        _, outcome = add_all(engine, slots, [[1, 1, 1], [2, 2, 2], [3, 3, 3]])
        assert await outcome.all(3) == [[1, 2, 3], [2, 4, 6], [3, 6, 9]]
        assert graph.runs[-1].feeds["x"].shape[:2] == (4, 4)
        assert [state(engine, slot) for slot in slots] == [3, 6, 9]


async def test_a_slot_given_back_meanwhile_is_free_once_its_step_has_ended(
    accumulator: Path,
) -> None:
    graph = load_graph(accumulator)
    async with running(graph, capacity=3) as engine:
        await held(engine, graph)
        slots = taken(engine, 2)
        _, outcome = add_all(engine, slots, [[1], [2]])
        engine.give_back(slots[0])
        assert engine.take() is None
        await turned()
        graph.open()
        assert await outcome.all(2) == [[1], [2]]
        again = engine.take()
        assert again is not None
        assert state(engine, again) == 0


async def test_closing_finishes_a_group_that_waits_and_refuses_the_next(accumulator: Path) -> None:
    graph = load_graph(accumulator, Batching(max_batch_size=2))
    async with running(graph) as engine:
        await held(engine, graph)
        slots = taken(engine, 5)
        _, outcome = add_all(engine, slots[:3], [[1], [2], [3]])
        closing = asyncio.create_task(engine.close())
        await turned()
        with pytest.raises(Draining):
            add_all(engine, slots[3:], [[1], [2]])
        graph.open()
        await closing
        assert await outcome.all(3) == [[1], [2], [3]]
