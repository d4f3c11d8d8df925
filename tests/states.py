"""A model with any states a test asks for: every element of each adds up what comes in, exactly."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from service.contract import (
    SCHEMA_VERSION,
    ModelConfig,
    Provenance,
    StateTensor,
    Tensor,
    Tensors,
)
from tests.models import OPSET

DTYPES = ("float32", "float64", "int32", "int64")

tensors = st.lists(
    st.tuples(
        st.lists(st.integers(1, 3), max_size=3).map(tuple),
        st.sampled_from(DTYPES),
        st.integers(-2, 2),
    ),
    max_size=3,
).map(
    lambda kinds: tuple(
        StateTensor(
            input_name=f"s{i}", output_name=f"o{i}", shape=shape, dtype=dtype, initial=initial
        )
        for i, (shape, dtype, initial) in enumerate(kinds)
    )
)


def summing(states: tuple[StateTensor, ...]) -> tuple[bytes, ModelConfig]:
    """`y = 2 x`, and every element of every state grows by the sum of the x up to the row's length.

    x is `(B, T)` float64. What lies beyond a row's length is computed, but goes into no state.
    """
    onnx_type = {name: helper.np_dtype_to_tensor_dtype(np.dtype(name)) for name in DTYPES}
    value = helper.make_tensor_value_info
    nodes = [
        helper.make_node("Add", ["x", "x"], ["y"]),
        helper.make_node("Shape", ["x"], ["time"], start=1),
        helper.make_node("Squeeze", ["time"], ["end"]),
        helper.make_node("Range", ["zero", "end", "one"], ["positions"]),
        helper.make_node("Cast", ["lengths"], ["long"], to=TensorProto.INT64),
        helper.make_node("Unsqueeze", ["long", "axis1"], ["column"]),
        helper.make_node("Less", ["positions", "column"], ["valid"]),
        helper.make_node("Where", ["valid", "x", "nothing"], ["masked"]),
        helper.make_node("ReduceSum", ["masked", "axis1"], ["added"], keepdims=0),
    ]
    constants = {
        "zero": np.int64(0),
        "one": np.int64(1),
        "axis1": np.array([1], np.int64),
        "nothing": np.float64(0),
    }
    for state in states:
        name = state.input_name
        constants[f"{name}_shape"] = np.array([-1, *(1 for _ in state.shape)], np.int64)
        nodes += [
            helper.make_node("Cast", ["added"], [f"{name}_cast"], to=onnx_type[state.dtype]),
            helper.make_node("Reshape", [f"{name}_cast", f"{name}_shape"], [f"{name}_added"]),
            helper.make_node("Add", [name, f"{name}_added"], [state.output_name]),
        ]
    graph = helper.make_graph(
        nodes,
        "summing",
        [
            value("x", TensorProto.DOUBLE, ["B", "T"]),
            value("lengths", TensorProto.INT32, ["B"]),
            *(value(s.input_name, onnx_type[s.dtype], ["B", *s.shape]) for s in states),
        ],
        [
            value("y", TensorProto.DOUBLE, ["B", "T"]),
            *(value(s.output_name, onnx_type[s.dtype], ["B", *s.shape]) for s in states),
        ],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10, producer_name="tests"
    )
    config = ModelConfig(
        schema_version=SCHEMA_VERSION,
        name="summing",
        version=1,
        description="for tests",
        architecture="test",
        task=Tensors(),
        streaming=True,
        inputs=(Tensor(name="x", dtype="float64"),),
        outputs=(Tensor(name="y", dtype="float64"),),
        state=states,
        opset=OPSET,
        files={},
        provenance=Provenance(command="tests"),
    )
    return model.SerializeToString(), config
