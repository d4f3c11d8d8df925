"""Exported models as they serve: name -> engine + task. Models come from one directory only.

A model that cannot be trusted is refused by name while the others serve. What is hashed is what is loaded: every file
is read once, and the graph is given to the runtime as those bytes, so no file it may refer to can be reached.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Literal

from service.contract import (
    Arithmetic,
    ContractError,
    ModelConfig,
)
from service.engine.engine import Engine, Limits
from service.errors import ModelNotReady, UnknownModel
from service.loading import Key, Loaded, Loading
from service.metrics import EngineMetrics, Metrics
from service.tasks.protocol import Task

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Served:
    """A model that serves."""

    config: ModelConfig
    engine: Engine
    task: Task
    variant: Arithmetic


@dataclass(slots=True)
class Entry:
    """A version found in the directory, and what became of it."""

    name: str
    version: int
    state: Literal["loading", "ready", "refused"] = "loading"
    reason: str = ""
    served: Served | None = None


class Repository:
    """The models of one directory.

    Args:
        loading: The models, on their way or about to be.
        limits: Bounds of each engine.
        metrics: Where counts go.
        clock: Monotonic seconds, given to every engine.
    """

    def __init__(
        self,
        loading: Loading,
        limits: Limits,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._loading = loading
        self._limits = limits
        self._metrics = metrics
        self._clock = clock
        self._entries: dict[Key, Entry] = {}

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
        """Look for models and begin to load them, unless that was done."""
        self._loading.begin()
        self._entries = {key: Entry(*key) for key in self._loading.begun}

    async def load(self) -> None:
        """Wait for all that was found; each is ready as soon as it is."""
        begun = self._loading.begun
        await asyncio.gather(*(self._load(self._entries[key], begun[key]) for key in begun))

    async def _load(self, entry: Entry, begun: Future[Loaded]) -> None:
        labels = (entry.name, str(entry.version))
        self._metrics.model_ready.labels(*labels).set(0)
        try:
            loaded = await asyncio.wrap_future(begun)
            metrics = EngineMetrics(self._metrics, entry.name, entry.version)
            engine = Engine(loaded.graph, self._limits, metrics, self._clock, loaded.shapes)
        except ContractError as error:
            self._refuse(entry, str(error))
            return
        except Exception as error:
            # Files can be wrong in ways nobody thought of; the other models are to serve all the same.
            log.exception("model %s version %d cannot be loaded", entry.name, entry.version)
            self._refuse(entry, f"{type(error).__name__}: {error}")
            return
        engine.start()
        entry.served = Served(loaded.config, engine, loaded.task, loaded.variant)
        entry.state = "ready"
        self._metrics.model_ready.labels(*labels).set(1)
        self._metrics.model_variant.labels(*labels, loaded.variant).set(1)
        log.info(
            "model %s version %s (%s) is ready, loaded in %.2f s",
            *(*labels, loaded.variant, loaded.load_s),
        )

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
            entry = self._entries.get((name, version))
            if entry is not None and entry.served is not None:
                # As every step asks.
                return entry.served
            entries = [] if entry is None else [entry]
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
        """Stop loading, and every engine after the work it has."""
        self._loading.cancel()
        for entry in self._entries.values():
            if entry.served is not None:
                await entry.served.engine.close()
