"""Adds operators to an ONNX graph. `onnx` is imported when that happens, not before."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from service.contract import ContractError

if TYPE_CHECKING:
    import onnx

Array = npt.NDArray[Any]

PREFIX = "seqserve."
"""Of every name that is added to a graph."""

# Of graphs made from nothing.
_OPSET, _IR_VERSION = 21, 10


def parsed(model: bytes) -> onnx.ModelProto:
    """A model to be added to.

    Raises:
        ContractError: The bytes are no model.
    """
    import onnx

    try:
        return onnx.load_from_string(model)
    except Exception as error:
        # Of the library that reads the format, by no name that onnx exports.
        raise ContractError(f"the graph cannot be read: {error}") from error


def empty(name: str) -> tuple[Nodes, onnx.ModelProto]:
    """A model with no operator yet, and what adds them."""
    from onnx import helper

    proto = helper.make_model(
        helper.make_graph([], name, [], []),
        opset_imports=[helper.make_opsetid("", _OPSET)],
        ir_version=_IR_VERSION,
        producer_name="seqserve",
    )
    return Nodes(proto.graph), proto


class Nodes:
    """Adds to a graph, under names that no exported model has.

    Args:
        graph: What is added to.
        part: Of the names; two that add to one graph have different ones.
    """

    def __init__(self, graph: onnx.GraphProto, part: str = "") -> None:
        self._graph = graph
        self._prefix = f"{PREFIX}{part}"
        self._count = 0
        self._made: dict[tuple[object, ...], str] = {}

    def add(self, operator: str, *inputs: str, **attributes: int) -> str:
        """Add a node; the name of its output."""
        return self.named(self._name(), operator, *inputs, **attributes)

    def named(self, name: str, operator: str, *inputs: str, **attributes: int) -> str:
        """Add a node whose output has this name."""
        self._append(operator, inputs, [name], attributes)
        return name

    def split(self, value: str, sizes: list[int], axis: int) -> list[str]:
        """Parts of these sizes along an axis."""
        names = [self._name() for _ in sizes]
        self._append("Split", (value, self.constant(sizes)), names, {"axis": axis})
        return names

    def _append(
        self, operator: str, inputs: tuple[str, ...], outputs: list[str], attributes: dict[str, int]
    ) -> None:
        from onnx import helper

        node = helper.make_node(operator, inputs, outputs)
        node.attribute.extend(helper.make_attribute(*pair) for pair in attributes.items())
        self._graph.node.append(node)

    def once(self, operator: str, *inputs: str, **attributes: int) -> str:
        """As `add`, but the same node is added once."""
        key = (operator, inputs, *attributes.items())
        if key not in self._made:
            self._made[key] = self.add(operator, *inputs, **attributes)
        return self._made[key]

    def cast(self, value: str, dtype: str) -> str:
        """The value in another element type."""
        return self.once("Cast", value, to=_element_type(dtype))

    def constant(self, value: Array | list[int] | np.generic) -> str:
        """A constant; a list is of int64."""
        from onnx import numpy_helper

        array = np.asarray(value, np.int64 if isinstance(value, list) else None)
        key = ("constant", array.dtype.str, array.shape, array.tobytes())
        if key not in self._made:
            self._made[key] = name = self._name()
            self._graph.initializer.append(numpy_helper.from_array(array, name))
        return self._made[key]

    def input(self, name: str, dtype: str, shape: list[int | str]) -> None:
        """Declare an input."""
        self._graph.input.append(_declared(name, dtype, shape))

    def output(self, value: str, name: str, dtype: str, shape: list[int | str]) -> None:
        """Declare what the last node made as an output, under this name."""
        last = self._graph.node[-1].output
        assert last[0] == value
        last[0] = name
        self._graph.output.append(_declared(name, dtype, shape))

    def _name(self) -> str:
        self._count += 1
        return f"{self._prefix}{self._count}"


def _declared(name: str, dtype: str, shape: list[int | str]) -> onnx.ValueInfoProto:
    from onnx import helper

    return helper.make_tensor_value_info(name, _element_type(dtype), shape)


def _element_type(dtype: str) -> int:
    from onnx import helper

    return int(helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))
