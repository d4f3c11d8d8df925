"""Ten thousand sessions that live in memory: what they cost, and whether those that step feel them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from statistics import median
from typing import Any

from benchmarks import sessions
from benchmarks.bench import Bench
from benchmarks.client import Reply, closed, percentiles
from benchmarks.models import GRU, LSTM
from benchmarks.server import Server
from benchmarks.sources import Player, Steps, players
from benchmarks.tape import Model

FEW, LINES = 64, 64
# Steps that each session takes before it rests, and for how long: the service has done then what it does with those.
_LIVED, _REST_S = 8, 3.0
_TOMBSTONES = 1000
# Sessions that come and go together.
_AT_ONCE = 500
_FOREVER_S = 600.0


def measure(bench: Bench) -> dict[str, Any]:
    """Memory, then speed, then coming and going."""
    many = round(bench.scaled(10_000, 200))
    memory = [_memory(bench, bench.model(name), many) for name in (LSTM, GRU)]
    with bench.service() as server:
        speeds = [_speed(bench, server, bench.model(LSTM), many) for _ in range(bench.rounds)]
    return {
        "sessions": many,
        "memory": memory,
        "speed": {name: median(turn[name] for turn in speeds) for name in speeds[0]},
        "cycles": _cycles(bench, bench.model(GRU)),
    }


def _memory(bench: Bench, model: Model, many: int) -> dict[str, Any]:
    """Resident memory of sessions that took some steps and rest."""
    with bench.service() as server:
        # What the first ones cost once and for all.
        _live(server, model, FEW, _LIVED)
        before = server.resident_bytes
        _live(server, model, many, _LIVED)
        time.sleep(bench.scaled(_REST_S, 0.0))
        after = server.resident_bytes
    state = model.raw.config.state_nbytes
    return {
        "model": model.name,
        "state_bytes": state,
        "session_bytes": (after - before) / many,
        "allowed_bytes": 2 * state + 1024,
    }


def _live(server: Server, model: Model, count: int, steps: int) -> list[str]:
    """Open sessions and let each take some steps, in one request; returns their ids."""
    ids = sessions.open_(server, model.name, count)
    _step_once(server, players(model, ids), steps)
    return ids


def _step_once(server: Server, them: Sequence[Player], steps: int) -> list[Reply]:
    """Let each session take some steps, in one request."""
    source = _Once(them, steps)
    run = closed(server.port, [(source, LINES)], _FOREVER_S)
    if source.check(run.replies) != len(them) * steps:
        raise RuntimeError("a session did not step")
    return run.replies


class _Once(Steps):
    """Each session sends one request."""

    def done(self, tag: Player, response: bytes) -> None:
        """See `Source`."""
        tag.at += self.size


def _speed(bench: Bench, server: Server, model: Model, many: int) -> dict[str, float]:
    """As many requests on their way either way, of the few sessions or of all in turn."""
    figures: dict[str, float] = {}
    for name, count in (("few", FEW), ("many", many)):
        with sessions.opened(server, model.name, count) as ids:
            them = players(model, ids)
            # Before its first step a session has no state.
            before = _step_once(server, them, 1)
            source = Steps(them)
            run = closed(server.port, [(source, LINES)], bench.scaled(2, 1) * bench.seconds)
        source.check(before + run.replies)
        found = percentiles(run.latencies())
        figures |= {f"{name}_steps_s": run.rate(), f"{name}_p99_ms": found["p99_ms"]}
    figures["ratio"] = figures["many_steps_s"] / figures["few_steps_s"]
    figures["p99_ratio"] = figures["many_p99_ms"] / figures["few_p99_ms"]
    return figures


def _cycles(bench: Bench, model: Model) -> dict[str, Any]:
    """Resident memory over sessions that are opened on a socket, take a step over HTTP, and are closed."""
    total = round(bench.scaled(100_000, 2000))
    part = total // 10
    # How many ended sessions are remembered is bounded by a setting; the bound is reached in the first part, which
    # does not count.
    settings = {"SEQSERVE_MAX_TOMBSTONES": str(min(_TOMBSTONES, part))}
    with bench.service(settings) as server:
        _come_and_go(server, model, part)
        resident = [server.resident_bytes]
        for _ in range(10):
            _come_and_go(server, model, part)
            resident.append(server.resident_bytes)
    return {
        "cycles": total,
        "before": part,
        "resident_bytes": resident,
        "growth_bytes": resident[-1] - resident[0],
    }


def _come_and_go(server: Server, model: Model, count: int) -> None:
    for start in range(0, count, _AT_ONCE):
        sessions.close(server, _live(server, model, min(_AT_ONCE, count - start), 1))
