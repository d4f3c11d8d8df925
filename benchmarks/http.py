"""Steps over HTTP, one or more in a request, beside bare ONNX Runtime, the plain service and the bare echo."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from benchmarks import frames, sessions
from benchmarks.bench import Bench
from benchmarks.client import closed, percentiles
from benchmarks.frames import beside, middle, of_file
from benchmarks.models import GRU, LSTM, NAMES
from benchmarks.server import Server, application
from benchmarks.sources import Plain, Same, Steps, players, post
from benchmarks.tape import Model

# Sessions, and steps of each request.
SHAPES = ((1, 1), (8, 1), (64, 1), (256, 1), (64, 16))
PLAIN_SESSIONS = 64
_ECHOED = b'{"inputs":["word"],"seq":1}'

Row = dict[str, Any]


def measure(bench: Bench) -> list[Row]:
    """All of it: the rows take turns, so that each ratio is of neighbours in time."""
    with ExitStack() as stack:
        server = stack.enter_context(bench.service())
        echo = stack.enter_context(application("benchmarks.echo:app"))
        rows = []
        for name in NAMES:
            model = bench.model(name)
            turns = [_turn(bench, server, echo, model) for _ in range(bench.rounds)]
            rows += [middle([turn[i] for turn in turns]) for i in range(len(turns[0]))]
    rows += [_plain(bench, bench.model(name)) for name in (LSTM, GRU)]
    return rows


def _turn(bench: Bench, server: Server, echo: Server, model: Model) -> list[Row]:
    raw = {
        count: model.raw.speed(count, model.batches(count), bench.seconds / 2)
        for count in sorted({min(count * size, 64) for count, size in SHAPES})
    }
    whole = model.raw.speed(64, model.batches(64, whole=True), bench.seconds / 2)
    floor = echoes(bench, echo)
    rows = []
    for count, size in SHAPES:
        row = beside(steps(bench, server, model, count, size), raw[min(count * size, 64)])
        if (count, size) == (64, 1):
            row |= of_file(row, whole)
        row["echo_ratio"] = row["steps_s"] / floor["steps_s"]
        row["echo_cpu_ratio"] = floor["server_cpu_us"] / row["server_cpu_us"]
        rows.append(row)
    if model.name == GRU:
        (single,) = (row for row in rows if (row["sessions"], row["steps"]) == (64, 1))
        rows += [_of_frames(bench, server, model, single, packed=form) for form in (False, True)]
    return [*rows, floor]


def _of_frames(bench: Bench, server: Server, model: Model, single: Row, *, packed: bool) -> Row:
    """Frames of many steps over one socket, beside single steps over HTTP."""
    row = frames.steps(bench, server, model, 64, 16, 1, packed=packed)
    return row | {
        "http_ratio": row["steps_s"] / single["steps_s"],
        "http_cpu_ratio": single["server_cpu_us"] / row["server_cpu_us"],
    }


def steps(bench: Bench, server: Server, model: Model, count: int, size: int = 1) -> Row:
    """`count` sessions that send the next request when the last is answered."""
    with sessions.opened(server, model.name, count) as ids:
        source = Steps(players(model, ids), size)
        cpu = server.cpu_s
        run = closed(server.port, [(source, count)], bench.seconds)
        cpu = server.cpu_s - cpu
    total = source.check(run.replies)
    return {
        "model": model.name,
        "way": "HTTP",
        "sessions": count,
        "steps": size,
        "steps_s": run.rate() * size,
        "server_cpu_us": cpu / total * 1e6,
        "client_cpu_us": run.client_us / size,
        "refused": run.refused,
    } | percentiles(run.latencies())


def echoes(bench: Bench, server: Server) -> Row:
    """The bare echo of a body of the same size."""
    source = Same(post("/", _ECHOED), _ECHOED)
    cpu = server.cpu_s
    run = closed(server.port, [(source, 64)], bench.seconds / 2)
    cpu = server.cpu_s - cpu
    source.check(run.replies)
    return {
        "model": "none",
        "way": "raw-ASGI echo",
        "sessions": 64,
        "steps": 1,
        "steps_s": run.rate(),
        "server_cpu_us": cpu / len(run.replies) * 1e6,
        "client_cpu_us": run.client_us,
    } | percentiles(run.latencies())


def _plain(bench: Bench, model: Model) -> Row:
    environment = {"PLAIN_MODEL": str(model.raw.path.parent)}
    with application("benchmarks.plain:app", environment) as server:
        source = Plain(model, PLAIN_SESSIONS)
        cpu = server.cpu_s
        run = closed(server.port, [(source, PLAIN_SESSIONS)], 2 * bench.seconds)
        cpu = server.cpu_s - cpu
    source.check(run.replies)
    return {
        "model": model.name,
        "way": "plain FastAPI",
        "sessions": PLAIN_SESSIONS,
        "steps": 1,
        "steps_s": run.rate(),
        "server_cpu_us": cpu / len(run.replies) * 1e6,
        "client_cpu_us": run.client_us,
    } | percentiles(run.latencies())
