"""One-shot routes: predict and generate."""

from __future__ import annotations

from contextlib import closing
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from service.api import http
from service.api.context import TENANT, Context, context_of
from service.api.documentation import documented
from service.api.events import event_stream
from service.api.examples import GENERATE, PREDICT
from service.api.routing import Direct
from service.api.schema import (
    GenerateAnswer,
    GenerateRequest,
    PredictAnswer,
    PredictRequest,
)
from service.api.writing import Writing
from service.engine.work import flow_of
from service.repository import Served
from service.tasks.protocol import top_k_of

router = APIRouter(prefix="/v1/models/{model}", tags=["one-shot"], route_class=Direct)


@router.post("/predict", **documented(PredictRequest, PredictAnswer, PREDICT))
async def predict(request: Request, model: str) -> Response:
    """Answer whole inputs, each in a session of its own that ends with it."""
    context = context_of(request)
    body: PredictRequest = await http.read(request, PredictRequest, context.settings)
    context.admit()
    served = context.repository.get(model, body.version)
    served.task.check(body.parameters)
    context.check_count(len(body.inputs))
    context.check_text(body.inputs)
    results = await http.while_connected(request, _predict(context, served, body))
    config = served.config
    return http.answer(PredictAnswer(model=config.name, version=config.version, results=results))


async def _predict(context: Context, served: Served, body: PredictRequest) -> list[Any]:
    task, deadline = served.task, context.deadline(body.timeout_s)
    chunks = [task.whole(value, f"$.inputs[{i}]") for i, value in enumerate(body.inputs)]
    context.check_length(sum(chunk.length for chunk in chunks))
    context.check_whole(served, max(chunk.length for chunk in chunks))
    flow, top_k = flow_of(TENANT, "once", body.priority), top_k_of(task.candidates, body.parameters)
    outputs = await http.gathered(
        [
            context.sessions.run_once(served.engine, chunk, task.outputs, deadline, flow, top_k)
            for chunk in chunks
        ]
    )
    pairs = zip(body.inputs, outputs, strict=True)
    return [task.whole_answer(value, each, body.parameters) for value, each in pairs]


@router.post("/generate", **documented(GenerateRequest, GenerateAnswer, GENERATE, streams=True))
async def generate(request: Request, model: str) -> Response:
    """Continue a text. With `stream` the answer is server-sent events `token`, then `done`.

    A lost stream is resumed by the same request, with the seed of its first event and `Last-Event-ID`.
    """
    context = context_of(request)
    body: GenerateRequest = await http.read(request, GenerateRequest, context.settings)
    context.admit()
    writing = Writing(context, context.repository.get(model, body.version), body)
    writing.from_text(body.inputs, body.priority)
    if body.stream:
        return await event_stream(request, context, writing, replayed=True)
    with closing(writing):
        await http.while_connected(request, writing.all())
    return http.answer(writing.answer(with_tokens=True))
