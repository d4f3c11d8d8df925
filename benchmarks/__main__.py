"""`make bench`: measure everything in one run; writes results/<device>.json and results/README.md."""

from __future__ import annotations

import argparse
import gc
import os
import platform
import shlex
import subprocess
import sys
import time
from datetime import UTC, datetime
from importlib.metadata import distributions
from pathlib import Path
from statistics import median
from typing import Any

import msgspec
import uvloop

from benchmarks import inside, report, wire
from benchmarks.server import Server, running
from benchmarks.tape import MODELS, Model, load
from service.__main__ import SWITCH_S
from service.engine.graph import choose_device

RESULTS = Path(__file__).parent / "results"
NAMES = ("next-word-lstm", "weekend-planner")
RESIDENT = 1000
_PACKAGES = frozenset(
    ("onnxruntime", "onnxruntime-gpu", "numpy", "fastapi", "starlette", "uvicorn", "uvloop", "websockets")
)  # fmt: skip


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="turns of each measurement")
    parser.add_argument("--seconds", type=float, default=1.0, help="of each turn over the wire")
    arguments = parser.parse_args()
    sys.setswitchinterval(SWITCH_S)
    result = uvloop.run(_measure(arguments.rounds, arguments.seconds))
    RESULTS.mkdir(exist_ok=True)
    data = msgspec.json.format(msgspec.json.encode(result), indent=1)
    (RESULTS / f"{result['device']}.json").write_bytes(data + b"\n")
    results = [msgspec.json.decode(path.read_bytes()) for path in sorted(RESULTS.glob("*.json"))]
    (RESULTS / "README.md").write_text(report.render(results))
    print(report.render([result]))


async def _measure(rounds: int, seconds: float) -> dict[str, Any]:
    started = time.perf_counter()
    device = choose_device("auto")
    circumstances = _circumstances(device)
    models = [load(name, device) for name in NAMES]
    # As the service does once its models are loaded.
    gc.collect()
    gc.freeze()
    in_process = []
    for model in models:
        print(f"in process: {model.name}", file=sys.stderr)
        in_process += await inside.measure(model, 3 * rounds, seconds / 3)
    ready = []
    for _ in range(rounds):
        with running() as server:
            ready.append(server.ready_s)
            memory = await _memory(server, models[0])
    with running() as server:
        over_wire = await _over_wire(server, models, rounds, seconds)
    return circumstances | {
        "inside": in_process,
        "start": {"ready_s": median(ready)} | memory,
        "wire": over_wire,
        "took_s": round(time.perf_counter() - started),
    }


async def _memory(server: Server, model: Model) -> dict[str, Any]:
    """Resident memory when ready, and with sessions that each hold their state and took a step."""
    before = server.resident_bytes
    ids = await wire.open_sessions(server.port, model.name, RESIDENT)
    players = [wire.Player(model.tapes[0], session) for session in ids]
    await wire.WAYS[1].play(server.port, players, seconds=0.0)
    after = server.resident_bytes
    return {
        "ready_bytes": before,
        "sessions": RESIDENT,
        "sessions_bytes": after,
        "session_bytes": (after - before) / RESIDENT,
        "state_bytes": model.graph.config.state_nbytes,
    }


async def _over_wire(
    server: Server, models: list[Model], rounds: int, seconds: float
) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for model in models:
        for way in wire.WAYS:
            print(f"over the wire: {model.name}, {way.name}", file=sys.stderr)
            turns: dict[int, list[dict[str, float]]] = {count: [] for count in wire.SESSIONS}
            for _ in range(rounds):
                for count, found in turns.items():
                    found.append(await wire.measure(way, server, model, count, seconds))
            for count, found in turns.items():
                figures = {name: median(each[name] for each in found) for name in found[0]}
                ratio = figures["steps_s"] / median(each["steps_s"] for each in turns[1])
                rows.append(
                    {"model": model.name, "way": way.name, "sessions": count}
                    | figures
                    | {"ratio": ratio}
                )
    return rows


def _circumstances(device: str) -> dict[str, Any]:
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12"],
        capture_output=True,
        text=True,
        check=False,
    )
    return {
        "device": device,
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "load": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "versions": {d.name: d.version for d in distributions() if d.name in _PACKAGES},
        "commit": commit.stdout.strip(),
        "command": shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "models": {
            name: msgspec.json.decode((MODELS / name / "1" / "config.json").read_bytes())["files"][
                "model.onnx"
            ]
            for name in NAMES
        },
    }


def _cpu_model() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


if __name__ == "__main__":
    main()
