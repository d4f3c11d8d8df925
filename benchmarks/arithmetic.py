"""What int8 gains and costs in process, by cell, batch and way of quantising: `python -m benchmarks.arithmetic`.

One thread, processor time of a step, the ways in turns and the best of each; LSTM, GRU and Elman network of 2 x 512
with an embedding of 256 and a vocabulary of 10,000, random weights. Behind docs/decisions/0017-int8.md.
"""

from __future__ import annotations

import logging
import math
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic

from training.config import Cell, RecurrentConfig
from training.export.quantise import int8
from training.machine import cpu_model, int8_instructions
from training.next_word.config import ModelConfig
from training.next_word.graph import step_graph
from training.next_word.model import LanguageModel

CELLS: tuple[Cell, ...] = ("lstm", "gru", "rnn_tanh")
BATCHES = (1, 16, 64)
_VOCABULARY, _EMBEDDING, _HIDDEN, _LAYERS, _TOP = 10_000, 256, 512, 2, 64
_STEPS, _ROUNDS, _ROUND_S = 100, 6, 0.2

Array = npt.NDArray[Any]


def graphs(cell: Cell) -> Iterator[tuple[str, onnx.ModelProto]]:
    """A language model with a cell, exact and in every way of int8."""
    torch.manual_seed(4)
    encoder = RecurrentConfig(cell=cell, hidden_size=_HIDDEN, num_layers=_LAYERS)
    config = ModelConfig(embedding_dim=_EMBEDDING, tied=False)
    model = LanguageModel(config, encoder, _VOCABULARY).eval()
    with torch.no_grad():
        # Scores as far apart as those of a trained model.
        model.softmax.factors.tables[0].mul_(8)
    exact = step_graph(model, _TOP, "float32")
    yield "exact", exact
    yield "training.export.quantise", int8(exact)
    for kind in (QuantType.QInt8, QuantType.QUInt8):
        for reduced in (False, True):
            name = f"quantize_dynamic {kind.name}{', reduce_range' if reduced else ''}"
            yield name, _quantised(exact, kind, reduced=reduced)


def _quantised(model: onnx.ModelProto, kind: QuantType, *, reduced: bool) -> onnx.ModelProto:
    with tempfile.TemporaryDirectory() as directory:
        source, target = Path(directory, "exact.onnx"), Path(directory, "int8.onnx")
        onnx.save(model, source)
        quantize_dynamic(source, target, weight_type=kind, reduce_range=reduced)
        return onnx.load(target)


class Stepped:
    """A graph that takes one token a session at a time."""

    def __init__(self, model: onnx.ModelProto) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        content = model.SerializeToString()
        self.size = len(content)
        self._session = onnxruntime.InferenceSession(
            content, options, providers=["CPUExecutionProvider"]
        )
        given = {"tokens", "lengths"}
        self._states = [p.name for p in self._session.get_inputs() if p.name not in given]

    def state(self, batch: int) -> dict[str, Array]:
        """State of fresh sessions."""
        return {name: np.zeros((batch, _LAYERS, _HIDDEN), np.float32) for name in self._states}

    def step(
        self, tokens: Array, state: dict[str, Array], output: str
    ) -> tuple[Array, dict[str, Array]]:
        """One step of tokens (B,): an output (B, 1, ...) and the next state."""
        lengths = np.ones(len(tokens), np.int32)
        names = [output, *(f"{name}_out" for name in self._states)]
        feeds = {"tokens": tokens[:, None], "lengths": lengths, **state}
        found, *after = self._session.run(names, feeds)
        return found, dict(zip(self._states, after, strict=True))

    def scores(self, tokens: Array) -> Array:
        """Log-probabilities (T, B, V) of texts (T, B), each step with the state it left."""
        state, found = self.state(tokens.shape[1]), []
        for step in tokens:
            scores, state = self.step(step, state, "logits")
            found.append(scores[:, 0])
        return np.stack(found)

    def step_s(self, batch: int) -> float:
        """Processor time of a step of a batch, over one round."""
        tokens, state = np.arange(batch), self.state(batch)
        _, state = self.step(tokens, state, "top_scores")
        began, count = time.process_time(), 0
        while (passed := time.process_time() - began) < _ROUND_S:
            _, state = self.step(tokens, state, "top_scores")
            count += 1
        return passed / count


def measure(cell: Cell) -> Iterator[str]:
    """Rows of the table for one cell."""
    ways = {name: Stepped(model) for name, model in graphs(cell)}
    times = {(name, batch): math.inf for name in ways for batch in BATCHES}
    for _ in range(_ROUNDS):
        for name, batch in times:
            times[name, batch] = min(times[name, batch], ways[name].step_s(batch))
    texts = np.random.default_rng(5).integers(0, _VOCABULARY, (_STEPS, 4))
    exact = ways["exact"].scores(texts)
    for name, graph in ways.items():
        difference = np.abs(graph.scores(texts) - exact)
        speeds = (
            f"{batch / times[name, batch]:,.0f} ({times['exact', batch] / times[name, batch]:.2f})"
            for batch in BATCHES
        )
        cells = (
            *(cell, name, f"{graph.size / 1e6:.1f}", *speeds),
            *(f"{difference.mean():.4f}", f"{difference.max():.3f}"),
        )
        yield f"| {' | '.join(cells)} |"


def main() -> None:
    """Print the table."""
    # It advises a preparation that these graphs do not need.
    logging.disable(logging.WARNING)
    sizes = " | ".join(f"steps/s at {batch}" for batch in BATCHES)
    print(f"{cpu_model()}, {int8_instructions()}, onnxruntime {onnxruntime.__version__}\n")
    print(f"| cell | way | MB | {sizes} | mean difference | largest |")
    print(f"| --- | --- | ---: |{' ---: |' * len(BATCHES)} ---: | ---: |")
    for cell in CELLS:
        for row in measure(cell):
            print(row, flush=True)


if __name__ == "__main__":
    main()
