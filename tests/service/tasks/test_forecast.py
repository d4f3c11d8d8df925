from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from service.contract import CONFIG_FILE, ContractError, Forecast, Tensor, decode_config, encode
from service.errors import Invalid
from service.tasks.forecast import ForecastTask
from service.tasks.protocol import Parameters, join_pieces

COLUMNS = ("load", "price", "temperature")


def config(accumulator: Path, columns: tuple[str, ...] = COLUMNS) -> dict[str, Any]:
    """config.json of a forecaster, two steps ahead."""
    width = len(columns)
    spec = Forecast(columns=columns, horizon=2, quantiles=(0.1, 0.5, 0.95))
    base = msgspec.structs.replace(
        decode_config((accumulator / CONFIG_FILE).read_bytes()),
        task=spec,
        inputs=(Tensor(name="observations", dtype="float32", shape=(width,)),),
        outputs=(
            Tensor(name="mean", dtype="float32", shape=(2, width)),
            Tensor(name="quantiles", dtype="float32", shape=(3, 2, width)),
        ),
    )
    loaded: dict[str, Any] = json.loads(encode(base))
    return loaded


def task_of(accumulator: Path, columns: tuple[str, ...] = COLUMNS) -> ForecastTask:
    read = decode_config(json.dumps(config(accumulator, columns)).encode())
    assert isinstance(read.task, Forecast)
    return ForecastTask(read, read.task)


@pytest.fixture
def task(accumulator: Path) -> ForecastTask:
    return task_of(accumulator)


def test_an_observation_is_one_time_step(task: ForecastTask) -> None:
    array = task.piece([1, -2.5, 3e4], "$")["observations"]
    assert (array.dtype, array.tolist()) == (np.float32, [[1, -2.5, 3e4]])


@pytest.mark.parametrize("missing", [None, math.nan])
def test_a_missing_value_is_null_or_nan(task: ForecastTask, missing: float | None) -> None:
    array = task.piece([1, missing, 3], "$")["observations"]
    assert np.isnan(array).tolist() == [[False, True, False]]


def test_of_a_single_column_the_number_alone_will_do(accumulator: Path) -> None:
    task = task_of(accumulator, ("OT",))
    for value in (7, [7.0]):
        assert task.piece(value, "$")["observations"].tolist() == [[7]]
    assert np.isnan(task.piece(None, "$")["observations"]).all()


@pytest.mark.parametrize(
    ("value", "message", "path"),
    [
        (5, "a list is due here, got a number", "$.inputs[0]"),
        ([], "the list is empty", "$.inputs[0]"),
        ([1, 2], r"3 is due here \(load, price, temperature\), got one of 2", "$.inputs[0]"),
        ([1, 2, 3, 4], "got one of 4", "$.inputs[0]"),
        ([1, "2", 3], "a number or null is due here, got a string", "$.inputs[0][1]"),
        ([1, 2, True], "got a boolean", "$.inputs[0][2]"),
        ([[1], 2, 3], "got a list", "$.inputs[0][0]"),
        ([1, 2, math.inf], "infinite or too large", "$.inputs[0][2]"),
        ([1, -math.inf, 2], "infinite or too large", "$.inputs[0][1]"),
        ([1e39, 1, 2], "infinite or too large", "$.inputs[0][0]"),
        ([-(10**400), 1, 2], "infinite or too large", "$.inputs[0][0]"),
    ],
)
def test_what_is_no_observation_is_refused(
    task: ForecastTask, value: Any, message: str, path: str
) -> None:
    with pytest.raises(Invalid, match=message) as error:
        task.piece(value, "$.inputs[0]")
    assert error.value.extra == {"path": path}


def test_a_whole_input_is_answered_after_its_last_observation(task: ForecastTask) -> None:
    chunk = task.whole([[1, 2, 3], [4, None, 6]], "$")
    assert chunk.arrays["observations"].shape == (2, 3)
    assert chunk.ends.tolist() == [1]
    with pytest.raises(Invalid, match="got a number") as error:
        task.whole([[1, 2, 3], 4], "$.inputs[2]")
    assert error.value.extra == {"path": "$.inputs[2][1]"}


def test_a_stream_is_answered_after_each_observation(task: ForecastTask) -> None:
    chunk = join_pieces([task.piece([1, 2, 3], "$"), task.piece([4, 5, 6], "$")], Parameters())
    assert chunk.ends.tolist() == [0, 1]


def test_a_forecast_has_a_list_for_each_step_of_the_horizon(task: ForecastTask) -> None:
    mean = np.arange(12, dtype=np.float32).reshape(2, 2, 3)
    quantiles = np.stack([mean - 1, mean, mean + 1], axis=1)
    first, second = task.answers((), {"mean": mean, "quantiles": quantiles}, Parameters())
    assert first == {
        "mean": [[0, 1, 2], [3, 4, 5]],
        "quantiles": {
            "0.1": [[-1, 0, 1], [2, 3, 4]],
            "0.5": [[0, 1, 2], [3, 4, 5]],
            "0.95": [[1, 2, 3], [4, 5, 6]],
        },
    }
    assert second["mean"] == [[6, 7, 8], [9, 10, 11]]
    last = {"mean": mean[1:], "quantiles": quantiles[1:]}
    assert task.whole_answer(None, last, Parameters()) == second


def test_there_is_nothing_to_choose_from(task: ForecastTask) -> None:
    task.check(Parameters())
    with pytest.raises(Invalid, match="no candidates") as error:
        task.check(Parameters(top_k=3))
    assert error.value.extra == {"path": "$.parameters.top_k"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"columns": ["a", "b"]}, "2 columns are due as float32, the input is float32 of shape"),
        ({"quantiles": [0.5, 0.1, 0.95]}, "do not rise"),
        ({"quantiles": [0.1, 0.1, 0.95]}, "do not rise"),
        ({"quantiles": [0.1, 0.5, 1]}, "quantiles"),
        ({"quantiles": [0.1, 0.5]}, r"output quantiles of shape \(2, 2, 3\)"),
        ({"horizon": 5}, r"output mean of shape \(5, 3\)"),
        ({"columns": []}, "columns"),
    ],
)
def test_a_forecast_that_its_graph_does_not_give_is_refused(
    accumulator: Path, change: dict[str, Any], message: str
) -> None:
    spoilt = config(accumulator)
    spoilt["task"] |= change
    with pytest.raises(ContractError, match=message):
        decode_config(json.dumps(spoilt).encode())
