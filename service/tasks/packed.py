"""Packed inputs and outputs: the values of a tensor as little-endian bytes in C order, without a number of Python.

What is wrong with packed inputs is told as of the same numbers in a list, by the task itself.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence

import numpy as np

from service.contract import ELEMENT_BYTES
from service.errors import Invalid
from service.tasks.protocol import Outputs, Parameters, Task
from service.tasks.vectors import Array

_LITTLE = sys.byteorder == "little"
_DTYPES = {name: np.dtype(name).newbyteorder("<") for name in ELEMENT_BYTES}


def check(parameters: Parameters) -> None:
    """Check what `Task.check` took once more, for packed inputs.

    Raises:
        Invalid: There is a `top_k`; outputs are given as they are.
    """
    if parameters.top_k is not None:
        raise Invalid(
            "packed inputs are answered by all of the model's outputs; top_k has nothing to choose",
            path="$.parameters.top_k",
        )


def counts(task: Task, contents: Sequence[bytes], path: str) -> list[int]:
    """How many inputs each of some packed inputs are.

    Raises:
        Invalid: The task takes no packed inputs, or some do not end with the last value of an input.
    """
    tensor = task.packed_input(path)
    size = ELEMENT_BYTES[tensor.dtype] * math.prod(tensor.shape)
    for length in set(map(len, contents)):
        if length % size:
            raise Invalid(
                f"{length} bytes are no whole number of inputs of {size} bytes: {tensor.name}, {tensor.dtype} "
                f"of shape {list(tensor.shape)}",
                path=path,
            )
    return [len(content) // size for content in contents]


def unpack(task: Task, contents: Sequence[bytes], path: str) -> dict[str, Array]:
    """Packed inputs of one model, at least one, as `counts` took them, as one array: input name to (inputs, *shape).

    Raises:
        Invalid: See `Task.piece`; it names the input as `path[i]`.
    """
    tensor = task.packed_input(path)
    content = b"".join(contents) if len(contents) > 1 else contents[0]
    array = np.frombuffer(content, _DTYPES[tensor.dtype])
    array = array.astype(tensor.dtype, copy=False).reshape(-1, *tensor.shape)
    if not task.takes(array):
        for number, value in enumerate(array.tolist()):
            task.piece(value, f"{path}[{number}]")
    return {tensor.name: array}


def pack(outputs: Outputs, names: Sequence[str]) -> dict[str, bytes]:
    """Some outputs of one step, each (inputs, *shape), as bytes."""
    return {name: _bytes(outputs[name]) for name in names}


def pack_rows(outputs: Outputs, names: Sequence[str]) -> list[dict[str, bytes]]:
    """Some outputs of several steps, each (steps, inputs, *shape), as bytes for each step."""
    columns = []
    for name in names:
        content, rows = _bytes(outputs[name]), len(outputs[name])
        size = len(content) // rows
        columns.append([content[start : start + size] for start in range(0, rows * size, size)])
    if len(columns) == 1:
        # In a third of the time.
        return [{name: content} for content in columns[0]]
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def _bytes(array: Array) -> bytes:
    return array.tobytes() if _LITTLE else array.byteswap().tobytes()
