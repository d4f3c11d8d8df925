"""The gate of every export: the graph equals the original, alone and in ragged batches, whole and in chunks.

A model that cannot be stepped is compared on whole inputs only.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from training.export.bundle import Bundle, initial_state
from training.export.runtime import Array, Arrays, LoadedGraph

BATCH_SIZES = (1, 2, 3, 17)
TIMES = (1, 2, 7, 64)
# Of a session, this goes round the ring of a Transformer more than once, and a chunk is longer than its window.
_LONG = 300


class ParityError(RuntimeError):
    """The graph computes something else than the original; the message says where and by how much."""


def check(bundle: Bundle, graph: LoadedGraph) -> float:
    """Compare over every batch size and length of the gate, with ragged lengths, chained chunks, and a long session.

    Returns:
        The largest difference seen.

    Raises:
        ParityError: It is beyond the tolerance of the config.
    """
    shapes = [*itertools.product(BATCH_SIZES, TIMES)]
    if bundle.config.streaming:
        shapes.append((1, _LONG))
    return max(_check_batch(bundle, graph, batch_size, time) for batch_size, time in shapes)


def _check_batch(bundle: Bundle, graph: LoadedGraph, batch_size: int, time: int) -> float:
    # The first row is full, the last one the shortest; the others lie between.
    first = np.linspace(time, 1, batch_size).round().astype(np.int32)
    streaming = bundle.config.streaming
    second = first[::-1] if streaming else np.zeros_like(first)
    rows = [bundle.sample(int(length), i) for i, length in enumerate(first + second)]
    outputs, state = graph.run(
        _padded(rows, np.zeros_like(first), first), first, graph.initial_state(batch_size)
    )
    parts = [(outputs, first)]
    if streaming:
        outputs, state = graph.run(_padded(rows, first, second), second, state)
        parts.append((outputs, second))
    worst = 0.0
    for i, row in enumerate(rows):
        expected, expected_state = bundle.original(row, initial_state(bundle.config))
        found = {
            name: np.concatenate([part[name][i, : lengths[i]] for part, lengths in parts])
            for name in outputs
        }
        where = f"B={batch_size}, T={time}, row {i}"
        worst = max(
            worst,
            _compare(bundle, expected, found, where),
            _compare(
                bundle, expected_state, {name: part[i] for name, part in state.items()}, where
            ),
        )
    return worst


def _padded(rows: Sequence[Arrays], starts: Array, lengths: Array) -> Arrays:
    """Chunks of rows, (B, T, *shape), zeros after the length of each."""
    time = int(lengths.max())
    result: Arrays = {}
    for name, example in rows[0].items():
        batch = np.zeros((len(rows), time, *example.shape[1:]), example.dtype)
        for i, row in enumerate(rows):
            batch[i, : lengths[i]] = row[name][starts[i] : starts[i] + lengths[i]]
        result[name] = batch
    return result


def _compare(bundle: Bundle, expected: Arrays, found: Arrays, where: str) -> float:
    worst = 0.0
    for name, values in expected.items():
        difference = float(np.max(np.abs(found[name] - values), initial=0.0))
        if not difference <= bundle.config.tolerance:
            raise ParityError(
                f"{bundle.config.name}: {name} differs by {difference:.3g} at {where}, "
                f"tolerance {bundle.config.tolerance:.3g}"
            )
        worst = max(worst, difference)
    return worst
