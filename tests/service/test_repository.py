from __future__ import annotations

import json
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from service.contract import CONFIG_FILE, GOLDEN_FILE, MODEL_FILE, digest
from service.engine.engine import Limits
from service.errors import ModelNotReady, UnknownModel
from service.loading import Loading
from service.metrics import Metrics
from service.repository import Repository
from service.tasks.next_word import NextWordTask
from service.tasks.numbers import LabelsTask, TensorsTask
from tests import models
from tests.engines import add, total

LIMITS = Limits(capacity=4, max_pending=10, max_pending_tokens=100)


def repository_of(root: Path, limits: Limits = LIMITS) -> Repository:
    return Repository(Loading(root, "cpu", 1), limits, Metrics())


@asynccontextmanager
async def loaded(root: Path, limits: Limits = LIMITS) -> AsyncIterator[Repository]:
    repository = repository_of(root, limits)
    repository.find()
    await repository.load()
    try:
        yield repository
    finally:
        await repository.close()


Loaded = Callable[[Path], AbstractAsyncContextManager[Repository]]


def change_config(directory: Path, **changes: Any) -> None:
    config = json.loads((directory / CONFIG_FILE).read_bytes())
    (directory / CONFIG_FILE).write_text(json.dumps(config | changes))


def replace_file(directory: Path, name: str, content: bytes, listed: str | None = None) -> None:
    """Put another file in place, with its right hash in the config."""
    (directory / name).write_bytes(content)
    files = json.loads((directory / CONFIG_FILE).read_bytes())["files"]
    change_config(directory, files=files | {listed or name: digest(content)})


def golden(**changes: Any) -> bytes:
    case = {"inputs": {"x": [1, 2]}, "split": [1, 1], "outputs": {"total": [1, 3]}, "state": {}}
    return json.dumps({"cases": [case | changes]}).encode()


def missing_file(directory: Path) -> None:
    (directory / MODEL_FILE).unlink()


def missing_config(directory: Path) -> None:
    (directory / CONFIG_FILE).unlink()


def wrong_hash(directory: Path) -> None:
    content = (directory / MODEL_FILE).read_bytes()
    (directory / MODEL_FILE).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def corrupt_model(directory: Path) -> None:
    replace_file(directory, MODEL_FILE, (directory / MODEL_FILE).read_bytes()[:100])


def unlisted_model(directory: Path) -> None:
    files = json.loads((directory / CONFIG_FILE).read_bytes())["files"]
    del files[MODEL_FILE]
    change_config(directory, files=files)


def outside_file(directory: Path) -> None:
    content = (directory / GOLDEN_FILE).read_bytes()
    (directory.parent / "outside").write_bytes(content)
    replace_file(directory, GOLDEN_FILE, content, listed="../outside")


def external_data(directory: Path) -> None:
    model = onnx.load(directory / MODEL_FILE)
    weights = onnx.numpy_helper.from_array(np.zeros(5000, np.float32), "unused")
    model.graph.initializer.append(weights)
    model.graph.node.append(onnx.helper.make_node("Identity", ["unused"], ["unused_out"]))
    onnx.save_model(
        model,
        directory / MODEL_FILE,
        save_as_external_data=True,
        location="weights.bin",
        size_threshold=100,
    )
    assert (directory / "weights.bin").exists()
    replace_file(directory, MODEL_FILE, (directory / MODEL_FILE).read_bytes())


def null_in_a_name(directory: Path) -> None:
    files = json.loads((directory / CONFIG_FILE).read_bytes())["files"]
    change_config(directory, files=files | {"a\0b": ""})


def other_inputs(directory: Path) -> None:
    change_config(directory, inputs=[{"name": "y", "dtype": "float64"}])


def other_state(directory: Path) -> None:
    state = {"input_name": "state", "output_name": "state_out", "shape": [3], "dtype": "float64"}
    change_config(directory, state=[state])


def too_large(directory: Path) -> None:
    state = {"input_name": "state", "output_name": "state_out", "dtype": "float64"}
    change_config(directory, state=[state | {"shape": [2**60]}])


DAMAGES: list[tuple[Callable[[Path], object], str]] = [
    (missing_file, "model.onnx cannot be read: No such file"),
    (missing_config, "config.json cannot be read: No such file"),
    (wrong_hash, "SHA-256 of model.onnx is not the one in config.json"),
    (corrupt_model, "ONNX Runtime refuses the graph"),
    (unlisted_model, "config.json lists no hash for model.onnx"),
    (outside_file, r"names a file outside the model's directory: \.\./outside"),
    (external_data, "ONNX Runtime refuses the graph"),
    (other_inputs, "the graph's inputs are .*config.json says"),
    (other_state, "Invalid rank for input: state"),
    (too_large, "array is too big"),
    (lambda d: change_config(d, schema_version=2), "schema_version 2 is unknown"),
    (lambda d: change_config(d, colour="red"), "unknown field `colour`"),
    (lambda d: change_config(d, name="other"), "is of other version 1, the directory of bad"),
    (lambda d: change_config(d, version=2), "is of bad version 2, the directory of bad version 1"),
    (lambda d: (d / CONFIG_FILE).write_bytes(b"{"), "config.json: Input data was truncated"),
    (
        lambda d: replace_file(d, GOLDEN_FILE, golden(outputs={"total": [1, 4]})),
        r"golden.json case 0, chunks \(2,\), total: differs by 1, tolerance 1e-05",
    ),
    (lambda d: replace_file(d, GOLDEN_FILE, b"[]"), "golden.json: Expected `object`"),
    (lambda d: replace_file(d, GOLDEN_FILE, golden(inputs={})), "golden.json case 0: inputs are "),
    (lambda d: replace_file(d, GOLDEN_FILE, golden(inputs={"x": ["a", "b"]})), "ValueError"),
    (lambda d: replace_file(d, GOLDEN_FILE, golden(inputs={"x": [[1], [2, 3]]})), "ValueError"),
    (lambda d: replace_file(d, GOLDEN_FILE, golden(split=[])), "does not add up"),
    (lambda d: replace_file(d, GOLDEN_FILE, golden(split=[2, 2])), "does not add up"),
    (lambda d: replace_file(d, GOLDEN_FILE, golden(split=[0, 2])), "does not add up"),
    (lambda d: replace_file(d, GOLDEN_FILE, b'{"cases": []}'), "length >= 1"),
    (null_in_a_name, "embedded null byte"),
    (lambda d: change_config(d, task={"name": "next_word", "vocab_size": 1, "top_k": 2}), "output"),
]


@pytest.mark.parametrize(
    ("damage", "reason"), DAMAGES, ids=lambda value: getattr(value, "__name__", None)
)
async def test_a_bad_model_is_refused_by_name_while_another_serves(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    damage: Callable[[Path], object],
    reason: str,
) -> None:
    damage(models.accumulator(tmp_path, name="bad"))
    models.accumulator(tmp_path, name="good")
    async with loaded(tmp_path) as repository:
        with pytest.raises(ModelNotReady, match=f"(?s)model bad was refused: .*{reason}"):
            repository.get("bad")
        bad, good = repository.entries
        assert (bad.name, bad.state, good.name, good.state) == ("bad", "refused", "good", "ready")
        assert repository.ready
        engine = repository.get("good").engine
        slot = engine.take()
        assert slot is not None
        assert await total(add(engine, slot, 1, 2)[1]) == [1, 3]
    assert "model bad version 1 is refused" in caplog.text


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"{}", "tokenizer.json cannot be read"),
        (b"\xff", "tokenizer.json cannot be read"),
        (models.tokenizer()[:-20], "cannot be read"),
        (models.tokenizer().replace(b"WordLevel", b"BPE"), "cannot be read"),
        (models.tokenizer().replace(b": 3", b": 0"), "has 12 words"),
    ],
)
async def test_a_bad_tokenizer_is_refused_by_name(
    tmp_path: Path, content: bytes, reason: str
) -> None:
    replace_file(models.language_model(tmp_path, name="bad"), "tokenizer.json", content)
    models.language_model(tmp_path, name="good")
    async with loaded(tmp_path) as repository:
        with pytest.raises(ModelNotReady, match=f"model bad was refused: .*{reason}"):
            repository.get("bad")
        assert repository.get("good").config.name == "good"


async def test_external_data_is_not_found_in_the_working_directory_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = models.accumulator(tmp_path, name="bad")
    external_data(directory)
    monkeypatch.chdir(directory)
    async with loaded(tmp_path) as repository:
        with pytest.raises(ModelNotReady, match="ONNX Runtime refuses the graph"):
            repository.get("bad")


async def test_a_tokenizer_without_a_hash_is_refused(tmp_path: Path) -> None:
    directory = models.language_model(tmp_path)
    files = json.loads((directory / CONFIG_FILE).read_bytes())["files"]
    del files["tokenizer.json"]
    change_config(directory, files=files)
    async with loaded(tmp_path) as repository:
        with pytest.raises(ModelNotReady, match=r"lists no hash for tokenizer\.json"):
            repository.get("language")
        assert not repository.ready


async def test_a_list_of_words_without_a_hash_is_refused(tmp_path: Path) -> None:
    directory = models.tagger(tmp_path)
    task = json.loads((directory / CONFIG_FILE).read_bytes())["task"]
    change_config(directory, task=task | {"lists": ["names.txt"]})
    async with loaded(tmp_path) as repository:
        with pytest.raises(ModelNotReady, match=r"lists no hash for names\.txt"):
            repository.get("tagger")


async def test_each_task_gets_what_reads_and_writes_for_it(tmp_path: Path, planner: Path) -> None:
    models.accumulator(tmp_path)
    models.language_model(tmp_path)
    shutil.copytree(planner.parent, tmp_path / "weekend-planner")
    async with loaded(tmp_path) as repository:
        kinds = [type(repository.get(entry.name).task) for entry in repository.entries]
    assert kinds == [TensorsTask, NextWordTask, LabelsTask]


async def test_the_newest_version_that_serves_is_the_one_unless_named(tmp_path: Path) -> None:
    models.accumulator(tmp_path, version=1)
    models.accumulator(tmp_path, version=9)
    models.accumulator(tmp_path, version=10)
    wrong_hash(models.accumulator(tmp_path, version=11))
    async with loaded(tmp_path) as repository:
        assert repository.get("accumulator").config.version == 10
        assert repository.get("accumulator", 1).config.version == 1
        assert repository.engine("accumulator", 9).config.version == 9
        assert [entry.version for entry in repository.entries] == [1, 9, 10, 11]
        with pytest.raises(ModelNotReady, match="refused"):
            repository.get("accumulator", 11)
        with pytest.raises(UnknownModel, match="no version 12 of model accumulator"):
            repository.get("accumulator", 12)
        with pytest.raises(UnknownModel, match="there is no model nobody"):
            repository.get("nobody")


async def test_until_it_is_loaded_a_model_is_not_ready(tmp_path: Path) -> None:
    models.accumulator(tmp_path)
    repository = repository_of(tmp_path)
    repository.find()
    assert repository.loading
    assert not repository.ready
    with pytest.raises(ModelNotReady, match="is loading") as error:
        repository.get("accumulator")
    assert error.value.extra == {"retry_after_s": 1}
    await repository.load()
    assert repository.ready
    await repository.close()


async def test_a_version_is_spelled_in_one_way(tmp_path: Path) -> None:
    directory = models.accumulator(tmp_path)
    for name in ("01", "0", "-1", "1.0", "latest"):
        shutil.copytree(directory, directory.with_name(name))
    async with loaded(tmp_path) as repository:
        assert [(e.version, e.state) for e in repository.entries] == [(1, "ready")]


async def test_an_empty_directory_is_never_ready(tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "1").write_text("a file, not a directory")
    (tmp_path / "notes" / "draft").mkdir()
    async with loaded(tmp_path) as repository:
        assert list(repository.entries) == []
        assert (repository.loading, repository.ready) == (False, False)


async def test_readiness_of_each_model_is_measured(tmp_path: Path) -> None:
    models.accumulator(tmp_path, name="good")
    wrong_hash(models.accumulator(tmp_path, name="bad"))
    async with loaded(tmp_path) as repository:
        value = repository._metrics.registry.get_sample_value
        ready = [
            value("seqserve_model_ready", {"model": name, "version": "1"})
            for name in ("good", "bad")
        ]
    assert ready == [1, 0]


async def test_closing_lets_the_work_at_hand_end(tmp_path: Path) -> None:
    models.accumulator(tmp_path)
    async with loaded(tmp_path) as repository:
        engine = repository.get("accumulator").engine
        slot = engine.take()
        assert slot is not None
        step = add(engine, slot, 1, 2)[1]
        await repository.close()
        assert step.done()
        assert await total(step) == [1, 3]


async def test_a_model_without_state_serves(tmp_path: Path) -> None:
    models.doubler(tmp_path)
    async with loaded(tmp_path) as repository:
        engine = repository.get("doubler").engine
        slot = engine.take()
        assert slot is not None
        _, future = engine.submit(slot, {"x": np.array([1.0, 4.0])}, np.array([1]), ("y",), np.inf)
        assert (await future)["y"].tolist() == [8]
        # What replaying a session of it comes to.
        _, future = engine.submit(slot, {"x": np.array([1.0])}, np.array([0]), (), np.inf)
        assert await future == {}
