"""Steps on their way through the engine, and batches of them. Plain data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt

from service.engine.arena import Rows, Slot

Array = npt.NDArray[Any]
Outputs = dict[str, Array]
OnEnd = Callable[[Outputs | Exception], None]
OnGroupEnd = Callable[[int, Outputs], None]
OnRowEnd = Callable[[int, Outputs | Exception], None]


@dataclass(frozen=True, slots=True, eq=False)
class Flow:
    """Work that shares the model with other flows, by weight and whatever its amount.

    Attributes:
        tenant: Whose it is.
        kind: `session` for steps of sessions, `once` for whole inputs: neither can crowd out the other.
        weight: Share of the model's time, relative to the others'.
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


class Work(msgspec.Struct, eq=False):
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
        top_k: How many of the best are wanted of ranked outputs; 0 is all.
        done: Time steps applied so far.
        cancelled: Set by a caller that left. Work found cancelled is dropped before it runs.
        parts: Outputs kept so far, one dictionary a chunk.
        single: Whether it is one time step, and outputs of it are wanted.
        chunk: Time steps of the next chunk; the scheduler's.
        start: Virtual time at which it is due; the scheduler's.
    """

    slot: Slot
    inputs: Mapping[str, Array]
    length: int
    keep: npt.NDArray[np.intp]
    outputs: tuple[str, ...]
    deadline: float
    queued_at: float
    on_end: OnEnd
    flow: Flow = ANY_FLOW
    top_k: int = 0
    done: int = 0
    cancelled: bool = False
    parts: tuple[Outputs, ...] = ()
    single: bool = False
    chunk: int = 1
    start: float = 0.0

    @property
    def rows(self) -> int:
        """How many rows of a batch it is."""
        return 1

    @property
    def whole(self) -> bool:
        """Whether it can run as it is with others as long, and all its outputs are wanted."""
        return self.single and not self.cancelled and not self.done

    @property
    def slots(self) -> list[Slot]:
        """Where the state of each row is."""
        return [self.slot]

    def block(self, name: str) -> Array:
        """An input, (1, T, *shape)."""
        return self.inputs[name][None]

    def apart(self) -> list[Work]:
        """Its rows as works."""
        return [self]


class Group(msgspec.Struct, eq=False):
    """Steps that are alike on their way together: each of as many time steps, with all outputs of each wanted.

    What has to be done for every step is then done once for all. Where that is not possible, since one is to be
    dropped, or does not fit, or fails, they go on as works.

    Attributes:
        slots: Where the session of each row is; all different.
        states: The same as rows of the arena, (R,).
        inputs: Input name to (R, T, *shape).
        length: T, at least 1.
        outputs: Names of the outputs wanted.
        deadline: Monotonic time after which none must start.
        queued_at: Monotonic time of arrival.
        on_end: Called with the place of the first row and the outputs of as many as there are, (rows, T, *shape).
        on_row: Called with the place of a row that went on as a work, and what became of it, as `Work.on_end`.
        flow: What they are part of.
        top_k: How many of the best are wanted of ranked outputs; 0 is all.
        first: Place of the first row among those that were begun together.
        left: Places of rows that are to be dropped before they run.
        works: Place of a row to its work, where it went on as one.
        start: Virtual time at which it is due; the scheduler's.
    """

    slots: list[Slot]
    states: Rows
    inputs: Mapping[str, Array]
    length: int
    outputs: tuple[str, ...]
    deadline: float
    queued_at: float
    on_end: OnGroupEnd
    on_row: OnRowEnd
    flow: Flow = ANY_FLOW
    top_k: int = 0
    first: int = 0
    left: set[int] = msgspec.field(default_factory=set)
    works: dict[int, Work] = msgspec.field(default_factory=dict)
    start: float = 0.0

    @property
    def chunk(self) -> int:
        """Time steps of the next chunk: all."""
        return self.length

    @property
    def rows(self) -> int:
        """How many rows of a batch it is."""
        return len(self.slots)

    @property
    def whole(self) -> bool:
        """Whether it can run as it is."""
        return not self.left

    def block(self, name: str) -> Array:
        """An input, (R, T, *shape)."""
        return self.inputs[name]

    def leave(self, place: int) -> None:
        """Drop a row, if it is not running yet. At any time, on any thread."""
        self.left.add(place)
        work = self.works.get(place)
        if work is not None:
            work.cancelled = True

    def cut(self, rows: int) -> tuple[Group, Group]:
        """The first so many rows, and the others."""
        head, tail = (
            msgspec.structs.replace(
                self,
                slots=self.slots[part],
                states=self.states[part],
                inputs={name: values[part] for name, values in self.inputs.items()},
                first=self.first + (part.start or 0),
            )
            for part in (slice(None, rows), slice(rows, None))
        )
        return head, tail

    def apart(self) -> list[Work]:
        """Its rows as works."""
        keep = np.arange(self.length)
        works = []
        for row, slot in enumerate(self.slots):
            place = self.first + row
            work = self.works[place] = Work(
                slot,
                {name: values[row] for name, values in self.inputs.items()},
                self.length,
                keep,
                self.outputs,
                self.deadline,
                self.queued_at,
                partial(self.on_row, place),
                self.flow,
                self.top_k,
                single=self.length == 1,
                chunk=self.length,
                start=self.start,
            )
            # Looked at once it can be found: whoever leaves meanwhile marks one or the other.
            if place in self.left:
                work.cancelled = True
            works.append(work)
        return works


Item = Work | Group
"""What waits in the engine."""


def apart(items: Iterable[Item]) -> list[Work]:
    """All rows as works, in order."""
    return [work for item in items for work in item.apart()]


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows that run together: row i applies `lengths[i]` time steps of `works[i]`, padded to `time`."""

    works: tuple[Work, ...]
    lengths: tuple[int, ...]
    time: int


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do now: a batch to run, or items that run whole as one, if any, and the work dropped on the way to it."""

    batch: Batch | Sequence[Item] | None
    cancelled: tuple[Work, ...]
    late: tuple[Work, ...]
