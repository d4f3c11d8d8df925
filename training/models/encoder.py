"""What every encoder offers: features of a sequence, and a state of fixed size carried from call to call."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Literal

import msgspec
import torch
from torch import Tensor, nn

State = tuple[Tensor, ...]


class StateSpec(msgspec.Struct, frozen=True):
    """A tensor of one sequence's state.

    Attributes:
        name: Name of the graph input that takes it.
        shape: Shape without the batch axis.
        dtype: Element type.
    """

    name: str
    shape: tuple[int, ...]
    dtype: Literal["float32", "int64"] = "float32"

    @property
    def size(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)


def fresh(states: tuple[StateSpec, ...], batch_size: int, device: torch.device) -> State:
    """A state before anything is read: zeros, (B, *shape) each."""
    return tuple(
        torch.zeros(batch_size, *spec.shape, dtype=getattr(torch, spec.dtype), device=device)
        for spec in states
    )


class Encoder(nn.Module, ABC):
    """Features of a sequence, each from its past and itself; or from all of the sequence, if bidirectional.

    Attributes:
        width_in: E, features of a position that go in.
        width_out: D, features that come out.
        states: The state, which starts as zeros; empty if bidirectional.
    """

    width_in: int
    width_out: int
    states: tuple[StateSpec, ...]

    def initial_state(self, batch_size: int) -> State:
        """State before the first position, (B, *shape) each."""
        return fresh(self.states, batch_size, next(self.parameters()).device)

    @abstractmethod
    def forward(
        self, x: Tensor, state: State, lengths: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Encode a chunk of each sequence.

        Args:
            x: (B, T, E).
            state: State before the chunk.
            lengths: Valid positions of each row (B,) int64; None if all are. What comes out beyond them is arbitrary.

        Returns:
            Features (B, T, D), and the state after the last valid position of each row.
        """


class SequenceDropout(nn.Module):
    """Dropout with one mask for all time steps of a sequence (Gal, Ghahramani 2016)."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, x: Tensor) -> Tensor:
        """Drop features of x (B, T, D), the same ones at every time step of a row."""
        if not self.training or not self.share:
            return x
        keep = 1 - self.share
        return x * x.new_empty(x.shape[0], 1, x.shape[2]).bernoulli_(keep).div_(keep)


def named(states: tuple[StateSpec, ...], values: State) -> dict[str, Tensor]:
    """Values by the names of their tensors."""
    return {spec.name: value for spec, value in zip(states, values, strict=True)}
