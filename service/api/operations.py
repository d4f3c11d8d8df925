"""What operators and load balancers ask: health, metrics, models."""

from __future__ import annotations

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.requests import Request
from starlette.responses import Response

from service.api import http
from service.api.context import context_of
from service.api.documentation import documented
from service.api.routing import Direct
from service.api.schema import Health, ModelAnswer, ModelList
from service.errors import UnknownModel
from service.repository import Entry

router = APIRouter(tags=["operations"], route_class=Direct)


@router.get("/health/live", **documented(None, Health))
async def live(request: Request) -> Response:
    """Say that the process answers."""
    return http.answer(Health(status="live"))


@router.get("/health/ready", **documented(None, Health))
async def ready(request: Request) -> Response:
    """Say whether requests may be sent.

    200 when loading is over, a model serves and shutdown has not been announced; else 503.
    """
    context = context_of(request)
    models = {f"{e.name}/{e.version}": e.state for e in context.repository.entries}
    if context.shutdown.announced:
        status = "draining"
    elif context.repository.ready:
        status = "ready"
    else:
        status = "loading" if context.repository.loading else "no model serves"
    return http.answer(
        Health(status=status, models=dict(models)), 200 if status == "ready" else 503
    )


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """Metrics in the Prometheus text format."""
    text = generate_latest(context_of(request).metrics.registry)
    return Response(text, media_type=CONTENT_TYPE_LATEST)


@router.get("/v1/models", **documented(None, ModelList))
async def models(request: Request) -> Response:
    """List every model found, with its state, and the reason where it was refused."""
    entries = context_of(request).repository.entries
    return http.answer(ModelList(models=[_describe(entry) for entry in entries]))


@router.get("/v1/models/{model}", **documented(None, ModelList))
async def model(request: Request, model: str) -> Response:
    """List the versions of one model."""
    entries = [e for e in context_of(request).repository.entries if e.name == model]
    if not entries:
        raise UnknownModel(f"there is no model {model}")
    return http.answer(ModelList(models=[_describe(entry) for entry in entries]))


def _describe(entry: Entry) -> ModelAnswer:
    if entry.served is None:
        return ModelAnswer(
            name=entry.name, version=entry.version, state=entry.state, reason=entry.reason
        )
    config = entry.served.config
    return ModelAnswer(
        name=entry.name,
        version=entry.version,
        state=entry.state,
        description=config.description,
        architecture=config.architecture,
        streaming=config.streaming,
        task=config.task,
        inputs=config.inputs,
        outputs=config.outputs,
        state_tensors=config.state,
        state_bytes=config.state_nbytes,
        metrics=config.provenance.metrics,
        variant=entry.served.variant,
        variants=config.variants,
    )
