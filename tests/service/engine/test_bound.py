from __future__ import annotations

import mmap
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from service.contract import (
    ALL_SCORES,
    CONFIG_FILE,
    GOLDEN_FILE,
    MODEL_FILE,
    TOP_K,
    ContractError,
    ModelConfig,
    StateTensor,
    decode_config,
    decode_golden,
)
from service.engine import wrap
from service.engine.bound import BoundGraph, BoundStates
from service.engine.golden import check_golden
from service.engine.graph import Graph, scratch_feeds
from service.engine.replay import Replay
from service.settings import Gpu
from tests.states import summing

SHIPPED = Path(__file__).parents[3] / "exported"
STATES = (
    StateTensor(input_name="a", output_name="a_out", shape=(2,), dtype="float64"),
    StateTensor(input_name="n", output_name="n_out", shape=(), dtype="int32", initial=5),
)


def make(capacity: int, states: tuple[StateTensor, ...] = STATES) -> BoundStates:
    made = BoundGraph(*summing(states)).states(capacity)
    for row in range(1, capacity + 1):
        made.reset(row)
    return made


def step(states: BoundStates, rows: list[int], x: list[list[float]], wanted: list[str]) -> object:
    lengths = np.full(len(x), len(x[0]), np.int32)
    feeds = {"x": np.array(x, np.float64), "lengths": lengths}
    finite = states.run(np.array(rows), feeds, wanted)[1]
    return [True] * len(rows) if finite is None else finite.tolist()


@pytest.mark.parametrize("wanted", [[], ["y"]])
def test_a_row_that_is_not_finite_keeps_its_state_and_the_others_move_on(wanted: list[str]) -> None:
    states = make(3, STATES[:1])
    step(states, [1, 2, 3], [[1], [2], [3]], [])
    assert step(states, [3, 1, 2], [[1], [np.nan], [np.inf]], wanted) == [True, False, False]
    assert [states.read(row)["a"].tolist() for row in (1, 2, 3)] == [[1, 1], [2, 2], [4, 4]]


def test_an_output_counts_when_it_is_wanted() -> None:
    # Twice a number that is finite, and as a state still is, may not be.
    states = make(2, STATES[:1])
    large = 1.5e308
    assert step(states, [1, 2], [[1], [large]], []) == [True, True]
    assert step(states, [1, 2], [[1], [-large]], ["y"]) == [True, False]
    assert [states.read(row)["a"][0] for row in (1, 2)] == [2, large]


def test_a_row_used_again_begins_anew_and_nobody_sees_the_old_state() -> None:
    states = make(2)
    step(states, [1, 2], [[1], [2]], [])
    states.reset(1)
    assert states.read(1)["n"] == 5
    step(states, [1, 2], [[3], [4]], [])
    assert [states.read(row)["n"] for row in (1, 2)] == [8, 11]


def test_a_row_written_after_its_reset_keeps_what_was_written() -> None:
    states = make(1)
    states.reset(1)
    states.write(1, {"a": np.array([7.0, 8.0]), "n": np.int32(9)})
    step(states, [1], [[1]], [])
    assert states.read(1)["a"].tolist() == [8, 9]
    assert states.read(1)["n"] == 10


def test_rows_of_scratch_fill_a_batch_up_and_leave_nothing_behind() -> None:
    states = make(2)
    for _ in range(3):
        step(states, [0, 2, 0, 0], [[9], [1], [8], [7]], ["y"])
    assert [states.read(row)["n"] for row in (0, 1, 2)] == [5, 5, 8]


def test_a_step_touches_the_rows_it_steps_and_no_other() -> None:
    """Memory that is only reserved stays so: neither a step nor a read copies, or even looks at, the other rows."""
    wide = (StateTensor(input_name="a", output_name="a_out", shape=(mmap.PAGESIZE,)),)
    capacity = 100_000
    before = _resident()
    states = BoundGraph(*summing(wide)).states(capacity)
    used = [1, 50_000, capacity]
    for row in used:
        states.reset(row)
    for _ in range(3):
        step(states, used, [[1.0], [2.0], [3.0]], ["y"])
    assert [states.read(row)["a"][0] for row in used] == [3, 6, 9]
    assert _resident() - before < capacity * states.row_bytes / 20


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE


def test_a_run_that_raises_has_written_nothing() -> None:
    # The last operator of this model takes two rows and no other number.
    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["x", "zero"], ["first"], axis=1),
            helper.make_node("Add", ["s", "first"], ["s_out"]),
            helper.make_node("Reshape", ["x", "shape"], ["y"]),
        ],
        "picky",
        [
            helper.make_tensor_value_info("x", TensorProto.DOUBLE, ["B", "T"]),
            helper.make_tensor_value_info("lengths", TensorProto.INT32, ["B"]),
            helper.make_tensor_value_info("s", TensorProto.DOUBLE, ["B"]),
        ],
        [
            helper.make_tensor_value_info("y", TensorProto.DOUBLE, ["B", "T"]),
            helper.make_tensor_value_info("s_out", TensorProto.DOUBLE, ["B"]),
        ],
        [
            onnx.numpy_helper.from_array(np.int64(0), "zero"),
            onnx.numpy_helper.from_array(np.array([2, 1], np.int64), "shape"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    state = StateTensor(input_name="s", output_name="s_out", shape=(), dtype="float64")
    states = BoundGraph(model.SerializeToString(), summing((state,))[1]).states(3)
    for row in (1, 2, 3):
        states.reset(row)
    assert step(states, [1, 2], [[1], [2]], ["y"]) == [True, True]
    with pytest.raises(Exception, match="Reshape"):
        step(states, [1, 2, 3], [[1], [2], [3]], ["y"])
    assert [states.read(row)["s"] for row in (1, 2, 3)] == [1, 2, 0]


@pytest.mark.parametrize("name", ["shakespeare-gru", "next-word-transformer", "weekend-planner"])
def test_it_gives_the_golden_answers(name: str) -> None:
    directory = SHIPPED / name / "1"
    config = decode_config((directory / CONFIG_FILE).read_bytes())
    graph = BoundGraph((directory / MODEL_FILE).read_bytes(), config)
    check_golden(graph, decode_golden((directory / GOLDEN_FILE).read_bytes()))


def test_it_runs_like_a_graph_of_its_own() -> None:
    content, config = summing(STATES)
    feeds = {
        "x": np.array([[1.0, 2.0], [3.0, 4.0]]),
        "lengths": np.array([2, 1], np.int32),
        "a": np.array([[1.0, 2.0], [3.0, 4.0]]),
        "n": np.array([1, 2], np.int32),
    }
    names = ["y", "a_out", "n_out"]
    expected = Graph(content, config).run(feeds, names)
    actual = BoundGraph(content, config).run(feeds, names)
    assert list(actual) == names
    for name in names:
        assert np.array_equal(actual[name], expected[name])


def test_a_graph_gives_as_many_of_the_best_as_it_is_asked_for() -> None:
    graph = BoundGraph(*shipped("next-word-transformer"))
    assert graph.options == {TOP_K, ALL_SCORES}
    wanted = ["top_scores", "top_indices"]
    found = {}
    for count in (64, 5, 1, 64):
        states = graph.states(3)
        for row in (1, 2, 3):
            states.reset(row)
        feeds = feeds_of(graph.config, 3, 1)
        feeds["tokens"][:] = [[5], [6], [7]]
        options = {TOP_K: np.array([count]), ALL_SCORES: np.array([count % 2])}
        result, finite = states.run(np.array([1, 2, 3]), feeds | options, wanted)
        assert finite is None
        whole = found.setdefault("whole", result)
        for name in wanted:
            assert result[name].tobytes() == whole[name][..., :count].tobytes()
            assert result[name].shape == (3, 1, count)


def test_what_is_not_finite_among_few_of_the_best_is_found() -> None:
    content, config = shipped("next-word-transformer")
    states = BoundGraph(content, config).states(2)
    for row in (1, 2):
        states.reset(row)
    bad = states.read(2)
    bad["keys_0"][:] = np.nan
    bad["count"][...] = 3
    states.write(2, bad)
    feeds = feeds_of(config, 2, 1) | {TOP_K: np.array([2]), ALL_SCORES: np.array([0])}
    finite = states.run(np.array([1, 2]), feeds, ["top_scores"])[1]
    assert finite is not None
    assert finite.tolist() == [True, False]


def test_a_graph_that_is_not_what_its_config_says_is_refused() -> None:
    content, _ = summing(STATES)
    other = summing((StateTensor(input_name="b", output_name="b_out", shape=(2,)),))[1]
    with pytest.raises(ContractError):
        BoundGraph(content, other)
    with pytest.raises(ContractError, match="the graph's inputs are"):
        BoundGraph(content, summing(STATES[:1])[1])


def test_the_rings_of_a_transformer_are_written_in_place_and_nowhere_whole() -> None:
    directory = SHIPPED / "next-word-transformer" / "1"
    config = decode_config((directory / CONFIG_FILE).read_bytes())
    proto = onnx.load_from_string(wrap.step_graph((directory / MODEL_FILE).read_bytes(), config))
    scatters = [node for node in proto.graph.node if node.op_type == "ScatterND"]
    assert [node.input[0] for node in scatters] == [wrap.held(s) for s in config.state]
    onnx.checker.check_model(proto)


def test_the_graphs_that_move_rows_are_well_formed() -> None:
    config = summing(STATES)[1]
    for graph in (wrap.read_graph, wrap.write_graph, wrap.reset_graph):
        onnx.checker.check_model(onnx.load_from_string(graph(config)), full_check=True)
    onnx.checker.check_model(
        onnx.load_from_string(wrap.step_graph(*summing(STATES))), full_check=True
    )


def shipped(name: str) -> tuple[bytes, ModelConfig]:
    config = decode_config((SHIPPED / name / "1" / CONFIG_FILE).read_bytes())
    return (SHIPPED / name / "1" / MODEL_FILE).read_bytes(), config


def feeds_of(config: ModelConfig, rows: int, time: int) -> dict[str, np.ndarray]:
    feeds = scratch_feeds(config, rows, time)
    for state in config.state:
        del feeds[state.input_name]
    return feeds


def test_a_ring_that_would_take_a_number_that_is_none_stays_as_it_was() -> None:
    content, config = shipped("forecast-etth1-transformer")
    states = BoundGraph(content, config).states(2)
    rows = np.array([1, 2])
    for row in rows:
        states.reset(int(row))
    feeds = feeds_of(config, 2, 1)
    states.run(rows, feeds, [])
    before = states.read(2)
    # What the second layer makes of the key that the first one kept of the first step is no number.
    before["keys_0"][:, 0] = np.nan
    states.write(2, before)
    finite = states.run(rows, feeds, [])[1]
    assert finite is not None
    assert finite.tolist() == [True, False]
    after = states.read(2)
    assert all(np.array_equal(before[name], after[name], equal_nan=True) for name in before)


def test_single_steps_may_be_computed_by_cells_and_chunks_by_the_operator() -> None:
    content, config = shipped("shakespeare-gru")
    whole, apart = (BoundGraph(content, config, cells=cells).states(3) for cells in (False, True))
    rows = np.array([1, 2, 3])
    for states in (whole, apart):
        for row in (1, 2, 3):
            states.reset(row)
    for time in (1, 3, 1, 2):
        feeds = feeds_of(config, 3, time)
        (expected, _), (actual, finite) = (s.run(rows, feeds, ["logits"]) for s in (whole, apart))
        assert finite is None
        assert np.allclose(actual["logits"], expected["logits"], rtol=0, atol=1e-4)


def test_steps_in_fixed_buffers_are_those_of_free_ones(
    caplog: pytest.LogCaptureFixture,
) -> None:
    content, config = shipped("shakespeare-gru")
    free = BoundGraph(content, config).states(7)
    fixed = BoundGraph(content, config, gpu=Gpu(graphs=True)).states(7)
    assert not caplog.records, "the trial of the buffers at load failed"
    random = np.random.default_rng(5)
    for states in (free, fixed):
        for row in range(1, 8):
            states.reset(row)
    for count in (1, 5, 2, 7, 3, 1):
        rows = random.permutation(7)[:count] + 1
        feeds = feeds_of(config, count, 1)
        feeds["tokens"] = random.integers(0, 60, (count, 1))
        # A run of four rows in the buffers may be of three, filled up; and so may be a batch itself.
        filled = np.concatenate([rows, [0]])
        wider = {name: np.concatenate([v, v[:1]]) for name, v in feeds.items()}
        (a, _), (b, finite) = (
            free.run(rows, feeds, ["logits"]),
            fixed.run(filled, wider, ["logits"]),
        )
        assert finite is None or finite[:count].all()
        # Rows of a product may differ in their last bits by how many there are; the states stay close all the same.
        assert np.allclose(a["logits"], b["logits"][:count], rtol=0, atol=1e-4)
    for row in range(1, 8):
        for name, values in free.read(row).items():
            assert np.allclose(values, fixed.read(row)[name], rtol=0, atol=1e-5)


def test_buffers_that_give_other_bits_are_not_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    right = Replay.run

    def off_by_a_bit(self: Replay, feeds: Any, wanted: Any) -> Any:
        return {
            name: np.nextafter(values, 9) if name == "y" else values
            for name, values in right(self, feeds, wanted).items()
        }

    monkeypatch.setattr(Replay, "run", off_by_a_bit)
    states = BoundGraph(*summing(STATES), gpu=Gpu(graphs=True)).states(3)
    assert "runs without CUDA graphs" in caplog.text
    states.reset(2)
    outputs, _ = states.run(
        np.array([2]), {"x": np.array([[3.0]]), "lengths": np.array([1], np.int32)}, ["y"]
    )
    assert outputs["y"].tolist() == [[6]]
    assert states.read(2)["n"] == 8
