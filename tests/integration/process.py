"""The real service in a process of its own: started, waited for, asked, drained."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

START_S = 60.0
_SAMPLE = re.compile(r"seqserve_(\w+)(?:\{(.*)\})? (\S+)")
END_S = 30.0


@dataclass(frozen=True)
class Service:
    """A running service."""

    process: subprocess.Popen[bytes]
    port: int
    log_file: Path
    http: httpx.Client

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def stream_url(self) -> str:
        return f"ws://127.0.0.1:{self.port}/v1/stream"

    def log(self, start: int = 0) -> list[dict[str, Any]]:
        """Every line of the log from a position on; a line that is not JSON fails the test."""
        return [json.loads(line) for line in self.log_file.read_bytes()[start:].splitlines()]

    def log_size(self) -> int:
        return self.log_file.stat().st_size

    def metric(self, name: str, **labels: str) -> float:
        """Sum of a metric's samples that carry these labels."""
        return self._sum([name], labels)

    def _sum(self, names: Sequence[str], labels: Mapping[str, str]) -> float:
        wanted = {f'{label}="{value}"' for label, value in labels.items()}
        total = 0.0
        for line in self.http.get("/metrics").text.splitlines():
            match = _SAMPLE.fullmatch(line)
            if match and match[1] in names and wanted <= set((match[2] or "").split(",")):
                total += float(match[3])
        return total

    def faults(self, start: int) -> list[dict[str, Any]]:
        """Lines of the log, from a position on, that tell of a fault of the service."""
        return [
            line
            for line in self.log(start)
            if line["level"] == "error" or "exception" in line or line.get("status") == 500
        ]

    def wait_until_metric(self, name: str, value: float, **labels: str) -> None:
        """Wait for a gauge that follows an event on a connection: the server learns of it in its own time."""
        deadline = time.monotonic() + 10
        while (found := self.metric(name, **labels)) != value:
            assert time.monotonic() < deadline, f"{name} stays {found}, expected {value}"

    def wait_until_idle(self) -> None:
        """Wait until no step is in flight and no socket open."""
        deadline = time.monotonic() + 10
        while self._sum(["pending_steps", "stream_sockets"], {}) > 0:
            assert time.monotonic() < deadline, "a step or a socket is left behind"


def start(models: Path, log_file: Path, **settings: str) -> Service:
    """Start a service on a free port and wait until it is ready."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("SEQSERVE_")}
    environment |= {f"SEQSERVE_{name.upper()}": value for name, value in settings.items()}
    with log_file.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "service", "serve", "--models", models, "--port", str(port)],
            env=environment,
            stderr=log,
        )
    client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30, trust_env=False)
    service = Service(process, port, log_file, client)
    try:
        _wait_until_ready(service)
    except BaseException:
        kill(service)
        raise
    return service


def _wait_until_ready(service: Service) -> None:
    deadline = time.monotonic() + START_S
    while True:
        assert service.process.poll() is None, service.log_file.read_text()
        assert time.monotonic() < deadline, service.log_file.read_text()
        try:
            if service.http.get("/health/ready").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.02)


def stop(service: Service) -> int:
    """End a service as an orchestrator does; returns its exit status."""
    service.process.send_signal(signal.SIGTERM)
    try:
        return service.process.wait(END_S)
    finally:
        kill(service)


def kill(service: Service) -> None:
    """Leave nothing behind, whatever happened before."""
    service.process.kill()
    service.process.wait()
    service.http.close()
