"""In this process: bare ONNX Runtime, the engine, and sessions on top, at equal batch, in turns, all on one core.

The machine may be busy with other things, so they take turns and each round gives one ratio; the median counts.
CPU time is what the whole process used, all threads.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import cache, partial
from statistics import median
from typing import Any

import msgspec
import numpy as np
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
from service.sessions.session import Chunk
from service.sessions.steps import Wanted
from service.sessions.table import Policy, Sessions

BATCHES = (1, 8, 64)
GRU_BATCHES = (*BATCHES, 128)
_END = np.zeros(1, np.intp)
_FOREVER = float("inf")

Row = dict[str, Any]
# Queues the step at a place of a session's tape, and has its outcome told.
Begin = Callable[[int, Callable[[Any], None]], None]
# The sessions of a turn, each with its tape, and what ends them.
Players = tuple[list[tuple[Tape, Begin]], Callable[[], Awaitable[None]]]


@dataclass
class Played:
    """One session's answers, to be compared when the clock has stopped."""

    tape: Tape
    outputs: list[Arrays] = field(default_factory=list)

    def check(self) -> None:
        """Compare every answer."""
        if not self.outputs:
            return
        at = np.arange(len(self.outputs))
        columns = {
            name: np.concatenate([outputs[name] for outputs in self.outputs])
            for name in self.outputs[0]
        }
        answers = self.tape.answers
        if isinstance(answers, Numbers):
            answers.compare(at, columns[answers.name])
        else:
            scores = np.exp(columns["top_scores"] - columns["logsumexp"][:, None])
            answers.compare(at, columns["top_indices"][:, :5], scores[:, :5])


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
        "engine": lambda: _timed(_engines(model, engine, batch), seconds),
        "full": lambda: _timed(_engines(model, engine, 2 * batch), seconds),
        "sessions": lambda: _timed(_sessions(model, engine, sessions, batch), seconds),
    }
    found: dict[str, list[Speed]] = {name: [] for name in ("raw", *ways)}
    inputs = model.batches(batch)
    for _ in range(bench.rounds):
        found["raw"].append(model.raw.speed(batch, inputs, seconds))
        for name, way in ways.items():
            found[name].append(await way())
    await engine.close()
    return {"model": model.name, "batch": batch} | _row(found)


async def _timed(players: Awaitable[Players], seconds: float) -> Speed:
    """Let sessions that `players` makes step, each as soon as its last step is answered."""
    begins, leave = await players
    played = [Played(tape) for tape, _ in begins]
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[None] = loop.create_future()
    left = len(played)
    started, cpu = time.perf_counter(), time.process_time()
    until = started + seconds

    def go_on(place: int, outcome: Any) -> None:
        nonlocal left
        if isinstance(outcome, Exception):
            if not ended.done():
                ended.set_exception(outcome)
            return
        mine = played[place]
        mine.outputs.append(getattr(outcome, "outputs", outcome))
        at = len(mine.outputs)
        tape, begin = begins[place]
        if at < tape.length and time.perf_counter() < until:
            begin(at, partial(go_on, place))
            return
        left -= 1
        if not left:
            ended.set_result(None)

    for place, (_, begin) in enumerate(begins):
        begin(0, partial(go_on, place))
    await ended
    elapsed, cpu = time.perf_counter() - started, time.process_time() - cpu
    await leave()
    for each in played:
        each.check()
    steps = sum(len(each.outputs) for each in played)
    return Speed(steps / elapsed, cpu / steps * 1e6)


async def _engines(model: Model, engine: Engine, count: int) -> Players:
    """Sessions that are a slot of the engine each."""
    outputs = model.raw.outputs
    slots = [engine.take() for _ in range(count)]

    def player(place: int) -> tuple[Tape, Begin]:
        tape, slot = model.tapes[place % TAPES], slots[place]
        assert slot is not None
        arrays = _arrays(tape, model.input)

        def begin(at: int, on_end: Callable[[Any], None]) -> None:
            engine.begin(slot, arrays[at], _END, outputs, _FOREVER, on_end)

        return tape, begin

    async def leave() -> None:
        for slot in slots:
            assert slot is not None
            engine.give_back(slot)

    return [player(place) for place in range(count)], leave


async def _sessions(model: Model, engine: Engine, sessions: Sessions, count: int) -> Players:
    """Sessions as the service has them, with `seq` and the journal."""
    wanted = Wanted(model.raw.outputs, _FOREVER)
    opened = [(await sessions.create(engine, "benchmark", 60.0))[0] for _ in range(count)]

    def player(place: int) -> tuple[Tape, Begin]:
        tape, session = model.tapes[place % TAPES], opened[place]
        chunks = [Chunk({model.input: tape.arrays[at : at + 1]}, _END) for at in range(tape.length)]

        def begin(at: int, on_end: Callable[[Any], None]) -> None:
            sessions.begin(session, chunks[at], wanted, at + 1, on_end)

        return tape, begin

    async def leave() -> None:
        for session in opened:
            await sessions.delete(session)

    return [player(place) for place in range(count)], leave


@cache
def _arrays(tape: Tape, name: str) -> list[Arrays]:
    """Every step as the engine takes it."""
    return [{name: tape.arrays[at : at + 1]} for at in range(tape.length)]


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
