from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.data.batches import Batches
from training.trainer import Share


@given(
    count=st.integers(4, 200),
    size=st.sampled_from([2, 4]),
    seed=st.integers(0, 9),
    processes=st.sampled_from([1, 2]),
)
def test_an_epoch_takes_every_row_once_and_processes_share_each_batch(
    count: int, size: int, seed: int, processes: int
) -> None:
    lengths = np.arange(count) % 7 + 1
    shares = [Batches(lengths, size, seed, Share(rank, processes)) for rank in range(processes)]
    whole = Batches(lengths, size, seed, Share())
    seen = []
    for step in range(whole.steps_per_epoch):
        rows = np.concatenate([each.rows(step) for each in shares])
        assert rows.tolist() == whole.rows(step).tolist()
        seen += rows.tolist()
    assert len(seen) == len(set(seen)) > count - size


def test_the_same_step_has_the_same_rows_in_any_order_of_asking() -> None:
    one, other = (Batches([1] * 50, 8, 3, Share()) for _ in range(2))
    forwards = [one.rows(step).tolist() for step in range(30)]
    backwards = [other.rows(step).tolist() for step in reversed(range(30))]
    assert forwards == backwards[::-1]
    assert forwards[:6] != forwards[6:12]


def test_rows_of_like_length_go_together() -> None:
    lengths = np.random.default_rng(0).integers(1, 100, 3200)
    batches = Batches(lengths, 32, 1, Share())
    spread = [np.ptp(lengths[batches.rows(step)]) for step in range(batches.steps_per_epoch)]
    assert np.mean(spread) < 10


def test_too_few_rows_and_uneven_shares_are_refused() -> None:
    with pytest.raises(ValueError, match="3 rows are too few for a batch of 4"):
        Batches([1, 1, 1], 4, 0, Share())
    with pytest.raises(ValueError, match="5 rows do not divide over 2 processes"):
        Batches([1] * 9, 5, 0, Share(0, 2))
