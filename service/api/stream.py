"""WebSocket `/v1/stream`: many sessions on one socket, many steps in one frame, JSON text or MessagePack binary.

Frames are worked on side by side and answered in the kind they came in, with the `id` they came with. An error answers
the frame, or the step inside it, that caused it; the socket and its other sessions go on. Sessions outlive the socket.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections import deque
from collections.abc import Callable, Coroutine
from contextlib import closing, suppress
from functools import partial
from typing import Any, Protocol

import msgspec
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response
from starlette.websockets import WebSocket, WebSocketDisconnect

from service import logs
from service.api import http
from service.api.context import TENANT, Context, context_of
from service.api.routing import Direct
from service.api.schema import (
    CancelFrame,
    CloseFrame,
    Frame,
    GenerateFrame,
    Id,
    JsonFrame,
    OpenFrame,
    StepFrame,
)
from service.api.sockets import SocketProtocol, protocol_of
from service.api.step_frames import Steps, check
from service.api.stepping import open_session
from service.api.together import Turn
from service.api.writing import Writing, token_answer
from service.errors import Draining, Invalid, ServiceError, TooLarge, UpgradeRequired

log = logging.getLogger(__name__)

router = APIRouter(route_class=Direct)

# Frames that wait are looked through for what cancels another, and no further than this.
_LOOK_AHEAD_BYTES = 65536


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


class _Work(Protocol):
    def cancel(self) -> object:
        """Drop what is not running yet."""


class _InFlight:
    """A frame on its way.

    Args:
        binary: Whether it is answered in MessagePack.
    """

    __slots__ = ("binary", "id", "work")

    def __init__(self, binary: bool) -> None:
        self.binary = binary
        self.id: Id = None
        self.work: _Work | None = None


class _Connection:
    """One open socket and the frames in flight on it."""

    def __init__(self, socket: WebSocket, context: Context) -> None:
        self._socket = socket
        self._protocol: SocketProtocol = protocol_of(socket)
        self._context = context
        self._turn: Turn = socket.app.state.turn
        self._loop = asyncio.get_running_loop()
        # Callbacks of the connection have none of their own.
        self._variables = contextvars.copy_context()
        self._request_id = logs.request_id.get()
        self._left = asyncio.Event()
        self._in_flight: dict[_InFlight, None] = {}
        # Set when the last of them ends.
        self._quiet = asyncio.Event()
        # Frames answered in this turn of the event loop; they keep their places until it is over, so that it ends.
        self._answered = 0
        # Frames that came when there was no place for them.
        self._waiting: deque[str | bytes] = deque()
        self._waiting_bytes = 0
        # Sessions this socket used, with the inputs committed: what a client needs to go on elsewhere.
        self._seen: dict[str, int] = {}
        # What the client spoke last, and so is spoken to it unasked.
        self._binary = False

    async def serve(self) -> None:
        """Serve until either side ends it."""
        drain = asyncio.create_task(self._context.shutdown.began.wait())
        left = asyncio.create_task(self._left.wait())
        self._protocol.read(self._receive, self._go_on, self._leave)
        try:
            await asyncio.wait({drain, left}, return_when=asyncio.FIRST_COMPLETED)
            if not self._left.is_set():
                await self._say_goodbye()
        finally:
            self._leave()
            tasks = [drain, left, *self._tasks()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _tasks(self) -> list[asyncio.Task[None]]:
        return [each.work for each in self._in_flight if isinstance(each.work, asyncio.Task)]

    def _leave(self) -> None:
        """Nobody waits for answers any more."""
        self._left.set()
        self._waiting.clear()
        for each in list(self._in_flight):
            self._drop(each)

    def _drop(self, each: _InFlight) -> None:
        """Give a frame up, without an answer."""
        if each.work is not None:
            each.work.cancel()
        if not isinstance(each.work, asyncio.Task):
            self._end(each)

    # Which frame is served when.

    def _receive(self, data: str | bytes) -> None:
        if self._left.is_set():
            return
        if not self._waiting and self._has_room():
            self._serve(data)
        elif not self._cancels(data):
            self._waiting.append(data)
            self._waiting_bytes += len(data)
            self._read_or_not()

    def _has_room(self) -> bool:
        """Whether a frame may be served: not many are on their way, and the client reads its answers."""
        return (
            len(self._in_flight) + self._answered < self._context.settings.max_socket_frames
            and self._protocol.writable.is_set()
        )

    def _go_on(self) -> None:
        """Serve what waits, as far as there is room."""
        while self._waiting and self._has_room():
            data = self._waiting.popleft()
            self._waiting_bytes -= len(data)
            self._serve(data)
        self._read_or_not()

    def _read_or_not(self) -> None:
        """With enough waiting, or answers that the client leaves unread, its frames stay unread too."""
        if self._waiting_bytes <= _LOOK_AHEAD_BYTES and self._protocol.writable.is_set():
            self._protocol.resume()
        else:
            self._protocol.pause()

    def _turn_is_over(self) -> None:
        self._answered = 0
        if self._waiting:
            self._go_on()

    def _cancels(self, data: str | bytes) -> bool:
        """Serve a frame that cancels another before those that came first, which may wait for just that."""
        if self._answered >= self._context.settings.max_socket_frames:
            return False
        if not self._protocol.writable.is_set() or not _names_cancel(data):
            return False
        with suppress(ServiceError):
            if isinstance(_read(data), CancelFrame):
                self._serve(data)
                return True
        return False

    # One frame.

    def _serve(self, data: str | bytes) -> None:
        """Begin to serve a frame."""
        self._binary = not isinstance(data, str)
        each = _InFlight(self._binary)
        self._in_flight[each] = None
        try:
            self._begin(each, self._read(each, data))
        except ServiceError as error:
            self._fail(each, error)
        except Exception:
            # A fault of ours; the caller gets an answer all the same, and the socket goes on.
            log.exception("frame failed")
            self._fail(each, http.fault())

    def _read(self, each: _InFlight, data: str | bytes) -> Frame:
        limit = self._context.settings.max_body_bytes
        if len(data) > limit:
            raise TooLarge(
                f"the frame has {len(data)} bytes, at most {limit} are read", limit=limit
            )
        try:
            frame = _read(data)
        except Invalid:
            each.id = _id_of(data)
            raise
        each.id = frame.id
        self._context.metrics.frames.labels(str(frame.__struct_config__.tag)).inc()
        return frame

    def _begin(self, each: _InFlight, frame: Frame) -> None:
        match frame:
            case StepFrame():
                check(frame, self._context)
                steps = Steps(
                    self._context,
                    self._turn,
                    frame,
                    self._variables,
                    self._problem,
                    self._seen,
                    partial(self._stepped, each),
                )
                each.work = steps
                steps.start()
            case CancelFrame():
                count = self._cancel(frame.target)
                self._answer(each, {"op": "cancelled", "id": frame.id, "frames": count})
            case OpenFrame():
                self._start(each, self._open(frame))
            case CloseFrame():
                self._start(each, self._close(frame))
            case GenerateFrame():
                self._start(each, self._generate(frame, each.binary))

    def _stepped(self, each: _InFlight, replies: list[Any]) -> None:
        self._answer(each, {"op": "stepped", "id": each.id, "replies": replies})

    def _start(self, each: _InFlight, work: Coroutine[Any, Any, dict[str, Any] | None]) -> None:
        """Serve what is out of the ordinary by a task."""
        task = asyncio.create_task(self._run(each, work), context=self._variables.copy())
        each.work = task
        task.add_done_callback(lambda task: self._end(each))

    async def _run(self, each: _InFlight, work: Coroutine[Any, Any, dict[str, Any] | None]) -> None:
        try:
            message = await work
        except ServiceError as error:
            self._fail(each, error)
        except Exception:
            log.exception("frame failed")
            self._fail(each, http.fault())
        else:
            if message is not None:
                self._answer(each, message)

    def _fail(self, each: _InFlight, error: ServiceError) -> None:
        self._answer(each, {"op": "error", "id": each.id, "error": self._problem(error)})

    def _problem(self, error: ServiceError) -> dict[str, Any]:
        self._context.metrics.rejected.labels(error.code).inc()
        document = error.problem()
        if self._request_id:
            document["request_id"] = self._request_id
        return document

    def _answer(self, each: _InFlight, message: dict[str, Any]) -> None:
        """Send the last message of a frame."""
        if each in self._in_flight:
            self._send(message, each.binary)
            self._end(each)

    def _end(self, each: _InFlight) -> None:
        if each not in self._in_flight:
            return
        del self._in_flight[each]
        # They know each other, and the collector is not to be waited for.
        each.work = None
        if not self._in_flight:
            self._quiet.set()
        self._answered += 1
        if self._answered == 1:
            self._loop.call_soon(self._turn_is_over)

    def _send(self, message: dict[str, Any], binary: bool) -> None:
        self._protocol.write(_write[binary](message), binary=binary)

    # What frames ask for.

    async def _open(self, frame: OpenFrame) -> dict[str, Any]:
        session, created = await open_session(self._context, frame, frame.session)
        self._seen[session.session] = session.seq
        fields = msgspec.structs.asdict(session)
        return {"op": "opened", "id": frame.id, "created": created, **fields}

    async def _close(self, frame: CloseFrame) -> dict[str, Any]:
        sessions = self._context.sessions
        await sessions.delete(await sessions.find(frame.session, TENANT))
        self._seen.pop(frame.session, None)
        return {"op": "closed", "id": frame.id, "session": frame.session}

    async def _generate(self, frame: GenerateFrame, binary: bool) -> dict[str, Any] | None:
        context = self._context
        context.admit()
        logs.session_id.set(frame.session)
        session = await context.sessions.find(frame.session, TENANT)
        served = context.repository.get(session.identity.model, session.identity.version)
        writing = Writing(context, served, frame)
        with closing(writing):
            writing.from_session(session, frame.inputs, frame.seq, None)
            while tokens := await writing.some():
                self._seen[frame.session] = session.seq
                for token in tokens:
                    reply = {"op": "token", "id": frame.id, "session": frame.session}
                    self._send(reply | {"token": token_answer(token)}, binary)
                await self._protocol.writable.wait()
        if not writing.written.finished:
            # The farewell of the socket says where to go on.
            return None
        fields = msgspec.to_builtins(writing.answer(with_tokens=False))
        return {"op": "generated", "id": frame.id, **fields}

    def _cancel(self, target: int | str) -> int:
        """Give up the frames of an id; returns how many."""
        found = [each for each in self._in_flight if each.id == target and each.work is not None]
        for each in found:
            self._drop(each)
        waiting = [data for data in self._waiting if _id_of(data) != target]
        count = len(found) + len(self._waiting) - len(waiting)
        self._waiting = deque(waiting)
        self._waiting_bytes = sum(map(len, waiting))
        return count

    async def _say_goodbye(self) -> None:
        """Tell the client where to go on: every session it used, with the inputs committed."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self._context.settings.drain_timeout_s / 2):
                while self._in_flight:
                    self._quiet.clear()
                    await self._quiet.wait()
        error = Draining("this process is shutting down; connect again", retry_after_s=1)
        hint = {"op": "draining", "sessions": self._seen, "error": error.problem()}
        self._send(hint, self._binary)
        with suppress(WebSocketDisconnect, RuntimeError):
            await self._socket.close(error.close_code, "draining")


class _Named(msgspec.Struct):
    """What any frame may have."""

    id: Id = None


_write: dict[bool, Callable[[Any], bytes]] = {
    True: msgspec.msgpack.Encoder().encode,
    False: msgspec.json.Encoder().encode,
}


def _read(data: str | bytes) -> Frame:
    frame: Frame = _decode(data, JsonFrame if isinstance(data, str) else Frame)
    return frame


def _decode(data: str | bytes, kind: Any) -> Any:
    return http.decode(data, kind, msgspec.json if isinstance(data, str) else msgspec.msgpack)


def _names_cancel(data: str | bytes) -> bool:
    return "cancel" in data if isinstance(data, str) else b"cancel" in data


def _id_of(data: str | bytes) -> Id:
    """The id of a frame of which something else may be wrong; None if that is wrong too."""
    try:
        named: _Named = _decode(data, _Named)
    except ServiceError:
        return None
    return named.id
