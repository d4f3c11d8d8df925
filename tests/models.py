"""Tiny real models for the service's tests, written with onnx alone: an exact accumulator and a fixed-weight LSTM."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from service.contract import (
    CONFIG_FILE,
    GOLDEN_FILE,
    MODEL_FILE,
    SCHEMA_VERSION,
    Batching,
    Golden,
    GoldenCase,
    ModelConfig,
    Ner,
    NextWord,
    Provenance,
    StateTensor,
    TaskSpec,
    Tensor,
    Tensors,
    digest,
    encode,
)

OPSET = 20
WORDS = ["<unk>", "<eos>", "the", "cat", "sat", "on", "a", "mat", ".", "dog", "@-@", "3"]
CHARACTERS = "\n theacsonm."
TAGGED = ("<unk>", "Ann", "Lee", "saw", "Paris")
TAGS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
HIDDEN, EMBEDDING, TOP_K = 8, 6, 6


def write_model(
    root: Path,
    name: str,
    graph: onnx.GraphProto,
    *,
    task: TaskSpec,
    inputs: tuple[Tensor, ...],
    outputs: tuple[Tensor, ...],
    state: tuple[StateTensor, ...],
    golden: Golden,
    version: int = 1,
    streaming: bool = True,
    batching: Batching | None = None,
    extra_files: dict[str, bytes] | None = None,
) -> Path:
    """Write `<root>/<name>/<version>/` as an exporter does; returns it."""
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10, producer_name="tests"
    )
    onnx.checker.check_model(model, full_check=True)
    files = {MODEL_FILE: model.SerializeToString(), GOLDEN_FILE: encode(golden)}
    files |= extra_files or {}
    config = ModelConfig(
        schema_version=SCHEMA_VERSION,
        name=name,
        version=version,
        description=f"{name} for tests",
        architecture="test",
        task=task,
        streaming=streaming,
        inputs=inputs,
        outputs=outputs,
        state=state,
        batching=batching or Batching(max_chunk_length=8, max_batch_size=16, max_batch_tokens=64),
        opset=OPSET,
        files={file: digest(data) for file, data in files.items()},
        tolerance=1e-5,
        provenance=Provenance(command="tests"),
    )
    directory = root / name / str(version)
    directory.mkdir(parents=True)
    for file, data in (files | {CONFIG_FILE: encode(config)}).items():
        (directory / file).write_bytes(data)
    return directory


def accumulator(root: Path, **changes: Any) -> Path:
    """`state' = state + x`: any step lost, doubled or mixed up is a wrong number for ever after."""
    nodes = [
        # x beyond a row's length must not count.
        helper.make_node("Shape", ["x"], ["x_shape"]),
        helper.make_node("Gather", ["x_shape", "one"], ["time"]),
        helper.make_node("Range", ["zero", "time", "one"], ["positions"]),
        helper.make_node("Cast", ["lengths"], ["lengths64"], to=TensorProto.INT64),
        helper.make_node("Unsqueeze", ["lengths64", "axis1"], ["lengths_column"]),
        helper.make_node("Less", ["positions", "lengths_column"], ["valid"]),
        helper.make_node("Cast", ["valid"], ["mask"], to=TensorProto.DOUBLE),
        helper.make_node("Mul", ["x", "mask"], ["masked"]),
        helper.make_node("CumSum", ["masked", "one"], ["sums"]),
        helper.make_node("Unsqueeze", ["state", "axis1"], ["state_column"]),
        helper.make_node("Add", ["sums", "state_column"], ["total"]),
        helper.make_node("ReduceSum", ["masked", "axis1"], ["added"], keepdims=0),
        helper.make_node("Add", ["state", "added"], ["state_out"]),
    ]
    constants = {"zero": np.int64(0), "one": np.int64(1), "axis1": np.array([1], np.int64)}
    double = TensorProto.DOUBLE
    graph = helper.make_graph(
        nodes,
        "accumulator",
        [
            helper.make_tensor_value_info("x", double, ["B", "T"]),
            helper.make_tensor_value_info("lengths", TensorProto.INT32, ["B"]),
            helper.make_tensor_value_info("state", double, ["B"]),
        ],
        [
            helper.make_tensor_value_info("total", double, ["B", "T"]),
            helper.make_tensor_value_info("state_out", double, ["B"]),
        ],
        [numpy_helper.from_array(np.array(value), name) for name, value in constants.items()],
    )
    golden = Golden(
        cases=(
            GoldenCase(
                inputs={"x": [1.0, 2.0, 4.0]},
                split=(1, 2),
                outputs={"total": [1.0, 3.0, 7.0]},
                state={},
            ),
        )
    )
    arguments: dict[str, Any] = {
        "task": Tensors(),
        "inputs": (Tensor(name="x", dtype="float64"),),
        "outputs": (Tensor(name="total", dtype="float64"),),
        "state": (
            StateTensor(input_name="state", output_name="state_out", shape=(), dtype="float64"),
        ),
        "golden": golden,
    }
    return write_model(root, changes.pop("name", "accumulator"), graph, **(arguments | changes))


def doubler(root: Path, **changes: Any) -> Path:
    """`y = 2 x`: a model without state."""
    double = TensorProto.DOUBLE
    graph = helper.make_graph(
        [
            helper.make_node("Mul", ["x", "two"], ["y"]),
            helper.make_node("Size", ["lengths"], ["n"]),
        ],
        "doubler",
        [
            helper.make_tensor_value_info("x", double, ["B", "T"]),
            helper.make_tensor_value_info("lengths", TensorProto.INT32, ["B"]),
        ],
        [helper.make_tensor_value_info("y", double, ["B", "T"])],
        [numpy_helper.from_array(np.array(2.0), "two")],
    )
    case = GoldenCase(inputs={"x": [1.0, 2.0]}, split=(1, 1), outputs={"y": [2.0, 4.0]}, state={})
    arguments: dict[str, Any] = {
        "task": Tensors(),
        "inputs": (Tensor(name="x", dtype="float64"),),
        "outputs": (Tensor(name="y", dtype="float64"),),
        "state": (),
        "golden": Golden(cases=(case,)),
    }
    return write_model(root, changes.pop("name", "doubler"), graph, **(arguments | changes))


def tokenizer(tokens: Sequence[str] = WORDS) -> bytes:
    """A tokenizer file over `WORDS`, or over other tokens."""
    return json.dumps(
        {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [],
            "normalizer": None,
            "pre_tokenizer": {"type": "WhitespaceSplit"},
            "post_processor": None,
            "decoder": None,
            "model": {
                "type": "WordLevel",
                "vocab": {token: i for i, token in enumerate(tokens)},
                "unk_token": "<unk>",
            },
        }
    ).encode()


def language_weights(seed: int = 1) -> dict[str, np.ndarray]:
    """Fixed weights of the language model below, in ONNX layout (gates i, o, f, c)."""
    random = np.random.default_rng(seed)
    vocabulary = len(WORDS)
    return {
        "E": random.normal(size=(vocabulary, EMBEDDING)).astype(np.float32),
        "W": random.normal(size=(1, 4 * HIDDEN, EMBEDDING), scale=0.5).astype(np.float32),
        "R": random.normal(size=(1, 4 * HIDDEN, HIDDEN), scale=0.5).astype(np.float32),
        "bias": random.normal(size=(1, 8 * HIDDEN), scale=0.3).astype(np.float32),
        "D": random.normal(size=(HIDDEN, vocabulary)).astype(np.float32),
    }


def language_model(root: Path, **changes: Any) -> Path:
    """A one-layer LSTM over `WORDS` with fixed random weights."""
    weights = language_weights()
    vocabulary = len(WORDS)
    node = helper.make_node
    nodes = [
        node("Gather", ["E", "tokens"], ["embedded"]),
        node("Transpose", ["embedded"], ["x"], perm=[1, 0, 2]),
        node("Transpose", ["h"], ["h0"], perm=[1, 0, 2]),
        node("Transpose", ["c"], ["c0"], perm=[1, 0, 2]),
        node(
            "LSTM",
            ["x", "W", "R", "bias", "lengths", "h0", "c0"],
            ["y", "h1", "c1"],
            hidden_size=HIDDEN,
        ),
        node("Squeeze", ["y", "axis1"], ["y_time"]),
        node("Transpose", ["y_time"], ["y_batch"], perm=[1, 0, 2]),
        node("MatMul", ["y_batch", "D"], ["logits"]),
        node("ReduceLogSumExp", ["logits", "last"], ["logsumexp"], keepdims=0),
        node("TopK", ["logits", "k"], ["top_scores", "top_indices"]),
        node("Transpose", ["h1"], ["h_out"], perm=[1, 0, 2]),
        node("Transpose", ["c1"], ["c_out"], perm=[1, 0, 2]),
    ]
    constants = weights | {
        "axis1": np.array([1], np.int64),
        "last": np.array([-1], np.int64),
        "k": np.array([TOP_K], np.int64),
    }
    f32, i64 = TensorProto.FLOAT, TensorProto.INT64
    state_shape = ["B", 1, HIDDEN]
    graph = helper.make_graph(
        nodes,
        "language",
        [
            helper.make_tensor_value_info("tokens", i64, ["B", "T"]),
            helper.make_tensor_value_info("lengths", TensorProto.INT32, ["B"]),
            helper.make_tensor_value_info("h", f32, state_shape),
            helper.make_tensor_value_info("c", f32, state_shape),
        ],
        [
            helper.make_tensor_value_info("logits", f32, ["B", "T", vocabulary]),
            helper.make_tensor_value_info("top_scores", f32, ["B", "T", TOP_K]),
            helper.make_tensor_value_info("top_indices", i64, ["B", "T", TOP_K]),
            helper.make_tensor_value_info("logsumexp", f32, ["B", "T"]),
            helper.make_tensor_value_info("h_out", f32, state_shape),
            helper.make_tensor_value_info("c_out", f32, state_shape),
        ],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    tokens = [2, 3, 4, 5, 6, 7, 8]
    logits = reference_logits(tokens)
    golden = Golden(
        cases=(
            GoldenCase(
                inputs={"tokens": tokens},
                split=(1, 4, 2),
                outputs={"logits": logits.tolist()},
                state={},
            ),
        )
    )
    arguments: dict[str, Any] = {
        "task": NextWord(vocab_size=vocabulary, top_k=TOP_K),
        "inputs": (Tensor(name="tokens", dtype="int64"),),
        "outputs": (
            Tensor(name="logits", dtype="float32", shape=(vocabulary,)),
            Tensor(name="top_scores", dtype="float32", shape=(TOP_K,)),
            Tensor(name="top_indices", dtype="int64", shape=(TOP_K,)),
            Tensor(name="logsumexp", dtype="float32"),
        ),
        "state": (
            StateTensor(input_name="h", output_name="h_out", shape=(1, HIDDEN)),
            StateTensor(input_name="c", output_name="c_out", shape=(1, HIDDEN)),
        ),
        "golden": golden,
        "extra_files": {"tokenizer.json": tokenizer()},
    }
    return write_model(root, changes.pop("name", "language"), graph, **(arguments | changes))


def tagger(root: Path, **changes: Any) -> Path:
    """Tags each word of `TAGGED` by itself: Ann begins a person, Lee goes on with one, Paris is a place."""
    sure = np.full((len(TAGGED), len(TAGS)), 0.02, np.float32)
    for word, tag in enumerate(("O", "B-PER", "I-PER", "O", "B-LOC")):
        sure[word, TAGS.index(tag)] = 0.92
    i64 = TensorProto.INT64
    graph = helper.make_graph(
        [helper.make_node("Gather", ["sure", "words"], ["scores"])],
        "tagger",
        [
            helper.make_tensor_value_info("words", i64, ["B", "T"]),
            helper.make_tensor_value_info("characters", i64, ["B", "T", 4]),
            helper.make_tensor_value_info("lengths", TensorProto.INT32, ["B"]),
        ],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["B", "T", len(TAGS)])],
        [numpy_helper.from_array(sure, "sure")],
    )
    case = GoldenCase(
        inputs={"words": [1, 3], "characters": [[2, 3, 3, 0], [1, 1, 1, 0]]},
        split=(1, 1),
        outputs={"scores": sure[[1, 3]].tolist()},
        state={},
    )
    allowed = tuple(
        tuple(float(not b.startswith("I-") or a[2:] == b[2:]) for b in TAGS) for a in TAGS
    )
    arguments: dict[str, Any] = {
        "task": Ner(labels=TAGS, transitions=allowed, vocab_size=len(TAGGED), characters="An"),
        "inputs": (
            Tensor(name="words", dtype="int64"),
            Tensor(name="characters", dtype="int64", shape=(4,)),
        ),
        "outputs": (Tensor(name="scores", dtype="float32", shape=(len(TAGS),)),),
        "state": (),
        "golden": Golden(cases=(case,)),
        "extra_files": {"tokenizer.json": tokenizer(TAGGED)},
    }
    return write_model(root, changes.pop("name", "tagger"), graph, **(arguments | changes))


def character_model(root: Path) -> Path:
    """The same LSTM, its ids taken for `CHARACTERS`; nothing unknown to it can be said, and nothing ends a text."""
    task = NextWord(
        level="character",
        vocab_size=len(CHARACTERS),
        top_k=TOP_K,
        unknown_token=None,
        end_token=None,
    )
    files = {"tokenizer.json": tokenizer(CHARACTERS)}
    return language_model(root, name="characters", task=task, extra_files=files)


def reference_logits(tokens: list[int]) -> np.ndarray:
    """The language model in float64 numpy, written from the LSTM's equations; (T, V)."""
    w = {name: value.astype(np.float64) for name, value in language_weights().items()}
    bias = w["bias"][0, : 4 * HIDDEN] + w["bias"][0, 4 * HIDDEN :]
    h = c = np.zeros(HIDDEN)
    logits = []
    for token in tokens:
        gates = w["W"][0] @ w["E"][token] + w["R"][0] @ h + bias
        i, o, f, g = np.split(gates, 4)
        c = _sigmoid(f) * c + _sigmoid(i) * np.tanh(g)
        h = _sigmoid(o) * np.tanh(c)
        logits.append(h @ w["D"])
    return np.array(logits)


def reference_outputs(logits: np.ndarray) -> dict[str, np.ndarray]:
    """What the graph of a language model gives for logits (T, V)."""
    order = np.argsort(-logits, axis=1)[:, :TOP_K]
    return {
        "logits": logits,
        "top_indices": order,
        "top_scores": np.take_along_axis(logits, order, axis=1),
        "logsumexp": np.log(np.exp(logits).sum(axis=1)),
    }


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1.0 / (1.0 + np.exp(-x))
