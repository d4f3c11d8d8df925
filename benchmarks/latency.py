"""Steps over HTTP that come at a rate of their own, at shares of what the service can do: open loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks import sessions
from benchmarks.bench import Bench
from benchmarks.client import Run, closed, even, opened, percentiles, poisson
from benchmarks.models import GRU, LSTM
from benchmarks.server import Server
from benchmarks.sources import Steps, players
from benchmarks.tape import Model

SHARES = (0.2, 0.5, 0.8, 0.9)
SESSIONS = 256
# Of the closed loop that says what the service can do.
_SATURATING = (64, 256)

Row = dict[str, Any]


def measure(bench: Bench) -> list[Row]:
    """Latency over load, of independent requests and of requests at equal distances."""
    rows = []
    with bench.service() as server:
        for name in (LSTM, GRU):
            model = bench.model(name)
            peak = saturation(bench, server, model)
            for share in SHARES:
                for arrivals, times in (("Poisson", poisson), ("even", even)):
                    due = times(share * peak, 2.5 * bench.seconds)
                    count = round(bench.scaled(SESSIONS, 32))
                    run = at_rate(server, model, due, count=count)
                    found = percentiles(run.latencies())
                    rows.append(
                        {
                            "model": name,
                            "arrivals": arrivals,
                            "share": share,
                            "peak_steps_s": peak,
                            "due_steps_s": share * peak,
                            "steps_s": run.rate(),
                            "refused": run.refused,
                            "lost": run.lost + run.unsent,
                            "tail": found["p99_ms"] / found["p50_ms"],
                        }
                        | found
                    )
    return rows


def saturation(bench: Bench, server: Server, model: Model, size: int = 1) -> float:
    """Most steps a second that come back when everybody sends the next when the last is answered."""
    best = 0.0
    for count in _SATURATING:
        with sessions.opened(server, model.name, count) as ids:
            source = Steps(players(model, ids), size)
            run = closed(server.port, [(source, count)], bench.seconds)
        source.check(run.replies)
        best = max(best, run.rate() * size)
    return best


def at_rate(
    server: Server,
    model: Model,
    arrivals: Any,
    *,
    size: int = 1,
    count: int,
    watch: Callable[[], Any] | None = None,
) -> Run:
    """Steps of sessions that are due at given times, on as many connections; every answer is compared."""
    with sessions.opened(server, model.name, count) as ids:
        source = Steps(players(model, ids), size)
        run = opened(server.port, source, count, arrivals, watch=watch)
    source.check(run.replies)
    return run
