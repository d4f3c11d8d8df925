"""What one more step costs when much has been read: a state of fixed size, or all of the past once more.

Graphs of the product's encoders with random weights, in ONNX Runtime, on one thread, one session, one step at a time,
as a stream is served. A step's cost does not depend on what the weights are. For comparison a Transformer without a
state, which answers the next step by reading its whole context again. Times are processor times: they do not count
what other programs take.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from training import pictures
from training.config import EncoderConfig, Record, TransformerConfig
from training.experiments.experiment import Experiment
from training.experiments.sizes import sized_like
from training.export.encoders import encode
from training.export.onnx_graph import GraphBuilder
from training.models.encoder import Encoder
from training.models.encoders import make_encoder
from training.pictures import ARCHITECTURES, COLOURS, GREY, MARKERS, NAMES

Chunk = npt.NDArray[np.float32]
# Times of a step that lie within this factor of each other count as the same.
_FLAT = 1.3


class Settings(Record, frozen=True, kw_only=True):
    """How the experiment is run.

    Attributes:
        contexts: Steps that the session has taken before the one that is timed.
        recomputed: Contexts that are also read again as a whole.
        width_in: E.
        transformer: Its shape, which sets the number of layers and of parameters for all.
        repeats: How often the step at each context is taken and timed; the median counts.
        seed: Of weights and inputs.
    """

    contexts: tuple[int, ...] = (1, 4, 16, 64, 128, 256, 1024, 4096)
    recomputed: tuple[int, ...] = (1, 4, 16, 64, 128, 256, 1024)
    width_in: int = 128
    transformer: TransformerConfig = TransformerConfig(
        width=128, heads=4, num_layers=2, feedforward=512, window=128
    )
    repeats: int = 41
    seed: int = 1


class Stream(Record, frozen=True, kw_only=True):
    """One encoder as a stream.

    Attributes:
        architecture: Which.
        parameters: Numbers in it.
        state_bytes: State of a session, at every context.
        step_us: Median time of a step at each context, microseconds.
    """

    architecture: str
    parameters: int
    state_bytes: int
    step_us: tuple[float, ...]


class Findings(Record, frozen=True, kw_only=True):
    """What came out.

    Attributes:
        streams: One for each architecture.
        recompute_us: Median time of a step that reads its whole context, at each context of `recomputed`.
        cache_bytes: Keys and values that a Transformer without a window would have to keep, at each context.
    """

    streams: tuple[Stream, ...]
    recompute_us: tuple[float, ...]
    cache_bytes: tuple[int, ...]


def measure(settings: Settings) -> Findings:
    """Time every encoder."""
    torch.manual_seed(settings.seed)
    shape = settings.transformer
    return Findings(
        streams=tuple(_stream(settings, name) for name in ARCHITECTURES),
        recompute_us=_recompute(settings),
        cache_bytes=tuple(
            2 * shape.num_layers * shape.width * 4 * context for context in settings.contexts
        ),
    )


class Graph:
    """An encoder's graph in ONNX Runtime on one thread, and the state of one session."""

    def __init__(self, encoder: Encoder) -> None:
        builder = GraphBuilder()
        x = builder.input("x", "float32", ["B", "T", encoder.width_in])
        lengths = builder.input("lengths", "int32", ["B"])
        features = encode(builder, encoder, x, lengths)
        builder.output(features, "y", "float32", ["B", "T", encoder.width_out])
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(
            builder.model("encoder").SerializeToString(),
            options,
            providers=["CPUExecutionProvider"],
        )
        self._names = [spec.name for spec in encoder.states]
        self.state = [part.numpy() for part in encoder.initial_state(1)]

    def run(self, x: Chunk) -> None:
        """Read a chunk (1, T, E)."""
        lengths = np.array([x.shape[1]], np.int32)
        feeds = {"x": x, "lengths": lengths, **dict(zip(self._names, self.state, strict=True))}
        _, *self.state = self._session.run(["y", *(f"{n}_out" for n in self._names)], feeds)


def _stream(settings: Settings, architecture: str) -> Stream:
    def parameters(config: EncoderConfig) -> int:
        with torch.device("meta"):
            encoder = make_encoder(config, settings.width_in)
        return sum(parameter.numel() for parameter in encoder.parameters())

    config = sized_like(settings.transformer, architecture, parameters)
    encoder = make_encoder(config, settings.width_in).eval()
    graph = Graph(encoder)
    random = np.random.default_rng(settings.seed)
    x = random.normal(size=(1, max(settings.contexts), settings.width_in)).astype(np.float32)
    step_us, read = [], 0
    for context in settings.contexts:
        while read < context:
            chunk = min(128, context - read)
            graph.run(x[:, read : read + chunk])
            read += chunk
        step_us.append(_median_us(graph, x[:, :1], settings.repeats))
    return Stream(
        architecture=architecture,
        parameters=parameters(config),
        state_bytes=sum(part.nbytes for part in encoder.initial_state(1)),
        step_us=tuple(step_us),
    )


def _recompute(settings: Settings) -> tuple[float, ...]:
    """The Transformer with attention to everything and no state: each step is a pass over the context.

    Bidirectional attention costs what causal attention does: every pair of positions, masked or not.
    """
    shape = settings.transformer
    whole = TransformerConfig(
        width=shape.width,
        heads=shape.heads,
        num_layers=shape.num_layers,
        feedforward=shape.feedforward,
        bidirectional=True,
    )
    graph = Graph(make_encoder(whole, settings.width_in).eval())
    random = np.random.default_rng(settings.seed)
    x = random.normal(size=(1, max(settings.recomputed), settings.width_in)).astype(np.float32)
    # A long pass takes long enough to be timed by few.
    repeats = max(5, settings.repeats // 8)
    return tuple(_median_us(graph, x[:, :context], repeats) for context in settings.recomputed)


def _median_us(graph: Graph, x: Chunk, repeats: int) -> float:
    """Median time of reading a chunk from the state that the graph has, and has again afterwards."""
    before = graph.state
    graph.run(x)
    times = []
    for _ in range(repeats):
        graph.state = before
        started = time.thread_time_ns()
        graph.run(x)
        times.append(time.thread_time_ns() - started)
    graph.state = before
    return round(float(np.median(times)) / 1000, 1)


def draw(settings: Settings, findings: Findings) -> Figure:
    """Time and bytes over context."""
    figure, (cost, memory) = pictures.figure(2, size=(11, 4.4))
    for stream in findings.streams:
        style: dict[str, Any] = {
            "color": COLOURS[stream.architecture],
            "marker": MARKERS[stream.architecture],
            "markersize": 4.5,
        }
        label = f"{NAMES[stream.architecture]}, {stream.parameters / 1000:,.0f} k parameters"
        cost.plot(settings.contexts, stream.step_us, label=label, **style)
        sizes = [stream.state_bytes] * len(settings.contexts)
        label = f"{NAMES[stream.architecture]}: {stream.state_bytes:,} bytes"
        memory.plot(settings.contexts, sizes, label=label, **style)
    cost.plot(
        settings.recomputed,
        findings.recompute_us,
        "x--",
        color=GREY,
        label="Transformer that reads all again",
    )
    memory.plot(
        settings.contexts, findings.cache_bytes, "--", color=GREY, label="keys and values of all"
    )
    cost.set(title="Time of one step", ylabel="microseconds")
    memory.set(title="State of one session", ylabel="bytes")
    for panel in (cost, memory):
        _scale(panel, settings)
    return figure


def _scale(panel: Axes, settings: Settings) -> None:
    panel.set_xscale("log", base=2)
    panel.set_yscale("log")
    panel.set_xticks(settings.contexts, [f"{context}" for context in settings.contexts])
    panel.set_xlabel("steps taken before")
    panel.axvline(settings.transformer.window, color=COLOURS["transformer"], linestyle=":")
    panel.annotate(
        "window",
        (settings.transformer.window, 0.96),
        xycoords=("data", "axes fraction"),
        xytext=(3, 0),
        textcoords="offset points",
        color=COLOURS["transformer"],
        fontsize=9,
    )
    panel.legend(frameon=False, fontsize=9)


def describe(settings: Settings, findings: Findings) -> str:
    """What the picture shows."""
    shape = settings.transformer
    by_name = {stream.architecture: stream for stream in findings.streams}
    growth = {
        name: _growth(settings.contexts, stream.step_us, shape.window)
        for name, stream in by_name.items()
    }
    flat = [NAMES[name] for name, value in growth.items() if value < _FLAT]
    other = [f"{NAMES[name]} by {value:.2f}" for name, value in growth.items() if value >= _FLAT]
    last = settings.recomputed[-1]
    times = (
        findings.recompute_us[-1] / by_name["transformer"].step_us[settings.contexts.index(last)]
    )
    dearer = by_name["transformer"].state_bytes / by_name["gru"].state_bytes
    medians = {name: float(np.median(stream.step_us)) for name, stream in by_name.items()}
    cheaper = [NAMES[n] for n in by_name if medians[n] < medians["transformer"]]
    costs = ", ".join(f"{NAMES[name]} {value:.0f}" for name, value in medians.items())
    return "\n\n".join(
        [
            f"Step graphs with random weights of {settings.transformer.num_layers} layers, one session, one step at a "
            f"time, one thread; the median processor time of {settings.repeats} steps after so many others. The "
            f"Transformer attends to its last {shape.window} positions.",
            f"From {shape.window} steps on, the times of a step lie within a factor of {_FLAT:g} for "
            f"{_listed(flat)}{'; the others vary: ' + ', '.join(other) if other else ''}. Median over all contexts, "
            f"in microseconds: {costs}. Cheaper than the Transformer: {_listed(cheaper)}.",
            f"Reading a context of {last:,} again for every step costs {times:,.0f} times a step of the Transformer "
            "with its state.",
            f"The Transformer's state is {dearer:,.0f} times that of the GRU. {_cache(settings, findings)}",
        ]
    )


def _cache(settings: Settings, findings: Findings) -> str:
    ring = next(s.state_bytes for s in findings.streams if s.architecture == "transformer")
    pairs = zip(settings.contexts, findings.cache_bytes, strict=True)
    larger = [context for context, size in pairs if size > ring]
    if not larger:
        return "At no context measured would keys and values of everything be larger."
    times = findings.cache_bytes[-1] / ring
    return (
        f"Keys and values of everything would be larger from {larger[0]:,} steps on, {times:,.0f} times at "
        f"{settings.contexts[-1]:,}."
    )


def _growth(contexts: tuple[int, ...], step_us: tuple[float, ...], window: int) -> float:
    """Largest over smallest time of a step once the window is full."""
    late = [value for context, value in zip(contexts, step_us, strict=True) if context >= window]
    return max(late) / min(late)


def _listed(names: list[str]) -> str:
    return (
        " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else (*names, "none")[0]
    )


EXPERIMENT = Experiment(
    name="streaming_cost",
    title="Cost of a step in a long stream",
    settings=Settings(),
    findings=Findings,
    measure=measure,
    draw=draw,
    describe=describe,
)
