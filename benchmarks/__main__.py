"""`make bench`: measure everything in one run; writes results/<device>.json, pictures and results/README.md."""

from __future__ import annotations

import argparse
import gc
import os
import platform
import resource
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import msgspec

from benchmarks import (
    deterministic,
    frames,
    generation,
    http,
    inside,
    latency,
    models,
    overload,
    plots,
    quantised,
    report,
    resident,
    start,
)
from benchmarks.aims import aims
from benchmarks.bench import Bench
from benchmarks.raw import CLIENT_CORE, CORES, SERVER_CORE

RESULTS = Path(__file__).parent / "results"
DEVICE = "cpu"
PARTS: dict[str, Callable[[Bench], Any]] = {
    "start": start.measure,
    "inside": inside.measure,
    "http": http.measure,
    "frames": frames.measure,
    "generation": generation.measure,
    "latency": latency.measure,
    "overload": overload.measure,
    "resident": resident.measure,
    "deterministic": deterministic.measure,
    "quantised": quantised.measure,
}
_PACKAGES = frozenset(
    ("onnxruntime", "onnxruntime-gpu", "numpy", "fastapi", "starlette", "uvicorn", "uvloop", "websockets")
)  # fmt: skip
# Overload and its answers take a thousand connections.
_FILES = 4096


def main() -> None:
    """Entry point. Only a run of everything is written down; a part is printed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--only", help=f"some of {','.join(PARTS)}")
    parser.add_argument(
        "--quick", action="store_true", help="rough figures, in a tenth of the time"
    )
    parser.add_argument("--rounds", type=int, help="turns of each measurement")
    parser.add_argument("--seconds", type=float, help="of each turn")
    parser.add_argument("--results", type=Path, help="where to write, be it a part")
    arguments = parser.parse_args()
    wanted = arguments.only.split(",") if arguments.only else list(PARTS)
    if unknown := set(wanted) - PARTS.keys():
        parser.error(f"{', '.join(sorted(unknown))}: not one of {', '.join(PARTS)}")
    quick = arguments.quick
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(_FILES, hard)), hard))
    bench = Bench(
        models=models.cached(),
        shipped=Path("exported"),
        seconds=arguments.seconds or (0.5 if quick else 1.5),
        rounds=arguments.rounds or (1 if quick else 3),
        quick=quick,
    )
    result = run(bench, wanted)
    print(report.render([result]))
    everything = set(wanted) == PARTS.keys() and not quick
    if directory := arguments.results or (RESULTS if everything else None):
        save(result, directory)
    missed = [aim.name for aim in aims(result["parts"]) if not aim.met]
    print(f"{len(missed)} aims missed", *missed, sep="\n  ", file=sys.stderr)


def run(bench: Bench, wanted: list[str]) -> dict[str, Any]:
    """Measure some parts, in their order."""
    circumstances = _circumstances(bench)
    for name in models.NAMES:
        bench.model(name)
    # As the service does once its models are loaded.
    gc.collect()
    gc.freeze()
    started = time.perf_counter()
    parts: dict[str, Any] = {}
    for name, measure in PARTS.items():
        if name in wanted:
            begun = time.perf_counter()
            print(f"{name} ...", end=" ", file=sys.stderr, flush=True)
            parts[name] = measure(bench)
            print(f"{time.perf_counter() - begun:.0f} s", file=sys.stderr)
    return circumstances | {"took_s": round(time.perf_counter() - started), "parts": parts}


def save(result: dict[str, Any], directory: Path) -> None:
    """Write a result, its pictures, and the page of all results."""
    directory.mkdir(parents=True, exist_ok=True)
    data = msgspec.json.format(msgspec.json.encode(result), indent=1)
    (directory / f"{result['device']}.json").write_bytes(data + b"\n")
    plots.draw(result["parts"], directory, result["device"])
    results = [msgspec.json.decode(path.read_bytes()) for path in sorted(directory.glob("*.json"))]
    page = report.render([each for each in results if "parts" in each])
    (directory / "README.md").write_text(page)


def _circumstances(bench: Bench) -> dict[str, Any]:
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12"],
        capture_output=True,
        text=True,
        check=False,
    )
    return {
        "device": DEVICE,
        "cpu": _cpu_model(),
        "cores": len(CORES),
        "server_core": SERVER_CORE,
        "client_core": CLIENT_CORE,
        "rounds": bench.rounds,
        "load": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "build": f"{platform.python_build()[1]}, {platform.python_compiler()}",
        "versions": {d.name: d.version for d in distributions() if d.name in _PACKAGES},
        "commit": commit.stdout.strip(),
        "command": shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "models": {
            path.parts[-3]: msgspec.json.decode(path.read_bytes())["files"]["model.onnx"]
            for path in sorted(bench.models.glob("*/*/config.json"))
        },
    }


def _cpu_model() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


if __name__ == "__main__":
    main()
