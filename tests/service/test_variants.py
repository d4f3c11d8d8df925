"""Which graph of a model runs: model.onnx, or a variant that its config names."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from service.contract import (
    CONFIG_FILE,
    GOLDEN_FILE,
    MODEL_FILE,
    Arithmetic,
    ContractError,
    decode_config,
    digest,
)
from service.engine.engine import Limits
from service.errors import ModelNotReady
from service.loading import Loading
from service.metrics import Metrics
from service.repository import Repository, Served
from tests import models

FILE = "model.int8.onnx"


def add_variant(directory: Path, factor: float = 2.01, **changes: Any) -> None:
    """To the doubler, a variant that multiplies by another factor."""
    model = onnx.load(directory / MODEL_FILE)
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(np.array(factor), "two"))
    content = model.SerializeToString()
    (directory / FILE).write_bytes(content)
    config = json.loads((directory / CONFIG_FILE).read_bytes())
    variant = {"name": "int8", "file": FILE, "device": "cpu", "tolerance": 0.1} | changes
    config["variants"].append(variant)
    config["files"][FILE] = digest(content)
    (directory / CONFIG_FILE).write_text(json.dumps(config))


@asynccontextmanager
async def loaded(root: Path, variant: Arithmetic) -> AsyncIterator[Repository]:
    limits = Limits(capacity=4, max_pending=10, max_pending_tokens=100)
    repository = Repository(Loading(root, "cpu", 1, variant), limits, Metrics())
    repository.find()
    await repository.load()
    try:
        yield repository
    finally:
        await repository.close()


async def doubled(served: Served, value: float) -> float:
    """What the graph that runs answers."""
    slot = served.engine.take()
    assert slot is not None
    inputs = {"x": np.array([value])}
    _, future = served.engine.submit(slot, inputs, np.array([0]), ("y",), np.inf)
    return float((await future)["y"][0])


@pytest.mark.parametrize(("wanted", "answer"), [("exact", 20.0), ("int8", 20.1), ("float16", 20.0)])
async def test_the_graph_that_was_asked_for_runs(
    tmp_path: Path, wanted: Arithmetic, answer: float
) -> None:
    add_variant(models.doubler(tmp_path))
    async with loaded(tmp_path, wanted) as repository:
        served = repository.get("doubler")
        assert served.variant == ("int8" if wanted == "int8" else "exact")
        assert await doubled(served, 10.0) == pytest.approx(answer)


async def test_a_model_without_it_runs_exactly_beside_one_that_has_it(tmp_path: Path) -> None:
    add_variant(models.doubler(tmp_path, name="small"))
    models.doubler(tmp_path, name="plain")
    async with loaded(tmp_path, "int8") as repository:
        assert repository.get("small").variant == "int8"
        assert repository.get("plain").variant == "exact"
        value = repository._metrics.registry.get_sample_value
        assert [
            value("seqserve_model_variant", {"model": model, "version": "1", "variant": variant})
            for model, variant in (("small", "int8"), ("plain", "exact"), ("plain", "int8"))
        ] == [1, 1, None]


async def test_a_variant_for_another_device_does_not_run_here(tmp_path: Path) -> None:
    add_variant(models.doubler(tmp_path), device="cuda")
    async with loaded(tmp_path, "int8") as repository:
        assert repository.get("doubler").variant == "exact"


async def test_a_variant_that_answers_too_differently_is_refused(tmp_path: Path) -> None:
    add_variant(models.doubler(tmp_path), factor=3.0)
    async with loaded(tmp_path, "int8") as repository:
        with pytest.raises(ModelNotReady, match=r"golden.json.* y: differs by 2, tolerance 0\.1"):
            repository.get("doubler")
    async with loaded(tmp_path, "exact") as repository:
        assert repository.get("doubler").variant == "exact"


@pytest.mark.parametrize("damage", ["hash", "missing"])
async def test_only_the_graph_that_runs_is_read(tmp_path: Path, damage: str) -> None:
    directory = models.doubler(tmp_path)
    add_variant(directory)
    if damage == "hash":
        (directory / FILE).write_bytes(b"")
    else:
        (directory / FILE).unlink()
    async with loaded(tmp_path, "exact") as repository:
        assert await doubled(repository.get("doubler"), 1.0) == 2.0
    async with loaded(tmp_path, "int8") as repository:
        with pytest.raises(ModelNotReady, match=FILE):
            repository.get("doubler")


@pytest.mark.parametrize("file", [MODEL_FILE, GOLDEN_FILE, "unlisted.onnx"])
def test_a_variant_has_a_file_of_its_own(tmp_path: Path, file: str) -> None:
    directory = models.doubler(tmp_path)
    add_variant(directory, file=file)
    with pytest.raises(ContractError, match="variant int8 needs a file of its own with a hash"):
        decode_config((directory / CONFIG_FILE).read_bytes())


def test_a_variant_is_named_once(tmp_path: Path) -> None:
    directory = models.doubler(tmp_path)
    add_variant(directory)
    add_variant(directory)
    with pytest.raises(ContractError, match="variants int8, int8 are not all different"):
        decode_config((directory / CONFIG_FILE).read_bytes())


def test_an_export_from_before_there_were_variants_is_read(tmp_path: Path) -> None:
    directory = models.doubler(tmp_path)
    config = json.loads((directory / CONFIG_FILE).read_bytes())
    del config["variants"]
    assert decode_config(json.dumps(config).encode()).variants == ()
