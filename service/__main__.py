"""Command line: `seqserve serve` runs the service, `seqserve models` lists what a directory holds."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn

from service import __version__, logs
from service.api.context import Context
from service.api.transport import HttpProtocol
from service.app import build, build_context
from service.contract import CONFIG_FILE, ContractError, decode_config
from service.settings import Settings, SettingsError, from_environ

SWITCH_S = 0.0002

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
        ws="websockets-sansio",
        # Larger ones are cut off by a close, which a client that is still sending may not get to see; smaller ones are
        # read and answered by an error that names the limit.
        ws_max_size=_CUT_OFF * settings.max_body_bytes,
        ws_per_message_deflate=False,
        timeout_graceful_shutdown=max(1, round(settings.drain_timeout_s)),
    )
    return Server(config, context)


def serve(settings: Settings) -> None:
    """Run the service until a signal."""
    logs.configure(settings.log_level)
    # How long a busy event loop may keep a model's thread from going on. Python's 5 ms is longer than most models run.
    sys.setswitchinterval(SWITCH_S)
    make_server(build_context(settings)).run()


def list_models(directory: Path) -> int:
    """Print the models of a directory; 1 when one cannot be read or there are none."""
    status = 0
    paths = sorted(directory.glob(f"*/*/{CONFIG_FILE}"))
    if not paths:
        sys.stderr.write(f"seqserve: {directory} has no <name>/<version>/{CONFIG_FILE}\n")
        status = 1
    for path in paths:
        try:
            config = decode_config(path.read_bytes())
        except ContractError as error:
            status = 1
            line = f"{path.parent.relative_to(directory)}: {error}"
        else:
            ways = "streaming" if config.streaming else "one-shot"
            line = (
                f"{config.name}/{config.version}  {config.architecture}  {ways}  "
                f"{config.state_nbytes} B state  {config.description}"
            )
        sys.stdout.write(line + "\n")
    return status


def main() -> None:
    """Entry point of `seqserve`."""
    parser = argparse.ArgumentParser(prog="seqserve", description=__doc__)
    parser.add_argument("--version", action="version", version=f"seqserve {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("serve", help="run the service; SEQSERVE_* variables set the rest")
    run.add_argument("--host")
    run.add_argument("--port", type=int)
    run.add_argument("--models", type=Path)
    show = commands.add_parser("models", help="list the models of a directory")
    show.add_argument("--models", type=Path)
    arguments = parser.parse_args()
    chosen = {k: v for k, v in vars(arguments).items() if v is not None and k != "command"}
    try:
        settings = replace(from_environ(os.environ), **chosen)
    except SettingsError as error:
        parser.error(str(error))
    if not settings.models.is_dir():
        parser.error(f"{settings.models} is not a directory")
    if arguments.command == "models":
        raise SystemExit(list_models(settings.models))
    serve(settings)


if __name__ == "__main__":
    main()
