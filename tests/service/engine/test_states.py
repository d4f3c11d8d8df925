from __future__ import annotations

import sys

import pytest

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
    with pytest.raises(ContractError, match="cuda needs a package"):
        load(content, config, "cuda", 1)
