"""What every task offers to the routes. No HTTP here, and no idea how the model is run."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt

from service.contract import Record, Tensor
from service.errors import Invalid
from service.sessions.session import Chunk

Item = TypeVar("Item")
Outputs = Mapping[str, npt.NDArray[Any]]

LONGEST_WORD = 64
"""Characters of a text that may be taken as one word together with others."""

_FIRST = np.zeros(1, np.intp)
# Most requests have fewer inputs; a view of it costs less than to count anew.
_POSITIONS = np.arange(1024)


class Parameters(Record, frozen=True, kw_only=True):
    """What a client may choose about an answer.

    Attributes:
        top_k: How many of the best candidates to return; None is the task's own default.
    """

    top_k: int | None = None

    def encoded(self) -> bytes:
        """As part of a request's digest."""
        return _encoded(self)


# There are as many as a model has candidates, where a caller tries them all.
@functools.lru_cache(maxsize=256)
def _encoded(parameters: Parameters) -> bytes:
    return msgspec.msgpack.encode(parameters)


class Candidates(NamedTuple):
    """How many of the best are asked for."""

    usual: int
    """An answer has so many by default."""
    kept: int
    """A session keeps at least so many of its last step, for a text that goes on from them."""


NO_CANDIDATES = Candidates(0, 0)
"""Of a model without ranked outputs."""


class Task(Protocol):
    """Reads inputs and writes answers of one model."""

    outputs: tuple[str, ...]
    """Graph outputs an answer is made of."""

    every_step: bool
    """Whether an answer needs them of every time step of its input, not of the last one only."""

    text: bool
    """Whether inputs are texts, which take time to be taken apart."""

    candidates: Candidates
    """How many of the best of the model's ranked outputs are asked for."""

    def check(self, parameters: Parameters) -> None:
        """Raise `Invalid` for parameters this task cannot honour."""

    def whole(self, value: Any, path: str) -> Chunk:
        """A whole input of a one-shot request; `path` names it in errors."""

    def piece(self, value: Any, path: str) -> dict[str, npt.NDArray[Any]]:
        """One input of a streaming session, as time steps: input name to (T, *shape), T >= 1."""

    def together(self, values: Sequence[Any]) -> dict[str, npt.NDArray[Any]] | None:
        """Many inputs at once, at least one, of one time step each: input name to (inputs, *shape).

        None unless `piece` takes each of them, as just that.
        """

    def packed_input(self, path: str) -> Tensor:
        """The input of the model of which packed inputs are the values, one time step each.

        Raises:
            Invalid: There is none, or more than one; says so of `path`.
        """

    def takes(self, array: npt.NDArray[Any]) -> bool:
        """Whether `piece` takes each of some packed inputs (inputs, *shape); False means that it is to be asked."""

    def answers(self, inputs: Sequence[Any], outputs: Outputs, parameters: Parameters) -> list[Any]:
        """One answer for each input of a session.

        Args:
            inputs: What `piece` took.
            outputs: (inputs, *shape), or (time steps of all inputs, *shape) with `every_step`.
            parameters: As `check` took them.
        """

    def whole_answer(self, value: Any, outputs: Outputs, parameters: Parameters) -> Any:
        """The answer to a whole input that `whole` took."""


def chunk_of(task: Task, values: Sequence[Any], path: str, parameters: Parameters) -> Chunk:
    """Inputs of one request, at least one, as one chunk with an end for each.

    Raises:
        Invalid: See `Task.piece`; it names the input as `path[i]`.
    """
    arrays = task.together(values)
    if arrays is not None:
        return chunk_of_steps(arrays, parameters)
    pieces = [task.piece(value, f"{path}[{i}]") for i, value in enumerate(values)]
    return join_pieces(pieces, parameters, every_step=task.every_step)


def chunk_of_steps(arrays: Mapping[str, npt.NDArray[Any]], parameters: Parameters) -> Chunk:
    """A chunk of inputs that are one time step each: input name to (T, *shape)."""
    length = len(next(iter(arrays.values())))
    if length == 1:
        ends = _FIRST
    elif length <= len(_POSITIONS):
        ends = _POSITIONS[:length]
    else:
        ends = np.arange(length)
    return Chunk(arrays, ends, parameters.encoded())


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


def words_alone(values: Sequence[Any], split: Callable[[str], Sequence[Item]]) -> list[Item] | None:
    """What texts of one word each are split into; None unless all are that, and short.

    Args:
        values: Inputs of any kind.
        split: Takes a text apart, into nothing if it is not to be taken.
    """
    found = []
    for value in values:
        if type(value) is not str or len(value) > LONGEST_WORD:
            return None
        parts = split(value)
        if len(parts) != 1:
            return None
        found.append(parts[0])
    return found


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


def top_k_of(candidates: Candidates, parameters: Parameters) -> int:
    """How many of the best an answer needs of the model's ranked outputs; 0 where there are none."""
    return (parameters.top_k or candidates.usual) if candidates.usual else 0


def check_top_k(parameters: Parameters, largest: int) -> None:
    """Raise `Invalid` unless `top_k` is left open or 1 to `largest`."""
    if parameters.top_k is not None and not 1 <= parameters.top_k <= largest:
        raise Invalid(f"top_k is 1 to {largest} for this model", path="$.parameters.top_k")
