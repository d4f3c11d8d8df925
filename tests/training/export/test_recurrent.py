from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from training.config import Cell, RecurrentConfig
from training.export.onnx_graph import OPSET
from training.next_word.config import ModelConfig
from training.next_word.graph import step_graph
from training.next_word.model import LanguageModel

VOCABULARY = 30
cells = st.sampled_from(["rnn_tanh", "rnn_relu", "lstm", "gru"])
clusters = st.sampled_from([((), ()), ((12,), (5,)), ((5, 20), (3, 2))])


def make(
    cell: Cell, layers: int, shape: Any, *, tied: bool = True, **options: Any
) -> LanguageModel:
    cutoffs, widths = shape
    torch.manual_seed(layers)
    config = ModelConfig(embedding_dim=6, cutoffs=cutoffs, cutoff_dims=widths, tied=tied)
    encoder = RecurrentConfig(cell=cell, num_layers=layers, **{"hidden_size": 8, **options})
    model = LanguageModel(config, encoder, VOCABULARY).eval()
    for name, parameter in model.named_parameters():
        if "bias" in name or "norm" in name:
            torch.nn.init.normal_(parameter)
    return model


def session(model: LanguageModel) -> onnxruntime.InferenceSession:
    content = step_graph(model, 5, "float32").SerializeToString()
    return onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])


def run(
    graph: Any, tokens: Any, lengths: Any, state: list[Any]
) -> tuple[dict[str, Any], list[Any]]:
    names = ["h", "c"][: len(state)]
    outputs = [output.name for output in graph.get_outputs()]
    feeds = {"tokens": tokens, "lengths": lengths, **dict(zip(names, state, strict=True))}
    values = dict(zip(outputs, graph.run(outputs, feeds), strict=True))
    return values, [values[f"{name}_out"] for name in names]


@settings(deadline=None, max_examples=60)
@given(
    cell=cells,
    layers=st.integers(1, 3),
    shape=clusters,
    layer_norm=st.booleans(),
    tied=st.booleans(),
    hidden_size=st.sampled_from([6, 8]),
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=5),
    seed=st.integers(0, 1000),
)
def test_a_ragged_batch_and_its_next_chunk_equal_torch_row_by_row(
    cell: Cell, layers: int, shape: Any, lengths: list[int], seed: int, **options: Any
) -> None:
    model = make(cell, layers, shape, **options)
    graph = session(model)
    random = np.random.default_rng(seed)
    first, second = np.array(lengths, np.int32), np.array(lengths[::-1], np.int32)
    text = random.integers(0, VOCABULARY, (len(lengths), 20))
    # What stands behind the end of a row must not matter, so that is not padded with anything special.
    chunks = [text[:, : first.max()]]
    chunks.append(
        np.stack([np.roll(row, -n)[: second.max()] for row, n in zip(text, first, strict=True)])
    )
    state = [part.numpy() for part in model.encoder.initial_state(len(lengths))]
    one, state = run(graph, chunks[0], first, state)
    two, state = run(graph, chunks[1], second, state)
    for i, (n, m) in enumerate(zip(first, second, strict=True)):
        row = torch.from_numpy(text[i : i + 1, : n + m])
        with torch.no_grad():
            scores, last = model.scores(row, model.encoder.initial_state(1))
        found = np.concatenate([one["logits"][i, :n], two["logits"][i, :m]])
        np.testing.assert_allclose(found, scores[0].numpy(), atol=1e-5)
        for part, expected in zip(state, last, strict=True):
            np.testing.assert_allclose(part[i], expected[0].numpy(), atol=1e-5)


@pytest.mark.parametrize("shape", [((), ()), ((5, 20), (3, 2))])
def test_top_scores_are_the_largest_and_logsumexp_normalises(shape: Any) -> None:
    model = make("gru", 1, shape)
    random = np.random.default_rng(0)
    tokens = random.integers(0, VOCABULARY, (3, 4))
    values, _ = run(
        session(model), tokens, np.full(3, 4, np.int32), [np.zeros((3, 1, 8), np.float32)]
    )
    logits = values["logits"]
    np.testing.assert_array_equal(values["top_scores"], -np.sort(-logits, axis=-1)[..., :5])
    picked = np.take_along_axis(logits, values["top_indices"], axis=-1)
    np.testing.assert_array_equal(picked, values["top_scores"])
    np.testing.assert_allclose(np.log(np.exp(logits).sum(axis=-1)), values["logsumexp"], atol=1e-5)


def test_an_id_beyond_the_vocabulary_is_refused() -> None:
    graph = session(make("gru", 1, ((5, 20), (3, 2))))
    with pytest.raises(Exception, match="out of data bounds"):
        run(
            graph, np.array([[VOCABULARY]]), np.ones(1, np.int32), [np.zeros((1, 1, 8), np.float32)]
        )


@pytest.mark.parametrize("cell", ["rnn_tanh", "lstm", "gru"])
def test_float16_weights_are_constants_once_the_runtime_has_loaded_the_graph(
    cell: Cell, tmp_path: Any
) -> None:
    model = make(cell, 2, ((5, 20), (3, 2)))
    content = step_graph(model, 5, "float16")
    assert {i.data_type for i in content.graph.initializer if len(i.dims) == 3} == {
        onnx.TensorProto.FLOAT16
    }
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    # The runtime warns that a saved graph is tuned to this machine, which is why it is looked at here.
    options.log_severity_level = 3
    onnxruntime.InferenceSession(
        content.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    optimized = onnx.load(tmp_path / "optimized.onnx").graph
    constants = {i.name for i in optimized.initializer}
    layers = [node for node in optimized.node if node.op_type in ("RNN", "LSTM", "GRU")]
    assert len(layers) == 2
    assert all(set(node.input[1:4]) <= constants for node in layers)
    assert not [node for node in optimized.node if node.op_type == "Cast"]


def test_the_graph_uses_plain_operators_and_names_its_dynamic_axes() -> None:
    model = step_graph(make("lstm", 1, ((5, 20), (3, 2))), 5, "float16")
    assert {(o.domain, o.version) for o in model.opset_import} == {("", OPSET)}
    assert {node.domain for node in model.graph.node} == {""}
    axes = {
        value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    }
    assert axes["tokens"] == ["B", "T"]
    assert axes["c"] == axes["h_out"] == ["B", 1, 8]
    assert axes["logits"] == ["B", "T", VOCABULARY]
