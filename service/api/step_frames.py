"""Steps of a frame of the WebSocket, by callbacks: no task for the frame, none for a step whose session is at hand."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextvars import Context as Variables
from functools import partial
from typing import Any

from service import logs
from service.api import http
from service.api.context import TENANT, Context
from service.api.schema import StepFrame, StepOf
from service.api.stepping import Prepared, prepare, steps_answer
from service.errors import Invalid, ServiceError, SessionBusy, TooLarge
from service.sessions.session import Session
from service.sessions.table import Applied, Step

log = logging.getLogger(__name__)

Problem = Callable[[ServiceError], dict[str, Any]]
"""Makes the problem document of an error, and counts it."""


def check(frame: StepFrame, context: Context) -> None:
    """Check what concerns the frame as a whole.

    Raises:
        Invalid: There are no steps.
        TooLarge: There are more than `max_inputs`.
        SessionBusy: A session stands twice in it.
    """
    limit = context.settings.max_inputs
    if not frame.steps:
        raise Invalid("there are no steps", path="$.steps")
    if len(frame.steps) > limit:
        raise TooLarge(f"{len(frame.steps)} steps, at most {limit} in one frame", limit=limit)
    if len({each.session for each in frame.steps}) < len(frame.steps):
        raise SessionBusy("a session stands twice in one frame; put its inputs in one step")


class Steps:
    """The steps of one frame on their way.

    Args:
        context: The service.
        frame: Checked by `check`.
        variables: Context variables of the connection.
        problem: See `Problem`.
        seen: Sessions used, with the inputs committed; filled.
        on_end: Called once, when the last reply is there, with all of them in the order of the frame; perhaps before
            `begin` returns, and not once the frame was cancelled.
    """

    __slots__ = (
        "_cancelled",
        "_context",
        "_frame",
        "_missing",
        "_on_end",
        "_problem",
        "_replies",
        "_seen",
        "_steps",
        "_tasks",
        "_variables",
    )

    def __init__(
        self,
        context: Context,
        frame: StepFrame,
        variables: Variables,
        problem: Problem,
        seen: dict[str, int],
        on_end: Callable[[list[Any]], None],
    ) -> None:
        self._context = context
        self._frame = frame
        self._variables = variables
        self._problem = problem
        self._seen = seen
        self._on_end = on_end
        self._replies: list[Any] = [None] * len(frame.steps)
        self._missing = len(frame.steps)
        self._steps: list[Step] = []
        # Those that look for a session which is not at hand.
        self._tasks: set[asyncio.Task[None]] = set()
        self._cancelled = False

    def begin(self) -> None:
        """Put every step on its way."""
        for number, each in enumerate(self._frame.steps):
            session = self._context.sessions.at_hand(each.session, TENANT)
            if session is not None:
                self._begin(number, each, session)
            else:
                task = asyncio.create_task(self._find(number, each), context=self._variables.copy())
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    def cancel(self) -> None:
        """Drop what is not running yet."""
        self._cancelled = True
        for step in self._steps:
            step.leave()
        for task in self._tasks:
            task.cancel()

    async def _find(self, number: int, each: StepOf) -> None:
        logs.session_id.set(each.session)
        try:
            self._context.admit()
            session = await self._context.sessions.find(each.session, TENANT)
        except Exception as error:
            self._fail(number, each, error)
        else:
            self._begin(number, each, session)

    def _begin(self, number: int, each: StepOf, session: Session) -> None:
        try:
            self._context.admit()
            prepared = prepare(
                self._context, session, each.inputs, each.parameters, self._frame.timeout_s
            )
            step = self._context.sessions.begin(
                session,
                prepared.chunk,
                prepared.wanted,
                each.seq,
                partial(self._ended, number, each, prepared),
            )
        except Exception as error:
            self._fail(number, each, error)
        else:
            self._steps.append(step)

    def _ended(
        self, number: int, each: StepOf, prepared: Prepared, outcome: Applied | Exception
    ) -> None:
        if isinstance(outcome, Exception):
            self._fail(number, each, outcome)
            return
        try:
            reply = steps_answer(each.session, prepared, outcome)
        except Exception as error:
            self._fail(number, each, error)
            return
        self._seen[each.session] = outcome.seq
        self._reply(number, reply)

    def _fail(self, number: int, each: StepOf, error: Exception) -> None:
        if not isinstance(error, ServiceError):
            # A fault of ours; the caller gets an answer all the same.
            log.error("step failed", exc_info=error, extra={"data": {"session": each.session}})
            error = http.fault()
        self._reply(number, {"session": each.session, "error": self._problem(error)})

    def _reply(self, number: int, reply: Any) -> None:
        self._replies[number] = reply
        self._missing -= 1
        if self._missing == 0 and not self._cancelled:
            self._on_end(self._replies)
