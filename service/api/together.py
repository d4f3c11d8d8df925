"""Steps of many sessions that were read in one turn, as few groups of steps that are alike. No HTTP here."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import chain
from typing import Any, Generic, Protocol, TypeVar

import numpy.typing as npt

from service.api.context import Context
from service.api.schema import (
    AnyStepsAnswer,
    PackedStepsAnswer,
    StepOf,
    StepsAnswer,
    StepsRequest,
)
from service.api.stepping import Asked, task_of, unpacked
from service.errors import ServiceError
from service.sessions.session import Session
from service.sessions.steps import Applied, Outputs, Together, Wanted
from service.tasks import packed

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

    def answered(self, callers: Sequence[OneCaller], answers: Sequence[AnyStepsAnswer]) -> None:
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
    last: Any = None
    numbers: list[int] = []
    for number, (_, session, step) in enumerate(asking):
        if session not in seen and ready(session, step.seq):
            seen.add(session)
            inputs = step.inputs
            kind = session.engine, session.flow, type(inputs), len(inputs), step.parameters
            if kind != last:
                # Nearly always they are all of one kind, and to compare takes less than to look up.
                last, numbers = kind, alike.setdefault(kind, [])
            numbers.append(number)
    begun: set[int] = set()
    for numbers in alike.values():
        if len(numbers) > 1:
            group = _Group(context, [asking[number] for number in numbers], callers)
            if group.begin(timeout_s):
                begun.update(numbers)
    return [each for number, each in enumerate(asking) if number not in begun]


class _Group(Generic[Caller, Request]):
    """Steps of sessions of one model with as many inputs, in lists or packed, and the same parameters."""

    def __init__(
        self, context: Context, asking: list[Asking[Caller, Request]], callers: Callers[Caller]
    ) -> None:
        _, session, step = asking[0]
        self._context = context
        self._asking: list[Asking[Caller, Request]] = asking
        self._callers = callers
        self._task = task_of(context, session)
        self._packed = isinstance(step.inputs, bytes)
        self._parameters = step.parameters

    def begin(self, timeout_s: float | None) -> bool:
        """Begin them. False if they have to be begun one by one, which shows whose fault that is."""
        context = self._context
        try:
            flat = self._flat()
            if flat is None:
                return False
            rows = len(self._asking), -1
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

    def _flat(self) -> dict[str, npt.NDArray[Any]] | None:
        """All inputs: input name to (inputs, *shape); None as `Task.together`."""
        context, task = self._context, self._task
        inputs: list[list[Any] | bytes] = [step.inputs for _, _, step in self._asking]
        contents = [each for each in inputs if isinstance(each, bytes)]
        if contents:
            return unpacked(context, task, contents, self._parameters)
        task.check(self._parameters)
        context.check_count(len(inputs[0]))
        context.check_length(len(inputs[0]))
        return task.together(list(chain.from_iterable(inputs)))

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
    ) -> Sequence[AnyStepsAnswer]:
        kind: type[AnyStepsAnswer] = PackedStepsAnswer if self._packed else StepsAnswer
        results: Sequence[Any] = (
            packed.pack_rows(outputs, self._task.outputs)
            if self._packed
            else self._listed(ended, outputs)
        )
        before = _length(outputs) - 1
        return [
            kind(
                session=session.identity.id,
                first=seq - before,
                seq=seq,
                duplicate=False,
                results=each,
            )
            for (_, session, _), seq, each in zip(ended, seqs, results, strict=True)
        ]

    def _listed(
        self, ended: Sequence[Asking[Caller, Request]], outputs: Outputs
    ) -> list[list[Any]]:
        """The answers to each step."""
        inputs = list(chain.from_iterable([step.inputs for _, _, step in ended]))
        flat = {name: values.reshape(-1, *values.shape[2:]) for name, values in outputs.items()}
        results = self._task.answers(inputs, flat, self._parameters)
        length = _length(outputs)
        return [results[place : place + length] for place in range(0, len(results), length)]

    def _row_ended(self, place: int, outcome: Applied | Exception) -> None:
        self._callers.ended(self._asking[place][0], self._asked(place), outcome)

    def _asked(self, place: int) -> Asked:
        return Asked(self._task, self._asking[place][2].inputs, self._parameters)


def _length(outputs: Outputs) -> int:
    """Inputs of each step, of outputs (rows, T, *shape)."""
    return int(next(iter(outputs.values())).shape[1])
