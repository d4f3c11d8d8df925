"""Steps of many sessions that were read in one turn, as few groups of steps that are alike. No HTTP here."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any, Protocol

import numpy.typing as npt

from service.api.context import Context
from service.api.schema import (
    AnyStepsAnswer,
    PackedStepsAnswer,
    StepOf,
    StepsAnswer,
    StepsRequest,
)
from service.api.stepping import Asked, task_of, unpacked, wanted_of
from service.engine.engine import Engine
from service.errors import ServiceError
from service.sessions.session import Session
from service.sessions.step import Applied, Outputs, Together
from service.tasks import packed
from service.tasks.protocol import LONGEST_WORD

log = logging.getLogger(__name__)

Request = StepOf | StepsRequest


_FEWEST = 3
"""Two steps cost no more alone."""


class Callers(Protocol):
    """Those who ask for steps; each is what they know it by."""

    def waits(self, caller: Any) -> bool:
        """Whether a caller still waits for its answer."""

    def begun(self, callers: Sequence[Any], together: Together, first: int) -> None:
        """Their steps are on their way, in `together` from the place `first` on."""

    def answered(self, callers: Sequence[Any], answers: Sequence[AnyStepsAnswer]) -> None:
        """Their steps were applied."""

    def ended(self, caller: Any, asked: Asked, outcome: Applied | Exception) -> None:
        """A step that had to go its own way was applied, or was not."""

    def begin(self, caller: Any, session: Session, step: Any) -> None:
        """Begin a step that cannot go together with others."""


_Asking = tuple[Callers, Any, Session, Request, float | None]
"""Who asks, for which session, for what, and how many seconds it may take."""


class Turn:
    """Steps that are read in one turn of the event loop, of whatever connection; they begin when it is over.

    Args:
        context: The service.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self._asking: list[_Asking] = []
        self._counts: dict[Engine, int] = {}

    def has_room(self, engine: Engine) -> bool:
        """Whether one more step would be let in."""
        return engine.room > self._counts.get(engine, 0)

    def add(
        self,
        callers: Callers,
        caller: Any,
        session: Session,
        step: Request,
        timeout_s: float | None,
    ) -> None:
        """Begin a step of a session when the turn is over, with all others that are like it.

        Args:
            callers: Told what becomes of it.
            caller: As they know it.
            session: At hand.
            step: What is asked for.
            timeout_s: As `prepare` takes it.
        """
        if not self._asking:
            asyncio.get_running_loop().call_soon(self._begin)
        self._asking.append((callers, caller, session, step, timeout_s))
        self._counts[session.engine] = self._counts.get(session.engine, 0) + 1

    def _begin(self) -> None:
        asking, self._asking = self._asking, []
        self._counts.clear()
        alike: dict[Any, list[int]] = {}
        # A session has its steps in the order in which they came: only the first may go with others.
        seen: set[Session] = set()
        alone: list[int] = []
        ready = self._context.sessions.ready
        last: Any = None
        group: list[int] = []
        for number, (callers, caller, session, step, timeout_s) in enumerate(asking):
            if not callers.waits(caller):
                continue
            if session in seen or not ready(session, step.seq):
                seen.add(session)
                alone.append(number)
                continue
            seen.add(session)
            inputs = step.inputs
            kind = (
                session.engine,
                session.flow,
                type(inputs),
                len(inputs),
                step.parameters,
                timeout_s,
            )
            if kind != last:
                # Nearly always they are all of one kind, and to compare takes less than to look up.
                last, group = kind, alike.setdefault(kind, [])
            group.append(number)
        for group in alike.values():
            # What finds no room is refused one by one.
            room = max(0, asking[group[0]][2].engine.room)
            alone += self._left_over(asking, group[:room]) + group[room:]
        for number in sorted(alone):
            callers, caller, session, step, _ = asking[number]
            callers.begin(caller, session, step)

    def _left_over(self, asking: Sequence[_Asking], group: list[int]) -> list[int]:
        """Begin steps that are alike, by their places; returns those of steps that have to be begun one by one.

        Where one does not let all go together, it is found by halves.
        """
        if len(group) < _FEWEST:
            return group
        try:
            if _Group(self._context, [asking[number] for number in group]).begin():
                return []
        except Exception:
            # One by one they show whose fault it is.
            log.exception("steps could not be begun together")
        half = len(group) // 2
        return self._left_over(asking, group[:half]) + self._left_over(asking, group[half:])


class _Group:
    """Steps of sessions of one model with as many inputs, in lists or packed, the same parameters and timeout."""

    def __init__(self, context: Context, asking: list[_Asking]) -> None:
        _, _, session, step, timeout_s = asking[0]
        self._context = context
        self._asking = asking
        self._timeout_s = timeout_s
        self._task = task_of(context, session)
        self._packed = isinstance(step.inputs, bytes)
        self._parameters = step.parameters

    def begin(self) -> bool:
        """Begin them. False if they have to be begun one by one, which shows whose fault that is."""
        context, inputs = self._context, self._asking[0][3].inputs
        try:
            flat = self._flat()
            if flat is None:
                return False
            rows = len(self._asking), -1
            together = context.sessions.begin_together(
                [session for _, _, session, _, _ in self._asking],
                {name: values.reshape(*rows, *values.shape[1:]) for name, values in flat.items()},
                self._parameters.encoded(),
                wanted_of(context, self._task, inputs, self._parameters, self._timeout_s),
                self._ended,
                self._row_ended,
            )
        except ServiceError:
            return False
        for callers, first, end in self._by_callers(0, len(self._asking)):
            callers.begun([each[1] for each in self._asking[first:end]], together, first)
        return True

    def _by_callers(self, first: int, end: int) -> Iterator[tuple[Callers, int, int]]:
        """Places of those who stand next to each other and are of the same callers: these, from and to where."""
        asking = self._asking
        while first < end:
            callers, last = asking[first][0], first + 1
            while last < end and asking[last][0] is callers:
                last += 1
            yield callers, first, last
            first = last

    def _flat(self) -> dict[str, npt.NDArray[Any]] | None:
        """All inputs: input name to (inputs, *shape); None as `Task.together`."""
        context, task = self._context, self._task
        if task.text and len(self._asking[0][3].inputs) * LONGEST_WORD > context.max_characters:
            # They may be too long, which has to be found out of each.
            return None
        inputs: list[list[Any] | bytes] = [each[3].inputs for each in self._asking]
        contents = [each for each in inputs if isinstance(each, bytes)]
        if contents:
            return unpacked(context, task, contents, self._parameters)
        task.check(self._parameters)
        context.check_count(len(inputs[0]))
        context.check_length(len(inputs[0]))
        return task.together(list(chain.from_iterable(inputs)))

    def _ended(self, first: int, seqs: list[int], outputs: Outputs) -> None:
        end = first + len(seqs)
        try:
            answers = self._answers(self._asking[first:end], seqs, outputs)
        except Exception as error:
            # A fault of ours; those it does not concern get their answer.
            if len(seqs) == 1:
                self._row_ended(first, error)
                return
            for row, seq in enumerate(seqs):
                one = {name: values[row : row + 1] for name, values in outputs.items()}
                self._ended(first + row, [seq], one)
            return
        for callers, start, stop in self._by_callers(first, end):
            part = [each[1] for each in self._asking[start:stop]]
            callers.answered(part, answers[start - first : stop - first])

    def _answers(
        self, ended: Sequence[_Asking], seqs: list[int], outputs: Outputs
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
            for (_, _, session, _, _), seq, each in zip(ended, seqs, results, strict=True)
        ]

    def _listed(self, ended: Sequence[_Asking], outputs: Outputs) -> list[list[Any]]:
        """The answers to each step."""
        inputs = list(chain.from_iterable([each[3].inputs for each in ended]))
        flat = {name: values.reshape(-1, *values.shape[2:]) for name, values in outputs.items()}
        results = self._task.answers(inputs, flat, self._parameters)
        length = _length(outputs)
        return [results[place : place + length] for place in range(0, len(results), length)]

    def _row_ended(self, place: int, outcome: Applied | Exception) -> None:
        callers, caller, _, step, _ = self._asking[place]
        callers.ended(caller, Asked(self._task, step.inputs, self._parameters), outcome)


def _length(outputs: Outputs) -> int:
    """Inputs of each step, of outputs (rows, T, *shape)."""
    return int(next(iter(outputs.values())).shape[1])
