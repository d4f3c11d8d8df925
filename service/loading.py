"""Reads, verifies, loads, checks and warms graphs, in threads of its own. No asyncio, no tasks, no web framework.

A process that starts begins to load first and imports all the rest while that is under way.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import msgspec

from service.contract import (
    CONFIG_FILE,
    GOLDEN_FILE,
    MODEL_FILE,
    Arithmetic,
    ContractError,
    ModelConfig,
    Variant,
    decode_config,
    decode_golden,
    digest,
)
from service.engine import states
from service.engine.graph import Device, Runs, check_golden, choose_device
from service.engine.shapes import Shapes
from service.engine.stable import stable_shapes
from service.settings import Settings

# One spelling for each number: 7 and 007 would be the same version.
_VERSION = re.compile(r"[1-9][0-9]{0,8}")
_WARM_BATCHES = (1, 8, 64)

Key = tuple[str, int]
"""Name and version."""


@dataclass(frozen=True, slots=True)
class Checked:
    """A graph that gives the answers it should.

    Attributes:
        config: What it promises.
        graph: The graph, warm.
        files: Content of the files its task needs, by name.
        variant: Its arithmetic.
        load_s: Time it took.
        shapes: What its batches are padded to, if they are.
    """

    config: ModelConfig
    graph: Runs
    files: Mapping[str, bytes]
    variant: Arithmetic
    load_s: float
    shapes: Shapes | None


class Loading:
    """The models of one directory, on their way.

    Args:
        directory: `<name>/<version>/` below it.
        device: Where models run.
        threads: Threads of one run.
        variant: Arithmetic wanted; a model that has no such graph for the device runs model.onnx.
        deterministic: Whether to find the shapes in which a row's bits do not depend on the others.
    """

    def __init__(
        self,
        directory: Path,
        device: Device,
        threads: int,
        variant: Arithmetic = "exact",
        *,
        deterministic: bool = False,
    ) -> None:
        self._directory = directory
        self._device = device
        self._threads = threads
        self._variant = variant
        self._deterministic = deterministic
        self.begun: dict[Key, Future[Checked]] = {}
        """What was found, and what becomes of it."""

    def begin(self) -> None:
        """Find the models and begin to load them, as many at once as there are processors, the largest first.

        Called again it does nothing. A name with several numbered versions has all of them loaded.
        """
        if self.begun:
            return
        found = [
            directory
            for directory in sorted(self._directory.glob("*/*"))
            if _VERSION.fullmatch(directory.name) and directory.is_dir()
        ]
        pool = ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="load")
        for directory in sorted(found, key=_size, reverse=True):
            name, version = directory.parent.name, int(directory.name)
            self.begun[name, version] = pool.submit(
                load_graph,
                directory,
                name,
                version,
                self._device,
                self._threads,
                self._variant,
                deterministic=self._deterministic,
            )
        # Its threads end when there is nothing left to load.
        pool.shutdown(wait=False)

    def cancel(self) -> None:
        """Let what is being loaded be the last."""
        for future in self.begun.values():
            future.cancel()


def models_of(settings: Settings) -> Loading:
    """The models that a process is to serve, not on their way yet."""
    device = choose_device(settings.device)
    return Loading(
        settings.models,
        device,
        settings.threads,
        settings.variant,
        deterministic=settings.deterministic,
    )


def _size(directory: Path) -> int:
    try:
        return (directory / MODEL_FILE).stat().st_size
    except OSError:
        # Why it cannot be read is told by who reads it.
        return 0


def load_graph(
    directory: Path,
    name: str,
    version: int,
    device: Device,
    threads: int,
    wanted: Arithmetic = "exact",
    *,
    deterministic: bool = False,
) -> Checked:
    """Read, verify, load, check against golden answers, and warm one model.

    Raises:
        ContractError: Something is not as the config says, or a file cannot be read; the message names it.
    """
    started = time.monotonic()
    config = decode_config(_read(directory, CONFIG_FILE))
    if (config.name, config.version) != (name, version):
        raise ContractError(
            f"{CONFIG_FILE} is of {config.name} version {config.version}, the directory of {name} version {version}"
        )
    variant = next((v for v in config.variants if (v.name, v.device) == (wanted, device)), None)
    files = _read_verified(directory, config, variant)
    graph = _graph(files, config, variant, device, threads)
    golden = decode_golden(files.pop(GOLDEN_FILE))
    check_golden(graph, golden)
    outputs = [t.name for t in config.outputs] + [s.output_name for s in config.state]
    for batch in _WARM_BATCHES:
        if batch <= config.batching.max_batch_size:
            graph.run(graph.scratch_feeds(batch, 1), outputs)
    arithmetic = variant.name if variant else "exact"
    shapes = stable_shapes(graph, golden) if deterministic else None
    return Checked(config, graph, files, arithmetic, time.monotonic() - started, shapes)


def _graph(
    files: dict[str, bytes],
    config: ModelConfig,
    variant: Variant | None,
    device: Device,
    threads: int,
) -> Runs:
    if variant is None:
        return states.load(files.pop(MODEL_FILE), config, device, threads)
    promised = msgspec.structs.replace(config, tolerance=variant.tolerance)
    return states.load(files.pop(variant.file), promised, device, threads)


def _read_verified(
    directory: Path, config: ModelConfig, variant: Variant | None
) -> dict[str, bytes]:
    """Every file of a model but the graphs that are not to run."""
    for name in {MODEL_FILE, GOLDEN_FILE} - config.files.keys():
        raise ContractError(f"{CONFIG_FILE} lists no hash for {name}")
    graphs = {MODEL_FILE, *(v.file for v in config.variants)}
    unused = graphs - {variant.file if variant else MODEL_FILE}
    files: dict[str, bytes] = {}
    for name, expected in config.files.items():
        if Path(name).name != name:
            raise ContractError(f"{CONFIG_FILE} names a file outside the model's directory: {name}")
        if name in unused:
            continue
        files[name] = _read(directory, name)
        if digest(files[name]) != expected:
            raise ContractError(f"SHA-256 of {name} is not the one in {CONFIG_FILE}")
    return files


def _read(directory: Path, name: str) -> bytes:
    try:
        return (directory / name).read_bytes()
    except OSError as error:
        # Clients see it: the name of the file, not where the service keeps it.
        raise ContractError(f"{name} cannot be read: {error.strerror}") from None
