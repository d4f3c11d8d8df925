"""Works as rows of a batch, and rows of results as what each work wanted. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from service.contract import Tensor
from service.engine.work import Array, Batch, Item, Outputs, Work

_SMALL = 1024
"""Bytes of a row up to which its time is worth more than the memory of the batch that it would keep."""


def pad(batch: Batch, name: str, shape: tuple[int, ...], dtype: str, rows: int, time: int) -> Array:
    """Next chunk of every work, (rows, time, *shape); zero beyond a chunk's length and in rows of no work."""
    works = batch.works
    if len(works) == rows and min(batch.lengths) == time:
        if time == 1:
            try:
                chunks: list[Any] = [work.inputs[name] for work in works]
                joined = np.frombuffer(b"".join(chunks), dtype)
            except BufferError:
                # Some row is not in one piece of memory.
                pass
            else:
                if joined.size == rows * math.prod(shape):
                    return joined.reshape(rows, 1, *shape)
        parts = [work.inputs[name][work.done : work.done + time] for work in works]
        return np.concatenate(parts).reshape(rows, time, *shape)
    padded = np.zeros((rows, time, *shape), dtype)
    for row, (work, length) in enumerate(zip(works, batch.lengths, strict=True)):
        padded[row, :length] = work.inputs[name][work.done : work.done + length]
    return padded


def block(items: Sequence[Item], tensor: Tensor, rows: int, time: int) -> Array:
    """All of some items of as many time steps, (rows, time, *shape); zero beyond these and in rows of none."""
    blocks = [item.block(tensor.name) for item in items]
    found = blocks[0] if len(blocks) == 1 else np.concatenate(blocks)
    if found.shape[:2] == (rows, time):
        return found
    padded = np.zeros((rows, time, *tensor.shape), tensor.dtype)
    padded[: len(found), : found.shape[1]] = found
    return padded


def single(batch: Batch) -> bool:
    """Whether every work is one time step, and the same outputs of it are wanted."""
    names = batch.works[0].outputs
    return (
        batch.time == 1
        and len(names) > 0
        and all([work.single for work in batch.works])  # noqa: C419 - a generator takes twice as long
        and len({work.outputs for work in batch.works}) == 1
    )


def keep_single(batch: Batch, result: Mapping[str, Array]) -> list[Outputs]:
    """The wanted outputs of every work, all of them single; see `keep`.

    Small ones are views of the batch's results: whoever keeps them copies them.
    """
    names, count = batch.works[0].outputs, len(batch.works)
    columns = [_rows(result[name][:count]) for name in names]
    if len(names) == 1:
        (name,) = names
        return [{name: row} for row in columns[0]]
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def _rows(values: Array) -> list[Array]:
    if values.nbytes > _SMALL * len(values):
        return [row.copy() for row in values]
    return list(values)


def keep(batch: Batch, result: Mapping[str, Array]) -> list[Outputs | None]:
    """Of every work the wanted outputs of the time steps it applied, if any are wanted.

    Copies, so that a reply that is kept does not keep the whole batch.
    """
    return [
        _kept(work, row, length, result)
        for row, (work, length) in enumerate(zip(batch.works, batch.lengths, strict=True))
    ]


def _kept(work: Work, row: int, length: int, result: Mapping[str, Array]) -> Outputs | None:
    """The wanted outputs of the `length` time steps of `row` that start at `work.done`, if any are wanted."""
    if len(work.keep) == work.length:
        # Every time step is wanted.
        return {name: result[name][row, :length].copy() for name in work.outputs}
    first, last = np.searchsorted(work.keep, (work.done, work.done + length))
    if first == last and (work.parts or work.done + length < work.length):
        return None
    positions = work.keep[first:last] - work.done
    return {name: result[name][row, positions] for name in work.outputs}


def join(work: Work) -> Outputs:
    """All the outputs of a work that ran to its end."""
    if len(work.parts) == 1:
        return work.parts[0]
    return {name: np.concatenate([part[name] for part in work.parts]) for name in work.outputs}
