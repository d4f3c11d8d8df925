"""Numbers as they come in JSON or MessagePack, as arrays: one time step with exact errors, or many at once.

Many at once costs a tenth of one by one, since every check of it is a loop in C. It only says whether all is well; what
is wrong, and where, is found out one by one.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from service.contract import Tensor
from service.errors import Invalid
from service.tasks.protocol import kind

Array = npt.NDArray[Any]

_FORMATS = {"float32": "f", "float64": "d", "int32": "i", "int64": "q"}
# Not booleans: to Python they are integers, to a caller they are not.
_NUMBERS = frozenset((int, float))
_LIST = frozenset((list,))


def vector(value: Any, tensor: Tensor, path: str) -> Array:
    """One time step of numbers, shape `tensor.shape`.

    Raises:
        Invalid: It is not numbers, not of that shape, or not finite.
    """
    _check_shape(value, tensor.shape, path)
    try:
        with np.errstate(over="ignore", invalid="ignore"):
            if not np.isfinite(np.asarray(value, np.float64)).all():
                raise Invalid(f"{tensor.name} holds NaN or infinity", path=path)
            # Not by way of float64, which rounds integers above 2**53.
            typed = np.array(value, tensor.dtype)
    except OverflowError:
        raise Invalid(
            f"{tensor.name} takes {tensor.dtype}; a number is too large", path=path
        ) from None
    if not np.isfinite(typed).all() or (typed.dtype.kind == "i" and typed.tolist() != value):
        raise Invalid(f"{tensor.name} takes {tensor.dtype}; a number does not fit", path=path)
    return typed


def _check_shape(value: Any, shape: tuple[int, ...], path: str) -> None:
    # To the depth of the shape and no deeper, so that hostile nesting costs nothing.
    if not shape:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise Invalid(f"a number is due here, got {kind(value)}", path=path)
        return
    if not isinstance(value, list):
        raise Invalid(f"a list of {shape[0]} is due here, got {kind(value)}", path=path)
    if len(value) != shape[0]:
        raise Invalid(f"a list of {shape[0]} is due here, got one of {len(value)}", path=path)
    for number, item in enumerate(value):
        _check_shape(item, shape[1:], f"{path}[{number}]")


def vectors(values: Sequence[Any], tensor: Tensor) -> Array | None:
    """Many time steps of numbers, (T, *tensor.shape); None unless `vector` would take each of them just so.

    Numbers that add up to more than a float holds are left to `vector`, too.
    """
    numbers = flat(values, tensor.shape)
    if numbers is None or not _NUMBERS.issuperset(map(type, numbers)):
        return None
    array = packed(numbers, tensor)
    # A sum is finite only if every number is; what became an integer is.
    if array is None or (array.dtype.kind == "f" and not math.isfinite(sum(numbers))):
        return None
    return array.reshape(len(values), *tensor.shape)


def finite(array: Array) -> bool:
    """Whether all numbers are; integers are."""
    if array.dtype.kind != "f":
        return True
    # The sum of squares takes a third of the time; of large numbers it may be infinite.
    return math.isfinite(np.vdot(array, array)) or bool(np.isfinite(array).all())


def flat(values: Sequence[Any], shape: tuple[int, ...]) -> Sequence[Any] | None:
    """What lists of a shape hold, at least one, joined; None when something is no list, or not of that length."""
    for size in shape:
        if not _LIST.issuperset(map(type, values)) or {*map(len, values)} != {size}:
            return None
        values = [*chain.from_iterable(values)]
    return values


def packed(numbers: Sequence[int | float], tensor: Tensor) -> Array | None:
    """Numbers as an array of the tensor's type, read-only; None when one of them is no number of it or too large."""
    try:
        data = struct.pack(f"={len(numbers)}{_FORMATS[tensor.dtype]}", *numbers)
    except (struct.error, OverflowError):
        return None
    return np.frombuffer(data, tensor.dtype)
