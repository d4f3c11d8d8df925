from __future__ import annotations

from collections import Counter
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
import torch

from service.contract import ModelConfig, Provenance, StateTensor, Tensor, Tensors
from tests.training import banded
from training.config import TransformerConfig
from training.export import parity
from training.export.bundle import Bundle, Case
from training.export.encoders import encode
from training.export.golden import golden
from training.export.onnx_graph import OPSET, GraphBuilder, Storage
from training.export.runtime import Arrays, LoadedGraph
from training.models.transformer import TransformerEncoder

CONFIG = TransformerConfig(width=12, heads=2, num_layers=2, window=5, feedforward=20)
WIDTH_IN = 7


def make(width_in: int = WIDTH_IN, **changes: Any) -> TransformerEncoder:
    torch.manual_seed(0)
    encoder = TransformerEncoder(msgspec.structs.replace(CONFIG, **changes), width_in).eval()
    for name, parameter in encoder.named_parameters():
        if "bias" in name or "norm" in name:
            torch.nn.init.normal_(parameter)
    return encoder.requires_grad_(False)


def step_graph(encoder: TransformerEncoder, storage: Storage = "float32") -> onnx.ModelProto:
    graph = GraphBuilder(storage)
    x = graph.input("x", "float32", ["B", "T", encoder.width_in])
    lengths = graph.input("lengths", "int32", ["B"])
    features = encode(graph, encoder, x, lengths)
    graph.output(features, "y", "float32", ["B", "T", encoder.width_out])
    return graph.model("encoder")


def bundle(encoder: TransformerEncoder) -> Bundle:
    def original(inputs: Arrays, state: Arrays) -> tuple[Arrays, Arrays]:
        before = tuple(torch.from_numpy(state[s.name])[None] for s in encoder.states)
        y, after = encoder(torch.from_numpy(inputs["x"])[None], before)
        named = zip(encoder.states, after, strict=True)
        return {"y": y[0].numpy()}, {spec.name: part[0].numpy() for spec, part in named}

    def sample(length: int, seed: int) -> Arrays:
        random = np.random.default_rng(seed)
        return {"x": random.normal(size=(length, encoder.width_in)).astype(np.float32)}

    config = ModelConfig(
        schema_version=1,
        name="encoder",
        version=1,
        description="",
        architecture="transformer",
        task=Tensors(),
        streaming=bool(encoder.states),
        inputs=(Tensor(name="x", dtype="float32", shape=(encoder.width_in,)),),
        outputs=(Tensor(name="y", dtype="float32", shape=(encoder.width_out,)),),
        state=tuple(
            StateTensor(
                input_name=s.name, output_name=f"{s.name}_out", shape=s.shape, dtype=s.dtype
            )
            for s in encoder.states
        ),
        opset=OPSET,
        files={},
        provenance=Provenance(command=""),
    )
    return Bundle(
        config=config,
        model=step_graph(encoder).SerializeToString(),
        original=original,
        sample=sample,
        cases=(),
        golden_outputs=("y",),
        measure=lambda _: (),
        card="",
    )


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize(
    "changes",
    [{}, {"window": 1}, {"window": 40}, {"bidirectional": True}],
    ids=["window-5", "window-1", "window-40", "bidirectional"],
)
def test_the_gate_of_exports_lets_it_through(layers: int, changes: dict[str, Any]) -> None:
    """B in 1, 2, 3, 17 and T in 1, 2, 7, 64, ragged, and two chained chunks of each."""
    one = bundle(make(num_layers=layers, **changes))
    assert parity.check(one, LoadedGraph(one.model, one.config)) < 1e-5


def test_an_input_of_the_right_width_is_not_projected() -> None:
    one = bundle(make(CONFIG.width))
    assert parity.check(one, LoadedGraph(one.model, one.config)) < 1e-5
    assert "input.weight" not in {
        i.name for i in onnx.load_from_string(one.model).graph.initializer
    }


@pytest.mark.parametrize("chunk", [1, 3, 64])
def test_a_session_of_ten_windows_equals_the_banded_pass_with_a_state_of_one_size(
    chunk: int,
) -> None:
    encoder = make(window=16)
    one = bundle(encoder)
    graph = LoadedGraph(one.model, one.config)
    x = one.sample(160, 1)["x"]
    state = graph.initial_state(1)
    shapes = {name: part.shape for name, part in state.items()}
    found = []
    for start in range(0, len(x), chunk):
        piece = x[None, start : start + chunk]
        outputs, state = graph.run({"x": piece}, np.array([piece.shape[1]]), state)
        found.append(outputs["y"][0])
        assert {name: part.shape for name, part in state.items()} == shapes
    expected = banded.features(encoder, x)
    np.testing.assert_allclose(np.concatenate(found), expected, atol=1e-4)


def test_the_count_is_folded_as_in_torch() -> None:
    encoder = make(num_layers=1)
    one = bundle(encoder)
    graph = LoadedGraph(one.model, one.config)
    x = one.sample(60, 1)["x"]
    state = graph.initial_state(1)
    start = encoder.period + CONFIG.window - 20
    state["count"] = np.full((1, 1), start)
    expected, after = one.original({"x": x}, {name: part[0] for name, part in state.items()})
    outputs, state = graph.run({"x": x[None]}, np.array([60]), state)
    np.testing.assert_allclose(outputs["y"][0], expected["y"], atol=1e-5)
    assert state["count"].item() == after["count"].item() == start + 60 - encoder.period


@pytest.mark.parametrize(
    ("window", "kept"), [(5, 5), (1024, 1)], ids=["small rings", "large rings"]
)
def test_golden_answers_hold_the_states_that_are_small(window: int, kept: int) -> None:
    one = bundle(make(window=window))
    one = msgspec.structs.replace(one, cases=(Case(one.sample(3, 0), (1, 2)),))
    (case,) = golden(one).cases
    assert len(case.state) == kept
    assert case.state["count_out"] == [3]
    assert np.shape(case.state.get("keys_0_out", [])) == ((2, 5, 6) if kept > 1 else (0,))


def test_the_graph_is_plain_and_every_state_keeps_its_shape() -> None:
    encoder = make()
    model = step_graph(encoder, "float16")
    assert {(o.domain, o.version) for o in model.opset_import} == {("", OPSET)}
    assert {node.domain for node in model.graph.node} == {""}
    axes = {
        value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    }
    assert axes["x"] == ["B", "T", WIDTH_IN]
    assert axes["y"] == ["B", "T", CONFIG.width]
    for spec in encoder.states:
        assert axes[spec.name] == axes[f"{spec.name}_out"] == ["B", *spec.shape]


def test_a_step_multiplies_with_each_ring_once_and_writes_it_once() -> None:
    model = step_graph(make())
    operators = Counter(node.op_type for node in model.graph.node)
    # For a layer: four matrices of weights, keys and values of the chunk, keys and values of the ring.
    assert operators["MatMul"] == CONFIG.num_layers * (4 + 2 + 2) + 1
    assert operators["ScatterND"] == 2 * CONFIG.num_layers
    assert not {"Loop", "Scan", "If"} & operators.keys()


def test_float16_weights_are_stored_and_computed_in_float32() -> None:
    encoder = make()
    halves = step_graph(encoder, "float16")
    kinds = Counter(i.data_type for i in halves.graph.initializer if len(i.dims) == 2)
    assert kinds == {onnx.TensorProto.FLOAT16: 1 + 4 * CONFIG.num_layers}
    encoder.load_state_dict({k: v.half().float() for k, v in encoder.state_dict().items()})
    one = msgspec.structs.replace(bundle(encoder), model=halves.SerializeToString())
    assert parity.check(one, LoadedGraph(one.model, one.config)) < 1e-5
