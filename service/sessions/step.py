"""Requests on their way through sessions: what is wanted, what was applied, one by one and together. Plain data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import numpy.typing as npt

from service.engine.work import Group, Work
from service.journal.protocol import Entry
from service.sessions.session import Chunk, Session

Outputs = Mapping[str, npt.NDArray[Any]]


class Wanted(msgspec.Struct, frozen=True, gc=False):
    """What a request wants back.

    Attributes:
        stored: Outputs that make the reply, kept for a retry.
        passing: Outputs wanted once more, never stored: too large.
        deadline: Monotonic time after which the step must not start.
        top_k: How many of the best are wanted of ranked outputs; 0 is all.
    """

    stored: tuple[str, ...]
    deadline: float
    passing: tuple[str, ...] = ()
    top_k: int = 0


class Applied(msgspec.Struct, frozen=True, gc=False):
    """A committed request.

    Attributes:
        first: `seq` of its first input.
        seq: Inputs committed after it.
        outputs: Output name to (inputs, *shape), or (time steps, *shape) where every time step is wanted.
        duplicate: Whether it was a retry, answered from the journal.
    """

    first: int
    seq: int
    outputs: Outputs
    duplicate: bool


OnEnd = Callable[[Applied | Exception], None]


class Step:
    """A request on its way through a session.

    Args:
        session: The session.
        chunk: What is fed.
        wanted: What to answer.
        seq: Number the caller gave to the first input.
        on_end: Called with what became of it, unless the caller left.
    """

    __slots__ = (
        "chunk",
        "entry",
        "goes_on",
        "left",
        "on_end",
        "outputs",
        "seq",
        "session",
        "wanted",
        "work",
    )

    entry: Entry
    """What is committed, once it is computed."""
    outputs: Outputs
    """What was computed."""

    def __init__(
        self, session: Session, chunk: Chunk, wanted: Wanted, seq: int | None, on_end: OnEnd
    ) -> None:
        self.session = session
        self.chunk = chunk
        self.wanted = wanted
        self.seq = seq
        self.on_end = on_end
        self.left = False
        self.goes_on = False
        self.work: Work | None = None

    def leave(self) -> None:
        """The caller left: a queued step is dropped, a running one goes on to its commit."""
        self.left = True
        if self.work is not None:
            self.work.cancelled = True


OnTogether = Callable[[int, list[int], Outputs], None]
OnRow = Callable[[int, Applied | Exception], None]


class Together:
    """Steps of several sessions that are alike, on their way together; see `Steps.begin_together`."""

    __slots__ = (
        "group",
        "inputs",
        "missing",
        "on_end",
        "on_row",
        "parameters",
        "sessions",
        "wanted",
    )

    group: Group | None
    """Those steps in the engine, until the last has ended."""

    def __init__(
        self,
        sessions: list[Session],
        inputs: Mapping[str, npt.NDArray[Any]],
        parameters: bytes,
        wanted: Wanted,
        on_end: OnTogether,
        on_row: OnRow,
    ) -> None:
        self.sessions = sessions
        self.inputs = inputs
        self.parameters = parameters
        self.wanted = wanted
        self.on_end = on_end
        self.on_row = on_row
        # Rows that are neither answered nor went on by themselves.
        self.missing = len(sessions)

    def leave(self, place: int) -> None:
        """The caller of a step left: see `Step.leave`. Its answer may come all the same."""
        if self.group is not None:
            self.group.leave(place)
