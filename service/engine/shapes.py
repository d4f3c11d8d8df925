"""Shapes that batches are padded to. Pure.

On the CPU a batch runs in the shape it has: padding costs as much as rows that count, and a shape that was never run
costs a tenth of a millisecond once. What has to be prepared for each shape, or has to compute the same whoever shares
the batch, runs in few.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence

from service.contract import Batching


class Shapes:
    """Batches in a fixed set of shapes: for each size class of time steps, some numbers of rows.

    Args:
        rows: Padded time steps of a size class to the numbers of rows, rising; the last one is the most it may have.
        stable: Whether a row of such a batch has the same bits whoever is beside it.
    """

    def __init__(self, rows: Mapping[int, Sequence[int]], *, stable: bool = False) -> None:
        self.stable = stable
        self._rows = rows
        self._times = sorted(rows)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Every shape, as rows and time steps."""
        return ((rows, time) for time in self._times for rows in self._rows[time])

    def most(self, size_class: int) -> int:
        """Most rows of a batch of a size class, counted from 0."""
        return self._rows[self._times[size_class]][-1]

    def padded(self, rows: int, time: int) -> tuple[int, int]:
        """The smallest shape that holds so many rows and time steps."""
        longest = self._times[bisect_left(self._times, time)]
        sizes = self._rows[longest]
        return sizes[bisect_left(sizes, rows)], longest


def size_classes(limits: Batching) -> list[int]:
    """Time steps of the longest chunk of each size class: 1, 2, 4, ... and the longest of all."""
    longest = min(limits.max_chunk_length, limits.max_batch_tokens)
    return [*(1 << k for k in range((longest - 1).bit_length())), longest]


def powers_of_two(limits: Batching) -> dict[int, list[int]]:
    """For each size class 1, 2, 4, ... rows and the most that fit."""
    found = {}
    for time in size_classes(limits):
        # A batch is as full as its longest chunk lets it be; padded to its class it may have up to twice the tokens.
        most = most_rows(limits, time)
        found[time] = [*(1 << k for k in range((most - 1).bit_length())), most]
    return found


def most_rows(limits: Batching, time: int) -> int:
    """Most rows of a batch of the size class with this longest chunk."""
    shortest = time // 2 + 1 if time > 1 else 1
    return max(1, min(limits.max_batch_size, limits.max_batch_tokens // shortest))
