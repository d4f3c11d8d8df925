"""Which rows make the batch of a step: a pure function of the step, so that a resumed run sees the same ones."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from training.config import ConfigError
from training.trainer import Share

Rows = npt.NDArray[np.int64]

# Enough that little of a batch is padding, and few enough that the order stays random.
_POOL = 32


class Batches:
    """Every row once an epoch, in another order each time; the last few, which fill no batch, sit that epoch out.

    Args:
        lengths: Time steps of each row; all the same where rows are not to be sorted.
        batch_size: Rows of a batch, over all processes.
        seed: Of the order.
        share: Which part of each batch is this process's.
        pool: Batches whose rows are sorted by length together; the more, the less padding and the less random.

    Raises:
        ConfigError: There are fewer rows than a batch takes, or the rows of a batch do not divide over the processes.
    """

    def __init__(
        self,
        lengths: Sequence[int] | npt.NDArray[Any],
        batch_size: int,
        seed: int,
        share: Share,
        *,
        pool: int = _POOL,
    ) -> None:
        if len(lengths) < batch_size:
            raise ConfigError(f"{len(lengths)} rows are too few for a batch of {batch_size}")
        if batch_size % share.count:
            raise ConfigError(f"{batch_size} rows do not divide over {share.count} processes")
        self._lengths = np.asarray(lengths)
        self._batch_size = batch_size
        self._seed = seed
        self._share = share
        self._pool = pool
        self.steps_per_epoch = len(lengths) // batch_size
        self._order = functools.lru_cache(maxsize=1)(self._shuffled)

    def rows(self, step: int) -> Rows:
        """Indices of this process's rows in the batch of a step, counted from 0."""
        epoch, place = divmod(step, self.steps_per_epoch)
        batch: Rows = self._order(epoch)[place]
        size = self._batch_size // self._share.count
        return batch[self._share.rank * size :][:size]

    def _shuffled(self, epoch: int) -> Rows:
        """The batches of an epoch, (steps, batch_size)."""
        random = np.random.default_rng((self._seed, epoch))
        order = random.permutation(len(self._lengths))[: self.steps_per_epoch * self._batch_size]
        pool = self._pool * self._batch_size
        for start in range(0, len(order), pool):
            part = order[start : start + pool]
            order[start : start + pool] = part[np.argsort(self._lengths[part], kind="stable")]
        batches = order.reshape(self.steps_per_epoch, self._batch_size)
        mixed: Rows = random.permutation(batches)
        # Processes share long and short rows alike.
        return random.permuted(mixed, axis=1)
