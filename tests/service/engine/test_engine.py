from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import numpy as np
import pytest

from service.contract import Batching
from service.engine.arena import Slot, StaleSlot
from service.engine.engine import Engine
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
    numbers,
    running,
    total,
    turned,
    used,
)
from tests.models import reference_logits


def taken(engine: Engine) -> Slot:
    slot = engine.take()
    assert slot is not None
    return slot


async def occupied(engine: Engine, graph: WatchedGraph) -> asyncio.Future[object]:
    """Have a step enter the model and stay there, so that what comes next is batched."""
    graph.shut()
    future = add(engine, taken(engine), 0.0)[1]
    await graph.entered()
    return future


def state(engine: Engine, slot: Slot) -> float:
    return float(engine.read(slot)["state"])


async def test_a_step_is_answered_and_moves_the_state(accumulator: Path) -> None:
    async with running(load_graph(accumulator)) as engine:
        slot = taken(engine)
        assert await total(add(engine, slot, 1, 2)[1]) == [1, 3]
        assert await total(add(engine, slot, 4)[1]) == [7]
        assert state(engine, slot) == 7


async def test_only_the_positions_wanted_come_back(accumulator: Path) -> None:
    graph = load_graph(accumulator, Batching(max_chunk_length=2))
    async with running(graph) as engine:
        slot = taken(engine)
        for keep, expected in (([0, 3, 4], [1, 4, 5]), ([4], [10]), ([2], [13]), ([], [])):
            _, future = engine.submit(
                slot, numbers(1, 1, 1, 1, 1), np.array(keep, np.intp), ("total",), np.inf
            )
            assert await total(future) == expected


async def test_a_step_that_wants_no_output_moves_the_state(accumulator: Path) -> None:
    async with running(load_graph(accumulator)) as engine:
        slot = taken(engine)
        _, future = engine.submit(slot, numbers(1, 2), np.array([1]), (), np.inf)
        assert await asyncio.wait_for(future, PATIENCE_S) == {}
        assert state(engine, slot) == 3


async def test_what_waits_runs_as_one_batch(accumulator: Path) -> None:
    graph = load_graph(accumulator)
    async with running(graph) as engine:
        first = await occupied(engine, graph)
        steps = [add(engine, taken(engine), float(i))[1] for i in range(5)]
        await turned()
        graph.open()
        assert [await total(step) for step in steps] == [[i] for i in range(5)]
        assert await total(first) == [0]
        assert [run.lengths for run in graph.runs] == [[1], [1] * 5]


async def test_cancelling_one_of_three_leaves_the_others_alone(accumulator: Path) -> None:
    graph = load_graph(accumulator)
    async with running(graph) as engine:
        await occupied(engine, graph)
        slots = [taken(engine) for _ in range(3)]
        steps = [add(engine, slot, 10.0 + i) for i, slot in enumerate(slots)]
        steps[1][0].cancelled = True
        await turned()
        graph.open()
        assert await total(steps[0][1]) == [10]
        assert await total(steps[2][1]) == [12]
        with pytest.raises(StepCancelled):
            await total(steps[1][1])
        assert [state(engine, slot) for slot in slots] == [10, 0, 12]
        assert graph.runs[-1].lengths == [1, 1]
        assert await total(add(engine, slots[1], 1.0)[1]) == [1]


async def test_a_step_found_cancelled_between_two_chunks_goes_no_further(accumulator: Path) -> None:
    graph = load_graph(accumulator, Batching(max_chunk_length=2))
    async with running(graph) as engine:
        slot = taken(engine)
        work, future = add(engine, slot, 1, 1, 1, 1)

        def leave(run: Run) -> None:
            work.cancelled = True

        graph.before = leave
        with pytest.raises(StepCancelled):
            await total(future)
        assert work.done == 2
        assert state(engine, slot) == 2


async def test_a_model_that_raises_once_costs_nobody_an_answer(
    accumulator: Path, caplog: pytest.LogCaptureFixture
) -> None:
    graph = load_graph(accumulator)
    async with running(graph) as engine:
        await occupied(engine, graph)
        faults = [RuntimeError("once")]

        def fail(run: Run) -> None:
            if len(run.lengths) > 1 and faults:
                raise faults.pop()

        graph.before = fail
        slots = [taken(engine) for _ in range(3)]
        steps = [add(engine, slot, 1.0 + i)[1] for i, slot in enumerate(slots)]
        await turned()
        graph.open()
        assert [await total(step) for step in steps] == [[1], [2], [3]]
        assert [state(engine, slot) for slot in slots] == [1, 2, 3]
        assert [run.lengths for run in graph.runs[1:]] == [[1, 1, 1], [1], [1], [1]]
    assert "model accumulator raised on 3 rows" in caplog.text


async def test_a_row_that_always_raises_fails_alone(
    language: Path, caplog: pytest.LogCaptureFixture
) -> None:
    graph = load_graph(language)
    async with running(graph) as engine:
        graph.shut()
        plug, keep = taken(engine), np.array([0])
        engine.submit(plug, {"tokens": np.array([2])}, keep, ("logits",), np.inf)
        await graph.entered()
        slots = [taken(engine) for _ in range(3)]
        # The graph itself refuses a token outside its vocabulary.
        steps = [
            engine.submit(slot, {"tokens": np.array([token])}, keep, ("logits",), np.inf)[1]
            for slot, token in zip(slots, (3, 999, 4), strict=True)
        ]
        await turned()
        graph.open()
        good = [await asyncio.wait_for(steps[i], PATIENCE_S) for i in (0, 2)]
        with pytest.raises(ModelFailed, match="the step was not applied"):
            await asyncio.wait_for(steps[1], PATIENCE_S)
        for outputs, token in zip(good, (3, 4), strict=True):
            assert np.allclose(outputs["logits"], reference_logits([token]), atol=1e-5)
        assert not engine.read(slots[1])["h"].any()
        _, again = engine.submit(slots[1], {"tokens": np.array([5])}, keep, ("logits",), np.inf)
        outputs = await asyncio.wait_for(again, PATIENCE_S)
        assert np.allclose(outputs["logits"], reference_logits([5]), atol=1e-5)
    assert "raised on one row" in caplog.text


async def test_an_output_nobody_computes_fails_alone_and_applies_nothing_twice(
    accumulator: Path, caplog: pytest.LogCaptureFixture
) -> None:
    graph = load_graph(accumulator)
    async with running(graph) as engine:
        await occupied(engine, graph)
        good, bad = taken(engine), taken(engine)
        right = add(engine, good, 5.0)[1]
        _, wrong = engine.submit(bad, numbers(6.0), np.array([0]), ("nothing",), np.inf)
        await turned()
        graph.open()
        assert await total(right) == [5]
        with pytest.raises(ModelFailed):
            await total(wrong)
        assert (state(engine, good), state(engine, bad)) == (5, 0)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
async def test_a_row_that_is_not_finite_fails_alone(accumulator: Path, bad: float) -> None:
    graph = load_graph(accumulator)
    async with running(graph) as engine:
        await occupied(engine, graph)
        slots = [taken(engine) for _ in range(3)]
        engine.write(slots[1], {"state": np.array(100.0)})
        steps = [add(engine, s, x)[1] for s, x in zip(slots, (1, bad, 3), strict=True)]
        await turned()
        graph.open()
        assert await total(steps[0]) == [1]
        assert await total(steps[2]) == [3]
        with pytest.raises(NonFinite, match="the step was not applied"):
            await total(steps[1])
        assert [state(engine, slot) for slot in slots] == [1, 100, 3]
        assert graph.runs[-1].lengths == [1, 1, 1]


async def test_padding_that_is_not_finite_harms_nobody(accumulator: Path) -> None:
    """A NaN late in one row does not reach a shorter row of the batch, nor its own earlier chunk."""
    graph = load_graph(accumulator, Batching(max_chunk_length=4))
    async with running(graph) as engine:
        await occupied(engine, graph)
        short, long = taken(engine), taken(engine)
        good = add(engine, short, 1, 1, 1)[1]
        work, bad = add(engine, long, 1, 1, 1, 1, np.nan)
        await turned()
        graph.open()
        assert await total(good) == [1, 2, 3]
        with pytest.raises(NonFinite):
            await total(bad)
        assert work.done == 4
        assert state(engine, long) == 4


async def test_work_whose_deadline_has_passed_never_runs(accumulator: Path) -> None:
    clock = Clock()
    graph = load_graph(accumulator)
    async with running(graph, clock) as engine:
        await occupied(engine, graph)
        late, in_time = taken(engine), taken(engine)
        lost = add(engine, late, 1.0, deadline=clock.now + 1)[1]
        kept = add(engine, in_time, 2.0, deadline=clock.now + 3)[1]
        clock.now += 2
        await turned()
        graph.open()
        assert await total(kept) == [2]
        with pytest.raises(DeadlineExceeded, match=r"before the step was applied$"):
            await total(lost)
        assert state(engine, late) == 0
        assert sum(len(run.lengths) for run in graph.runs) == 2


async def test_a_deadline_between_two_chunks_says_that_part_was_applied(accumulator: Path) -> None:
    clock = Clock()
    graph = load_graph(accumulator, Batching(max_chunk_length=2))
    async with running(graph, clock) as engine:
        work, future = add(engine, taken(engine), 1, 1, 1, deadline=clock.now + 1)
        graph.before = lambda run: setattr(clock, "now", clock.now + 2)
        with pytest.raises(DeadlineExceeded, match="applied in full"):
            await total(future)
        assert work.done == 2


async def test_no_batch_is_above_its_limits_and_all_answers_are_right(accumulator: Path) -> None:
    limits = Batching(max_batch_size=3, max_chunk_length=4, max_batch_tokens=10)
    graph = load_graph(accumulator, limits)
    async with running(graph) as engine:
        await occupied(engine, graph)
        lengths = [1, 7, 3, 1, 12, 4, 2, 1, 1, 9]
        steps = [add(engine, taken(engine), *[1.0] * n)[1] for n in lengths]
        await turned()
        graph.open()
        for step, length in zip(steps, lengths, strict=True):
            assert await total(step) == list(range(1, length + 1))
        assert max(len(run.lengths) for run in graph.runs) == 3
        assert max(max(run.lengths) for run in graph.runs) == 4
        assert max(run.tokens for run in graph.runs) <= 10


async def test_single_steps_go_between_the_chunks_of_a_long_input(accumulator: Path) -> None:
    graph = load_graph(accumulator, Batching(max_chunk_length=4))
    async with running(graph) as engine:
        await occupied(engine, graph)
        long = add(engine, taken(engine), *[1.0] * 40)[1]
        singles = [add(engine, taken(engine), 1.0)[1] for _ in range(3)]
        await turned()
        graph.open()
        assert (await total(long))[-1] == 40
        assert [await total(single) for single in singles] == [[1]] * 3
        assert [run.lengths for run in graph.runs[1:4]] == [[4], [1, 1, 1], [4]]


async def test_steps_of_one_class_run_in_the_order_they_came(accumulator: Path) -> None:
    graph = load_graph(accumulator, Batching(max_batch_size=2))
    async with running(graph) as engine:
        await occupied(engine, graph)
        steps = [add(engine, taken(engine), float(i))[1] for i in range(1, 6)]
        await turned()
        graph.open()
        for step in steps:
            await total(step)
        order = [x for run in graph.runs[1:] for x in run.feeds["x"][:, 0].tolist()]
        assert order == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("limits", [{"max_pending": 3}, {"max_pending_tokens": 3}])
async def test_admission_is_refused_at_the_door(accumulator: Path, limits: dict[str, int]) -> None:
    graph = load_graph(accumulator)
    async with running(graph, **limits) as engine:
        first = await occupied(engine, graph)
        steps = [add(engine, taken(engine), 1.0)[1] for _ in range(2)]
        slot = taken(engine)
        with pytest.raises(Overloaded) as refusal:
            add(engine, slot, 1.0)
        assert refusal.value.problem()["retry_after_s"] == 1
        assert engine.pending == 3
        await turned()
        graph.open()
        for step in (first, *steps):
            await total(step)
        assert await total(add(engine, slot, 1.0)[1]) == [1]


async def test_closing_refuses_new_work_and_finishes_what_waits(accumulator: Path) -> None:
    graph = load_graph(accumulator, Batching(max_chunk_length=1))
    async with running(graph) as engine:
        await occupied(engine, graph)
        steps = [add(engine, taken(engine), 1, 1, 1)[1] for _ in range(2)]
        spare = taken(engine)
        closing = asyncio.create_task(engine.close())
        await asyncio.sleep(0)
        with pytest.raises(Draining):
            add(engine, spare, 1.0)
        await turned()
        graph.open()
        await asyncio.wait_for(closing, PATIENCE_S)
        assert all(step.done() for step in steps)
        assert [await total(step) for step in steps] == [[1, 2, 3]] * 2


async def test_an_engine_that_never_started_can_be_closed(accumulator: Path) -> None:
    async with running(load_graph(accumulator)) as engine:
        other = Engine(engine.graph, engine._limits, engine._metrics)
        await other.close()


async def test_a_slot_with_a_step_in_flight_is_given_back_after_it(accumulator: Path) -> None:
    graph = load_graph(accumulator)
    async with running(graph, capacity=1) as engine:
        graph.shut()
        slot = taken(engine)
        step = add(engine, slot, 1.0)[1]
        await graph.entered()
        engine.give_back(slot)
        engine.give_back(slot)
        assert engine.take() is None
        await turned()
        graph.open()
        assert await total(step) == [1]
        assert used(engine) == 0
        assert state(engine, taken(engine)) == 0


async def test_a_slot_with_a_step_in_flight_is_neither_read_nor_written_nor_stepped(
    accumulator: Path,
) -> None:
    graph = load_graph(accumulator)
    async with running(graph) as engine:
        graph.shut()
        slot = taken(engine)
        step = add(engine, slot, 1.0)[1]
        await graph.entered()
        for use in (
            lambda: engine.read(slot),
            lambda: engine.write(slot, {"state": np.array(5.0)}),
            lambda: add(engine, slot, 2.0),
        ):
            with pytest.raises(AssertionError, match="has a step in flight"):
                use()
        await turned()
        graph.open()
        assert await total(step) == [1]


async def test_a_stale_slot_is_refused_and_harms_nobody(accumulator: Path) -> None:
    graph = load_graph(accumulator)
    async with running(graph) as engine:
        old = taken(engine)
        engine.give_back(old)
        new = taken(engine)
        assert new.index == old.index
        await occupied(engine, graph)
        with pytest.raises(StaleSlot):
            add(engine, old, 1.0)
        with pytest.raises(StaleSlot):
            begin_group(engine, [old, taken(engine)])
        right = add(engine, new, 2.0)[1]
        await turned()
        graph.open()
        assert await total(right) == [2]
        assert state(engine, new) == 2
        assert engine.pending == 0


def begin_group(engine: Engine, slots: list[Slot]) -> None:
    """A group that is not expected to begin."""
    inputs = {"x": np.zeros((len(slots), 1))}
    engine.begin_group(slots, inputs, ("total",), np.inf, lambda *_: None, lambda *_: None)


async def test_a_caller_that_leaves_harms_nobody(accumulator: Path) -> None:
    """The future is cancelled while its step runs: the step ends, nobody is told, the loop lives."""
    graph = load_graph(accumulator)
    async with running(graph) as engine:
        graph.shut()
        slot = taken(engine)
        _, future = add(engine, slot, 1.0)
        await graph.entered()
        other = add(engine, taken(engine), 2.0)[1]
        future.cancel()
        await turned()
        graph.open()
        assert await total(other) == [2]
        assert state(engine, slot) == 1


async def test_results_for_a_loop_that_is_gone_are_dropped(
    accumulator: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    graph = load_graph(accumulator)
    engines: list[Engine] = []

    async def abandoned() -> None:
        async with running(graph) as engine:
            pass
        engine = Engine(graph, engine._limits, engine._metrics)
        engine.start()
        engines.append(engine)
        graph.shut()
        add(engine, taken(engine), 1.0)
        await graph.entered()

    await asyncio.to_thread(asyncio.run, abandoned())
    graph.open()
    await engines[0].close()
    assert "event loop closed; 1 results dropped" in caplog.text
