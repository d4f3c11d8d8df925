"""What every HTTP route needs: the body within its limits, records in and out, errors as problem documents."""

from __future__ import annotations

import asyncio
import functools
import re
from collections.abc import Awaitable, Coroutine
from typing import Any, TypeVar

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from service.errors import Invalid, Malformed, ServiceError, SlowBody, TooLarge
from service.logs import request_id
from service.settings import Settings

T = TypeVar("T")

PROBLEM = "application/problem+json"
# nginx's "client closed request". Nobody reads it; it is for the log and the metrics.
CLIENT_LEFT = 499
# A key that is no text, which MessagePack may have, is told by the object it stands in.
_AT_PATH = re.compile(r"^(.*?)(?: - at (?:`key` in )?`(.*)`)?$", re.DOTALL)
# Watching for a caller that leaves costs a task; most requests end before it is worth one.
_WATCH_AFTER_S = 0.25


def decode(data: bytes | str, kind: Any, format_: Any = msgspec.json) -> Any:
    """Read a record.

    Args:
        data: JSON or MessagePack.
        kind: Type to read.
        format_: `msgspec.json` or `msgspec.msgpack`.

    Raises:
        Malformed: It is not of that format.
        Invalid: A field is missing, unknown or wrong; carries its path.
    """
    try:
        return _decoder(format_, kind).decode(data)
    except msgspec.ValidationError as error:
        raise invalid(error) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        name = "JSON" if format_ is msgspec.json else "MessagePack"
        raise Malformed(f"the body is not {name}: {error}") from None


@functools.cache
def _decoder(format_: Any, kind: Any) -> Any:
    """Made once for each kind of record: that takes longer than to read one."""
    return format_.Decoder(kind)


def invalid(error: msgspec.ValidationError) -> Invalid:
    """A validation error of msgspec as ours."""
    match = _AT_PATH.match(str(error))
    assert match is not None
    return Invalid(match[1], path=match[2] or "$")


async def read(request: Request, kind: Any, settings: Settings) -> Any:
    """Read the request's body as a record; see `decode`.

    Raises:
        TooLarge: It is above `max_body_bytes`.
        SlowBody: It did not arrive within `request_timeout_s`.
    """
    cut = _Cut()
    # Not `asyncio.timeout`, which takes as long as reading a body that is there already.
    timer = asyncio.get_running_loop().call_later(settings.request_timeout_s, cut)
    try:
        body = await _body(request, settings.max_body_bytes)
    except asyncio.CancelledError:
        if cut.was_it():
            raise SlowBody(
                f"the body did not arrive within {settings.request_timeout_s:g} s"
            ) from None
        raise
    finally:
        timer.cancel()
    return decode(body, kind)


class _Cut:
    """Cancels the task that made it when called, and knows afterwards whether it did."""

    def __init__(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._made = False

    def __call__(self) -> None:
        self._made = self._task.cancel()

    def was_it(self) -> bool:
        """Whether the cancellation at hand is this one, and no one else's as well."""
        return self._made and self._task.uncancel() == 0


async def _body(request: Request, limit: int) -> bytes:
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limit:
        raise TooLarge(f"the body has {declared} bytes, at most {limit} are read", limit=limit)
    chunks: list[bytes] = []
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > limit:
            raise TooLarge(f"the body has more than {limit} bytes", limit=limit)
        chunks.append(chunk)
    return b"".join(chunks)


async def while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Await something as long as the caller is there; cancel it when the caller leaves.

    Raises:
        ClientDisconnect: The caller left.
    """
    cut = _Cut()
    watch: asyncio.Task[None] | None = None
    over = False

    def begin_to_watch() -> None:
        nonlocal watch
        watch = asyncio.create_task(_disconnected(request))
        watch.add_done_callback(leave)

    def leave(watch: asyncio.Task[None]) -> None:
        if not (over or watch.cancelled()):
            cut()

    timer = asyncio.get_running_loop().call_later(_WATCH_AFTER_S, begin_to_watch)
    try:
        return await work
    except asyncio.CancelledError:
        if cut.was_it():
            raise ClientDisconnect from None
        raise
    finally:
        over = True
        timer.cancel()
        if watch is not None:
            watch.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def answer(record: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A record as a JSON response."""
    return Response(
        msgspec.json.encode(record), status, headers=headers, media_type="application/json"
    )


def problem_document(error: ServiceError) -> dict[str, Any]:
    """An error as RFC 9457, with the id of the request at hand."""
    document = error.problem()
    if identifier := request_id.get():
        document["request_id"] = identifier
    return document


class Problem:
    """An error as a response to any number of requests, which differ by their ids.

    Args:
        error: The error.
    """

    def __init__(self, error: ServiceError) -> None:
        self.status = error.status
        self.fields = "".join([f"{name}: {value}\r\n" for name, value in _head(error).items()])
        self._document = msgspec.json.encode(error.problem())[:-1] + b',"request_id":'

    def body(self, request_id: str) -> bytes:
        """The body of the response to a request."""
        return self._document + msgspec.json.encode(request_id) + b"}"


def problem(error: ServiceError) -> Response:
    """An error as a response to the request at hand."""
    body = msgspec.json.encode(problem_document(error))
    return Response(body, error.status, headers=_head(error))


def _head(error: ServiceError) -> dict[str, str]:
    """Fields of the head, with `Retry-After` where waiting helps."""
    head = {"content-type": PROBLEM, **error.headers}
    if "retry_after_s" in error.extra:
        head["Retry-After"] = str(error.extra["retry_after_s"])
    return head


def fault() -> ServiceError:
    """What a caller is told of a fault of ours."""
    return ServiceError("an unexpected error; the log has it under this request's id")


async def gathered(works: list[Awaitable[T]]) -> list[T]:
    """Await all; when one fails or the caller leaves, cancel the rest, let them end, and raise the first failure."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        return await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise
