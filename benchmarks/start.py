"""From exec to ready with every shipped model, and what the process holds then."""

from __future__ import annotations

import compileall
from pathlib import Path
from statistics import median
from typing import Any

import service as product
from benchmarks.bench import Bench
from benchmarks.server import service

STARTS = 5


def measure(bench: Bench) -> dict[str, Any]:
    """Several starts, on all cores and on one."""
    # As an installation does. Where Python is told to write no bytecode it would compile at every start.
    compileall.compile_dir(Path(product.__file__).parent, quiet=1)
    found: dict[str, list[tuple[float, float, int]]] = {"all": [], "one": []}
    for _ in range(round(bench.scaled(STARTS, 1))):
        for name, turns in found.items():
            with service(bench.shipped, own_core=name == "one") as server:
                times = server.process.cpu_times()
                used = times.user + times.system
                turns.append((server.ready_s, used, server.resident_bytes))
    every, one = found["all"], found["one"]
    return {
        "models": sum(1 for _ in bench.shipped.glob("*/*/config.json")),
        "ready_s": median(turn[0] for turn in every),
        "ready_cpu_s": median(turn[1] for turn in every),
        "ready_one_core_s": median(turn[0] for turn in one),
        "resident_bytes": median(turn[2] for turn in every),
    }
