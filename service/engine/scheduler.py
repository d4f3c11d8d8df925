"""Which steps run next. Pure: plain data in, plain data out; time is passed in; no threads, no asyncio.

Work waits in one queue per size class of its next chunk: lengths 1, 2, 3-4, 5-8, ... up to the longest chunk. The
class whose first work is due soonest runs next, with as much of that class as fits. Rows of one batch so differ in
length by less than two to one, and padding is less than half of any batch. Work that is not finished queues again
behind everything of its flow that waits, so a long input cannot hold up single steps; and while there are any, its
chunks are no longer than what a few batches of them take.

Flows share the model by start-time fair queueing (Goyal, Vin and Cheng 1996): work begins at the virtual time at
which its flow has had its share, and what begins soonest is due soonest. In one flow that is the order of arrival. What
is shared is the model's time, as measured.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from heapq import heapify, heappop, heapreplace

from service.contract import Batching
from service.engine.shapes import Shapes
from service.engine.work import Batch, Decision, Flow, Item, Work

_Queue = deque[Work]
_Queues = dict[Flow, _Queue]
"""Of one size class the work of each flow, in order of its start."""

_FLOWS = 1024

_NEW = 0.2
"""Weight of a new measurement in a moving average."""

_DELAY = 2.0
"""How many batches of single steps a chunk may take while there are single steps."""

_RECENT = 2
"""Batches of longer chunks after which single steps are not reckoned with any more."""

_UNKNOWN_S = 1e-4
"""Seconds of the model for a time step of a row, before one was seen."""

_MANY = 64
"""More items than that, or than a batch has rows, wait in queues."""

_SHORTEST = 4
"""Time steps of a chunk that is not made shorter for them."""


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
        self._classes: dict[int, _Queues] = {}
        self._waiting = 0
        # Virtual time, and at which each flow has had what it asked for so far.
        self._now = 0.0
        self._served: dict[Flow, float] = {}
        # Seconds of the model for one time step of one row, by size class.
        self._token_s: dict[int, float] = {}
        # Seconds of the last batch of single steps, how many others ran since, and those of a time step of these.
        self._single_s = 0.0
        self._since_single = _RECENT
        self._step_s = 0.0

    def __len__(self) -> int:
        return self._waiting

    @property
    def only_single_steps(self) -> bool:
        """Whether nothing longer than one time step waits."""
        return not any(self._classes[size] for size in self._classes if size)

    def add(self, work: Work) -> None:
        """Queue new work, or work with time steps left after a batch."""
        length = work.length - work.done
        if length > self._longest:
            length = self._longest
        if work.chunk != length:
            work.chunk = length
        flow = work.flow
        start = self._served.get(flow, 0.0)
        if start < self._now:
            start = self._now
        work.start = start
        # 0 for 1, 1 for 2, 2 for 3-4, 3 for 5-8, ...
        size_class = (length - 1).bit_length()
        self._served[flow] = (
            start + length * self._token_s.get(size_class, _UNKNOWN_S) / flow.weight
        )
        try:
            self._classes[size_class][flow].append(work)
        except KeyError:
            self._classes.setdefault(size_class, {})[flow] = deque((work,))
        self._waiting += 1

    def extend(self, works: Iterable[Work]) -> None:
        """Queue several, in order."""
        for work in works:
            self.add(work)

    def straight(
        self, items: Sequence[Item], now: float
    ) -> tuple[Sequence[Item], Sequence[Item]] | None:
        """Of new items those that run next where nothing has to be decided, and the others; else None.

        That is: nothing else waits, they are few, all of one flow and as many time steps, and none is to be dropped.
        Then they run in the order in which they came. Nothing is changed.
        """
        if self._waiting or not items:
            return None
        flow, length = items[0].flow, items[0].length
        most = self._most((length - 1).bit_length()) if length <= self._longest else 0
        if len(items) > max(_MANY, most):
            # They would be looked at before every batch.
            return None
        for item in items:
            if (
                item.length != length
                or item.flow is not flow
                or not item.whole
                or item.deadline < now
            ):
                return None
        if not most or (length > 1 and length > self._longest_now()):
            return None
        room = min(most, self._limits.max_batch_tokens // length)
        for number, item in enumerate(items):
            if item.rows > room:
                if not room or isinstance(item, Work):
                    return items[:number], items[number:]
                head, tail = item.cut(room)
                return [*items[:number], head], [tail, *items[number + 1 :]]
            room -= item.rows
        return items, ()

    def next_batch(self, now: float) -> Decision:
        """Decide what runs next.

        Args:
            now: Monotonic time. Work whose deadline is before it is dropped.
        """
        cancelled: list[Work] = []
        late: list[Work] = []
        while self._waiting:
            size_class = min((c for c in self._classes if self._classes[c]), key=self._first)
            batch = self._fill(size_class, now, cancelled, late)
            if batch is not None:
                self._forget()
                return Decision(batch, tuple(cancelled), tuple(late))
        return Decision(None, tuple(cancelled), tuple(late))

    def ran(self, rows: int, time: int, seconds: float) -> None:
        """Learn from a batch of so many rows and time steps that ran in so many seconds."""
        size_class = (time - 1).bit_length()
        token_s = seconds / (rows * time)
        known = self._token_s.get(size_class, token_s)
        self._token_s[size_class] = known + _NEW * (token_s - known)
        if time == 1:
            self._single_s, self._since_single = seconds, 0
        else:
            step_s = seconds / time
            self._step_s += (_NEW if self._step_s else 1.0) * (step_s - self._step_s)
            self._since_single += 1

    def _longest_now(self) -> int:
        """Time steps that a chunk may have. Where shapes are fixed, so are the cuts of an input."""
        if self._shapes or not self._step_s or not self._single_s:
            return self._longest
        if self._since_single >= _RECENT and not self._classes.get(0):
            return self._longest
        return max(_SHORTEST, int(_DELAY * self._single_s / self._step_s))

    def _first(self, size_class: int) -> float:
        """When the first work of a class is due."""
        return min([queue[0].start for queue in self._classes[size_class].values()])

    def _most(self, size_class: int) -> int:
        return self._shapes.most(size_class) if self._shapes else self._limits.max_batch_size

    def _fill(
        self, size_class: int, now: float, cancelled: list[Work], late: list[Work]
    ) -> Batch | None:
        queues, most = self._classes[size_class], self._most(size_class)
        works: list[Work] = []
        longest = 0
        for work in _in_order(queues):
            if work.chunk > longest:
                longest = work.chunk
            if works and (len(works) + 1) * longest > self._limits.max_batch_tokens:
                break
            queues[work.flow].popleft()
            self._waiting -= 1
            start = work.start
            if work.cancelled:
                cancelled.append(work)
            elif work.deadline < now:
                late.append(work)
            else:
                works.append(work)
                if len(works) == most:
                    break
        self._now = max(self._now, start)
        for flow in [flow for flow, queue in queues.items() if not queue]:
            del queues[flow]
        if not works:
            return None
        if longest == 1:
            return Batch(tuple(works), (1,) * len(works), 1)
        most_steps = self._longest_now()
        lengths = tuple([min(work.chunk, most_steps) for work in works])
        return Batch(tuple(works), lengths, max(lengths))

    def _forget(self) -> None:
        """Drop flows that have had no more than their share; they begin like new ones."""
        if len(self._served) > _FLOWS:
            self._served = {f: end for f, end in self._served.items() if end > self._now}


def _in_order(queues: _Queues) -> Iterator[Work]:
    """All work by its start; the caller takes each from its queue before it asks for the next."""
    if len(queues) == 1:
        (queue,) = queues.values()
        while queue:
            yield queue[0]
        return
    # The number decides between those that are due at the same time.
    heads = [(queue[0].start, number, queue) for number, queue in enumerate(queues.values())]
    heapify(heads)
    while heads:
        _, number, queue = heads[0]
        yield queue[0]
        if queue:
            heapreplace(heads, (queue[0].start, number, queue))
        else:
            heappop(heads)
