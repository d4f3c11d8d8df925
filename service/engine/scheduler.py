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
from service.engine.work import Batch, Decision, Flow, Group, Item, Work, apart

_Queue = deque[Item]
_Queues = dict[Flow, _Queue]
"""Of one size class what waits of each flow, in order of its start."""

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

    def add(self, item: Item) -> None:
        """Queue new work, or work with time steps left after a batch, or a group."""
        if isinstance(item, Group):
            if item.length > self._longest:
                self.extend(item.apart())
                return
            rows, length = item.rows, item.length
        else:
            rows, length = 1, min(item.length - item.done, self._longest)
            if item.chunk != length:
                item.chunk = length
        flow = item.flow
        start = self._served.get(flow, 0.0)
        if start < self._now:
            start = self._now
        item.start = start
        # 0 for 1, 1 for 2, 2 for 3-4, 3 for 5-8, ...
        size_class = (length - 1).bit_length()
        self._served[flow] = start + rows * self._cost(size_class, length, flow)
        try:
            self._classes[size_class][flow].append(item)
        except KeyError:
            self._classes.setdefault(size_class, {})[flow] = deque((item,))
        self._waiting += rows

    def _cost(self, size_class: int, length: int, flow: Flow) -> float:
        """Virtual time of a row of so many time steps."""
        return length * self._token_s.get(size_class, _UNKNOWN_S) / flow.weight

    def extend(self, items: Iterable[Item]) -> None:
        """Queue several, in order."""
        for item in items:
            self.add(item)

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
    ) -> Batch | Sequence[Item] | None:
        queues, most = self._classes[size_class], self._most(size_class)
        items: list[Item] = []
        rows = longest = 0
        for item in _in_order(queues):
            queue = queues[item.flow]
            if isinstance(item, Group) and (item.left or item.deadline < now):
                # Each of its rows is looked at.
                queue.popleft()
                queue.extendleft(reversed(item.apart()))
                continue
            longest = max(longest, item.chunk)
            room = min(most, self._limits.max_batch_tokens // longest) - rows
            if items and room < 1:
                break
            queue.popleft()
            start = item.start
            if isinstance(item, Group):
                if item.rows > room:
                    item, tail = item.cut(room)
                    tail.start = start + room * self._cost(size_class, item.length, item.flow)
                    queue.appendleft(tail)
            elif item.cancelled or item.deadline < now:
                self._waiting -= 1
                (cancelled if item.cancelled else late).append(item)
                continue
            self._waiting -= item.rows
            items.append(item)
            rows += item.rows
            if rows == most:
                break
        self._now = max(self._now, start)
        for flow in [flow for flow, queue in queues.items() if not queue]:
            del queues[flow]
        return self._batch(items) if items else None

    def _batch(self, items: Sequence[Item]) -> Batch | Sequence[Item]:
        """Items as a batch; or as they are, if they can run whole and a group is among them."""
        longest, most_steps = max([item.chunk for item in items]), self._longest_now()
        if (
            (longest == 1 or longest <= most_steps)
            and any(isinstance(item, Group) for item in items)
            and all(item.whole and item.length == longest for item in items)
        ):
            return items
        works = tuple(apart(items))
        if longest == 1:
            return Batch(works, (1,) * len(works), 1)
        lengths = tuple([min(work.chunk, most_steps) for work in works])
        return Batch(works, lengths, max(lengths))

    def _forget(self) -> None:
        """Drop flows that have had no more than their share; they begin like new ones."""
        if len(self._served) > _FLOWS:
            self._served = {f: end for f, end in self._served.items() if end > self._now}


def _in_order(queues: _Queues) -> Iterator[Item]:
    """All items by their start; the caller takes each from its queue before it asks for the next."""
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
