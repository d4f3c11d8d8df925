"""Reads, verifies, loads, checks and warms models, in threads of its own. No asyncio, no web framework.

A process that starts begins to load first and imports all the rest while that is under way. Files are read and
verified before numpy and ONNX Runtime are there, so those are imported where they are needed: in `load_model`.
"""

from __future__ import annotations

import os
import re
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from service.contract import (
    CONFIG_FILE,
    GOLDEN_FILE,
    MODEL_FILE,
    Arithmetic,
    ContractError,
    Golden,
    ModelConfig,
    Variant,
    decode_config,
    decode_golden,
    digest,
)
from service.settings import DEFAULT_GPU, DeviceChoice, Gpu, Settings

if TYPE_CHECKING:
    from service.engine.graph import Runs
    from service.engine.shapes import Shapes
    from service.tasks.protocol import Task

# One spelling for each number: 7 and 007 would be the same version.
_VERSION = re.compile(r"[1-9][0-9]{0,8}")
_WARM_BATCHES = (1, 8, 64)

Key = tuple[str, int]
"""Name and version."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model that gives the answers it should.

    Attributes:
        config: What it promises.
        graph: The graph, warm.
        task: What reads and writes for it.
        variant: Its arithmetic.
        shapes: What its batches are padded to, if they are.
        load_s: Time it took.
    """

    config: ModelConfig
    graph: Runs
    task: Task
    variant: Arithmetic
    shapes: Shapes | None
    load_s: float


class Loading:
    """The models of one directory, on their way.

    Args:
        directory: `<name>/<version>/` below it.
        device: Where models run; see `choose_device`.
        threads: Threads of one run.
        variant: Arithmetic wanted; a model that has no such graph for the device runs model.onnx.
        deterministic: Whether to find the shapes in which a row's bits do not depend on the others.
        gpu: How a GPU is used.
    """

    def __init__(
        self,
        directory: Path,
        device: DeviceChoice,
        threads: int,
        variant: Arithmetic = "exact",
        *,
        deterministic: bool = False,
        gpu: Gpu = DEFAULT_GPU,
    ) -> None:
        self._directory = directory
        self._device = device
        self._threads = threads
        self._variant = variant
        self._deterministic = deterministic
        self._gpu = gpu
        self.begun: dict[Key, Future[Loaded]] = {}
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
        found.sort(key=_size, reverse=True)
        # All files first: that needs nothing that is still to be imported.
        verified = {
            key: pool.submit(verify, directory, *key, self._device, self._variant)
            for directory in found
            for key in [(directory.parent.name, int(directory.name))]
        }
        self.begun = {key: pool.submit(self._load, files) for key, files in verified.items()}
        # Its threads end when there is nothing left to load.
        pool.shutdown(wait=False)

    def _load(self, verified: Future[Verified]) -> Loaded:
        return load(
            verified.result(),
            self._device,
            self._threads,
            deterministic=self._deterministic,
            gpu=self._gpu,
        )

    def cancel(self) -> None:
        """Let what is being loaded be the last."""
        for future in self.begun.values():
            future.cancel()


def models_of(settings: Settings) -> Loading:
    """The models that a process is to serve, not on their way yet."""
    return Loading(
        settings.models,
        settings.device,
        settings.threads,
        settings.variant,
        deterministic=settings.deterministic,
        gpu=settings.gpu,
    )


def _size(directory: Path) -> int:
    try:
        return (directory / MODEL_FILE).stat().st_size
    except OSError:
        # Why it cannot be read is told by who reads it.
        return 0


@dataclass(frozen=True, slots=True)
class Verified:
    """Files of a model that are what its config says.

    Attributes:
        config: The config.
        variant: The graph that is to run; None is model.onnx.
        files: Content of each file that is needed, by name.
    """

    config: ModelConfig
    variant: Variant | None
    files: dict[str, bytes]


def verify(
    directory: Path, name: str, version: int, device: DeviceChoice, wanted: Arithmetic
) -> Verified:
    """Read one model and verify what is read.

    Raises:
        ContractError: Something is not as the config says, or a file cannot be read; the message names it.
    """
    config = decode_config(_read(directory, CONFIG_FILE))
    if (config.name, config.version) != (name, version):
        raise ContractError(
            f"{CONFIG_FILE} is of {config.name} version {config.version}, the directory of {name} version {version}"
        )
    variant = _choose_variant(config, device, wanted)
    return Verified(config, variant, _read_verified(directory, config, variant))


def load_model(
    directory: Path,
    name: str,
    version: int,
    device: DeviceChoice,
    threads: int,
    wanted: Arithmetic = "exact",
    *,
    deterministic: bool = False,
) -> Loaded:
    """Load one model here and now; see `verify` and `load`."""
    verified = verify(directory, name, version, device, wanted)
    return load(verified, device, threads, deterministic=deterministic)


def load(
    verified: Verified,
    device: DeviceChoice,
    threads: int,
    *,
    deterministic: bool,
    gpu: Gpu = DEFAULT_GPU,
) -> Loaded:
    """Load one model, check it against its golden answers, warm it, and make its task. Takes its files away.

    Raises:
        ContractError: The graph or a file is not what it should be; the message says what.
    """
    started = time.monotonic()
    # From here on numpy and ONNX Runtime are needed, and then the tasks.
    from service.engine import states
    from service.engine.graph import choose_device

    config, files = verified.config, verified.files
    golden = decode_golden(files.pop(GOLDEN_FILE))
    content = files.pop(verified.variant.file if verified.variant else MODEL_FILE)
    promised = config
    if verified.variant:
        promised = msgspec.structs.replace(config, tolerance=verified.variant.tolerance)
    graph = states.load(content, promised, choose_device(device), threads, gpu)
    shapes = _prove(graph, golden, deterministic=deterministic)
    from service.tasks.making import make_task

    task = make_task(config, files)
    arithmetic = verified.variant.name if verified.variant else "exact"
    return Loaded(config, graph, task, arithmetic, shapes, time.monotonic() - started)


def _choose_variant(
    config: ModelConfig, device: DeviceChoice, wanted: Arithmetic
) -> Variant | None:
    for variant in config.variants:
        if variant.name == wanted:
            from service.engine.graph import choose_device

            if variant.device == choose_device(device):
                return variant
    return None


def _prove(graph: Runs, golden: Golden, *, deterministic: bool) -> Shapes | None:
    """Check a graph against its golden answers and warm it; returns the shapes it is to run in, if it is confined."""
    from service.engine.golden import check_golden
    from service.engine.stable import stable_shapes

    check_golden(graph, golden)
    config = graph.config
    outputs = [t.name for t in config.outputs] + [s.output_name for s in config.state]
    for batch in _WARM_BATCHES:
        if batch <= config.batching.max_batch_size:
            graph.run(graph.scratch_feeds(batch, 1), outputs)
    return stable_shapes(graph, golden) if deterministic else None


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
