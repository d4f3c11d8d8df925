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


class Parameters(Record, kw_only=True):
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

    def check(self, parameters: Parameters) -> None:
        """Raise `Invalid` for parameters this task cannot honour."""

    def whole(self, value: Any, path: str) -> Chunk:
        """A whole input of a one-shot request; `path` names it in errors."""

    def piece(self, value: Any, path: str) -> dict[str, npt.NDArray[Any]]:
        """One input of a streaming session, as time steps: input name to (T, *shape), T >= 1."""

    def answers(self, outputs: Outputs, parameters: Parameters) -> list[Any]:
        """One answer for each end of a chunk; outputs are (ends, *shape)."""

    def whole_answer(self, outputs: Outputs, parameters: Parameters) -> Any:
        """The answer to a whole input."""


def join_pieces(
    pieces: Sequence[Mapping[str, npt.NDArray[Any]]], parameters: Parameters
) -> Chunk:
    """Inputs of one request as one chunk with an end for each."""
    arrays = {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}
    lengths = [len(next(iter(piece.values()))) for piece in pieces]
    return Chunk(arrays, np.cumsum(lengths, dtype=np.intp) - 1, parameters.encoded())


def vector(value: Any, tensor: Tensor, path: str) -> npt.NDArray[Any]:
    """One time step of numbers, shape `tensor.shape`.

    Raises:
        Invalid: It is not numbers, not of that shape, or not finite.
    """
    if not _is_numbers(value):
        raise Invalid(f"{tensor.name} takes numbers, got {_kind(value)}", path=path)
    try:
        array = np.asarray(value, dtype=np.float64)
    except (ValueError, OverflowError):
        raise Invalid(f"{tensor.name} takes an array of shape {tensor.shape}", path=path) from None
    if array.shape != tensor.shape:
        raise Invalid(
            f"{tensor.name} takes an array of shape {tensor.shape}, got {array.shape}", path=path
        )
    typed = array.astype(tensor.dtype)
    if not np.isfinite(typed).all() or not np.isfinite(array).all():
        raise Invalid(f"{tensor.name} holds NaN or infinity", path=path)
    return typed


def _is_numbers(value: Any) -> bool:
    if isinstance(value, list):
        return all(_is_numbers(item) for item in value)
    return isinstance(value, int | float) and not isinstance(value, bool)


def _kind(value: Any) -> str:
    return {"NoneType": "null", "dict": "an object", "str": "a string", "bool": "a boolean"}.get(
        type(value).__name__, f"a {type(value).__name__} of other things"
    )


def listed(value: Any, path: str) -> list[Any]:
    """A list that is not empty.

    Raises:
        Invalid: It is not.
    """
    if not isinstance(value, list):
        raise Invalid(f"a list is due here, got {_kind(value)}", path=path)
    if not value:
        raise Invalid("the list is empty", path=path)
    return value


def check_top_k(parameters: Parameters, largest: int) -> None:
    """Raise `Invalid` unless `top_k` is left open or 1 to `largest`."""
    if parameters.top_k is not None and not 1 <= parameters.top_k <= largest:
        raise Invalid(f"top_k is 1 to {largest} for this model", path="$.parameters.top_k")
