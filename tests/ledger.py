"""A language model whose scores are exact: every word it was ever fed, at its place, decides the next.

One token lost, doubled, swapped or fed to another session is another text from there on. Scores are read from a table,
so that whatever shares the batch they are the same to the last bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from service.contract import Batching, Golden, GoldenCase, NextWord, StateTensor, Tensor
from service.engine.sampling import Sampling, choose, choose_of_all
from tests.models import TOP_K, WORDS, tokenizer, write_model

MODEL = "ledger"
UNKNOWN = WORDS.index("<unk>")
MAX_BATCH = 128
_PAGES = 97
_V = len(WORDS)


def _table() -> np.ndarray:
    """Logits after each sum, (pages, V): no two of a row alike."""
    chance = np.random.default_rng(7)
    steps = np.arange(_V) / 4
    return np.stack([chance.permutation(steps) for _ in range(_PAGES)]).astype(np.float32)


TABLE = _table()


def pages(tokens: Sequence[int]) -> list[int]:
    """Row of the table after each token: sum of (number of the token + its id) x number, from 1."""
    places = np.arange(1, len(tokens) + 1)
    return (np.cumsum((np.array(tokens) + places) * places) % _PAGES).tolist()


def text(prompt: Sequence[int], count: int, how: Sampling, seed: int) -> list[int]:
    """What the model writes after a prompt, each token chosen by itself."""
    numbers = np.random.Generator(np.random.Philox(seed)).random(count)
    tokens = list(prompt)
    for number in numbers:
        logits = TABLE[pages(tokens)[-1]][None]
        uniform = np.array([number])
        if how.temperature > 0 and not 0 < how.top_k < TOP_K:
            (token,) = choose_of_all(logits, [how], uniform, UNKNOWN)
        else:
            order = np.argsort(-logits, axis=1)[:, :TOP_K]
            scores = np.take_along_axis(logits, order, axis=1)
            token = order[0, choose(scores, [how], uniform, order == UNKNOWN)[0]]
        tokens.append(int(token))
    return tokens[len(prompt) :]


def write(root: Path) -> Path:
    """Write the model's directory as an exporter does."""
    node = helper.make_node
    nodes = [
        node("Shape", ["tokens"], ["shape"]),
        node("Gather", ["shape", "one"], ["time"]),
        node("Range", ["zero", "time", "one"], ["positions"]),
        node("Cast", ["lengths"], ["lengths64"], to=TensorProto.INT64),
        node("Unsqueeze", ["lengths64", "axis1"], ["lengths_column"]),
        # A token beyond a row's length must not count.
        node("Less", ["positions", "lengths_column"], ["valid"]),
        node("Cast", ["valid"], ["mask"], to=TensorProto.INT64),
        node("Cast", ["count"], ["count64"], to=TensorProto.INT64),
        node("Cast", ["total"], ["total64"], to=TensorProto.INT64),
        node("Unsqueeze", ["count64", "axis1"], ["count_column"]),
        node("Unsqueeze", ["total64", "axis1"], ["total_column"]),
        node("Add", ["positions", "count_column"], ["before"]),
        node("Add", ["before", "one"], ["places"]),
        node("Add", ["tokens", "places"], ["named"]),
        node("Mul", ["named", "places"], ["weighed"]),
        node("Mul", ["weighed", "mask"], ["entered"]),
        node("CumSum", ["entered", "one"], ["sums"]),
        node("Add", ["sums", "total_column"], ["totals"]),
        node("Mod", ["totals", "pages"], ["page"]),
        node("Gather", ["table", "page"], ["logits"]),
        node("Gather", ["table_logsumexp", "page"], ["logsumexp"]),
        node("TopK", ["logits", "top_k"], ["top_scores", "top_indices"]),
        node("ReduceSum", ["entered", "axis1"], ["added"], keepdims=0),
        node("Add", ["total64", "added"], ["total_new"]),
        node("Mod", ["total_new", "pages"], ["total_page"]),
        node("Cast", ["total_page"], ["total_out"], to=TensorProto.DOUBLE),
        node("Add", ["count64", "lengths64"], ["count_new"]),
        node("Cast", ["count_new"], ["count_out"], to=TensorProto.DOUBLE),
    ]
    logsumexp = np.log(np.exp(TABLE.astype(np.float64)).sum(axis=1)).astype(np.float32)
    constants = {
        "zero": np.int64(0),
        "one": np.int64(1),
        "axis1": np.array([1], np.int64),
        "pages": np.int64(_PAGES),
        "top_k": np.array([TOP_K], np.int64),
        "table": TABLE,
        "table_logsumexp": logsumexp,
    }
    f32, f64, i64 = TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.INT64
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        MODEL,
        [
            value("tokens", i64, ["B", "T"]),
            value("lengths", TensorProto.INT32, ["B"]),
            value("count", f64, ["B"]),
            value("total", f64, ["B"]),
            # With the constant as its default.
            value("top_k", i64, [1]),
        ],
        [
            value("logits", f32, ["B", "T", _V]),
            value("top_scores", f32, ["B", "T", "K"]),
            value("top_indices", i64, ["B", "T", "K"]),
            value("logsumexp", f32, ["B", "T"]),
            value("count_out", f64, ["B"]),
            value("total_out", f64, ["B"]),
        ],
        [numpy_helper.from_array(np.array(each), name) for name, each in constants.items()],
    )
    told: list[int] = [2, 3, 4, 5]
    outputs: Any = {"logits": TABLE[pages(told)].tolist()}
    case = GoldenCase(inputs={"tokens": told}, split=(1, 3), outputs=outputs, state={})
    return write_model(
        root,
        MODEL,
        graph,
        task=NextWord(vocab_size=_V, top_k=TOP_K),
        inputs=(Tensor(name="tokens", dtype="int64"),),
        outputs=(
            Tensor(name="logits", dtype="float32", shape=(_V,)),
            Tensor(name="top_scores", dtype="float32", shape=(TOP_K,)),
            Tensor(name="top_indices", dtype="int64", shape=(TOP_K,)),
            Tensor(name="logsumexp", dtype="float32"),
        ),
        state=(
            StateTensor(input_name="count", output_name="count_out", shape=(), dtype="float64"),
            StateTensor(input_name="total", output_name="total_out", shape=(), dtype="float64"),
        ),
        golden=Golden(cases=(case,)),
        batching=Batching(max_chunk_length=8, max_batch_size=MAX_BATCH, max_batch_tokens=1024),
        extra_files={"tokenizer.json": tokenizer()},
    )
