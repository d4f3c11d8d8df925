"""The step graph of a forecaster; the arithmetic is that of `training.forecast.model`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto
from torch import nn

from training.export.encoders import encode
from training.export.onnx_graph import GraphBuilder, Storage, array
from training.forecast.model import LARGEST, LARGEST_INPUT, LARGEST_LOG_WIDTH, ForecastModel
from training.forecast.skip import VARIANCE_FLOOR

INPUT = "observations"


@dataclass(frozen=True, slots=True)
class _Chunk:
    """Values that the parts of the graph share.

    Attributes:
        z: Standardised observations without gaps, (B, T, n).
        missing: 1 where there was a gap, (B, T, n) float32.
        full: The window before the chunk and z, (B, L + T, n).
        series: `full` without its first observation, (B, n, L + T - 1).
    """

    z: str
    missing: str
    full: str
    series: str


def step_graph(model: ForecastModel, storage: Storage) -> onnx.ModelProto:
    """The graph `y, state' = f_W(state, x)` of the service's contract for forecasters.

    Args:
        model: Trained weights.
        storage: Number format of the weights in the file.

    Returns:
        A model with inputs observations (B, T, n), lengths (B,), recent (B, L, n), observed (B, 1) and the encoder's
        states, and outputs mean (B, T, H, n), quantiles (B, T, Q, H, n) and the next states.
    """
    graph = GraphBuilder(storage)
    n, window = model.columns, model.config.window
    x = graph.input(INPUT, "float32", ["B", "T", n])
    lengths = graph.input("lengths", "int32", ["B"])
    recent = graph.input("recent", "float32", ["B", window, n])
    observed = graph.input("observed", "float32", ["B", 1])
    chunk = _chunk(graph, model, x, recent, observed)
    unseen = _unseen(graph, window, observed, _places(graph, x))
    centre, scale = _moments(graph, window, chunk.series, unseen)
    u = graph.node("Div", graph.node("Sub", chunk.z, centre), scale)
    u = graph.node("Clip", u, _number(graph, -LARGEST_INPUT), _number(graph, LARGEST_INPUT))
    features = encode(graph, model.encoder, graph.node("Concat", u, chunk.missing, axis=2), lengths)
    _declare_forecasts(graph, model, chunk, features, scale)
    graph.output(
        _last(graph, chunk.full, lengths, window), "recent_out", "float32", ["B", window, n]
    )
    length = graph.node("Cast", lengths, to=TensorProto.FLOAT)
    length = graph.node("Unsqueeze", length, graph.constant([1]))
    count = graph.node("Min", graph.node("Add", observed, length), _number(graph, window))
    graph.output(count, "observed_out", "float32", ["B", 1])
    return graph.model("forecaster")


def _chunk(graph: GraphBuilder, model: ForecastModel, x: str, recent: str, observed: str) -> _Chunk:
    gap = graph.node("IsNaN", x)
    mean = graph.constant(model.mean.cpu().numpy())
    deviation = graph.constant(model.deviation.cpu().numpy())
    z = graph.node("Div", graph.node("Sub", x, mean), deviation)
    z = graph.node("Clip", z, _number(graph, -LARGEST), _number(graph, LARGEST))
    z = _carried(graph, graph.node("Where", gap, _number(graph, 0.0), z), gap, recent)
    first = graph.node("Slice", z, *(graph.constant([v]) for v in (0, 1, 1)))
    fresh = graph.node("Equal", observed, _number(graph, 0.0))
    past = graph.node("Where", graph.node("Unsqueeze", fresh, graph.constant([2])), first, recent)
    full = graph.node("Concat", past, z, axis=1)
    end = graph.constant([np.iinfo(np.int64).max])
    later = graph.node("Slice", full, graph.constant([1]), end, graph.constant([1]))
    return _Chunk(
        z=z,
        missing=graph.node("Cast", gap, to=TensorProto.FLOAT),
        full=full,
        series=graph.node("Transpose", later, perm=[0, 2, 1]),
    )


def _carried(graph: GraphBuilder, z: str, gap: str, recent: str) -> str:
    """Give z (B, T, n) with each gap filled by the latest value before it, perhaps that of the last chunk."""
    last = graph.node(
        "Slice", recent, graph.constant([-1]), graph.constant([2**31]), graph.constant([1])
    )
    known = graph.node("Concat", last, z, axis=1)  # place 0 is before the chunk
    places = _places(graph, z)
    here = graph.node("Unsqueeze", places, graph.constant([1]))  # (T, 1)
    marks = graph.node("Where", gap, graph.constant(0), here)  # (B, T, n)
    # The largest mark up to each step, by comparing each step with each: there is no running maximum in ONNX.
    past = graph.node("LessOrEqual", places, here)  # (T, T)
    marks = graph.node(
        "Where",
        graph.node("Unsqueeze", past, graph.constant([2])),
        graph.node("Unsqueeze", marks, graph.constant([1])),
        graph.constant(0),
    )
    latest = graph.node("ReduceMax", marks, graph.constant([2]), keepdims=0)
    return graph.node("GatherElements", known, latest, axis=1)


def _places(graph: GraphBuilder, x: str) -> str:
    """1 to T, (T,) int64, for x (B, T, n)."""
    steps = graph.node("Squeeze", graph.node("Shape", x, start=1, end=2), graph.constant([0]))
    end = graph.node("Add", steps, graph.constant(1))
    return graph.node("Range", graph.constant(1), end, graph.constant(1))


def _unseen(graph: GraphBuilder, window: int, observed: str, places: str) -> str:
    """Share of the window that was not observed yet at each step, (B, 1, T)."""
    counts = graph.node("Add", observed, graph.node("Cast", places, to=TensorProto.FLOAT))
    counts = graph.node("Min", counts, _number(graph, window))
    seen = graph.node("Div", counts, _number(graph, window))
    return graph.node(
        "Unsqueeze", graph.node("Sub", _number(graph, 1.0), seen), graph.constant([1])
    )


def _moments(graph: GraphBuilder, window: int, series: str, unseen: str) -> tuple[str, str]:
    """Mean and deviation of the window that ends at each step, (B, T, n) each."""
    centre = graph.node("AveragePool", series, kernel_shape=[window])
    square = graph.node("AveragePool", graph.node("Mul", series, series), kernel_shape=[window])
    variance = graph.node("Sub", square, graph.node("Mul", centre, centre))
    variance = graph.node("Max", variance, _number(graph, 0.0))
    variance = graph.node("Add", variance, _number(graph, VARIANCE_FLOOR))
    scale = graph.node("Sqrt", graph.node("Add", variance, unseen))
    by_time = [graph.node("Transpose", value, perm=[0, 2, 1]) for value in (centre, scale)]
    return by_time[0], by_time[1]


def _declare_forecasts(
    graph: GraphBuilder, model: ForecastModel, chunk: _Chunk, features: str, scale: str
) -> None:
    H, n, Q = model.config.horizon, model.columns, len(model.config.quantiles)
    weights = graph.weight("linear", model.linear.cpu().numpy().reshape(n * H, 1, -1))
    linear = graph.node("Conv", chunk.series, weights, group=n)  # (B, n * H, T)
    linear = graph.node("Reshape", linear, graph.constant([0, n, H, -1]))
    linear = graph.node("Transpose", linear, perm=[0, 3, 2, 1])  # (B, T, H, n)
    scale = graph.node("Unsqueeze", scale, graph.constant([2]))
    correction = _head(graph, "correction", model.correction, features, (H, n))
    mean = graph.node("Add", linear, graph.node("Mul", scale, correction))
    width = _head(graph, "width", model.width, features, (H, n))
    bounds = (_number(graph, -LARGEST_LOG_WIDTH), _number(graph, LARGEST_LOG_WIDTH))
    width = graph.node("Mul", scale, graph.node("Exp", graph.node("Clip", width, *bounds)))
    offsets = graph.constant(model.offsets().detach().cpu().numpy())
    width, centre = (graph.node("Unsqueeze", value, graph.constant([2])) for value in (width, mean))
    quantiles = graph.node("Add", centre, graph.node("Mul", width, offsets))
    for value, name, shape in ((mean, "mean", [H, n]), (quantiles, "quantiles", [Q, H, n])):
        graph.output(_raw(graph, model, value), name, "float32", ["B", "T", *shape])


def _head(
    graph: GraphBuilder, name: str, layer: nn.Linear, features: str, shape: tuple[int, int]
) -> str:
    """A linear layer over features (B, T, D), its outputs as (B, T, *shape)."""
    weight = graph.weight(f"{name}.weight", array(layer.weight).T)
    product = graph.node("MatMul", features, weight)
    bias = graph.weight(f"{name}.bias", array(layer.bias))
    return graph.node("Reshape", graph.node("Add", product, bias), graph.constant([0, 0, *shape]))


def _raw(graph: GraphBuilder, model: ForecastModel, value: str) -> str:
    """Standardised values (..., n) in their own units."""
    scaled = graph.node("Mul", value, graph.constant(model.deviation.cpu().numpy()))
    return graph.node("Add", scaled, graph.constant(model.mean.cpu().numpy()))


def _last(graph: GraphBuilder, full: str, lengths: str, window: int) -> str:
    """The last L of the valid observations of each row of `full`, (B, L, n)."""
    start = graph.node("Cast", lengths, to=TensorProto.INT64)
    start = graph.node("Unsqueeze", start, graph.constant([1]))
    places = graph.node("Add", start, graph.constant(np.arange(window)))  # (B, L)
    places = graph.node("Unsqueeze", places, graph.constant([2]))
    return graph.node("GatherND", full, places, batch_dims=1)


def _number(graph: GraphBuilder, value: float) -> str:
    return graph.constant(np.array(value, np.float32))
