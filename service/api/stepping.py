"""Steps of a session, for the HTTP routes and the WebSocket alike. No HTTP here."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from service import logs
from service.api.context import TENANT, Context
from service.api.schema import (
    PackedStepsAnswer,
    SessionAnswer,
    SessionOptions,
    StepOf,
    StepsAnswer,
    StepsRequest,
)
from service.errors import Invalid, ServiceError
from service.repository import Served
from service.sessions.session import Chunk, Session, checked_id
from service.sessions.table import Applied, Wanted
from service.tasks import packed
from service.tasks.protocol import Parameters, Task, chunk_of, chunk_of_steps


async def open_session(
    context: Context, options: SessionOptions, session_id: str | None
) -> tuple[SessionAnswer, bool]:
    """Open a session or find it; returns it and whether it is new."""
    context.admit()
    served = context.streaming(options.model, options.version)
    ttl_s = options.ttl_s or context.settings.session_ttl_s
    if ttl_s > context.settings.max_session_ttl_s:
        raise Invalid(f"ttl_s is at most {context.settings.max_session_ttl_s:g}", path="$.ttl_s")
    if session_id is not None:
        checked_id(session_id)
    session, created = await context.sessions.create(
        served.engine, TENANT, ttl_s, session_id, options.priority
    )
    return describe(context, session), created


def describe(context: Context, session: Session) -> SessionAnswer:
    """A session as the API shows it."""
    identity = session.identity
    return SessionAnswer(
        session=identity.id,
        model=identity.model,
        version=identity.version,
        seq=session.seq,
        ttl_s=identity.ttl_s,
        idle_s=round(session.idle_s(context.sessions.clock()), 3),
        created_at=identity.created_at,
        priority=identity.priority,
        resident=session.slot is not None,
        busy=not session.idle,
    )


class Prepared(msgspec.Struct, frozen=True, gc=False):
    """A step that is checked and can be applied."""

    task: Task
    inputs: list[Any] | bytes
    parameters: Parameters
    chunk: Chunk
    wanted: Wanted

    @property
    def packed(self) -> bool:
        """Whether its inputs are, and its answer is to be."""
        return isinstance(self.inputs, bytes)


def prepare(
    context: Context,
    session: Session,
    inputs: list[Any] | bytes,
    parameters: Parameters,
    timeout_s: float | None,
) -> Prepared:
    """Check the inputs of a request and make a chunk of them.

    Raises:
        ServiceError: The session's model does not take them.
    """
    task = _served(context, session).task
    task.check(parameters)
    if isinstance(inputs, bytes):
        packed.check(parameters)
        arrays, _ = _unpacked(context, task, [inputs])
        chunk = chunk_of_steps(arrays, parameters)
    else:
        context.check_count(len(inputs))
        if task.text:
            context.check_text(inputs)
        chunk = chunk_of(task, inputs, "$.inputs", parameters)
        context.check_length(chunk.length)
    wanted = Wanted(task.outputs, context.deadline(timeout_s))
    return Prepared(task, inputs, parameters, chunk, wanted)


def _unpacked(
    context: Context, task: Task, contents: Sequence[bytes]
) -> tuple[dict[str, npt.NDArray[Any]], list[int]]:
    """Packed inputs of some steps as one array, and how many there are of each step."""
    counts = packed.counts(task, contents, "$.inputs")
    for count in set(counts):
        context.check_count(count)
        context.check_length(count)
    return packed.unpack(task, contents, "$.inputs"), counts


def prepare_together(
    context: Context,
    session: Session,
    steps: Sequence[StepOf | StepsRequest],
    timeout_s: float | None,
) -> list[Prepared] | None:
    """Prepare steps of several sessions of one model at once, in a fifth of the time of one by one.

    Args:
        context: The service.
        session: One of them.
        steps: At least one.
        timeout_s: As `prepare` takes it.

    Returns:
        None unless every input is one time step and `prepare` takes every step; it says what is wrong.
    """
    task = _served(context, session).task
    try:
        together = _together(context, task, steps)
    except ServiceError:
        return None
    if together is None:
        return None
    arrays, counts = together
    wanted = Wanted(task.outputs, context.deadline(timeout_s))
    prepared, first = [], 0
    for each, count in zip(steps, counts, strict=True):
        end = first + count
        # Copies: a view would keep the inputs of all sessions for as long as the journal keeps those of one.
        own = {name: array[first:end].copy() for name, array in arrays.items()}
        chunk = chunk_of_steps(own, each.parameters)
        prepared.append(Prepared(task, each.inputs, each.parameters, chunk, wanted))
        first = end
    return prepared


def _together(
    context: Context, task: Task, steps: Sequence[StepOf | StepsRequest]
) -> tuple[dict[str, npt.NDArray[Any]], list[int]] | None:
    """The inputs of some steps as one array, and how many there are of each; None as `prepare_together`."""
    contents = [each.inputs for each in steps if isinstance(each.inputs, bytes)]
    lists = [each.inputs for each in steps if isinstance(each.inputs, list)]
    if contents and lists:
        return None
    for parameters in {each.parameters for each in steps}:
        task.check(parameters)
        if contents:
            packed.check(parameters)
    if contents:
        return _unpacked(context, task, contents)
    counts = list(map(len, lists))
    for count in set(counts):
        context.check_count(count)
        context.check_length(count)
    arrays = task.together(list(chain.from_iterable(lists)))
    return None if arrays is None else (arrays, counts)


def steps_answer(session_id: str, prepared: Prepared, applied: Applied) -> StepsAnswer:
    """What was applied, as the API shows it."""
    results = prepared.task.answers(prepared.inputs, applied.outputs, prepared.parameters)
    return _answer(session_id, applied, results)


def steps_answers(steps: Sequence[tuple[str, Prepared, Applied]]) -> list[StepsAnswer]:
    """What was applied to several sessions of one model, with the same parameters: see `steps_answer`."""
    task, parameters = steps[0][1].task, steps[0][1].parameters
    inputs = list(chain.from_iterable([prepared.inputs for _, prepared, _ in steps]))
    parts = [applied.outputs for _, _, applied in steps]
    outputs = {name: np.concatenate([part[name] for part in parts]) for name in task.outputs}
    results = task.answers(inputs, outputs, parameters)
    answers, first = [], 0
    for session_id, prepared, applied in steps:
        end = first + len(prepared.inputs)
        answers.append(_answer(session_id, applied, results[first:end]))
        first = end
    return answers


def _answer(session_id: str, applied: Applied, results: list[Any]) -> StepsAnswer:
    return StepsAnswer(
        session=session_id,
        first=applied.first,
        seq=applied.seq,
        duplicate=applied.duplicate,
        results=results,
    )


def packed_answers(steps: Sequence[tuple[str, Prepared, Applied]]) -> list[PackedStepsAnswer]:
    """What was applied to several sessions by packed inputs: see `steps_answers`."""
    return [
        PackedStepsAnswer(
            session=session_id,
            first=applied.first,
            seq=applied.seq,
            duplicate=applied.duplicate,
            results=packed.pack(applied.outputs, prepared.task.outputs),
        )
        for session_id, prepared, applied in steps
    ]


async def step(
    context: Context,
    session_id: str,
    inputs: list[Any],
    seq: int | None,
    parameters: Parameters,
    timeout_s: float | None,
) -> StepsAnswer:
    """Apply inputs to a session and answer each."""
    context.admit()
    logs.session_id.set(session_id)
    session = await context.sessions.find(session_id, TENANT)
    prepared = prepare(context, session, inputs, parameters, timeout_s)
    applied = await context.sessions.apply(session, prepared.chunk, prepared.wanted, seq)
    return steps_answer(session_id, prepared, applied)


def _served(context: Context, session: Session) -> Served:
    return context.repository.get(session.identity.model, session.identity.version)
