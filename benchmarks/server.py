"""The real service as a process of its own: how soon it is ready, what it uses."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psutil

HOST = "127.0.0.1"
_READY = b"GET /health/ready HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


@dataclass(frozen=True)
class Server:
    """A running service.

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
        """CPU time used so far, all threads."""
        times = self.process.cpu_times()
        return float(times.user + times.system)


@contextmanager
def running() -> Iterator[Server]:
    """Start `seqserve serve` on a free port with the settings it ships with; stop it by SIGTERM."""
    with socket.create_server((HOST, 0)) as probe:
        port = probe.getsockname()[1]
    settings = {"SEQSERVE_HOST": HOST, "SEQSERVE_PORT": str(port)}
    started = time.perf_counter()
    process = psutil.Popen(
        [sys.executable, "-m", "service", "serve"],
        env=os.environ | settings,
        stderr=subprocess.DEVNULL,
    )
    try:
        while not _ready(port):
            if process.poll() is not None or time.perf_counter() - started > 60:
                raise RuntimeError("the service did not get ready; run `make serve` to see why")
            time.sleep(0.005)
        yield Server(process, port, time.perf_counter() - started)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def _ready(port: int) -> bool:
    try:
        with socket.create_connection((HOST, port), timeout=1) as connection:
            connection.sendall(_READY)
            return connection.recv(64).startswith(b"HTTP/1.1 200")
    except OSError:
        return False
