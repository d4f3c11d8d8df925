"""Forecasts over HTTP: missing values as null and as NaN, and the same answers one-shot and streamed."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from websockets.asyncio.client import connect

from service.contract import Batching, Forecast, Golden, GoldenCase, StateTensor, Tensor
from service.settings import Settings
from tests.integration import inside
from tests.models import write_model

MODEL = "persistence"


def persistence(root: Path) -> Path:
    """Two columns, two steps ahead: what was seen last stays, with quantiles one below and one above."""
    nodes = [
        helper.make_node("Unsqueeze", ["last", "axis1"], ["before"]),
        helper.make_node("IsNaN", ["x"], ["gap"]),
        helper.make_node("Where", ["gap", "before", "x"], ["seen"]),
        helper.make_node("Squeeze", ["seen", "axis1"], ["last_out"]),
        helper.make_node("Unsqueeze", ["seen", "axis2"], ["step"]),
        helper.make_node("Concat", ["step", "step"], ["mean"], axis=2),
        helper.make_node("Unsqueeze", ["mean", "axis2"], ["centre"]),
        helper.make_node("Add", ["centre", "offsets"], ["quantiles"]),
    ]
    constants = {
        "axis1": np.array([1]),
        "axis2": np.array([2]),
        "offsets": np.array([-1, 1], np.float32).reshape(2, 1, 1),
    }
    shapes = {
        "x": ["B", "T", 2],
        "last": ["B", 2],
        "last_out": ["B", 2],
        "mean": ["B", "T", 2, 2],
        "quantiles": ["B", "T", 2, 2, 2],
    }
    info = {
        name: helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in shapes.items()
    }
    lengths = helper.make_tensor_value_info("lengths", TensorProto.INT32, ["B"])
    graph = helper.make_graph(
        nodes,
        MODEL,
        [info["x"], lengths, info["last"]],
        [info["mean"], info["quantiles"], info["last_out"]],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    golden = GoldenCase(
        inputs={"x": [[1.5, None]]},
        split=(1,),
        outputs={"mean": [[[1.5, 0], [1.5, 0]]]},
        state={"last_out": [1.5, 0]},
    )
    return write_model(
        root,
        MODEL,
        graph,
        task=Forecast(columns=("load", "price"), horizon=2, quantiles=(0.1, 0.9)),
        inputs=(Tensor(name="x", dtype="float32", shape=(2,)),),
        outputs=(
            Tensor(name="mean", dtype="float32", shape=(2, 2)),
            Tensor(name="quantiles", dtype="float32", shape=(2, 2, 2)),
        ),
        state=(StateTensor(input_name="last", output_name="last_out", shape=(2,)),),
        golden=Golden(cases=(golden,)),
        # The state is of one time step, so the model is told no more at once.
        batching=Batching(max_batch_size=4, max_chunk_length=1, max_batch_tokens=4),
    )


def forecast(load: float, price: float) -> dict[str, Any]:
    below, above = ([[load + d, price + d]] * 2 for d in (-1, 1))
    return {"mean": [[load, price]] * 2, "quantiles": {"0.1": below, "0.9": above}}


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[inside.Running]:
    persistence(tmp_path)
    settings = Settings(models=tmp_path, port=0, log_level="warning")
    async with inside.serving(settings) as running:
        yield running


async def test_a_whole_series_is_answered_after_its_end(running: inside.Running) -> None:
    body = {"inputs": [[[1, 2], [3, None]], [[5, 6.5]]]}
    answer = await running.http.post(f"/v1/models/{MODEL}/predict", json=body)
    assert answer.status_code == 200, answer.text
    assert answer.json()["results"] == [forecast(3, 2), forecast(5, 6.5)]


async def test_a_session_takes_only_what_is_new(running: inside.Running) -> None:
    await running.http.post("/v1/sessions", json={"model": MODEL, "session": "mine"})
    for inputs, due in (
        ([[1, 2]], [forecast(1, 2)]),
        ([[None, 4], [5, None]], [forecast(1, 4), forecast(5, 4)]),
        ([[None, None]], [forecast(5, 4)]),
    ):
        answer = await running.http.post("/v1/sessions/mine/steps", json={"inputs": inputs})
        assert answer.status_code == 200, answer.text
        assert answer.json()["results"] == due


async def test_messagepack_says_nan_or_nil(running: inside.Running) -> None:
    await running.http.post("/v1/sessions", json={"model": MODEL, "session": "mine"})
    url = str(running.http.base_url).replace("http", "ws") + "/v1/stream"
    async with connect(url, proxy=None) as socket:
        for number, (value, due) in enumerate(
            (
                ([1.0, 2.0], forecast(1, 2)),
                ([math.nan, 3.0], forecast(1, 3)),
                ([4, None], forecast(4, 3)),
            )
        ):
            step = {"session": "mine", "inputs": [value]}
            await socket.send(msgpack.packb({"op": "step", "id": number, "steps": [step]}))
            data = await socket.recv()
            assert isinstance(data, bytes)
            (reply,) = msgpack.unpackb(data)["replies"]
            assert reply["results"] == [due]


@pytest.mark.parametrize(
    ("body", "message", "path"),
    [
        ('{"inputs": [[[1, "2"]]]}', "got a string", "$.inputs[0][0][1]"),
        ('{"inputs": [[[1]]]}', "got one of 1", "$.inputs[0][0]"),
        ('{"inputs": [[[1, 1e39]]]}', "too large", "$.inputs[0][0][1]"),
        (
            '{"inputs": [[[1, 2]]], "parameters": {"top_k": 2}}',
            "no candidates",
            "$.parameters.top_k",
        ),
    ],
)
async def test_what_is_no_observation_is_refused_with_its_place(
    running: inside.Running, body: str, message: str, path: str
) -> None:
    answer = await running.http.post(
        f"/v1/models/{MODEL}/predict", content=body, headers={"content-type": "application/json"}
    )
    assert answer.status_code == 422
    assert message in answer.json()["detail"]
    assert answer.json()["path"] == path


async def test_json_has_no_nan(running: inside.Running) -> None:
    answer = await running.http.post(
        f"/v1/models/{MODEL}/predict",
        content='{"inputs": [[[1, NaN]]]}',
        headers={"content-type": "application/json"},
    )
    assert 400 <= answer.status_code < 500
