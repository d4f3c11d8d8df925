"""Every configuration, made small: trained a few steps, exported through the gate, loaded by the service, stepped.

What is compared are the outputs of sessions, cut into random requests and sharing batches, with one pass of torch.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from service.contract import Batching
from service.loading import load_model
from service.sessions.session import Chunk
from service.sessions.step import Wanted
from tests.engines import PATIENCE_S, load_graph, running, table
from tests.training.small import small
from training.config import TrainedRun
from training.export import package
from training.export.bundle import Bundle, initial_state
from training.runs import load
from training.tasks import task_of
from training.trainer import Share, Trainer, fabric_for

CONFIGS = sorted((Path(__file__).parents[2] / "training" / "configs").glob("*.toml"))
RUNS = {path.stem: run for path in CONFIGS if isinstance(run := load(path), TrainedRun)}
TASKS = ("next_word", "sentiment", "ner", "forecast")
ARCHITECTURES = ("rnn", "lstm", "gru", "transformer")
STEPS, SESSIONS = 23, 3

Exported = tuple[Bundle, Path]


@pytest.fixture(scope="module")
def environ() -> Iterator[pytest.MonkeyPatch]:
    """Environment variables of this module."""
    with pytest.MonkeyPatch.context() as environ:
        yield environ


@pytest.fixture(scope="module")
def exported(
    tmp_path_factory: pytest.TempPathFactory, environ: pytest.MonkeyPatch
) -> Callable[[str], Exported]:
    """A configuration made small, trained, and exported; once for all tests."""
    found: dict[str, Exported] = {}

    def export(name: str) -> Exported:
        if name not in found:
            directory = tmp_path_factory.mktemp(name)
            environ.setenv("SEQSERVE_DATA", str(directory))
            run = small(RUNS[name], directory)
            task = task_of(run)
            learner = task.learner(run, Share())
            trainer = Trainer(run, learner, directory, fabric_for(run.training))
            trainer.directory.mkdir(exist_ok=True)
            for file, content in learner.files.items():
                (directory / file).write_bytes(content)
            trainer.fit()
            bundle = task.bundle(run, "", directory)
            found[name] = bundle, package.write(bundle, directory / "exported")
        return found[name]

    return export


def test_all_cells_of_the_matrix_have_a_configuration() -> None:
    for task in TASKS:
        for architecture in ARCHITECTURES:
            run = RUNS[f"{task}_{architecture}"]
            assert run.__struct_config__.tag == task
            assert run.encoder.architecture.startswith(architecture)
            assert not run.encoder.bidirectional


@pytest.mark.parametrize("name", RUNS)
def test_it_loads_in_the_service(name: str, exported: Callable[[str], Exported]) -> None:
    bundle, target = exported(name)
    config = bundle.config
    loaded = load_model(target, config.name, config.version, "cpu", threads=1)
    assert loaded.config.streaming == config.streaming != RUNS[name].encoder.bidirectional


@pytest.mark.parametrize("name", [n for n, run in RUNS.items() if not run.encoder.bidirectional])
async def test_a_stream_in_any_pieces_equals_one_pass(
    name: str, exported: Callable[[str], Exported]
) -> None:
    bundle, target = exported(name)
    texts = [bundle.sample(STEPS, seed) for seed in range(SESSIONS)]
    answers = await _told(target, texts)
    for text, answer in zip(texts, answers, strict=True):
        due, _ = bundle.original(text, initial_state(bundle.config))
        for output, values in due.items():
            np.testing.assert_allclose(answer[output], values, atol=bundle.config.tolerance)


async def _told(directory: Path, texts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Outputs of each text after every time step, each text in a session of its own, all at once."""
    choose = random.Random(1)
    batching = Batching(max_batch_size=2, max_chunk_length=5, max_batch_tokens=10)
    async with running(load_graph(directory, batching)) as engine:
        sessions = table(engine, snapshot_every=6)
        names = tuple(tensor.name for tensor in engine.config.outputs)
        wanted = Wanted(names, deadline=np.inf)

        async def tell(text: dict[str, Any]) -> dict[str, Any]:
            session, _ = await sessions.create(engine, "t", 9.0)
            parts, start = [], 0
            while start < STEPS:
                stop = min(STEPS, start + choose.randint(1, 9))
                piece = {key: values[start:stop] for key, values in text.items()}
                applied = await sessions.apply(
                    session, Chunk(piece, np.arange(stop - start)), wanted
                )
                parts.append(applied.outputs)
                start = stop
            await sessions.delete(session)
            return {key: np.concatenate([part[key] for part in parts]) for key in names}

        async with asyncio.timeout(PATIENCE_S):
            return await asyncio.gather(*(tell(text) for text in texts))


def test_small_runs_keep_their_form(tmp_path: Path) -> None:
    """What is made small is size, not kind: the same cells, directions and heads as the real configuration."""
    for run in RUNS.values():
        encoder = small(run, tmp_path).encoder
        assert type(encoder) is type(run.encoder)
        assert encoder.architecture == run.encoder.architecture
        assert encoder.bidirectional == run.encoder.bidirectional


def test_the_result_of_every_run_names_its_task_and_data() -> None:
    for run in RUNS.values():
        assert run.description
        assert msgspec.to_builtins(run)["task"] == run.__struct_config__.tag
