"""The OpenAPI page, written from the records of `schema`: what is documented is what is decoded."""

from __future__ import annotations

from typing import Any

import msgspec
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from service.api import schema
from service.api.http import PROBLEM

_REFERENCE = "#/components/schemas/{name}"
_RECORDS = [
    kind
    for kind in vars(schema).values()
    if isinstance(kind, type)
    and issubclass(kind, msgspec.Struct)
    and kind.__module__ == schema.__name__
]
_ERRORS = {
    "description": "An error (RFC 9457).",
    "content": {PROBLEM: {"schema": {"$ref": _REFERENCE.format(name="Problem")}}},
}


def documented(
    body: type | None,
    answer: type | None,
    examples: dict[str, tuple[Any, Any]] | None = None,
    *,
    status: int = 200,
    streams: bool = False,
) -> dict[str, Any]:
    """Arguments of a FastAPI route that document it.

    Args:
        body: Record of the request.
        answer: Record of the response.
        examples: Name to a request and its response.
        status: Status of success.
        streams: Whether the response may be server-sent events instead.
    """
    examples = examples or {}
    extra: dict[str, Any] = {}
    if body is not None:
        requests = {name: {"value": request} for name, (request, _) in examples.items()}
        content = {"application/json": _content(body, requests)}
        extra["requestBody"] = {"required": True, "content": content}
    responses: dict[int | str, dict[str, Any]] = {
        status: {"description": "Success."},
        "4XX": _ERRORS,
        "5XX": _ERRORS,
    }
    if answer is not None:
        answers = {name: {"value": response} for name, (_, response) in examples.items()}
        content = {"application/json": _content(answer, answers)}
        if streams:
            content["text/event-stream"] = {"schema": {"type": "string"}}
        responses[status]["content"] = content
    return {"openapi_extra": extra, "responses": responses}


def _content(record: type, examples: dict[str, Any]) -> dict[str, Any]:
    content: dict[str, Any] = {"schema": {"$ref": _REFERENCE.format(name=record.__name__)}}
    if examples:
        content["examples"] = examples
    return content


def _leave_raw(described: Any) -> None:
    """Bytes stand as they are, in MessagePack; msgspec describes them as JSON would have them, in base64."""
    if isinstance(described, dict):
        described.pop("contentEncoding", None)
        described = list(described.values())
    if isinstance(described, list):
        for each in described:
            _leave_raw(each)


def install(app: FastAPI) -> None:
    """Give an application its OpenAPI page."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            page = get_openapi(
                title=app.title,
                version=app.version,
                description=app.description,
                routes=app.routes,
                tags=app.openapi_tags,
            )
            _, components = msgspec.json.schema_components(_RECORDS, ref_template=_REFERENCE)
            _leave_raw(components)
            page.setdefault("components", {}).setdefault("schemas", {}).update(components)
            # FastAPI documents a 422 of its own wherever there is a path parameter; ours are problems.
            for path in page["paths"].values():
                for operation in path.values():
                    operation["responses"].pop("422", None)
            for name in ("HTTPValidationError", "ValidationError"):
                page["components"]["schemas"].pop(name, None)
            app.openapi_schema = page
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
