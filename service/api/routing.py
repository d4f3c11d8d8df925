"""Routes as a table, written down where their functions are: served by Starlette, documented by FastAPI.

FastAPI and pydantic take as long to import as all the rest of the service, and serve nothing here but the OpenAPI
page. So they are not imported before somebody asks for it; see `documentation`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route, WebSocketRoute
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket

Endpoint = TypeVar("Endpoint", bound=Callable[..., Awaitable[Response]])
Socket = TypeVar("Socket", bound=Callable[[WebSocket], Awaitable[None]])


class Direct(Route):
    """A route whose function takes the request and the path's parameters and returns a response.

    Args:
        method: The one it answers.
        path: Template of its path.
        endpoint: The function.
        page: What the OpenAPI page says of it: arguments of a FastAPI route.
    """

    def __init__(
        self,
        method: str,
        path: str,
        endpoint: Callable[..., Awaitable[Response]],
        page: dict[str, Any],
    ) -> None:
        super().__init__(path, endpoint)
        self.methods = {method}
        self.page = page

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        scope["route"] = self
        if scope["method"] not in (self.methods or ()):
            await super().handle(scope, receive, send)
            return
        response: Response = await self.endpoint(
            Request(scope, receive, send), **scope["path_params"]
        )
        await response(scope, receive, send)


class Routes:
    """Routes of one kind, in the order in which they are tried.

    Args:
        prefix: Of all their paths.
        tags: What they are listed under on the OpenAPI page.
    """

    def __init__(self, prefix: str = "", tags: Sequence[str] = ()) -> None:
        self._prefix = prefix
        self._tags = list(tags)
        self.table: list[BaseRoute] = []

    def get(self, path: str, **page: Any) -> Callable[[Endpoint], Endpoint]:
        """Serve GET by a function; `page` as `Direct` takes it."""
        return self._add("GET", path, page)

    def post(self, path: str, **page: Any) -> Callable[[Endpoint], Endpoint]:
        """Serve POST by a function; `page` as `Direct` takes it."""
        return self._add("POST", path, page)

    def put(self, path: str, **page: Any) -> Callable[[Endpoint], Endpoint]:
        """Serve PUT by a function; `page` as `Direct` takes it."""
        return self._add("PUT", path, page)

    def delete(self, path: str, **page: Any) -> Callable[[Endpoint], Endpoint]:
        """Serve DELETE by a function; `page` as `Direct` takes it."""
        return self._add("DELETE", path, page)

    def websocket(self, path: str) -> Callable[[Socket], Socket]:
        """Serve WebSockets by a function; OpenAPI knows none."""

        def add(endpoint: Socket) -> Socket:
            self.table.append(WebSocketRoute(self._prefix + path, endpoint))
            return endpoint

        return add

    def _add(self, method: str, path: str, page: dict[str, Any]) -> Callable[[Endpoint], Endpoint]:
        def add(endpoint: Endpoint) -> Endpoint:
            page["tags"] = self._tags
            self.table.append(Direct(method, self._prefix + path, endpoint, page))
            return endpoint

        return add
