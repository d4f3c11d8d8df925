"""Packed steps of the WebSocket: values as bytes in, outputs as bytes out, the same numbers as in lists."""

from __future__ import annotations

import asyncio
import json
import math
import re
import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import numpy.typing as npt
import pytest
from onnx import TensorProto, helper
from websockets.asyncio.client import ClientConnection, connect

from service.contract import Golden, GoldenCase, Tensor, Tensors
from tests import models
from tests.integration import planner
from tests.integration.conftest import EXPORTED
from tests.integration.inside import TIMEOUT_S, Running, Serve
from tests.integration.test_forecast import MODEL as FORECASTER
from tests.integration.test_forecast import persistence

Array = npt.NDArray[Any]
NUMBERS, WORDS, TWO = "accumulator", "language", "two"


def two(root: Path) -> Path:
    """`y = a + b`, of two inputs."""
    double = TensorProto.DOUBLE
    names = {name: helper.make_tensor_value_info(name, double, ["B", "T"]) for name in "aby"}
    lengths = helper.make_tensor_value_info("lengths", TensorProto.INT32, ["B"])
    nodes = [
        helper.make_node("Add", ["a", "b"], ["y"]),
        helper.make_node("Size", ["lengths"], ["n"]),
    ]
    graph = helper.make_graph(nodes, TWO, [names["a"], names["b"], lengths], [names["y"]])
    case = GoldenCase(inputs={"a": [1.0], "b": [2.0]}, split=(1,), outputs={"y": [3.0]}, state={})
    return models.write_model(
        root,
        TWO,
        graph,
        task=Tensors(),
        inputs=(Tensor(name="a", dtype="float64"), Tensor(name="b", dtype="float64")),
        outputs=(Tensor(name="y", dtype="float64"),),
        state=(),
        golden=Golden(cases=(case,)),
    )


@pytest.fixture(scope="module")
def model_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("packed")
    models.accumulator(root)
    models.language_model(root)
    models.character_model(root)
    models.tagger(root)
    persistence(root)
    two(root)
    for name in (planner.MODEL, "sentiment-stream"):
        shutil.copytree(EXPORTED / name, root / name)
    return root


@asynccontextmanager
async def connected(running: Running) -> AsyncIterator[ClientConnection]:
    async with connect(running.stream_url, compression=None, proxy=None) as connection:
        yield connection


async def opened(running: Running, model: str, *names: str) -> None:
    for name in names:
        answer = await running.http.put(f"/v1/sessions/{name}", json={"model": model})
        assert answer.status_code == 201, answer.text


async def ask(connection: ClientConnection, frame: Any) -> Any:
    await connection.send(msgpack.packb(frame))
    async with asyncio.timeout(TIMEOUT_S):
        data = await connection.recv()
    assert isinstance(data, bytes)
    return msgpack.unpackb(data)


async def stepped(connection: ClientConnection, *steps: dict[str, Any]) -> list[Any]:
    answer = await ask(connection, {"op": "step", "id": 1, "steps": list(steps)})
    assert answer["op"] == "stepped", answer
    replies: list[Any] = answer["replies"]
    return replies


def step(name: str, inputs: Any, **fields: Any) -> dict[str, Any]:
    return {"session": name, "inputs": inputs} | fields


def numbers(*values: float) -> bytes:
    return np.array(values, "<f8").tobytes()


def totals(reply: Any) -> list[float]:
    assert reply["results"].keys() == {"total"}
    return np.frombuffer(reply["results"]["total"], "<f8").tolist()


class Form:
    """What a client knows of a model from `GET /v1/models/{model}`."""

    def __init__(self, described: Any) -> None:
        self._described = described
        (self._input,) = described["inputs"]
        self._outputs = {each["name"]: each for each in described["outputs"]}

    def pack(self, values: Any) -> bytes:
        return np.array(values, _little(self._input)).tobytes()

    def read(self, results: dict[str, bytes]) -> dict[str, Array]:
        """Outputs (inputs, *shape)."""
        return {
            name: np.frombuffer(content, _little(self._outputs[name])).reshape(
                -1, *self._outputs[name]["shape"]
            )
            for name, content in results.items()
        }


def _little(tensor: Any) -> np.dtype[Any]:
    return np.dtype(tensor["dtype"]).newbyteorder("<")


async def form_of(running: Running, model: str) -> Form:
    (described,) = (await running.http.get(f"/v1/models/{model}")).json()["models"]
    return Form(described)


# The same as in lists.


def of_numbers(outputs: dict[str, Array]) -> Iterator[Any]:
    for total in outputs["total"].tolist():
        yield {"total": total}


def of_weekends(outputs: dict[str, Array]) -> Iterator[Any]:
    for scores in outputs["scores"]:
        best = int(scores.argmax())
        yield {"label": planner.ACTIVITIES[best], "score": float(scores[best])}


def of_forecasts(outputs: dict[str, Array]) -> Iterator[Any]:
    for mean, levels in zip(outputs["mean"], outputs["quantiles"], strict=True):
        quantiles = dict(zip(("0.1", "0.9"), levels.tolist(), strict=True))
        yield {"mean": mean.tolist(), "quantiles": quantiles}


def of_words(vocabulary: str | list[str]) -> Callable[[dict[str, Array]], Iterator[Any]]:
    def read(outputs: dict[str, Array]) -> Iterator[Any]:
        best, scores, all_ = (outputs[n] for n in ("top_indices", "top_scores", "logsumexp"))
        assert outputs.keys() == {"top_indices", "top_scores", "logsumexp"}
        for i in range(len(all_)):
            yield [
                {
                    "token": vocabulary[best[i, k]],
                    "id": int(best[i, k]),
                    "score": math.exp(float(scores[i, k]) - float(all_[i])),
                }
                for k in range(5)
            ]

    return read


TASKS: dict[str, tuple[str, list[list[Any]], Callable[[Any], Iterator[Any]]]] = {
    "tensors": (NUMBERS, [[1.0], [2.5, -1e300, 3.0], [4.0]], of_numbers),
    "labels": (planner.MODEL, [[[1, 0], [0, 1]], [[0, 1]], [[0, 1], [1, 0]]], of_weekends),
    "forecast": (FORECASTER, [[[1, 2]], [[math.nan, 4], [5, math.nan]]], of_forecasts),
    "words": (WORDS, [[2, 3, 4], [11], [5, 0]], of_words(models.WORDS)),
    "characters": ("characters", [[1, 2], [3]], of_words(models.CHARACTERS)),
}


@pytest.mark.parametrize(("model", "inputs", "read"), TASKS.values(), ids=TASKS)
async def test_outputs_are_those_that_answers_in_lists_are_made_of(
    running: Running, model: str, inputs: list[list[Any]], read: Callable[[Any], Iterator[Any]]
) -> None:
    """A session in lists and a packed one, each alone in its batches; then each answer again in the other form."""
    await opened(running, model, "lists", "packed")
    form = await form_of(running, model)
    async with connected(running) as connection:
        seq = 1
        for values in inputs:
            (listed,) = await stepped(connection, step("lists", values, seq=seq))
            (packed,) = await stepped(connection, step("packed", form.pack(values), seq=seq))
            assert listed | {"results": 0} == packed | {"results": 0, "session": "lists"}
            assert (packed["first"], packed["seq"]) == (seq, seq + len(values) - 1)
            assert list(read(form.read(packed["results"]))) == listed["results"]

            (listed_again,) = await stepped(connection, step("packed", values, seq=seq))
            (packed_again,) = await stepped(connection, step("lists", form.pack(values), seq=seq))
            assert (listed_again["duplicate"], packed_again["duplicate"]) == (True, True)
            assert listed_again["results"] == listed["results"]
            assert packed_again["results"] == packed["results"]
            seq += len(values)


async def test_steps_of_many_sessions_are_each_answered_for_themselves(running: Running) -> None:
    names = [f"s{number}" for number in range(40)]
    await opened(running, NUMBERS, *names)
    async with connected(running) as connection:
        for turn in range(3):
            frame = [
                step(name, numbers(*range(number % 5 + 1))) for number, name in enumerate(names)
            ]
            replies = await stepped(connection, *frame)
            for number, (name, reply) in enumerate(zip(names, replies, strict=True)):
                count = number % 5 + 1
                before = turn * sum(range(count))
                assert reply["session"] == name
                assert (reply["first"], reply["seq"]) == (turn * count + 1, (turn + 1) * count)
                assert totals(reply) == [before + sum(range(n + 1)) for n in range(count)]


async def test_steps_that_are_alike_each_get_all_their_outputs(running: Running) -> None:
    names = [f"s{number}" for number in range(9)]
    await opened(running, WORDS, *names)
    form = await form_of(running, WORDS)
    ids = [[number, (5 * number + 2) % 12, 3] for number in range(9)]
    async with connected(running) as connection:
        for seq in (1, 4):
            frame = [
                step(name, form.pack(each), seq=seq) for name, each in zip(names, ids, strict=True)
            ]
            packed = await stepped(connection, *frame)
            listed = await stepped(
                connection,
                *(step(name, each, seq=seq) for name, each in zip(names, ids, strict=True)),
            )
            for name, one, due in zip(names, packed, listed, strict=True):
                assert (one["session"], one["first"], one["duplicate"]) == (name, seq, False)
                assert due["duplicate"]
                assert list(of_words(models.WORDS)(form.read(one["results"]))) == due["results"]
    assert len({one["results"]["logsumexp"] for one in packed}) == len(names)


async def test_a_frame_may_hold_both_forms_and_several_models(running: Running) -> None:
    await opened(running, NUMBERS, "a", "b", "c", "d")
    await opened(running, WORDS, "words", "ids")
    await opened(running, "sentiment-stream", "review")
    ids = np.array([2, 3], "<i8").tobytes()
    async with connected(running) as connection:
        for turn in range(1, 4):
            a, words, b, c, packed, review, d = await stepped(
                connection,
                step("a", numbers(1.0)),
                step("words", ["the", "cat"], parameters={"top_k": 1}),
                step("b", [1.0, 2.0]),
                step("c", numbers(1.0, 2.0)),
                step("ids", ids),
                step("review", ["good"]),
                step("d", [1.0]),
            )
            assert (totals(a), totals(c)) == ([turn], [3 * turn - 2, 3 * turn])
            assert b["results"] == [{"total": 3.0 * turn - 2}, {"total": 3.0 * turn}]
            assert d["results"] == [{"total": turn}]
            best = np.frombuffer(packed["results"]["top_indices"], "<i8").reshape(2, -1)[:, 0]
            assert best.tolist() == [answer[0]["id"] for answer in words["results"]]
            assert review["results"][0][0].keys() == {"label", "score"}


async def test_sessions_that_were_paged_out_are_found(serve: Serve) -> None:
    async with serve(max_resident=2) as running:
        await opened(running, NUMBERS, "a", "b", "c", "d")
        async with connected(running) as connection:
            for turn in range(1, 4):
                for pair in ("ab", "cd"):
                    replies = await stepped(
                        connection, *(step(name, numbers(1.0, 1.0)) for name in pair)
                    )
                    assert [totals(reply) for reply in replies] == [[2 * turn - 1, 2 * turn]] * 2


# Once.


async def test_a_step_sent_again_is_applied_once_and_answered_by_the_same_bytes(
    running: Running,
) -> None:
    await opened(running, NUMBERS, "a", "b")
    steps = [step("a", numbers(1.0, 2.0), seq=1), step("b", numbers(5.0), seq=1)]
    async with connected(running) as connection:
        first = await stepped(connection, *steps)
        again = await stepped(connection, *steps)
        assert [reply["duplicate"] for reply in (*first, *again)] == [False, False, True, True]
        assert [reply["results"] for reply in again] == [reply["results"] for reply in first]
        other, more = await stepped(
            connection, step("a", numbers(1.0, 2.5), seq=1), step("b", numbers(5.0, 0.0), seq=1)
        )
        assert other["error"]["code"] == more["error"]["code"] == "payload_mismatch"
        a, b = await stepped(connection, *(step(name, numbers(0.0)) for name in "ab"))
        assert (totals(a), totals(b)) == ([3.0], [5.0])


# What is wrong.

_TOKEN = np.array([3], "<i8").tobytes()
BAD: dict[str, tuple[str, bytes, str, str, int, str]] = {
    "nothing": (NUMBERS, b"", "there are no inputs", "$.inputs", 422, "invalid"),
    "half a number": (NUMBERS, bytes(12), "12 bytes .* of 8 bytes: x, float64 of shape", "$.inputs", 422, "invalid"),
    "NaN": (NUMBERS, numbers(1.0, math.nan), "x holds NaN or infinity", "$.inputs[1]", 422, "invalid"),
    "infinity": (NUMBERS, numbers(-math.inf), "x holds NaN or infinity", "$.inputs[0]", 422, "invalid"),
    "too many": (NUMBERS, bytes(8 * 1025), "1025 inputs, at most 1024", "$.inputs", 413, "too_large"),
    "half a vector": (planner.MODEL, bytes(12), "12 bytes .* of 8 bytes: weather, float32", "$.inputs", 422, "invalid"),
    "an infinite vector": (
        planner.MODEL, np.array([[1, 0], [0, np.inf]], "<f4").tobytes(),
        "weather holds NaN or infinity", "$.inputs[1]", 422, "invalid",
    ),
    "an infinite observation": (
        FORECASTER, np.array([[1, np.nan], [0, -np.inf]], "<f4").tobytes(),
        "infinite or too large", "$.inputs[1][1]", 422, "invalid",
    ),
    "a token above the vocabulary": (
        WORDS, _TOKEN + np.array([12], "<i8").tobytes(), "token 12 is out of range", "$.inputs[1]", 422, "invalid",
    ),
    "a token below zero": (
        WORDS, np.array([-1], "<i8").tobytes(), "token -1 is out of range", "$.inputs[0]", 422, "invalid",
    ),
    "tokens of other size": (WORDS, np.array([3], "<i4").tobytes(), "4 bytes .* int64", "$.inputs", 422, "invalid"),
    "a model with two inputs": (TWO, bytes(8), r"takes several \(a, b\)", "$.inputs", 422, "invalid"),
    "a model of texts": ("tagger", bytes(8), "takes texts", "$.inputs", 422, "invalid"),
    "another model of texts": ("sentiment-stream", bytes(8), "takes texts", "$.inputs", 422, "invalid"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("model", "content", "detail", "path", "status", "code"), BAD.values(), ids=BAD
)
async def test_one_that_is_refused_is_refused_alone(
    running: Running, model: str, content: bytes, detail: str, path: str, status: int, code: str
) -> None:
    """Alone, and among good ones of its model and of others; nothing of it is applied."""
    await opened(running, model, "bad", "mate")
    await opened(running, NUMBERS, "a", "b")
    async with connected(running) as connection:
        for turn in range(1, 3):
            (alone,) = await stepped(connection, step("bad", content))
            replies = await stepped(
                connection,
                step("a", numbers(1.0)),
                step("bad", content),
                step("b", numbers(1.0, 1.0)),
                step("mate", content),
            )
            for reply in (alone, replies[1], replies[3]):
                error = reply["error"]
                assert (error["status"], error["code"], error["path"]) == (status, code, path)
                assert re.search(detail, error["detail"]), error
            assert (totals(replies[0]), totals(replies[2])) == ([turn], [2 * turn - 1, 2 * turn])
    assert (await running.http.get("/v1/sessions/bad")).json()["seq"] == 0


async def test_outputs_are_not_chosen_from(running: Running) -> None:
    await opened(running, WORDS, "a", "b", "c")
    async with connected(running) as connection:
        alone, *together = (
            *await stepped(connection, step("a", _TOKEN, parameters={"top_k": 2})),
            *await stepped(
                connection,
                step("a", _TOKEN, parameters={"top_k": 2}),
                step("b", _TOKEN),
                step("c", _TOKEN, parameters={}),
            ),
        )
        for reply in (alone, together[0]):
            assert reply["error"]["path"] == "$.parameters.top_k"
            assert "all of the model's outputs" in reply["error"]["detail"]
        assert together[1]["results"] == together[2]["results"]


async def test_json_has_no_packed_inputs(running: Running) -> None:
    """A text is no list, be it base64."""
    await opened(running, NUMBERS, "a")
    answer = await running.http.post("/v1/sessions/a/steps", json={"inputs": "AAAAAAAA8D8="})
    problem = answer.json()
    assert (problem["detail"], problem["path"]) == ("Expected `array`, got `str`", "$.inputs")
    async with connected(running) as connection:
        await connection.send(
            json.dumps({"op": "step", "id": 7, "steps": [step("a", "AAAAAAAA8D8=")]})
        )
        async with asyncio.timeout(TIMEOUT_S):
            refusal = json.loads(await connection.recv())
    assert (refusal["op"], refusal["id"]) == ("error", 7)
    error = refusal["error"]
    assert (error["detail"], error["path"]) == (
        "Expected `array`, got `str`",
        "$.steps[0].inputs",
    )


async def test_bytes_are_no_input_of_a_list_and_no_prompt(running: Running) -> None:
    await opened(running, NUMBERS, "a")
    await opened(running, WORDS, "words")
    async with connected(running) as connection:
        (reply,) = await stepped(connection, step("a", [numbers(1.0)]))
        assert "got binary data" in reply["error"]["detail"]
        answer = await ask(
            connection, {"op": "generate", "id": 1, "session": "words", "inputs": _TOKEN}
        )
        assert (answer["op"], answer["error"]["path"]) == ("error", "$.inputs")
