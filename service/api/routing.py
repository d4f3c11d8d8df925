"""Routes of the FastAPI application that cost a request nothing but the route itself."""

from __future__ import annotations

from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send


class Direct(APIRoute):
    """A route whose function takes the request and the path's parameters and returns a response.

    FastAPI documents it and has nothing to resolve or convert, which would take longer than a step does.
    """

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["method"] not in (self.methods or ()):
            await super().handle(scope, receive, send)
            return
        response: Response = await self.endpoint(
            Request(scope, receive, send), **scope["path_params"]
        )
        await response(scope, receive, send)
