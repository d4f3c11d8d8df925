"""In this process: bare ONNX Runtime, the engine, and sessions on top, at equal batch, in turns, all on one core.

Sessions step as the service has them step: those that were read in one turn of the event loop go as a group.

The machine may be busy with other things, so they take turns and each round gives one ratio; the median counts.
CPU time is what the whole process used, all threads.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from statistics import median
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import uvloop

from benchmarks.bench import Bench
from benchmarks.models import GRU, NAMES
from benchmarks.raw import SERVER_CORE, Arrays, Speed, pinned
from benchmarks.tape import TAPES, Model, Numbers, Tape
from service.__main__ import SWITCH_S
from service.engine.engine import Engine, Limits
from service.engine.graph import Graph
from service.journal.memory import MemoryJournal
from service.metrics import EngineMetrics, Metrics
from service.sessions.step import Outputs, Wanted
from service.sessions.table import Policy, Sessions

BATCHES = (1, 8, 64)
GRU_BATCHES = (*BATCHES, 128)
_END = np.zeros(1, np.intp)
_FOREVER = float("inf")

Row = dict[str, Any]
# Queues the step at a place of the tapes of some sessions, and has their outcomes told: the place of the first of them
# and outputs (sessions, 1, *shape), of all or of some and then of the others.
OnEnd = Callable[[int, Arrays], None]
Begin = Callable[[int, OnEnd], None]
# The sessions of a turn by crews that step together, and what ends them.
Crews = tuple[list["Crew"], Callable[[], Awaitable[None]]]


@dataclass
class Crew:
    """Sessions that step together, and their answers, to be compared when the clock has stopped.

    Attributes:
        tapes: Of each session.
        begin: See `Begin`.
        outputs: Of each step, (sessions, *shape).
    """

    tapes: list[Tape]
    begin: Begin
    outputs: list[Arrays] = field(default_factory=list)

    def check(self) -> None:
        """Compare every answer."""
        if not self.outputs:
            return
        at = np.arange(len(self.outputs))
        columns = {
            name: np.stack([outputs[name] for outputs in self.outputs], axis=1)
            for name in self.outputs[0]
        }
        for number, tape in enumerate(self.tapes):
            _check(tape, at, {name: values[number] for name, values in columns.items()})


def _check(tape: Tape, at: npt.NDArray[np.intp], outputs: Arrays) -> None:
    if isinstance(tape.answers, Numbers):
        tape.answers.compare(at, outputs[tape.answers.name])
    else:
        scores = np.exp(outputs["top_scores"] - outputs["logsumexp"][:, None])
        tape.answers.compare(at, outputs["top_indices"][:, :5], scores[:, :5])


def measure(bench: Bench) -> list[Row]:
    """Every model at every batch size: one row each."""
    rows = []
    interval = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_S)
    try:
        with pinned(SERVER_CORE):
            for name in NAMES:
                model = bench.model(name)
                batches = GRU_BATCHES if name == GRU else BATCHES
                rows += [uvloop.run(_measure(bench, model, batch)) for batch in batches]
    finally:
        sys.setswitchinterval(interval)
    return rows


async def _measure(bench: Bench, model: Model, batch: int) -> Row:
    metrics = Metrics()
    limits = Limits(capacity=512, max_pending=4096, max_pending_tokens=2**20)
    batching = msgspec.structs.replace(model.raw.config.batching, max_batch_size=batch)
    config = msgspec.structs.replace(model.raw.config, batching=batching)
    graph = Graph(model.raw.path.read_bytes(), config)
    engine = Engine(graph, limits, EngineMetrics(metrics, model.name, 1))
    engine.start()
    policy = Policy(max_sessions=10_000, evict_idle_s=60, snapshot_every=64)
    sessions = Sessions(MemoryJournal(10), lambda name, version: engine, policy, metrics)
    seconds = bench.seconds / 2
    ways: dict[str, Callable[[], Awaitable[Speed]]] = {
        "engine": lambda: _timed(_engines(model, engine, batch, 1), seconds),
        "full": lambda: _timed(_engines(model, engine, batch, 2), seconds),
        "sessions": lambda: _timed(_sessions(model, engine, sessions, batch), seconds),
    }
    if model.name == GRU:
        # Where it counts most.
        ways["alone"] = lambda: _timed(_engines(model, engine, 1, 2 * batch), seconds)
    found: dict[str, list[Speed]] = {name: [] for name in ("raw", *ways)}
    inputs = model.batches(batch)
    for _ in range(bench.rounds):
        found["raw"].append(model.raw.speed(batch, inputs, seconds))
        for name, way in ways.items():
            found[name].append(await way())
    await engine.close()
    return {"model": model.name, "batch": batch} | _row(found)


async def _timed(crews: Awaitable[Crews], seconds: float) -> Speed:
    """Let crews step, each as soon as its last step is answered."""
    found, leave = await crews
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[None] = loop.create_future()
    left = len(found)
    started, cpu = time.perf_counter(), time.process_time()
    until = started + seconds

    def go_on(crew: Crew, parts: dict[int, Arrays], first: int, outputs: Arrays) -> None:
        nonlocal left
        parts[first] = outputs
        if sum(len(next(iter(part.values()))) for part in parts.values()) < len(crew.tapes):
            return
        crew.outputs.append(_joined([parts[place] for place in sorted(parts)]))
        at = len(crew.outputs)
        if at < crew.tapes[0].length and time.perf_counter() < until:
            crew.begin(at, partial(go_on, crew, {}))
            return
        left -= 1
        if not left:
            ended.set_result(None)

    for crew in found:
        crew.begin(0, partial(go_on, crew, {}))
    await ended
    elapsed, cpu = time.perf_counter() - started, time.process_time() - cpu
    await leave()
    for crew in found:
        crew.check()
    steps = sum(len(crew.outputs) * len(crew.tapes) for crew in found)
    return Speed(steps / elapsed, cpu / steps * 1e6)


def _joined(parts: list[Arrays]) -> Arrays:
    if len(parts) == 1:
        return {name: values[:, 0] for name, values in parts[0].items()}
    return {name: np.concatenate([part[name][:, 0] for part in parts]) for name in parts[0]}


def _failed(place: int, outcome: Any) -> None:
    raise RuntimeError(f"the step of session {place} went its own way") from outcome


async def _engines(model: Model, engine: Engine, size: int, count: int) -> Crews:
    """So many crews of so many sessions, which are a slot of the engine each; a crew of one goes without a group."""
    outputs = model.raw.outputs
    slots = [engine.take() for _ in range(size * count)]

    def crew(first: int) -> Crew:
        mine = [slot for slot in slots[first : first + size] if slot is not None]
        tapes = [model.tapes[place % TAPES] for place in range(first, first + size)]
        inputs = _inputs(model, first, size)

        def begin(at: int, on_end: OnEnd) -> None:
            engine.begin_group(
                mine, inputs(at), outputs, _FOREVER, on_end, _failed, top_k=model.top_k
            )

        def begin_alone(at: int, on_end: OnEnd) -> None:
            def end(outcome: Any) -> None:
                on_end(0, {name: values[None] for name, values in outcome.items()})

            one = {name: values[0] for name, values in inputs(at).items()}
            engine.begin(mine[0], one, _END, outputs, _FOREVER, end, top_k=model.top_k)

        return Crew(tapes, begin if size > 1 else begin_alone)

    async def leave() -> None:
        for slot in slots:
            assert slot is not None
            engine.give_back(slot)

    return [crew(number * size) for number in range(count)], leave


async def _sessions(model: Model, engine: Engine, sessions: Sessions, count: int) -> Crews:
    """One crew of sessions as the service has them, with `seq` and the journal."""
    wanted = Wanted(model.raw.outputs, _FOREVER, top_k=model.top_k)
    opened = [(await sessions.create(engine, "benchmark", 60.0))[0] for _ in range(count)]
    for session in opened:
        # Only a session with its state at hand can step with others.
        await sessions.slots.wake(session)
    inputs = _inputs(model, 0, count)

    def begin(at: int, on_end: OnEnd) -> None:
        def end(first: int, seqs: list[int], outputs: Outputs) -> None:
            on_end(first, dict(outputs))

        sessions.begin_together(opened, inputs(at), b"", wanted, end, _failed)

    async def leave() -> None:
        for session in opened:
            await sessions.delete(session)

    return [Crew([model.tapes[place % TAPES] for place in range(count)], begin)], leave


def _inputs(model: Model, first: int, size: int) -> Callable[[int], Arrays]:
    """A step of so many sessions from the first on, as the engine takes it: (sessions, 1, *shape)."""
    # A copy for each session would be hundreds of megabytes.
    steps = np.stack([tape.arrays for tape in model.tapes], axis=1)[:, :, None]
    order = np.arange(first, first + size) % TAPES
    return lambda at: {model.input: steps[at].take(order, axis=0)}


def _row(found: dict[str, list[Speed]]) -> dict[str, float]:
    row: dict[str, float] = {}
    raw = found["raw"]
    for name, speeds in found.items():
        row[f"{name}_steps_s"] = median(speed.steps_s for speed in speeds)
        row[f"{name}_cpu_us"] = median(speed.cpu_us for speed in speeds)
        if name != "raw":
            pairs = list(zip(speeds, raw, strict=True))
            row[f"{name}_ratio"] = median(a.steps_s / b.steps_s for a, b in pairs)
            row[f"{name}_cpu_ratio"] = median(b.cpu_us / a.cpu_us for a, b in pairs)
    return row
