from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from service.engine.decompose import step_cells

B, D, H = 5, 3, 4
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def model(operator: str, *, stored: str = "float32", inputs: int = 7, **attributes: Any) -> bytes:
    """One recurrent operator over x (T, B, D)."""
    random = np.random.default_rng(3)
    both = 1 + (attributes.get("direction") == "bidirectional")
    rows = GATES[operator] * H
    weights = {
        "W": random.normal(size=(both, rows, D)),
        "R": random.normal(size=(both, rows, H)),
        "bias": random.normal(size=(both, 2 * rows)),
    }
    states = ["h", "c"] if operator == "LSTM" else ["h"]
    after = [f"{state}_out" for state in states]
    nodes = [
        helper.make_node("Cast", [f"{name}_stored"], [name], to=TensorProto.FLOAT)
        for name in weights
    ]
    names = ["x", *weights, "lengths", *states][:inputs]
    nodes.append(helper.make_node(operator, names, ["y", *after], hidden_size=H, **attributes))
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "cell",
        [
            value("x", TensorProto.FLOAT, ["T", "B", D]),
            value("lengths", TensorProto.INT32, ["B"]),
            *(value(state, TensorProto.FLOAT, [both, "B", H]) for state in states),
        ],
        [
            value("y", TensorProto.FLOAT, ["T", both, "B", H]),
            *(value(state, TensorProto.FLOAT, [both, "B", H]) for state in after),
        ],
        [numpy_helper.from_array(v.astype(stored), f"{n}_stored") for n, v in weights.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(made, full_check=True)
    content: bytes = made.SerializeToString()
    return content


def run(content: bytes, time: int = 1) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    random = np.random.default_rng(4)
    feeds = {
        node.name: random.normal(size=(time if node.name == "x" else 1, B, node.shape[2])).astype(
            np.float32
        )
        for node in session.get_inputs()
        if node.name != "lengths"
    }
    feeds["lengths"] = np.full(B, time, np.int32)
    return list(session.run(None, feeds))


CASES = [
    ("LSTM", {}),
    ("LSTM", {"stored": "float16"}),
    ("GRU", {"linear_before_reset": 1}),
    ("RNN", {}),
    ("RNN", {"activations": ["Relu"]}),
]


@pytest.mark.parametrize(("operator", "attributes"), CASES)
def test_a_cell_computes_what_the_operator_does(operator: str, attributes: Any) -> None:
    content = model(operator, **attributes)
    apart = step_cells(content)
    assert apart is not None
    assert operator not in {node.op_type for node in onnx.load_from_string(apart).graph.node}
    for expected, actual in zip(run(content), run(apart), strict=True):
        assert actual.shape == expected.shape
        assert np.allclose(actual, expected, rtol=0, atol=2e-6)


def test_a_cell_refuses_more_than_one_time_step() -> None:
    apart = step_cells(model("GRU", linear_before_reset=1))
    assert apart is not None
    with pytest.raises(Exception, match="Squeeze"):
        run(apart, time=2)


@pytest.mark.parametrize(
    ("operator", "attributes"),
    [
        ("LSTM", {"direction": "bidirectional"}),
        ("LSTM", {"clip": 1.0}),
        ("LSTM", {"inputs": 5}),
        ("GRU", {}),
        ("GRU", {"linear_before_reset": 1, "activations": ["Relu", "Tanh"]}),
        ("RNN", {"activations": ["Sigmoid"]}),
    ],
)
def test_what_is_not_usual_stays_as_it_is(operator: str, attributes: Any) -> None:
    assert step_cells(model(operator, **attributes)) is None
