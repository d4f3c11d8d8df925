"""Inputs with the right answers, computed by ONNX Runtime alone, so that a fast wrong server fails."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import msgspec
import numpy as np
import numpy.typing as npt
import onnxruntime

from benchmarks.raw import Array, Arrays, Raw
from service.contract import TOP_K, NextWord

TAPES, CHUNK = 4, 64
# Largest difference from ONNX Runtime's own answer in another batch, of probabilities and of numbers about 0.1.
TOLERANCE = 1e-4
# Candidates that a client asks for, and gets by default.
ASKED = 5
# Of a bare loop, to go round in.
_STEPS = 64
# Kept of every answer, so that words of nearly equal score are found in either order.
_CANDIDATES = 64


class WrongAnswer(Exception):
    """The service answered, and not what ONNX Runtime alone computes."""


class Answers(Protocol):
    """Compares answers of one kind of model."""

    def check(self, at: npt.NDArray[np.intp], results: Sequence[Any]) -> None:
        """Compare results of the steps `at`, in the shape a client gets them.

        Raises:
            WrongAnswer: One is not what ONNX Runtime alone computes.
        """


@dataclass(frozen=True)
class Words:
    """Right candidates of every step of a tape.

    Attributes:
        ids: Word ids (N, K) in falling order of probability.
        scores: Their probabilities (N, K).
        tolerance: Largest difference of a probability.
    """

    ids: npt.NDArray[np.int32]
    scores: npt.NDArray[np.float32]
    tolerance: float = TOLERANCE

    def check(self, at: npt.NDArray[np.intp], results: Sequence[Any]) -> None:
        """See `Answers`: each candidate has its own score, and no better one is left out."""
        ids = np.array([[candidate["id"] for candidate in result] for result in results])
        scores = np.array([[candidate["score"] for candidate in result] for result in results])
        self.compare(at, ids, scores)

    def compare(self, at: npt.NDArray[np.intp], ids: Array, scores: Array) -> None:
        """Compare the best candidates (n, k) of the steps `at` (n,); raises as `check`."""
        due = self.scores[at, : scores.shape[1]]
        same = self.ids[at][:, None, :] == ids[:, :, None]
        own = np.where(same, self.scores[at][:, None, :], -np.inf).max(axis=2)
        wrong = np.maximum(abs(scores - due), abs(scores - own)).max(axis=1) > self.tolerance
        if wrong.any():
            row = int(wrong.argmax())
            raise WrongAnswer(
                f"step {at[row]}: {ids[row]} {scores[row]}, not {self.ids[at[row]]} {due[row]}"
            )


@dataclass(frozen=True)
class Numbers:
    """Right values of every step of a tape.

    Attributes:
        name: The output.
        values: (N, C).
        tolerance: Largest difference.
    """

    name: str
    values: npt.NDArray[np.float32]
    tolerance: float = TOLERANCE

    def check(self, at: npt.NDArray[np.intp], results: Sequence[Any]) -> None:
        """See `Answers`."""
        self.compare(at, np.array([result[self.name] for result in results]))

    def compare(self, at: npt.NDArray[np.intp], found: Array) -> None:
        """Compare values (n, C) of the steps `at` (n,); raises as `check`."""
        wrong = abs(found - self.values[at]).max(axis=1) > self.tolerance
        if wrong.any():
            row = int(wrong.argmax())
            raise WrongAnswer(f"step {at[row]}: {found[row]}, not {self.values[at[row]]}")


@dataclass(frozen=True, eq=False)
class Tape:
    """One session's life.

    Attributes:
        inputs: What a client sends, one for each step.
        encoded: The same as JSON.
        arrays: The same as the model takes it, (N, *shape).
        answers: What is right.
    """

    inputs: list[Any]
    encoded: list[bytes]
    arrays: Array
    answers: Words | Numbers

    @property
    def length(self) -> int:
        """Steps."""
        return len(self.inputs)


@dataclass(frozen=True)
class Model:
    """A model and its tapes; session number i plays tape i modulo their number.

    Attributes:
        name: Of the model.
        raw: In ONNX Runtime.
        tapes: `TAPES` of them.
    """

    name: str
    raw: Raw
    tapes: list[Tape]

    @property
    def input(self) -> str:
        """Name of the graph's one input."""
        return self.raw.config.inputs[0].name

    @property
    def of_words(self) -> bool:
        """Whether it predicts words, and so can generate."""
        return isinstance(self.raw.config.task, NextWord)

    @property
    def top_k(self) -> int:
        """How many candidates a client asks for; 0 of a model that has none."""
        return ASKED if self.of_words else 0

    def batches(self, batch: int, *, whole: bool = False) -> list[Arrays]:
        """Feeds (B, 1, *shape) of the first steps of `batch` sessions.

        Args:
            batch: B.
            whole: Whether all candidates that the file gives are wanted, instead of those that a client asks for.
        """
        tapes = [self.tapes[i % TAPES] for i in range(batch)]
        more = {} if whole or not self.top_k else {TOP_K: np.array([self.top_k])}
        return [
            {self.input: np.stack([tape.arrays[at] for tape in tapes])[:, None], **more}
            for at in range(_STEPS)
        ]


def load(models: Path, scratch: Path, name: str, length: int) -> Model:
    """Load a model and its tapes of `length` steps, which are computed once and kept in `scratch`."""
    raw = Raw(models / name / "1")
    arrays, inputs = _words(raw, length) if _of_words(raw) else _numbers(raw, length)
    outputs = _kept(raw, arrays, scratch)
    tapes = []
    for i in range(TAPES):
        encoded = [msgspec.json.encode(value) for value in inputs[i]]
        answers: Words | Numbers
        if _of_words(raw):
            answers = Words(outputs["ids"][i], outputs["scores"][i])
        else:
            answers = Numbers(raw.outputs[0], outputs["values"][i])
        tapes.append(Tape(inputs[i], encoded, arrays[i], answers))
    return Model(name, raw, tapes)


def _of_words(raw: Raw) -> bool:
    return isinstance(raw.config.task, NextWord)


def _words(raw: Raw, length: int) -> tuple[Array, list[list[str]]]:
    """Random ids (TAPES, N) of words, and the words."""
    spec = raw.config.task
    assert isinstance(spec, NextWord)
    content = (raw.path.parent / spec.tokenizer).read_bytes()
    vocabulary: dict[str, int] = msgspec.json.decode(content)["model"]["vocab"]
    words = {i: word for word, i in vocabulary.items()}
    # The first two are <unk> and <eos>.
    ids = np.random.default_rng(1).integers(2, len(words), (TAPES, length))
    return ids, [[words[i] for i in row] for row in ids.tolist()]


def _numbers(raw: Raw, length: int) -> tuple[Array, list[list[list[float]]]]:
    """Random numbers (TAPES, N, C) with the digits that a measuring device gives."""
    (tensor,) = raw.config.inputs
    values = np.random.default_rng(1).standard_normal((TAPES, length, *tensor.shape)).round(3)
    return values.astype(tensor.dtype), values.tolist()


def _kept(raw: Raw, arrays: Array, scratch: Path) -> Arrays:
    """What `_fold` gives, from a file if it is there."""
    content = raw.path.read_bytes() + arrays.tobytes() + onnxruntime.__version__.encode()
    file = scratch / f"tapes-{hashlib.sha256(content).hexdigest()[:16]}.npz"
    if not file.exists():
        scratch.mkdir(parents=True, exist_ok=True)
        np.savez(file, allow_pickle=False, **_fold(raw, arrays))
    with np.load(file) as kept:
        return dict(kept)


def _fold(raw: Raw, arrays: Array) -> Arrays:
    """Answers to all steps, (TAPES, N, ...), straight from the runtime in chunks of CHUNK time steps."""
    feeds = raw.feeds(TAPES, CHUNK)
    parts: list[Arrays] = []
    for start in range(0, arrays.shape[1], CHUNK):
        chunk = arrays[:, start : start + CHUNK]
        feeds[raw.config.inputs[0].name] = chunk
        feeds[raw.config.lengths] = np.full(TAPES, chunk.shape[1], np.int32)
        outputs = raw.step(feeds)
        if _of_words(raw):
            scores = outputs["top_scores"][:, :, :_CANDIDATES].astype(np.float64)
            parts.append(
                {
                    "ids": outputs["top_indices"][:, :, :_CANDIDATES].astype(np.int32),
                    "scores": np.exp(scores - outputs["logsumexp"][:, :, None]).astype(np.float32),
                }
            )
        else:
            parts.append({"values": outputs[raw.outputs[0]]})
    return {name: np.concatenate([part[name] for part in parts], axis=1) for name in parts[0]}
