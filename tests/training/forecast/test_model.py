from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch

from tests.training.forecast.conftest import waves
from training.config import EncoderConfig, RecurrentConfig, TransformerConfig
from training.forecast.config import ForecastRun
from training.forecast.learner import fit_constants
from training.forecast.model import LARGEST, ForecastModel
from training.models.encoder import State

TRANSFORMER = TransformerConfig(width=8, heads=2, num_layers=1, window=5, feedforward=8)
GRU = RecurrentConfig(cell="gru", hidden_size=8)


def model_of(run: ForecastRun, encoder: EncoderConfig = GRU) -> ForecastModel:
    """A model with the scale of the waves and heads that say something."""
    torch.manual_seed(1)
    model = ForecastModel(run.model, encoder, 2)
    fit_constants(model, run, waves())
    for head in (model.correction, model.width):
        torch.nn.init.normal_(head.weight)
    return model.eval()


@pytest.fixture
def model(run: Callable[..., ForecastRun]) -> ForecastModel:
    return model_of(run())


@pytest.fixture(autouse=True)
def _no_gradient() -> Iterator[None]:
    with torch.no_grad():
        yield


def observed(rows: int = 40, gaps: float = 0.1) -> torch.Tensor:
    """(1, T, 2), in units of their own."""
    return torch.from_numpy(waves(gaps=gaps).values[None, :rows].astype(np.float32))


def whole(model: ForecastModel, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, State]:
    return model.forecast(x, model.initial_state(len(x)))


@pytest.mark.parametrize("encoder", [GRU, TRANSFORMER])
def test_chunks_give_what_one_pass_gives(
    run: Callable[..., ForecastRun], encoder: EncoderConfig
) -> None:
    model, x = model_of(run(), encoder), observed()
    mean, quantiles, last = whole(model, x)
    state, start = model.initial_state(1), 0
    for length in (1, 2, 15, 1, 21):
        part, levels, state = model.forecast(x[:, start : start + length], state)
        torch.testing.assert_close(part, mean[:, start : start + length], atol=1e-4, rtol=0)
        torch.testing.assert_close(levels, quantiles[:, start : start + length], atol=1e-4, rtol=0)
        start += length
    for found, due in zip(state, last, strict=True):
        torch.testing.assert_close(found, due, atol=1e-5, rtol=0)


def test_nothing_depends_on_what_comes_later(model: ForecastModel) -> None:
    x = observed()
    mean, quantiles, _ = whole(model, x)
    x[:, 25:] = 1e6
    other, other_quantiles, _ = whole(model, x)
    torch.testing.assert_close(other[:, :25], mean[:, :25])
    torch.testing.assert_close(other_quantiles[:, :25], quantiles[:, :25])
    assert not torch.allclose(other[:, 25], mean[:, 25])


def test_the_quantiles_rise_whatever_the_weights(run: Callable[..., ForecastRun]) -> None:
    model = model_of(run(quantiles=(0.05, 0.2, 0.6, 0.7, 0.95)))
    torch.nn.init.normal_(model.spread, std=3)
    quantiles = whole(model, observed())[1]
    assert (quantiles.diff(dim=2) > 0).all()


def test_a_missing_value_is_the_one_before_it_to_the_window(model: ForecastModel) -> None:
    x = observed(rows=16, gaps=0.0)
    x[0, 7:9, 0] = torch.nan
    recent = whole(model, x)[2][0]
    x[0, 7:9, 0] = x[0, 6, 0]
    torch.testing.assert_close(recent, whole(model, x)[2][0])


def test_the_encoder_is_told_what_is_missing(model: ForecastModel) -> None:
    x = observed(gaps=0.0)
    told = x.clone()
    told[0, 30, 1] = torch.nan
    x[0, 30, 1] = x[0, 29, 1]
    assert not torch.allclose(whole(model, told)[0][:, 30:], whole(model, x)[0][:, 30:])


@pytest.mark.parametrize("value", [torch.nan, 3e38, -3e38])
def test_outputs_and_state_are_finite_whatever_is_observed(
    model: ForecastModel, value: float
) -> None:
    for place in (slice(None), slice(0, 5), slice(11, 30)):
        x = observed()
        x[:, place] = value
        mean, quantiles, state = whole(model, x)
        assert mean.isfinite().all()
        assert quantiles.isfinite().all()
        assert all(part.isfinite().all() for part in state)
        assert state[0].abs().max() <= LARGEST


def test_before_the_window_is_full_it_was_always_as_at_first(model: ForecastModel) -> None:
    x = observed(rows=1, gaps=0.0)
    state = whole(model, x)[2]
    z = (x[0, 0] - model.mean) / model.deviation
    torch.testing.assert_close(state[0], z.expand(1, model.config.window, 2))
    # A column that starts with a gap starts at its mean.
    x[0, 0, 1] = torch.nan
    assert (whole(model, x)[2][0][..., 1] == 0).all()


def test_the_last_forecasts_are_those_of_all(model: ForecastModel) -> None:
    x = observed()
    mean, quantiles, _ = whole(model, x)
    last, last_quantiles, _ = model.forecast(x, model.initial_state(1), 6)
    torch.testing.assert_close(last, mean[:, -6:])
    torch.testing.assert_close(last_quantiles, quantiles[:, -6:])


def test_a_fresh_model_is_its_linear_part(run: Callable[..., ForecastRun]) -> None:
    model = ForecastModel(run().model, GRU, 2)
    fit_constants(model, run(), waves())
    x = observed(gaps=0.0)
    z = (x[0] - model.mean) / model.deviation
    mean = whole(model.eval(), x)[0][0, -1]  # (H, n)
    for column in range(2):
        due = model.linear[column] @ z[-12:, column]
        torch.testing.assert_close(mean[:, column], due, atol=1e-5, rtol=0)


def test_the_least_pinball_loss_is_at_the_quantile(run: Callable[..., ForecastRun]) -> None:
    model = ForecastModel(run(quantiles=(0.25,), horizon=1).model, GRU, 1)
    target = torch.arange(101.0).view(101, 1, 1)
    losses = [
        float(model.pinball(torch.full((101, 1, 1, 1), float(guess)), target))
        for guess in range(101)
    ]
    assert int(np.argmin(losses)) == 25
    # By hand: below by e costs 0.25 e, above by e 0.75 e.
    assert losses[0] == pytest.approx(0.25 * 50)
    assert losses[100] == pytest.approx(0.75 * 50)


def test_what_is_missing_in_the_future_is_not_counted(model: ForecastModel) -> None:
    x = observed(rows=15, gaps=0.0)
    future = torch.from_numpy(waves().values[None, 15 - 3 : 15 + 4].astype(np.float32))
    loss, _ = model(x, future, ())
    assert loss.isfinite()
    future[0, -1] = torch.nan
    fewer, _ = model(x, future, ())
    assert fewer.isfinite()
    assert fewer != loss
    future[:] = torch.nan
    assert model(x, future, ())[0] == 0


def test_the_quantiles_are_wide_until_the_window_is_seen(run: Callable[..., ForecastRun]) -> None:
    model = ForecastModel(run().model, GRU, 2)
    fit_constants(model, run(), waves())
    still = observed(rows=1, gaps=0.0).expand(1, 40, 2)
    quantiles = whole(model.eval(), still)[1][0]
    widths = (quantiles[:, -1] - quantiles[:, 0]).mean(dim=(1, 2))
    assert (widths[:12].diff() < 0).all()
    torch.testing.assert_close(widths[12:], widths[11:12].expand(28), rtol=1e-2, atol=0)
    assert widths[0] > 10 * widths[-1]
