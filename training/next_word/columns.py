"""A long text cut into columns that a batch reads side by side, and windows that a step reads from them."""

from __future__ import annotations

from torch import Tensor

from training.config import ConfigError


def columns(ids: Tensor, batch_size: int) -> Tensor:
    """Cut a text (N,) into `batch_size` contiguous columns (B, N // B); the few ids left over are dropped.

    Raises:
        ConfigError: The text is too short for columns of two.
    """
    length = ids.shape[0] // batch_size
    if length < 2:
        raise ConfigError(f"{ids.shape[0]} tokens are too few for {batch_size} columns")
    return ids[: length * batch_size].view(batch_size, length)


def share(text: Tensor, rank: int, world_size: int) -> Tensor:
    """The columns (B / world_size, N) of one process.

    Raises:
        ConfigError: The columns do not divide evenly, so that means over processes would be skewed.
    """
    if text.shape[0] % world_size:
        raise ConfigError(f"{text.shape[0]} columns do not divide over {world_size} processes")
    size = text.shape[0] // world_size
    return text[rank * size : (rank + 1) * size]


def window_count(text: Tensor, bptt: int) -> int:
    """Windows in columns (B, N): each time step but the last has a successor to predict."""
    return -(-(text.shape[1] - 1) // bptt)


def window(text: Tensor, index: int, bptt: int) -> tuple[Tensor, Tensor]:
    """Tokens and their successors, (B, T) each with T <= bptt; windows follow each other without a gap."""
    start = index * bptt
    stop = min(start + bptt, text.shape[1] - 1)
    return text[:, start:stop], text[:, start + 1 : stop + 1]
