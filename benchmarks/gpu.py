"""`python -m benchmarks.gpu`: states on the device, in one run: are they right, do they stay there, and how fast is it.

On a machine with a GPU it measures CUDA; elsewhere the same graphs, buffers and code paths on the CPU, in smaller
sizes, so that what will be measured is known to run. Writes results/gpu-<device>.json and a table beside it.
"""

from __future__ import annotations

import argparse
import csv
import io
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import onnxruntime

from benchmarks import frames, models
from benchmarks.bench import Bench
from benchmarks.raw import Arrays, Raw
from service.contract import GOLDEN_FILE, NextWord, decode_golden
from service.engine import wrap
from service.engine.bound import BoundGraph, BoundStates
from service.engine.decompose import step_cells
from service.engine.golden import check_golden
from service.engine.graph import (
    Device,
    Graph,
    choose_device,
    device_memory,
    require_cuda,
)
from service.engine.host import HostStates
from service.settings import Gpu

RESULTS = Path(__file__).parent / "results"
Row = dict[str, Any]

# How a step of one time step is computed: by the runtime's own recurrent operators (on a GPU cuDNN's), by cells taken
# apart, and by these captured as CUDA graphs.
OPERATOR, CELLS, REPLAYED = "operator", "cells", "cells, replayed"
_TIME_STEPS = (1, 1, 1, 4, 1, 7)
_TRACED = (100, 1100)


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    batches: tuple[int, ...]
    capacities: tuple[int, ...]
    sessions: tuple[int, ...]
    steps: int
    rounds: int
    seconds: float
    state_bytes: int


_FULL = Sizes(
    batches=(1, 4, 16, 64, 256, 1024, 4096),
    capacities=(1_000, 10_000, 100_000, 1_000_000),
    sessions=(64, 1024),
    steps=200,
    rounds=5,
    seconds=2.0,
    state_bytes=48 * 2**30,
)
_ON_CPU = Sizes(
    batches=(1, 16, 64, 256),
    capacities=(1_000, 10_000, 100_000),
    sessions=(64,),
    steps=40,
    rounds=3,
    seconds=0.5,
    state_bytes=4 * 2**30,
)
_QUICK = Sizes(
    batches=(1, 8),
    capacities=(100, 1_000),
    sessions=(8,),
    steps=8,
    rounds=1,
    seconds=0.2,
    state_bytes=2**28,
)


class Subject:
    """A model in every way that is measured, on a device, in batches of at most so many rows."""

    def __init__(self, directory: Path, device: Device, most: int) -> None:
        self.device = device
        self.raw = Raw(directory)
        # Batches as large as are measured, be it more than a user of the model would get.
        batching = msgspec.structs.replace(self.raw.config.batching, max_batch_size=most)
        self.config = msgspec.structs.replace(self.raw.config, batching=batching)
        self.content = self.raw.path.read_bytes()
        self.golden = decode_golden((directory / GOLDEN_FILE).read_bytes())
        self.ways: dict[str, BoundGraph] = {OPERATOR: self._graph()}
        if step_cells(self.content):
            self.ways[CELLS] = self._graph(cells=True)
        replayed = self._graph(cells=True, gpu=Gpu(graphs=True))
        self.ways[REPLAYED] = replayed
        self.outputs = list(self.raw.outputs)

    def _graph(self, **how: Any) -> BoundGraph:
        return BoundGraph(self.content, self.config, self.device, **how)

    def states(self, way: str, capacity: int) -> BoundStates:
        """Fresh rows."""
        states = self.ways[way].states(capacity)
        for row in range(1, capacity + 1):
            states.reset(row)
        return states

    def feeds(self, random: np.random.Generator, rows: int, time_steps: int = 1) -> Arrays:
        """Random inputs of whole rows."""
        feeds: Arrays = {self.config.lengths: np.full(rows, time_steps, np.int32)}
        for tensor in self.config.inputs:
            shape = (rows, time_steps, *tensor.shape)
            if isinstance(self.config.task, NextWord):
                feeds[tensor.name] = random.integers(2, self.config.task.vocab_size, shape)
            else:
                feeds[tensor.name] = random.standard_normal(shape).astype(tensor.dtype)
        return feeds


def parity(subject: Subject, sizes: Sizes) -> list[Row]:
    """Largest differences from the exported graph on the CPU, over sessions that step singly and in chunks."""
    rows = []
    for way, graph in subject.ways.items():
        check_golden(graph, subject.golden)
        random = np.random.default_rng(1)
        states, host = subject.states(way, 8), HostStates(Graph(subject.content, subject.config), 8)
        for row in range(1, 9):
            host.reset(row)
        outputs = 0.0
        for turn in range(sizes.steps):
            chosen = random.permutation(8)[: random.integers(1, 9)] + 1
            feeds = subject.feeds(random, len(chosen), _TIME_STEPS[turn % len(_TIME_STEPS)])
            due, _ = host.run(chosen, feeds, subject.outputs)
            found, finite = states.run(chosen, feeds, subject.outputs)
            assert finite is None
            # Nearly equal scores may change places; their values may not move.
            names = [n for n in subject.outputs if due[n].dtype.kind == "f"]
            outputs = max(outputs, *(float(abs(found[n] - due[n]).max()) for n in names))
        after = [
            float(abs(states.read(row)[name].astype(np.float64) - values).max())
            for row in range(1, 9)
            for name, values in host.read(row).items()
        ]
        rows.append(
            {
                "way": way,
                "runs": sizes.steps,
                "outputs": outputs,
                "states": max(after),
                "golden": True,
            }
        )
    return rows


def safety(subject: Subject, sizes: Sizes) -> Row:
    """Steps replayed in fixed buffers against the same steps run freely, bit for bit, sizes and chunks mixed."""
    random = np.random.default_rng(2)
    capacity = 64
    replayed, free = (subject.states(REPLAYED, capacity) for _ in range(2))
    proven = sorted(replayed.replays)
    # What it would do had the trial at load failed: the same session, run without its captured graphs.
    free.replays.clear()
    differing = 0
    for turn in range(sizes.steps):
        count = 1 << int(random.integers(capacity.bit_length()))
        rows = random.permutation(capacity)[:count] + 1
        time_steps = 3 if turn % 5 == 4 else 1
        feeds = subject.feeds(random, count, time_steps)
        (a, _), (b, _) = (states.run(rows, feeds, subject.outputs) for states in (replayed, free))
        differing += any(a[name].tobytes() != b[name].tobytes() for name in a)
    rows = np.arange(1, capacity + 1)
    held = zip(replayed.read_rows(rows).values(), free.read_rows(rows).values(), strict=True)
    return {
        "proven_at_load": proven,
        "runs": sizes.steps,
        "differing_runs": differing,
        "states_equal": all(x.tobytes() == y.tobytes() for x, y in held),
    }


def residency(subject: Subject, directory: Path) -> list[Row]:
    """What crosses between host and device for one step of 64 rows, and that no state is of it.

    By construction: all that a run is given or gives back by the host is counted, and the buffers of the states are
    on the device, as input and output of the graph the same. By the graph as the runtime compiled it: the copies it
    put in (Memcpy). And by NVIDIA's profiler, where there is one: all that really was copied.
    """
    rows = []
    for way in subject.ways:
        random = np.random.default_rng(3)
        count = 64
        states = subject.states(way, count)
        feeds = subject.feeds(random, count)
        at = np.arange(1, count + 1)
        result, _ = states.run(at, feeds, subject.outputs)
        given = {**feeds, wrap.ROWS: at, wrap.ASKED: np.ones(len(subject.config.outputs), bool)}
        rows.append(
            {
                "way": way,
                "rows": count,
                "state_bytes": count * states.row_bytes,
                "to_device_bytes": sum(array.nbytes for array in given.values()),
                # A byte for each row says whether it is finite.
                "to_host_bytes": count + sum(array.nbytes for array in result.values()),
                "state_bytes_over_bus": sum(
                    buffer.tensor_size_in_bytes()
                    for buffer in states.buffers.values()
                    if buffer.device_name() != subject.device
                ),
                "copies_in_graph": _copies(subject, way),
                "profiled": _profiled(directory, way, subject.device),
            }
        )
    return rows


def _copies(subject: Subject, way: str) -> list[str]:
    """Copies between host and device that the runtime adds to a graph of single steps, by what they copy."""
    content = subject.content if way == OPERATOR else step_cells(subject.content)
    options = onnxruntime.SessionOptions()
    with tempfile.TemporaryDirectory() as temporary:
        options.optimized_model_filepath = str(Path(temporary) / "compiled.onnx")
        options.log_severity_level = 3
        onnxruntime.InferenceSession(
            wrap.step_graph(content or subject.content, subject.config),
            options,
            providers=[*_PROVIDERS[subject.device], "CPUExecutionProvider"],
        )
        nodes = onnx.load(options.optimized_model_filepath).graph.node
    return [f"{n.op_type} {n.input[0]}" for n in nodes if n.op_type.startswith("Memcpy")]


_PROVIDERS: dict[Device, list[str]] = {"cpu": [], "cuda": ["CUDAExecutionProvider"]}


def _profiled(directory: Path, way: str, device: Device) -> dict[str, float] | str:
    """Bytes that a step of a batch really copies, by direction: two traces of different lengths, less each other."""
    if device == "cpu":
        return "nothing to profile: no bus"
    if shutil.which("nsys") is None:
        return "no nsys on this machine"
    try:
        short, long = (_trace(directory, way, steps) for steps in _TRACED)
    except (subprocess.SubprocessError, KeyError, ValueError) as error:
        return f"nsys failed: {error}"
    steps = _TRACED[1] - _TRACED[0]
    return {name: (total - short.get(name, 0.0)) / steps for name, total in long.items()}


def _trace(directory: Path, way: str, steps: int) -> dict[str, float]:
    """Bytes copied in all, by direction, of a process that makes so many steps."""
    with tempfile.TemporaryDirectory() as temporary:
        report = Path(temporary) / "trace"
        program = [
            sys.executable,
            "-m",
            "benchmarks.gpu",
            "--trace",
            str(directory),
            way,
            str(steps),
        ]
        subprocess.run(
            ["nsys", "profile", "--trace", "cuda", "--output", str(report), *program],
            check=True,
            capture_output=True,
            timeout=300,
        )
        stats = subprocess.run(
            [
                "nsys",
                "stats",
                "--report",
                "cuda_gpu_mem_size_sum",
                "--format",
                "csv",
                f"{report}.nsys-rep",
            ],
            check=True,
            capture_output=True,
            text=True,
            timeout=300,
        ).stdout
    table = stats[stats.index("Total (MB)") :]
    return {
        row["Operation"]: float(row["Total (MB)"]) * 1e6
        for row in csv.DictReader(io.StringIO(table))
        if row.get("Operation")
    }


def _run_traced(directory: Path, way: str, steps: int) -> None:
    """The program that is profiled."""
    subject = Subject(directory, "cuda", 64)
    states = subject.states(way, 64)
    feeds = subject.feeds(np.random.default_rng(3), 64)
    for _ in range(steps):
        states.run(np.arange(1, 65), feeds, subject.outputs)


def speed(subject: Subject, sizes: Sizes) -> list[Row]:
    """Single steps in this process, by rows of a batch; all ways in turns."""
    rows = []
    for batch in _fitting(sizes.batches, subject, sizes):
        runs: dict[str, Callable[[], object]] = {}
        feeds = subject.feeds(np.random.default_rng(4), batch)
        for way in subject.ways:
            states = subject.states(way, batch)
            runs[way] = _stepping(states, np.arange(1, batch + 1), feeds, subject.outputs)
        for way, step_s in _best(runs, sizes, subject.device).items():
            rows.append(
                {"way": way, "batch": batch, "step_us": step_s * 1e6, "steps_s": batch / step_s}
            )
    return rows


def capacity(subject: Subject, sizes: Sizes) -> list[Row]:
    """A step of 64 rows that lie anywhere among so many; all capacities in turns."""
    runs: dict[int, Callable[[], object]] = {}
    for slots in _fitting(sizes.capacities, subject, sizes):
        random = np.random.default_rng(5)
        batch = min(64, slots)
        rows = random.choice(slots, batch, replace=False) + 1
        states = subject.ways[OPERATOR].states(slots)
        for row in rows:
            states.reset(int(row))
        runs[slots] = _stepping(states, rows, subject.feeds(random, batch), subject.outputs)
    best = _best(runs, sizes, subject.device)
    first = next(iter(best.values()))
    return [
        {"slots": slots, "step_us": step_s * 1e6, "over_fewest": step_s / first}
        for slots, step_s in best.items()
    ]


def _fitting(counts: Sequence[int], subject: Subject, sizes: Sizes) -> list[int]:
    """Those whose states have room; the ways of a batch have states each."""
    return [n for n in counts if n * subject.config.state_nbytes * 3 <= sizes.state_bytes]


def _stepping(
    states: BoundStates, rows: Any, feeds: Arrays, outputs: Sequence[str]
) -> Callable[[], object]:
    return lambda: states.run(rows, feeds, outputs)


def _best(runs: dict[Any, Callable[[], object]], sizes: Sizes, device: Device) -> dict[Any, float]:
    """Seconds of one run of each, the fastest of some rounds in which they take turns.

    On the CPU, where a run is of this thread alone, of its own time: others may use the machine.
    """
    clock = time.thread_time if device == "cpu" else time.perf_counter
    found = dict.fromkeys(runs, float("inf"))
    for run in runs.values():
        for _ in range(3):
            run()
    for _ in range(sizes.rounds):
        for key, run in runs.items():
            count, begin = 0, clock()
            while (now := clock()) - begin < sizes.seconds / len(runs) or not count:
                run()
                count += 1
            found[key] = min(found[key], (now - begin) / count)
    return found


def over_the_socket(bench: Bench, names: Sequence[str], device: Device, sizes: Sizes) -> list[Row]:
    """The service itself, its answers compared; sessions in frames of 16 steps, two frames on their way."""
    rows = []
    with bench.service({"SEQSERVE_DEVICE": device}) as server:
        for name in names:
            model = bench.model(name)
            rows += [frames.steps(bench, server, model, count, 16, 2) for count in sizes.sessions]
    return rows


def measure(bench: Bench, device: Device, sizes: Sizes, names: Sequence[str]) -> Row:
    """Everything, of all models."""
    if device == "cuda":
        require_cuda()
    found: dict[str, Any] = {}
    for name in names:
        directory = bench.models / name / "1"
        print(f"{name} ...", file=sys.stderr, flush=True)
        subject = Subject(directory, device, max(64, *sizes.batches))
        found[name] = {
            "parity": parity(subject, sizes),
            "safety": safety(subject, sizes),
            "residency": residency(subject, directory),
            "speed": speed(subject, sizes),
            "capacity": capacity(subject, sizes),
        }
    used, total = device_memory()
    print("socket ...", file=sys.stderr, flush=True)
    return {
        "device": device,
        "machine": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu(),
        "device_memory_bytes": {"used": used, "total": total},
        "python": platform.python_version(),
        "versions": {d.name: d.version for d in distributions() if d.name in _PACKAGES},
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "measured": found,
        "socket": over_the_socket(bench, names, device, sizes),
    }


_PACKAGES = frozenset(("onnxruntime", "onnxruntime-gpu", "onnx", "numpy"))


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((s.partition(":")[2].strip() for s in lines if s.startswith("model name")), "")


def table(result: Row) -> str:
    """The result as Markdown."""
    versions = ", ".join(f"{name} {number}" for name, number in sorted(result["versions"].items()))
    parts = [
        f"# States on the device: {result['device']}",
        f"{result['date']}, {result['cpu']}, {result['machine']}, {versions}. Written by `python -m benchmarks.gpu`.",
    ]
    for name, found in result["measured"].items():
        safe = found["safety"]
        proven = ", ".join(map(str, safe["proven_at_load"])) or "none"
        parts += [
            f"## {name}",
            "Largest difference from the exported graph on the CPU; the golden answers are given by each.",
            _lines(found["parity"], ("way", "runs", "outputs", "states")),
            f"Replayed in fixed buffers: proven at load for {proven} rows; of {safe['runs']} mixed runs "
            f"{safe['differing_runs']} differ in a bit; states {'equal' if safe['states_equal'] else 'DIFFER'}.",
            "Bytes for one step of a batch, by what is given and given back, and copies that the runtime added:",
            _lines(
                found["residency"],
                tuple(found["residency"][0]),
            ),
            "Single steps in this process:",
            _lines(found["speed"], ("way", "batch", "step_us", "steps_s")),
            "A batch of 64 among so many slots:",
            _lines(found["capacity"], ("slots", "step_us", "over_fewest")),
        ]
    columns = ("model", "sessions", "steps", "steps_s", "p50_ms", "p99_ms", "server_cpu_us")
    parts += ["## Over the socket", _lines(result["socket"], columns)]
    return "\n\n".join(parts) + "\n"


def _lines(rows: Sequence[Row], columns: Sequence[str]) -> str:
    rule = ["---" if i == 0 else "---:" for i in range(len(columns))]
    cells = [[_cell(row[column]) for column in columns] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in (list(columns), rule, *cells))


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    if isinstance(value, list):
        return ", ".join(value) or "none"
    if isinstance(value, dict):
        return ", ".join(f"{name}: {_cell(each)}" for name, each in value.items())
    return f"{value:,}" if isinstance(value, int) else str(value)


def save(result: Row, directory: Path) -> None:
    """Write the result and its table."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"gpu-{result['device']}.json"
    path.write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=1) + b"\n")
    path.with_suffix(".md").write_text(table(result))


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--models", default=",".join(models.NAMES), help="some of them")
    parser.add_argument("--directory", type=Path, help="where they are, if not to be built")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, and nothing is written")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument(
        "--trace", nargs=3, metavar=("DIRECTORY", "WAY", "STEPS"), help=argparse.SUPPRESS
    )
    arguments = parser.parse_args()
    if arguments.trace:
        directory, way, steps = arguments.trace
        _run_traced(Path(directory), way, int(steps))
        return
    device = choose_device(arguments.device)
    sizes = _FULL if device == "cuda" else _ON_CPU
    sizes = _QUICK if arguments.quick else sizes
    bench = Bench(
        models=arguments.directory or models.cached(),
        shipped=Path("exported"),
        seconds=sizes.seconds,
        rounds=sizes.rounds,
        quick=arguments.quick,
    )
    result = measure(bench, device, sizes, arguments.models.split(","))
    print(table(result))
    if not arguments.quick:
        save(result, arguments.results)


if __name__ == "__main__":
    main()
