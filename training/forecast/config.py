"""A run of the forecasting task."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from training.config import Record, TrainedRun


class DataConfig(Record, frozen=True, kw_only=True):
    """Which series, and how it is cut.

    Attributes:
        name: A series of `training.forecast.data`, or `csv` for a file of the user's own.
        columns: Columns to forecast; empty for all that hold numbers.
        path: The file, for `csv` only: a header, then a row for each step in order of time; an empty cell is missing.
        licence: Terms of the file, for the model card.
        train: Share of the rows to learn from, the first ones; for `csv` only.
        valid: Share of the rows to choose on, the next ones; the rest is the test part. For `csv` only.
        period: One season, for the seasonal floor: in hours, whatever the step of a public series; in rows for `csv`.
        forecasts: Forecasts learnt from in each row of a batch; such a row has `window + forecasts - 1` observations.
        context: Observations that the encoder reads before the first of them; those of the window before go unread.
        missing: Share of the observations taken away in training, so that a missing value is nothing new.
    """

    name: Literal["etth1", "etth2", "ettm1", "csv"]
    columns: tuple[str, ...] = ()
    path: str = ""
    licence: str = "not stated"
    train: float = 0.6
    valid: float = 0.2
    period: Annotated[int, Meta(ge=1)] = 24
    forecasts: Annotated[int, Meta(ge=1)] = 16
    context: Annotated[int, Meta(ge=0)] = 96
    missing: Annotated[float, Meta(ge=0, lt=1)] = 0.02


class SkipConfig(Record, frozen=True, kw_only=True):
    """The linear part, in closed form; see `training.forecast.skip`. Penalties are per window learnt from.

    Attributes:
        relative: Whether it is linear in the difference from the latest observation; if not, from the mean.
        period: Steps of the season that the first solution repeats; 0 for none.
        ridge: Penalty of what every step of the horizon adds to that; above 0.
        own: Penalty of what every column adds to what all share; 0 if all columns share one solution.
    """

    relative: bool = True
    period: Annotated[int, Meta(ge=0)] = 0
    ridge: Annotated[float, Meta(gt=0)] = 0.02
    own: Annotated[float, Meta(ge=0)] = 0.0


class ModelConfig(Record, frozen=True, kw_only=True):
    """What surrounds the encoder; see `training.forecast.model`.

    Attributes:
        horizon: H, steps to forecast.
        window: L, latest observations that the linear part and the normalisation see.
        quantiles: Levels besides the mean, rising.
        skip: The linear part.
    """

    horizon: int
    window: int = 336
    quantiles: tuple[float, ...] = (0.1, 0.25, 0.5, 0.75, 0.9)
    skip: SkipConfig = SkipConfig()

    def __post_init__(self) -> None:
        """Check what the field types cannot say.

        Raises:
            ValueError: A size is not positive, or the quantiles do not rise between 0 and 1.
        """
        if self.horizon < 1 or self.window < 2:
            raise ValueError("horizon is at least 1 and window at least 2")
        levels = list(self.quantiles)
        if not levels or levels != sorted(set(levels)) or levels[0] <= 0 or levels[-1] >= 1:
            raise ValueError("quantiles must rise between 0 and 1")
        if self.skip.period > self.window:
            raise ValueError("skip.period is longer than window")


class ForecastRun(TrainedRun, frozen=True, kw_only=True, tag="forecast", tag_field="task"):
    """Train and export a forecaster."""

    data: DataConfig
    model: ModelConfig

    def __post_init__(self) -> None:
        """Check what the field types cannot say.

        Raises:
            ValueError: The encoder would read the very values that are to be forecast.
        """
        if self.encoder.bidirectional:
            raise ValueError("a bidirectional encoder has seen the future")
