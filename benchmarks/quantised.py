"""The LSTM in int8, beside float32, over HTTP and over the socket."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from benchmarks import frames, http
from benchmarks.bench import Bench
from benchmarks.frames import middle
from benchmarks.models import LSTM
from benchmarks.raw import Raw
from benchmarks.server import Server
from benchmarks.tape import Model, Words

SETTING = {"SEQSERVE_VARIANT": "int8"}
# Of a probability: the graph rounds weights and inputs to one of 256 values, the latter by the largest of the batch.
_TOLERANCE = 0.05
_SESSIONS = 64

Row = dict[str, Any]


def measure(bench: Bench) -> list[Row]:
    """Rows of int8, each in turn with the same of float32."""
    exact = bench.model(LSTM)
    rough = _rough(exact)
    with bench.service() as fp32, bench.service(SETTING) as int8:
        turns = [_turn(bench, (fp32, exact), (int8, rough)) for _ in range(bench.rounds)]
    return [middle([turn[i] for turn in turns]) for i in range(len(turns[0]))]


def _rough(model: Model) -> Model:
    """The same tapes, the int8 graph, and a wider tolerance."""
    variant = next(v for v in model.raw.config.variants if v.name == "int8")
    tapes = []
    for tape in model.tapes:
        assert isinstance(tape.answers, Words)
        tapes.append(replace(tape, answers=replace(tape.answers, tolerance=_TOLERANCE)))
    return Model(model.name, Raw(model.raw.path.parent, variant.file), tapes)


def _turn(bench: Bench, fp32: tuple[Server, Model], int8: tuple[Server, Model]) -> list[Row]:
    inputs = int8[1].batches(_SESSIONS)
    bare = int8[1].raw.speed(_SESSIONS, inputs, bench.seconds / 2)
    rows = []
    for ahead in (0, 1, 2):
        before, row = (_way(bench, server, model, ahead) for server, model in (fp32, int8))
        rows.append(
            frames.beside(row, bare)
            | {
                "fp32_steps_s": before["steps_s"],
                "fp32_ratio": row["steps_s"] / before["steps_s"],
                "fp32_cpu_ratio": before["server_cpu_us"] / row["server_cpu_us"],
            }
        )
    return rows


def _way(bench: Bench, server: Server, model: Model, ahead: int) -> Row:
    """Over HTTP, or in one or two frames."""
    if not ahead:
        return http.steps(bench, server, model, _SESSIONS)
    return frames.steps(bench, server, model, _SESSIONS, 1, ahead)
