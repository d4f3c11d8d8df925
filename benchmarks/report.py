"""The results as Markdown. Never typed by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

ENGINE_AIMS = {1: 0.80, 8: 0.90, 64: 0.95}
SESSIONS_AIM = 6.0
READY_AIM_S = 3.0
_AIMED = "next-word-lstm"

Result = dict[str, Any]


def render(results: Sequence[Result]) -> str:
    """One page for all devices."""
    head = "# Measurements\n\nWritten by `make bench`; every answer in them was compared with ONNX Runtime's own.\n"
    return "\n".join([head, *(_section(result) for result in results)])


def _section(result: Result) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in sorted(result["versions"].items()))
    return f"""## {result["device"]}: {result["cpu"]}, {result["cores"]} cores

{result["date"]}, commit `{result["commit"]}`, `{result["command"]}`, {result["took_s"]} s.
Load of the machine before: {result["load"]}. Python {result["python"]}, {versions}.

### Engine over bare ONNX Runtime

Steps of one time step in this process by sessions that each send the next when the last is answered; batches of at
most N; one thread for the model. *raw*: a loop around ONNX Runtime with a batch of N. *engine*: `Engine.submit`, with
2 N sessions, so that every batch is full, and with N, so that the engine waits for them between two batches.
*sessions*: `Sessions.apply` by N sessions, with `seq` and the memory journal. Each ratio is the median over turns taken
one after the other.

{_inside(result["inside"])}

### Start and memory

{_start(result["start"])}

### Over the wire

The real service in a process of its own, client on the same machine. HTTP: one step a request, one connection a
session. One socket: two frames under way, each with half of the sessions. CPU is that of the service, for one step.

{_wire(result["wire"])}
"""


def _inside(rows: Sequence[Result]) -> str:
    lines = []
    for row in rows:
        aim = ENGINE_AIMS[row["batch"]] if row["model"] == _AIMED else None
        lines.append(
            (
                row["model"],
                row["batch"],
                f"{row['raw_steps_s']:,.0f}",
                f"{row['full_steps_s']:,.0f}",
                _judged(row["full_ratio"], aim),
                f"{row['engine_ratio']:.2f}",
                f"{row['sessions_ratio']:.2f}",
                f"{row['raw_cpu_us']:,.0f}",
                f"{row['full_cpu_us']:,.0f}",
                f"{row['sessions_cpu_us']:,.0f}",
            )
        )
    heads = (
        "model", "N", "raw steps/s", "engine steps/s, 2 N sessions", "engine / raw", "engine / raw, N sessions",
        "sessions / raw", "raw CPU µs", "engine CPU µs", "sessions CPU µs",
    )  # fmt: skip
    return _table(heads, lines)


def _start(start: Result) -> str:
    lines = [
        ("exec to ready, all models", _judged(start["ready_s"], READY_AIM_S, most=True) + " s"),
        ("resident memory when ready", f"{start['ready_bytes'] / 2**20:,.0f} MiB"),
        (
            f"with {start['sessions']:,} sessions in memory",
            f"{start['sessions_bytes'] / 2**20:,.0f} MiB",
        ),
        (
            "for each session",
            f"{start['session_bytes']:,.0f} B, of which {start['state_bytes']:,} B are state",
        ),
    ]
    return _table(("", ""), lines)


def _wire(rows: Sequence[Result]) -> str:
    lines = []
    for row in rows:
        aim = SESSIONS_AIM if row["model"] == _AIMED and row["sessions"] == 64 else None
        lines.append(
            (
                row["model"],
                row["way"],
                row["sessions"],
                f"{row['steps_s']:,.0f}",
                _judged(row["ratio"], aim),
                f"{row['p50_ms']:.1f}",
                f"{row['p99_ms']:.1f}",
                f"{row['server_cpu_us']:,.0f}",
            )
        )
    heads = (
        "model",
        "way",
        "sessions",
        "steps/s",
        "over one session",
        "p50 ms",
        "p99 ms",
        "CPU µs",
    )
    return _table(heads, lines)


def _judged(value: float, aim: float | None, *, most: bool = False) -> str:
    if aim is None:
        return f"{value:.3g}"
    met = value <= aim if most else value >= aim
    return f"**{value:.3g}** ({'aim' if met else 'misses the aim'} {'≤' if most else '≥'} {aim:g})"


def _table(heads: Sequence[str], lines: Sequence[Sequence[object]]) -> str:
    rule = ["---" if i == 0 else "---:" for i in range(len(heads))]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in (heads, rule, *lines))
