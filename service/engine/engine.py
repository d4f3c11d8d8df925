"""The loop that runs one model: schedule, run, deliver.

Compute lives in one thread. The event loop hands it work through a queue and is woken once a batch. Everything about
slots happens on the event loop, so that no lock is needed: the thread touches only rows of work in flight, and a slot
with work in flight is given back only after that work has ended.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from service.engine.arena import Arena, Slot
from service.engine.graph import Graph
from service.engine.host import HostStates
from service.engine.scheduler import Array, Batch, OnEnd, Outputs, Scheduler, Work
from service.errors import (
    DeadlineExceeded,
    Draining,
    ModelFailed,
    NonFinite,
    Overloaded,
    StepCancelled,
)
from service.metrics import EngineMetrics

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds of one engine: slots for sessions, steps and time steps in flight or waiting."""

    capacity: int
    max_pending: int
    max_pending_tokens: int


class Engine:
    """Steps sessions of one model, many at a time.

    Args:
        graph: The loaded model.
        limits: Bounds on slots and waiting work.
        metrics: Where counts and times go.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        graph: Graph,
        limits: Limits,
        metrics: EngineMetrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.graph = graph
        self.config = graph.config
        self._arena = Arena(HostStates(graph, limits.capacity), limits.capacity)
        self._limits = limits
        self._metrics = metrics
        self._clock = clock
        self._scheduler = Scheduler(graph.config.batching)
        self._inbox: queue.SimpleQueue[list[Work] | None] = queue.SimpleQueue()
        self._arrived: list[Work] = []
        # What ended since the event loop was last told.
        self._ended: list[tuple[Work, Outputs | Exception]] = []
        # Time of the last batch: written by the thread, read on the event loop.
        self._run_s = 0.0
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
        self._hand_over()
        self._inbox.put(None)
        if self._thread.is_alive():
            await asyncio.get_running_loop().run_in_executor(None, self._thread.join)

    @property
    def pending(self) -> int:
        """Steps in flight or waiting."""
        return len(self._in_flight)

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
    ) -> tuple[Work, asyncio.Future[Outputs]]:
        """Queue a step to be awaited; see `begin`.

        Returns:
            The work, whose `cancelled` may be set at any time, and the future of its outputs.
        """
        assert self._loop is not None, "start() comes first"
        future: asyncio.Future[Outputs] = self._loop.create_future()
        work = self.begin(slot, inputs, keep, outputs, deadline, partial(_settle, future))
        return work, future

    def begin(
        self,
        slot: Slot,
        inputs: Mapping[str, Array],
        keep: npt.NDArray[np.intp],
        outputs: tuple[str, ...],
        deadline: float,
        on_end: OnEnd,
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

        Returns:
            The work; its `cancelled` may be set at any time.

        Raises:
            Overloaded: Too much is waiting already.
            Draining: The engine is closing.
        """
        length = len(next(iter(inputs.values())))
        if self._closing:
            raise Draining(f"model {self.config.name} is being unloaded", retry_after_s=1)
        if (
            len(self._in_flight) >= self._limits.max_pending
            or self._pending_tokens + length > self._limits.max_pending_tokens
        ):
            raise Overloaded(
                f"{len(self._in_flight)} steps ({self._pending_tokens} time steps) of model "
                f"{self.config.name} are waiting",
                retry_after_s=1,
            )
        self._idle(slot)
        work = Work(slot, inputs, length, keep, outputs, deadline, self._clock(), on_end)
        self._in_flight[slot] = work
        self._pending_tokens += length
        self._gather(work)
        return work

    def _gather(self, work: Work) -> None:
        """Keep work until the turn of the event loop is over, so that all it read goes to the thread together.

        A turn may be long where each step comes in a request of its own. Then the thread gets what there is after the
        time of a batch, and computes it while the event loop reads the rest: they take turns on their sessions.
        """
        assert self._loop is not None
        if not self._arrived:
            self._loop.call_soon(self._hand_over)
        self._arrived.append(work)
        if work.queued_at - self._arrived[0].queued_at > self._run_s:
            self._hand_over()

    def _idle(self, slot: Slot) -> Slot:
        assert slot not in self._in_flight, f"{slot} has a step in flight"
        return slot

    def _hand_over(self) -> None:
        if self._arrived:
            arrived, self._arrived = self._arrived, []
            self._inbox.put(arrived)

    def _deliver(self, ended: Sequence[tuple[Work, Outputs | Exception]]) -> None:
        for work, outcome in ended:
            del self._in_flight[work.slot]
            self._pending_tokens -= work.length
            if work.slot in self._give_back_later:
                self._give_back_later.discard(work.slot)
                self.give_back(work.slot)
            try:
                work.on_end(outcome)
            except Exception:
                # A fault of ours; the other steps of the batch are to end all the same.
                log.exception("the end of a step of model %s failed", self.config.name)

    # In the compute thread.

    def _work(self) -> None:
        while True:
            open_ = self._receive()
            decision = self._scheduler.next_batch(self._clock())
            self._ended += [(work, StepCancelled()) for work in decision.cancelled]
            self._ended += [(work, _too_late(work)) for work in decision.late]
            if decision.batch is not None:
                self._run(decision.batch)
            elif not open_ and not self._ended:
                return

    def _receive(self) -> bool:
        """Move all that arrived into the scheduler; waits when there is nothing to do. False when closing."""
        open_ = not self._closing
        if not self._scheduler and self._inbox.empty():
            self._tell()
        block = open_ and not self._scheduler
        try:
            while (arrived := self._inbox.get(block)) is not None:
                self._scheduler.extend(arrived)
                block = False
        except queue.Empty:
            return open_
        return False

    def _tell(self) -> None:
        """Wake the event loop with all that ended.

        With the next batch at hand that is put off until it is about to run. Else both would work at the same time,
        and Python lets only one: the model would wait for what the event loop makes of the batch before.
        """
        if not self._ended:
            return
        assert self._loop is not None
        ended, self._ended = self._ended, []
        try:
            self._loop.call_soon_threadsafe(self._deliver, ended)
        except RuntimeError:
            log.warning("event loop closed; %d results dropped", len(ended))

    def _run(self, batch: Batch) -> None:
        started = self._clock()
        new = [work.queued_at for work in batch.works if work.done == 0]
        if new:
            self._metrics.queue_seconds.observe(started - min(new))
        failures = self._apply_or_isolate(batch)
        steps = 0
        for work, failure in zip(batch.works, failures, strict=True):
            if failure is not None:
                self._ended.append((work, failure))
            elif work.done < work.length:
                self._scheduler.add(work)
            else:
                self._ended.append((work, _join(work)))
                steps += 1
        self._metrics.steps.inc(steps)
        tokens = sum(batch.lengths)
        self._metrics.tokens.inc(tokens)
        self._metrics.batch_size.observe(len(batch.works))
        self._metrics.batch_fill.observe(tokens / (len(batch.works) * batch.time))
        self._run_s = self._clock() - started
        self._metrics.run_seconds.observe(self._run_s)

    def _apply_or_isolate(self, batch: Batch) -> list[Exception | None]:
        """Apply a batch; should the model raise, apply each row alone, so that only the guilty one fails."""
        try:
            return self._apply(batch)
        except Exception:
            # Whatever a graph raises must not end the loop or leave a caller without an answer.
            log.exception("model %s raised on %d rows", self.config.name, len(batch.works))
        failures: list[Exception | None] = []
        for work, length in zip(batch.works, batch.lengths, strict=True):
            try:
                failures += self._apply(Batch((work,), (length,), length))
            except Exception as error:
                log.exception("model %s raised on one row", self.config.name)
                detail = f"model {self.config.name} raised {type(error).__name__}"
                failures.append(ModelFailed(f"{detail}; the step was not applied"))
        return failures

    def _apply(self, batch: Batch) -> list[Exception | None]:
        """Run rows once, write the finite ones back; the others' state stays as it was."""
        slots = [work.slot for work in batch.works]
        feeds = {
            tensor.name: _pad(batch, tensor.name, tensor.shape, tensor.dtype)
            for tensor in self.config.inputs
        }
        feeds[self.config.lengths] = np.array(batch.lengths, np.int32)
        asked = {name for outputs in {work.outputs for work in batch.works} for name in outputs}
        # Order of the model's outputs.
        wanted = [tensor.name for tensor in self.config.outputs if tensor.name in asked]
        if len(wanted) < len(asked):
            raise KeyError(f"the model has not all of the outputs {', '.join(sorted(asked))}")
        self._tell()
        result, finite = self._arena.run(slots, feeds, wanted)
        # Every output has the shape its config says, so nothing raises after the states are written.
        kept = _kept(batch, result)
        failures: list[Exception | None] = []
        for row, (work, length) in enumerate(zip(batch.works, batch.lengths, strict=True)):
            if finite[row]:
                if (part := kept[row]) is not None:
                    work.parts.append(part)
                work.done += length
                failures.append(None)
            else:
                failures.append(
                    NonFinite("the model computed NaN or infinity; the step was not applied")
                )
        return failures


def _settle(future: asyncio.Future[Outputs], outcome: Outputs | Exception) -> None:
    if future.done():
        return
    if isinstance(outcome, Exception):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)


def _pad(batch: Batch, name: str, shape: tuple[int, ...], dtype: str) -> Array:
    """Next chunk of every row, (B, time, *shape); zero beyond a row's length."""
    chunks = [
        work.inputs[name][work.done : work.done + length]
        for work, length in zip(batch.works, batch.lengths, strict=True)
    ]
    if min(batch.lengths) == batch.time:
        return np.concatenate(chunks).reshape(len(chunks), batch.time, *shape)
    padded = np.zeros((len(chunks), batch.time, *shape), dtype)
    for row, chunk in enumerate(chunks):
        padded[row, : len(chunk)] = chunk
    return padded


def _kept(batch: Batch, result: Outputs) -> list[Outputs | None]:
    """Of every row the wanted outputs of the time steps it applied, if any are wanted.

    Copies, so that a reply that is kept does not keep the whole batch.
    """
    first = batch.works[0]
    if first.outputs and all(
        work.length == len(work.keep) == 1 and work.outputs == first.outputs for work in batch.works
    ):
        columns = [[row.copy() for row in result[name]] for name in first.outputs]
        return [dict(zip(first.outputs, row, strict=True)) for row in zip(*columns, strict=True)]
    return [
        _kept_of(work, row, length, result)
        for row, (work, length) in enumerate(zip(batch.works, batch.lengths, strict=True))
    ]


def _kept_of(work: Work, row: int, length: int, result: Outputs) -> Outputs | None:
    """The wanted outputs of the `length` time steps of `row` that start at `work.done`, if any are wanted."""
    if len(work.keep) == work.length:
        # Every time step is wanted.
        return {name: result[name][row, :length].copy() for name in work.outputs}
    first, last = np.searchsorted(work.keep, (work.done, work.done + length))
    if first == last and (work.parts or work.done + length < work.length):
        return None
    positions = work.keep[first:last] - work.done
    return {name: result[name][row, positions] for name in work.outputs}


def _join(work: Work) -> Outputs:
    if len(work.parts) == 1:
        return work.parts[0]
    return {name: np.concatenate([part[name] for part in work.parts]) for name in work.outputs}


def _too_late(work: Work) -> DeadlineExceeded:
    applied = " in full" if work.done else ""
    return DeadlineExceeded(f"the deadline passed before the step was applied{applied}")
