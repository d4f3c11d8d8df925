from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from service.contract import (
    CONFIG_FILE,
    GOLDEN_FILE,
    MODEL_FILE,
    Batching,
    decode_config,
    decode_golden,
)
from service.engine.graph import Graph
from service.engine.shapes import Shapes, powers_of_two, size_classes
from service.engine.stable import stable_shapes

LIMITS = Batching(max_batch_size=16, max_chunk_length=8, max_batch_tokens=64)


class Blurred(Graph):
    """The accumulator on a device whose last bits depend on the batch."""

    blur: Callable[[int], np.ndarray]

    def run(self, feeds: Mapping[str, np.ndarray], outputs: Sequence[str]) -> dict[str, np.ndarray]:
        result = super().run(feeds, outputs)
        rows = len(feeds["lengths"])
        if "total" in result:
            result["total"] = result["total"] + 1e-9 * self.blur(rows)[:, None]
        return result


def sizes(directory: Path, blur: Callable[[int], np.ndarray]) -> list[list[int]]:
    """Rows of the size classes 1, 2, 4 and 8."""
    config = decode_config((directory / CONFIG_FILE).read_bytes())
    graph = Blurred((directory / MODEL_FILE).read_bytes(), config)
    graph.blur = blur
    shapes = stable_shapes(graph, decode_golden((directory / GOLDEN_FILE).read_bytes()))
    assert shapes.stable
    found = list(shapes)
    return [[rows for rows, t in found if t == time] for time in size_classes(config.batching)]


def test_where_every_size_agrees_all_are_used(accumulator: Path) -> None:
    assert sizes(accumulator, np.zeros) == [[1, 2, 4, 8, 16]] * 3 + [[1, 2, 4, 8, 12]]


def test_sizes_that_compute_otherwise_than_the_largest_are_left_out(accumulator: Path) -> None:
    found = sizes(accumulator, lambda rows: np.full(rows, rows < 3))
    assert found == [[4, 8, 16]] * 3 + [[4, 8, 12]]


def test_a_size_in_which_the_place_matters_is_left_out(accumulator: Path) -> None:
    found = sizes(accumulator, lambda rows: np.arange(rows) * (rows > 8))
    assert found == [[1, 2, 4, 8]] * 4


def test_where_the_place_always_matters_each_row_runs_alone(accumulator: Path) -> None:
    assert sizes(accumulator, np.arange) == [[1]] * 4


@pytest.mark.parametrize(
    ("rows", "time", "shape"), [(1, 1, (4, 1)), (5, 1, (8, 1)), (3, 3, (4, 4)), (2, 8, (2, 8))]
)
def test_a_batch_is_padded_to_the_smallest_shape_that_holds_it(
    rows: int, time: int, shape: tuple[int, int]
) -> None:
    shapes = Shapes({1: [4, 8], 2: [4, 8], 4: [4], 8: [2]})
    assert shapes.padded(rows, time) == shape


def test_powers_of_two_hold_every_batch_the_scheduler_may_form() -> None:
    shapes = Shapes(powers_of_two(LIMITS))
    for time in range(1, 9):
        most = min(LIMITS.max_batch_size, LIMITS.max_batch_tokens // time)
        for rows in range(1, most + 1):
            padded_rows, padded_time = shapes.padded(rows, time)
            assert rows <= padded_rows < 2 * rows or padded_rows == most
            assert time <= padded_time < 2 * time
