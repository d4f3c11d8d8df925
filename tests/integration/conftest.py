"""The service as a process of its own, and as an application inside the test's own event loop."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest

from service.api.transport import HttpProtocol
from service.settings import Settings
from tests import models
from tests.integration import inside, planner, process
from tests.integration.inside import Running, Serve
from tests.integration.planner import Probe
from tests.integration.process import Service

EXPORTED = Path(__file__).resolve().parents[2] / "exported"


@pytest.fixture(scope="session")
def model_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny models of the tests and the shipped weekend planner."""
    root = tmp_path_factory.mktemp("models")
    models.accumulator(root)
    models.language_model(root)
    models.character_model(root)
    shutil.copytree(EXPORTED / planner.MODEL, root / planner.MODEL)
    return root


@pytest.fixture(scope="session")
def service(model_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One process for all tests that can share it; ends with status 0 and without a fault in its log."""
    log_file = tmp_path_factory.mktemp("service") / "log"
    running = process.start(model_directory, log_file, request_timeout_s="1", max_tokens="200")
    yield running
    assert process.stop(running) == 0, log_file.read_text()[-5000:]


@pytest.fixture
def probe(service: Service) -> Iterator[Probe]:
    """A session that must not notice what the test does, on a service that must not fault on it or leak."""
    probe = Probe(service.http)
    probe.step()
    start = service.log_size()
    yield probe
    probe.step()
    assert service.faults(start) == []
    probe.end()
    service.wait_until_idle()


@pytest.fixture
async def running(model_directory: Path) -> AsyncIterator[Running]:
    """The application and its server in the test's event loop, where models and clock are at hand."""
    settings = Settings(models=model_directory, port=0, log_level="warning")
    async with inside.serving(settings) as running:
        yield running


@pytest.fixture
def serve(model_directory: Path) -> Serve:
    """Runs the service with settings, inside the test."""

    def run(**settings: Any) -> AbstractAsyncContextManager[Running]:
        return inside.serving(
            Settings(models=model_directory, port=0, log_level="error", **settings)
        )

    return run


@pytest.fixture
def protocols(monkeypatch: pytest.MonkeyPatch) -> list[HttpProtocol]:
    """Connections the service has seen, in order."""
    found: list[HttpProtocol] = []
    original = HttpProtocol.connection_made

    def note(self: HttpProtocol, transport: Any) -> None:
        found.append(self)
        original(self, transport)

    monkeypatch.setattr(HttpProtocol, "connection_made", note)
    return found
