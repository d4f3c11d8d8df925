"""The gate over every encoder: layers, batch sizes, lengths, ragged rows and chained chunks, one way and both."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from service.contract import (
    SCHEMA_VERSION,
    Batching,
    ModelConfig,
    Provenance,
    StateTensor,
    Tensor,
    Tensors,
)
from training.config import EncoderConfig, RecurrentConfig, TransformerConfig
from training.export import parity
from training.export.bundle import Bundle
from training.export.encoders import encode
from training.export.onnx_graph import OPSET, GraphBuilder
from training.export.runtime import LoadedGraph
from training.models.encoder import Encoder, named
from training.models.encoders import make_encoder

WIDTH = 5


def config_of(cell: str, layers: int, *, bidirectional: bool) -> EncoderConfig:
    if cell == "transformer":
        return TransformerConfig(
            width=8,
            heads=2,
            num_layers=layers,
            window=9,
            feedforward=12,
            bidirectional=bidirectional,
        )
    return RecurrentConfig(
        cell=cell,  # type: ignore[arg-type]
        hidden_size=6,
        num_layers=layers,
        layer_norm=layers == 2,
        bidirectional=bidirectional,
    )


def bundle_of(encoder: Encoder) -> Bundle:
    """The encoder alone as an export: vectors in, features out."""
    graph = GraphBuilder()
    x = graph.input("x", "float32", ["B", "T", WIDTH])
    features = encode(graph, encoder, x, graph.input("lengths", "int32", ["B"]))
    graph.output(features, "y", "float32", ["B", "T", encoder.width_out])
    states = tuple(
        StateTensor(input_name=s.name, output_name=f"{s.name}_out", shape=s.shape, dtype=s.dtype)
        for s in encoder.states
    )
    config = ModelConfig(
        schema_version=SCHEMA_VERSION,
        name="encoder",
        version=1,
        description="A test",
        architecture="any",
        task=Tensors(),
        streaming=bool(states),
        inputs=(Tensor(name="x", dtype="float32", shape=(WIDTH,)),),
        outputs=(Tensor(name="y", dtype="float32", shape=(encoder.width_out,)),),
        state=states,
        batching=Batching(),
        opset=OPSET,
        files={},
        tolerance=1e-5,
        provenance=Provenance(command=""),
    )

    def original(inputs: Any, state: Any) -> Any:
        before = tuple(torch.from_numpy(state[s.name])[None] for s in encoder.states)
        with torch.no_grad():
            y, after = encoder(torch.from_numpy(inputs["x"])[None], before)
        named_after = named(encoder.states, after)
        return {"y": y[0].numpy()}, {name: part[0].numpy() for name, part in named_after.items()}

    def sample(length: int, seed: int) -> Any:
        values = np.random.default_rng(seed).normal(size=(length, WIDTH))
        return {"x": values.astype(np.float32)}

    return Bundle(
        config=config,
        model=graph.model("encoder").SerializeToString(),
        original=original,
        sample=sample,
        cases=(),
        golden_outputs=("y",),
        measure=lambda graph: (),
        card="",
    )


@pytest.mark.parametrize("bidirectional", [False, True], ids=["forwards", "both ways"])
@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("cell", ["rnn_tanh", "rnn_relu", "lstm", "gru", "transformer"])
def test_the_graph_of_every_encoder_equals_torch(
    cell: str, layers: int, bidirectional: bool
) -> None:
    torch.manual_seed(layers)
    encoder = make_encoder(config_of(cell, layers, bidirectional=bidirectional), WIDTH).eval()
    for name, parameter in encoder.named_parameters():
        if "bias" in name or "norm" in name:
            torch.nn.init.normal_(parameter, mean=1.0 if "norm.weight" in name else 0.0, std=0.3)
    bundle = bundle_of(encoder)
    assert (17 in parity.BATCH_SIZES, 64 in parity.TIMES) == (True, True)
    assert parity.check(bundle, LoadedGraph(bundle.model, bundle.config)) < 1e-5


@pytest.mark.parametrize("cell", ["rnn_tanh", "lstm", "gru", "transformer"])
def test_the_gate_notices_a_wrong_weight(cell: str) -> None:
    torch.manual_seed(0)
    encoder = make_encoder(config_of(cell, 1, bidirectional=False), WIDTH).eval()
    bundle = bundle_of(encoder)
    with torch.no_grad():
        next(encoder.parameters()).view(-1)[0].add_(0.1)
    with pytest.raises(parity.ParityError, match="y"):
        parity.check(bundle, LoadedGraph(bundle.model, bundle.config))
