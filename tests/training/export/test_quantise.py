from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest

from training.export.onnx_graph import Array, GraphBuilder, Storage
from training.export.quantise import LARGEST, SHORTEST, int8, rows

RNG = np.random.default_rng(3)
WIDTH, SIZE = 128, 300


def run(model: onnx.ModelProto, **feeds: Array) -> list[Array]:
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    found: list[Array] = session.run(None, feeds)
    return found


def operators(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


def stored(model: onnx.ModelProto) -> dict[str, Array]:
    return {part.name: onnx.numpy_helper.to_array(part) for part in model.graph.initializer}


def quantised(x: Array) -> tuple[Array, np.float32, int]:
    """Bytes, scale and zero point as ONNX defines DynamicQuantizeLinear."""
    low, high = min(0.0, float(x.min())), max(0.0, float(x.max()))
    scale = np.float32((high - low) / 255)
    zero = int(np.clip(np.rint(-low / scale), 0, 255))
    return np.clip(np.rint(x / scale) + zero, 0, 255).astype(np.int64), scale, zero


def product(x: Array, weight: Array) -> Array:
    """x W^T in the arithmetic that the module describes, its sums exact."""
    whole, scale, zero = quantised(x)
    bytes_, scales = rows(weight)
    return (whole - zero) @ bytes_.astype(np.int64).T * (scale * scales)


def gemm(
    weight: Array, bias: Array, storage: Storage = "float32", parts: int = 1
) -> onnx.ModelProto:
    graph = GraphBuilder(storage)
    x = graph.input("x", "float32", ["B", weight.shape[1]])
    names = [graph.weight(f"part.{i}", part) for i, part in enumerate(np.split(weight, parts))]
    name = graph.node("Concat", *names, axis=0) if parts > 1 else names[0]
    y = graph.node("Gemm", x, name, graph.weight("bias", bias), transB=1)
    graph.output(y, "y", "float32", ["B", len(weight)])
    return graph.model("gemm")


def normal(*shape: int) -> Array:
    return RNG.standard_normal(shape).astype(np.float32)


def test_a_row_is_stored_with_its_own_scale_and_no_row_is_divided_by_zero() -> None:
    weight = normal(3, 8) * np.array([[1.0], [1000.0], [0.0]], np.float32)
    bytes_, scales = rows(weight)
    assert bytes_.dtype == np.int8
    assert np.abs(bytes_).max(axis=1).tolist() == [LARGEST, LARGEST, 0]
    assert np.all(np.abs(bytes_ * scales[:, None] - weight) <= scales[:, None] / 2 * 1.001)
    assert scales[2] == 1


@pytest.mark.parametrize("batch", [1, 5, 64])
@pytest.mark.parametrize("parts", [1, 3])
def test_a_product_is_that_of_the_integers(batch: int, parts: int) -> None:
    weight, bias, x = normal(SIZE, WIDTH), normal(SIZE), normal(batch, WIDTH)
    model = int8(gemm(weight, bias, parts=parts))
    assert operators(model)["MatMulInteger"] == 1
    (y,) = run(model, x=x)
    np.testing.assert_allclose(y, product(x, weight) + bias, rtol=1e-5, atol=1e-4)


def test_no_processor_overflows_where_weights_and_activations_are_largest() -> None:
    weight = np.ones((SIZE, WIDTH), np.float32)
    x = np.ones((2, WIDTH), np.float32)
    (y,) = run(int8(gemm(weight, np.zeros(SIZE, np.float32))), x=x)
    np.testing.assert_allclose(y, WIDTH, rtol=1e-5)


def test_weights_stored_in_float16_are_quantised_as_they_are_stored() -> None:
    weight, bias, x = normal(SIZE, WIDTH), normal(SIZE), normal(4, WIDTH)
    model = int8(gemm(weight, bias, "float16"))
    half = weight.astype(np.float16).astype(np.float32)
    expected = product(x, half) + bias.astype(np.float16)
    np.testing.assert_allclose(run(model, x=x)[0], expected, rtol=1e-5, atol=1e-4)
    assert "part.0.float16" not in stored(model)


def test_a_matrix_on_the_right_has_a_scale_for_each_column() -> None:
    weight = normal(WIDTH, SIZE) * np.logspace(-2, 2, SIZE, dtype=np.float32)
    x = normal(3, 2, WIDTH)
    graph = GraphBuilder()
    left = graph.input("x", "float32", ["B", "T", WIDTH])
    y = graph.node("MatMul", left, graph.weight("weight", weight))
    graph.output(y, "y", "float32", ["B", "T", SIZE])
    model = int8(graph.model("product"))
    np.testing.assert_allclose(run(model, x=x)[0], product(x, weight.T), rtol=1e-4, atol=1e-3)


def test_a_table_of_embeddings_and_scores_is_stored_once() -> None:
    table, bias = normal(SIZE, WIDTH), np.zeros(SIZE, np.float32)
    graph = GraphBuilder()
    tokens = graph.input("tokens", "int64", ["B"])
    name = graph.weight("table", table)
    vectors = graph.node("Gather", name, tokens)
    graph.output(
        graph.node("Gemm", vectors, name, graph.weight("bias", bias), transB=1),
        "scores",
        "float32",
        ["B", SIZE],
    )
    graph.output(vectors, "vectors", "float32", ["B", WIDTH])
    model = int8(graph.model("language"))
    assert [value.dtype for value in stored(model).values() if value.size == table.size] == [
        np.int8
    ]
    ids = np.array([0, 7, SIZE - 1])
    scores, vectors_found = run(model, tokens=ids)
    bytes_, scales = rows(table)
    np.testing.assert_allclose(vectors_found, bytes_[ids] * scales[ids, None], rtol=1e-6)
    # One number may lie between two bytes and be rounded to the other.
    np.testing.assert_allclose(scores, product(vectors_found, table), atol=0.1)


def test_a_short_product_stays_in_float32_over_weights_stored_in_bytes() -> None:
    width = SHORTEST // 2
    weight, bias, x = normal(2000, width), normal(2000), normal(4, width)
    model = int8(gemm(weight, bias))
    assert operators(model)["MatMulInteger"] == 0
    bytes_, scales = rows(weight)
    expected = x @ (bytes_ * scales[:, None]).T + bias
    np.testing.assert_allclose(run(model, x=x)[0], expected, rtol=1e-5, atol=1e-4)


def test_small_weights_stay_as_they_are() -> None:
    model = gemm(normal(20, WIDTH), normal(20))
    same = int8(model)
    x = normal(3, WIDTH)
    assert run(same, x=x)[0].tolist() == run(model, x=x)[0].tolist()


def lstm(size: int, directions: int = 1) -> onnx.ModelProto:
    """x (T, B, W), lengths (B,), h and c (D, B, H) to y (T, D, B, H) and the states after."""
    rng = np.random.default_rng(5)

    def weight(name: str, *shape: int) -> str:
        return graph.weight(name, rng.uniform(-0.3, 0.3, shape).astype(np.float32))

    graph = GraphBuilder()
    x = graph.input("x", "float32", ["T", "B", WIDTH])
    lengths = graph.input("lengths", "int32", ["B"])
    h, c = (graph.input(name, "float32", [directions, "B", size]) for name in "hc")
    weights = (
        weight("W", directions, 4 * size, WIDTH),
        weight("R", directions, 4 * size, size),
        weight("B", directions, 8 * size),
    )
    more = {"direction": "bidirectional"} if directions == 2 else {}
    values = graph.nodes("LSTM", x, *weights, lengths, h, c, outputs=3, hidden_size=size, **more)
    shapes = (["T", directions, "B", size], *[[directions, "B", size]] * 2)
    for value, name, shape in zip(values, ("y", "h_out", "c_out"), shapes, strict=True):
        graph.output(value, name, "float32", shape)
    return graph.model("lstm")


@pytest.mark.parametrize("directions", [1, 2])
def test_an_lstm_is_near_the_exact_one_over_ragged_rows(directions: int) -> None:
    size, lengths = 64, np.array([7, 1, 4], np.int32)
    exact = lstm(size, directions)
    near = int8(exact)
    assert operators(near) == {"DynamicQuantizeLSTM": 1}
    feeds = {
        "x": normal(7, 3, WIDTH),
        "lengths": lengths,
        "h": RNG.uniform(-1, 1, (directions, 3, size)).astype(np.float32),
        "c": normal(directions, 3, size),
    }
    for expected, found in zip(run(exact, **feeds), run(near, **feeds), strict=True):
        assert found.shape == expected.shape
        assert 0 < np.abs(found - expected).max() < 0.06
    # A weight in a wrong place of four gates would answer something unrelated.
    assert np.corrcoef(run(exact, **feeds)[0].ravel(), run(near, **feeds)[0].ravel())[0, 1] > 0.999


ACTIVATIONS = {"GRU": None, "RNN-Tanh": "Tanh", "RNN-Relu": "Relu"}


def cells(kind: str, size: int) -> onnx.ModelProto:
    """Two layers of a GRU or RNN: x (T, B, W), lengths (B,), h (2, B, H) to y (T, B, H) and the state after."""
    rng = np.random.default_rng(6)
    operator, activation = kind.partition("-")[0], ACTIVATIONS[kind]
    more: dict[str, object] = {"activations": [activation]} if activation else {}
    more |= {"linear_before_reset": 1} if operator == "GRU" else {}
    graph = GraphBuilder()
    x = graph.input("x", "float32", ["T", "B", WIDTH])
    lengths = graph.input("lengths", "int32", ["B"])
    states = graph.nodes(
        "Split", graph.input("h", "float32", [2, "B", size]), outputs=2, axis=0, num_outputs=2
    )
    last: list[str] = []
    for i, (width, state) in enumerate(zip((WIDTH, size), states, strict=True)):
        gates = 3 if operator == "GRU" else 1
        shapes = {
            "W": (1, gates * size, width),
            "R": (1, gates * size, size),
            "B": (1, 2 * gates * size),
        }
        weights = [
            graph.weight(f"{name}{i}", rng.uniform(-0.1, 0.1, shape).astype(np.float32))
            for name, shape in shapes.items()
        ]
        y, after = graph.nodes(
            operator, x, *weights, lengths, state, outputs=2, hidden_size=size, **more
        )
        x = graph.node("Squeeze", y, graph.constant([1]))
        last.append(after)
    graph.output(x, "y", "float32", ["T", "B", size])
    graph.output(graph.node("Concat", *last, axis=0), "h_out", "float32", [2, "B", size])
    return graph.model("cells")


@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_a_gru_and_an_rnn_are_near_the_exact_ones_over_ragged_rows_and_chunks(kind: str) -> None:
    size, lengths = 192, np.array([7, 1, 4], np.int32)
    exact = cells(kind, size)
    near = int8(exact)
    assert operators(near)["Scan"] == 2
    x, h = normal(7, 3, WIDTH), RNG.uniform(-0.5, 0.5, (2, 3, size)).astype(np.float32)
    expected, expected_state = run(exact, x=x, lengths=lengths, h=h)
    found, state = run(near, x=x, lengths=lengths, h=h)
    inside = np.arange(7)[:, None] < lengths
    assert 0 < np.abs(found - expected)[inside].max() < 0.05
    assert np.abs(state - expected_state).max() < 0.05
    # The same in two chunks; the second has nothing of the row that has ended.
    cut = np.array([3, 1, 3], np.int32)
    _, half = run(near, x=x[:3], lengths=cut, h=h)
    _, chained = run(near, x=x[3:], lengths=lengths - cut, h=half)
    assert np.abs(chained - expected_state).max() < 0.05


def test_small_recurrent_layers_are_taken_over() -> None:
    model = cells("GRU", 32)
    feeds = {
        "x": normal(3, 2, WIDTH),
        "lengths": np.array([3, 2], np.int32),
        "h": np.zeros((2, 2, 32), np.float32),
    }
    for expected, found in zip(run(model, **feeds), run(int8(model), **feeds), strict=True):
        assert found.tolist() == expected.tolist()


def test_weights_used_inside_a_loop_stay() -> None:
    inner = onnx.helper.make_graph(
        [
            onnx.helper.make_node("MatMul", ["before", "weight"], ["after"]),
            onnx.helper.make_node("Add", ["after", "part"], ["sum"]),
            onnx.helper.make_node("Identity", ["sum"], ["seen"]),
        ],
        "inner",
        [
            onnx.helper.make_tensor_value_info("before", onnx.TensorProto.FLOAT, [1, 4]),
            onnx.helper.make_tensor_value_info("part", onnx.TensorProto.FLOAT, [1, 4]),
        ],
        [
            onnx.helper.make_tensor_value_info("sum", onnx.TensorProto.FLOAT, [1, 4]),
            onnx.helper.make_tensor_value_info("seen", onnx.TensorProto.FLOAT, [1, 4]),
        ],
    )
    graph = GraphBuilder()
    start, parts = graph.input("start", "float32", [1, 4]), graph.input("x", "float32", ["T", 1, 4])
    graph.weight("weight", np.eye(4, dtype=np.float32))
    values = graph.nodes("Scan", start, parts, outputs=2, body=inner, num_scan_inputs=1)
    graph.output(values[1], "y", "float32", ["T", 1, 4])
    model = int8(graph.model("loop"))
    (y,) = run(model, start=np.zeros((1, 4), np.float32), x=np.ones((3, 1, 4), np.float32))
    assert y[:, 0, 0].tolist() == [1, 2, 3]
