"""Composition root: puts the parts together as one application."""

from __future__ import annotations

import asyncio
import gc
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Match, Route
from starlette.types import ASGIApp

from service import __version__
from service.api import documentation, http, operations, predict, sessions, stream
from service.api.context import Context, Shutdown
from service.api.direct import DirectSteps
from service.api.middleware import Observed, Requests
from service.api.together import Turn
from service.engine.engine import Limits
from service.engine.graph import choose_device, device_memory
from service.errors import MethodNotAllowed, ServiceError, UnknownRoute
from service.journal.memory import MemoryJournal
from service.loading import Loading, models_of
from service.metrics import Metrics
from service.repository import Repository
from service.sessions.table import Policy, Sessions
from service.settings import Settings

log = logging.getLogger(__name__)

_SWEEP_EVERY_S = 1.0


def build_context(
    settings: Settings,
    clock: Callable[[], float] = time.monotonic,
    loading: Loading | None = None,
) -> Context:
    """The parts of a service, not running yet.

    Args:
        settings: Settings of the process.
        clock: Monotonic seconds; a test may pass its own.
        loading: The models of `settings`, where they are on their way already.
    """
    metrics = Metrics()
    if choose_device(settings.device) == "cuda":
        metrics.device_memory.labels("used").set_function(lambda: device_memory()[0])
        metrics.device_memory.labels("total").set_function(lambda: device_memory()[1])
    limits = Limits(
        capacity=settings.max_resident,
        max_pending=settings.max_pending,
        max_pending_tokens=settings.max_pending_tokens,
        max_queue_s=settings.max_queue_s,
    )
    repository = Repository(
        loading or models_of(settings),
        limits,
        metrics,
        clock,
    )
    table = Sessions(
        MemoryJournal(settings.max_tombstones),
        repository.engine,
        Policy(
            max_sessions=settings.max_sessions,
            evict_idle_s=settings.evict_idle_s,
            snapshot_every=settings.snapshot_every,
        ),
        metrics,
        clock,
    )
    return Context(settings, metrics, repository, table, Shutdown())


def build(context: Context) -> FastAPI:
    """The application around a context."""
    app = _App(
        title="seqserve",
        version=__version__,
        summary="Sequence models with state kept per session.",
        lifespan=_lifespan,
        # Not `include_router`, which looks for a route in each router and then once more inside it.
        routes=[
            route
            for router in (sessions.router, predict.router, operations.router, stream.router)
            for route in router.routes
        ],
        # What it would ask of every request costs as much as routing it; `metrics` counts requests.
        telemetry={"tracing": False, "metrics": False, "logs": False},
        openapi_tags=[
            {"name": "one-shot", "description": "Whole inputs; nothing is kept."},
            {"name": "sessions", "description": "State kept between requests, exactly-once steps."},
            {"name": "operations", "description": "Health, metrics, models."},
        ],
        description=(
            "Beside these routes, the WebSocket `/v1/stream` carries many sessions on one socket and many steps "
            "in one frame, as JSON text or MessagePack: see the user guide."
        ),
    )
    app.state.context = context
    app.add_exception_handler(ServiceError, _on_error)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(ClientDisconnect, _on_disconnect)
    app.add_exception_handler(Exception, _on_fault)
    requests = Requests(context.metrics)
    app.add_middleware(Observed, requests=requests)
    app.state.turn = turn = Turn(context)
    app.state.direct_steps = DirectSteps(context, turn, requests)
    documentation.install(app)
    return app


class _App(FastAPI):
    """FastAPI without the middlewares it adds for uploads, dependencies and telemetry; none of them is used."""

    def build_middleware_stack(self) -> ASGIApp:
        """As Starlette does."""
        return Starlette.build_middleware_stack(self)


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    context: Context = app.state.context
    context.repository.find()
    background = [
        asyncio.create_task(_load(context)),
        asyncio.create_task(_sweep(context)),
    ]
    for task in background:
        task.add_done_callback(_report)
    try:
        yield
    finally:
        for task in background:
            task.cancel()
        await asyncio.gather(*background, return_exceptions=True)
        with suppress(TimeoutError):
            await asyncio.wait_for(context.sessions.drain(), context.settings.drain_timeout_s)
        await context.repository.close()
        gc.unfreeze()


async def _load(context: Context) -> None:
    try:
        await context.repository.load()
    finally:
        # What is loaded stays. Walking through it again and again makes every hundredth answer take twice as long.
        gc.freeze()
        gc.enable()


async def _sweep(context: Context) -> None:
    while True:
        await asyncio.sleep(_SWEEP_EVERY_S)
        await context.sessions.sweep()


def _report(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("background task ended", exc_info=error)


async def _on_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ServiceError)
    context: Context = request.app.state.context
    context.metrics.rejected.labels(error.code).inc()
    return http.problem(error)


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path = request.url.path
    if error.status_code == 405:
        response = http.problem(MethodNotAllowed(f"{path} does not take {request.method}"))
        response.headers["Allow"] = ", ".join(sorted(_methods(request)))
        return response
    return http.problem(UnknownRoute(f"there is no {path}"))


def _methods(request: Request) -> set[str]:
    """Methods of every route of a request's path."""
    routes = [
        route for route in request.app.routes if route.matches(request.scope)[0] is not Match.NONE
    ]
    return {
        method for route in routes if isinstance(route, Route) for method in route.methods or ()
    }


async def _on_disconnect(request: Request, error: Exception) -> Response:
    return Response(status_code=http.CLIENT_LEFT)


async def _on_fault(request: Request, error: Exception) -> Response:
    # uvicorn logs the traceback, with the request's id.
    return http.problem(http.fault())
