"""The sessions of this process: create, find, step, page out, expire.

A step belongs to no caller: one that leaves lets a queued step drop and a running one go on to its commit, so that a
retry with the same seq always finds either nothing applied or the whole reply.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import msgspec
import numpy.typing as npt

from service.engine.engine import Engine
from service.engine.work import ANY_FLOW, Flow, Priority, Work
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
    Layout,
    Reply,
    Tombstone,
    content_of,
    layout_of,
)
from service.metrics import Metrics
from service.sessions.commit import GroupCommit
from service.sessions.session import Chunk, Session, find_retry
from service.sessions.slots import Slots, run_slot

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


class Wanted(msgspec.Struct, frozen=True, gc=False):
    """What a request wants back.

    Attributes:
        stored: Outputs that make the reply, kept for a retry.
        passing: Outputs wanted once more, never stored: too large.
        deadline: Monotonic time after which the step must not start.
    """

    stored: tuple[str, ...]
    deadline: float
    passing: tuple[str, ...] = ()


class Applied(msgspec.Struct, frozen=True, gc=False):
    """A committed request.

    Attributes:
        first: `seq` of its first input.
        seq: Inputs committed after it.
        outputs: Output name to (inputs, *shape), or (time steps, *shape) where every time step is wanted.
        duplicate: Whether it was a retry, answered from the journal.
    """

    first: int
    seq: int
    outputs: Outputs
    duplicate: bool


OnEnd = Callable[[Applied | Exception], None]


class Step:
    """A request on its way through a session.

    Args:
        session: The session.
        chunk: What is fed.
        wanted: What to answer.
        seq: Number the caller gave to the first input.
        on_end: Called with what became of it, unless the caller left.
    """

    __slots__ = (
        "chunk",
        "entry",
        "goes_on",
        "left",
        "on_end",
        "outputs",
        "seq",
        "session",
        "wanted",
        "work",
    )

    entry: Entry
    """What is committed, once it is computed."""
    outputs: Outputs
    """What was computed."""

    def __init__(
        self, session: Session, chunk: Chunk, wanted: Wanted, seq: int | None, on_end: OnEnd
    ) -> None:
        self.session = session
        self.chunk = chunk
        self.wanted = wanted
        self.seq = seq
        self.on_end = on_end
        self.left = False
        self.goes_on = False
        self.work: Work | None = None

    def leave(self) -> None:
        """The caller left: a queued step is dropped, a running one goes on to its commit."""
        self.left = True
        if self.work is not None:
            self.work.cancelled = True


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
        self._steps: set[Step] = set()
        self._layouts: dict[tuple[Engine, tuple[str, ...]], Layout] = {}
        # Set when the last of them ends.
        self._quiet = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

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
        """Apply inputs to a session, once, and wait for it; see `begin`."""
        future: asyncio.Future[Applied] = asyncio.get_running_loop().create_future()
        step = self.begin(session, chunk, wanted, seq, partial(_settle, future), held=held)
        try:
            return await future
        except asyncio.CancelledError:
            step.leave()
            raise

    def begin(
        self,
        session: Session,
        chunk: Chunk,
        wanted: Wanted,
        seq: int | None,
        on_end: OnEnd,
        *,
        held: bool = False,
        goes_on: bool = False,
    ) -> Step:
        """Begin to apply inputs to a session, once.

        Where the state is at hand the model may start at once, while the event loop reads other requests.

        Args:
            session: As found by `find`.
            chunk: What to feed.
            wanted: What to answer, and until when.
            seq: Number of the first input; None means the next.
            on_end: Called with what was applied, or with `SessionFenced` when another owner took the session, or with
                the error for which the step was not applied (`Engine.begin`). For a retry, before this returns.
            held: Whether the caller holds the session.
            goes_on: See `Engine.begin`.

        Raises:
            SessionBusy: Another step is in flight.
            WrongSeq, PayloadMismatch: See `find_retry`.
            Overloaded, Draining: See `Engine.begin`.
        """
        _check_idle(session, held=held)
        step = Step(session, chunk, wanted, seq, on_end)
        step.goes_on = goes_on
        retry = find_retry(session, seq, chunk)
        if retry is not None:
            self._touch(session)
            on_end(self._duplicate(session, retry))
            return step
        if session.slot is not None:
            self._submit(step)
        else:
            self._spawn(self._wake_for(step))
        session.busy = True
        self._steps.add(step)
        return step

    def _duplicate(self, session: Session, retry: Reply) -> Applied:
        self._metrics.duplicate_steps.labels(*session.labels).inc()
        return Applied(retry.first, session.seq, retry.outputs, duplicate=True)

    async def _wake_for(self, step: Step) -> None:
        session = step.session
        try:
            await self._wake(session)
            # The journal may know more than this process did: a commit that was reported failed, or another
            # owner's. So the question is asked again.
            retry = find_retry(session, step.seq, step.chunk)
            if retry is None:
                self._submit(step)
                return
        except Exception as error:
            self._end_step(step, error)
        else:
            self._end_step(step, self._duplicate(session, retry))

    async def _wake(self, session: Session) -> None:
        try:
            await self.slots.wake(session)
        except UnknownSession:
            self._remove(session)
            raise

    def _submit(self, step: Step) -> None:
        session, chunk, wanted = step.session, step.chunk, step.wanted
        assert session.slot is not None
        step.work = session.engine.begin(
            session.slot,
            chunk.arrays,
            chunk.keep,
            wanted.stored + wanted.passing if wanted.passing else wanted.stored,
            wanted.deadline,
            partial(self._computed, step),
            session.flow,
            goes_on=step.goes_on,
        )
        step.work.cancelled = step.left

    def _computed(self, step: Step, outcome: Outputs | Exception) -> None:
        session, chunk, wanted = step.session, step.chunk, step.wanted
        if isinstance(outcome, Exception):
            assert step.work is not None
            if step.work.done:
                self.slots.drop(session)
            self._end_step(step, outcome)
            return
        stored = {name: outcome[name] for name in wanted.stored} if wanted.passing else outcome
        committed = session.seq
        step.outputs = outcome
        step.entry = Entry(
            session.identity.id,
            session.epoch,
            committed + len(chunk.ends),
            chunk.arrays,
            self._reply(committed + 1, step, stored),
        )
        self._commit.add(step.entry, partial(self._committed, step))

    def _reply(self, first: int, step: Step, outputs: Outputs) -> Reply:
        kind = step.session.engine, step.wanted.stored
        layout = self._layouts.get(kind)
        if layout is None:
            # Found out once for each: a model's outputs are always alike.
            layout = self._layouts[kind] = layout_of(outputs)
        return Reply(first, step.chunk.digest(), layout, content_of(outputs))

    def _committed(self, step: Step, error: Exception | None) -> None:
        session, entry = step.session, step.entry
        if error is not None:
            # The state ran ahead of the commit: it is loaded anew on next use.
            self.slots.drop(session)
            if isinstance(error, SessionFenced):
                self._remove(session)
            self._end_step(step, error)
            return
        session.seq, session.reply = entry.seq, entry.reply
        assert step.work is not None
        session.log_length += step.work.length
        applied = Applied(entry.reply.first, entry.seq, step.outputs, duplicate=False)
        if session.log_length >= self._policy.snapshot_every:
            self._spawn(self._snapshot_after(step, applied))
        else:
            self._end_step(step, applied)

    async def _snapshot_after(self, step: Step, applied: Applied) -> None:
        try:
            await self.slots.snapshot(step.session)
        finally:
            self._end_step(step, applied)

    def _end_step(self, step: Step, outcome: Applied | Exception) -> None:
        self._steps.discard(step)
        if not self._steps:
            self._quiet.set()
        step.session.busy = False
        self._touch(step.session)
        if not step.left:
            step.on_end(outcome)
        elif isinstance(outcome, Exception) and not isinstance(outcome, StepCancelled):
            log.info("step of a departed caller ended with %s", outcome)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def run_once(
        self,
        engine: Engine,
        chunk: Chunk,
        outputs: tuple[str, ...],
        deadline: float,
        flow: Flow = ANY_FLOW,
    ) -> Outputs:
        """A session of one step: takes a slot, runs, gives it back.

        Raises:
            Overloaded: Every slot has a step in flight.
            ServiceError: See `Engine.submit`.
        """
        slot = await self.slots.take(engine)
        try:
            return await run_slot(engine, slot, chunk, outputs, deadline, flow)
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
        while self._steps:
            self._quiet.clear()
            await self._quiet.wait()
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


def _check_idle(session: Session, *, held: bool = False) -> None:
    if session.busy or (session.held and not held):
        raise SessionBusy(
            f"a step of session {session.identity.id} is in flight",
            committed=session.seq,
            expected=session.seq + 1,
        )


def _settle(future: asyncio.Future[Applied], outcome: Applied | Exception) -> None:
    if future.done():
        return
    if isinstance(outcome, Exception):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)
