"""Server-sent events of a generation: `token` for each token, then `done`, `draining` or `error`."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from service.api import http
from service.api.context import Context
from service.api.writing import Writing, token_answer
from service.errors import Invalid, ServiceError
from service.tasks.next_word import Token


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
    request: Request,
    context: Context,
    writing: Writing,
    tokens: AsyncGenerator[Token],
    *,
    replayed: bool,
) -> Response:
    """Tokens as server-sent events; an error before the first token is an ordinary error response.

    Args:
        request: The request, whose `Last-Event-ID` may ask for the rest of a stream.
        context: The service.
        writing: The generation.
        tokens: Its tokens.
        replayed: Whether `tokens` starts from the first one even when the caller asks for the rest.
    """
    after = last_event_id(request) if replayed else None
    if after is not None and not writing.repeatable:
        raise Invalid("resuming takes the seed of the stream's first event", path="$.seed")
    first = await http.while_connected(request, _first(tokens))
    events = _events(context, writing, first, tokens, -1 if after is None else after)
    return StreamingResponse(
        events,
        media_type="text/event-stream",
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
    )


async def _first(tokens: AsyncGenerator[Token]) -> list[Token]:
    async for token in tokens:
        return [token]
    return []


async def _events(
    context: Context,
    writing: Writing,
    first: list[Token],
    rest: AsyncGenerator[Token],
    after: int,
) -> AsyncGenerator[bytes]:
    try:
        async with aclosing(rest):
            yield _event("start", {"seed": writing.seed})
            async for token in _chain(first, rest):
                if token.index > after:
                    yield _event("token", token_answer(token), token.index)
                if context.shutdown.began.is_set() and token.finish is None:
                    yield _event("draining", _hint(writing, token))
                    return
    except ServiceError as error:
        context.metrics.rejected.labels(error.code).inc()
        yield _event("error", http.problem_document(error))
        return
    yield _event("done", writing.answer(with_tokens=False))


async def _chain(first: list[Token], rest: AsyncGenerator[Token]) -> AsyncGenerator[Token]:
    for token in first:
        yield token
    async for token in rest:
        yield token


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
    return id_line + b"event: %b\ndata: %b\n\n" % (name.encode(), msgspec.json.encode(data))
