"""The HTTP server around the application: uvicorn, with a drain before it ends."""

from __future__ import annotations

import asyncio
from types import FrameType
from typing import Any

import uvicorn

from service.api.context import Context
from service.api.sockets import SocketProtocol
from service.api.transport import HttpProtocol
from service.app import build

_CUT_OFF = 4


class Server(uvicorn.Server):
    """uvicorn, with a drain between the signal and the shutdown.

    On the first SIGTERM or SIGINT readiness fails; after `drain_delay_s` new work is refused and streams end with a
    hint where to resume; then uvicorn closes, and the process ends with status 0. A second signal closes at once.
    """

    def __init__(self, config: uvicorn.Config, context: Context) -> None:
        super().__init__(config)
        self._context = context
        self._loop: asyncio.AbstractEventLoop | None = None
        self._drain: asyncio.Task[None] | None = None

    async def serve(self, sockets: Any = None) -> None:
        """Serve until a signal."""
        self._loop = asyncio.get_running_loop()
        await super().serve(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to drain; see the class."""
        if self._context.shutdown.announced or self._loop is None:
            super().handle_exit(sig, frame)
            return
        self._context.shutdown.announced = True
        self._loop.call_soon_threadsafe(self._begin)

    def _begin(self) -> None:
        self._drain = asyncio.create_task(self._wind_down())

    async def _wind_down(self) -> None:
        await asyncio.sleep(self._context.settings.drain_delay_s)
        shutdown = self._context.shutdown
        shutdown.began.set()
        if shutdown.sockets:
            # uvicorn would close them at once, before they have said where to go on.
            await asyncio.wait(shutdown.sockets, timeout=self._context.settings.drain_timeout_s)
        # Not by `handle_exit`: uvicorn raises a signal again that it got, and a drained process ends with status 0.
        self.should_exit = True


def make_server(context: Context) -> Server:
    """The HTTP server around a context, not running yet."""
    settings = context.settings
    config = uvicorn.Config(
        build(context),
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        date_header=False,
        http=HttpProtocol,
        ws=SocketProtocol,
        # Larger ones are cut off by a close, which a client that is still sending may not get to see; smaller ones are
        # read and answered by an error that names the limit.
        ws_max_size=_CUT_OFF * settings.max_body_bytes,
        ws_per_message_deflate=False,
        timeout_graceful_shutdown=max(1, round(settings.drain_timeout_s)),
    )
    return Server(config, context)
