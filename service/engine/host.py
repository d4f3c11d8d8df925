"""States in host memory, one numpy array per state tensor: gathered before a run, scattered after it. No locks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from service.contract import TOP_K
from service.engine.arena import Array, Finite
from service.engine.graph import Runs


class HostStates:
    """Rows of state beside a graph that knows nothing of them.

    Memory is reserved at once and touched by the operating system page by page, so an idle row that was never used
    costs nothing and no row ever moves.

    Args:
        graph: The loaded model; its state may be empty.
        capacity: Rows beside the scratch row.
    """

    def __init__(self, graph: Runs, capacity: int) -> None:
        self.graph = graph
        self._config = config = graph.config
        # np.zeros asks for untouched pages; np.full would touch them all.
        self._rows = {
            s.input_name: np.zeros((capacity + 1, *s.shape), s.dtype) for s in config.state
        }
        self._initial = {s.input_name: s.initial_array() for s in config.state}
        self._outputs = [s.output_name for s in config.state]
        self._pairs = [(self._rows[s.input_name], s.output_name) for s in config.state]
        self._shapes = {t.name: t.shape for t in config.outputs}
        self._state_shapes = [(s.output_name, s.shape) for s in config.state]
        self.row_bytes = config.state_nbytes
        self.reset(0)

    def reset(self, row: int) -> None:
        """Set a row to the initial state."""
        self.write(row, self._initial)

    def read(self, row: int) -> dict[str, Array]:
        """A copy of a row by input name, each of the tensor's shape."""
        return {name: rows[row].copy() for name, rows in self._rows.items()}

    def write(self, row: int, state: Mapping[str, Array]) -> None:
        """Set a row; `state` as given by `read`."""
        for name, rows in self._rows.items():
            rows[row] = state[name]

    def run(
        self, rows: npt.NDArray[np.int64], feeds: Mapping[str, Array], wanted: Sequence[str]
    ) -> tuple[dict[str, Array], Finite]:
        """Step rows once; see `Arena.run`."""
        gathered = {name: held.take(rows, axis=0) for name, held in self._rows.items()}
        result = self.graph.run({**feeds, **gathered}, [*wanted, *self._outputs])
        # Whatever may raise comes before the first write, so that rows can be run again one by one.
        self._check_shapes(feeds, wanted, result)
        finite = _finite_rows(result, wanted, self._outputs, feeds[self._config.lengths])
        self._scatter(rows, result, finite)
        return result, finite

    def _check_shapes(
        self, feeds: Mapping[str, Array], wanted: Sequence[str], result: Mapping[str, Array]
    ) -> None:
        batch = feeds[self._config.inputs[0].name].shape[:2]
        shapes = self._shapes
        if TOP_K in feeds:
            shapes = shapes | dict.fromkeys(self._config.ranked, tuple(feeds[TOP_K].tolist()))
        for name in wanted:
            if result[name].shape != batch + shapes[name]:
                raise _bent(name, result, batch + shapes[name])
        for name, shape in self._state_shapes:
            if result[name].shape != batch[:1] + shape:
                raise _bent(name, result, batch[:1] + shape)

    def _scatter(
        self, rows: npt.NDArray[np.int64], result: Mapping[str, Array], finite: Finite
    ) -> None:
        if finite is None:
            for held, name in self._pairs:
                held[rows] = result[name]
        else:
            chosen = np.flatnonzero(finite)
            for held, name in self._pairs:
                held[rows[chosen]] = result[name][chosen]
        if not rows[-1]:
            # Rows that fill a batch up, the last ones, were written too; what they hold would grow from batch to batch.
            self.reset(0)


def _bent(name: str, result: Mapping[str, Array], due: tuple[int, ...]) -> ValueError:
    return ValueError(f"the graph's {name} is {result[name].shape}, config.json says {due}")


def _finite_rows(
    result: Mapping[str, Array], outputs: Sequence[str], states: Sequence[str], lengths: Array
) -> Finite:
    # A sum of squares is finite only if every element is; the other way round it need not be.
    for name in (*states, *outputs):
        values = result[name]
        if not math.isfinite(np.vdot(values, values)):
            break
    else:
        return None
    batch = len(lengths)
    finite = np.ones(batch, np.bool_)
    for name in states:
        finite &= np.isfinite(result[name]).reshape(batch, -1).all(axis=1)
    for name in outputs:
        values = result[name]
        steps = np.isfinite(values).reshape(batch, values.shape[1], -1).all(axis=2)
        finite &= (steps | (np.arange(values.shape[1]) >= lengths[:, None])).all(axis=1)
    return None if finite.all() else finite
