"""Finds, verifies, loads and warms exported models: name -> engine + task. Models come from one directory only.

A model that cannot be trusted is refused by name while the others serve. What is hashed is what is loaded: every file
is read once, and the graph is given to the runtime as those bytes, so no file it may refer to can be reached.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from service.contract import (
    CONFIG_FILE,
    GOLDEN_FILE,
    MODEL_FILE,
    ContractError,
    Forecast,
    Labels,
    ModelConfig,
    Ner,
    NextWord,
    Sentiment,
    decode_config,
    decode_golden,
    digest,
)
from service.engine.engine import Engine, Limits
from service.engine.graph import Device, Graph, check_golden
from service.errors import ModelNotReady, UnknownModel
from service.metrics import EngineMetrics, Metrics
from service.tasks.forecast import ForecastTask
from service.tasks.ner import NerTask
from service.tasks.next_word import NextWordTask
from service.tasks.numbers import LabelsTask, TensorsTask
from service.tasks.protocol import Task
from service.tasks.sentiment import SentimentTask

log = logging.getLogger(__name__)

# One spelling for each number: 7 and 007 would be the same version.
_VERSION = re.compile(r"[1-9][0-9]{0,8}")
_WARM_BATCHES = (1, 8, 64)


@dataclass(frozen=True, slots=True)
class Served:
    """A model that serves."""

    config: ModelConfig
    engine: Engine
    task: Task


@dataclass(slots=True)
class Entry:
    """A version found in the directory, and what became of it."""

    name: str
    version: int
    directory: Path
    state: Literal["loading", "ready", "refused"] = "loading"
    reason: str = ""
    served: Served | None = None
    load_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Loaded:
    """What loading gives before an engine is started."""

    config: ModelConfig
    graph: Graph
    task: Task


class Repository:
    """The models of one directory.

    Args:
        directory: `<name>/<version>/` below it.
        device: Where models run.
        threads: Threads of one run.
        limits: Bounds of each engine.
        metrics: Where counts go.
        clock: Monotonic seconds, given to every engine.
    """

    def __init__(
        self,
        directory: Path,
        device: Device,
        threads: int,
        limits: Limits,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._directory = directory
        self._device = device
        self._threads = threads
        self._limits = limits
        self._metrics = metrics
        self._clock = clock
        self._entries: dict[tuple[str, int], Entry] = {}

    @property
    def entries(self) -> Iterable[Entry]:
        """Every version found, by name and version."""
        return [self._entries[key] for key in sorted(self._entries)]

    @property
    def loading(self) -> bool:
        """Whether some model is still on its way."""
        return any(entry.state == "loading" for entry in self._entries.values())

    @property
    def ready(self) -> bool:
        """Whether loading is over and at least one model serves."""
        return not self.loading and any(e.state == "ready" for e in self._entries.values())

    def find(self) -> None:
        """Look for models; a name with several numbered versions serves all of them."""
        for directory in sorted(self._directory.glob("*/*")):
            if _VERSION.fullmatch(directory.name) and directory.is_dir():
                entry = Entry(directory.parent.name, int(directory.name), directory)
                self._entries[entry.name, entry.version] = entry

    async def load(self) -> None:
        """Load all that was found, as many at once as there are processors; each is ready as soon as it is."""
        free = asyncio.Semaphore(os.cpu_count() or 1)

        async def load(entry: Entry) -> None:
            async with free:
                await self._load(entry)

        await asyncio.gather(*(load(entry) for entry in self._entries.values()))

    async def _load(self, entry: Entry) -> None:
        started = time.monotonic()
        labels = (entry.name, str(entry.version))
        self._metrics.model_ready.labels(*labels).set(0)
        try:
            loaded = await asyncio.to_thread(
                load_model, entry.directory, entry.name, entry.version, self._device, self._threads
            )
            metrics = EngineMetrics(self._metrics, entry.name, entry.version)
            engine = Engine(loaded.graph, self._limits, metrics, self._clock)
        except ContractError as error:
            self._refuse(entry, str(error))
            return
        except Exception as error:
            # Files can be wrong in ways nobody thought of; the other models are to serve all the same.
            log.exception("model %s version %d cannot be loaded", entry.name, entry.version)
            self._refuse(entry, f"{type(error).__name__}: {error}")
            return
        engine.start()
        entry.served = Served(loaded.config, engine, loaded.task)
        entry.state = "ready"
        entry.load_s = time.monotonic() - started
        self._metrics.model_ready.labels(*labels).set(1)
        log.info("model %s version %s is ready after %.2f s", *labels, entry.load_s)

    @staticmethod
    def _refuse(entry: Entry, reason: str) -> None:
        entry.state, entry.reason = "refused", reason
        log.error("model %s version %d is refused: %s", entry.name, entry.version, reason)

    def get(self, name: str, version: int | None = None) -> Served:
        """A model that serves; without a version the newest that does.

        Raises:
            UnknownModel: There is no such model or version.
            ModelNotReady: It is loading, or was refused.
        """
        if version is not None:
            entries = [e for e in (self._entries.get((name, version)),) if e is not None]
        else:
            entries = [e for e in self._entries.values() if e.name == name]
        if not entries:
            which = f"version {version} of model {name}" if version else f"model {name}"
            raise UnknownModel(f"there is no {which}")
        ready = [e.served for e in entries if e.served is not None]
        if ready:
            return max(ready, key=lambda served: served.config.version)
        entry = max(entries, key=lambda e: e.version)
        if entry.state == "loading":
            raise ModelNotReady(f"model {name} is loading", retry_after_s=1)
        raise ModelNotReady(f"model {name} was refused: {entry.reason}")

    def engine(self, name: str, version: int) -> Engine:
        """The engine of a model; see `get`."""
        return self.get(name, version).engine

    async def close(self) -> None:
        """Stop every engine after the work it has."""
        for entry in self._entries.values():
            if entry.served is not None:
                await entry.served.engine.close()


def load_model(directory: Path, name: str, version: int, device: Device, threads: int) -> Loaded:
    """Read, verify, load, check against golden answers, and warm one model.

    Raises:
        ContractError: Something is not as the config says, or a file cannot be read; the message names it.
    """
    config = decode_config(_read(directory, CONFIG_FILE))
    if (config.name, config.version) != (name, version):
        raise ContractError(
            f"{CONFIG_FILE} is of {config.name} version {config.version}, the directory of {name} version {version}"
        )
    files = _read_verified(directory, config)
    task = make_task(config, files)
    graph = Graph(files[MODEL_FILE], config, device, threads)
    check_golden(graph, decode_golden(files[GOLDEN_FILE]))
    outputs = [t.name for t in config.outputs] + [s.output_name for s in config.state]
    for batch in _WARM_BATCHES:
        if batch <= config.batching.max_batch_size:
            graph.run(graph.scratch_feeds(batch, 1), outputs)
    return Loaded(config, graph, task)


def _read_verified(directory: Path, config: ModelConfig) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    for name in {MODEL_FILE, GOLDEN_FILE} - config.files.keys():
        raise ContractError(f"{CONFIG_FILE} lists no hash for {name}")
    for name, expected in config.files.items():
        if Path(name).name != name:
            raise ContractError(f"{CONFIG_FILE} names a file outside the model's directory: {name}")
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


def make_task(config: ModelConfig, files: dict[str, bytes]) -> Task:
    """The task of a model.

    Raises:
        ContractError: A file it needs is missing or unreadable.
    """
    spec = config.task
    if isinstance(spec, NextWord):
        if spec.tokenizer not in files:
            raise ContractError(f"{CONFIG_FILE} lists no hash for {spec.tokenizer}")
        return NextWordTask(config, spec, files[spec.tokenizer])
    if isinstance(spec, Sentiment):
        if spec.tokenizer not in files:
            raise ContractError(f"{CONFIG_FILE} lists no hash for {spec.tokenizer}")
        return SentimentTask(config, spec, files[spec.tokenizer])
    if isinstance(spec, Ner):
        for name in (spec.tokenizer, *spec.lists):
            if name not in files:
                raise ContractError(f"{CONFIG_FILE} lists no hash for {name}")
        return NerTask(config, spec, files)
    if isinstance(spec, Labels):
        return LabelsTask(config, spec)
    if isinstance(spec, Forecast):
        return ForecastTask(config, spec)
    return TensorsTask(config)
