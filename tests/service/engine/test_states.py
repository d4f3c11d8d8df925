from __future__ import annotations

import sys

import pytest
from onnx import TensorProto, helper

from service.contract import ContractError, StateTensor
from service.engine.bound import BoundGraph
from service.engine.graph import Graph
from service.engine.states import BOUND_BYTES, load, states_of
from tests.states import summing


def of_bytes(count: int) -> tuple[StateTensor, ...]:
    return (StateTensor(input_name="s", output_name="s_out", shape=(count // 4,)),)


@pytest.mark.parametrize(("count", "kind"), [(BOUND_BYTES - 4, Graph), (BOUND_BYTES, BoundGraph)])
def test_large_states_are_kept_inside_the_graph(count: int, kind: type) -> None:
    graph = load(*summing(of_bytes(count)), "cpu", 1)
    assert type(graph) is kind
    states = states_of(graph, 3)
    states.reset(3)
    assert states.row_bytes == count
    assert states.read(3)["s"].nbytes == count


def test_a_model_without_state_has_nothing_to_keep() -> None:
    assert type(load(*summing(()), "cpu", 1)) is Graph


def test_without_onnx_states_stay_on_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    content, config = summing(of_bytes(BOUND_BYTES))
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert type(load(content, config, "cpu", 1)) is Graph
    with pytest.raises(ContractError, match=r"states cannot be kept on cuda: .*onnx"):
        load(content, config, "cuda", 1)


def test_a_graph_too_old_to_be_wrapped_keeps_its_states_on_the_host() -> None:
    content, config = summing(of_bytes(BOUND_BYTES))
    state = ["B", BOUND_BYTES // 4]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [
            helper.make_node("Add", ["x", "x"], ["y"]),
            helper.make_node("Add", ["s", "s"], ["s_out"]),
            helper.make_node("Size", ["lengths"], ["n"]),
        ],
        "old",
        [
            value("x", TensorProto.DOUBLE, ["B", "T"]),
            value("lengths", TensorProto.INT32, ["B"]),
            value("s", TensorProto.FLOAT, state),
        ],
        [value("y", TensorProto.DOUBLE, ["B", "T"]), value("s_out", TensorProto.FLOAT, state)],
    )
    old = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)], ir_version=10)
    assert type(load(old.SerializeToString(), config, "cpu", 1)) is Graph
    with pytest.raises(ContractError, match="refuses"):
        load(content[: len(content) // 2], config, "cpu", 1)
