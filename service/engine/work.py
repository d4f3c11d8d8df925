"""Steps on their way through the engine, and batches of them. Plain data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt

from service.engine.arena import Slot

Array = npt.NDArray[Any]
Outputs = dict[str, Array]
OnEnd = Callable[[Outputs | Exception], None]


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
    done: int = 0
    cancelled: bool = False
    parts: tuple[Outputs, ...] = ()
    single: bool = False
    chunk: int = 1
    start: float = 0.0


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
