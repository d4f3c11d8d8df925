"""Inputs with the right answers, computed by ONNX Runtime alone, so that a fast wrong server fails."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from service.contract import Labels, NextWord
from service.engine.graph import Graph
from service.repository import Loaded, load_model
from service.tasks.protocol import Parameters, Task

MODELS = Path("exported")
TAPES, LENGTH, CHUNK = 4, 2048, 64
TOLERANCE = 1e-4

Arrays = dict[str, np.ndarray]


class WrongAnswer(Exception):
    """The service answered, and not what ONNX Runtime alone computes."""


@dataclass(frozen=True)
class Tape:
    """One session's life.

    Attributes:
        inputs: What a client sends, one for each step.
        arrays: The same as the model takes it, input name to (1, *shape).
        outputs: What ONNX Runtime alone computes, output name to (LENGTH, *shape).
        task: Turns outputs into answers.
    """

    inputs: list[Any]
    arrays: list[Arrays]
    outputs: Arrays
    task: Task

    def check_outputs(self, at: int, outputs: Arrays) -> None:
        """Compare the engine's outputs of one step."""
        for name, values in outputs.items():
            if (
                np.abs(values[0] - self.outputs[name][at]).max() > TOLERANCE
                and name != "top_indices"
            ):
                raise WrongAnswer(f"step {at}, {name}: {values[0]}, not {self.outputs[name][at]}")

    def check_answer(self, at: int, answer: Any) -> None:
        """Compare a client's answer: each candidate has its score, and no better one is left out."""
        named = answer if isinstance(answer, list) else [answer]
        right = self._scores(at)
        best = sorted(right.values(), reverse=True)
        if not named:
            raise WrongAnswer(f"step {at}: no candidates, not {right}")
        for candidate, due in zip(named, best, strict=False):
            score, name = candidate["score"], _name(candidate)
            if max(abs(score - due), abs(score - right.get(name, -1.0))) > TOLERANCE:
                raise WrongAnswer(f"step {at}: {answer}, not {right}")

    def _scores(self, at: int) -> dict[str, float]:
        """Score of every candidate the model names, by name."""
        outputs = {name: values[at : at + 1] for name, values in self.outputs.items()}
        every = Parameters(top_k=next(iter(outputs.values())).shape[-1])
        (answer,) = self.task.answers(outputs, every)
        return {_name(candidate): candidate["score"] for candidate in answer}


def _name(candidate: dict[str, Any]) -> str:
    return candidate.get("label") or candidate["token"]


@dataclass(frozen=True)
class Model:
    """A shipped model and its tapes; session number i plays tape i modulo their number."""

    name: str
    graph: Graph
    task: Task
    tapes: list[Tape]

    @property
    def outputs(self) -> list[str]:
        """What a run has to fetch for the task: its outputs and the next state."""
        return [*self.task.outputs, *(s.output_name for s in self.graph.config.state)]


def load(name: str, device: str) -> Model:
    """Load a shipped model and compute the answers of its tapes."""
    loaded = load_model(MODELS / name / "1", name, 1, device, threads=1)
    symbols = _symbols(loaded)
    choose = random.Random(1)
    inputs = [choose.choices(symbols, k=LENGTH) for _ in range(TAPES)]
    arrays = [[loaded.task.piece(value, "$") for value in row] for row in inputs]
    outputs = _fold(loaded, arrays)
    tapes = [Tape(inputs[i], arrays[i], outputs[i], loaded.task) for i in range(TAPES)]
    return Model(name, loaded.graph, loaded.task, tapes)


def _symbols(loaded: Loaded) -> list[str]:
    spec = loaded.config.task
    if isinstance(spec, Labels):
        return list(spec.symbols)
    assert isinstance(spec, NextWord)
    path = MODELS / loaded.config.name / str(loaded.config.version) / spec.tokenizer
    vocabulary = msgspec.json.decode(path.read_bytes())["model"]["vocab"]
    return [word for word in vocabulary if word.isalpha()]


def _fold(loaded: Loaded, arrays: list[list[Arrays]]) -> list[Arrays]:
    """Outputs of each tape, straight from the runtime in chunks of CHUNK time steps."""
    config, graph = loaded.config, loaded.graph
    feeds = graph.scratch_feeds(TAPES, CHUNK)
    states = {s.output_name: s.input_name for s in config.state}
    parts: list[Arrays] = []
    for start in range(0, LENGTH, CHUNK):
        for tensor in config.inputs:
            rows = [[step[tensor.name][0] for step in tape[start:][:CHUNK]] for tape in arrays]
            feeds[tensor.name] = np.array(rows, tensor.dtype)
        parts.append(graph.run(feeds, [*loaded.task.outputs, *states]))
        feeds |= {states[name]: parts[-1][name] for name in states}
    return [
        {name: np.concatenate([part[name][i] for part in parts]) for name in loaded.task.outputs}
        for i in range(TAPES)
    ]
