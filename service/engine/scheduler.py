"""Which steps run next. Pure: plain data in, plain data out; time is passed in; no threads, no asyncio.

Work waits in one queue per size class of its next chunk: lengths 1, 2, 3-4, 5-8, ... up to the longest chunk. The
class whose oldest work has waited longest runs next, with as much of that class as fits. Rows of one batch so differ
in length by less than two to one, and padding is less than half of any batch. Work that is not finished queues again
behind everything that waits, so a long input cannot hold up single steps.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from service.contract import Batching
from service.engine.arena import Slot

Array = npt.NDArray[Any]
Outputs = dict[str, Array]
OnEnd = Callable[[Outputs | Exception], None]


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


_Queue = deque[tuple[int, int, Work]]
"""Number of arrival, time steps of the next chunk, work."""


class Scheduler:
    """Queues of waiting work.

    Args:
        limits: Rows, chunk length and padded tokens of a batch.
    """

    def __init__(self, limits: Batching) -> None:
        self._limits = limits
        self._longest = min(limits.max_chunk_length, limits.max_batch_tokens)
        self._queues: dict[int, _Queue] = {}
        self._arrivals = 0

    def __len__(self) -> int:
        return sum(map(len, self._queues.values()))

    def add(self, work: Work) -> None:
        """Queue new work, or work with time steps left after a batch."""
        length = min(work.length - work.done, self._longest)
        # 0 for 1, 1 for 2, 2 for 3-4, 3 for 5-8, ...
        size_class = (length - 1).bit_length()
        queue = self._queues.get(size_class)
        if queue is None:
            queue = self._queues[size_class] = deque()
        queue.append((self._arrivals, length, work))
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
        while waiting := [queue for queue in self._queues.values() if queue]:
            batch = self._fill(min(waiting, key=_oldest), now, cancelled, late)
            if batch is not None:
                return Decision(batch, tuple(cancelled), tuple(late))
        return Decision(None, tuple(cancelled), tuple(late))

    def _fill(
        self,
        queue: _Queue,
        now: float,
        cancelled: list[Work],
        late: list[Work],
    ) -> Batch | None:
        works: list[Work] = []
        lengths: list[int] = []
        longest = 0
        while queue and len(works) < self._limits.max_batch_size:
            _, length, work = queue[0]
            longest = max(longest, length)
            if works and (len(works) + 1) * longest > self._limits.max_batch_tokens:
                break
            queue.popleft()
            if work.cancelled:
                cancelled.append(work)
            elif work.deadline < now:
                late.append(work)
            else:
                works.append(work)
                lengths.append(length)
        return Batch(tuple(works), tuple(lengths), max(lengths)) if works else None


def _oldest(queue: _Queue) -> int:
    return queue[0][0]
