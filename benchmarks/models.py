"""The models that are measured: random weights that never change, written by training's own exporters.

    python -m benchmarks.models DIRECTORY

next-word LSTM (2 x 512, vocabulary 10,000, embedding 256), next-word Transformer (4 layers of 256, same vocabulary)
and a GRU (2 x 64) from 7 numbers to 7 numbers. What they say means nothing; what a step of them costs is what a step
of a trained model of the same shape costs.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import math
import string
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import torch
from torch import nn

from service.contract import Dataset, Metric, ModelConfig, Tensors, VariantName
from service.contract import Tensor as TensorSpec
from training import checkpoint
from training.config import (
    EncoderConfig,
    ExportConfig,
    RecurrentConfig,
    TrainedRun,
    TrainingConfig,
    TransformerConfig,
)
from training.export import package
from training.export.bundle import Bundle, Case
from training.export.encoders import encode
from training.export.onnx_graph import GraphBuilder, array
from training.export.runtime import Array, Arrays
from training.export.weights import Trained, model_config
from training.models.encoder import named
from training.models.recurrent import RecurrentEncoder
from training.next_word import bundle as next_word
from training.next_word import vocabulary
from training.next_word.config import ModelConfig as SoftmaxConfig
from training.next_word.config import NextWordRun
from training.next_word.corpora import END_OF_LINE, Corpus
from training.next_word.learner import TOKENIZER_FILE, shape
from training.next_word.model import LanguageModel

LSTM, GRU, TRANSFORMER = "bench-lstm", "bench-gru", "bench-transformer"
NAMES = (LSTM, GRU, TRANSFORMER)

# Not in git.
SCRATCH = Path(__file__).with_name("scratch")
SEED = 4
CHANNELS = 7
# Deviation of the scores of all words, about: far beyond rounding, so that one wrong step shows in all later answers.
_SPREAD = 2.0
_COMMAND = "python -m benchmarks.models DIRECTORY"
_NO_TRAINING = TrainingConfig(epochs=1, batch_size=1, lr=0.0)
_SOURCES = ("training/export", "training/models", "training/next_word", "service/contract.py")


_TRANSFORMER = TransformerConfig(width=256, heads=4, num_layers=4, window=128, feedforward=1024)


@dataclass(frozen=True)
class Sizes:
    """What is measured; tests take less."""

    vocabulary: int = 10_000
    embedding: int = 256
    lstm: int = 512
    gru: int = 64
    transformer: TransformerConfig = _TRANSFORMER


_FULL = Sizes()


class SeriesRun(TrainedRun, frozen=True, kw_only=True):
    """A model of numbers: encoder and one linear layer."""


def cached() -> Path:
    """Directory with the models, built anew only when the code that makes them has changed."""
    directory = SCRATCH / f"models-{_fingerprint()}"
    missing = [name for name in NAMES if not (directory / name / "1" / "config.json").exists()]
    if missing:
        write(directory, missing)
    return directory


def write(
    directory: Path,
    names: Sequence[str] = NAMES,
    sizes: Sizes = _FULL,
    variants: tuple[VariantName, ...] = ("int8",),
) -> None:
    """Build models and write `<directory>/<name>/1/`, as `seqtrain export` does; the LSTM with variants.

    Raises:
        ParityError: A graph does not equal its torch model.
        VariantError: The LSTM in int8 is too far from the exact one.
    """
    threads = torch.get_num_threads()
    # Steps this small gain nothing from more, and threads that wait for each other on a busy machine lose much.
    torch.set_num_threads(1)
    try:
        for name in names:
            bundle = _series(sizes) if name == GRU else _words(name, sizes)
            if name == LSTM:
                bundle = msgspec.structs.replace(bundle, variants=variants)
            package.write(bundle, directory)
    finally:
        torch.set_num_threads(threads)


def _fingerprint() -> str:
    source = Path(__file__).parents[1]
    paths = [Path(__file__)]
    for part in _SOURCES:
        path = source / part
        paths += sorted(path.glob("*.py")) if path.is_dir() else [path]
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()[:12]


def _encoder(name: str, sizes: Sizes) -> EncoderConfig:
    if name == LSTM:
        return RecurrentConfig(cell="lstm", hidden_size=sizes.lstm, num_layers=2)
    return sizes.transformer


def _words(name: str, sizes: Sizes) -> Bundle:
    """A language model, by the road of a trained one: a checkpoint, then training's own bundle."""
    run = NextWordRun(
        name=name,
        version=1,
        description=f"Benchmark: next word of {sizes.vocabulary:,}, random weights",
        seed=SEED,
        model=SoftmaxConfig(embedding_dim=sizes.embedding, tied=False),
        encoder=_encoder(name, sizes),
        training=_NO_TRAINING,
    )
    corpus = _corpus(sizes.vocabulary)
    tokenizer = vocabulary.build(corpus.train)
    torch.manual_seed(SEED)
    model = LanguageModel(run.model, run.encoder, tokenizer.get_vocab_size())
    _spread(model.eval())
    trained = {
        "weights": model.state_dict(),
        "shape": shape(run),
        "step": 0,
        "datasets": [],
        "git_commit": "",
        "versions": checkpoint.library_versions(),
    }
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        checkpoint.save(trained, directory / checkpoint.BEST)
        (directory / TOKENIZER_FILE).write_text(tokenizer.to_str())
        # All is read by the time it returns.
        return next_word.bundle(run, _COMMAND, directory, corpus)


def _spread(model: LanguageModel) -> None:
    """Scale the last layer until the scores are spread; by a power of two, so that the weights are always the same."""
    tokens = torch.randint(0, model.vocab_size, (8, 32))
    with torch.no_grad():
        deviation = float(model.scores(tokens, model.encoder.initial_state(8))[0].std())
        model.softmax.factors.tables[0].mul_(2 ** round(math.log2(_SPREAD / deviation)))


def _corpus(size: int) -> Corpus:
    """Every word once; ids in this order, `<unk>` and `<eos>` first."""
    made_up = ("".join(letters) for letters in itertools.product(string.ascii_lowercase, repeat=3))
    tokens = [vocabulary.UNKNOWN, END_OF_LINE, *itertools.islice(made_up, size - 2)]
    return Corpus(
        level="word",
        train=tokens,
        valid=tokens[:512],
        dataset=Dataset(name="made-up words", licence="none needed", sha256={}),
    )


class SeriesModel(nn.Module):
    """y_t = W h_t + b over an encoder of x_t; x (B, T, 7) to y (B, T, 7)."""

    def __init__(self, config: RecurrentConfig) -> None:
        super().__init__()
        self.encoder = RecurrentEncoder(config, CHANNELS)
        self.output = nn.Linear(self.encoder.width_out, CHANNELS)


def _series(sizes: Sizes) -> Bundle:
    """The GRU: numbers in, numbers out."""
    encoder = RecurrentConfig(cell="gru", hidden_size=sizes.gru, num_layers=2)
    run = SeriesRun(
        name=GRU,
        version=1,
        description="Benchmark: 7 numbers to 7 numbers, random weights",
        seed=SEED,
        encoder=encoder,
        training=_NO_TRAINING,
        export=ExportConfig(max_batch_size=128, max_batch_tokens=2048),
    )
    torch.manual_seed(SEED)
    model = SeriesModel(encoder).eval()
    return Bundle(
        config=_series_config(run, model),
        model=_series_graph(model),
        original=lambda inputs, state: _answer(model, inputs, state),
        sample=lambda length, seed: {"x": _numbers(length, seed)},
        cases=(
            Case({"x": _numbers(1, 1)}, (1,)),
            Case({"x": _numbers(7, 2)}, (1, 2, 4)),
        ),
        golden_outputs=("y",),
        measure=lambda graph: (Metric(name="none", split="random weights", value=0.0),),
        card="Random weights; for measuring only.\n",
    )


def _series_config(run: SeriesRun, model: SeriesModel) -> ModelConfig:
    trained = Trained({}, 0, (), "", checkpoint.library_versions())
    return model_config(
        run,
        trained,
        _COMMAND,
        task=Tensors(),
        inputs=(TensorSpec(name="x", dtype="float32", shape=(CHANNELS,)),),
        outputs=(TensorSpec(name="y", dtype="float32", shape=(CHANNELS,)),),
        states=model.encoder.states,
    )


def _series_graph(model: SeriesModel) -> bytes:
    graph = GraphBuilder()
    x = graph.input("x", "float32", ["B", "T", CHANNELS])
    lengths = graph.input("lengths", "int32", ["B"])
    features = encode(graph, model.encoder, x, lengths)
    weight = graph.weight("output.weight", np.ascontiguousarray(array(model.output.weight).T))
    bias = graph.weight("output.bias", array(model.output.bias))
    y = graph.node("Add", graph.node("MatMul", features, weight), bias)
    graph.output(y, "y", "float32", ["B", "T", CHANNELS])
    content: bytes = graph.model("series").SerializeToString()
    return content


def _answer(model: SeriesModel, inputs: Arrays, state: Arrays) -> tuple[Arrays, Arrays]:
    """The torch model over x (T, 7); see `Original`."""
    states = model.encoder.states
    before = tuple(torch.from_numpy(state[spec.name])[None] for spec in states)
    with torch.inference_mode():
        features, after = model.encoder(torch.from_numpy(inputs["x"])[None], before)
        y = model.output(features)[0].numpy()
    return {"y": y}, {name: part[0].numpy() for name, part in named(states, after).items()}


def _numbers(length: int, seed: int) -> Array:
    return np.random.default_rng(seed).standard_normal((length, CHANNELS)).astype(np.float32)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.models", description=__doc__)
    parser.add_argument("directory", type=Path)
    directory = parser.parse_args().directory
    write(directory)
    print(*(directory / name / "1" for name in NAMES), sep="\n")


if __name__ == "__main__":
    main()
