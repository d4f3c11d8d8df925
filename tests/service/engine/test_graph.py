from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import onnxruntime
import pytest

from service.contract import (
    CONFIG_FILE,
    GOLDEN_FILE,
    MODEL_FILE,
    ContractError,
    Golden,
    GoldenCase,
    ModelConfig,
    Tensor,
    decode_config,
    decode_golden,
)
from service.engine.golden import check_golden
from service.engine.graph import (
    DeviceMissing,
    Graph,
    choose_device,
    device_memory,
    require_cuda,
)

CUDA = "CUDAExecutionProvider" in onnxruntime.get_available_providers()


def parts(directory: Path) -> tuple[bytes, ModelConfig]:
    return (directory / MODEL_FILE).read_bytes(), decode_config(
        (directory / CONFIG_FILE).read_bytes()
    )


def feeds(x: list[list[float]], lengths: list[int], state: list[float]) -> dict[str, np.ndarray]:
    return {
        "x": np.array(x, np.float64),
        "lengths": np.array(lengths, np.int32),
        "state": np.array(state, np.float64),
    }


def golden(**changes: object) -> Golden:
    case = GoldenCase(
        inputs={"x": [1.0, 2.0]}, split=(1, 1), outputs={"total": [1.0, 3.0]}, state={}
    )
    return Golden(cases=(msgspec.structs.replace(case, **changes),))


def test_the_graph_runs_rows_of_their_own_length(accumulator: Path) -> None:
    result = Graph(*parts(accumulator)).run(
        feeds([[1, 2], [5, 99]], [2, 1], [10, 20]), ["total", "state_out"]
    )
    assert result["total"][0].tolist() == [11, 13]
    assert result["total"][1, 0] == 25
    assert result["state_out"].tolist() == [13, 25]


def test_only_the_outputs_asked_for_come_back(accumulator: Path) -> None:
    graph = Graph(*parts(accumulator))
    assert list(graph.run(feeds([[1]], [1], [0]), ["total"])) == ["total"]
    assert graph.run(feeds([[1]], [1], [0]), []) == {}


def test_scratch_feeds_fit_the_graph(language: Path) -> None:
    graph = Graph(*parts(language))
    result = graph.run(graph.scratch_feeds(3, 2), ["logits", "h_out"])
    assert result["logits"].shape == (3, 2, 12)
    assert result["h_out"].shape == (3, 1, 8)


def test_scratch_feeds_hold_the_initial_state(planner: Path) -> None:
    assert Graph(*parts(planner)).scratch_feeds(2, 1)["h"].tolist() == [[[1, 0, 0, 0, 0, 0]]] * 2


def test_bytes_that_are_no_graph_are_refused(accumulator: Path) -> None:
    model, config = parts(accumulator)
    with pytest.raises(ContractError, match="ONNX Runtime refuses the graph"):
        Graph(model[: len(model) // 2], config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"inputs": (Tensor(name="y", dtype="float64"),)}, "inputs are .*'x'.* says .*'y'"),
        ({"inputs": (Tensor(name="x", dtype="float32"),)}, r"inputs are .*double.* says .*float"),
        ({"lengths": "length"}, "inputs are .*'lengths'.* says .*'length'"),
        ({"outputs": ()}, "outputs are .*'total'"),
        ({"state": ()}, "inputs are .*'state'"),
    ],
)
def test_a_graph_with_other_inputs_or_outputs_is_refused(
    accumulator: Path, changes: dict[str, object], message: str
) -> None:
    model, config = parts(accumulator)
    with pytest.raises(ContractError, match=message):
        Graph(model, msgspec.structs.replace(config, **changes))


@pytest.mark.skipif(CUDA, reason="needs a runtime without CUDA")
def test_cuda_is_never_silently_replaced(accumulator: Path) -> None:
    with pytest.raises(ContractError, match=r"cuda was asked for|refuses"):
        Graph(*parts(accumulator), device="cuda")


@pytest.mark.skipif(CUDA, reason="needs a runtime without CUDA")
def test_where_there_is_no_gpu_none_is_required_and_none_has_memory() -> None:
    with pytest.raises(DeviceMissing, match="the installed onnxruntime has no CUDA"):
        require_cuda()
    assert device_memory() == (0, 0)


def test_auto_takes_cuda_where_runtime_and_machine_have_it() -> None:
    machine = Path("/dev/nvidiactl").exists()
    assert choose_device("auto") == ("cuda" if CUDA and machine else "cpu")
    assert choose_device("cpu") == "cpu"
    assert choose_device("cuda") == "cuda"


@pytest.mark.parametrize("model", ["accumulator", "language", "planner"])
def test_good_models_pass_their_golden_check(model: str, request: pytest.FixtureRequest) -> None:
    directory: Path = request.getfixturevalue(model)
    graph = Graph(*parts(directory))
    check_golden(graph, decode_golden((directory / GOLDEN_FILE).read_bytes()))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"outputs": {"total": [1.0, 3.1]}}, r"case 0, chunks \(2,\), total: differs by 0.1"),
        ({"outputs": {"total": [1.0]}}, r"total: shape \(2,\), expected \(1,\)"),
        ({"outputs": {"sum": [1.0, 3.0]}}, "sum: the model has no such output"),
        ({"state": {"state_out": 4.0}}, "state_out: differs by 1"),
        ({"outputs": {"total": [1.0, float("nan")]}}, "total: differs by nan"),
    ],
)
def test_wrong_golden_answers_are_named(
    accumulator: Path, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(ContractError, match=message):
        check_golden(Graph(*parts(accumulator)), golden(**changes))


def test_the_golden_check_compares_the_split_too(accumulator: Path) -> None:
    """A graph that ignores its state passes in one go and fails in steps."""
    graph = Graph(*parts(accumulator))

    class Forgetful(Graph):
        def __init__(self) -> None:
            self.config = graph.config

        def run(self, feeds: dict[str, np.ndarray], outputs: list[str]) -> dict[str, np.ndarray]:
            return graph.run(feeds | {"state": np.zeros(1)}, outputs)

    with pytest.raises(ContractError, match=r"chunks \(1, 1\), total: differs by 1"):
        check_golden(Forgetful(), golden())
