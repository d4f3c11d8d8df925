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
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from service.engine.arena import SCRATCH, Arena, Slot
from service.engine.graph import Runs
from service.engine.patience import Patience
from service.engine.rows import join, keep, keep_single, pad, single
from service.engine.scheduler import Scheduler
from service.engine.shapes import Shapes
from service.engine.states import states_of
from service.engine.work import ANY_FLOW, Array, Batch, Flow, OnEnd, Outputs, Work
from service.errors import (
    DeadlineExceeded,
    Draining,
    ModelFailed,
    NonFinite,
    Overloaded,
    ServiceError,
    StepCancelled,
)
from service.metrics import EngineMetrics

log = logging.getLogger(__name__)

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
        self._patience = Patience(graph.config.batching.max_batch_size)
        # Work on its way to the thread; both sides touch one end each.
        self._inbox: deque[Work] = deque()
        # What the thread took from there and did not look at yet.
        self._new: list[Work] = []
        # Whether the thread sleeps, until so many are there or it is told to look.
        self._asleep = False
        self._expected = 0
        self._alarm: queue.SimpleQueue[None] = queue.SimpleQueue()
        # Whether a look at what this turn of the event loop brought is due, and how many there were at the last one.
        self._looking = False
        self._looked_at = 0
        # What ended since the event loop was last told.
        self._ended: list[tuple[Work, Outputs | Exception]] = []
        # How often the event loop was told, and by which of these each slot was answered last.
        self._rounds = 0
        self._told = 0
        self._answered = [0] * (limits.capacity + 1)
        # Seconds of the model for a row of a full batch, and the steps it does within `max_queue_s`. Written by the
        # thread, read on the event loop.
        self._row_s = 0.0
        self._room = limits.max_pending
        self._in_flight: dict[Slot, Work] = {}
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
        return len(self._in_flight)

    @property
    def room(self) -> int:
        """How many more steps are let in now, as far as their number decides; none if below 1."""
        return 0 if self._closing else self._room - len(self._in_flight)

    @property
    def wait_s(self) -> float:
        """Seconds until a step that came now would begin, as far as is known.

        Every step counts as one row: those that take several batches let others pass in between.
        """
        return len(self._in_flight) * self._row_s

    def refusal(self) -> ServiceError:
        """What a step is told that finds no room."""
        if self._closing:
            return Draining(f"model {self.config.name} is being unloaded", retry_after_s=1)
        return Overloaded(
            f"{len(self._in_flight)} steps ({self._pending_tokens} time steps) of model {self.config.name} are "
            "waiting",
            retry_after_s=max(1, math.ceil(self.wait_s)),
        )

    def take(self) -> Slot | None:
        """A slot with the initial state, or None when all are in use."""
        return self._arena.take()

    def give_back(self, slot: Slot) -> None:
        """End the use of a slot; takes effect when its step in flight, if any, has ended."""
        if slot in self._in_flight:
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
    ) -> tuple[Work, asyncio.Future[Outputs]]:
        """Queue a step to be awaited; see `begin`.

        Returns:
            The work, whose `cancelled` may be set at any time, and the future of its outputs.
        """
        assert self._loop is not None, "start() comes first"
        future: asyncio.Future[Outputs] = self._loop.create_future()
        on_end = partial(_settle, future)
        work = self.begin(slot, inputs, keep, outputs, deadline, on_end, flow)
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
            goes_on: Whether it goes on with what was let in before, as the next token of a text does. There are no
                more of these than were let in, and half a text helps nobody; so it is not refused for want of room.

        Returns:
            The work; its `cancelled` may be set at any time.

        Raises:
            Overloaded: Too much is waiting already, or so much that the step would begin after its deadline.
            Draining: The engine is closing.
        """
        for values in inputs.values():
            length = len(values)
            break
        in_flight = self._in_flight
        there = len(in_flight)
        if self._closing or (
            not goes_on
            and (
                there >= self._room
                or self._pending_tokens + length > self._limits.max_pending_tokens
            )
        ):
            raise self.refusal()
        assert slot not in in_flight, f"{slot} has a step in flight"
        now = self._clock()
        if now < deadline < now + there * self._row_s and not goes_on:
            raise self.refusal()
        single = length == 1 and len(keep) == 1
        work = Work(slot, inputs, length, keep, outputs, deadline, now, on_end, flow, single=single)
        in_flight[slot] = work
        self._pending_tokens += length
        if self._answered[slot.index] == self._told:
            self._patience.returned(now)
        self._inbox.append(work)
        if not self._looking:
            assert self._loop is not None
            self._looking, self._looked_at = True, 0
            self._loop.call_soon(self._look)
        return work

    def _look(self) -> None:
        """Wake the thread, if it sleeps, when all that could be read was read or all that is expected is there."""
        there = len(self._inbox)
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
        assert slot not in self._in_flight, f"{slot} has a step in flight"
        return slot

    def _deliver(self, ended: Sequence[tuple[Work, Outputs | Exception]], told: int) -> None:
        self._told = told
        in_flight, answered, give_back_later = (
            self._in_flight,
            self._answered,
            self._give_back_later,
        )
        for work, outcome in ended:
            slot = work.slot
            del in_flight[slot]
            self._pending_tokens -= work.length
            answered[slot.index] = told
            if slot in give_back_later:
                give_back_later.discard(slot)
                self.give_back(slot)
            on_end, work.on_end = work.on_end, _nothing
            try:
                on_end(outcome)
            except Exception:
                # A fault of ours; the other steps of the batch are to end all the same.
                log.exception("the end of a step of model %s failed", self.config.name)

    # In the compute thread.

    def _work(self) -> None:
        while self._collect():
            now = self._clock()
            batch = self._scheduler.straight(self._new, now)
            if batch is None:
                self._scheduler.extend(self._new)
                decision = self._scheduler.next_batch(now)
                self._ended += [(work, StepCancelled()) for work in decision.cancelled]
                self._ended += [(work, _too_late(work)) for work in decision.late]
                batch = decision.batch
            self._new = []
            if batch is not None:
                self._run(batch)

    def _collect(self) -> bool:
        """Take what arrived, and wait while there is nothing to do, or while waiting pays.

        False once the engine is closed and everything has ended.
        """
        scheduler, patience, inbox = self._scheduler, self._patience, self._inbox
        waited = False
        while True:
            self._new += [inbox.popleft() for _ in range(len(inbox))]
            waiting = len(scheduler) + len(self._new)
            if not waiting:
                self._tell(awaited=True)
                if self._closing and not self._inbox:
                    return False
                self._sleep(None, patience.expected)
            elif (
                self._closing
                or not scheduler.only_single_steps
                or {work.length for work in self._new} - {1}
            ):
                return True
            elif self._ended:
                if not patience.answer_first(waiting, len(self._ended)):
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
        self._patience.told(len(ended), self._clock(), awaited=awaited)
        try:
            self._loop.call_soon_threadsafe(self._deliver, ended, self._rounds)
        except RuntimeError:
            log.warning("event loop closed; %d results dropped", len(ended))

    def _run(self, batch: Batch) -> None:
        started = self._clock()
        new = [work.queued_at for work in batch.works if work.done == 0]
        if new:
            self._metrics.queue_seconds.observe(started - min(new))
        outcomes = self._apply_or_isolate(batch)
        taken = self._clock() - started
        steps = 0
        for work, outcome in zip(batch.works, outcomes, strict=True):
            if outcome is None:
                self._scheduler.add(work)
                continue
            self._ended.append((work, outcome))
            if type(outcome) is dict:
                steps += 1
        try:
            self._learn(batch, steps, taken)
        except Exception:
            # A fault of ours; the model goes on.
            log.exception("what a batch of model %s took is lost", self.config.name)

    def _learn(self, batch: Batch, steps: int, taken: float) -> None:
        """Count a batch, and remember what it took."""
        self._metrics.steps.inc(steps)
        tokens = sum(batch.lengths)
        self._metrics.tokens.inc(tokens)
        self._metrics.batch_size.observe(len(batch.works))
        self._metrics.batch_fill.observe(tokens / (len(batch.works) * batch.time))
        self._metrics.run_seconds.observe(taken)
        self._scheduler.ran(batch, taken)
        if batch.time == 1:
            self._patience.ran(len(batch.works), taken)
        self._learn_room(batch, taken)

    def _learn_room(self, batch: Batch, seconds: float) -> None:
        """Say how many steps may be in flight: those of the running batch, of the next one, or of `max_queue_s`.

        A step counts as a row of a full batch. One of several time steps takes what its batch took for a row, where
        that was at least half full: smaller ones say little of what many would take.
        """
        rows = self.config.batching.max_batch_size
        if batch.time == 1:
            row_s = self._patience.times.of(rows) / rows
        elif 2 * len(batch.works) >= rows:
            row_s = seconds / len(batch.works)
        else:
            return
        self._row_s += (_NEW if self._row_s else 1.0) * (row_s - self._row_s)
        in_time = self._limits.max_queue_s / self._row_s if self._row_s else math.inf
        self._room = int(min(self._limits.max_pending, max(2 * rows, in_time)))

    def _apply_or_isolate(self, batch: Batch) -> list[Outputs | Exception | None]:
        """Apply a batch; should the model raise, apply each row alone, so that only the guilty one fails."""
        try:
            return self._apply(batch)
        except Exception:
            # Whatever a graph raises must not end the loop or leave a caller without an answer.
            log.exception("model %s raised on %d rows", self.config.name, len(batch.works))
        outcomes: list[Outputs | Exception | None] = []
        for work, length in zip(batch.works, batch.lengths, strict=True):
            try:
                outcomes += self._apply(Batch((work,), (length,), length))
            except Exception as error:
                log.exception("model %s raised on one row", self.config.name)
                detail = f"model {self.config.name} raised {type(error).__name__}"
                outcomes.append(ModelFailed(f"{detail}; the step was not applied"))
        return outcomes

    def _apply(self, batch: Batch) -> list[Outputs | Exception | None]:
        """Run rows once; those that come out finite keep their next state, the others' stays as it was."""
        works, config = batch.works, self.config
        rows, time = len(works), batch.time
        if self._shapes is not None:
            rows, time = self._shapes.padded(rows, time)
        fill = rows - len(works)
        slots = [work.slot for work in works] + [SCRATCH] * fill
        feeds = {t.name: pad(batch, t.name, t.shape, t.dtype, rows, time) for t in config.inputs}
        feeds[config.lengths] = np.array(batch.lengths + (time,) * fill, np.int32)
        asked = {name for outputs in {work.outputs for work in works} for name in outputs}
        # Order of the model's outputs.
        wanted = [tensor.name for tensor in config.outputs if tensor.name in asked]
        if len(wanted) < len(asked):
            raise KeyError(f"the model has not all of the outputs {', '.join(sorted(asked))}")
        self._tell(awaited=False)
        result, finite = self._arena.run(slots, feeds, wanted)
        # Every output has the shape its config says, so nothing raises after the states are written.
        if single(batch) and finite[: len(works)].all():
            for work in works:
                work.done = 1
            return list(keep_single(batch, result))
        outcomes: list[Outputs | Exception | None] = []
        kept = keep(batch, result)
        for row, (work, length) in enumerate(zip(works, batch.lengths, strict=True)):
            if not finite[row]:
                detail = "the model computed NaN or infinity; the step was not applied"
                outcomes.append(NonFinite(detail))
                continue
            if (part := kept[row]) is not None:
                work.parts += (part,)
            work.done += length
            outcomes.append(join(work) if work.done == work.length else None)
        return outcomes


def _nothing(outcome: Outputs | Exception) -> None:
    """In the place of what was called: a work and its caller hold each other, and would wait for the collector."""


def _settle(future: asyncio.Future[Outputs], outcome: Outputs | Exception) -> None:
    if future.done():
        return
    if isinstance(outcome, Exception):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)


def _too_late(work: Work) -> DeadlineExceeded:
    applied = " in full" if work.done else ""
    return DeadlineExceeded(f"the deadline passed before the step was applied{applied}")
