"""Steps of sessions: to the engine, through the journal, and back, each once.

A step belongs to no caller: one that leaves lets a queued step drop and a running one go on to its commit, so that a
retry with the same seq always finds either nothing applied or the whole reply.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from service.engine.engine import Engine, settle
from service.errors import (
    PayloadMismatch,
    SessionBusy,
    SessionFenced,
    StepCancelled,
    UnknownSession,
)
from service.journal.protocol import (
    Entry,
    Journal,
    Layout,
    Reply,
    content_of,
    in_order,
    layout_of,
)
from service.metrics import Metrics
from service.sessions.commit import GroupCommit
from service.sessions.session import Chunk, Session, digests_of, find_retry
from service.sessions.slots import Slots
from service.sessions.step import Applied, OnEnd, OnRow, OnTogether, Outputs, Step, Together, Wanted

log = logging.getLogger(__name__)


class Steps:
    """All steps in flight.

    Args:
        journal: Where sessions are kept.
        slots: Where their states are.
        metrics: Where counts go.
        snapshot_every: Time steps between two snapshots.
        touch: Called with sessions that were used.
        remove: Called with a session that is not this process's any more.
    """

    def __init__(
        self,
        journal: Journal,
        slots: Slots,
        metrics: Metrics,
        snapshot_every: int,
        touch: Callable[[Sequence[Session]], None],
        remove: Callable[[Session], None],
    ) -> None:
        self._commit = GroupCommit(journal)
        self._slots = slots
        self._metrics = metrics
        self._snapshot_every = snapshot_every
        self._touch = touch
        self._remove = remove
        self._in_flight: set[Step | Together] = set()
        self._layouts: dict[tuple[Engine, tuple[str, ...], int], Layout] = {}
        # Set when the last of them ends.
        self._quiet = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    async def ended(self) -> None:
        """Wait until none is in flight."""
        while self._in_flight:
            self._quiet.clear()
            await self._quiet.wait()

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
        step = self.begin(session, chunk, wanted, seq, partial(settle, future), held=held)
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
        check_idle(session, held=held)
        step = Step(session, chunk, wanted, seq, on_end)
        step.goes_on = goes_on
        retry = _retry(step)
        if retry is not None:
            self._touch((session,))
            on_end(self._duplicate(session, retry))
            return step
        if session.slot is not None or self._slots.give_new(session):
            self._submit(step)
        else:
            self._spawn(self._wake_for(step))
        session.busy = True
        self._in_flight.add(step)
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
            retry = _retry(step)
            if retry is None:
                self._submit(step)
                return
        except Exception as error:
            self._end_step(step, error)
        else:
            self._end_step(step, self._duplicate(session, retry))

    async def _wake(self, session: Session) -> None:
        try:
            await self._slots.wake(session)
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
            wanted.top_k,
            goes_on=step.goes_on,
        )
        step.work.cancelled = step.left

    def _computed(self, step: Step, outcome: Outputs | Exception) -> None:
        session, chunk, wanted = step.session, step.chunk, step.wanted
        if isinstance(outcome, Exception):
            assert step.work is not None
            if step.work.done:
                self._slots.drop(session)
            self._end_step(step, outcome)
            return
        stored = {name: outcome[name] for name in wanted.stored} if wanted.passing else outcome
        committed = session.seq
        step.outputs = outcome
        step.entry = Entry.of(
            session.identity.id,
            session.epoch,
            committed + len(chunk.ends),
            chunk.arrays,
            self._reply(committed + 1, step, stored),
        )
        self._commit.add(step.entry, partial(self._committed, step))

    def _reply(self, first: int, step: Step, outputs: Outputs) -> Reply:
        layout = self._layout(step.session.engine, step.wanted, outputs)
        return Reply(first, step.chunk.digest(), layout, content_of(outputs))

    def _layout(self, engine: Engine, wanted: Wanted, outputs: Outputs) -> Layout:
        kind = engine, wanted.stored, wanted.top_k
        layout = self._layouts.get(kind)
        if layout is None:
            # Found out once for each: a model's outputs are always alike.
            layout = self._layouts[kind] = layout_of(outputs)
        return layout

    def _committed(self, step: Step, error: Exception | None) -> None:
        session, entry = step.session, step.entry
        if error is not None:
            # The state ran ahead of the commit: it is loaded anew on next use.
            self._slots.drop(session)
            if isinstance(error, SessionFenced):
                self._remove(session)
            self._end_step(step, error)
            return
        session.seq, session.reply = entry.seq, entry.reply
        session.log_length += step.chunk.length
        applied = Applied(entry.reply.first, entry.seq, step.outputs, duplicate=False)
        if session.log_length >= self._snapshot_every:
            self._spawn(self._snapshot_after(step, applied))
        else:
            self._end_step(step, applied)

    async def _snapshot_after(self, step: Step, applied: Applied) -> None:
        try:
            await self._slots.snapshot(step.session)
        finally:
            self._end_step(step, applied)

    def _end_step(self, step: Step, outcome: Applied | Exception) -> None:
        self._leaves(step)
        step.session.busy = False
        self._touch((step.session,))
        if not step.left:
            step.on_end(outcome)
        elif isinstance(outcome, Exception) and not isinstance(outcome, StepCancelled):
            log.info("step of a departed caller ended with %s", outcome)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # Together.

    def ready(self, session: Session, seq: int | None) -> bool:
        """Whether its step can go together with others: its state is at hand, it is idle, and this is no retry."""
        return (
            not session.busy
            and not session.held
            and (seq is None or seq == session.seq + 1)
            and (session.slot is not None or self._slots.give_new(session))
        )

    def begin_together(
        self,
        sessions: list[Session],
        inputs: Mapping[str, npt.NDArray[Any]],
        parameters: bytes,
        wanted: Wanted,
        on_end: OnTogether,
        on_row: OnRow,
    ) -> Together:
        """Begin a step of several sessions, each once, in a fraction of the time of one by one.

        Args:
            sessions: R different ones of one engine and flow, all `ready`.
            inputs: Input name to (R, T, *shape): T inputs of one time step for each.
            parameters: What else the replies depend on.
            wanted: What to answer, nothing in passing.
            on_end: Called with the place of a session, the inputs committed by it and those behind it, and the outputs
                of their steps, (rows, T, *shape): once for all, or for some and then for the others.
            on_row: Called instead for a session that had to go its own way, with its place and what became of it, as
                `begin` calls its `on_end`.

        Raises:
            Overloaded, Draining: See `Engine.begin_group`.
        """
        inputs = in_order(inputs)
        together = Together(sessions, inputs, parameters, wanted, on_end, on_row)
        slots = [session.slot for session in sessions if session.slot is not None]
        together.group = sessions[0].engine.begin_group(
            slots,
            inputs,
            wanted.stored,
            wanted.deadline,
            partial(self._computed_together, together),
            partial(self._row_computed, together),
            sessions[0].flow,
            wanted.top_k,
        )
        for session in sessions:
            session.busy = True
        self._in_flight.add(together)
        return together

    def _computed_together(self, together: Together, first: int, outputs: Outputs) -> None:
        rows, length = next(iter(outputs.values())).shape[:2]
        end = first + rows
        sessions = together.sessions[first:end]
        inputs = {name: values[first:end] for name, values in together.inputs.items()}
        fed = layout_of({name: values[0] for name, values in inputs.items()})
        one = {name: values[0] for name, values in outputs.items()}
        answered = self._layout(sessions[0].engine, together.wanted, one)
        contents = _rows(inputs)
        digests = digests_of(together.parameters, np.arange(length).tobytes(), contents)
        entries = [
            Entry(
                session.identity.id,
                session.epoch,
                session.seq + length,
                fed,
                content,
                Reply(session.seq + 1, digest, answered, reply),
            )
            for session, content, digest, reply in zip(
                sessions, contents, digests, _rows(outputs), strict=True
            )
        ]
        on_commit = partial(self._committed_together, together, first, outputs, entries)
        self._commit.add_all(entries, on_commit)

    def _committed_together(
        self,
        together: Together,
        first: int,
        outputs: Outputs,
        entries: list[Entry],
        errors: list[Exception | None],
    ) -> None:
        if any(errors):
            for row, (entry, error) in enumerate(zip(entries, errors, strict=True)):
                step = self._by_itself(together, first + row)
                step.entry = entry
                step.outputs = {name: values[row] for name, values in outputs.items()}
                self._committed(step, error)
            return
        sessions = together.sessions[first : first + len(entries)]
        length = entries[0].seq - entries[0].reply.first + 1
        for session, entry in zip(sessions, entries, strict=True):
            session.seq, session.reply = entry.seq, entry.reply
            session.log_length += length
        due = [s for s in sessions if s.log_length >= self._snapshot_every]
        if due:
            self._spawn(self._snapshot_together(due, together, first, sessions, outputs))
        else:
            self._end_together(together, first, sessions, outputs)

    async def _snapshot_together(
        self,
        due: list[Session],
        together: Together,
        first: int,
        sessions: list[Session],
        outputs: Outputs,
    ) -> None:
        try:
            await asyncio.gather(*[self._slots.snapshot(session) for session in due])
        finally:
            self._end_together(together, first, sessions, outputs)

    def _end_together(
        self, together: Together, first: int, sessions: list[Session], outputs: Outputs
    ) -> None:
        for session in sessions:
            session.busy = False
        self._touch(sessions)
        self._misses(together, len(sessions))
        together.on_end(first, [session.seq for session in sessions], outputs)

    def _row_computed(self, together: Together, place: int, outcome: Outputs | Exception) -> None:
        self._computed(self._by_itself(together, place), outcome)

    def _by_itself(self, together: Together, place: int) -> Step:
        """A step that was begun together with others and goes its own way from here."""
        inputs = {name: values[place] for name, values in together.inputs.items()}
        ends = np.arange(len(next(iter(inputs.values()))))
        chunk = Chunk(inputs, ends, together.parameters)
        group = together.group
        assert group is not None
        on_end = partial(together.on_row, place)
        step = Step(together.sessions[place], chunk, together.wanted, None, on_end)
        step.work, step.left = group.works.get(place), place in group.left
        self._in_flight.add(step)
        self._misses(together, 1)
        return step

    def _misses(self, together: Together, rows: int) -> None:
        """So many rows of it are done with."""
        together.missing -= rows
        if not together.missing:
            # They know each other, and the collector is not to be waited for.
            together.group = None
            self._leaves(together)

    def _leaves(self, step: Step | Together) -> None:
        self._in_flight.discard(step)
        if not self._in_flight:
            self._quiet.set()


def _retry(step: Step) -> Reply | None:
    """See `find_retry`; also raises `PayloadMismatch` if the reply has fewer candidates than are wanted now."""
    session, wanted = step.session, step.wanted
    retry = find_retry(session, step.seq, step.chunk)
    if retry is None:
        return None
    config = session.engine.config
    most = {tensor.name: tensor.shape[-1] for tensor in config.outputs if tensor.shape}
    for name in set(wanted.stored).intersection(config.ranked):
        there, due = retry.outputs[name].shape[-1], wanted.top_k or most[name]
        if there < due:
            raise PayloadMismatch(
                f"the request at seq {retry.first} was answered with the best {there}, not {due}; send it as it was",
                committed=session.seq,
                expected=session.seq + 1,
            )
    return retry


def _rows(arrays: Outputs) -> list[bytes]:
    """What is in each row of arrays, one array after the other."""
    flat = [
        np.ascontiguousarray(values).reshape(len(values), -1).view(np.uint8)
        for values in arrays.values()
    ]
    joined = flat[0] if len(flat) == 1 else np.concatenate(flat, axis=1)
    rows, width = joined.shape
    content = joined.tobytes()
    return [content[start : start + width] for start in range(0, rows * width, width)]


def check_idle(session: Session, *, held: bool = False) -> None:
    """Raise `SessionBusy` unless nobody is at work on a session; `held`: nobody but who holds it."""
    if session.busy or (session.held and not held):
        raise SessionBusy(
            f"a step of session {session.identity.id} is in flight",
            committed=session.seq,
            expected=session.seq + 1,
        )
