"""WebSocket `/v1/stream`: many sessions on one socket, many steps in one frame, JSON text or MessagePack binary.

Frames are worked on side by side and answered in the kind they came in, with the `id` they came with. An error answers
the frame, or the step inside it, that caused it; the socket and its other sessions go on. Sessions outlive the socket.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from contextlib import aclosing, suppress
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.websockets import WebSocket, WebSocketDisconnect

from service import logs
from service.api import http
from service.api.context import TENANT, Context, context_of
from service.api.routing import Routes
from service.api.schema import (
    CancelFrame,
    CloseFrame,
    Frame,
    GenerateFrame,
    Id,
    OpenFrame,
    StepFrame,
    StepOf,
)
from service.api.stepping import open_session, step
from service.api.writing import Writing, token_answer
from service.errors import Draining, Invalid, ServiceError, SessionBusy, TooLarge, UpgradeRequired

log = logging.getLogger(__name__)

router = Routes()


@router.get("/v1/stream", include_in_schema=False)
async def plain(request: Request) -> Response:
    """Say that this is a WebSocket."""
    raise UpgradeRequired("this path speaks WebSocket; connect with an upgrade")


@router.websocket("/v1/stream")
async def stream(socket: WebSocket) -> None:
    """Serve one socket until either side closes it."""
    context = context_of(socket)
    await socket.accept()
    task = asyncio.current_task()
    assert task is not None
    context.shutdown.sockets.add(task)
    context.metrics.sockets.inc()
    try:
        await _Connection(socket, context).serve()
    finally:
        context.metrics.sockets.dec()
        context.shutdown.sockets.discard(task)


class _Connection:
    """One open socket and the frames in flight on it."""

    def __init__(self, socket: WebSocket, context: Context) -> None:
        self._socket = socket
        self._context = context
        self._slots = asyncio.Semaphore(context.settings.max_socket_frames)
        self._tasks: dict[asyncio.Task[None], Id] = {}
        # Sessions this socket used, with the inputs committed: what a client needs to go on elsewhere.
        self._seen: dict[str, int] = {}
        # What the client spoke last, and so is spoken to it unasked.
        self._binary = False

    async def serve(self) -> None:
        drain = asyncio.create_task(self._context.shutdown.began.wait())
        receive = asyncio.create_task(self._receive())
        try:
            await asyncio.wait({drain, receive}, return_when=asyncio.FIRST_COMPLETED)
            if not receive.done():
                await self._say_goodbye()
        finally:
            tasks = [drain, receive, *self._tasks]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _receive(self) -> None:
        """Read frames; with `max_socket_frames` in flight the next one stays unread."""
        try:
            while True:
                message = await self._socket.receive()
                if message["type"] == "websocket.disconnect":
                    return
                await self._slots.acquire()
                self._start(message)
        except WebSocketDisconnect:
            return

    def _start(self, message: Any) -> None:
        text, data = message.get("text"), message.get("bytes")
        binary = self._binary = text is None
        task = asyncio.create_task(self._serve_frame(data if binary else text, binary))
        self._tasks[task] = None
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        del self._tasks[task]
        self._slots.release()
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("frame failed", exc_info=error)

    async def _serve_frame(self, data: Any, binary: bool) -> None:
        identifier: Id = None
        failure: ServiceError | None = None
        try:
            self._check_size(data)
            format_ = msgspec.msgpack if binary else msgspec.json
            try:
                frame: Frame = http.decode(data, Frame, format_)
            except Invalid:
                identifier = _id_of(data, format_)
                raise
            identifier = frame.id
            task = asyncio.current_task()
            assert task is not None
            self._tasks[task] = identifier
            self._context.metrics.frames.labels(frame.__struct_config__.tag).inc()
            await self._answer(frame, binary)
        except _ClientLeft as error:
            log.debug("answer to a closed socket dropped: %s", error)
        except ServiceError as error:
            failure = error
        except Exception:
            # A fault of ours; the caller gets an answer all the same, and the socket goes on.
            log.exception("frame failed")
            failure = http.fault()
        if failure is not None:
            answer = {"op": "error", "id": identifier, "error": self._problem(failure)}
            with suppress(_ClientLeft):
                await self._send(answer, binary)

    def _check_size(self, data: str | bytes) -> None:
        limit = self._context.settings.max_body_bytes
        if len(data) > limit:
            raise TooLarge(
                f"the frame has {len(data)} bytes, at most {limit} are read", limit=limit
            )

    async def _answer(self, frame: Frame, binary: bool) -> None:
        match frame:
            case StepFrame():
                await self._send(await self._step(frame), binary)
            case OpenFrame():
                session, created = await open_session(self._context, frame, frame.session)
                self._seen[session.session] = session.seq
                fields = msgspec.structs.asdict(session)
                await self._send(
                    {"op": "opened", "id": frame.id, "created": created, **fields}, binary
                )
            case GenerateFrame():
                await self._generate(frame, binary)
            case CancelFrame():
                count = self._cancel(frame.target)
                await self._send({"op": "cancelled", "id": frame.id, "frames": count}, binary)
            case CloseFrame():
                sessions = self._context.sessions
                await sessions.delete(await sessions.find(frame.session, TENANT))
                self._seen.pop(frame.session, None)
                await self._send({"op": "closed", "id": frame.id, "session": frame.session}, binary)

    async def _step(self, frame: StepFrame) -> dict[str, Any]:
        limit = self._context.settings.max_inputs
        if not frame.steps:
            raise Invalid("there are no steps", path="$.steps")
        if len(frame.steps) > limit:
            raise TooLarge(f"{len(frame.steps)} steps, at most {limit} in one frame", limit=limit)
        if len({each.session for each in frame.steps}) < len(frame.steps):
            raise SessionBusy("a session stands twice in one frame; put its inputs in one step")
        works: list[Coroutine[Any, Any, dict[str, Any]]] = [
            self._step_one(each, frame.timeout_s) for each in frame.steps
        ]
        return {"op": "stepped", "id": frame.id, "replies": await http.gathered(list(works))}

    async def _step_one(self, each: StepOf, timeout_s: float | None) -> dict[str, Any]:
        try:
            reply = await step(
                self._context, each.session, each.inputs, each.seq, each.parameters, timeout_s
            )
        except ServiceError as error:
            return {"session": each.session, "error": self._problem(error)}
        self._seen[each.session] = reply.seq
        return msgspec.structs.asdict(reply)

    async def _generate(self, frame: GenerateFrame, binary: bool) -> None:
        context = self._context
        context.admit()
        logs.session_id.set(frame.session)
        session = await context.sessions.find(frame.session, TENANT)
        served = context.repository.get(session.identity.model, session.identity.version)
        writing = Writing(context, served, frame)
        async with aclosing(writing.from_session(session, frame.inputs, frame.seq, None)) as tokens:
            async for token in tokens:
                self._seen[frame.session] = session.seq
                reply = {"op": "token", "id": frame.id, "session": frame.session}
                await self._send(reply | {"token": token_answer(token)}, binary)
                if context.shutdown.began.is_set() and token.finish is None:
                    # The farewell of the socket says where to go on.
                    return
        fields = msgspec.to_builtins(writing.answer(with_tokens=False))
        await self._send({"op": "generated", "id": frame.id, **fields}, binary)

    def _cancel(self, target: int | str) -> int:
        own = asyncio.current_task()
        tasks = [
            t for t, identifier in self._tasks.items() if identifier == target and t is not own
        ]
        for task in tasks:
            task.cancel()
        return len(tasks)

    def _problem(self, error: ServiceError) -> dict[str, Any]:
        self._context.metrics.rejected.labels(error.code).inc()
        return http.problem_document(error)

    async def _say_goodbye(self) -> None:
        """Tell the client where to go on: every session it used, with the inputs committed."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=self._context.settings.drain_timeout_s / 2)
        error = Draining("this process is shutting down; connect again", retry_after_s=1)
        hint = {"op": "draining", "sessions": self._seen, "error": error.problem()}
        with suppress(_ClientLeft, WebSocketDisconnect, RuntimeError):
            await self._send(hint, self._binary)
            await self._socket.close(error.close_code, "draining")

    async def _send(self, message: dict[str, Any], binary: bool) -> None:
        format_ = msgspec.msgpack if binary else msgspec.json
        data = format_.encode(message)
        try:
            if binary:
                await self._socket.send_bytes(data)
            else:
                await self._socket.send_text(data.decode())
        except (WebSocketDisconnect, RuntimeError) as error:
            # uvicorn and Starlette say so in two ways.
            raise _ClientLeft(str(error)) from None


class _Named(msgspec.Struct):
    """What any frame may have."""

    id: Id = None


def _id_of(data: str | bytes, format_: Any) -> Id:
    """The id of a frame of which something else is wrong; None if that is wrong too."""
    try:
        named: _Named = http.decode(data, _Named, format_)
    except ServiceError:
        return None
    return named.id


class _ClientLeft(Exception):
    """The client left while its answer was on the way."""
