"""Steps that want few candidates beside steps that want many: each has its own, whoever shares the batch."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from service.contract import ALL_SCORES, LOGITS, TOP_K, Batching
from service.engine.engine import Engine
from tests import ledger, models
from tests.engines import PATIENCE_S, WatchedGraph, load_graph, running, turned, until

OUTPUTS = ("top_scores", "top_indices", "logsumexp")
MOST = models.TOP_K
SHIPPED = Path(__file__).parents[3] / "exported" / "next-word-lstm" / "1"


@pytest.fixture(params=["told", "not to be told"])
def directory(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A model that takes `top_k`, and one that always gives all."""
    return (ledger.write if request.param == "told" else models.language_model)(tmp_path)


def ranks(graph: WatchedGraph) -> list[list[int]]:
    return [run.feeds[TOP_K].tolist() for run in graph.runs if TOP_K in run.feeds]


async def stepped(engine: Engine, tokens: list[int], top_k: int) -> dict[str, np.ndarray]:
    slot = engine.take()
    assert slot is not None
    inputs, keep = {"tokens": np.array(tokens)}, np.arange(len(tokens))
    _, future = engine.submit(slot, inputs, keep, OUTPUTS, np.inf, top_k=top_k)
    outputs = await asyncio.wait_for(future, PATIENCE_S)
    engine.give_back(slot)
    return outputs


async def grouped(
    engine: Engine, tokens: list[list[int]], top_k: int
) -> list[dict[str, np.ndarray]]:
    """Outputs of each row, whether it ended with the others or alone."""
    slots = [engine.take() for _ in tokens]
    ended: dict[int, Any] = {}

    def end(first: int, outputs: dict[str, np.ndarray]) -> None:
        for row in range(len(outputs[OUTPUTS[0]])):
            ended[first + row] = {name: values[row].copy() for name, values in outputs.items()}

    engine.begin_group(
        [slot for slot in slots if slot is not None],
        {"tokens": np.array(tokens)},
        OUTPUTS,
        np.inf,
        end,
        ended.__setitem__,
        top_k=top_k,
    )
    await asyncio.wait_for(until(lambda: len(ended) == len(tokens)), PATIENCE_S)
    return [ended[place] for place in range(len(tokens))]


def same(found: dict[str, np.ndarray], whole: dict[str, np.ndarray], top_k: int) -> None:
    count = top_k or MOST
    assert found["top_indices"].tolist() == whole["top_indices"][..., :count].tolist()
    assert found["top_scores"].tobytes() == whole["top_scores"][..., :count].tobytes()
    assert found["logsumexp"].tobytes() == whole["logsumexp"].tobytes()


@pytest.mark.parametrize("text", [[2], [2, 3, 4, 5, 6]])
async def test_of_steps_in_one_batch_each_has_as_many_as_it_wants(
    directory: Path, text: list[int]
) -> None:
    graph = load_graph(directory)
    async with running(graph) as engine:
        whole = await stepped(engine, text, 0)
        assert whole["top_indices"].shape == (len(text), MOST)
        graph.shut()
        plug = asyncio.create_task(stepped(engine, [2], 1))
        await graph.entered()
        graph.runs.clear()
        counts = [1, 3, 0, MOST, 2]
        jobs = [asyncio.create_task(stepped(engine, text, count)) for count in counts]
        group = asyncio.create_task(grouped(engine, [text] * 3, 2))
        await turned()
        graph.open()
        await plug
        for job, count in zip(jobs, counts, strict=True):
            same(await job, whole, count)
        for found in await group:
            same(found, whole, 2)
        # A longer text may be cut into chunks.
        assert {len(run.lengths) for run in graph.runs} == {8}


async def test_the_model_is_asked_for_as_many_as_the_batch_needs(tmp_path: Path) -> None:
    graph = load_graph(ledger.write(tmp_path))
    async with running(graph) as engine:
        for count in (1, 3, 0):
            await stepped(engine, [2], count)
        await grouped(engine, [[2], [3]], 4)
        assert ranks(graph) == [[1], [3], [MOST], [4]]


async def test_a_text_cut_into_chunks_has_as_many_of_each(tmp_path: Path) -> None:
    graph = load_graph(ledger.write(tmp_path), Batching(max_chunk_length=2))
    async with running(graph) as engine:
        text = [2, 3, 4, 5, 6]
        same(await stepped(engine, text, 2), await stepped(engine, text, 0), 2)


async def test_scores_of_all_words_are_made_when_a_step_of_the_batch_wants_them() -> None:
    graph = load_graph(SHIPPED)
    async with running(graph) as engine:
        few = await stepped(engine, [5, 6, 7], 3)
        graph.shut()
        plug = asyncio.create_task(stepped(engine, [2], 1))
        await graph.entered()
        beside = asyncio.create_task(stepped(engine, [5, 6, 7], 3))
        slot = engine.take()
        assert slot is not None
        inputs, keep = {"tokens": np.array([5, 6, 7])}, np.arange(3)
        _, whole = engine.submit(slot, inputs, keep, (LOGITS,), np.inf)
        await turned()
        graph.open()
        await plug
        logits = (await asyncio.wait_for(whole, PATIENCE_S))[LOGITS]
        assert [run.feeds[ALL_SCORES].tolist() for run in graph.runs] == [[0], [0], [1]]
        assert logits.shape == (3, graph.config.task.vocab_size)
        shared = await beside
        assert np.take_along_axis(logits, shared["top_indices"], axis=1).tobytes() == (
            shared["top_scores"].tobytes()
        )
        assert shared["top_indices"].tolist() == few["top_indices"].tolist()
        engine.give_back(slot)


async def test_a_model_that_gives_all_it_has_is_not_asked(tmp_path: Path) -> None:
    graph = load_graph(models.language_model(tmp_path))
    async with running(graph) as engine:
        await stepped(engine, [2], 3)
        assert not ranks(graph)


def test_the_first_few_are_those_of_all_though_many_are_alike() -> None:
    """What the exported operator promises: of equals the first comes first, however many are asked for."""
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("TopK", ["x", TOP_K], ["scores", "places"])],
        "best",
        [
            value("x", TensorProto.FLOAT, ["R", 1000]),
            value(TOP_K, TensorProto.INT64, [1]),
        ],
        [
            value("scores", TensorProto.FLOAT, ["R", "K"]),
            value("places", TensorProto.INT64, ["R", "K"]),
        ],
        [numpy_helper.from_array(np.array([64]), TOP_K)],
    )
    opsets = [helper.make_opsetid("", 18)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    x = np.random.default_rng(3).integers(0, 40, (50, 1000)).astype(np.float32)

    def best(**more: Any) -> list[np.ndarray]:
        return [np.asarray(each) for each in session.run(None, {"x": x, **more})]

    scores, places = best()
    assert scores.shape == (50, 64)
    for count in (1, 2, 3, 4, 5, 16, 63, 64):
        few, where = best(**{TOP_K: np.array([count])})
        assert (few == scores[:, :count]).all()
        assert (where == places[:, :count]).all()
