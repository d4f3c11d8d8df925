"""Sessions against a model of a few lines: a number that grows, how many inputs made it, and the last answer."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from service.contract import Batching
from service.errors import (
    DeadlineExceeded,
    NonFinite,
    PayloadMismatch,
    ServiceError,
    SessionFenced,
    SessionGone,
    UnknownSession,
    WrongSeq,
)
from service.sessions.session import Session
from service.sessions.step import Applied, Wanted
from tests.engines import (
    PATIENCE_S,
    WANTED,
    Clock,
    RemoteJournal,
    chunk,
    load_graph,
    running,
    table,
    used,
)

TTL_S = 100.0
CAPACITY = 2
NAMES = ("a", "b", "c")

names = st.sampled_from(NAMES)
requests = st.lists(st.integers(-5, 5).map(float), min_size=1, max_size=7)


@dataclass
class Expected:
    """A session as it ought to be."""

    total: float = 0.0
    seq: int = 0
    first: int = 0
    sent: tuple[float, ...] = ()
    answer: tuple[float, ...] = ()
    used_at: float = 0.0

    def add(self, values: list[float]) -> None:
        self.first, self.sent = self.seq + 1, tuple(values)
        self.answer = tuple(float(x) for x in self.total + np.cumsum(values))
        self.total, self.seq = self.answer[-1], self.seq + len(values)


class SessionsAndTheirModel(RuleBasedStateMachine):
    """What clients, time, memory and the store may do to three sessions that share two slots."""

    def __init__(self, directory: Path) -> None:
        super().__init__()
        self.loop = asyncio.Runner()
        self.stack = AsyncExitStack()
        self.clock = Clock()
        self.journal = RemoteJournal()
        graph = load_graph(directory, Batching(max_chunk_length=3, max_batch_size=4))
        self.engine = self.run(
            self.stack.enter_async_context(running(graph, self.clock, capacity=CAPACITY))
        )
        self.sessions = table(self.engine, self.journal, self.clock, snapshot_every=6)
        self.alive: dict[str, Expected] = {}
        self.ended: dict[str, str] = {}

    def run(self, coroutine):  # type: ignore[no-untyped-def]
        async def patiently():  # type: ignore[no-untyped-def]
            async with asyncio.timeout(PATIENCE_S):
                return await coroutine

        return self.loop.run(patiently())

    def teardown(self) -> None:
        self.run(self.sessions.drain())
        self.run(self.stack.aclose())
        self.loop.close()

    async def find(self, name: str) -> Session:
        return await self.sessions.find(name, "tenant")

    async def apply(
        self, name: str, values: list[float], seq: int | None = None, wanted: Wanted = WANTED
    ) -> Applied:
        return await self.sessions.apply(await self.find(name), chunk(*values), wanted, seq)

    def expire(self) -> None:
        """What time has ended in the model."""
        for name, expected in list(self.alive.items()):
            if self.clock.now - expected.used_at > TTL_S:
                self.end(name, "ttl")

    def end(self, name: str, reason: str) -> None:
        del self.alive[name]
        self.ended[name] = reason

    def touch(self, name: str) -> None:
        self.alive[name].used_at = self.clock.now

    def check(self, applied: Applied, expected: Expected, *, duplicate: bool) -> None:
        assert applied.duplicate == duplicate
        assert (applied.first, applied.seq) == (expected.first, expected.seq)
        assert tuple(applied.outputs["total"].tolist()) == expected.answer

    # What clients do.

    @rule(name=names)
    def open(self, name: str) -> None:
        session, new = self.run(self.sessions.create(self.engine, "tenant", TTL_S, name))
        assert new == (name not in self.alive)
        if new:
            self.alive[name] = Expected(used_at=self.clock.now)
            self.ended.pop(name, None)
        assert session.seq == self.alive[name].seq

    @rule(name=names, values=requests, numbered=st.booleans())
    def step(self, name: str, values: list[float], numbered: bool) -> None:
        if name not in self.alive:
            with pytest.raises(SessionGone if name in self.ended else UnknownSession) as error:
                self.run(self.apply(name, values))
            assert error.value.extra.get("reason") == self.ended.get(name)
            return
        expected = self.alive[name]
        seq = expected.seq + 1 if numbered else None
        applied = self.run(self.apply(name, values, seq))
        expected.add(values)
        self.touch(name)
        self.check(applied, expected, duplicate=False)

    @precondition(lambda self: len(self.alive) >= CAPACITY)
    @rule(values=requests)
    def step_together(self, values: list[float]) -> None:
        pair = sorted(self.alive)[:CAPACITY]

        async def both() -> list[Applied]:
            return await asyncio.gather(*(self.apply(name, values) for name in pair))

        for name, applied in zip(pair, self.run(both()), strict=True):
            self.alive[name].add(values)
            self.touch(name)
            self.check(applied, self.alive[name], duplicate=False)

    @precondition(lambda self: any(e.seq for e in self.alive.values()))
    @rule(data=st.data(), other=st.booleans())
    def retry(self, data: st.DataObject, other: bool) -> None:
        name = data.draw(st.sampled_from(sorted(n for n, e in self.alive.items() if e.seq)))
        expected = self.alive[name]
        sent = [x + other for x in expected.sent]
        if other:
            with pytest.raises(PayloadMismatch):
                self.run(self.apply(name, sent, expected.first))
            return
        self.check(self.run(self.apply(name, sent, expected.first)), expected, duplicate=True)
        self.touch(name)

    @precondition(lambda self: self.alive)
    @rule(data=st.data(), seq=st.integers(0, 40))
    def step_with_a_wrong_number(self, data: st.DataObject, seq: int) -> None:
        name = data.draw(st.sampled_from(sorted(self.alive)))
        expected = self.alive[name]
        if seq in (expected.seq + 1, expected.first if expected.seq else None):
            return
        with pytest.raises(WrongSeq) as error:
            self.run(self.apply(name, [1.0], seq))
        assert error.value.extra == {"committed": expected.seq, "expected": expected.seq + 1}

    @precondition(lambda self: self.alive)
    @rule(data=st.data(), values=requests)
    def step_with_an_infinite_number(self, data: st.DataObject, values: list[float]) -> None:
        name = data.draw(st.sampled_from(sorted(self.alive)))
        with pytest.raises(NonFinite):
            self.run(self.apply(name, [*values, np.inf]))
        self.touch(name)

    @precondition(lambda self: self.alive)
    @rule(data=st.data(), values=requests)
    def step_too_late(self, data: st.DataObject, values: list[float]) -> None:
        name = data.draw(st.sampled_from(sorted(self.alive)))
        with pytest.raises(DeadlineExceeded):
            self.run(self.apply(name, values, wanted=Wanted(("total",), self.clock.now - 1)))
        self.touch(name)

    @precondition(lambda self: self.alive)
    @rule(data=st.data(), values=requests, turns=st.integers(0, 12))
    def step_and_leave(self, data: st.DataObject, values: list[float], turns: int) -> None:
        """The caller cannot know whether it counted; sending it again settles that."""
        name = data.draw(st.sampled_from(sorted(self.alive)))
        expected = self.alive[name]

        async def leave() -> None:
            task = asyncio.create_task(self.apply(name, values, expected.seq + 1))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await self.sessions.drain()

        self.run(leave())
        first = expected.seq + 1
        counted = self.run(self.find(name)).seq >= first
        applied = self.run(self.apply(name, values, first))
        expected.add(values)
        self.touch(name)
        self.check(applied, expected, duplicate=counted)

    @precondition(lambda self: self.alive)
    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.alive)))
        self.run(self.sessions.delete(self.run(self.find(name))))
        self.end(name, "deleted")

    # What memory, time and the store do.

    @rule()
    def one_shot(self) -> None:
        outputs = self.run(self.sessions.run_once(self.engine, chunk(3.0), ("total",), np.inf))
        assert outputs["total"].tolist() == [3]

    @precondition(lambda self: self.alive)
    @rule(data=st.data())
    def lose_the_state_in_memory(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.alive)))
        self.sessions.slots.drop(self.run(self.find(name)))

    @precondition(lambda self: self.alive)
    @rule(
        data=st.data(),
        values=requests,
        call=st.sampled_from(["fence", "commit", "snapshot"]),
        lands=st.booleans(),
    )
    def the_store_fails(
        self, data: st.DataObject, values: list[float], call: str, lands: bool
    ) -> None:
        name = data.draw(st.sampled_from(sorted(self.alive)))
        expected = self.alive[name]
        self.journal.fails, self.journal.lands = {call}, lands
        first = expected.seq + 1
        failed = False
        try:
            applied = self.run(self.apply(name, values, first))
        except ConnectionError:
            failed = True
            applied = self.run(self.apply(name, values, first))
        expected.add(values)
        self.touch(name)
        self.check(applied, expected, duplicate=failed and lands and call == "commit")
        self.journal.fails = set()

    @precondition(lambda self: self.alive)
    @rule(data=st.data(), values=requests)
    def another_owner_steps(self, data: st.DataObject, values: list[float]) -> None:
        name = data.draw(st.sampled_from(sorted(self.alive)))
        expected = self.alive[name]
        elsewhere = table(self.engine, self.journal, self.clock)

        async def step() -> Applied:
            session = await elsewhere.find(name, "tenant")
            # Both tables share the engine's slots here; this one makes room for that one.
            await self.sessions.run_once(self.engine, chunk(0.0), (), np.inf)
            applied = await elsewhere.apply(session, chunk(*values), WANTED)
            elsewhere.slots.drop(session)
            return applied

        applied = self.run(step())
        expected.add(values)
        self.check(applied, expected, duplicate=False)
        # The first to step here may find itself fenced; then it stands where the other left off.
        try:
            again = self.run(self.apply(name, values, expected.first))
        except (SessionFenced, WrongSeq, PayloadMismatch):
            again = self.run(self.retried_after_being_fenced(name, values))
        self.check(again, expected, duplicate=True)
        self.touch(name)

    async def retried_after_being_fenced(self, name: str, values: list[float]) -> Applied:
        expected = self.alive[name]
        for _ in range(2):
            try:
                return await self.apply(name, values, expected.first)
            except ServiceError:
                continue
        return await self.apply(name, values, expected.first)

    @rule(seconds=st.sampled_from([1.0, TTL_S / 2, TTL_S + 1]))
    def time_passes(self, seconds: float) -> None:
        self.clock.now += seconds
        self.expire()

    @rule()
    def sweep(self) -> None:
        self.run(self.sessions.sweep())
        assert len(self.sessions) == len(self.alive)

    # What always holds.

    @invariant()
    def nothing_is_left_at_work_and_no_slot_is_lost(self) -> None:
        held = list(self.sessions._sessions.values())
        assert [s.identity.id for s in held if not s.idle] == []
        assert used(self.engine) == sum(s.slot is not None for s in held) <= CAPACITY
        assert self.engine.pending == 0

    @invariant()
    def every_session_stands_where_the_model_does(self) -> None:
        for name, session in self.sessions._sessions.items():
            if name in self.alive:
                assert session.seq == self.alive[name].seq
            if name in self.alive and session.slot is not None:
                assert self.engine.read(session.slot)["state"] == self.alive[name].total


def test_sessions_do_what_their_model_says(accumulator: Path) -> None:
    run_state_machine_as_test(
        lambda: SessionsAndTheirModel(accumulator),
        settings=settings(
            max_examples=50,
            stateful_step_count=40,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
        ),
    )
