from __future__ import annotations

from collections.abc import Callable

import msgspec
import numpy as np
import pytest
import torch

from tests.training.forecast.conftest import waves
from training.config import ConfigError, RecurrentConfig
from training.data.download import DataError
from training.forecast.config import ForecastRun
from training.forecast.learner import ForecastLearner
from training.trainer import Share


def test_a_batch_is_a_function_of_the_step(run: Callable[..., ForecastRun]) -> None:
    one, other = (ForecastLearner(run(), waves(), Share()) for _ in range(2))
    other.batch(1)
    for found, due in zip(one.batch(3), other.batch(3), strict=True):
        torch.testing.assert_close(found, due, equal_nan=True)
    assert not torch.equal(one.batch(3)[1], one.batch(4)[1])


def test_processes_share_a_batch(run: Callable[..., ForecastRun]) -> None:
    whole = ForecastLearner(run(), waves(), Share()).batch(2)
    parts = [ForecastLearner(run(), waves(), Share(rank, 3)).batch(2) for rank in range(3)]
    for i, full in enumerate(whole):
        rows = sorted(tuple(r.flatten().nan_to_num(9.9).tolist()) for r in full)
        mine = [r for part in parts for r in part[i]]
        assert sorted(tuple(r.flatten().nan_to_num(9.9).tolist()) for r in mine) == rows


def test_the_future_follows_the_window_and_is_whole(run: Callable[..., ForecastRun]) -> None:
    x, future = ForecastLearner(run(), waves(), Share()).batch(0)
    # A window of 12, 4 forecasts of 5 steps.
    assert (x.shape, future.shape) == ((6, 15, 2), (6, 8, 2))
    assert not future.isnan().any()
    assert 0.02 < x.isnan().float().mean() < 0.3
    known = ~x[:, 12:].isnan()
    torch.testing.assert_close(x[:, 12:][known], future[:, :3][known])


def test_only_the_train_part_is_learnt_from(run: Callable[..., ForecastRun]) -> None:
    series = waves()
    series.values[240:] = 1e9  # beyond the train part
    learner = ForecastLearner(run(), series, Share())
    for step in range(20):
        x, future = learner.batch(step)
        assert x.nan_to_num().abs().max() < 1e3
        assert future.abs().max() < 1e3


def test_what_is_computed_before_training_comes_from_the_train_part_only(
    run: Callable[..., ForecastRun],
) -> None:
    series = waves()
    due = ForecastLearner(run(), series, Share()).model.state_dict()
    series.values[240:] = 1e9
    found = ForecastLearner(run(), series, Share()).model.state_dict()
    for name, value in due.items():
        assert torch.equal(found[name], value), name


def test_a_validation_part_with_a_long_gap_is_measured(run: Callable[..., ForecastRun]) -> None:
    series = waves(rows=4000)
    series.values[2500:3000] = np.nan  # longer than what is measured at once
    learner = ForecastLearner(run(), series, Share())
    with torch.no_grad():
        scalars = learner.validate(learner.model.eval())
    assert np.isfinite([*scalars.values()]).all()


def test_a_model_that_gives_no_numbers_is_not_a_good_one(run: Callable[..., ForecastRun]) -> None:
    learner = ForecastLearner(run(), waves(), Share())
    parameters = dict(learner.model.named_parameters())
    with torch.no_grad():
        parameters["correction.bias"].fill_(torch.nan)
        scalars = learner.validate(learner.model.eval())
        loss, _ = learner.model(*learner.batch(0), ())
    assert np.isnan([*scalars.values(), float(loss)]).all()


def test_a_series_too_short_is_refused(run: Callable[..., ForecastRun]) -> None:
    with pytest.raises(DataError, match="30 rows are too few for a window of 12"):
        ForecastLearner(run(), waves(rows=30), Share())


def test_rows_that_do_not_divide_over_the_processes_are_refused(
    run: Callable[..., ForecastRun],
) -> None:
    with pytest.raises(ConfigError, match="6 rows do not divide over 4 processes"):
        ForecastLearner(run(), waves(), Share(0, 4))


def test_an_encoder_that_reads_from_the_end_is_refused(run: Callable[..., ForecastRun]) -> None:
    ahead = RecurrentConfig(cell="gru", hidden_size=8, bidirectional=True)
    with pytest.raises(ValueError, match="has seen the future"):
        msgspec.structs.replace(run(), encoder=ahead)
