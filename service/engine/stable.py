"""Shapes in which a row's bits do not depend on the other rows. Found by trial, at load, on the device that serves.

The sums of a matrix product are added up in an order that depends on how many rows it has, so the last bits of a
session's answers depend on who shares its batch. In one shape there is one order. Whether in it, and in which smaller
ones, a row has the same bits whatever its neighbours and its place, nobody promises; so it is tried.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

import numpy as np

from service.contract import Golden
from service.engine.graph import Array, Runs
from service.engine.shapes import Shapes, powers_of_two

log = logging.getLogger(__name__)

_TRIALS = 3
"""Places and neighbours tried for each shape."""

_SMALL = 4096
"""Numbers of a row at each time step up to which an output is compared; larger ones are made of the same products."""


def stable_shapes(graph: Runs, golden: Golden) -> Shapes:
    """For each size class the numbers of rows, powers of two, with which a row has the same bits whoever is beside it.

    A class in which no two sizes agree runs its rows alone.

    Args:
        graph: The loaded model.
        golden: Where the inputs of the trials are from.
    """
    random = np.random.default_rng(0)
    found = {}
    for time, sizes in powers_of_two(graph.config.batching).items():
        found[time] = _agreeing(graph, _feeds(graph, golden, sizes[-1], time, random), sizes)
        if found[time] != sizes:
            log.info(
                "model %s runs chunks of %d with %s rows", graph.config.name, time, found[time]
            )
    return Shapes(found, stable=True)


def _feeds(
    graph: Runs, golden: Golden, rows: int, time: int, random: np.random.Generator
) -> dict[str, Array]:
    """A batch of different rows, `rows` of `time` steps: inputs from the golden cases, states on their way."""
    config = graph.config
    feeds = graph.scratch_feeds(rows, time)
    for _ in range(2):
        # The first run leads from the initial states to others.
        case = golden.cases[int(random.integers(len(golden.cases)))]
        for tensor in config.inputs:
            values = np.asarray(case.inputs[tensor.name], tensor.dtype)
            feeds[tensor.name] = values[random.integers(len(values), size=(rows, time))]
        shortest = time // 2 + 1 if time > 1 else 1
        feeds[config.lengths] = random.integers(shortest, time + 1, size=rows).astype(np.int32)
        before = dict(feeds)
        result = graph.run(feeds, [s.output_name for s in config.state])
        feeds |= {s.input_name: result[s.output_name] for s in config.state}
    return before | {s.input_name: feeds[s.input_name] for s in config.state}


def _agreeing(graph: Runs, feeds: Mapping[str, Array], sizes: list[int]) -> list[int]:
    """Of some sizes those that give the same bits as the largest of them that agrees with itself."""
    while len(sizes) > 1:
        largest = {name: values[: sizes[-1]] for name, values in feeds.items()}
        right = _run(graph, largest)
        agreeing = [size for size in sizes if _same(graph, largest, right, size)]
        if agreeing and agreeing[-1] == sizes[-1]:
            return agreeing
        sizes = sizes[:-1]
    return [1]


def _same(graph: Runs, feeds: Mapping[str, Array], right: Mapping[str, Array], size: int) -> bool:
    lengths = feeds[graph.config.lengths]
    random = np.random.default_rng(size)
    there = len(lengths)
    # The first exchanges even two rows for certain.
    places = [np.arange(there)[::-1], *(random.permutation(there) for _ in range(_TRIALS - 1))]
    for place in places:
        rows = place[:size]
        result = _run(graph, {name: values[rows] for name, values in feeds.items()})
        for name, values in result.items():
            if not _equal(values, right[name][rows], lengths[rows], name, graph):
                return False
    return True


def _equal(actual: Array, due: Array, lengths: Array, name: str, graph: Runs) -> bool:
    if name in {state.output_name for state in graph.config.state}:
        return actual.tobytes() == due.tobytes()
    return all(
        a[:n].tobytes() == b[:n].tobytes() for a, b, n in zip(actual, due, lengths, strict=True)
    )


def _run(graph: Runs, feeds: Mapping[str, Array]) -> dict[str, Array]:
    config = graph.config
    outputs = [t.name for t in config.outputs if np.prod(t.shape, dtype=int) <= _SMALL]
    return graph.run(feeds, outputs + [s.output_name for s in config.state])
