"""A forecaster: a linear part that sees the recent window, and an encoder that corrects it and knows how sure it is.

One observation x (n,) of a step, in its own units, goes through

    z  = (x - mean) / deviation            of the train part, constants; a missing value is the one before it
    c, s = mean and deviation of the last L z's of each column; with fewer, the deviation of the train part is mixed in
    f  = encoder((z - c) / s, which values were missing)
    mean      y = A w + s * C f            w the window of the last L z's; (H, n)
    quantiles q_k = y + s * exp(G f) * b_k with b_1 < b_2 < ... for each step of the horizon; (Q, H, n)

and back to its own units. Normalising by the window and undoing it at the end is RevIN (Kim et al. 2022) without its
affine part; the linear part beside the encoder is that of DLinear (Zeng et al. 2023), found in closed form
(`training.forecast.skip`); the quantiles never cross, since `b` rises by construction and exp is positive.

The state is the window (L, n), how many of it were observed, and the state of the encoder. Before the first observation
the window is filled with it, as if it had always been so; a column whose first values are missing starts at its mean.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.config import EncoderConfig
from training.forecast.config import ModelConfig
from training.forecast.skip import VARIANCE_FLOOR
from training.models.encoder import State, StateSpec
from training.models.encoders import make_encoder

# Standardised observations beyond it are cut: what one broken sensor says must not be all that is seen.
LARGEST = 1000.0
# The same for what the encoder sees, in deviations of the window.
LARGEST_INPUT = 10.0
# Bound of the logarithm of a forecast's width, as a multiple of its usual width.
LARGEST_LOG_WIDTH = 3.0


class ForecastModel(nn.Module):
    """Mean and quantiles of the next H steps after every observation.

    Args:
        config: Sizes.
        encoder: The part with a memory.
        columns: n.
        context: Observations that the encoder reads in training before the first forecast that is learnt from.

    Attributes:
        states: `recent` (L, n), `observed` (1,), and those of the encoder.
    """

    def __init__(
        self, config: ModelConfig, encoder: EncoderConfig, columns: int, context: int | None = None
    ) -> None:
        super().__init__()
        self.context = context
        self.config = config
        self.columns = columns
        self.encoder = make_encoder(encoder, 2 * columns)
        self.states = (
            StateSpec("recent", (config.window, columns)),
            StateSpec("observed", (1,)),
            *self.encoder.states,
        )
        self.register_buffer("mean", torch.zeros(columns))
        self.register_buffer("deviation", torch.ones(columns))
        self.register_buffer("linear", torch.zeros(columns, config.horizon, config.window))
        self.mean: Tensor
        self.deviation: Tensor
        self.linear: Tensor
        self.correction = nn.Linear(self.encoder.width_out, config.horizon * columns)
        self.width = nn.Linear(self.encoder.width_out, config.horizon * columns)
        self.spread = nn.Parameter(torch.zeros(len(config.quantiles), config.horizon, columns))
        # The level nearest to the middle is free, the others lie above or below it.
        self.middle = min(
            range(len(config.quantiles)), key=lambda k: abs(config.quantiles[k] - 0.5)
        )
        for layer in (self.correction, self.width):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def initial_state(self, batch_size: int) -> State:
        """State before the first observation: zeros, (B, *shape) each."""
        own = (self.mean.new_zeros(batch_size, *spec.shape) for spec in self.states[:2])
        return (*own, *self.encoder.initial_state(batch_size))

    def forecast(
        self, x: Tensor, state: State, last: int | None = None, context: int | None = None
    ) -> tuple[Tensor, Tensor, State]:
        """Forecast after each observation.

        Args:
            x: Observations (B, T, n) in their own units; NaN is missing.
            state: State before the first of them.
            last: Forecast after this many last observations only; None for all.
            context: The encoder reads this many observations before those, from the state, and skips the others; None
                for all.

        Returns:
            Standardised mean (B, T, H, n) and quantiles (B, T, Q, H, n), and the state after the last observation.
        """
        recent, observed, *before = state
        z, missing = self._standardised(x, recent)
        past = torch.where(observed[..., None] > 0, recent, z[:, :1])
        full = torch.cat([past, z], dim=1)  # (B, L + T, n)
        steps = torch.arange(1, x.shape[1] + 1, device=x.device)
        counts = (observed + steps).clamp(max=self.config.window)  # (B, T)
        centre, scale = self._moments(full, counts)
        u = ((z - centre) / scale).clamp(-LARGEST_INPUT, LARGEST_INPUT)
        T = last or x.shape[1]
        read = slice(None) if context is None else slice(-(context + T), None)
        features, after = self.encoder(torch.cat([u, missing], dim=-1)[:, read], tuple(before))
        mean, quantiles = self._heads(
            full[:, -(self.config.window + T - 1) :], features[:, -T:], scale[:, -T:]
        )
        return mean, quantiles, (full[:, -self.config.window :], counts[:, -1:], *after)

    def _standardised(self, x: Tensor, recent: Tensor) -> tuple[Tensor, Tensor]:
        """Standardised values, gaps filled with the value before, and which were gaps; (B, T, n) each."""
        missing = x.isnan()
        z = ((x - self.mean) / self.deviation).clamp(-LARGEST, LARGEST)
        place = torch.arange(1, x.shape[1] + 1, device=x.device)[:, None].expand_as(x)
        place = place.masked_fill(missing, 0).cummax(dim=1).values
        known = torch.cat([recent[:, -1:], z.masked_fill(missing, 0)], dim=1)
        return known.gather(1, place), missing.to(z.dtype)

    def _moments(self, full: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation of the window that ends at each step, (B, T, n) each.

        What one has seen of a window says little of its deviation at first, so the part not observed counts as 1.
        """
        series = full[:, 1:].transpose(1, 2)
        centre = functional.avg_pool1d(series, self.config.window, stride=1)
        square = functional.avg_pool1d(series * series, self.config.window, stride=1)
        unseen = 1 - counts[:, None] / self.config.window
        variance = (square - centre * centre).clamp(min=0) + VARIANCE_FLOOR + unseen
        return centre.transpose(1, 2), variance.sqrt().transpose(1, 2)

    def _heads(self, recent: Tensor, features: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and quantiles from observations (B, L + T - 1, n), features (B, T, D) and scale (B, T, n)."""
        H, n = self.config.horizon, self.columns
        weights = self.linear.flatten(0, 1).unsqueeze(1)  # (n * H, 1, L)
        linear = functional.conv1d(recent.transpose(1, 2), weights, groups=n)
        linear = linear.view(len(linear), n, H, -1).permute(0, 3, 2, 1)  # (B, T, H, n)
        scale = scale.unsqueeze(2)
        mean = linear + scale * self.correction(features).view(*features.shape[:2], H, n)
        width = self.width(features).view(*features.shape[:2], H, n)
        width = scale * width.clamp(-LARGEST_LOG_WIDTH, LARGEST_LOG_WIDTH).exp()
        return mean, mean.detach().unsqueeze(2) + width.unsqueeze(2) * self.offsets()

    def offsets(self) -> Tensor:
        """b, (Q, H, n): where the quantiles lie around the mean, in deviations of the window."""
        middle = self.spread[self.middle : self.middle + 1]
        above = functional.softplus(self.spread[self.middle + 1 :]).cumsum(dim=0)
        below = functional.softplus(self.spread[: self.middle]).flip(0).cumsum(dim=0).flip(0)
        return torch.cat([middle - below, middle, middle + above])

    def raw(self, values: Tensor) -> Tensor:
        """Standardised values (..., n) in their own units."""
        return values * self.deviation + self.mean

    def forward(self, x: Tensor, future: Tensor, state: State) -> tuple[Tensor, State]:
        """Loss of the last forecasts of each row: mean squared error and pinball loss, of standardised values.

        Args:
            x: Observations (B, T, n).
            future: What came after the last k observations, (B, k + H - 1, n); NaN is not counted.
            state: Nothing: a row starts afresh.

        Returns:
            The loss, and nothing.
        """
        target = (future - self.mean) / self.deviation
        target = target.unfold(1, self.config.horizon, 1).transpose(2, 3)  # (B, k, H, n)
        mean, quantiles, _ = self.forecast(
            x, self.initial_state(len(x)), target.shape[1], self.context
        )
        return squared(mean, target) + self.pinball(quantiles, target), state

    def pinball(self, quantiles: Tensor, target: Tensor) -> Tensor:
        """Mean over quantiles (..., Q, H, n) of max(p e, (p - 1) e), e the error; its least is the true quantile."""
        levels = quantiles.new_tensor(self.config.quantiles)[:, None, None]
        target = target.unsqueeze(-3)
        error = target.nan_to_num() - quantiles
        return _mean_of_known(torch.maximum(levels * error, (levels - 1) * error), target)


def squared(forecast: Tensor, target: Tensor) -> Tensor:
    """Mean squared error where the target is not missing."""
    return _mean_of_known((forecast - target.nan_to_num()).square(), target)


def _mean_of_known(losses: Tensor, target: Tensor) -> Tensor:
    """Mean where the target is not missing; 0 if all of it is. A forecast that is NaN stays to be seen."""
    known = ~target.isnan().expand_as(losses)
    return losses.mul(known).sum() / known.sum().clamp(min=1)
