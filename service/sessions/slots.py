"""Which sessions have their state in memory: gives out slots, pages sessions out, wakes them again."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from service.engine.arena import Slot
from service.engine.engine import Engine
from service.engine.work import ANY_FLOW, Flow
from service.errors import Overloaded, UnknownSession
from service.journal.protocol import Journal, Snapshot, Stored, join_log
from service.metrics import Metrics
from service.sessions.session import Chunk, Session

log = logging.getLogger(__name__)

Outputs = Mapping[str, npt.NDArray[Any]]


class Slots:
    """Slots of all engines, and the sessions that hold them.

    Args:
        journal: Where sessions are kept.
        metrics: Where counts go.
    """

    def __init__(self, journal: Journal, metrics: Metrics) -> None:
        self._journal = journal
        self._metrics = metrics
        # Holders of each engine's slots in order of use, the longest unused first.
        self._holders: dict[Engine, OrderedDict[Session, None]] = {}

    async def take(self, engine: Engine) -> Slot:
        """A slot with the initial state; pages out the longest unused session if all are taken.

        Raises:
            Overloaded: Every slot has a step in flight.
        """
        slot = engine.take()
        while slot is None:
            await self._page_out(self._longest_unused(engine))
            slot = engine.take()
        return slot

    def give_new(self, session: Session) -> bool:
        """Give a slot to a session that this process made and that never had one, if one is free.

        The journal has nothing of it but its name, and no other owner can have committed under its first epoch; so
        there is nothing to load and nobody to ask. Once: of what became of a failed commit only the journal knows.
        """
        if not session.fresh:
            return False
        slot = session.engine.take()
        if slot is None:
            return False
        session.fresh = False
        self._hold(session, slot)
        return True

    def _hold(self, session: Session, slot: Slot) -> None:
        session.slot = slot
        self._holders.setdefault(session.engine, OrderedDict())[session] = None
        self._metrics.sessions_resident.labels(*session.labels).inc()

    async def wake(self, session: Session) -> None:
        """Give a session its slot back: load the nearest snapshot, fold the rest of the log.

        Raises:
            UnknownSession: The journal has no such session.
            Overloaded: Every slot has a step in flight.
        """
        stored = await self._journal.fence(session.identity.id)
        if stored is None:
            raise UnknownSession(f"there is no session {session.identity.id}")
        session.take_over(stored)
        session.fresh = False
        slot = await self.take(session.engine)
        try:
            await _fold(session.engine, slot, stored)
        except BaseException:
            session.engine.give_back(slot)
            raise
        self._hold(session, slot)
        if stored.seq:
            self._metrics.sessions_paged.labels(*session.labels, "in").inc()

    async def snapshot(self, session: Session) -> None:
        """Give the journal the state of a session with no step in flight, if it has none as new.

        A store that fails here costs nothing but a longer log, so nobody has to know but the operator.
        """
        if session.slot is None or session.log_length == 0:
            return
        snapshot = Snapshot(session.seq, session.engine.read(session.slot))
        try:
            taken = await self._journal.snapshot(session.identity.id, session.epoch, snapshot)
        except Exception:
            log.exception("no snapshot of session %s", session.identity.id)
            return
        if taken:
            session.log_length = 0

    def drop(self, session: Session) -> None:
        """Take a session's slot away; the journal has all that is needed to wake it."""
        if session.slot is not None:
            session.engine.give_back(session.slot)
            session.slot = None
            del self._holders[session.engine][session]
            self._metrics.sessions_resident.labels(*session.labels).dec()

    def touch(self, sessions: Iterable[Session]) -> None:
        """Note that sessions are in use."""
        holders = self._holders
        for session in sessions:
            if session.slot is not None:
                holders[session.engine].move_to_end(session)

    def _longest_unused(self, engine: Engine) -> Session:
        for session in self._holders.get(engine, ()):
            if session.idle:
                return session
        raise Overloaded(
            f"every slot of model {engine.config.name} has a step in flight", retry_after_s=1
        )

    async def _page_out(self, session: Session) -> None:
        session.busy = True
        try:
            await self.snapshot(session)
            self.drop(session)
            self._metrics.sessions_paged.labels(*session.labels, "out").inc()
        finally:
            session.busy = False


async def _fold(engine: Engine, slot: Slot, stored: Stored) -> None:
    """Bring a fresh slot to the state the journal describes."""
    if stored.snapshot is not None:
        engine.write(slot, stored.snapshot.state)
    if not stored.log:
        return
    # Cut otherwise, the same inputs may end in other last bits.
    for inputs in stored.log if engine.deterministic else (join_log(stored.log),):
        length = len(next(iter(inputs.values())))
        await run_slot(engine, slot, Chunk(inputs, np.array([length - 1], np.intp)), (), np.inf)


async def run_slot(
    engine: Engine,
    slot: Slot,
    chunk: Chunk,
    outputs: tuple[str, ...],
    deadline: float,
    flow: Flow = ANY_FLOW,
    top_k: int = 0,
) -> Outputs:
    """One step of a slot; a caller that leaves lets it drop."""
    work, future = engine.submit(slot, chunk.arrays, chunk.keep, outputs, deadline, flow, top_k)
    try:
        return await future
    except asyncio.CancelledError:
        work.cancelled = True
        raise
