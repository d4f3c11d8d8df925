"""What every task offers to the routes. No HTTP here, and no idea how the model is run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import msgspec
import numpy as np
import numpy.typing as npt

from service.contract import Record, Tensor
from service.errors import Invalid
from service.sessions.session import Chunk

Outputs = Mapping[str, npt.NDArray[Any]]

_FIRST = np.zeros(1, np.intp)


class Parameters(Record, frozen=True, kw_only=True):
    """What a client may choose about an answer.

    Attributes:
        top_k: How many of the best candidates to return; None is the task's own default.
    """

    top_k: int | None = None

    def encoded(self) -> bytes:
        """As part of a request's digest."""
        return msgspec.msgpack.encode(self)


class Task(Protocol):
    """Reads inputs and writes answers of one model."""

    outputs: tuple[str, ...]
    """Graph outputs an answer is made of."""

    every_step: bool
    """Whether an answer needs them of every time step of its input, not of the last one only."""

    def check(self, parameters: Parameters) -> None:
        """Raise `Invalid` for parameters this task cannot honour."""

    def whole(self, value: Any, path: str) -> Chunk:
        """A whole input of a one-shot request; `path` names it in errors."""

    def piece(self, value: Any, path: str) -> dict[str, npt.NDArray[Any]]:
        """One input of a streaming session, as time steps: input name to (T, *shape), T >= 1."""

    def answers(self, inputs: Sequence[Any], outputs: Outputs, parameters: Parameters) -> list[Any]:
        """One answer for each input of a session.

        Args:
            inputs: What `piece` took.
            outputs: (inputs, *shape), or (time steps of all inputs, *shape) with `every_step`.
            parameters: As `check` took them.
        """

    def whole_answer(self, value: Any, outputs: Outputs, parameters: Parameters) -> Any:
        """The answer to a whole input that `whole` took."""


def join_pieces(
    pieces: Sequence[Mapping[str, npt.NDArray[Any]]],
    parameters: Parameters,
    *,
    every_step: bool = False,
) -> Chunk:
    """Inputs of one request as one chunk with an end for each; see `Chunk` for `every_step`."""
    if len(pieces) == 1:
        (arrays,) = pieces
        length = len(next(iter(arrays.values())))
        ends = _FIRST if length == 1 else np.array([length - 1], np.intp)
        return Chunk(arrays, ends, parameters.encoded(), every_step)
    arrays = {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}
    lengths = [len(next(iter(piece.values()))) for piece in pieces]
    ends = np.cumsum(lengths, dtype=np.intp) - 1
    return Chunk(arrays, ends, parameters.encoded(), every_step)


def vector(value: Any, tensor: Tensor, path: str) -> npt.NDArray[Any]:
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


def kind(value: Any) -> str:
    """What a decoded value is, in the words of its format."""
    names = {
        type(None): "null",
        bool: "a boolean",
        int: "a number",
        float: "a number",
        str: "a string",
        list: "a list",
        dict: "an object",
    }
    return names.get(type(value), "binary data")


def listed(value: Any, path: str) -> list[Any]:
    """A list that is not empty.

    Raises:
        Invalid: It is not.
    """
    if not isinstance(value, list):
        raise Invalid(f"a list is due here, got {kind(value)}", path=path)
    if not value:
        raise Invalid("the list is empty", path=path)
    return value


def check_top_k(parameters: Parameters, largest: int) -> None:
    """Raise `Invalid` unless `top_k` is left open or 1 to `largest`."""
    if parameters.top_k is not None and not 1 <= parameters.top_k <= largest:
        raise Invalid(f"top_k is 1 to {largest} for this model", path="$.parameters.top_k")
