"""Steps of many sessions that were read in one turn, as few groups of steps that are alike. No HTTP here."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import chain
from typing import Any, Generic, Protocol, TypeVar

from service.api.context import Context
from service.api.schema import StepOf, StepsAnswer, StepsRequest
from service.api.stepping import Asked, task_of
from service.errors import ServiceError
from service.sessions.session import Session
from service.sessions.steps import Applied, Outputs, Together, Wanted

log = logging.getLogger(__name__)

Caller = TypeVar("Caller")
Request = TypeVar("Request", StepOf, StepsRequest)
Asking = tuple[Caller, Session, Request]
"""Who asks, for which session, for what."""
OneCaller = TypeVar("OneCaller", contravariant=True)


class Callers(Protocol[OneCaller]):
    """Those who ask for steps."""

    def begun(self, callers: Sequence[OneCaller], together: Together) -> None:
        """Their steps are on their way; places in `together` are those in `callers`."""

    def answered(self, callers: Sequence[OneCaller], answers: Sequence[StepsAnswer]) -> None:
        """Their steps were applied."""

    def ended(self, caller: OneCaller, asked: Asked, outcome: Applied | Exception) -> None:
        """A step that had to go its own way was applied, or was not."""


def begin_together(
    context: Context,
    asking: Sequence[Asking[Caller, Request]],
    timeout_s: float | None,
    callers: Callers[Caller],
) -> list[Asking[Caller, Request]]:
    """Begin steps that can go together with others.

    Args:
        context: The service.
        asking: Steps.
        timeout_s: As `prepare` takes it.
        callers: Told what becomes of those that are begun.

    Returns:
        Those that have to be begun one by one, in order.
    """
    alike: dict[Any, list[int]] = {}
    seen: set[Session] = set()
    ready = context.sessions.ready
    for number, (_, session, step) in enumerate(asking):
        if session not in seen and ready(session, step.seq):
            seen.add(session)
            kind = session.engine, session.flow, len(step.inputs), step.parameters
            alike.setdefault(kind, []).append(number)
    begun: set[int] = set()
    for numbers in alike.values():
        if len(numbers) > 1:
            group = _Group(context, [asking[number] for number in numbers], callers)
            if group.begin(timeout_s):
                begun.update(numbers)
    return [each for number, each in enumerate(asking) if number not in begun]


class _Group(Generic[Caller, Request]):
    """Steps of sessions of one model with as many inputs and the same parameters."""

    def __init__(
        self, context: Context, asking: list[Asking[Caller, Request]], callers: Callers[Caller]
    ) -> None:
        _, session, step = asking[0]
        self._context = context
        self._asking: list[Asking[Caller, Request]] = asking
        self._callers = callers
        self._task = task_of(context, session)
        self._length = len(step.inputs)
        self._parameters = step.parameters

    def begin(self, timeout_s: float | None) -> bool:
        """Begin them. False if they have to be begun one by one, which shows whose fault that is."""
        context = self._context
        try:
            self._task.check(self._parameters)
            context.check_count(self._asking[0][2].inputs)
            context.check_length(self._length)
            flat = self._task.together(
                list(chain.from_iterable([step.inputs for _, _, step in self._asking]))
            )
            if flat is None:
                return False
            rows = len(self._asking), self._length
            together = context.sessions.begin_together(
                [session for _, session, _ in self._asking],
                {name: values.reshape(*rows, *values.shape[1:]) for name, values in flat.items()},
                self._parameters.encoded(),
                Wanted(self._task.outputs, context.deadline(timeout_s)),
                self._ended,
                self._row_ended,
            )
        except ServiceError:
            return False
        except Exception:
            log.exception("steps could not be begun together")
            return False
        self._callers.begun([caller for caller, _, _ in self._asking], together)
        return True

    def _ended(self, first: int, seqs: list[int], outputs: Outputs) -> None:
        ended = self._asking[first : first + len(seqs)]
        try:
            answers = self._answers(ended, seqs, outputs)
        except Exception as error:
            # A fault of ours; those it does not concern get their answer.
            if len(ended) == 1:
                self._callers.ended(ended[0][0], self._asked(first), error)
                return
            for row, seq in enumerate(seqs):
                one = {name: values[row : row + 1] for name, values in outputs.items()}
                self._ended(first + row, [seq], one)
            return
        self._callers.answered([caller for caller, _, _ in ended], answers)

    def _answers(
        self, ended: Sequence[Asking[Caller, Request]], seqs: list[int], outputs: Outputs
    ) -> list[StepsAnswer]:
        length = self._length
        inputs = list(chain.from_iterable([step.inputs for _, _, step in ended]))
        flat = {name: values.reshape(-1, *values.shape[2:]) for name, values in outputs.items()}
        results = self._task.answers(inputs, flat, self._parameters)
        return [
            StepsAnswer(
                session=session.identity.id,
                first=seq - length + 1,
                seq=seq,
                duplicate=False,
                results=results[place : place + length],
            )
            for (_, session, _), seq, place in zip(
                ended, seqs, range(0, len(results), length), strict=True
            )
        ]

    def _row_ended(self, place: int, outcome: Applied | Exception) -> None:
        self._callers.ended(self._asking[place][0], self._asked(place), outcome)

    def _asked(self, place: int) -> Asked:
        return Asked(self._task, self._asking[place][2].inputs, self._parameters)
