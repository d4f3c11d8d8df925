"""Command line: `seqserve serve` runs the service, `seqserve models` lists what a directory holds."""

from __future__ import annotations

import argparse
import gc
import importlib
import os
import sys
from dataclasses import replace
from pathlib import Path

from service import __version__
from service.contract import CONFIG_FILE, ContractError, decode_config
from service.loading import models_of
from service.settings import PREFIX, Settings, SettingsError, from_environ

SWITCH_S = 0.0002
COLLECT_AT = (20_000, 20, 20)


def serve(settings: Settings) -> None:
    """Run the service until a signal; end at once, with status 1, where it is to run on a GPU that does not compute."""
    # How long a busy event loop may keep a model's thread from going on. Python's 5 ms is longer than most models run.
    sys.setswitchinterval(SWITCH_S)
    # A turn of the event loop makes more than Python's 700 objects and drops them again; what is collected are cycles,
    # and those are few.
    gc.set_threshold(*COLLECT_AT)
    # All that is made from here until the models are loaded stays; `app` ends this.
    gc.disable()
    # Nothing here is for the threads of numpy's linear algebra, and to start them takes as long as to import numpy.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    if settings.device == "cuda":
        from service.engine.graph import DeviceMissing, require_cuda

        # Now, and not model by model: a service that cannot do what it was asked for does not start.
        try:
            require_cuda()
        except DeviceMissing as error:
            raise SystemExit(f"seqserve: {PREFIX}DEVICE=cuda, but {error}") from error
    from service import logs

    # Before a model is loaded: what is told of it while it is would be lost.
    logs.configure(settings.log_level)
    loading = models_of(settings)
    loading.begin()
    # While files are read: what the threads that load need next; while models load: all the rest.
    importlib.import_module("service.engine.graph")
    importlib.import_module("service.tasks.making")
    from service.app import build_context
    from service.engine.precedence import give_way
    from service.server import make_server

    server = make_server(build_context(settings, loading=loading))
    # Threads that load models were started before, and so were those that ONNX Runtime computes with.
    give_way()
    server.run()


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
