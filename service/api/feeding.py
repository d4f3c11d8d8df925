"""What the tokens of a text under way are fed to, one step at a time. No HTTP here."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Protocol

from service.engine.arena import Slot
from service.engine.engine import Engine
from service.engine.work import Flow, Work
from service.sessions.session import Chunk, Session
from service.sessions.step import Applied, Step, Wanted
from service.sessions.table import Sessions
from service.tasks.protocol import Outputs


class Fed(Protocol):
    """What the tokens of a text are fed to."""

    takes_last: bool
    """Whether the last token is fed too, so that a session holds all of the text."""

    def feed(self, chunk: Chunk) -> None:
        """Begin a step; one at a time."""

    def leave(self) -> None:
        """End: a step that is queued is dropped."""


class OfSlot:
    """A session of its own, which ends with the text.

    Args:
        engine: The model.
        slot: Its state; given back at the end.
        wanted: Outputs of each step, and until when it may begin.
        flow: What the steps are part of.
        on_end: Called with the outputs of each step, or with why it did not run.
    """

    takes_last = False

    def __init__(
        self,
        engine: Engine,
        slot: Slot,
        wanted: Wanted,
        flow: Flow,
        on_end: Callable[[Outputs | Exception], None],
    ) -> None:
        self._engine = engine
        self._flow = flow
        self._slot = slot
        self._outputs = wanted.stored + wanted.passing
        self._deadline = wanted.deadline
        self._on_end = on_end
        self._work: Work | None = None

    def feed(self, chunk: Chunk) -> None:
        """See `Fed.feed`."""
        self._work = self._engine.begin(
            self._slot,
            chunk.arrays,
            chunk.keep,
            self._outputs,
            self._deadline,
            self._on_end,
            self._flow,
            # Its first step was let in.
            goes_on=self._work is not None,
        )

    def leave(self) -> None:
        """See `Fed.leave`."""
        if self._work is not None:
            self._work.cancelled = True
        self._engine.give_back(self._slot)


class OfSession:
    """A session that is there before and after.

    Args:
        sessions: Where it is.
        session: Held until the end.
        wanted: Outputs of each step, and until when it may begin.
        on_end: Called with what was applied at each step, or with why nothing was.

    Attributes:
        seq: Number of the next input, where the caller gave one.
    """

    takes_last = True

    def __init__(
        self,
        sessions: Sessions,
        session: Session,
        wanted: Wanted,
        on_end: Callable[[Applied | Exception], None],
    ) -> None:
        self._sessions = sessions
        self._session = session
        self._wanted = wanted
        self._on_end = on_end
        self._step: Step | None = None
        self._held = ExitStack()
        self._held.enter_context(sessions.hold(session))
        self.seq: int | None = None

    def feed(self, chunk: Chunk) -> None:
        """See `Fed.feed`."""
        seq, self.seq = self.seq, None
        self._step = self._sessions.begin(
            self._session,
            chunk,
            self._wanted,
            seq,
            self._on_end,
            held=True,
            goes_on=self._step is not None,
        )

    def leave(self) -> None:
        """See `Fed.leave`; a step that runs goes on to its commit."""
        if self._step is not None:
            self._step.leave()
        self._held.close()
