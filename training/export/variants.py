"""The same model in cheaper arithmetic: made from the exported graph, measured, and accepted or not."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from typing import Literal

import msgspec
import numpy as np
import onnx

from service.contract import Drift, Metric, SpeedUp, Variant, VariantName
from training.export.bundle import Bundle, initial_state
from training.export.golden import LARGEST_STATE
from training.export.half import emulated, float16
from training.export.quantise import int8
from training.export.runtime import Array, Arrays, LoadedGraph
from training.machine import cpu_model, int8_instructions

# A session this long shows whether errors add up. Two side by side, as in a batch of the service, for there one
# session's numbers share the scale of all.
STEPS, SESSIONS = 10_000, 2
# A variant is refused if a metric is worse or better by more than this share of it,
METRIC_LIMIT = 0.01
# or if the last tenth of a session is wrong by more than this many times the mean.
LATE_LIMIT = 1.5
# Answers to the golden inputs may differ by this many times what they differ by here: another processor rounds
# otherwise, and now and then to another byte.
_MARGIN = 2.0
_BATCHES = (1, 16, 64)
# Processor time of each of so many rounds of timing.
_ROUNDS, ROUND_S = 5, 0.2

_Rewrite = Callable[[onnx.ModelProto], onnx.ModelProto]


class _Kind(msgspec.Struct, frozen=True):
    """How a variant is made, what its quality is measured on, and the device it is for."""

    written: _Rewrite
    measured: _Rewrite
    device: Literal["cpu", "cuda"]


_KINDS: dict[VariantName, _Kind] = {
    "int8": _Kind(int8, int8, "cpu"),
    "float16": _Kind(float16, emulated, "cuda"),
}


class VariantError(RuntimeError):
    """A variant that answers too differently, or of a model that cannot have one; the message says how."""


class Made(msgspec.Struct, frozen=True):
    """A variant and the content of its file."""

    variant: Variant
    content: bytes


def make(bundle: Bundle, exact: LoadedGraph, metrics: tuple[Metric, ...]) -> tuple[Made, ...]:
    """Every variant that a bundle asks for.

    Args:
        bundle: The model.
        exact: Its graph, loaded.
        metrics: Quality of that graph.

    Raises:
        VariantError: One is too far from the exact graph, or the model cannot be stepped.
    """
    return tuple(_make(name, bundle, exact, metrics) for name in bundle.variants)


def _make(
    name: VariantName, bundle: Bundle, exact: LoadedGraph, metrics: tuple[Metric, ...]
) -> Made:
    if not bundle.config.streaming:
        raise VariantError(f"{bundle.config.name} cannot be stepped, so it has no variants")
    kind, model = _KINDS[name], onnx.load_from_string(bundle.model)
    graph = LoadedGraph(kind.measured(model).SerializeToString(), bundle.config)
    variant = Variant(
        name=name,
        file=f"model.{name}.onnx",
        device=kind.device,
        tolerance=_rounded_up(_MARGIN * _on_golden_inputs(bundle, graph)),
        drift=drift(bundle, exact, graph),
        # Exports run on a processor.
        speed_up=tuple(_speed_up(exact, graph)) if kind.device == "cpu" else (),
        metrics=tuple(bundle.measure(graph)),
    )
    accept(bundle.config.name, variant, metrics)
    content = kind.written(model).SerializeToString()
    written = _on_golden_inputs(bundle, LoadedGraph(content, bundle.config, as_written=True))
    if not written <= variant.tolerance:
        raise VariantError(
            f"{bundle.config.name}: {variant.file} differs by {written:.3g} on golden inputs, tolerance "
            f"{variant.tolerance:.3g}"
        )
    return Made(variant, content)


def accept(model: str, variant: Variant, metrics: tuple[Metric, ...]) -> None:
    """Say nothing if a variant of a model may be written.

    Args:
        model: Name of the model.
        variant: What was measured of the variant.
        metrics: Quality of the exact graph.

    Raises:
        VariantError: A metric differs too much, or errors add up over a session.
    """
    for exact, found in zip(metrics, variant.metrics, strict=True):
        if not abs(found.value - exact.value) <= METRIC_LIMIT * abs(exact.value):
            raise VariantError(
                f"{model}: {variant.name} has {found.name} {found.value:.5g} on {found.split}, exact is "
                f"{exact.value:.5g}"
            )
    for part in variant.drift:
        if not part.late <= LATE_LIMIT * part.mean:
            raise VariantError(
                f"{model}: {variant.name} is wrong in {part.output} by {part.mean:.3g} on average and by "
                f"{part.late:.3g} at the end of {part.steps:,} steps"
            )


def drift(bundle: Bundle, exact: LoadedGraph, variant: LoadedGraph) -> tuple[Drift, ...]:
    """How far two graphs are apart over long sessions, step by step, each with the state it has itself computed."""
    texts = [bundle.sample(STEPS, seed) for seed in range(SESSIONS)]
    inputs = {name: np.stack([text[name] for text in texts]) for name in texts[0]}
    outputs = [part.name for part in bundle.config.outputs if part.dtype.startswith("float")]
    largest = dict.fromkeys(outputs, 0.0)
    means = {name: np.zeros(STEPS) for name in outputs}
    lengths = np.ones(SESSIONS, np.int32)
    states = [graph.initial_state(SESSIONS) for graph in (exact, variant)]
    for step in range(STEPS):
        now = {name: values[:, step : step + 1] for name, values in inputs.items()}
        answers = []
        for i, graph in enumerate((exact, variant)):
            found, states[i] = graph.run(now, lengths, states[i], *outputs)
            answers.append(found)
        for name in outputs:
            difference = np.abs(answers[0][name] - answers[1][name])
            largest[name] = max(largest[name], float(difference.max()))
            means[name][step] = difference.mean()
    return tuple(
        Drift(
            output=name,
            steps=STEPS,
            largest=largest[name],
            mean=float(means[name].mean()),
            late=float(means[name][-STEPS // 10 :].mean()),
        )
        for name in outputs
    )


def _on_golden_inputs(bundle: Bundle, graph: LoadedGraph) -> float:
    """Largest difference from the original in what golden.json holds, whole and in the pieces it names."""
    worst = 0.0
    for case in bundle.cases:
        outputs, state = bundle.original(case.inputs, initial_state(bundle.config))
        for split in ((sum(case.split),), case.split):
            found, after = _fold(graph, case.inputs, split)
            pairs = [(outputs[name], found[name]) for name in bundle.golden_outputs]
            pairs += [
                (state[part.input_name], after[part.input_name][0])
                for part in bundle.config.state
                if math.prod(part.shape) <= LARGEST_STATE
            ]
            worst = max(worst, *(float(np.max(np.abs(a - b), initial=0.0)) for a, b in pairs))
    return worst


def _fold(graph: LoadedGraph, inputs: Arrays, split: tuple[int, ...]) -> tuple[Arrays, Arrays]:
    """Outputs (T, ...) and the last state (1, ...) of one sequence in chunks."""
    state, parts, start = graph.initial_state(1), [], 0
    for length in split:
        chunk = {name: values[None, start : start + length] for name, values in inputs.items()}
        outputs, state = graph.run(chunk, np.array([length]), state)
        parts.append(outputs)
        start += length
    joined = {name: np.concatenate([part[name][0] for part in parts]) for name in parts[0]}
    return joined, state


def _speed_up(exact: LoadedGraph, variant: LoadedGraph) -> Iterator[SpeedUp]:
    limit = exact.config.batching.max_batch_size
    for size in (batch for batch in _BATCHES if batch <= limit):
        times = [math.inf, math.inf]
        # In turns, so that a machine that is busy for a while is so for both; the best of each is what they can do.
        for _ in range(_ROUNDS):
            for i, graph in enumerate((exact, variant)):
                times[i] = min(times[i], _step_s(graph, size))
        yield SpeedUp(
            batch_size=size,
            ratio=round(times[0] / times[1], 2),
            processor=f"{cpu_model()}, {int8_instructions()}",
        )


def _step_s(graph: LoadedGraph, batch_size: int) -> float:
    """Processor time of one step of a batch."""
    inputs: dict[str, Array] = {
        part.name: np.zeros((batch_size, 1, *part.shape), part.dtype)
        for part in graph.config.inputs
    }
    lengths, state = np.ones(batch_size, np.int32), graph.initial_state(batch_size)
    graph.run(inputs, lengths, state)
    began, count = time.process_time(), 0
    while (passed := time.process_time() - began) < ROUND_S:
        _, state = graph.run(inputs, lengths, state)
        count += 1
    return passed / count


def _rounded_up(value: float) -> float:
    """With two significant digits, not less."""
    if value == 0:
        return 0.0
    unit = 10.0 ** (math.floor(math.log10(value)) - 1)
    return float(f"{math.ceil(value / unit) * unit:.1e}")
