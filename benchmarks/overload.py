"""Five times as many steps as the service can take, for a minute: what becomes of them, and what the rest is told."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.bench import Bench
from benchmarks.client import Reply, percentiles, poisson
from benchmarks.latency import SESSIONS, at_rate, saturation
from benchmarks.models import LSTM

TIMES = 5
# Steps of a request, and seconds. Of single steps there are so many that reading and refusing four of five takes a
# good part of the core; of longer requests the same overload is fewer.
KINDS = ((1, 60.0), (16, 10.0))
_SHARE = 0.8
# Connections, and sessions. What cannot be sent since all of them wait for an answer is late, or is never sent: who is
# refused late asks less often.
_LINES = 1024


def measure(bench: Bench) -> list[dict[str, Any]]:
    """Both kinds."""
    return [
        _measure(bench, size, bench.scaled(seconds, 2 * bench.seconds)) for size, seconds in KINDS
    ]


def _measure(bench: Bench, size: int, seconds: float) -> dict[str, Any]:
    with bench.service() as server:
        model = bench.model(LSTM)
        peak = saturation(bench, server, model, size)
        times = poisson(_SHARE * peak / size, 3 * bench.seconds)
        usual = at_rate(server, model, times, size=size, count=SESSIONS)
        before = server.resident_bytes
        cpu = server.cpu_s
        run = at_rate(
            server,
            model,
            poisson(TIMES * peak / size, seconds),
            size=size,
            count=round(bench.scaled(_LINES, 128)),
            watch=lambda: server.resident_bytes,
        )
        cpu = server.cpu_s - cpu
    refused = [reply for reply in run.replies if reply[4][9:12] != b"200"]
    accepted, normal = percentiles(run.latencies()), percentiles(usual.latencies())
    late = np.array([reply[1] - reply[0] for reply in run.replies if reply[0] >= run.begin])
    waited = np.array([reply[2] - reply[1] for reply in run.within()])
    good = run.rate() * size
    return {
        "model": LSTM,
        "times": TIMES,
        "steps": size,
        "seconds": seconds,
        "peak_steps_s": peak,
        "due_steps_s": TIMES * peak,
        "good_steps_s": good,
        "good_ratio": good / peak,
        "answered_s": sum(run.begin <= r[2] < run.end for r in run.replies) / (run.end - run.begin),
        "refused": len(refused),
        "statuses": sorted({reply[4][9:12].decode() for reply in refused}),
        "improper": sum(not proper(reply) for reply in refused),
        "lost": run.lost,
        "unsent": run.unsent,
        "usual_p99_ms": normal["p99_ms"],
        "p99_ratio": accepted["p99_ms"] / normal["p99_ms"],
        "late_p99_ms": percentiles(late)["p99_ms"],
        "sent_p99_ms": percentiles(waited)["p99_ms"],
        "resident_before_bytes": before,
        "resident_bytes": list(run.watched),
        "server_cpu_s": cpu,
        "client_cpu_us": run.client_us,
    } | accepted


def proper(refusal: Reply) -> bool:
    """Whether it says that there is too much, and when to come again."""
    head = refusal[4].partition(b"\r\n\r\n")[0].lower()
    return head[9:12] in (b"429", b"503") and b"\r\nretry-after: " in head
