"""The service imports, loads and answers where torch, training and the exporters' libraries cannot be imported."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration import process
from tests.integration.conftest import EXPORTED

LARGE_STATE = "forecast-etth1-transformer"
SCRIPT = """
import asyncio, importlib, pkgutil, sys

class Blocked:
    names = {"torch", "lightning", "onnx", "tensorboard", "training"}

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.names:
            raise ImportError(f"{name} is not for the service")

sys.meta_path.insert(0, Blocked())

import service
for module in pkgutil.walk_packages(service.__path__, "service."):
    if module.name != "service.__main__":
        importlib.import_module(module.name)
main = importlib.import_module("service.__main__")
assert not Blocked.names & {name.partition(".")[0] for name in sys.modules}

import httpx
from pathlib import Path
from service.app import build, build_context
from service.settings import Settings

async def serve():
    context = build_context(Settings(models=Path(sys.argv[1])))
    app = build(context)
    async with app.router.lifespan_context(app):
        while context.repository.loading:
            await asyncio.sleep(0.01)
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
            body = {"inputs": [["rainy"]]}
            answer = await client.post("/v1/models/weekend-planner/predict", json=body)
            assert answer.json()["results"][0][0]["label"] == "movies", answer.text

asyncio.run(serve())
assert not Blocked.names & {name.partition(".")[0] for name in sys.modules}
"""


def test_the_service_runs_where_training_cannot_be_imported(model_directory: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", SCRIPT, str(model_directory)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr


def test_the_log_tells_which_states_stay_on_the_host_without_onnx(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models, absent = tmp_path / "models", tmp_path / "absent"
    shutil.copytree(EXPORTED / LARGE_STATE, models / LARGE_STATE)
    absent.mkdir()
    (absent / "onnx.py").write_text("raise ImportError('onnx is not installed')")
    monkeypatch.setenv("PYTHONPATH", str(absent), prepend=os.pathsep)
    service = process.start(models, tmp_path / "log", device="cpu")
    assert process.stop(service) == 0
    told = [line["message"] for line in service.log() if "on the host" in line["message"]]
    assert told == [f"model {LARGE_STATE} keeps its states on the host: onnx is not installed"]
