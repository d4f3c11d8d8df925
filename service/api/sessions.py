"""Sessions over HTTP: open, look at, step, generate, end."""

from __future__ import annotations

from contextlib import closing

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from service.api import http
from service.api.context import TENANT, context_of
from service.api.documentation import documented
from service.api.events import event_stream, last_event_id
from service.api.examples import SESSION, SESSION_GENERATE, SESSION_PUT, STEPS
from service.api.routing import Direct
from service.api.schema import (
    GenerateAnswer,
    SessionAnswer,
    SessionGenerateRequest,
    SessionList,
    SessionOptions,
    SessionRequest,
    StepsAnswer,
    StepsRequest,
)
from service.api.stepping import describe, open_session, step
from service.api.writing import Writing

router = APIRouter(prefix="/v1/sessions", tags=["sessions"], route_class=Direct)


# Routes are tried in this order.


@router.post("/{session}/steps", **documented(StepsRequest, StepsAnswer, STEPS))
async def steps(request: Request, session: str) -> Response:
    """Apply inputs, once and in order. With `seq`, sending a request again is free and never applies it twice."""
    context = context_of(request)
    body: StepsRequest = await http.read(request, StepsRequest, context.settings)
    return http.answer(
        await http.while_connected(
            request,
            step(context, session, body.inputs, body.seq, body.parameters, body.timeout_s),
        )
    )


@router.post("", status_code=201, **documented(SessionRequest, SessionAnswer, SESSION, status=201))
async def create(request: Request) -> Response:
    """Open a session. With an id of your own, the same request again finds it (200)."""
    context = context_of(request)
    body: SessionRequest = await http.read(request, SessionRequest, context.settings)
    return _opened(*await open_session(context, body, body.session))


@router.put("/{session}", **documented(SessionOptions, SessionAnswer, SESSION_PUT, status=201))
async def put(request: Request, session: str) -> Response:
    """Open a session under an id of your own, or find it: the same request again changes nothing."""
    context = context_of(request)
    body: SessionOptions = await http.read(request, SessionOptions, context.settings)
    return _opened(*await open_session(context, body, session))


def _opened(session: SessionAnswer, created: bool) -> Response:
    headers = {"Location": f"/v1/sessions/{session.session}"}
    return http.answer(session, 201 if created else 200, headers)


@router.get("", **documented(None, SessionList))
async def list_sessions(request: Request) -> Response:
    """List the sessions of this process, the longest unused first."""
    context = context_of(request)
    sessions = context.sessions.of_tenant(TENANT)
    return http.answer(SessionList(sessions=[describe(context, s) for s in sessions]))


@router.get("/{session}", **documented(None, SessionAnswer))
async def get(request: Request, session: str) -> Response:
    """Look at one session: `seq` is the number of inputs committed."""
    context = context_of(request)
    return http.answer(describe(context, await context.sessions.find(session, TENANT)))


@router.delete("/{session}", status_code=204, **documented(None, None, status=204))
async def delete(request: Request, session: str) -> Response:
    """End a session. From then on it answers 410."""
    context = context_of(request)
    await context.sessions.delete(await context.sessions.find(session, TENANT))
    return Response(status_code=204)


@router.post(
    "/{session}/generate",
    **documented(SessionGenerateRequest, GenerateAnswer, SESSION_GENERATE, streams=True),
)
async def generate(request: Request, session: str) -> Response:
    """Continue from the session's state; every token becomes an input of the session.

    A lost stream is resumed by the same request, with the seed of its first event and `Last-Event-ID`.
    """
    context = context_of(request)
    body: SessionGenerateRequest = await http.read(
        request, SessionGenerateRequest, context.settings
    )
    context.admit()
    found = await context.sessions.find(session, TENANT)
    served = context.repository.get(found.identity.model, found.identity.version)
    writing = Writing(context, served, body)
    after = last_event_id(request) if body.stream else None
    writing.from_session(found, body.inputs, body.seq, after)
    if body.stream:
        return await event_stream(request, context, writing, replayed=False)
    with closing(writing):
        await http.while_connected(request, writing.all())
    return http.answer(writing.answer(with_tokens=True))
