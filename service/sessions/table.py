"""The sessions of this process: create, find, step, page out, expire.

Applying a step is its own task: a caller that leaves lets a queued step drop and a running one go on to its commit,
so that a retry with the same seq always finds either nothing applied or the whole reply.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from service.engine.engine import Engine
from service.engine.scheduler import Work
from service.errors import (
    Overloaded,
    SessionBusy,
    SessionExists,
    SessionFenced,
    SessionGone,
    StepCancelled,
    UnknownSession,
)
from service.journal.protocol import (
    Entry,
    Identity,
    Journal,
    Reply,
    Tombstone,
)
from service.metrics import Metrics
from service.sessions.commit import GroupCommit
from service.sessions.session import Chunk, Session, find_retry
from service.sessions.slots import Slots, run_slot

log = logging.getLogger(__name__)

Outputs = Mapping[str, npt.NDArray[Any]]
_Step = tuple[Work, asyncio.Future[dict[str, npt.NDArray[Any]]]]


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


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a request wants back.

    Attributes:
        stored: Outputs that make the reply, kept for a retry.
        passing: Outputs wanted once more, never stored: too large.
        deadline: Monotonic time after which the step must not start.
    """

    stored: tuple[str, ...]
    deadline: float
    passing: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Applied:
    """A committed request.

    Attributes:
        first: `seq` of its first input.
        seq: Inputs committed after it.
        outputs: Output name to (inputs, *shape).
        duplicate: Whether it was a retry, answered from the journal.
    """

    first: int
    seq: int
    outputs: Outputs
    duplicate: bool


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
        self._commit = GroupCommit(journal)
        self.slots = Slots(journal, metrics)
        # In order of use, the longest unused first.
        self._sessions: OrderedDict[str, Session] = OrderedDict()
        self._tasks: set[asyncio.Task[Any]] = set()

    def __len__(self) -> int:
        return len(self._sessions)

    # Identity.

    async def create(
        self, engine: Engine, tenant: str, ttl_s: float, session_id: str | None = None
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
        )
        await self._end_if_expired(identity.id)
        if identity.id not in self._sessions:
            await self._make_room()
            if await self._journal.create(identity):
                session = self._admit(Session(identity, engine, epoch=1, used_at=self.clock()))
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

    def of_tenant(self, tenant: str) -> Iterable[Session]:
        """The sessions of a tenant in this process, the longest unused first."""
        return [s for s in self._sessions.values() if s.identity.tenant == tenant]

    async def delete(self, session: Session) -> None:
        """End a session at its owner's wish.

        Raises:
            SessionBusy: A step is in flight.
        """
        _check_idle(session)
        await self._end(session, "deleted")

    # Steps.

    @contextmanager
    def hold(self, session: Session) -> Iterator[None]:
        """Keep a session for one caller over several `apply(..., held=True)`.

        Raises:
            SessionBusy: A step is in flight, or another caller holds it.
        """
        _check_idle(session)
        session.held = True
        try:
            yield
        finally:
            session.held = False
            self._touch(session)

    async def apply(
        self,
        session: Session,
        chunk: Chunk,
        wanted: Wanted,
        seq: int | None = None,
        *,
        held: bool = False,
    ) -> Applied:
        """Apply inputs to a session, once.

        Args:
            session: As found by `find`.
            chunk: What to feed.
            wanted: What to answer, and until when.
            seq: Number of the first input; None means the next.
            held: Whether the caller holds the session.

        Raises:
            SessionBusy: Another step is in flight.
            WrongSeq, PayloadMismatch: See `find_retry`.
            SessionFenced: Another owner took the session.
            ServiceError: The step was not applied; see `Engine.submit`.
        """
        _check_idle(session, held=held)
        retry = find_retry(session, seq, chunk)
        if retry is not None:
            self._touch(session)
            return self._duplicate(session, retry)
        session.busy = True
        left = _Caller()
        try:
            # At once where the state is at hand: the model may begin while the event loop reads other requests.
            step = None if session.slot is None else self._submit(session, chunk, wanted, left)
        except BaseException:
            session.busy = False
            raise
        task = asyncio.create_task(self._apply(session, chunk, wanted, seq, left, step))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            left.leave()
            task.add_done_callback(_forget)
            raise

    def _duplicate(self, session: Session, retry: Reply) -> Applied:
        self._metrics.duplicate_steps.labels(*session.labels).inc()
        return Applied(retry.first, session.seq, retry.outputs, duplicate=True)

    async def _apply(
        self,
        session: Session,
        chunk: Chunk,
        wanted: Wanted,
        seq: int | None,
        caller: _Caller,
        step: _Step | None,
    ) -> Applied:
        try:
            if step is None:
                await self._wake(session)
                # The journal may know more than this process did: a commit that was reported failed, or another
                # owner's. So the question is asked again.
                retry = find_retry(session, seq, chunk)
                if retry is not None:
                    return self._duplicate(session, retry)
                step = self._submit(session, chunk, wanted, caller)
            first = session.seq + 1
            outputs = await self._outcome(session, *step)
            reply = Reply(first, chunk.digest(), {name: outputs[name] for name in wanted.stored})
            entry = Entry(
                session.identity.id,
                session.epoch,
                session.seq + len(chunk.ends),
                chunk.arrays,
                reply,
            )
            await self._commit_or_drop(session, entry)
            session.seq, session.reply = entry.seq, reply
            session.log_length += chunk.length
            if session.log_length >= self._policy.snapshot_every:
                await self.slots.snapshot(session)
            return Applied(first, session.seq, outputs, duplicate=False)
        finally:
            session.busy = False
            self._touch(session)

    async def _wake(self, session: Session) -> None:
        try:
            await self.slots.wake(session)
        except UnknownSession:
            self._remove(session)
            raise

    @staticmethod
    def _submit(session: Session, chunk: Chunk, wanted: Wanted, caller: _Caller) -> _Step:
        assert session.slot is not None
        outputs = wanted.stored + wanted.passing
        work, future = session.engine.submit(
            session.slot, chunk.arrays, chunk.ends, outputs, wanted.deadline
        )
        caller.work = work
        work.cancelled = caller.left
        return work, future

    async def _outcome(
        self, session: Session, work: Work, future: asyncio.Future[dict[str, npt.NDArray[Any]]]
    ) -> Outputs:
        try:
            return await future
        except Exception:
            if work.done:
                self.slots.drop(session)
            raise

    async def _commit_or_drop(self, session: Session, entry: Entry) -> None:
        """The state ran ahead of the commit: if that fails, the slot is dropped and loaded anew on next use."""
        try:
            await self._commit.commit(entry)
        except SessionFenced:
            self.slots.drop(session)
            self._remove(session)
            raise
        except Exception:
            self.slots.drop(session)
            raise

    async def run_once(
        self, engine: Engine, chunk: Chunk, outputs: tuple[str, ...], deadline: float
    ) -> Outputs:
        """A session of one step: takes a slot, runs, gives it back.

        Raises:
            Overloaded: Every slot has a step in flight.
            ServiceError: See `Engine.submit`.
        """
        slot = await self.slots.take(engine)
        try:
            return await run_slot(engine, slot, chunk, outputs, deadline)
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
        """End every session whose time to live has passed; returns how many."""
        now = self.clock()
        ended = 0
        for session in [s for s in self._sessions.values() if s.idle_s(now) > s.identity.ttl_s]:
            if not session.idle:
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
        if session is not None and session.idle_s(self.clock()) > session.identity.ttl_s:
            await self._end(session, "ttl")

    async def drain(self) -> None:
        """Wait for steps in flight, then snapshot every resident session."""
        while self._tasks:
            await asyncio.wait(self._tasks)
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

    def _touch(self, session: Session) -> None:
        session.used_at = self.clock()
        self.slots.touch(session)
        if session.identity.id in self._sessions:
            self._sessions.move_to_end(session.identity.id)


class _Caller:
    """Whether the caller of a step still waits, and the work to drop when not."""

    def __init__(self) -> None:
        self.left = False
        self.work: Work | None = None

    def leave(self) -> None:
        self.left = True
        if self.work is not None:
            self.work.cancelled = True


def _check_idle(session: Session, *, held: bool = False) -> None:
    if session.busy or (session.held and not held):
        raise SessionBusy(
            f"a step of session {session.identity.id} is in flight",
            committed=session.seq,
            expected=session.seq + 1,
        )


def _forget(task: asyncio.Task[Any]) -> None:
    """Nobody waits for this step any more; what else than being dropped became of it is worth a line."""
    error = None if task.cancelled() else task.exception()
    if error is not None and not isinstance(error, StepCancelled):
        log.info("step of a departed caller ended with %s", error)
