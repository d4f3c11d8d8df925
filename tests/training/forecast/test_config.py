from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from training.config import ConfigError
from training.runs import parse

CONFIG = Path(__file__).parents[3] / "training" / "configs" / "forecast_gru.toml"


@pytest.mark.parametrize(
    ("section", "key", "value", "message"),
    [
        ("model", "horizon", 0, "horizon is at least 1"),
        ("model", "quantiles", [0.5, 0.1], "quantiles must rise"),
        ("model", "skip", {"period": 500}, r"skip\.period is longer than window"),
        ("model", "skip", {"ridge": 0.0}, r"`float` > 0.0 - at `\$\.model\.skip\.ridge`"),
        ("data", "forecasts", 0, r"`int` >= 1 - at `\$\.data\.forecasts`"),
        ("data", "missing", 1.0, r"`float` < 1.0 - at `\$\.data\.missing`"),
    ],
)
def test_a_forecaster_that_cannot_be_is_refused(
    section: str, key: str, value: object, message: str
) -> None:
    wrong = tomllib.loads(CONFIG.read_text())
    wrong[section][key] = value
    with pytest.raises(ConfigError, match=message):
        parse(wrong)
