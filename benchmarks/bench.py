"""What every measurement is given: the models, and how long it may take."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import server
from benchmarks.models import GRU, LSTM, SCRATCH, TRANSFORMER
from benchmarks.server import Server
from benchmarks.tape import Model, load

# Steps of a tape: as many as a session takes in the longest measurement, at the speed of its model.
_LENGTHS = {LSTM: 8192, GRU: 16384, TRANSFORMER: 2048}


@dataclass
class Bench:
    """One run of the benchmarks.

    Attributes:
        models: Directory of the measured models.
        shipped: Directory of the shipped models, for the cold start.
        seconds: Of one turn of a measurement.
        rounds: Turns.
        quick: Whether figures may be rough and aims out of reach: everything that has a length of its own is shorter.
        scratch: Where tapes are kept.
        serve: Starts the service over a directory of models, with some settings.
    """

    models: Path
    shipped: Path
    seconds: float
    rounds: int
    quick: bool = False
    scratch: Path = SCRATCH
    serve: Callable[..., AbstractContextManager[Server]] = server.service
    _loaded: dict[str, Model] = field(default_factory=dict)

    def model(self, name: str) -> Model:
        """A model with its tapes, loaded once."""
        if name not in self._loaded:
            length = _LENGTHS[name] // (16 if self.quick else 1)
            self._loaded[name] = load(self.models, self.scratch, name, length)
        return self._loaded[name]

    def service(self, settings: Mapping[str, str] | None = None) -> AbstractContextManager[Server]:
        """The service over the measured models, on a core of its own."""
        return self.serve(self.models, settings)

    def scaled(self, full: float, quick: float) -> float:
        """A number that is smaller where it may be rough."""
        return quick if self.quick else full
