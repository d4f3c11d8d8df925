from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from service.contract import GOLDEN_FILE, ContractError
from service.engine.engine import Limits
from service.errors import ModelNotReady
from service.loading import Loading, load_model
from service.metrics import Metrics
from service.repository import Repository
from tests import models

LIMITS = Limits(capacity=4, max_pending=10, max_pending_tokens=100)


async def test_ready_is_said_only_when_every_model_has_given_its_golden_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    models.accumulator(tmp_path, name="good")
    golden = models.accumulator(tmp_path, name="slow") / GOLDEN_FILE
    content = golden.read_bytes()
    golden.unlink()
    # Whoever reads it waits until somebody writes it.
    os.mkfifo(golden)
    loading = Loading(tmp_path, "cpu", 1)
    repository = Repository(loading, LIMITS, Metrics())
    repository.find()
    load = asyncio.create_task(repository.load())
    await asyncio.wrap_future(loading.begun["good", 1])
    states = {}
    while states.get("good") != "ready":
        await asyncio.sleep(0)
        states = {entry.name: entry.state for entry in repository.entries}
    assert states["slow"] == "loading"
    assert not repository.ready
    with pytest.raises(ModelNotReady, match="model slow is loading"):
        repository.get("slow")
    await asyncio.to_thread(golden.write_bytes, content)
    await load
    assert repository.ready
    await repository.close()


async def test_what_has_begun_to_load_is_loaded_once(tmp_path: Path) -> None:
    models.accumulator(tmp_path)
    loading = Loading(tmp_path, "cpu", 1)
    loading.begin()
    (begun,) = loading.begun.values()
    repository = Repository(loading, LIMITS, Metrics())
    repository.find()
    await repository.load()
    assert list(loading.begun.values()) == [begun]
    assert repository.get("accumulator").config is begun.result().config
    await repository.close()


def test_a_model_loaded_by_itself_is_checked_as_any_other(tmp_path: Path) -> None:
    directory = models.accumulator(tmp_path)
    assert load_model(directory, "accumulator", 1, "cpu", 1).config.name == "accumulator"
    (directory / GOLDEN_FILE).write_bytes(b"{}")
    with pytest.raises(ContractError, match=r"SHA-256 of golden\.json"):
        load_model(directory, "accumulator", 1, "cpu", 1)


def test_files_can_be_read_and_verified_before_anything_large_is_imported() -> None:
    script = """
import sys
import service.loading
large = {"asyncio", "fastapi", "numpy", "onnxruntime", "prometheus_client", "pydantic", "starlette"}
sys.exit(", ".join(large & sys.modules.keys()) or 0)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, f"service.loading imports {done.stderr}"
