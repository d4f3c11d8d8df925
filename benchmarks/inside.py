"""In this process: bare ONNX Runtime, the engine, and sessions on top, at equal batch, in turns.

The machine may be busy with other things, so they take turns and each round gives one ratio; the median counts.
CPU time is what the whole process used, all threads.
"""

from __future__ import annotations

import asyncio
import copy
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from itertools import cycle
from statistics import median
from typing import Any

import msgspec
import numpy as np

from benchmarks.tape import LENGTH, Arrays, Model, Tape
from service.engine.engine import Engine, Limits
from service.engine.graph import Graph
from service.journal.memory import MemoryJournal
from service.metrics import EngineMetrics, Metrics
from service.sessions.session import Chunk
from service.sessions.table import Policy, Sessions, Wanted

BATCHES = (1, 8, 64)
_END = np.zeros(1, np.intp)
_FOREVER = float("inf")


@dataclass(frozen=True)
class Speed:
    """Steps a second, and microseconds of CPU a step."""

    steps_s: float
    cpu_us: float


@dataclass(frozen=True)
class Played:
    """Steps taken, and each session's answers, to be compared when the clock has stopped."""

    steps: int
    answers: list[tuple[Tape, list[Arrays]]]


async def measure(model: Model, rounds: int, seconds: float) -> list[dict[str, Any]]:
    """Measure one model at every batch size: one row each."""
    return [await _measure_batch(model, batch, rounds, seconds) for batch in BATCHES]


async def _measure_batch(model: Model, batch: int, rounds: int, seconds: float) -> dict[str, Any]:
    metrics = Metrics()
    limits = Limits(capacity=256, max_pending=4096, max_pending_tokens=2**20)
    engine = Engine(_limited(model.graph, batch), limits, EngineMetrics(metrics, model.name, 1))
    engine.start()
    policy = Policy(max_sessions=10_000, evict_idle_s=60, snapshot_every=64)
    sessions = Sessions(MemoryJournal(10), lambda name, version: engine, policy, metrics)
    ways: dict[str, Callable[[float], Awaitable[Played]]] = {
        "raw": lambda end: _raw(model, batch, end),
        "engine": lambda end: _closed_loop(batch, end, _by_engine, model, engine),
        "full": lambda end: _closed_loop(2 * batch, end, _by_engine, model, engine),
        "sessions": lambda end: _closed_loop(batch, end, _by_sessions, model, engine, sessions),
    }
    found: dict[str, list[Speed]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            found[name].append(await _timed(way, seconds))
    await engine.close()
    return {"model": model.name, "batch": batch} | _row(found)


def _limited(graph: Graph, batch: int) -> Graph:
    """The same graph, in batches of at most `batch`."""
    batching = msgspec.structs.replace(graph.config.batching, max_batch_size=batch)
    limited = copy.copy(graph)
    limited.config = msgspec.structs.replace(graph.config, batching=batching)
    return limited


async def _timed(way: Callable[[float], Awaitable[Played]], seconds: float) -> Speed:
    started, cpu = time.perf_counter(), time.process_time()
    played = await way(started + seconds)
    elapsed, cpu = time.perf_counter() - started, time.process_time() - cpu
    for tape, answers in played.answers:
        for at, outputs in enumerate(answers):
            tape.check_outputs(at % LENGTH, outputs)
    return Speed(played.steps / elapsed, cpu / played.steps * 1e6)


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


async def _raw(model: Model, batch: int, end: float) -> Played:
    """The same steps by a bare loop around ONNX Runtime, state handed on."""
    config = model.graph.config
    tapes = [tape for tape, _ in zip(cycle(model.tapes), range(batch), strict=False)]
    inputs = [
        {t.name: np.stack([tape.arrays[at][t.name] for tape in tapes]) for t in config.inputs}
        for at in range(64)
    ]
    feeds = model.graph.scratch_feeds(batch, 1)
    runs = 0
    while time.perf_counter() < end:
        feeds |= inputs[runs % len(inputs)]
        result = model.graph.run(feeds, model.outputs)
        feeds |= {s.input_name: result[s.output_name] for s in config.state}
        runs += 1
    return Played(runs * batch, [])


async def _closed_loop(
    count: int, end: float, play: Callable[..., Awaitable[None]], model: Model, *parts: Any
) -> Played:
    """Sessions that each send the next step when the last one is answered."""
    answers: list[tuple[Tape, list[Arrays]]] = [
        (tape, []) for tape, _ in zip(cycle(model.tapes), range(count), strict=False)
    ]
    await asyncio.gather(*(play(end, model, *each, *parts) for each in answers))
    return Played(sum(len(each) for _, each in answers), answers)


async def _by_engine(
    end: float, model: Model, tape: Tape, answers: list[Arrays], engine: Engine
) -> None:
    while time.perf_counter() < end:
        slot = engine.take()
        assert slot is not None
        for arrays in tape.arrays:
            _, future = engine.submit(slot, arrays, _END, model.task.outputs, _FOREVER)
            answers.append(await future)
            if time.perf_counter() >= end:
                break
        engine.give_back(slot)


async def _by_sessions(
    end: float, model: Model, tape: Tape, answers: list[Arrays], engine: Engine, sessions: Sessions
) -> None:
    wanted = Wanted(model.task.outputs, _FOREVER)
    while time.perf_counter() < end:
        session, _ = await sessions.create(engine, "benchmark", 60.0)
        for number, arrays in enumerate(tape.arrays, 1):
            applied = await sessions.apply(session, Chunk(arrays, _END), wanted, number)
            answers.append(applied.outputs)
            if time.perf_counter() >= end:
                break
        await sessions.delete(session)
