from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from training.config import EncoderConfig, RecurrentConfig, TransformerConfig
from training.export.half import emulated, float16
from training.export.onnx_graph import Array, GraphBuilder
from training.next_word.config import ModelConfig
from training.next_word.graph import step_graph
from training.next_word.model import LanguageModel

VOCABULARY, WIDTH = 60, 16

ENCODERS: dict[str, EncoderConfig] = {
    "rnn": RecurrentConfig(cell="rnn_tanh", hidden_size=24),
    "gru": RecurrentConfig(cell="gru", hidden_size=24, num_layers=2),
    "lstm": RecurrentConfig(cell="lstm", hidden_size=24, num_layers=2, layer_norm=True),
    "transformer": TransformerConfig(width=16, heads=2, num_layers=2, window=5, feedforward=24),
}


def run(model: onnx.ModelProto, feeds: dict[str, Array]) -> dict[str, Array]:
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


@pytest.fixture(params=ENCODERS)
def exact(request: pytest.FixtureRequest) -> onnx.ModelProto:
    torch.manual_seed(7)
    config = ModelConfig(embedding_dim=WIDTH, cutoffs=(20,), cutoff_dims=(8,))
    model = LanguageModel(config, ENCODERS[request.param], VOCABULARY).eval()
    return step_graph(model, 5, "float16")


def feeds_of(model: onnx.ModelProto) -> dict[str, Array]:
    feeds: dict[str, Array] = {
        "tokens": np.array([[3, 50, 9], [20, 0, 0]]),
        "lengths": np.array([3, 1], np.int32),
    }
    defaults = {part.name for part in model.graph.initializer}
    for part in model.graph.input:
        if part.name not in feeds.keys() | defaults:
            shape = [2, *(d.dim_value for d in part.type.tensor_type.shape.dim[1:])]
            kind = onnx.helper.tensor_dtype_to_np_dtype(part.type.tensor_type.elem_type)
            feeds[part.name] = np.zeros(shape, kind)
    return feeds


def signature(model: onnx.ModelProto) -> list[tuple[str, int]]:
    return [
        (part.name, part.type.tensor_type.elem_type)
        for part in (*model.graph.input, *model.graph.output)
    ]


def test_inputs_outputs_and_state_are_those_of_the_exact_graph(exact: onnx.ModelProto) -> None:
    assert signature(float16(exact)) == signature(exact)
    assert signature(emulated(exact)) == signature(exact)


def test_weights_are_stored_once_and_in_two_bytes(exact: onnx.ModelProto) -> None:
    assert float16(exact).ByteSize() < exact.ByteSize() * 1.25


def test_it_answers_as_the_exact_graph_but_for_rounding(exact: onnx.ModelProto) -> None:
    feeds = feeds_of(exact)
    expected = run(exact, feeds)
    for model in (float16(exact), emulated(exact)):
        for name, values in run(model, feeds).items():
            rows = [values[0], values[1, :1]] if values.shape[1:2] == (3,) else list(values)
            due = expected[name]
            dues = [due[0], due[1, :1]] if due.shape[1:2] == (3,) else list(due)
            for found, answer in zip(rows, dues, strict=True):
                if name != "top_indices":
                    np.testing.assert_allclose(found, answer, atol=5e-3)


def test_the_recurrent_layer_and_the_products_are_in_float16(exact: onnx.ModelProto) -> None:
    model = onnx.shape_inference.infer_shapes(float16(exact))
    kinds = {v.name: v.type.tensor_type.elem_type for v in model.graph.value_info}
    large = [n for n in model.graph.node if n.op_type in ("LSTM", "GRU", "RNN", "Gemm")]
    assert large
    assert {kinds[node.output[0]] for node in large} == {onnx.TensorProto.FLOAT16}


def test_emulation_rounds_as_float16_does() -> None:
    weight = np.random.default_rng(1).standard_normal((8, 8)).astype(np.float32)
    x = np.random.default_rng(2).standard_normal((3, 8)).astype(np.float32)
    graph = GraphBuilder()
    y = graph.node("MatMul", graph.input("x", "float32", ["B", 8]), graph.weight("w", weight))
    graph.output(y, "y", "float32", ["B", 8])
    halves = x.astype(np.float16).astype(np.float32) @ weight.astype(np.float16).astype(np.float32)
    expected = halves.astype(np.float16).astype(np.float32)
    found = run(emulated(graph.model("product")), {"x": x})["y"]
    # The sum itself may be taken in another order, and then be rounded to the neighbour.
    assert np.mean(found == expected) > 0.9
    np.testing.assert_allclose(found, expected, rtol=2**-10)
