"""Sessions that step together: nothing but the time it takes may tell it from each stepping alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.contract import Batching
from service.engine.engine import Engine
from service.errors import NonFinite, Overloaded, SessionBusy, SessionFenced, StepCancelled
from service.sessions.session import Chunk, Session
from service.sessions.step import Applied, Together
from service.sessions.table import Sessions
from tests.engines import (
    PATIENCE_S,
    WANTED,
    Clock,
    RemoteJournal,
    WatchedGraph,
    load_graph,
    numbers,
    running,
    table,
    turned,
    until,
)

PARAMETERS = b"parameters"


class Stage:
    """Sessions of one accumulator over a journal that answers later, and what became of their steps."""

    def __init__(
        self, sessions: Sessions, engine: Engine, graph: WatchedGraph, journal: RemoteJournal
    ) -> None:
        self.sessions = sessions
        self.engine = engine
        self.graph = graph
        self.journal = journal
        self.alone: list[int] = []

    async def open(self, count: int) -> list[Session]:
        """Sessions with their states at hand."""
        opened = []
        for _ in range(count):
            session, _ = await self.sessions.create(self.engine, "tenant", 10.0)
            await self.alone_step(session, 0.0)
            opened.append(session)
        return opened

    async def alone_step(self, session: Session, *values: float, seq: int | None = None) -> Applied:
        ends = np.arange(len(values))
        chunk = Chunk(numbers(*values), ends, PARAMETERS)
        step = self.sessions.apply(session, chunk, WANTED, seq)
        return await asyncio.wait_for(step, PATIENCE_S)

    def begin(
        self, sessions: list[Session], values: Sequence[Sequence[float]], found: dict[int, Any]
    ) -> Together:
        def on_end(first: int, seqs: list[int], outputs: Any) -> None:
            for row, seq in enumerate(seqs):
                assert first + row not in found
                found[first + row] = (seq, outputs["total"][row].tolist())

        def on_row(place: int, outcome: Applied | Exception) -> None:
            assert place not in found
            self.alone.append(place)
            failed = isinstance(outcome, Exception)
            found[place] = outcome if failed else (outcome.seq, outcome.outputs["total"].tolist())

        inputs = {"x": np.array(values, np.float64)}
        return self.sessions.begin_together(sessions, inputs, PARAMETERS, WANTED, on_end, on_row)

    async def step(self, sessions: list[Session], values: Sequence[Sequence[float]]) -> list[Any]:
        found: dict[int, Any] = {}
        self.begin(sessions, values, found)
        await until(lambda: len(found) == len(sessions))
        return [found[place] for place in range(len(sessions))]

    async def held(self) -> asyncio.Task[Applied]:
        """Have a step of another session enter the model and stay there."""
        (other,) = await self.open(1)
        self.graph.shut()
        task = asyncio.create_task(self.alone_step(other, 0.0))
        await self.graph.entered()
        return task


@asynccontextmanager
async def staged(
    accumulator: Path, batching: Batching | None = None, capacity: int = 32, **policy: Any
) -> AsyncIterator[Stage]:
    clock, journal = Clock(), RemoteJournal()
    graph = load_graph(accumulator, batching)
    async with running(graph, clock, capacity=capacity) as engine:
        sessions = table(engine, journal, clock, **policy)
        yield Stage(sessions, engine, graph, journal)
        graph.open()
        await asyncio.wait_for(sessions.drain(), PATIENCE_S)
        assert all(session.idle for session in sessions.of_tenant("tenant"))


async def test_sessions_that_step_together_count_and_keep_their_states_apart(
    accumulator: Path,
) -> None:
    async with staged(accumulator) as stage:
        opened = await stage.open(3)
        assert await stage.step(opened, [[1], [2], [3]]) == [(2, [1]), (2, [2]), (2, [3])]
        found = await stage.step(opened[1:], [[10, 10], [20, 20]])
        assert found == [(4, [12, 22]), (4, [23, 43])]
        assert (await stage.alone_step(opened[0], 5)).outputs["total"].tolist() == [6]
        assert stage.alone == []


@given(
    rounds=st.lists(
        st.tuples(
            st.lists(st.integers(0, 4), min_size=1, max_size=5, unique=True),
            st.integers(1, 3),
        ),
        max_size=6,
    )
)
@settings(max_examples=25, deadline=None)
def test_the_journal_has_what_it_has_of_sessions_that_step_alone(
    accumulator: Path, rounds: list[tuple[list[int], int]]
) -> None:
    async def stored(*, together: bool) -> list[Any]:
        async with staged(accumulator, snapshot_every=4) as stage:
            opened = await stage.open(5)
            value = 0.0
            for chosen, length in rounds:
                values = [[value + place * length + i for i in range(length)] for place in chosen]
                value += 100
                if together:
                    await stage.step([opened[place] for place in chosen], values)
                else:
                    for place, row in zip(chosen, values, strict=True):
                        await stage.alone_step(opened[place], *row)
            kept = [await stage.journal.fence(session.identity.id) for session in opened]
            assert [(s.seq, s.reply) for s in opened] == [(k.seq, k.reply) for k in kept if k]
            return [_plain(each) for each in kept]

    assert asyncio.run(stored(together=True)) == asyncio.run(stored(together=False))


def _plain(stored: Any) -> Any:
    snapshot = stored.snapshot and (stored.snapshot.seq, float(stored.snapshot.state["state"]))
    log = [{name: values.tolist() for name, values in inputs.items()} for inputs in stored.log]
    return stored.epoch, stored.seq, snapshot, log, stored.reply


async def test_a_retry_of_a_step_that_went_together_is_answered_from_the_journal(
    accumulator: Path,
) -> None:
    async with staged(accumulator) as stage:
        opened = await stage.open(2)
        await stage.step(opened, [[1, 2], [3, 4]])
        again = await stage.alone_step(opened[1], 3, 4, seq=2)
        assert (again.duplicate, again.first, again.seq) == (True, 2, 3)
        assert again.outputs["total"].tolist() == [3, 7]


async def test_a_session_without_its_state_or_busy_or_retrying_is_not_ready(
    accumulator: Path,
) -> None:
    async with staged(accumulator, capacity=2) as stage:
        away, used = await stage.open(2)
        ready = stage.sessions.ready
        new, _ = await stage.sessions.create(stage.engine, "tenant", 10.0)
        assert not ready(new, None), "no slot is free"
        stage.sessions.slots.drop(away)
        assert not ready(away, None)
        assert ready(new, None)
        assert [ready(used, seq) for seq in (None, 1, 2, 3)] == [True, False, True, False]
        with stage.sessions.hold(used):
            assert not ready(used, None)
        stage.graph.shut()
        found: dict[int, Any] = {}
        stage.begin([used], [[1]], found)
        assert not ready(used, None)
        with pytest.raises(SessionBusy):
            await stage.alone_step(used, 1)
        stage.graph.open()
        await until(lambda: bool(found))
        assert ready(used, None)


async def test_only_the_session_that_another_owner_took_fails(accumulator: Path) -> None:
    async with staged(accumulator) as stage:
        opened = await stage.open(3)
        await stage.journal.fence(opened[1].identity.id)
        first, second, third = await stage.step(opened, [[1], [2], [3]])
        assert (first, third) == ((2, [1]), (2, [3]))
        assert isinstance(second, SessionFenced)
        again = await stage.sessions.find(opened[1].identity.id, "tenant")
        assert (await stage.alone_step(again, 7)).outputs["total"].tolist() == [7]


@pytest.mark.parametrize("lands", [False, True])
async def test_a_store_that_fails_is_told_to_all_and_no_state_is_ahead_of_it(
    accumulator: Path, lands: bool
) -> None:
    async with staged(accumulator) as stage:
        opened = await stage.open(2)
        stage.journal.fails, stage.journal.lands = {"commit"}, lands
        found = await stage.step(opened, [[1], [2]])
        assert [type(outcome) for outcome in found] == [ConnectionError] * 2
        assert [session.slot for session in opened] == [None, None]
        # A retry finds it applied, or applies it: once in any case.
        for session, value in zip(opened, (1, 2), strict=True):
            again = await stage.alone_step(session, value, seq=2)
            assert (again.duplicate, again.outputs["total"].tolist()) == (lands, [value])


async def test_a_row_that_is_not_finite_leaves_its_session_as_it_was(accumulator: Path) -> None:
    async with staged(accumulator) as stage:
        opened = await stage.open(3)
        first, second, third = await stage.step(opened, [[1], [np.nan], [3]])
        assert (first, third) == ((2, [1]), (2, [3]))
        assert isinstance(second, NonFinite)
        assert opened[1].seq == 1
        assert (await stage.alone_step(opened[1], 5, seq=2)).outputs["total"].tolist() == [5]


async def test_a_caller_that_leaves_before_the_run_lets_its_step_drop(accumulator: Path) -> None:
    async with staged(accumulator) as stage:
        opened = await stage.open(3)
        task = await stage.held()
        found: dict[int, Any] = {}
        together = stage.begin(opened, [[1], [2], [3]], found)
        await turned()
        together.leave(1)
        stage.graph.open()
        await task
        await until(lambda: len(found) == 2 and all(session.idle for session in opened))
        assert found == {0: (2, [1]), 2: (2, [3])}
        assert [session.seq for session in opened] == [2, 1, 2]


async def test_a_caller_that_leaves_during_the_run_finds_its_step_committed(
    accumulator: Path,
) -> None:
    async with staged(accumulator) as stage:
        opened = await stage.open(2)
        stage.graph.shut()
        together = stage.begin(opened, [[1], [2]], {})
        await stage.graph.entered()
        for place in range(2):
            together.leave(place)
        stage.graph.open()
        await until(lambda: all(session.idle for session in opened))
        for session, value in zip(opened, (1, 2), strict=True):
            again = await stage.alone_step(session, value, seq=2)
            assert (again.duplicate, again.outputs["total"].tolist()) == (True, [value])


async def test_what_a_full_engine_refuses_leaves_no_session_busy(accumulator: Path) -> None:
    graph = load_graph(accumulator)
    async with running(graph, max_pending=2) as engine:
        stage = Stage(table(engine), engine, graph, RemoteJournal())
        opened = await stage.open(3)
        with pytest.raises(Overloaded):
            stage.begin(opened, [[1], [2], [3]], {})
        assert all(session.idle for session in opened)
        assert await stage.step(opened[:2], [[1], [2]]) == [(2, [1]), (2, [2])]


async def test_sessions_of_a_group_that_was_cut_end_part_by_part(accumulator: Path) -> None:
    async with staged(accumulator, Batching(max_batch_size=2)) as stage:
        opened = await stage.open(5)
        found = await stage.step(opened, [[i] for i in range(5)])
        assert found == [(2, [i]) for i in range(5)]
        assert stage.alone == []


async def test_draining_waits_for_steps_that_go_together(accumulator: Path) -> None:
    async with staged(accumulator) as stage:
        opened = await stage.open(2)
        stage.graph.shut()
        found: dict[int, Any] = {}
        stage.begin(opened, [[1], [2]], found)
        await stage.graph.entered()
        draining = asyncio.create_task(stage.sessions.drain())
        await turned()
        assert not draining.done()
        stage.graph.open()
        await asyncio.wait_for(draining, PATIENCE_S)
        assert len(found) == 2
        assert [session.log_length for session in opened] == [0, 0]


async def test_a_dropped_step_of_a_group_is_not_told_to_a_caller_that_left(
    accumulator: Path,
) -> None:
    async with staged(accumulator) as stage:
        opened = await stage.open(2)
        task = await stage.held()
        found: dict[int, Any] = {}
        together = stage.begin(opened, [[1], [2]], found)
        together.leave(0)
        stage.graph.open()
        await task
        await until(lambda: all(session.idle for session in opened))
        assert not any(isinstance(outcome, StepCancelled) for outcome in found.values())
