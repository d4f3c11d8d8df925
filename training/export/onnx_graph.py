"""A thin layer over `onnx.helper`: nodes and constants by name, plain operators only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper
from torch import nn

Array = npt.NDArray[Any]
Storage = Literal["float32", "float16"]
# None: as all other weights.
TableStorage = Literal["int8"] | None
LARGEST_BYTE = 127

OPSET = 21
# The oldest file format that has this operator set, so that older runtimes read the file too.
IR_VERSION = 10

_ELEMENT_TYPES = {
    "float32": TensorProto.FLOAT,
    "int32": TensorProto.INT32,
    "int64": TensorProto.INT64,
}


class GraphBuilder:
    """Collects the parts of one graph; a value is known by its name.

    Args:
        storage: Number format of weights in the file. A weight in float16 passes a Cast to float32, which the
            runtime folds away when it loads the graph.
    """

    def __init__(self, storage: Storage = "float32") -> None:
        self.storage = storage
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: list[onnx.TensorProto] = []
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []
        self._output_names: dict[str, str] = {}

    def input(self, name: str, dtype: str, shape: Sequence[int | str]) -> str:
        """Declare an input; an axis given by name is dynamic."""
        self._inputs.append(helper.make_tensor_value_info(name, _ELEMENT_TYPES[dtype], shape))
        return name

    def default(self, name: str, array: Array | Sequence[int]) -> str:
        """Declare an input that has a value where none is given."""
        tensor = numpy_helper.from_array(np.asarray(array), name)
        self._initializers.append(tensor)
        self._inputs.append(
            helper.make_tensor_value_info(name, tensor.data_type, list(tensor.dims))
        )
        return name

    def output(self, value: str, name: str, dtype: str, shape: Sequence[int | str]) -> None:
        """Declare a value as an output and give it a name.

        It is renamed rather than passed through an Identity node, which the runtime would execute as a copy.
        """
        self._output_names[value] = name
        self._outputs.append(helper.make_tensor_value_info(name, _ELEMENT_TYPES[dtype], shape))

    def constant(self, array: Array | Sequence[int] | int) -> str:
        """A constant stored as it is; plain integers are int64."""
        name = f"constant_{len(self._initializers)}"
        self._initializers.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def weight(self, name: str, array: Array) -> str:
        """A float32 weight, stored in the builder's number format."""
        if self.storage == "float32":
            self._initializers.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
            return name
        stored = f"{name}.{self.storage}"
        half = np.ascontiguousarray(array).astype(np.float16)
        self._initializers.append(numpy_helper.from_array(half, stored))
        self._nodes.append(helper.make_node("Cast", [stored], [name], to=TensorProto.FLOAT))
        return name

    def look_up(self, name: str, table: Array, rows: str, storage: TableStorage = None) -> str:
        """Rows (..., K) of a float32 table (N, K) by their numbers (...).

        In int8 each row has a scale of its own; see `quantised`. What is not looked up is never made float32.
        """
        if storage is None:
            return self.node("Gather", self.weight(name, table), rows)
        stored, scales = quantised(table, LARGEST_BYTE)
        for part, values in (("int8", stored), ("scales", scales[:, None])):
            self._initializers.append(numpy_helper.from_array(values, f"{name}.{part}"))
        found = self.node("Gather", f"{name}.int8", rows)
        found = self.node("Cast", found, to=TensorProto.FLOAT)
        return self.node("Mul", found, self.node("Gather", f"{name}.scales", rows))

    def node(self, operator: str, *inputs: str, **attributes: Any) -> str:
        """Add a node with one output."""
        return self.nodes(operator, *inputs, outputs=1, **attributes)[0]

    def nodes(self, operator: str, *inputs: str, outputs: int, **attributes: Any) -> list[str]:
        """Add a node with several outputs; an absent input is the empty string."""
        names = [f"{operator.lower()}_{len(self._nodes)}_{i}" for i in range(outputs)]
        self._nodes.append(helper.make_node(operator, inputs, names, **attributes))
        return names

    def model(self, name: str) -> onnx.ModelProto:
        """The finished model, checked for types and shapes."""
        for node in self._nodes:
            for names in (node.input, node.output):
                names[:] = [self._output_names.get(value, value) for value in names]
        graph = helper.make_graph(
            self._nodes, name, self._inputs, self._outputs, self._initializers
        )
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name="seqserve",
        )
        onnx.checker.check_model(model, full_check=True)
        return model


def quantised(weight: Array, largest: int) -> tuple[Array, Array]:
    """Quantise each row of a weight (N, K), symmetric: w = scale_n q.

    Returns:
        Bytes q (N, K) in [-largest, largest] and scales (N,) float32; a row of zeros has scale 1.
    """
    sizes = np.abs(weight).max(axis=1)
    scales = np.where(sizes > 0, sizes / largest, 1.0).astype(np.float32)
    return np.rint(weight / scales[:, None]).astype(np.int8), scales


def array(parameter: object) -> Array:
    """Values of a torch parameter as float32."""
    assert isinstance(parameter, nn.Parameter)
    return parameter.detach().cpu().numpy().astype(np.float32)
