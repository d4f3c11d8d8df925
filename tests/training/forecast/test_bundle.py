"""What an export shows of the series: made-up observations, none of the data."""

from __future__ import annotations

import numpy as np
import pytest

from tests.training.forecast.conftest import waves
from training.forecast.bundle import made_up


def test_golden_inputs_look_like_the_data_and_hold_none_of_it() -> None:
    series = waves(gaps=0.1)
    made = made_up(series, 3000, 5)
    assert made.dtype == np.float32
    assert np.isnan(made).mean() == pytest.approx(0.1, abs=0.02)
    known = ~np.isnan(made)
    assert not np.isin(made[known], series.values.astype(np.float32)).any()
    standard = (made - series.scale()[0]) / series.scale()[1]
    np.testing.assert_allclose(np.nanmean(standard, axis=0), 0, atol=0.1)
    np.testing.assert_allclose(np.nanstd(standard, axis=0), 1, atol=0.1)
    # One season apart it rises and falls together, half of one against each other.
    same, opposite = (
        np.nanmean(standard[:-apart] * standard[apart:])
        for apart in (series.period, series.period // 2)
    )
    assert same > 0.2 > -0.2 > opposite


def test_golden_inputs_are_the_same_every_time() -> None:
    series = waves()
    first, again, other = (made_up(series, 6, seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other, equal_nan=True)
