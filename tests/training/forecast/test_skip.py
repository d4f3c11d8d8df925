from __future__ import annotations

import numpy as np
import pytest

from training.forecast.config import SkipConfig
from training.forecast.skip import residual_quantiles, seasonal, solve

L, H = 8, 3


def walks(rows: int = 200, columns: int = 2) -> np.ndarray:
    return np.random.default_rng(1).standard_normal((rows, columns)).cumsum(axis=0)


def windows(column: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Every window and what follows it, one by one."""
    starts = range(len(column) - L - H + 1)
    x = np.array([column[s : s + L] for s in starts])
    return x, np.array([column[s + L : s + L + H] for s in starts])


@pytest.mark.parametrize("relative", [True, False])
def test_it_is_ridge_regression_over_all_columns(relative: bool) -> None:
    series = walks()
    (weights, same) = solve(series, L, H, SkipConfig(relative=relative, ridge=0.5))
    assert np.array_equal(weights, same)
    x, y = (np.concatenate(parts) for parts in zip(*map(windows, series.T), strict=True))
    base = x[:, -1:] * relative
    penalty = 0.5 * len(x)
    # Ridge is least squares with a further observation for each weight.
    rows = np.concatenate([x - base, np.sqrt(penalty) * np.eye(L)])
    due = np.linalg.lstsq(rows, np.concatenate([y - base, np.zeros((L, H))]), rcond=None)[0]
    np.testing.assert_allclose(x @ weights.T, base + (x - base) @ due, atol=1e-9)


def test_a_shift_moves_the_forecast_by_as_much() -> None:
    weights = solve(walks(), L, H, SkipConfig(relative=True, period=4, ridge=3.0, own=1.0))
    np.testing.assert_allclose(weights.sum(axis=2), 1)


def test_what_follows_exactly_is_found() -> None:
    time = np.arange(100)
    series = np.stack([np.sin(time * np.pi / 4), np.cos(time * np.pi / 4)], axis=1)
    weights = solve(series, L, H, SkipConfig(ridge=1e-12))
    for i, column in enumerate(series.T):
        x, y = windows(column)
        np.testing.assert_allclose(x @ weights[i].T, y, atol=1e-5)


def test_the_seasonal_stage_has_one_weight_for_each_season_between_equal_phases() -> None:
    x, y = windows(walks(columns=1)[:, 0])
    weights = seasonal(x.T @ x, x.T @ y, period=4, penalty=2.0)
    # The three steps ahead are phases 0 to 2 of the next season; two seasons of 4 lie in the window.
    rows = np.concatenate([x[:, [step, 4 + step]] for step in range(H)])
    rows = np.concatenate([rows, np.sqrt(2.0) * np.eye(2)])
    due = np.linalg.lstsq(rows, np.concatenate([*y.T, np.zeros(2)]), rcond=None)[0]
    for step in range(H):
        expected = np.zeros(L)
        expected[[step, 4 + step]] = due
        np.testing.assert_allclose(weights[:, step], expected, atol=1e-9)


def test_a_column_of_its_own_fits_itself_better() -> None:
    series = np.stack([walks(400, 1)[:, 0], np.random.default_rng(2).standard_normal(400)], axis=1)
    shared = solve(series, L, H, SkipConfig(ridge=1e-3))
    own = solve(series, L, H, SkipConfig(ridge=1e-3, own=1e-3))
    for i, column in enumerate(series.T):
        x, y = windows(column)
        assert np.mean((x @ own[i].T - y) ** 2) < np.mean((x @ shared[i].T - y) ** 2)


def test_too_short_a_series_is_refused() -> None:
    with pytest.raises(ValueError, match="10 rows are fewer"):
        solve(walks(10), L, H, SkipConfig())


def test_residual_quantiles_hold_their_share() -> None:
    column = np.random.default_rng(1).standard_normal(3000)
    quantiles = residual_quantiles(column, np.zeros((H, L)), (0.1, 0.5, 0.9))
    assert quantiles.shape == (3, H)
    x, y = windows(column)
    scale = np.sqrt(x.var(axis=1, keepdims=True) + 1e-3)
    for level, quantile in zip((0.1, 0.5, 0.9), quantiles, strict=True):
        assert np.mean(y <= scale * quantile) == pytest.approx(level, abs=0.01)
