"""Steps of a session, for the HTTP routes and the WebSocket alike. No HTTP here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt

from service import logs
from service.api.context import TENANT, Context
from service.api.schema import PackedStepsAnswer, SessionAnswer, SessionOptions, StepsAnswer
from service.errors import Invalid
from service.sessions.session import Chunk, Session, checked_id
from service.sessions.step import Applied, Wanted
from service.tasks import packed
from service.tasks.protocol import Parameters, Task, chunk_of, chunk_of_steps, top_k_of

Ended = TypeVar("Ended")
Answer = TypeVar("Answer")


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


class Asked(msgspec.Struct, frozen=True, gc=False):
    """What the answer to a step depends on, beside the outputs."""

    task: Task
    inputs: list[Any] | bytes
    parameters: Parameters

    @property
    def packed(self) -> bool:
        """Whether inputs are packed, and outputs are to be."""
        return isinstance(self.inputs, bytes)


class Prepared(msgspec.Struct, frozen=True, gc=False):
    """A step that is checked and can be applied."""

    asked: Asked
    chunk: Chunk
    wanted: Wanted


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
    task = task_of(context, session)
    if isinstance(inputs, bytes):
        chunk = chunk_of_steps(unpacked(context, task, [inputs], parameters), parameters)
    else:
        task.check(parameters)
        context.check_count(len(inputs))
        if task.text:
            context.check_text(inputs)
        chunk = chunk_of(task, inputs, "$.inputs", parameters)
        context.check_length(chunk.length)
    wanted = wanted_of(context, task, inputs, parameters, timeout_s)
    return Prepared(Asked(task, inputs, parameters), chunk, wanted)


def wanted_of(
    context: Context,
    task: Task,
    inputs: list[Any] | bytes,
    parameters: Parameters,
    timeout_s: float | None,
) -> Wanted:
    """What is wanted back of inputs: to packed ones all that the model gives."""
    top_k = 0
    if not isinstance(inputs, bytes):
        top_k = max(top_k_of(task.candidates, parameters), task.candidates.kept)
    return Wanted(task.outputs, context.deadline(timeout_s), top_k=top_k)


def unpacked(
    context: Context, task: Task, contents: Sequence[bytes], parameters: Parameters
) -> dict[str, npt.NDArray[Any]]:
    """Check packed inputs of some steps, at least one, and join them as one array: input name to (inputs, *shape).

    Raises:
        ServiceError: The task does not take those of one of them.
    """
    task.check(parameters)
    packed.check(parameters)
    for count in set(packed.counts(task, contents, "$.inputs")):
        context.check_count(count)
        context.check_length(count)
    return packed.unpack(task, contents, "$.inputs")


def steps_answer(session_id: str, asked: Asked, applied: Applied) -> StepsAnswer:
    """What was applied, as the API shows it."""
    results = asked.task.answers(asked.inputs, applied.outputs, asked.parameters)
    return _answer(session_id, applied, results)


def steps_answers(steps: Sequence[tuple[str, Asked, Applied]]) -> list[StepsAnswer]:
    """What was applied to several sessions of one model, with the same parameters: see `steps_answer`."""
    task, parameters = steps[0][1].task, steps[0][1].parameters
    inputs = list(chain.from_iterable([asked.inputs for _, asked, _ in steps]))
    parts = [applied.outputs for _, _, applied in steps]
    outputs = {name: np.concatenate([part[name] for part in parts]) for name in task.outputs}
    results = task.answers(inputs, outputs, parameters)
    answers, first = [], 0
    for session_id, asked, applied in steps:
        end = first + len(asked.inputs)
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


def packed_answers(steps: Sequence[tuple[str, Asked, Applied]]) -> list[PackedStepsAnswer]:
    """What was applied to several sessions by packed inputs: see `steps_answers`."""
    return [
        PackedStepsAnswer(
            session=session_id,
            first=applied.first,
            seq=applied.seq,
            duplicate=applied.duplicate,
            results=packed.pack(applied.outputs, asked.task.outputs),
        )
        for session_id, asked, applied in steps
    ]


def each_answered(
    steps: Sequence[Ended], answers: Callable[[Sequence[Ended]], Sequence[Answer]]
) -> list[tuple[Ended, Answer | Exception]]:
    """Answer steps together; should that raise, each alone, so that only the guilty one has no answer."""
    try:
        return list(zip(steps, answers(steps), strict=True))
    except Exception as error:
        if len(steps) == 1:
            return [(steps[0], error)]
    return [pair for each in steps for pair in each_answered([each], answers)]


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
    return steps_answer(session_id, prepared.asked, applied)


def task_of(context: Context, session: Session) -> Task:
    """The task of a session's model."""
    return context.repository.get(session.identity.model, session.identity.version).task
