"""What the product sets out to reach, as ratios of figures from one run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from benchmarks.models import GRU, LSTM

Parts = dict[str, Any]

# Of resident memory under overload, over that before; and bytes that a session may leave behind.
_GROWTH, _LEFT_BEHIND = 1.25, 16


@dataclass(frozen=True)
class Aim:
    """One aim.

    Attributes:
        name: What is compared.
        value: What was measured.
        bound: The aim.
        most: Whether it is an upper bound.
        by_cpu: The same ratio of CPU times, which other work on the machine changes less; None if it has no sense.
    """

    name: str
    value: float
    bound: float
    most: bool = False
    by_cpu: float | None = None

    @property
    def met(self) -> bool:
        """Whether it was reached."""
        return self.value <= self.bound if self.most else self.value >= self.bound


def aims(parts: Parts) -> list[Aim]:
    """The aims of what was measured."""
    makers = {
        "inside": _inside,
        "http": _http,
        "frames": _frames,
        "latency": _latency,
        "resident": _resident,
        "overload": _overload,
        "deterministic": _deterministic,
        "start": _start,
        "quantised": _quantised,
    }
    return [aim for name, make in makers.items() if name in parts for aim in make(parts)]


def _inside(parts: Parts) -> Iterator[Aim]:
    for model, batch, bound in ((LSTM, 1, 0.80), (LSTM, 64, 0.95), (GRU, 128, 0.5)):
        row = _row(parts["inside"], model=model, batch=batch)
        yield Aim(
            f"{model}: engine over bare ONNX Runtime, batch {batch}",
            row["full_ratio"],
            bound,
            by_cpu=row["full_cpu_ratio"],
        )


def _http(parts: Parts) -> Iterator[Aim]:
    rows = parts["http"]
    for model, bound in ((LSTM, 10.0),):
        row = _row(rows, model=model, way="HTTP", sessions=64, steps=1)
        plain = _row(rows, model=model, way="plain FastAPI")
        yield Aim(
            f"{model}: HTTP, 64 sessions, over the plain FastAPI service",
            row["steps_s"] / plain["steps_s"],
            bound,
            by_cpu=plain["server_cpu_us"] / row["server_cpu_us"],
        )
        yield from _over_raw(f"{model}: HTTP, 64 sessions", row, 0.82)
    row = _row(rows, model=GRU, way="HTTP", sessions=64, steps=1)
    yield Aim(
        f"{GRU}: HTTP, 64 sessions, over a raw-ASGI echo",
        row["echo_ratio"],
        0.36,
        by_cpu=row["echo_cpu_ratio"],
    )
    for packed, form in ((True, "packed"), (None, "in lists")):
        row = _row(rows, model=GRU, sessions=64, steps=16, frames=1, packed=packed)
        yield Aim(
            f"{GRU}: socket, 64 sessions x 16 steps a frame, {form}, over HTTP single steps",
            row["http_ratio"],
            10,
            by_cpu=row["http_cpu_ratio"],
        )


def _frames(parts: Parts) -> Iterator[Aim]:
    row = best(parts["frames"], model=LSTM, sessions=64, steps=1, packed=None, apart=None)
    yield from _over_raw(f"{LSTM}: socket, 64 sessions", row, 0.93)


def _over_raw(name: str, row: dict[str, Any], bound: float) -> Iterator[Aim]:
    """Over a loop that asks for as many candidates as the clients, and over one that takes the file as it is."""
    for what, ratio in (("", "raw"), (" on the file as it is, 64 candidates", "file")):
        yield Aim(
            f"{name}, over bare ONNX Runtime{what}",
            row[f"{ratio}_ratio"],
            bound,
            by_cpu=row[f"{ratio}_cpu_ratio"],
        )


def _latency(parts: Parts) -> Iterator[Aim]:
    for model in (LSTM, GRU):
        for share, bound in ((0.5, 2.0), (0.8, 3.0)):
            row = _row(parts["latency"], model=model, share=share, arrivals="Poisson")
            yield Aim(
                f"{model}: p99 / p50 of steps at {share:.0%} of saturation, open loop",
                row["tail"],
                bound,
                most=True,
            )


def _resident(parts: Parts) -> Iterator[Aim]:
    found = parts["resident"]
    many = f"{found['sessions']:,}"
    speed = found["speed"]
    yield Aim(f"{LSTM}: steps/s with {many} resident sessions over 64", speed["ratio"], 0.9)
    yield Aim(f"{LSTM}: p99 with {many} over that with 64", speed["p99_ratio"], 1.5, most=True)
    for row in found["memory"]:
        yield Aim(
            f"{row['model']}: bytes of an idle session over 2 x state + 1 KiB",
            row["session_bytes"] / row["allowed_bytes"],
            1.0,
            most=True,
        )
    cycles = found["cycles"]
    yield Aim(
        f"bytes left behind by each of {cycles['cycles']:,} sessions that came, stepped and went, "
        f"after {cycles['before']:,} others",
        cycles["growth_bytes"] / cycles["cycles"],
        _LEFT_BEHIND,
        most=True,
    )


def _overload(parts: Parts) -> Iterator[Aim]:
    for row in parts["overload"]:
        where = f"{row['times']}x overload, {row['seconds']:g} s, requests of {row['steps']}"
        yield Aim(f"{where}: accepted steps/s over peak", row["good_ratio"], 0.9)
        yield Aim(
            f"{where}: p99 of the accepted over that at 80 % load", row["p99_ratio"], 2, most=True
        )
        yield Aim(
            f"{where}: the same from when they were sent, without the client's wait for a connection",
            row["sent_p99_ms"] / row["usual_p99_ms"],
            2,
            most=True,
        )
        yield Aim(
            f"{where}: refusals that are no 429 or 503 with Retry-After",
            row["improper"],
            0,
            most=True,
        )
        yield Aim(f"{where}: requests that were sent and not answered", row["lost"], 0, most=True)
        yield Aim(
            f"{where}: resident memory over that before",
            max(row["resident_bytes"]) / row["resident_before_bytes"],
            _GROWTH,
            most=True,
        )


def _deterministic(parts: Parts) -> Iterator[Aim]:
    found = parts["deterministic"]
    for row in found["bits"]:
        yield Aim(
            f"{row['model']}: answers that differ in any bit, of {row['steps']:,} steps with random batch mates",
            row["differing"],
            0,
            most=True,
        )
    for row in found["speed"]:
        yield Aim(
            f"{row['model']}: deterministic mode over fast mode, HTTP, 64 sessions",
            row["ratio"],
            0.8,
            by_cpu=row["cpu_ratio"],
        )


def _start(parts: Parts) -> Iterator[Aim]:
    found = parts["start"]
    yield Aim(
        f"seconds from exec to ready, {found['models']} models", found["ready_s"], 1.5, most=True
    )


def _quantised(parts: Parts) -> Iterator[Aim]:
    rows = parts["quantised"]
    for way, bound in (("HTTP", 15_000), ("socket", 30_000)):
        row = max((r for r in rows if r["way"].startswith(way)), key=lambda r: r["steps_s"])
        yield Aim(f"{LSTM} in int8: steps/s, {way}, 64 sessions", row["steps_s"], bound)
        yield Aim(
            f"{LSTM} in int8: over float32, {way}, 64 sessions",
            row["fp32_ratio"],
            1.0,
            by_cpu=row["fp32_cpu_ratio"],
        )


def best(rows: list[dict[str, Any]], **wanted: Any) -> dict[str, Any]:
    """The fastest of some rows."""
    return max((r for r in rows if _is(r, wanted)), key=lambda r: r["steps_s"])


def _row(rows: list[dict[str, Any]], **wanted: Any) -> dict[str, Any]:
    return next(row for row in rows if _is(row, wanted))


def _is(row: dict[str, Any], wanted: dict[str, Any]) -> bool:
    return all(row.get(name) == value for name, value in wanted.items())
