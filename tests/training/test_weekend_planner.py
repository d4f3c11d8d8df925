from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.contract import decode_config, decode_golden
from training.export import package
from training.export.runtime import LoadedGraph
from training.weekend_planner import bundle as weekend_planner
from training.weekend_planner.bundle import ACTIVITIES, bundle, plan, vectors
from training.weekend_planner.config import WeekendPlannerRun

RUN = WeekendPlannerRun(name="weekend-planner", version=1, description="A test")
weather = st.lists(st.sampled_from(["sunny", "rainy"]), min_size=1, max_size=40)


@pytest.fixture(scope="module")
def graph() -> LoadedGraph:
    planner = bundle(RUN, "")
    return LoadedGraph(planner.model, planner.config)


def test_the_worked_example_of_a_rainy_weekend_after_the_museum() -> None:
    assert plan(["rainy"]) == ["movies"]
    outputs, state = weekend_planner.step(vectors(["rainy"]), {"h": np.eye(1, 6)})
    assert state["h"].tolist() == [[0, 0, 0, 0, 1, 0]]
    assert outputs["scores"].tolist() == [[0, 1, 0]]


@settings(deadline=None)
@given(weather, st.data())
def test_the_graph_plans_by_the_rule_in_any_chunks(
    graph: LoadedGraph, weekends: list[str], data: st.DataObject
) -> None:
    cut = data.draw(st.integers(0, len(weekends)))
    state, found = graph.initial_state(1), []
    for chunk in (weekends[:cut], weekends[cut:]):
        if chunk:
            inputs = {"weather": vectors(chunk)["weather"][None]}
            outputs, state = graph.run(inputs, np.array([len(chunk)]), state)
            found += outputs["scores"][0].tolist()
    exact = [[float(name == activity) for name in ACTIVITIES] for activity in plan(weekends)]
    assert found == exact


@settings(deadline=None)
@given(st.lists(weather, min_size=2, max_size=6))
def test_rows_of_a_batch_do_not_mix(graph: LoadedGraph, rows: list[list[str]]) -> None:
    lengths = np.array([len(row) for row in rows])
    batch = np.zeros((len(rows), lengths.max(), 2), np.float32)
    for i, row in enumerate(rows):
        batch[i, : len(row)] = vectors(row)["weather"]
    outputs, _ = graph.run({"weather": batch}, lengths, graph.initial_state(len(rows)))
    for i, row in enumerate(rows):
        named = [ACTIVITIES[place] for place in outputs["scores"][i, : len(row)].argmax(axis=1)]
        assert named == plan(row)


def test_its_weights_are_integers() -> None:
    for initializer in onnx.load_from_string(bundle(RUN, "").model).graph.initializer:
        values = onnx.numpy_helper.to_array(initializer)
        assert np.array_equal(values, np.round(values))


def test_the_export_is_exact_and_complete(tmp_path: Path) -> None:
    directory = package.write(bundle(RUN, "make it"), tmp_path)
    config = decode_config((directory / "config.json").read_bytes())
    assert config.tolerance == 0
    assert [m.value for m in config.provenance.metrics] == [1.0]
    assert config.state[0].initial_array().tolist() == [[1, 0, 0, 0, 0, 0]]
    golden = decode_golden((directory / "golden.json").read_bytes())
    lengths = [len(case.inputs["weather"]) for case in golden.cases]
    assert sorted(set(lengths)) == [1, 2, 3, 4, 5]
    assert len(golden.cases) == 2 + 4 + 8 + 16 + 32
    assert json.loads((directory / "config.json").read_text())["task"]["name"] == "labels"
