"""Server-sent events of a generation: `token` for each token, then `done`, `draining` or `error`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from service.api import http
from service.api.context import Context
from service.api.writing import Writing, token_answer
from service.errors import Invalid, ServiceError
from service.tasks.generation import Token

_encode = msgspec.json.Encoder().encode


def last_event_id(request: Request) -> int | None:
    """Index of the last token a resuming caller has seen.

    Raises:
        Invalid: The header is not a number.
    """
    text = request.headers.get("last-event-id")
    if text is None:
        return None
    if not text.isdecimal() or len(text) > 9:
        raise Invalid("Last-Event-ID is the id of an event of this stream", path="Last-Event-ID")
    return int(text)


async def event_stream(
    request: Request, context: Context, writing: Writing, *, replayed: bool
) -> Response:
    """Tokens as server-sent events; an error before the first token is an ordinary error response.

    Args:
        request: The request, whose `Last-Event-ID` may ask for the rest of a stream.
        context: The service.
        writing: The generation, not begun yet; it is closed with the stream.
        replayed: Whether it starts from the first token even when the caller asks for the rest.
    """
    after = last_event_id(request) if replayed else None
    if after is not None and not writing.repeatable:
        raise Invalid("resuming takes the seed of the stream's first event", path="$.seed")
    try:
        first = await http.while_connected(request, writing.some())
    except BaseException:
        writing.close()
        raise
    return _EventStream(context, writing, first, -1 if after is None else after)


class _EventStream(StreamingResponse):
    """The response. A caller that leaves ends the generation at once."""

    def __init__(self, context: Context, writing: Writing, first: list[Token], after: int) -> None:
        super().__init__(
            _events(context, writing, first, after),
            media_type="text/event-stream",
            headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
        )
        self._writing = writing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events."""
        watch = asyncio.create_task(self.listen_for_disconnect(receive))
        watch.add_done_callback(lambda _: self._writing.close())
        try:
            await self.stream_response(send)
        finally:
            watch.cancel()
            self._writing.close()


async def _events(
    context: Context, writing: Writing, first: list[Token], after: int
) -> AsyncGenerator[bytes]:
    """Events, joined where several are there at once."""
    tokens = first
    yield _event("start", {"seed": writing.seed}) + _token_events(tokens, after)
    try:
        while tokens := await writing.some():
            if events := _token_events(tokens, after):
                yield events
    except ServiceError as error:
        context.metrics.rejected.labels(error.code).inc()
        yield _event("error", http.problem_document(error))
        return
    if writing.written.finished:
        yield _event("done", writing.answer(with_tokens=False))
    elif context.shutdown.began.is_set():
        yield _event("draining", _hint(writing, writing.written.tokens[-1]))


def _token_events(tokens: list[Token], after: int) -> bytes:
    return b"".join([_event("token", token_answer(t), t.index) for t in tokens if t.index > after])


def _hint(writing: Writing, token: Token) -> dict[str, Any]:
    """How to go on elsewhere: the same request again, with this seed and this Last-Event-ID."""
    hint: dict[str, Any] = {
        "seed": writing.seed,
        "last_event_id": token.index,
        "retry_after_s": 1,
    }
    if token.seq is not None:
        hint["seq"] = token.seq
    return hint


def _event(name: str, data: Any, identifier: int | None = None) -> bytes:
    id_line = b"" if identifier is None else b"id: %d\n" % identifier
    return id_line + b"event: %b\ndata: %b\n\n" % (name.encode(), _encode(data))
