"""Processes that are measured: the service, and what it is held against. Each has one core for itself."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.raw import SERVER_CORE, pinned

HOST = "127.0.0.1"
_START_S = 60.0
_END_S = 30.0


@dataclass(frozen=True)
class Server:
    """A running process that listens.

    Attributes:
        process: The process.
        port: Where it listens.
        ready_s: Seconds from exec to ready.
    """

    process: psutil.Popen
    port: int
    ready_s: float

    @property
    def resident_bytes(self) -> int:
        """Resident memory now."""
        return int(self.process.memory_info().rss)

    @property
    def cpu_s(self) -> float:
        """CPU time used so far, by all threads that live; finer than the hundredths of a second of the usual clock."""
        tasks = Path(f"/proc/{self.process.pid}/task").iterdir()
        return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


@contextmanager
def service(
    models: Path, settings: Mapping[str, str] | None = None, *, own_core: bool = True
) -> Iterator[Server]:
    """Start `seqserve serve` over a directory of models.

    Args:
        models: The directory.
        settings: `SEQSERVE_` variables beside those it ships with.
        own_core: Whether it has to do with one core.
    """
    command = [sys.executable, "-m", "service", "serve", "--models", str(models)]
    with _running([*command, "--port"], "/health/ready", settings or {}, own_core) as server:
        yield server


@contextmanager
def application(name: str, environment: Mapping[str, str] | None = None) -> Iterator[Server]:
    """Start an ASGI application of this package under uvicorn, on one core.

    Args:
        name: `module:application`.
        environment: Variables it reads.
    """
    command = [sys.executable, "-m", "uvicorn", name, "--no-access-log", "--log-level", "error"]
    with _running([*command, "--port"], "/ready", environment or {}, True) as server:
        yield server


@contextmanager
def _running(
    command: Sequence[str], path: str, environment: Mapping[str, str], own_core: bool
) -> Iterator[Server]:
    with socket.create_server((HOST, 0)) as probe:
        port = probe.getsockname()[1]
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("SEQSERVE_")}
    started = time.perf_counter()
    with pinned(SERVER_CORE if own_core else None):
        process = psutil.Popen(
            [*command, str(port)], env=inherited | dict(environment), stderr=subprocess.DEVNULL
        )
    try:
        while not _ready(port, path):
            if process.poll() is not None or time.perf_counter() - started > _START_S:
                raise RuntimeError(f"{command[2:4]} did not get ready; run it to see why")
            time.sleep(0.005)
        yield Server(process, port, time.perf_counter() - started)
    finally:
        _end(process)


def _end(process: psutil.Popen) -> None:
    if process.poll() is not None:
        return
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(_END_S)
    except psutil.TimeoutExpired:
        process.kill()
        process.wait()


def _ready(port: int, path: str) -> bool:
    request = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()
    try:
        with socket.create_connection((HOST, port), timeout=1) as connection:
            connection.sendall(request)
            return connection.recv(64).startswith(b"HTTP/1.1 200")
    except OSError:
        return False
