"""The step graph of a tagger."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper
from torch import nn

from training.export.encoders import encode
from training.export.onnx_graph import GraphBuilder, Storage, TableStorage, array
from training.ner.model import Tagger


def step_graph(model: Tagger, storage: Storage, tables: TableStorage = None) -> onnx.ModelProto:
    """The graph `y, state' = f_W(state, x)` of the service's contract for named entities.

    Args:
        model: Trained weights.
        storage: Number format of the weights in the file.
        tables: That of the vectors of words, if it is another.

    Returns:
        A model with inputs words (B, T), characters (B, T, C), lengths (B,) and the states, and outputs scores
        (B, T, K) and the next states.
    """
    graph = GraphBuilder(storage)
    words = graph.input("words", "int64", ["B", "T"])
    characters = graph.input("characters", "int64", ["B", "T", "C"])
    lengths = graph.input("lengths", "int32", ["B"])
    vectors = graph.look_up("vectors", model.table().detach().cpu().numpy(), words, tables)
    spelling = _spelling(graph, model, words, characters)
    x = encode(graph, model.encoder, graph.node("Concat", vectors, spelling, axis=2), lengths)
    weight = graph.weight("output.weight", array(model.output.weight).T)
    emissions = graph.node("MatMul", x, weight)
    emissions = graph.node("Add", emissions, graph.weight("output.bias", array(model.output.bias)))
    _declare_filter(graph, model, emissions, lengths)
    return graph.model("tagger")


def _spelling(graph: GraphBuilder, model: Tagger, words: str, characters: str) -> str:
    """What the convolution makes of the characters, (B, T, F)."""
    kernel: nn.Conv1d = model.convolution
    assert kernel.bias is not None
    shape = graph.node("Shape", characters)
    rows = graph.node("Gather", shape, graph.constant([2]))
    flat = graph.node("Concat", graph.constant([-1]), rows, axis=0)
    characters = graph.node("Reshape", characters, flat)  # (B T, C)
    letters = graph.node(
        "Gather", graph.weight("characters.vectors", array(model.characters.weight)), characters
    )
    letters = graph.node("Transpose", letters, perm=[0, 2, 1])
    padding = kernel.kernel_size[0] // 2
    spelling = graph.node(
        "Conv",
        letters,
        graph.weight("convolution.weight", array(kernel.weight)),
        graph.weight("convolution.bias", array(kernel.bias)),
        pads=[padding, padding],
    )
    spelling = graph.node("Relu", spelling)
    spelling = graph.node("ReduceMax", spelling, graph.constant([2]), keepdims=0)
    filters = graph.constant([kernel.out_channels])
    return graph.node(
        "Reshape", spelling, graph.node("Concat", graph.node("Shape", words), filters, axis=0)
    )


def _declare_filter(graph: GraphBuilder, model: Tagger, emissions: str, lengths: str) -> None:
    """Declare the scores, and the state of the chain if it is carried; see `training.ner.chain`."""
    labels = model.output.out_features
    one: str = graph.constant(np.ones((), np.float32))
    zero: str = graph.constant(np.zeros((), np.float32))
    if model.states:
        before = graph.input("filter", "float32", ["B", labels - 1])
    else:
        batch = graph.node("Shape", emissions, start=0, end=1)
        fresh = graph.node("Concat", batch, graph.constant([labels - 1]), axis=0)
        before = graph.node("ConstantOfShape", fresh)
    rest = graph.node("ReduceSum", before, graph.constant([1]), keepdims=1)
    outside = graph.node("Max", graph.node("Sub", one, rest), zero)
    start = graph.node("Concat", outside, before, axis=1)
    factors = graph.constant(model.chain.factors().detach().cpu().numpy())
    last, scores = graph.nodes(
        "Scan",
        start,
        emissions,
        _valid(graph, emissions, lengths),
        outputs=2,
        body=_step(factors, labels),
        num_scan_inputs=2,
        scan_input_axes=[1, 1],
        scan_output_axes=[1],
    )
    graph.output(scores, "scores", "float32", ["B", "T", labels])
    if model.states:
        bounds = (graph.constant([1]), graph.constant([labels]), graph.constant([1]))
        after = graph.node("Slice", last, *bounds)
        graph.output(after, "filter_out", "float32", ["B", labels - 1])


def _valid(graph: GraphBuilder, emissions: str, lengths: str) -> str:
    """Whether a word belongs to the text, (B, T, 1) bool."""
    time = graph.node("Squeeze", graph.node("Shape", emissions, start=1, end=2))
    places = graph.node("Range", graph.constant(0), time, graph.constant(1))
    ends = graph.node("Cast", lengths, to=TensorProto.INT64)
    ends = graph.node("Unsqueeze", ends, graph.constant([1]))
    return graph.node("Unsqueeze", graph.node("Less", places, ends), graph.constant([2]))


def _step(factors: str, labels: int) -> onnx.GraphProto:
    """One word: p' = softmax(log(p M) + e), and p stays where the text has ended."""

    def value(name: str, kind: int, width: int) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, kind, ["B", width])

    nodes = [
        helper.make_node("MatMul", ["before", factors], ["expected"]),
        helper.make_node("Log", ["expected"], ["log_expected"]),
        helper.make_node("Add", ["log_expected", "emission"], ["total"]),
        helper.make_node("Softmax", ["total"], ["probability"], axis=1),
        helper.make_node("Where", ["valid", "probability", "before"], ["after"]),
        helper.make_node("Identity", ["probability"], ["score"]),
    ]
    return helper.make_graph(
        nodes,
        "filter_step",
        [
            value("before", TensorProto.FLOAT, labels),
            value("emission", TensorProto.FLOAT, labels),
            value("valid", TensorProto.BOOL, 1),
        ],
        [value("after", TensorProto.FLOAT, labels), value("score", TensorProto.FLOAT, labels)],
    )
