"""The sessions of this process: create, find, page out, expire; how they step is in `steps`."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from service.engine.engine import Engine
from service.engine.work import ANY_FLOW, Flow, Priority
from service.errors import (
    Overloaded,
    SessionExists,
    SessionGone,
    UnknownSession,
)
from service.journal.protocol import (
    Identity,
    Journal,
    Tombstone,
)
from service.metrics import Metrics
from service.sessions.session import Chunk, Session
from service.sessions.slots import Slots, run_slot
from service.sessions.steps import Steps, check_idle

log = logging.getLogger(__name__)

_AT_ONCE = 256
"""Sessions looked at in one turn of the event loop."""

_RESTS_S = 1.0
_LONG_LOG = 8
"""A session that has not been used for so long, with more time steps than that in its log, gets a snapshot."""

Outputs = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """How many sessions, and for how long.

    Attributes:
        max_sessions: Sessions in all.
        evict_idle_s: Idle time after which a session may be evicted when all are in use.
        snapshot_every: Time steps between two snapshots.
    """

    max_sessions: int
    evict_idle_s: float
    snapshot_every: int


class Sessions:
    """All sessions this process has touched.

    Args:
        journal: Where they are kept.
        find_engine: Engine of a model and version; raises when it is not served.
        policy: Bounds.
        metrics: Where counts go.
        clock: Monotonic seconds.
        wall_clock: Unix time in seconds.
    """

    def __init__(
        self,
        journal: Journal,
        find_engine: Callable[[str, int], Engine],
        policy: Policy,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._journal = journal
        self._find_engine = find_engine
        self._policy = policy
        self._metrics = metrics
        self.clock = clock
        self.wall_clock = wall_clock
        self.slots = Slots(journal, metrics)
        # In order of use, the longest unused first.
        self._sessions: OrderedDict[str, Session] = OrderedDict()
        self._steps = steps = Steps(
            journal, self.slots, metrics, policy.snapshot_every, self._touch, self._remove
        )
        self.ready = steps.ready
        self.begin = steps.begin
        self.begin_together = steps.begin_together
        self.apply = steps.apply

    def __len__(self) -> int:
        return len(self._sessions)

    # Identity.

    async def create(
        self,
        engine: Engine,
        tenant: str,
        ttl_s: float,
        session_id: str | None = None,
        priority: Priority = "normal",
    ) -> tuple[Session, bool]:
        """Begin a session, or find the caller's own of the same id and model.

        Returns:
            The session, and whether it is new.

        Raises:
            SessionExists: The id is taken by a session of another model or tenant.
            Overloaded: There are too many sessions and none may be evicted.
        """
        config = engine.config
        identity = Identity(
            id=secrets.token_urlsafe(16) if session_id is None else session_id,
            tenant=tenant,
            model=config.name,
            version=config.version,
            ttl_s=ttl_s,
            created_at=self.wall_clock(),
            priority=priority,
        )
        await self._end_if_expired(identity.id)
        if identity.id not in self._sessions:
            await self._make_room()
            if await self._journal.create(identity):
                made = Session(identity, engine, epoch=1, used_at=self.clock(), fresh=True)
                session = self._admit(made)
                self._metrics.sessions_opened.labels(*session.labels).inc()
                return session, True
        try:
            session = await self.find(identity.id, tenant)
        except UnknownSession:
            raise SessionExists(f"the session id {identity.id} is taken") from None
        known = session.identity
        if (known.model, known.version) != (identity.model, identity.version):
            raise SessionExists(
                f"session {known.id} exists, of model {known.model} version {known.version}"
            )
        return session, False

    async def find(self, session_id: str, tenant: str) -> Session:
        """The session of that id.

        Raises:
            UnknownSession: There is none, or it is another tenant's.
            SessionGone: It ended; says why and when.
        """
        await self._end_if_expired(session_id)
        session = self._sessions.get(session_id) or await self._adopt(session_id)
        if session is None:
            tombstone = await self._journal.tombstone(session_id)
            if tombstone is not None and tombstone.tenant == tenant:
                raise SessionGone(
                    f"session {session_id} ended: {tombstone.reason}",
                    reason=tombstone.reason,
                    ended_at=tombstone.ended_at,
                )
        if session is None or session.identity.tenant != tenant:
            raise UnknownSession(f"there is no session {session_id}")
        return session

    def at_hand(self, session_id: str, tenant: str) -> Session | None:
        """The session of that id if this process has it and it has not expired; None is no answer, see `find`."""
        session = self._sessions.get(session_id)
        if session is None or session.identity.tenant != tenant:
            return None
        # As `_has_expired`, without its calls, since every step asks.
        idle = not (session.busy or session.held)
        expired = idle and self.clock() - session.used_at > session.identity.ttl_s
        return None if expired else session

    def _has_expired(self, session: Session) -> bool:
        return session.idle_s(self.clock()) > session.identity.ttl_s

    def of_tenant(self, tenant: str) -> Iterable[Session]:
        """The sessions of a tenant in this process, the longest unused first."""
        return [s for s in self._sessions.values() if s.identity.tenant == tenant]

    async def delete(self, session: Session) -> None:
        """End a session at its owner's wish.

        Raises:
            SessionBusy: A step is in flight.
        """
        check_idle(session)
        await self._end(session, "deleted")

    # Steps; those of sessions are `Steps`.

    @contextmanager
    def hold(self, session: Session) -> Iterator[None]:
        """Keep a session for one caller over several `apply(..., held=True)`.

        Raises:
            SessionBusy: A step is in flight, or another caller holds it.
        """
        check_idle(session)
        session.held = True
        try:
            yield
        finally:
            session.held = False
            self._touch((session,))

    async def run_once(
        self,
        engine: Engine,
        chunk: Chunk,
        outputs: tuple[str, ...],
        deadline: float,
        flow: Flow = ANY_FLOW,
        top_k: int = 0,
    ) -> Outputs:
        """A session of one step: takes a slot, runs, gives it back.

        Raises:
            Overloaded: Every slot has a step in flight.
            ServiceError: See `Engine.submit`.
        """
        slot = await self.slots.take(engine)
        try:
            return await run_slot(engine, slot, chunk, outputs, deadline, flow, top_k)
        finally:
            engine.give_back(slot)

    # Life and death.

    async def _adopt(self, session_id: str) -> Session | None:
        """A session the journal knows and this process does not yet."""
        stored = await self._journal.fence(session_id)
        if stored is None:
            return None
        identity = stored.identity
        engine = self._find_engine(identity.model, identity.version)
        session = Session(identity, engine, stored.epoch, used_at=self.clock())
        session.take_over(stored)
        return self._admit(session)

    async def _make_room(self) -> None:
        if len(self._sessions) < self._policy.max_sessions:
            return
        session = next((s for s in self._sessions.values() if s.idle), None)
        if session is None or session.idle_s(self.clock()) < self._policy.evict_idle_s:
            raise Overloaded(
                f"{len(self._sessions)} sessions are open and none is idle for long",
                retry_after_s=5,
            )
        await self._end(session, "evicted")
        self._metrics.sessions_evicted.labels(*session.labels).inc()

    async def sweep(self) -> int:
        """End every session whose time to live has passed; returns how many.

        Those that rest are snapshotted: their log is longer than their state.
        """
        now = self.clock()
        ended = 0
        for number, session in enumerate(list(self._sessions.values()), 1):
            if number % _AT_ONCE == 0:
                # Others have their turn.
                await asyncio.sleep(0)
            idle_s = session.idle_s(now)
            if not session.idle:
                continue
            if idle_s <= session.identity.ttl_s:
                if idle_s >= _RESTS_S and session.log_length > _LONG_LOG:
                    await self.slots.snapshot(session)
                continue
            try:
                await self._end(session, "ttl")
            except Exception:
                # The store failed; the next sweep tries again, and the others are not to wait for it.
                log.exception("session %s could not be ended", session.identity.id)
            else:
                ended += 1
        return ended

    async def _end_if_expired(self, session_id: str) -> None:
        session = self._sessions.get(session_id)
        if session is not None and self._has_expired(session):
            await self._end(session, "ttl")

    async def drain(self) -> None:
        """Wait for steps in flight, then snapshot every resident session."""
        await self._steps.ended()
        for session in list(self._sessions.values()):
            await self.slots.snapshot(session)

    async def _end(self, session: Session, reason: str) -> None:
        # Busy until the journal has it, so that nobody steps or adopts a session that is ending.
        session.busy = True
        tombstone = Tombstone(reason, self.wall_clock(), session.identity.tenant)
        try:
            ended = await self._journal.end(session.identity.id, tombstone)
        except BaseException:
            session.busy = False
            raise
        self.slots.drop(session)
        self._remove(session)
        if ended:
            self._metrics.sessions_expired.labels(*session.labels, reason).inc()

    def _admit(self, session: Session) -> Session:
        """The session of that id: this one, or the one that another caller admitted meanwhile."""
        known = self._sessions.setdefault(session.identity.id, session)
        if known is session:
            self._metrics.sessions.labels(*session.labels).inc()
        return known

    def _remove(self, session: Session) -> None:
        if self._sessions.get(session.identity.id) is session:
            del self._sessions[session.identity.id]
            self._metrics.sessions.labels(*session.labels).dec()

    def _touch(self, sessions: Sequence[Session]) -> None:
        self.slots.touch(sessions)
        now, known = self.clock(), self._sessions
        for session in sessions:
            session.used_at = now
            session_id = session.identity.id
            if session_id in known:
                known.move_to_end(session_id)
