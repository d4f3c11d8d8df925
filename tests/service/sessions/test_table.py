from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.contract import Batching
from service.engine.engine import Engine
from service.errors import (
    DeadlineExceeded,
    ModelFailed,
    NonFinite,
    Overloaded,
    PayloadMismatch,
    SessionBusy,
    SessionExists,
    SessionFenced,
    SessionGone,
    UnknownSession,
    WrongSeq,
)
from service.sessions.session import Chunk, Session
from service.sessions.step import Applied, Wanted
from service.sessions.table import Sessions
from tests.engines import (
    PATIENCE_S,
    WANTED,
    Clock,
    RemoteJournal,
    Run,
    WatchedGraph,
    chunk,
    load_graph,
    numbers,
    running,
    table,
    until,
    used,
)
from tests.models import TOP_K, reference_logits

TTL_S = 10.0


@dataclass
class Stage:
    """Sessions of one accumulator over a journal that answers later."""

    sessions: Sessions
    engine: Engine
    graph: WatchedGraph
    journal: RemoteJournal
    clock: Clock

    async def open(self, session_id: str | None = None) -> Session:
        return (await self.sessions.create(self.engine, "tenant", TTL_S, session_id))[0]

    async def find(self, session_id: str) -> Session:
        return await self.sessions.find(session_id, "tenant")

    async def apply(
        self, session: Session, *values: float, seq: int | None = None, held: bool = False
    ) -> Applied:
        step = self.sessions.apply(session, chunk(*values), WANTED, seq, held=held)
        return await asyncio.wait_for(step, PATIENCE_S)

    async def add(self, session: Session, *values: float, seq: int | None = None) -> list[float]:
        applied = await self.apply(session, *values, seq=seq)
        return [float(value) for value in applied.outputs["total"]]

    def begin(self, session: Session, *values: float) -> asyncio.Task[Applied]:
        return asyncio.create_task(self.apply(session, *values))

    async def entered(self, session: Session, *values: float) -> asyncio.Task[Applied]:
        """Have a step of a session enter the model and stay there."""
        self.graph.shut()
        task = self.begin(session, *values)
        await self.graph.entered()
        return task

    def count(self, name: str, **labels: str) -> float:
        found = self.sessions._metrics.registry.get_sample_value(
            f"seqserve_{name}", {"model": "accumulator", "version": "1", **labels}
        )
        return found or 0.0


async def left(caller: asyncio.Task[Any]) -> None:
    """Have a caller leave, and wait until it has."""
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller


Staged = Callable[..., AbstractAsyncContextManager[Stage]]


@pytest.fixture
def staged(accumulator: Path) -> Staged:
    @asynccontextmanager
    async def make(
        capacity: int = 8, batching: Batching | None = None, **policy: Any
    ) -> AsyncIterator[Stage]:
        clock, journal = Clock(), RemoteJournal()
        graph = load_graph(accumulator, batching)
        async with running(graph, clock, capacity=capacity) as engine:
            sessions = table(engine, journal, clock, **policy)
            yield Stage(sessions, engine, graph, journal, clock)
            await sessions.drain()
            # Nothing is left at work, and no slot is held but by a session.
            all_sessions = list(sessions._sessions.values())
            assert [s for s in all_sessions if not s.idle] == []
            assert used(engine) == sum(s.slot is not None for s in all_sessions)

    return make


# Steps and their numbers.


async def test_a_session_adds_up_and_counts(staged: Staged) -> None:
    async with staged() as stage:
        session = await stage.open()
        first = await stage.apply(session, 1.0)
        assert (first.first, first.seq, first.duplicate) == (1, 1, False)
        second = await stage.apply(session, 2.0, 4.0, seq=2)
        assert (second.first, second.seq) == (2, 3)
        assert second.outputs["total"].tolist() == [3, 7]


async def test_the_first_step_of_a_session_made_here_asks_the_journal_nothing(
    staged: Staged,
) -> None:
    async with staged(capacity=1) as stage:
        first, second = await stage.open("a"), await stage.open("b")
        stage.journal.calls.clear()
        assert await stage.add(first, 3.0) == [3]
        assert stage.journal.calls == ["commit"]
        assert stage.count("sessions_resident") == 1
        # No slot is free: the first is paged out as ever, and so it is asked for when it comes again.
        assert await stage.add(second, 4.0) == [4]
        assert await stage.add(first, 1.0, seq=2) == [4]
        assert stage.journal.calls.count("fence") == 2


@pytest.mark.parametrize("lands", [False, True])
async def test_after_a_first_commit_that_failed_the_journal_is_asked(
    staged: Staged, lands: bool
) -> None:
    async with staged() as stage:
        session = await stage.open()
        stage.journal.fails, stage.journal.lands = {"commit"}, lands
        with pytest.raises(ConnectionError):
            await stage.add(session, 3.0, seq=1)
        retry = await stage.apply(session, 3.0, seq=1)
        assert (retry.duplicate, retry.outputs["total"].tolist()) == (lands, [3])
        assert await stage.add(session, 1.0, seq=2) == [4]


async def test_a_session_made_here_that_another_owner_took_is_fenced_at_its_first_step(
    staged: Staged,
) -> None:
    async with staged() as stage:
        session = await stage.open("s")
        await stage.journal.fence("s")
        with pytest.raises(SessionFenced):
            await stage.add(session, 1.0)
        assert await stage.add(await stage.find("s"), 2.0, seq=1) == [2]


async def test_an_input_of_several_time_steps_counts_once(staged: Staged) -> None:
    async with staged() as stage:
        session = await stage.open()
        whole = Chunk(numbers(1, 2, 4), np.array([1, 2]))
        applied = await stage.sessions.apply(session, whole, WANTED)
        assert (applied.seq, applied.outputs["total"].tolist()) == (2, [3, 7])


async def test_a_retry_gets_the_stored_reply_and_nothing_runs(staged: Staged) -> None:
    async with staged() as stage:
        session = await stage.open()
        await stage.add(session, 1.0, seq=1)
        await stage.add(session, 2.0, 4.0, seq=2)
        runs = len(stage.graph.runs)
        retry = await stage.apply(session, 2.0, 4.0, seq=2)
        assert (retry.first, retry.seq, retry.duplicate) == (2, 3, True)
        assert retry.outputs["total"].tolist() == [3, 7]
        assert len(stage.graph.runs) == runs
        assert stage.count("duplicate_steps_total") == 1
        assert await stage.add(session, 1.0, seq=4) == [8]


async def test_a_retry_is_answered_after_paging_out(staged: Staged) -> None:
    async with staged(capacity=1) as stage:
        session, other = await stage.open(), await stage.open()
        await stage.add(session, 5.0, seq=1)
        await stage.add(other, 1.0)
        assert session.slot is None
        assert (await stage.apply(session, 5.0, seq=1)).duplicate
        assert await stage.add(session, 1.0) == [6]


async def test_wrong_numbers_and_other_payloads_change_nothing(staged: Staged) -> None:
    async with staged() as stage:
        session = await stage.open()
        await stage.add(session, 1.0)
        for seq in (0, 3):
            with pytest.raises(WrongSeq):
                await stage.add(session, 1.0, seq=seq)
        with pytest.raises(PayloadMismatch):
            await stage.add(session, 2.0, seq=1)
        assert await stage.add(session, 1.0, seq=2) == [2]


async def test_what_is_wanted_only_once_is_not_stored(staged: Staged) -> None:
    async with staged() as stage:
        session = await stage.open()
        wanted = Wanted((), deadline=np.inf, passing=("total",))
        applied = await stage.sessions.apply(session, chunk(3.0), wanted, 1)
        assert applied.outputs["total"].tolist() == [3]
        assert (await stage.sessions.apply(session, chunk(3.0), wanted, 1)).outputs == {}


async def test_one_step_at_a_time(staged: Staged) -> None:
    async with staged() as stage:
        session = await stage.open()
        first = await stage.entered(session, 1.0)
        with pytest.raises(SessionBusy) as error:
            await stage.add(session, 2.0)
        assert error.value.extra == {"committed": 0, "expected": 1}
        with pytest.raises(SessionBusy):
            await stage.sessions.delete(session)
        stage.graph.open()
        assert (await first).seq == 1
        assert await stage.add(session, 2.0) == [3]


async def test_a_row_that_is_not_finite_leaves_the_session_as_it_was(staged: Staged) -> None:
    async with staged() as stage:
        session = await stage.open()
        await stage.add(session, 1.0)
        with pytest.raises(NonFinite):
            await stage.add(session, np.nan, seq=2)
        assert await stage.add(session, 2.0, seq=2) == [3]


async def test_a_model_that_fails_leaves_the_session_as_it_was(
    staged: Staged, caplog: pytest.LogCaptureFixture
) -> None:
    async with staged(batching=Batching(max_chunk_length=2)) as stage:
        session = await stage.open()
        await stage.add(session, 1.0)

        def fail(run: Run) -> None:
            if 8.0 in run.feeds["x"]:
                raise RuntimeError("no")

        stage.graph.before = fail
        for values in ((8.0,), (1.0, 1.0, 8.0)):
            with pytest.raises(ModelFailed):
                await stage.add(session, *values, seq=2)
        assert await stage.add(session, 2.0, seq=2) == [3]


# Out of memory and back.


async def test_more_sessions_than_slots_give_the_same_numbers(staged: Staged) -> None:
    async with staged(capacity=1) as stage:
        sessions = [await stage.open() for _ in range(4)]
        for turn in range(1, 8):
            for number, session in enumerate(sessions):
                assert await stage.add(session, float(number)) == [turn * number]
                assert used(stage.engine) == 1
        assert stage.count("sessions_resident") == 1
        assert stage.count("sessions_paged_total", way="out") == 27
        assert stage.count("sessions_paged_total", way="in") == 24


async def test_waking_gives_the_very_same_state(language: Path) -> None:
    def tokens(*ids: int) -> Chunk:
        return Chunk({"tokens": np.array(ids)}, np.arange(len(ids)))

    wanted = Wanted(("logits",), deadline=np.inf)
    text = [2, 3, 4, 5, 6, 7, 8, 2, 9]
    logits: dict[int, list[np.ndarray]] = {}
    for capacity in (1, 2):
        async with running(load_graph(language), capacity=capacity) as engine:
            sessions = table(engine, RemoteJournal(), snapshot_every=2)
            one, other = [(await sessions.create(engine, "t", 9.0))[0] for _ in range(2)]
            logits[capacity] = []
            for token in text:
                applied = await sessions.apply(one, tokens(token), wanted)
                logits[capacity].append(applied.outputs["logits"][0])
                await sessions.apply(other, tokens(3), wanted)
    assert np.array_equal(logits[1], logits[2])
    assert np.allclose(logits[1], reference_logits(text), atol=1e-5)


async def test_a_retry_that_wants_more_of_the_best_than_were_kept_says_so(language: Path) -> None:
    step = Chunk({"tokens": np.array([3])}, np.arange(1))

    def best(top_k: int) -> Wanted:
        return Wanted(("top_scores", "top_indices", "logsumexp"), np.inf, top_k=top_k)

    async with running(load_graph(language), capacity=1) as engine:
        sessions = table(engine, RemoteJournal())
        one, other = [(await sessions.create(engine, "t", 9.0))[0] for _ in range(2)]
        first = await sessions.apply(one, step, best(3), 1)
        assert first.outputs["top_indices"].shape == (1, 3)
        for _ in range(2):
            for top_k, due in ((4, 4), (0, TOP_K)):
                with pytest.raises(PayloadMismatch, match=f"the best 3, not {due}; send it"):
                    await sessions.apply(one, step, best(top_k), 1)
            again = await sessions.apply(one, step, best(3), 1)
            assert again.duplicate
            assert again.outputs["top_indices"].tolist() == first.outputs["top_indices"].tolist()
            # Paged out, it knows as much.
            await sessions.apply(other, step, best(3))


async def test_the_longest_unused_session_goes_first(staged: Staged) -> None:
    async with staged(capacity=2) as stage:
        a, b, c = [await stage.open() for _ in range(3)]
        for session in (a, b, a, c):
            await stage.add(session, 1.0)
        assert [s.slot is not None for s in (a, b, c)] == [True, False, True]


async def test_without_a_free_slot_a_step_is_refused_and_can_be_sent_again(staged: Staged) -> None:
    async with staged(capacity=1) as stage:
        a, b = await stage.open(), await stage.open()
        first = await stage.entered(a, 1.0)
        with pytest.raises(Overloaded, match="every slot of model accumulator"):
            await stage.add(b, 2.0, seq=1)
        stage.graph.open()
        await first
        assert await stage.add(b, 2.0, seq=1) == [2]


async def test_a_one_shot_step_takes_a_slot_and_gives_it_back(staged: Staged) -> None:
    async with staged(capacity=1) as stage:
        session = await stage.open()
        await stage.add(session, 1.0)
        outputs = await stage.sessions.run_once(stage.engine, chunk(7.0), ("total",), np.inf)
        assert outputs["total"].tolist() == [7]
        assert (session.slot, used(stage.engine)) == (None, 0)
        assert await stage.add(session, 1.0) == [2]


@pytest.mark.parametrize("running_", [True, False], ids=["running", "waiting"])
async def test_a_one_shot_caller_that_leaves_leaves_its_slot(
    staged: Staged, running_: bool
) -> None:
    async with staged() as stage:
        session = await stage.open()
        other = await stage.entered(session, 1.0) if not running_ else None
        if running_:
            stage.graph.shut()
        step = asyncio.create_task(
            stage.sessions.run_once(stage.engine, chunk(7.0), ("total",), np.inf)
        )
        if running_:
            await stage.graph.entered()
        await until(lambda: stage.engine.pending == (1 if running_ else 2))
        await left(step)
        stage.graph.open()
        if other is not None:
            await other
        # What comes after it is answered after it has ended.
        await stage.sessions.run_once(stage.engine, chunk(1.0), ("total",), np.inf)
        assert used(stage.engine) == (0 if running_ else 1)
        ran = [run.feeds["x"][0, 0] for run in stage.graph.runs]
        assert (7.0 in ran) == running_


async def test_snapshots_come_every_so_many_time_steps(staged: Staged) -> None:
    async with staged(snapshot_every=3) as stage:
        session = await stage.open()
        for _ in range(7):
            await stage.add(session, 1.0)
        assert stage.journal.calls.count("snapshot") == 2
        assert session.log_length == 1


async def test_draining_waits_for_steps_and_snapshots_what_is_resident(staged: Staged) -> None:
    async with staged(snapshot_every=100) as stage:
        session = await stage.open("s")
        await stage.add(session, 1.0)
        step = await stage.entered(session, 2.0)
        draining = asyncio.create_task(stage.sessions.drain())
        await asyncio.sleep(0)
        assert not draining.done()
        stage.graph.open()
        await asyncio.wait_for(draining, PATIENCE_S)
        assert (await step).seq == 2
        stored = await stage.journal.fence("s")
        assert stored is not None
        assert stored.snapshot is not None
        assert (stored.snapshot.seq, float(stored.snapshot.state["state"])) == (2, 3)


# Callers that leave, and time that runs out.


async def test_a_caller_that_leaves_before_its_step_runs_has_sent_nothing(staged: Staged) -> None:
    async with staged() as stage:
        session, other = await stage.open(), await stage.open()
        await stage.add(session, 1.0)
        plug = await stage.entered(other, 1.0)
        leaving = stage.begin(session, 2.0)
        await until(lambda: stage.engine.pending == 2)
        await left(leaving)
        stage.graph.open()
        await plug
        await stage.sessions.drain()
        assert (session.seq, session.busy) == (1, False)
        assert await stage.add(session, 4.0, seq=2) == [5]


async def test_a_caller_that_leaves_at_once_has_sent_nothing(staged: Staged) -> None:
    """The session is still being woken when its caller goes."""
    async with staged() as stage:
        session, other = await stage.open(), await stage.open()
        await stage.add(session, 1.0)
        stage.sessions.slots.drop(session)
        plug = await stage.entered(other, 1.0)
        stage.journal.calls.clear()
        leaving = stage.begin(session, 2.0)
        await until(lambda: "fence" in stage.journal.calls)
        assert stage.engine.pending == 1
        await left(leaving)
        stage.graph.open()
        await plug
        await stage.sessions.drain()
        assert session.seq == 1
        assert await stage.add(session, 4.0, seq=2) == [5]


async def test_a_running_step_goes_on_to_its_commit_and_the_retry_finds_it(staged: Staged) -> None:
    async with staged() as stage:
        session = await stage.open()
        await left(await stage.entered(session, 3.0))
        stage.graph.open()
        await stage.sessions.drain()
        retry = await stage.apply(session, 3.0, seq=1)
        assert (retry.duplicate, retry.outputs["total"].tolist()) == (True, [3])
        assert await stage.add(session, 1.0) == [4]


async def test_what_becomes_of_a_departed_callers_step_is_logged(
    staged: Staged, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    async with staged() as stage:
        session = await stage.open()
        await left(await stage.entered(session, np.nan))
        stage.graph.open()
        await stage.sessions.drain()
        assert await stage.add(session, 1.0, seq=1) == [1]
    assert "step of a departed caller ended with the model computed NaN" in caplog.text


async def test_a_long_step_cancelled_on_the_way_leaves_the_committed_state(staged: Staged) -> None:
    async with staged(batching=Batching(max_chunk_length=2)) as stage:
        session = await stage.open()
        await stage.add(session, 1.0, 2.0, 4.0)
        await left(await stage.entered(session, *[100.0] * 6))
        stage.graph.open()
        await stage.sessions.drain()
        assert (session.seq, session.slot) == (3, None)
        assert len(stage.graph.runs) < 5
        assert await stage.add(session, 8.0, seq=4) == [15]


async def test_a_long_step_whose_deadline_passes_leaves_the_committed_state(staged: Staged) -> None:
    async with staged(batching=Batching(max_chunk_length=2)) as stage:
        session = await stage.open()
        await stage.add(session, 1.0, 2.0, 4.0)
        stage.graph.before = lambda run: setattr(stage.clock, "now", stage.clock.now + 1)
        wanted = Wanted(("total",), deadline=stage.clock.now)
        with pytest.raises(DeadlineExceeded):
            await stage.sessions.apply(session, chunk(*[100.0] * 6), wanted, 4)
        assert (session.seq, session.slot) == (3, None)
        assert await stage.add(session, 8.0, seq=4) == [15]


async def test_a_step_too_late_to_begin_keeps_its_slot(staged: Staged) -> None:
    async with staged() as stage:
        session = await stage.open()
        await stage.add(session, 1.0)
        wanted = Wanted(("total",), deadline=stage.clock.now - 1)
        with pytest.raises(DeadlineExceeded):
            await stage.sessions.apply(session, chunk(2.0), wanted)
        assert session.slot is not None
        assert await stage.add(session, 2.0, seq=2) == [3]


# Owners and stores.


async def test_a_stale_owner_is_fenced_and_drops_the_session(staged: Staged) -> None:
    async with staged() as stage:
        session = await stage.open("s")
        await stage.add(session, 1.0)
        elsewhere = table(stage.engine, stage.journal, stage.clock)
        taken = await elsewhere.find("s", "tenant")
        applied = await elsewhere.apply(taken, chunk(2.0), WANTED, 2)
        assert applied.outputs["total"].tolist() == [3]
        with pytest.raises(SessionFenced):
            await stage.add(session, 100.0, seq=2)
        assert (session.slot, len(stage.sessions)) == (None, 0)
        # Found anew, it stands where the other owner left it.
        session = await stage.find("s")
        with pytest.raises(PayloadMismatch):
            await stage.add(session, 100.0, seq=2)
        assert await stage.add(session, 4.0, seq=3) == [7]
        with pytest.raises(SessionFenced):
            await elsewhere.apply(taken, chunk(100.0), WANTED)
        assert taken.slot is None


async def test_a_session_that_moved_on_elsewhere_is_not_stepped_under_an_old_number(
    staged: Staged,
) -> None:
    async with staged(capacity=1) as stage:
        session, other = await stage.open("s"), await stage.open()
        await stage.add(session, 1.0)
        await stage.add(other, 1.0)
        elsewhere = table(stage.engine, stage.journal, stage.clock)
        taken = await elsewhere.find("s", "tenant")
        await stage.sessions.slots._page_out(other)
        await elsewhere.apply(taken, chunk(2.0), WANTED, 2)
        elsewhere.slots.drop(taken)
        assert (await stage.apply(session, 2.0, seq=2)).duplicate
        assert await stage.add(session, 4.0, seq=3) == [7]


@pytest.mark.parametrize("lands", [False, True], ids=["lost", "landed"])
async def test_a_commit_that_fails_can_be_sent_again_and_counts_once(
    staged: Staged, lands: bool
) -> None:
    async with staged() as stage:
        session = await stage.open()
        await stage.add(session, 1.0)
        stage.journal.fails, stage.journal.lands = {"commit"}, lands
        with pytest.raises(ConnectionError):
            await stage.add(session, 2.0, seq=2)
        assert (session.slot, session.busy) == (None, False)
        again = await stage.apply(session, 2.0, seq=2)
        assert (again.first, again.seq, again.duplicate) == (2, 2, lands)
        assert again.outputs["total"].tolist() == [3]
        assert await stage.add(session, 4.0, seq=3) == [7]


async def test_a_store_that_fails_at_waking_leaves_the_session_usable(staged: Staged) -> None:
    async with staged() as stage:
        session = await stage.open()
        await stage.add(session, 2.0)
        stage.sessions.slots.drop(session)
        stage.journal.fails = {"fence"}
        with pytest.raises(ConnectionError):
            await stage.add(session, 1.0, seq=2)
        assert (session.busy, used(stage.engine)) == (False, 0)
        assert await stage.add(session, 1.0, seq=2) == [3]


async def test_replaying_that_fails_gives_the_slot_back(
    staged: Staged, caplog: pytest.LogCaptureFixture
) -> None:
    async with staged(snapshot_every=100) as stage:
        session = await stage.open()
        await stage.add(session, 1.0)
        stage.sessions.slots.drop(session)
        stage.graph.before = lambda run: 1 / 0
        with pytest.raises(ModelFailed):
            await stage.add(session, 2.0)
        assert used(stage.engine) == 0
        stage.graph.before = lambda run: None
        assert await stage.add(session, 2.0, seq=2) == [3]


async def test_a_snapshot_that_fails_costs_nobody_an_answer(
    staged: Staged, caplog: pytest.LogCaptureFixture
) -> None:
    async with staged(capacity=1, snapshot_every=2) as stage:
        session, other = await stage.open(), await stage.open()
        stage.journal.fails = {"snapshot"}
        assert await stage.add(session, 1.0, 2.0) == [1, 3]
        assert session.log_length == 2
        stage.journal.fails = {"snapshot"}
        assert await stage.add(other, 1.0) == [1]
        assert await stage.add(session, 4.0) == [7]
    assert "no snapshot of session" in caplog.text


async def test_an_end_that_fails_leaves_the_session_as_it_was(
    staged: Staged, caplog: pytest.LogCaptureFixture
) -> None:
    async with staged() as stage:
        session = await stage.open("s")
        await stage.add(session, 1.0)
        stage.journal.fails = {"end"}
        with pytest.raises(ConnectionError):
            await stage.sessions.delete(session)
        assert await stage.add(session, 2.0) == [3]
        await stage.open("t")
        stage.clock.now += TTL_S + 1
        stage.journal.fails = {"end"}
        assert await stage.sessions.sweep() == 1
        assert len(stage.sessions) == 1
        assert await stage.sessions.sweep() == 1
        assert used(stage.engine) == 0
    assert "could not be ended" in caplog.text


async def test_a_session_ended_elsewhere_is_forgotten_here(staged: Staged) -> None:
    async with staged() as stage:
        session = await stage.open("s")
        elsewhere = table(stage.engine, stage.journal, stage.clock)
        await elsewhere.delete(await elsewhere.find("s", "tenant"))
        # The commit finds out; had the state been away, waking it would have.
        with pytest.raises(SessionFenced):
            await stage.add(session, 1.0)
        with pytest.raises(SessionGone, match="deleted"):
            await stage.find("s")
        away = await stage.open("t")
        await stage.add(away, 1.0)
        stage.sessions.slots.drop(away)
        await elsewhere.delete(await elsewhere.find("t", "tenant"))
        with pytest.raises(UnknownSession):
            await stage.add(away, 1.0)


async def test_a_session_ended_elsewhere_can_be_deleted_here(staged: Staged) -> None:
    async with staged() as stage:
        session = await stage.open("s")
        elsewhere = table(stage.engine, stage.journal, stage.clock)
        await elsewhere.delete(await elsewhere.find("s", "tenant"))
        await stage.sessions.delete(session)
        assert len(stage.sessions) == 0
        assert stage.count("sessions_expired_total", reason="deleted") == 0


async def test_what_is_left_of_a_fenced_session_does_not_take_its_successor_along(
    staged: Staged,
) -> None:
    async with staged() as stage:
        fenced = await stage.open("s")
        await stage.add(fenced, 1.0)
        elsewhere = table(stage.engine, stage.journal, stage.clock)
        taken = await elsewhere.find("s", "tenant")
        with pytest.raises(SessionFenced):
            await stage.add(fenced, 2.0)
        successor = await stage.find("s")
        assert successor is not fenced
        await elsewhere.delete(taken)
        with pytest.raises(UnknownSession):
            await stage.add(fenced, 2.0)
        assert list(stage.sessions.of_tenant("tenant")) == [successor]


async def test_two_who_look_for_a_session_at_once_find_the_same(staged: Staged) -> None:
    async with staged() as stage:
        await stage.add(await stage.open("s"), 1.0)
        elsewhere = table(stage.engine, stage.journal, stage.clock)
        one, other = await asyncio.gather(*(elsewhere.find("s", "tenant") for _ in range(2)))
        assert one is other
        assert len(elsewhere) == 1
        applied = await elsewhere.apply(one, chunk(2.0), WANTED)
        assert applied.outputs["total"].tolist() == [3]
        elsewhere.slots.drop(one)


async def test_two_who_open_the_same_id_at_once_share_one_session(staged: Staged) -> None:
    async with staged() as stage:
        made = await asyncio.gather(
            *(stage.sessions.create(stage.engine, "tenant", TTL_S, "s") for _ in range(3))
        )
        assert len({id(session) for session, _ in made}) == 1
        assert sum(new for _, new in made) == 1
        assert stage.count("sessions_active") == 1
        assert await stage.add(made[2][0], 1.0) == [1]


# Life and death.


async def test_made_ids_are_long_and_differ(staged: Staged) -> None:
    async with staged() as stage:
        ids = {(await stage.open()).identity.id for _ in range(20)}
        assert len(ids) == 20
        assert min(map(len, ids)) >= 22


async def test_an_id_opened_again_is_the_same_session(staged: Staged) -> None:
    async with staged() as stage:
        session, new = await stage.sessions.create(stage.engine, "tenant", TTL_S, "s")
        again, new_again = await stage.sessions.create(stage.engine, "tenant", TTL_S, "s")
        assert (new, new_again, again is session) == (True, False, True)


async def test_an_id_of_another_model_or_tenant_is_taken(staged: Staged, language: Path) -> None:
    async with staged() as stage, running(load_graph(language)) as other:
        await stage.open("s")
        with pytest.raises(SessionExists, match="of model accumulator version 1"):
            await stage.sessions.create(other, "tenant", TTL_S, "s")
        with pytest.raises(SessionExists, match="is taken"):
            await stage.sessions.create(stage.engine, "stranger", TTL_S, "s")


async def test_another_tenants_session_is_unknown(staged: Staged) -> None:
    async with staged() as stage:
        await stage.open("s")
        with pytest.raises(UnknownSession):
            await stage.sessions.find("s", "stranger")
        assert [s.identity.id for s in stage.sessions.of_tenant("tenant")] == ["s"]
        assert stage.sessions.of_tenant("stranger") == []


async def test_an_unknown_session_is_named(staged: Staged) -> None:
    async with staged() as stage:
        with pytest.raises(UnknownSession, match="no session nobody"):
            await stage.find("nobody")


async def test_a_deleted_session_is_gone_and_says_so(staged: Staged) -> None:
    async with staged() as stage:
        session = await stage.open("s")
        await stage.add(session, 1.0)
        await stage.sessions.delete(session)
        assert used(stage.engine) == 0
        with pytest.raises(SessionGone) as error:
            await stage.find("s")
        assert error.value.extra == {"reason": "deleted", "ended_at": 1_700_000_000.0}
        with pytest.raises(UnknownSession):
            await stage.sessions.find("s", "another tenant")
        assert await stage.add(await stage.open("s"), 5.0, seq=1) == [5]


@pytest.mark.parametrize("how", ["found", "swept"])
async def test_an_idle_session_expires(staged: Staged, how: str) -> None:
    async with staged() as stage:
        session = await stage.open("s")
        await stage.add(session, 1.0)
        stage.clock.now += TTL_S
        assert await stage.sessions.sweep() == 0
        await stage.add(session, 1.0)
        stage.clock.now += TTL_S + 0.001
        if how == "swept":
            assert await stage.sessions.sweep() == 1
            assert used(stage.engine) == 0
        with pytest.raises(SessionGone, match="ttl"):
            await stage.find("s")
        assert (len(stage.sessions), used(stage.engine)) == (0, 0)
        assert stage.count("sessions_expired_total", reason="ttl") == 1
        _, new = await stage.sessions.create(stage.engine, "tenant", TTL_S, "s")
        assert new


async def test_an_expired_id_can_be_opened_again_at_once(staged: Staged) -> None:
    async with staged() as stage:
        await stage.add(await stage.open("s"), 1.0)
        stage.clock.now += TTL_S + 1
        session, new = await stage.sessions.create(stage.engine, "tenant", TTL_S, "s")
        assert (new, session.seq) == (True, 0)
        assert await stage.add(session, 5.0) == [5]


async def test_a_session_put_to_work_while_others_expire_is_spared(staged: Staged) -> None:
    async with staged() as stage:
        await stage.open("a")
        working = await stage.open("b")
        stage.clock.now += TTL_S + 1
        sweep = asyncio.create_task(stage.sessions.sweep())
        await until(lambda: "end" in stage.journal.calls)
        assert await stage.add(working, 1.0) == [1]
        assert await sweep == 1
        assert await stage.find("b") is working


async def test_a_session_at_work_does_not_expire(staged: Staged) -> None:
    async with staged() as stage:
        session = await stage.open("s")
        step = await stage.entered(session, 1.0)
        stage.clock.now += 10 * TTL_S
        assert await stage.sessions.sweep() == 0
        assert await stage.find("s") is session
        stage.graph.open()
        assert (await step).seq == 1
        assert await stage.sessions.sweep() == 0


async def test_when_full_the_longest_idle_session_makes_room(staged: Staged) -> None:
    async with staged(max_sessions=2, evict_idle_s=5.0) as stage:
        a, b = await stage.open("a"), await stage.open("b")
        await stage.add(a, 1.0)
        with pytest.raises(Overloaded, match="2 sessions are open"):
            await stage.open("c")
        stage.clock.now += 4
        await stage.add(a, 1.0)
        stage.clock.now += 2
        await stage.open("c")
        with pytest.raises(SessionGone, match="evicted"):
            await stage.find("b")
        assert stage.count("sessions_evicted_total") == 1
        assert await stage.add(a, 1.0) == [3]
        assert b.slot is None


async def test_when_full_of_working_sessions_nobody_is_evicted(staged: Staged) -> None:
    async with staged(max_sessions=1, evict_idle_s=0.0) as stage:
        step = await stage.entered(await stage.open("a"), 1.0)
        with pytest.raises(Overloaded):
            await stage.open("b")
        stage.graph.open()
        assert (await step).seq == 1
        assert await stage.add(await stage.open("b"), 1.0) == [1]


async def test_a_held_session_answers_its_holder_only(staged: Staged) -> None:
    async with staged(max_sessions=1, evict_idle_s=0.0) as stage:
        session = await stage.open("s")
        with stage.sessions.hold(session):
            assert (await stage.apply(session, 1.0, held=True)).seq == 1
            with pytest.raises(SessionBusy):
                await stage.add(session, 1.0)
            with pytest.raises(SessionBusy), stage.sessions.hold(session):
                pass
            with pytest.raises(SessionBusy):
                await stage.sessions.delete(session)
            stage.clock.now += 10 * TTL_S
            assert await stage.sessions.sweep() == 0
            with pytest.raises(Overloaded):
                await stage.open("t")
            assert (await stage.apply(session, 1.0, held=True)).seq == 2
        assert await stage.add(session, 1.0) == [3]


async def test_a_hold_ends_with_an_error_too(staged: Staged) -> None:
    async with staged() as stage:
        session = await stage.open()
        with pytest.raises(NonFinite), stage.sessions.hold(session):
            await stage.apply(session, np.inf, held=True)
        assert session.idle
        assert await stage.add(session, 1.0) == [1]


async def test_a_held_session_keeps_its_slot_while_others_are_paged_out(staged: Staged) -> None:
    async with staged(capacity=2) as stage:
        held, a, b = [await stage.open() for _ in range(3)]
        with stage.sessions.hold(held):
            await stage.apply(held, 1.0, held=True)
            for session in (a, b, a, b):
                await stage.add(session, 1.0)
            assert held.slot is not None


async def test_a_session_that_rests_gets_a_snapshot_in_place_of_its_long_log(
    staged: Staged,
) -> None:
    async with staged(snapshot_every=1000) as stage:
        long, short = await stage.open("long"), await stage.open("short")
        await stage.add(long, *range(20))
        await stage.add(short, 1.0)
        stage.journal.calls.clear()
        assert await stage.sessions.sweep() == 0
        assert "snapshot" not in stage.journal.calls
        stage.clock.now += 2
        assert await stage.sessions.sweep() == 0
        assert stage.journal.calls.count("snapshot") == 1
        stored = await stage.journal.fence("long")
        assert stored is not None
        assert stored.snapshot is not None
        assert (stored.snapshot.seq, stored.log) == (20, [])
        assert float(stored.snapshot.state["state"]) == sum(range(20))
        # Nothing is new: nothing is to be done.
        stage.journal.calls.clear()
        await stage.sessions.sweep()
        assert "snapshot" not in stage.journal.calls


async def test_a_sweep_of_many_sessions_lets_others_have_their_turn(staged: Staged) -> None:
    async with staged(max_sessions=2000) as stage:
        for number in range(600):
            await stage.open(str(number))
        turns = 0

        async def count() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        other = asyncio.create_task(count())
        assert await stage.sessions.sweep() == 0
        other.cancel()
        assert turns >= 2
