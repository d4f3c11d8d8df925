"""The loop that runs one model: schedule, run, deliver.

Compute lives in one thread. The event loop leaves work where the thread finds it, wakes it once all that could be read
was read, and is woken itself once a batch. Everything about slots happens on the event loop, so that no lock is
needed: the thread touches only rows of work in flight, and a slot with work in flight is given back only after that
work has ended.
"""

from __future__ import annotations

import asyncio
import logging
import math
import queue
import threading
import time
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from service.engine.arena import Arena, Slot
from service.engine.graph import Runs
from service.engine.patience import Patience
from service.engine.precedence import take_over
from service.engine.running import Ended, Running
from service.engine.scheduler import Scheduler
from service.engine.shapes import Shapes
from service.engine.states import states_of
from service.engine.work import (
    ANY_FLOW,
    Array,
    Batch,
    Flow,
    Group,
    Item,
    OnEnd,
    OnGroupEnd,
    OnRowEnd,
    Outputs,
    Work,
)
from service.errors import (
    DeadlineExceeded,
    Draining,
    Overloaded,
    ServiceError,
    StepCancelled,
)
from service.metrics import EngineMetrics

log = logging.getLogger(__name__)

T = TypeVar("T")

_NEW = 0.2
"""Weight of a new measurement in a moving average."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds of one engine.

    Attributes:
        capacity: Slots for sessions.
        max_pending: Steps in flight or waiting.
        max_pending_tokens: Their time steps.
        max_queue_s: Seconds for which steps may wait, as far as is known; two batches are always let in.
    """

    capacity: int
    max_pending: int
    max_pending_tokens: int
    max_queue_s: float = math.inf


class Engine:
    """Steps sessions of one model, many at a time.

    Args:
        graph: The loaded model.
        limits: Bounds on slots and waiting work.
        metrics: Where counts and times go.
        clock: Monotonic seconds.
        shapes: Shapes that batches are padded to; None runs each in its own.
    """

    def __init__(
        self,
        graph: Runs,
        limits: Limits,
        metrics: EngineMetrics,
        clock: Callable[[], float] = time.monotonic,
        shapes: Shapes | None = None,
    ) -> None:
        self.graph = graph
        self.config = graph.config
        self._arena = Arena(states_of(graph, limits.capacity), limits.capacity)
        self._limits = limits
        self._metrics = metrics
        self._clock = clock
        self._shapes = shapes
        self._scheduler = Scheduler(graph.config.batching, shapes)
        self._running = Running(
            self._arena, graph, shapes, before=partial(self._tell, awaited=False)
        )
        self._patience = Patience(graph.config.batching.max_batch_size)
        # Work on its way to the thread; both sides touch one end each.
        self._inbox: deque[Item] = deque()
        # Rows ever put there, and taken from there by the thread.
        self._sent = 0
        self._taken = 0
        # What the thread took from there and did not run or queue yet.
        self._new: list[Item] = []
        # Whether the thread sleeps, until so many are there or it is told to look.
        self._asleep = False
        self._expected = 0
        self._alarm: queue.SimpleQueue[None] = queue.SimpleQueue()
        # Whether a look at what this turn of the event loop brought is due, and how many there were at the last one.
        self._looking = False
        self._looked_at = 0
        # What ended since the event loop was last told.
        self._ended: list[Ended] = []
        # How often the event loop was told, and by which of these each slot was answered last.
        self._rounds = 0
        self._told = 0
        self._answered = array("q", [0]) * (limits.capacity + 1)
        self._answers = np.frombuffer(self._answered, np.int64)
        # Seconds of the model for a row of a full batch, and the steps it does within `max_queue_s`. Written by the
        # thread, read on the event loop.
        self._row_s = 0.0
        self._room = limits.max_pending
        # Steps in flight, and by slot whether one is. One slot is looked at in the array, many in the view of it.
        self._pending = 0
        self._busy = bytearray(limits.capacity + 1)
        self._busy_rows = np.frombuffer(self._busy, np.bool_)
        self._pending_tokens = 0
        self._give_back_later: set[Slot] = set()
        self._closing = False
        # Read when somebody asks, not written at every step.
        metrics.pending.set_function(lambda: self.pending)
        metrics.state_bytes.set_function(lambda: self._arena.used_bytes)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(
            target=self._work, name=f"engine-{self.config.name}", daemon=True
        )

    # On the event loop.

    def start(self) -> None:
        """Start the compute thread; results come to the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    async def close(self) -> None:
        """Refuse new work, finish what waits, end the thread."""
        self._closing = True
        self._alarm.put(None)
        if self._thread.is_alive():
            await asyncio.get_running_loop().run_in_executor(None, self._thread.join)

    @property
    def deterministic(self) -> bool:
        """Whether the same chunks give the same bits, whoever shares their batches."""
        return self._shapes is not None and self._shapes.stable

    @property
    def pending(self) -> int:
        """Steps in flight or waiting."""
        return self._pending

    @property
    def room(self) -> int:
        """How many more steps are let in now, as far as their number decides; none if below 1."""
        return 0 if self._closing else self._room - self._pending

    @property
    def wait_s(self) -> float:
        """Seconds until a step that came now would begin, as far as is known.

        Every step counts as one row: those that take several batches let others pass in between.
        """
        return self._pending * self._row_s

    def refusal(self) -> ServiceError:
        """What a step is told that finds no room."""
        if self._closing:
            return Draining(f"model {self.config.name} is being unloaded", retry_after_s=1)
        return Overloaded(
            f"{self._pending} steps ({self._pending_tokens} time steps) of model {self.config.name} are "
            "waiting",
            retry_after_s=max(1, math.ceil(self.wait_s)),
        )

    def take(self) -> Slot | None:
        """A slot with the initial state, or None when all are in use."""
        return self._arena.take()

    def give_back(self, slot: Slot) -> None:
        """End the use of a slot; takes effect when its step in flight, if any, has ended."""
        if self._busy[slot.index]:
            self._give_back_later.add(slot)
        else:
            self._arena.give_back(slot)

    def read(self, slot: Slot) -> dict[str, Array]:
        """A copy of the state of a slot that has no step in flight."""
        return self._arena.read(self._idle(slot))

    def write(self, slot: Slot, state: Mapping[str, Array]) -> None:
        """Set the state of a slot that has no step in flight."""
        self._arena.write(self._idle(slot), state)

    def submit(
        self,
        slot: Slot,
        inputs: Mapping[str, Array],
        keep: npt.NDArray[np.intp],
        outputs: tuple[str, ...],
        deadline: float,
        flow: Flow = ANY_FLOW,
        top_k: int = 0,
    ) -> tuple[Work, asyncio.Future[Outputs]]:
        """Queue a step to be awaited; see `begin`.

        Returns:
            The work, whose `cancelled` may be set at any time, and the future of its outputs.
        """
        assert self._loop is not None, "start() comes first"
        future: asyncio.Future[Outputs] = self._loop.create_future()
        on_end = partial(settle, future)
        work = self.begin(slot, inputs, keep, outputs, deadline, on_end, flow, top_k)
        return work, future

    def begin(
        self,
        slot: Slot,
        inputs: Mapping[str, Array],
        keep: npt.NDArray[np.intp],
        outputs: tuple[str, ...],
        deadline: float,
        on_end: OnEnd,
        flow: Flow = ANY_FLOW,
        top_k: int = 0,
        *,
        goes_on: bool = False,
    ) -> Work:
        """Queue a step.

        Args:
            slot: Where the session's state is; no other step of it may be in flight.
            inputs: Input name to (T, *shape), T >= 1.
            keep: Rising positions in 0..T-1 whose outputs are wanted.
            outputs: Names of the outputs wanted.
            deadline: Monotonic time after which the step must not start.
            on_end: Called on the event loop with the outputs, each (len(keep), *shape); or with `StepCancelled`,
                `DeadlineExceeded`, `NonFinite` or `ModelFailed` when the step did not run to its end. State is then
                as before, unless `work.done > 0`: then it is somewhere on the way and the slot has to be written
                anew. The steps of one batch end in one turn of the event loop.
            flow: What the step is part of; see `Scheduler`.
            top_k: How many of the best are wanted of the model's ranked outputs, at most those it has; 0 is all.
            goes_on: Whether it goes on with what was let in before, as the next token of a text does. There are no
                more of these than were let in, and half a text helps nobody; so it is not refused for want of room.

        Returns:
            The work; its `cancelled` may be set at any time.

        Raises:
            Overloaded: Too much is waiting already, or so much that the step would begin after its deadline.
            Draining: The engine is closing.
            StaleSlot: The slot was given back: a fault of the program.
        """
        for values in inputs.values():
            length = len(values)
            break
        now = self._clock()
        if not goes_on or self._closing:
            self._admit(1, length, deadline, now)
        self._arena.check(slot)
        self._idle(slot)
        single = length == 1 and len(keep) == 1
        work = Work(
            slot, inputs, length, keep, outputs, deadline, now, on_end, flow, top_k, single=single
        )
        self._busy[slot.index] = True
        if self._answered[slot.index] == self._told:
            self._patience.returned(now)
        self._send(work, 1)
        return work

    def begin_group(
        self,
        slots: list[Slot],
        inputs: Mapping[str, Array],
        outputs: tuple[str, ...],
        deadline: float,
        on_end: OnGroupEnd,
        on_row: OnRowEnd,
        flow: Flow = ANY_FLOW,
        top_k: int = 0,
    ) -> Group:
        """Queue steps of several slots, which cost together little more than one by one; all outputs are wanted.

        Args:
            slots: Where the states are, R different ones; no other step of them may be in flight.
            inputs: Input name to (R, T, *shape), T >= 1.
            outputs: Names of the outputs wanted.
            deadline: Monotonic time after which none must start.
            on_end: Called on the event loop with the place of a row and the outputs of it and those behind it, each
                (rows, T, *shape): once for all rows, or for some and then for the others. To be copied if kept.
            on_row: Called instead for each row that has to go its own way, with its place and what `begin` calls
                `on_end` with. `Group.works` then has its work.
            flow: What they are part of; see `Scheduler`.
            top_k: See `begin`.

        Returns:
            The group; see `Group.leave`.

        Raises:
            Overloaded, Draining: See `begin`; for all of them, should there be no room for one.
        """
        for values in inputs.values():
            length = values.shape[1]
            break
        now, rows = self._clock(), len(slots)
        self._admit(rows, length, deadline, now)
        states = self._arena.rows_of(slots)
        assert not self._busy_rows[states].any(), "a slot has a step in flight"
        group = Group(
            slots, states, inputs, length, outputs, deadline, now, on_end, on_row, flow, top_k
        )
        self._busy_rows[states] = True
        if returned := np.count_nonzero(self._answers[states] == self._told):
            self._patience.returned(now, int(returned))
        self._send(group, rows)
        return group

    def _admit(self, rows: int, length: int, deadline: float, now: float) -> None:
        """Let in so many steps of so many time steps, or raise."""
        there = self._pending
        if (
            self._closing
            or there + rows > self._room
            or self._pending_tokens + rows * length > self._limits.max_pending_tokens
            or now < deadline < now + there * self._row_s
        ):
            raise self.refusal()

    def _send(self, item: Item, rows: int) -> None:
        """Leave an item where the thread finds it."""
        self._pending += rows
        self._pending_tokens += rows * item.length
        self._inbox.append(item)
        self._sent += rows
        if not self._looking:
            assert self._loop is not None
            self._looking, self._looked_at = True, 0
            self._loop.call_soon(self._look)

    def _look(self) -> None:
        """Wake the thread, if it sleeps, when all that could be read was read or all that is expected is there."""
        there = self._sent - self._taken
        if self._asleep and self._looked_at < there < self._expected:
            # This turn brought some and others are due: one more.
            assert self._loop is not None
            self._looked_at = there
            self._loop.call_soon(self._look)
            return
        self._looking = False
        if self._asleep:
            self._asleep = False
            self._alarm.put(None)

    def _idle(self, slot: Slot) -> Slot:
        assert not self._busy[slot.index], f"{slot} has a step in flight"
        return slot

    def _deliver(self, ended: Sequence[Ended], told: int) -> None:
        self._told = told
        for item, outcome in ended:
            if type(item) is Work:
                index = item.slot.index
                self._busy[index] = False
                self._answered[index] = told
                self._pending -= 1
                self._pending_tokens -= item.length
            elif isinstance(item, Group):
                self._busy_rows[item.states] = False
                self._answers[item.states] = told
                self._pending -= item.rows
                self._pending_tokens -= item.rows * item.length
            try:
                if self._give_back_later:
                    self._give_back(item.slots)
                _end(item, outcome)
            except Exception:
                # A fault of ours; the other steps of the batch are to end all the same.
                log.exception("the end of a step of model %s failed", self.config.name)

    def _give_back(self, slots: Iterable[Slot]) -> None:
        for slot in self._give_back_later.intersection(slots):
            self._give_back_later.discard(slot)
            self.give_back(slot)

    # In the compute thread.

    def _work(self) -> None:
        take_over()
        while self._collect():
            now = self._clock()
            straight = self._scheduler.straight(self._new, now)
            if straight is not None:
                items, rest = straight
                self._new = list(rest)
                self._run_together(items)
                continue
            self._scheduler.extend(self._new)
            self._new = []
            decision = self._scheduler.next_batch(now)
            self._ended += [(work, StepCancelled()) for work in decision.cancelled]
            self._ended += [(work, _too_late(work)) for work in decision.late]
            if isinstance(decision.batch, Batch):
                self._run(decision.batch)
            elif decision.batch is not None:
                self._run_together(decision.batch)

    def _collect(self) -> bool:
        """Take what arrived, and wait while there is nothing to do, or while waiting pays.

        False once the engine is closed and everything has ended.
        """
        scheduler, patience, inbox = self._scheduler, self._patience, self._inbox
        waited = False
        while True:
            new = [inbox.popleft() for _ in range(len(inbox))]
            self._taken += _rows(new)
            self._new += new
            waiting = len(scheduler) + _rows(self._new)
            if not waiting:
                self._tell(awaited=True)
                if self._closing and not self._inbox:
                    return False
                self._sleep(None, patience.expected)
            elif (
                self._closing
                or not scheduler.only_single_steps
                or {item.length for item in self._new} - {1}
            ):
                return True
            elif self._ended:
                if not patience.answer_first(waiting, _rows(item for item, _ in self._ended)):
                    return True
                self._tell(awaited=True)
            else:
                wait_s = 0.0 if waited else patience.wait_s(waiting, self._clock())
                if not wait_s:
                    patience.begin(self._clock())
                    return True
                waited = not self._sleep(wait_s, patience.expected)

    def _sleep(self, seconds: float | None, expected: int) -> bool:
        """Sleep until so many steps arrived, or all that could be read was read. False when the time has passed."""
        self._expected = expected
        self._asleep = True
        try:
            if not self._inbox:
                self._alarm.get(timeout=seconds)
        except queue.Empty:
            return False
        finally:
            self._asleep = False
        return True

    def _tell(self, *, awaited: bool) -> None:
        """Wake the event loop with all that ended.

        With the next batch at hand that is put off until it is about to run. Else both would work at the same time,
        and Python lets only one: the model would wait for what the event loop makes of the batch before.

        Args:
            awaited: Whether the thread waits for what comes of it, instead of running a batch meanwhile.
        """
        if not self._ended:
            return
        assert self._loop is not None
        ended, self._ended = self._ended, []
        self._rounds += 1
        self._patience.told(_rows(item for item, _ in ended), self._clock(), awaited=awaited)
        try:
            self._loop.call_soon_threadsafe(self._deliver, ended, self._rounds)
        except RuntimeError:
            log.warning("event loop closed; %d results dropped", len(ended))

    def _run_together(self, items: Sequence[Item]) -> None:
        """Run whole items; those of one row each are a batch like any other."""
        works = [item for item in items if type(item) is Work]
        length = items[0].length
        if len(works) == len(items):
            self._run(Batch(tuple(works), (1,) * len(works), 1))
            return
        started = self._clock()
        self._metrics.queue_seconds.observe(started - min([item.queued_at for item in items]))
        ended = self._running.together(items)
        self._ended += ended
        steps = _rows(item for item, outcome in ended if type(outcome) is dict)
        rows = _rows(items)
        self._learn(rows, length, rows * length, steps, self._clock() - started)

    def _run(self, batch: Batch) -> None:
        started = self._clock()
        new = [work.queued_at for work in batch.works if work.done == 0]
        if new:
            self._metrics.queue_seconds.observe(started - min(new))
        outcomes = self._running.batch(batch)
        taken = self._clock() - started
        steps = 0
        for work, outcome in zip(batch.works, outcomes, strict=True):
            if outcome is None:
                self._scheduler.add(work)
                continue
            self._ended.append((work, outcome))
            if type(outcome) is dict:
                steps += 1
        self._learn(len(batch.works), batch.time, sum(batch.lengths), steps, taken)

    def _learn(self, rows: int, time: int, tokens: int, steps: int, taken: float) -> None:
        """Count a batch, and remember what it took."""
        try:
            self._metrics.steps.inc(steps)
            self._metrics.tokens.inc(tokens)
            self._metrics.batch_size.observe(rows)
            self._metrics.batch_fill.observe(tokens / (rows * time))
            self._metrics.run_seconds.observe(taken)
            self._scheduler.ran(rows, time, taken)
            if time == 1:
                self._patience.ran(rows, taken)
            self._learn_room(rows, time, taken)
        except Exception:
            # A fault of ours; the model goes on.
            log.exception("what a batch of model %s took is lost", self.config.name)

    def _learn_room(self, ran: int, time: int, seconds: float) -> None:
        """Say how many steps may be in flight: those of the running batch, of the next one, or of `max_queue_s`.

        A step counts as a row of a full batch. One of several time steps takes what its batch took for a row, where
        that was at least half full: smaller ones say little of what many would take.
        """
        rows = self.config.batching.max_batch_size
        if time == 1:
            row_s = self._patience.times.of(rows) / rows
        elif 2 * ran >= rows:
            row_s = seconds / ran
        else:
            return
        self._row_s += (_NEW if self._row_s else 1.0) * (row_s - self._row_s)
        in_time = self._limits.max_queue_s / self._row_s if self._row_s else math.inf
        self._room = int(min(self._limits.max_pending, max(2 * rows, in_time)))


def _rows(items: Iterable[Item]) -> int:
    return sum([item.rows for item in items])


def _end(item: Item, outcome: Outputs | Exception) -> None:
    if isinstance(item, Work):
        on_end, item.on_end = item.on_end, _nothing
        on_end(outcome)
    else:
        assert not isinstance(outcome, Exception), "rows of a group fail as works"
        item.on_end(item.first, outcome)


def _nothing(outcome: Outputs | Exception) -> None:
    """In the place of what was called: a work and its caller hold each other, and would wait for the collector."""


def settle(future: asyncio.Future[T], outcome: T | Exception) -> None:
    """Give a future what became of it, unless nobody waits any more."""
    if future.done():
        return
    if isinstance(outcome, Exception):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)


def _too_late(work: Work) -> DeadlineExceeded:
    applied = " in full" if work.done else ""
    return DeadlineExceeded(f"the deadline passed before the step was applied{applied}")
