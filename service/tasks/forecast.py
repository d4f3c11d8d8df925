"""Forecasts: observations in, the next values of every column out, after each observation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from service.contract import Forecast, ModelConfig, Tensor
from service.errors import Invalid
from service.sessions.session import Chunk
from service.tasks.protocol import (
    NO_CANDIDATES,
    Outputs,
    Parameters,
    chunk_of,
    kind,
    listed,
)
from service.tasks.vectors import flat, packed

_LARGEST = float(np.finfo(np.float32).max)
_VALUES = frozenset((int, float, type(None)))


class ForecastTask:
    """Observations as lists of numbers in the order of the columns; a missing value is null, or NaN where there is one.

    An answer is `{"mean": [[...]], "quantiles": {"0.1": [[...]]}}`: for each step of the horizon a list of values in
    the order of the columns, in the units of the observations.

    Args:
        config: Of a model whose task is `Forecast`.
        spec: That task.
    """

    outputs: tuple[str, ...] = ("mean", "quantiles")
    every_step = False
    text = False
    candidates = NO_CANDIDATES

    def __init__(self, config: ModelConfig, spec: Forecast) -> None:
        (self._input,) = config.inputs
        self._columns = spec.columns
        self._levels = tuple(str(level) for level in spec.quantiles)

    def check(self, parameters: Parameters) -> None:
        """See `Task.check`."""
        if parameters.top_k is not None:
            raise Invalid("a forecast has no candidates to choose from", path="$.parameters.top_k")

    def piece(self, value: Any, path: str) -> dict[str, npt.NDArray[Any]]:
        """See `Task.piece`: one observation, a number for each column; of a single column, the number alone will do."""
        single = len(self._columns) == 1 and not isinstance(value, list)
        values = [value] if single else listed(value, path)
        if len(values) != len(self._columns):
            raise Invalid(
                f"an observation of {len(self._columns)} is due here ({', '.join(self._columns)}), got one of "
                f"{len(values)}",
                path=path,
            )
        paths = [path] if single else [f"{path}[{i}]" for i in range(len(values))]
        numbers = [_number(v, p) for v, p in zip(values, paths, strict=True)]
        return {self._input.name: np.array([numbers], self._input.dtype)}

    def together(self, values: Sequence[Any]) -> dict[str, npt.NDArray[Any]] | None:
        """See `Task.together`."""
        single = len(self._columns) == 1 and not isinstance(values[0], list)
        numbers = flat(values, () if single else self._input.shape)
        if numbers is None:
            return None
        kinds = set(map(type, numbers))
        if not kinds <= _VALUES:
            return None
        if type(None) in kinds:
            numbers = [math.nan if number is None else number for number in numbers]
        array = packed(numbers, self._input)
        if array is None or not self.takes(array):
            return None
        return {self._input.name: array.reshape(len(values), len(self._columns))}

    def packed_input(self, path: str) -> Tensor:
        """See `Task.packed_input`: observations."""
        return self._input

    def takes(self, array: npt.NDArray[Any]) -> bool:
        """See `Task.takes`: finite numbers, and NaN where a value is missing."""
        return math.isfinite(np.vdot(array, array)) or _is_taken(array)

    def whole(self, value: Any, path: str) -> Chunk:
        """See `Task.whole`: a list of observations, the latest last; the forecast is of what follows it."""
        chunk = chunk_of(self, listed(value, path), path, Parameters())
        return Chunk(chunk.arrays, chunk.ends[-1:])

    def answers(self, inputs: Sequence[Any], outputs: Outputs, parameters: Parameters) -> list[Any]:
        """See `Task.answers`: a forecast after each observation."""
        means, quantiles = outputs["mean"].tolist(), outputs["quantiles"].tolist()
        return [
            {"mean": mean, "quantiles": dict(zip(self._levels, levels, strict=True))}
            for mean, levels in zip(means, quantiles, strict=True)
        ]

    def whole_answer(self, value: Any, outputs: Outputs, parameters: Parameters) -> Any:
        """See `Task.whole_answer`."""
        return self.answers((value,), outputs, parameters)[-1]


def _is_taken(array: npt.NDArray[Any]) -> bool:
    """Whether every number is one, or NaN; the largest are left to be looked at one by one."""
    return bool((np.isnan(array) | (np.abs(array) < _LARGEST)).all())


def _number(value: Any, path: str) -> float:
    """A value that float32 holds; NaN if it is missing.

    Raises:
        Invalid: It is no number, infinite or too large.
    """
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Invalid(f"a number or null is due here, got {kind(value)}", path=path)
    # Not by way of float(), which refuses integers beyond its range.
    if abs(value) > _LARGEST:
        raise Invalid("the number is infinite or too large for float32", path=path)
    return float(value)
