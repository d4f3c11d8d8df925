"""Steps of a frame of the WebSocket, by callbacks: no task for the frame, none for a step whose session is at hand."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextvars import Context as Variables
from functools import partial
from typing import Any

from service import logs
from service.api import http
from service.api.context import TENANT, Context
from service.api.schema import AnyStepsAnswer, StepFrame, StepOf
from service.api.stepping import (
    Asked,
    each_answered,
    packed_answers,
    prepare,
    steps_answers,
)
from service.api.together import Turn
from service.engine.engine import Engine
from service.errors import Invalid, ServiceError, SessionBusy, TooLarge
from service.sessions.session import Session
from service.sessions.step import Applied, Step, Together
from service.tasks.protocol import Parameters, Task

log = logging.getLogger(__name__)

Problem = Callable[[ServiceError], dict[str, Any]]
_Ended = tuple[int, Asked, Applied]
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
        turn: What is read in a turn of the event loop.
        frame: Checked by `check`.
        variables: Context variables of the connection.
        problem: See `Problem`.
        seen: Sessions used, with the inputs committed; filled.
        on_end: Called once, when the last reply is there, with all of them in the order of the frame; perhaps before
            `start` returns, and not once the frame was cancelled.
    """

    __slots__ = (
        "_applied",
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
        "_togethers",
        "_turn",
        "_variables",
    )

    def __init__(
        self,
        context: Context,
        turn: Turn,
        frame: StepFrame,
        variables: Variables,
        problem: Problem,
        seen: dict[str, int],
        on_end: Callable[[list[Any]], None],
    ) -> None:
        self._context = context
        self._turn = turn
        self._frame = frame
        self._variables = variables
        self._problem = problem
        self._seen = seen
        self._on_end = on_end
        self._replies: list[Any] = [None] * len(frame.steps)
        self._missing = len(frame.steps)
        self._applied: list[_Ended] = []
        self._steps: list[Step] = []
        self._togethers: list[tuple[Together, range]] = []
        # Those that look for a session which is not at hand.
        self._tasks: set[asyncio.Task[None]] = set()
        self._cancelled = False

    def start(self) -> None:
        """Put every step on its way."""
        at_hand: dict[Engine, list[tuple[int, Session]]] = {}
        for number, each in enumerate(self._frame.steps):
            session = self._context.sessions.at_hand(each.session, TENANT)
            if session is not None:
                at_hand.setdefault(session.engine, []).append((number, session))
            else:
                task = asyncio.create_task(self._find(number, each), context=self._variables.copy())
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
        for found in at_hand.values():
            self._begin_together(found)

    def cancel(self) -> None:
        """Drop what is not running yet."""
        self._cancelled = True
        for step in self._steps:
            step.leave()
        for together, places in self._togethers:
            for place in places:
                together.leave(place)
        self._let_go()
        for task in self._tasks:
            task.cancel()

    async def _find(self, number: int, each: StepOf) -> None:
        logs.session_id.set(each.session)
        try:
            self._context.admit()
            session = await self._context.sessions.find(each.session, TENANT)
        except Exception as error:
            self._fail(number, error)
        else:
            self.begin(number, session, each)

    def _begin_together(self, found: list[tuple[int, Session]]) -> None:
        """Begin steps of one model."""
        try:
            self._context.admit()
        except ServiceError as error:
            for number, _ in found:
                self._fail(number, error)
            return
        steps, timeout_s = self._frame.steps, self._frame.timeout_s
        for number, session in found:
            self._turn.add(self, number, session, steps[number], timeout_s)

    # Those who ask, for `Turn`.

    def waits(self, caller: int) -> bool:
        """See `Callers.waits`."""
        return not self._cancelled

    def begin(self, caller: int, session: Session, step: StepOf) -> None:
        """See `Callers.begin`."""
        context = self._context
        try:
            prepared = prepare(
                context, session, step.inputs, step.parameters, self._frame.timeout_s
            )
            begun = context.sessions.begin(
                session,
                prepared.chunk,
                prepared.wanted,
                step.seq,
                partial(self.ended, caller, prepared.asked),
            )
        except Exception as error:
            self._fail(caller, error)
        else:
            if self._missing:
                self._steps.append(begun)

    def begun(self, callers: Sequence[int], together: Together, first: int) -> None:
        """See `Callers.begun`."""
        self._togethers.append((together, range(first, first + len(callers))))

    def answered(self, callers: Sequence[int], answers: Sequence[AnyStepsAnswer]) -> None:
        """See `Callers.answered`."""
        for number, answer in zip(callers, answers, strict=True):
            self._replies[number] = answer
            self._seen[answer.session] = answer.seq
        self._note_ends(len(callers))

    def ended(self, caller: int, asked: Asked, outcome: Applied | Exception) -> None:
        """See `Callers.ended`."""
        if isinstance(outcome, Exception):
            self._fail(caller, outcome)
            return
        self._seen[self._frame.steps[caller].session] = outcome.seq
        self._applied.append((caller, asked, outcome))
        self._note_ends(1)

    def _fail(self, number: int, error: Exception) -> None:
        self._refuse(number, error)
        self._note_ends(1)

    def _refuse(self, number: int, error: Exception) -> None:
        session = self._frame.steps[number].session
        if not isinstance(error, ServiceError):
            # A fault of ours; the caller gets an answer all the same.
            log.error("step failed", exc_info=error, extra={"data": {"session": session}})
            error = http.fault()
        self._replies[number] = {"session": session, "error": self._problem(error)}

    def _note_ends(self, steps: int) -> None:
        self._missing -= steps
        if self._missing == 0 and not self._cancelled:
            self._let_go()
            self._answer()
            self._on_end(self._replies)

    def _let_go(self) -> None:
        """Steps and frame know each other, and the collector is not to be waited for."""
        self._steps.clear()
        self._togethers.clear()

    # Answers wait for the last step, since those of many steps cost little more than one.

    def _answer(self) -> None:
        alike: dict[tuple[Task, Parameters, bool], list[int]] = {}
        for at, (_, asked, _) in enumerate(self._applied):
            alike.setdefault((asked.task, asked.parameters, asked.packed), []).append(at)
        for places in alike.values():
            ended = [self._applied[at] for at in places]
            for (number, _, _), answer in each_answered(ended, self._answers):
                if isinstance(answer, Exception):
                    self._refuse(number, answer)
                else:
                    self._replies[number] = answer

    def _answers(self, ended: Sequence[_Ended]) -> Sequence[AnyStepsAnswer]:
        """Of steps that are alike."""
        answers = packed_answers if ended[0][1].packed else steps_answers
        steps = self._frame.steps
        return answers(
            [(steps[number].session, asked, applied) for number, asked, applied in ended]
        )
