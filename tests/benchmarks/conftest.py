"""Small models in the shape of the measured ones, and one service for all measurements."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path

import msgspec
import onnx
import pytest

from benchmarks import models
from benchmarks.bench import Bench
from benchmarks.server import Server, service
from service.contract import CONFIG_FILE, MODEL_FILE, Variant, decode_config, digest, encode
from training.config import TransformerConfig
from training.export.quantise import int8

SMALL = models.Sizes(
    vocabulary=200,
    embedding=16,
    lstm=16,
    gru=8,
    transformer=TransformerConfig(width=16, heads=2, num_layers=2, window=8, feedforward=32),
)

Serve = Callable[..., AbstractContextManager[Server]]


@pytest.fixture(scope="session")
def small_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("measured")
    models.write(root, sizes=SMALL, variants=())
    _add_int8(root / models.LSTM / "1")
    return root


def _add_int8(directory: Path) -> None:
    """What an export does, but for measuring how good it is: these weights mean nothing."""
    content = int8(onnx.load(directory / MODEL_FILE)).SerializeToString()
    (directory / "model.int8.onnx").write_bytes(content)
    path = directory / CONFIG_FILE
    config = decode_config(path.read_bytes())
    variant = Variant(name="int8", file="model.int8.onnx", device="cpu", tolerance=10.0)
    files = config.files | {variant.file: digest(content)}
    path.write_bytes(encode(msgspec.structs.replace(config, files=files, variants=(variant,))))


@pytest.fixture(scope="session")
def serve() -> Iterator[Serve]:
    """Starts a service of each kind of settings once and lets everybody use it."""
    running: dict[tuple[tuple[str, str], ...], Server] = {}
    with ExitStack() as stack:

        def find(directory: Path, settings: Mapping[str, str] | None) -> nullcontext[Server]:
            key = tuple(sorted((settings or {}).items()))
            if key not in running:
                running[key] = stack.enter_context(service(directory, settings))
            return nullcontext(running[key])

        yield find


@pytest.fixture(scope="session")
def bench(small_models: Path, serve: Serve, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(
        models=small_models,
        shipped=small_models,
        seconds=0.05,
        rounds=1,
        quick=True,
        scratch=tmp_path_factory.mktemp("tapes"),
        serve=serve,
    )
