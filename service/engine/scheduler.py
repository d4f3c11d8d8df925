"""Which steps run next. Pure: plain data in, plain data out; time is passed in; no threads, no asyncio.

Work waits in one queue per size class of its next chunk: lengths 1, 2, 3-4, 5-8, ... up to the longest chunk. The
class whose first work is due soonest runs next, with as much of that class as fits. Rows of one batch so differ in
length by less than two to one, and padding is less than half of any batch. Work that is not finished queues again
behind everything of its flow that waits, so a long input cannot hold up single steps.

Flows share the model by start-time fair queueing (Goyal, Vin and Cheng 1996): work begins at the virtual time at
which its flow has had its share, and what begins soonest is due soonest. In one flow that is the order of arrival.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from heapq import heappop, heappush
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from service.contract import Batching
from service.engine.arena import Slot
from service.engine.shapes import Shapes

Array = npt.NDArray[Any]
Outputs = dict[str, Array]
OnEnd = Callable[[Outputs | Exception], None]


class Flow(NamedTuple):
    """Work that shares the model with other flows, by weight and whatever its amount.

    Attributes:
        tenant: Whose it is.
        kind: `session` for steps of sessions, `once` for whole inputs: neither can crowd out the other.
        weight: Share of its time steps, relative to the others'.
    """

    tenant: str = ""
    kind: Literal["session", "once"] = "session"
    weight: float = 1.0


ANY_FLOW = Flow()

Priority = Literal["low", "normal", "high"]

_WEIGHTS: dict[Priority, float] = {"low": 0.25, "normal": 1.0, "high": 4.0}


@lru_cache(maxsize=4096)
def flow_of(tenant: str, kind: Literal["session", "once"], priority: Priority) -> Flow:
    """The flow of a tenant's work of one kind and priority, the same object each time.

    Each priority has four times the share of the one below it; none has nothing.
    """
    return Flow(tenant, kind, _WEIGHTS[priority])


@dataclass(slots=True, eq=False)
class Work:
    """A step on its way: the inputs a session adds, and what is wanted back.

    Attributes:
        slot: Where the session's state is.
        inputs: Input name to (T, *shape).
        length: T, at least 1.
        keep: Rising positions in 0..T-1 whose outputs are wanted.
        outputs: Names of the outputs wanted.
        deadline: Monotonic time after which it must not start.
        queued_at: Monotonic time of arrival.
        on_end: Called once with the outputs, or with the error that ended it.
        flow: What it is part of.
        done: Time steps applied so far.
        cancelled: Set by a caller that left. Work found cancelled is dropped before it runs.
        parts: Outputs kept so far, one dictionary a chunk.
    """

    slot: Slot
    inputs: Mapping[str, Array]
    length: int
    keep: npt.NDArray[np.intp]
    outputs: tuple[str, ...]
    deadline: float
    queued_at: float
    on_end: OnEnd = lambda outcome: None
    flow: Flow = ANY_FLOW
    done: int = 0
    cancelled: bool = False
    parts: list[Outputs] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows that run together: row i applies `lengths[i]` time steps of `works[i]`, padded to `time`."""

    works: tuple[Work, ...]
    lengths: tuple[int, ...]
    time: int


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do now: a batch to run, if any, and the work dropped on the way to it."""

    batch: Batch | None
    cancelled: tuple[Work, ...]
    late: tuple[Work, ...]


_Queue = list[tuple[float, int, int, Work]]
"""A heap of virtual start, number of arrival, time steps of the next chunk, work."""

_FLOWS = 1024


class Scheduler:
    """Queues of waiting work.

    Args:
        limits: Rows, chunk length and padded tokens of a batch.
        shapes: What batches are padded to, if they are: a batch has at most the rows of the largest of its class.
    """

    def __init__(self, limits: Batching, shapes: Shapes | None = None) -> None:
        self._limits = limits
        self._shapes = shapes
        self._longest = min(limits.max_chunk_length, limits.max_batch_tokens)
        self._queues: dict[int, _Queue] = {}
        self._arrivals = 0
        # Virtual time, and at which each flow has had what it asked for so far.
        self._now = 0.0
        self._served: dict[Flow, float] = {}

    def __len__(self) -> int:
        return sum(map(len, self._queues.values()))

    @property
    def only_single_steps(self) -> bool:
        """Whether nothing longer than one time step waits."""
        return not any(queue for size, queue in self._queues.items() if size)

    def add(self, work: Work) -> None:
        """Queue new work, or work with time steps left after a batch."""
        length = min(work.length - work.done, self._longest)
        flow = work.flow
        start = max(self._now, self._served.get(flow, 0.0))
        self._served[flow] = start + length / flow.weight
        # 0 for 1, 1 for 2, 2 for 3-4, 3 for 5-8, ...
        size_class = (length - 1).bit_length()
        queue = self._queues.get(size_class)
        if queue is None:
            queue = self._queues[size_class] = []
        heappush(queue, (start, self._arrivals, length, work))
        self._arrivals += 1

    def extend(self, works: Iterable[Work]) -> None:
        """Queue several, in order."""
        for work in works:
            self.add(work)

    def next_batch(self, now: float) -> Decision:
        """Decide what runs next.

        Args:
            now: Monotonic time. Work whose deadline is before it is dropped.
        """
        cancelled: list[Work] = []
        late: list[Work] = []
        while waiting := [each for each in self._queues.items() if each[1]]:
            size_class, queue = min(waiting, key=_first)
            batch = self._fill(queue, self._most(size_class), now, cancelled, late)
            if batch is not None:
                self._forget()
                return Decision(batch, tuple(cancelled), tuple(late))
        return Decision(None, tuple(cancelled), tuple(late))

    def _most(self, size_class: int) -> int:
        return self._shapes.most(size_class) if self._shapes else self._limits.max_batch_size

    def _fill(
        self,
        queue: _Queue,
        most: int,
        now: float,
        cancelled: list[Work],
        late: list[Work],
    ) -> Batch | None:
        works: list[Work] = []
        lengths: list[int] = []
        longest = 0
        while queue and len(works) < most:
            start, _, length, work = queue[0]
            longest = max(longest, length)
            if works and (len(works) + 1) * longest > self._limits.max_batch_tokens:
                break
            heappop(queue)
            self._now = max(self._now, start)
            if work.cancelled:
                cancelled.append(work)
            elif work.deadline < now:
                late.append(work)
            else:
                works.append(work)
                lengths.append(length)
        return Batch(tuple(works), tuple(lengths), max(lengths)) if works else None

    def _forget(self) -> None:
        """Drop flows that have had no more than their share; they begin like new ones."""
        if len(self._served) > _FLOWS:
            self._served = {f: end for f, end in self._served.items() if end > self._now}


def _first(waiting: tuple[int, _Queue]) -> tuple[float, int]:
    return waiting[1][0][:2]
