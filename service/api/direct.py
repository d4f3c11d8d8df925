"""Steps over HTTP without a task for each request: read, queued and answered by callbacks of the HTTP protocol.

This is the route `POST /v1/sessions/{session}/steps` for the case that counts: a session at hand, and a request that
came whole and can be read. Whatever is out of the ordinary goes to the route itself.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Sequence
from functools import partial

import msgspec

from service.api import http
from service.api.context import TENANT, Context
from service.api.middleware import Answered, Requests
from service.api.schema import AnyStepsAnswer, StepsAnswer, StepsRequest
from service.api.stepping import Asked, each_answered, prepare, steps_answers
from service.api.together import Turn
from service.engine.engine import Engine
from service.errors import Overloaded, ServiceError
from service.sessions.session import Session
from service.sessions.step import Applied, Step, Together
from service.tasks.protocol import Parameters, Task

log = logging.getLogger(__name__)

ROUTE = "/v1/sessions/{session}/steps"

REFUSED_AFTER_S = 0.05
"""Those who are refused are told so together, after this time. They are to come back after a second; one that comes
back at once would take the time of the steps that were let in, thousands of times a second. So it does twenty times."""

_LONGEST_S = 1.0
_REST = 40.0
"""And where they are many, after so many times what it took to tell those before, up to a second: reading what is
refused takes twice as long as refusing it, and both together are to have less than a tenth of the time."""

_TELL_EVERY_S = 1.0

OnAnswer = Callable[[int, str, str, bytes], None]
"""Takes the status, the id of the request, the fields of the head as they are written, and the body of a response."""

_Done = tuple["Exchange", Asked, Applied]

_JSON = "content-type: application/json\r\n"
_decode = msgspec.json.Decoder(StepsRequest).decode
_write = msgspec.json.Encoder().encode


def _answers(steps: Sequence[_Done]) -> list[StepsAnswer]:
    return steps_answers([(exchange.session_id, asked, a) for exchange, asked, a in steps])


class DirectSteps:
    """The route, by callbacks.

    Args:
        context: The service.
        turn: What is read in a turn of the event loop.
        requests: Where requests are counted.
    """

    def __init__(self, context: Context, turn: Turn, requests: Requests) -> None:
        self.context = context
        self.turn = turn
        self.requests = requests
        self.max_body_bytes = context.settings.max_body_bytes
        self.succeeded = requests.answered(ROUTE, "POST", 200)
        # Steps that ended by themselves in this turn of the event loop.
        self._done: list[_Done] = []
        self._refused: list[Exchange] = []
        self._rest_s = 0.0
        # How many since the log was told, and when that was.
        self._untold = 0
        self._told_at = -math.inf

    # Those who ask, for `Turn`.

    def waits(self, caller: Exchange) -> bool:
        """See `Callers.waits`."""
        return not caller.response_complete

    def begin(self, caller: Exchange, session: Session, step: StepsRequest) -> None:
        """See `Callers.begin`."""
        caller.start(session, step)

    def begun(self, callers: Sequence[Exchange], together: Together, first: int) -> None:
        """See `Callers.begun`."""
        for place, exchange in enumerate(callers, first):
            exchange.together = together, place

    def answered(self, callers: Sequence[Exchange], answers: Sequence[AnyStepsAnswer]) -> None:
        """See `Callers.answered`."""
        written = []
        for exchange, answer in zip(callers, answers, strict=True):
            # One that left has no answer.
            if not exchange.response_complete:
                try:
                    written.append((exchange, _write(answer)))
                except Exception as error:
                    exchange.fail(error)
        now = time.monotonic()
        self.succeeded.count_all([now - exchange.started for exchange, _ in written])
        told = self.succeeded.told
        for exchange, body in written:
            exchange.succeed(body, told=told)

    def ended(self, caller: Exchange, asked: Asked, outcome: Applied | Exception) -> None:
        """See `Callers.ended`."""
        if isinstance(outcome, Exception):
            caller.fail(outcome)
        else:
            self.answer(caller, asked, outcome)

    def answer(self, exchange: Exchange, asked: Asked, applied: Applied) -> None:
        """Answer a step with all others that end in this turn of the event loop."""
        if not self._done:
            asyncio.get_running_loop().call_soon(self._answer)
        self._done.append((exchange, asked, applied))

    def _answer(self) -> None:
        done, self._done = self._done, []
        by: dict[tuple[Task, Parameters], list[_Done]] = {}
        for each in done:
            by.setdefault((each[1].task, each[1].parameters), []).append(each)
        for steps in by.values():
            callers, answers = [], []
            for (exchange, _, _), answer in each_answered(steps, _answers):
                if isinstance(answer, Exception):
                    exchange.fail(answer)
                else:
                    callers.append(exchange)
                    answers.append(answer)
            self.answered(callers, answers)

    def refuse(self, exchange: Exchange) -> None:
        """Answer a request that found its model's queue full, together with others like it."""
        if not self._refused:
            wait_s = max(REFUSED_AFTER_S, min(_LONGEST_S, self._rest_s))
            asyncio.get_running_loop().call_later(wait_s, self._answer_refused)
        self._refused.append(exchange)

    def _answer_refused(self) -> None:
        began = time.monotonic()
        refused, self._refused = self._refused, []
        by: dict[Engine, list[Exchange]] = {}
        for exchange in refused:
            # One that left meanwhile is refused by none.
            if exchange.refused_by is not None:
                by.setdefault(exchange.refused_by, []).append(exchange)
        for engine, exchanges in by.items():
            error = engine.refusal()
            self.context.metrics.rejected.labels(error.code).inc(len(exchanges))
            problem = http.Problem(error)
            answered = self.requests.answered(ROUTE, "POST", problem.status)
            for exchange in exchanges:
                exchange.answer_refused(problem, answered)
            self._tell(len(exchanges), error)
        self._rest_s = _REST * (time.monotonic() - began)

    def _tell(self, count: int, error: ServiceError) -> None:
        """Tell the log now and then: a line for each would cost more than the step."""
        self._untold += count
        now = time.monotonic()
        if now - self._told_at >= _TELL_EVERY_S:
            data = {"requests": self._untold, "code": error.code}
            log.warning(
                "refused: %s; SEQSERVE_MAX_QUEUE_S says how long they may",
                error.detail,
                extra={"data": data},
            )
            self._untold, self._told_at = 0, now


class Exchange:
    """The requests for steps of one connection and their answers, one at a time.

    Args:
        direct: Whose.
        on_answer: Called with each response, unless the caller left; perhaps before `begin` returns.
    """

    __slots__ = (
        "_direct",
        "_on_answer",
        "_request_id",
        "_step",
        "keep_alive",
        "refused_by",
        "response_complete",
        "session_id",
        "started",
        "together",
    )

    # The names are those that uvicorn looks for in a request under way. Nobody waits for the event.
    disconnected = False
    message_event = asyncio.Event()

    def __init__(self, direct: DirectSteps, on_answer: OnAnswer) -> None:
        self._direct = direct
        self._on_answer = on_answer
        self._request_id = self.session_id = ""
        self.started = 0.0
        self._step: Step | None = None
        self.together: tuple[Together, int] | None = None
        self.refused_by: Engine | None = None
        self.response_complete = True
        self.keep_alive = True

    def begin(self, session_id: str, body: bytes, request_id: str) -> bool:
        """Begin to serve a request.

        Args:
            session_id: From its path.
            body: All of it.
            request_id: Id of the request.

        Returns:
            False for a request that has to go the usual way.
        """
        direct = self._direct
        context = direct.context
        if len(body) > direct.max_body_bytes or context.shutdown.began.is_set():
            return False
        session = context.sessions.at_hand(session_id, TENANT)
        if session is None:
            return False
        room = direct.turn.has_room(session.engine)
        if room:
            try:
                request = _decode(body)
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
                return False
        self.session_id, self._request_id = session_id, request_id
        self.started = time.monotonic()
        self._step = self.together = None
        self.response_complete = False
        if room:
            direct.turn.add(direct, self, session, request, request.timeout_s)
        else:
            self.refused_by = session.engine
            direct.refuse(self)
        return True

    def start(self, session: Session, request: StepsRequest) -> None:
        """Check the request by itself and put its step on its way."""
        sessions = self._direct.context.sessions
        try:
            prepared = prepare(
                self._direct.context, session, request.inputs, request.parameters, request.timeout_s
            )
            on_end = partial(self._ended, prepared.asked)
            self._step = sessions.begin(
                session, prepared.chunk, prepared.wanted, request.seq, on_end
            )
        except Overloaded:
            self.refused_by = session.engine
            self._direct.refuse(self)
        except Exception as error:
            self.fail(error)

    def leave(self) -> None:
        """The caller left."""
        if self.response_complete:
            return
        if self._step is not None:
            self._step.leave()
        elif self.together is not None:
            together, place = self.together
            together.leave(place)
        self._step = self.together = None
        self.refused_by = None
        self.response_complete = True
        self._record(http.CLIENT_LEFT)

    def _ended(self, asked: Asked, outcome: Applied | Exception) -> None:
        self._direct.ended(self, asked, outcome)

    def succeed(self, body: bytes, *, told: bool) -> None:
        """Answer with what was applied, and tell the log if it is to be told."""
        if told:
            self._tell(200, time.monotonic() - self.started)
        self._send(200, _JSON, body)

    def fail(self, error: Exception) -> None:
        """Answer with an error, unless the caller left."""
        if self.response_complete:
            return
        if not isinstance(error, ServiceError):
            data = {"request_id": self._request_id, "session": self.session_id}
            log.error("steps failed", exc_info=error, extra={"data": data})
            error = http.fault()
        self._direct.context.metrics.rejected.labels(error.code).inc()
        self._record(error.status)
        self._reject(http.Problem(error))

    def answer_refused(self, problem: http.Problem, answered: Answered) -> None:
        """Answer with the problem of the model that refused it, and count that; no log line of its own."""
        self.refused_by = None
        answered.count(time.monotonic() - self.started)
        self._reject(problem)

    def _reject(self, problem: http.Problem) -> None:
        self._send(problem.status, problem.fields, problem.body(self._request_id))

    def _send(self, status: int, fields: str, body: bytes) -> None:
        # Before it is written: with the answer the next request may begin. The step knows its exchange.
        self._step = self.together = None
        self.response_complete = True
        try:
            self._on_answer(status, self._request_id, fields, body)
        except Exception:
            # A fault of ours; those that are answered together with it are to get theirs.
            log.exception("an answer could not be written")

    def _record(self, status: int) -> None:
        seconds = time.monotonic() - self.started
        if self._direct.requests.answered(ROUTE, "POST", status).count(seconds):
            self._tell(status, seconds)

    def _tell(self, status: int, seconds: float) -> None:
        path = f"/v1/sessions/{self.session_id}/steps"
        ids = {"request_id": self._request_id, "session": self.session_id}
        self._direct.requests.tell("POST", status, seconds, path, **ids)
