"""The results as Markdown. Never typed by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.aims import Aim, aims

Result = dict[str, Any]
Rows = list[dict[str, Any]]

# Heads, the figures under them, and how they are written.
Column = tuple[str, str, str]

_WIRE: tuple[Column, ...] = (
    ("model", "model", ""),
    ("way", "way", ""),
    ("sessions", "sessions", ","),
    ("steps a request", "steps", ""),
    ("steps/s", "steps_s", ",.0f"),
    ("p50 ms", "p50_ms", ".1f"),
    ("p99 ms", "p99_ms", ".1f"),
    ("over bare ONNX Runtime", "raw_ratio", ".2f"),
    ("by CPU", "raw_cpu_ratio", ".2f"),
    ("server CPU µs", "server_cpu_us", ",.0f"),
    ("client CPU µs", "client_cpu_us", ",.1f"),
    ("refused", "refused", ","),
)


def render(results: Sequence[Result]) -> str:
    """One page for all devices."""
    head = "# Measurements\n\nWritten by `make bench`; every answer in them was compared with ONNX Runtime's own.\n"
    return "\n".join([head, *(_section(result) for result in results)])


def _section(result: Result) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in sorted(result["versions"].items()))
    parts = result["parts"]
    head = f"""## {result["device"]}: {result["cpu"]}, {result["cores"]} cores

{result["date"]}, commit `{result["commit"]}`, `{result["command"]}`, {result["took_s"]} s.
Load of the machine before: {result["load"]}. Python {result["python"]} ({result["build"]}), {versions}.

The server has core {result["server_core"]}, the client core {result["client_core"]}. What is compared took turns; each
figure is the median of {result["rounds"]}. CPU is that of the server's process for one step, all threads; on a machine
that does other things look at the ratios "by CPU".

### Aims

{_aims(aims(parts))}
"""
    return "\n".join(
        [head, *(_PARTS[name](found, result["device"]) for name, found in parts.items())]
    )


def _aims(found: Sequence[Aim]) -> str:
    lines = [
        (
            aim.name,
            f"{aim.value:,.3g}" if not abs(aim.value) >= 1000 else f"{aim.value:,.0f}",
            "" if aim.by_cpu is None else f"{aim.by_cpu:.3g}",
            f"{'≤' if aim.most else '≥'} {aim.bound:,g}",
            "met" if aim.met else "**missed**",
        )
        for aim in found
    ]
    return _table(("", "measured", "by CPU", "aim", ""), lines)


def _inside(rows: Rows, device: str) -> str:
    columns: tuple[Column, ...] = (
        ("model", "model", ""),
        ("N", "batch", ""),
        ("raw steps/s", "raw_steps_s", ",.0f"),
        ("engine steps/s, 2 N sessions", "full_steps_s", ",.0f"),
        ("engine / raw", "full_ratio", ".3f"),
        ("engine / raw, N sessions", "engine_ratio", ".3f"),
        ("one by one / raw", "alone_ratio", ".3f"),
        ("sessions / raw", "sessions_ratio", ".3f"),
        ("raw CPU µs", "raw_cpu_us", ",.1f"),
        ("engine CPU µs", "full_cpu_us", ",.1f"),
        ("sessions CPU µs", "sessions_cpu_us", ",.1f"),
    )
    return f"""### In process

Steps of one time step in this process, on the server's core, by sessions that send the next when the last is
answered; batches of at most N. *raw*: a loop around ONNX Runtime with a batch of N. *engine*: `Engine.begin_group`, as
for the sessions of one frame or turn, with two groups of N sessions, so that every batch is full, and with one, so that
the engine waits for it between two batches; *one by one*: `Engine.begin` by 2 N sessions. *sessions*:
`Sessions.begin_together` by N sessions, with `seq` and the memory journal.

{_rows(columns, rows)}
"""


def _http(rows: Rows, device: str) -> str:
    return f"""### HTTP

One connection a session, the next request when the last is answered or refused: more sessions than the service lets
wait are told to come again later. *plain FastAPI*: benchmarks/plain.py. *socket*: frames as further below, in turn
with the single steps. Bare ONNX Runtime gives as many candidates as the clients ask for, 5 of 64.

{_rows(_WIRE, rows)}

![Throughput over sessions]({device}-http.png)
"""


def _frames(rows: Rows, device: str) -> str:
    return f"""### WebSocket

MessagePack over one socket, or one for each session; the sessions are shared out among the frames on the way. Latency
is that of a frame. *packed*: inputs and outputs as bytes instead of lists of numbers.

{_rows(_WIRE, rows)}
"""


def _latency(rows: Rows, device: str) -> str:
    columns: tuple[Column, ...] = (
        ("model", "model", ""),
        ("requests come", "arrivals", ""),
        ("load", "share", ".0%"),
        ("due /s", "due_steps_s", ",.0f"),
        ("answered /s", "steps_s", ",.0f"),
        ("p50 ms", "p50_ms", ".2f"),
        ("p99 ms", "p99_ms", ".2f"),
        ("p99 / p50", "tail", ".2f"),
        ("refused", "refused", ","),
        ("lost", "lost", ","),
    )
    return f"""### Latency over load

Open loop: a request is due at its own time, independent of all others (Poisson) or at equal distances (even), and its
latency counts from then, sent or not. Load is the share of what a closed loop reached just before.

{_rows(columns, rows)}

![Latency over load]({device}-latency.png)
"""


def _generation(found: dict[str, Any], device: str) -> str:
    mixed = found["mixed"]
    lines = [
        ("single steps alone", _speed(mixed, "alone_")),
        ("single steps beside the others", _speed(mixed, "")),
        ("generated tokens", f"{mixed['tokens_s']:,.0f} /s"),
        ("words of long texts", f"{mixed['words_s']:,.0f} /s"),
        ("all together", f"{mixed['sum_s']:,.0f} /s"),
    ]
    return f"""### Generation and mixed load

Texts of {found["generation"]["tokens"]} tokens, sampled; a token is a step. Mixed: sessions that step, texts that are
generated, and whole texts, at the same time.

{_rows(_WIRE, [found["generation"]])}

{_table(("mixed load", ""), lines)}
"""


def _resident(found: dict[str, Any], device: str) -> str:
    speed, cycles = found["speed"], found["cycles"]
    lines = [
        (f"with {found['sessions']:,} sessions", _speed(speed, "many_")),
        ("with 64", _speed(speed, "few_")),
        *(
            (
                f"bytes of an idle session, {row['model']}",
                f"{row['session_bytes']:,.0f}, of which {row['state_bytes']:,} are state",
            )
            for row in found["memory"]
        ),
        (
            f"resident memory after {cycles['before']:,} sessions that came, stepped and went",
            _mebibytes(cycles["resident_bytes"][0]),
        ),
        (f"growth over {cycles['cycles']:,} more", _mebibytes(cycles["growth_bytes"])),
    ]
    return f"### Resident sessions\n\n{_table(('', ''), lines)}\n"


def _overload(rows: Rows, device: str) -> str:
    tables = "\n\n".join(_one_overload(row) for row in rows)
    return f"""### Overload

Open loop, Poisson, 1,024 connections; a request that finds none free waits for one, and that counts. The more are
refused, the later they are told, up to a second, so that refusing leaves time for what was accepted; meanwhile their
connections are taken.

{tables}

![Overload]({device}-overload.png)
"""


def _one_overload(row: dict[str, Any]) -> str:
    lines = [
        ("peak, steps/s", f"{row['peak_steps_s']:,.0f}"),
        ("due, steps/s", f"{row['due_steps_s']:,.0f}"),
        ("accepted, steps/s", f"{row['good_steps_s']:,.0f}"),
        ("answered, requests/s", f"{row['answered_s']:,.0f}"),
        ("refused", f"{row['refused']:,}, by {', '.join(row['statuses']) or 'nothing'}"),
        ("p50, p99 of the accepted", f"{row['p50_ms']:.1f} ms, {row['p99_ms']:.1f} ms"),
        ("p99 of the accepted, from when they were sent", f"{row['sent_p99_ms']:.1f} ms"),
        ("p99 at 80 % load", f"{row['usual_p99_ms']:.1f} ms"),
        ("p99 of the wait for a free connection", f"{row['late_p99_ms']:.1f} ms"),
        ("requests that never found one", f"{row['unsent']:,}"),
        ("resident memory before", _mebibytes(row["resident_before_bytes"])),
        ("most resident memory", _mebibytes(max(row["resident_bytes"]))),
    ]
    return _table((f"{row['seconds']:g} s, steps a request: {row['steps']}", ""), lines)


def _speed(figures: dict[str, float], prefix: str) -> str:
    """Steps a second and latency, of figures whose names begin so."""
    parts = [f"{figures[f'{prefix}steps_s']:,.0f} /s"]
    known = [name for name in ("p50", "p99") if figures.get(f"{prefix}{name}_ms") is not None]
    parts += [f"{name} {figures[f'{prefix}{name}_ms']:.1f} ms" for name in known]
    return ", ".join(parts)


def _mebibytes(size: float) -> str:
    return f"{size / 2**20:,.1f} MiB"


def _deterministic(found: dict[str, Any], device: str) -> str:
    columns: tuple[Column, ...] = (
        ("model", "model", ""),
        ("fast steps/s", "fast_steps_s", ",.0f"),
        ("deterministic steps/s", "steps_s", ",.0f"),
        ("ratio", "ratio", ".2f"),
        ("by CPU", "cpu_ratio", ".2f"),
    )
    bits = (
        ("model", "model", ""),
        ("steps", "steps", ","),
        ("differing answers", "differing", ","),
    )
    control = found["control"]
    seen = (
        "so the comparison sees them"
        if control["differing"]
        else "so there is nothing to avoid with these models on this machine"
    )
    return f"""### Deterministic mode

HTTP, 64 sessions. Then frames of random sessions: answers that are not bit for bit those of another session with the
same inputs. In fast mode {control["differing"]:,} of {control["steps"]:,} differ, {seen}.

{_rows(columns, found["speed"])}

{_rows(bits, found["bits"])}
"""


def _quantised(rows: Rows, device: str) -> str:
    columns = (*_WIRE[:5], ("over float32", "fp32_ratio", ".2f"), *_WIRE[7:10])
    return f"### int8\n\n{_rows(columns, rows)}\n"


def _start(found: dict[str, Any], device: str) -> str:
    lines = [
        ("exec to ready", f"{found['ready_s']:.2f} s"),
        ("exec to ready on one core", f"{found['ready_one_core_s']:.2f} s"),
        ("CPU until ready", f"{found['ready_cpu_s']:.2f} s"),
        ("resident memory when ready", f"{found['resident_bytes'] / 2**20:,.0f} MiB"),
    ]
    head = f"{found['models']} shipped models"
    return f"### Start\n\n{_table((head, ''), lines)}\n"


_PARTS: dict[str, Callable[[Any, str], str]] = {
    "inside": _inside,
    "http": _http,
    "frames": _frames,
    "latency": _latency,
    "generation": _generation,
    "resident": _resident,
    "overload": _overload,
    "deterministic": _deterministic,
    "quantised": _quantised,
    "start": _start,
}


def _rows(columns: Sequence[Column], rows: Rows) -> str:
    """A table; what a row does not have stays empty."""
    lines = [
        ["" if row.get(key) is None else format(row[key], style) for _, key, style in columns]
        for row in rows
    ]
    return _table([head for head, *_ in columns], lines)


def _table(heads: Sequence[str], lines: Sequence[Sequence[object]]) -> str:
    rule = ["---" if i == 0 else "---:" for i in range(len(heads))]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in (heads, rule, *lines))
