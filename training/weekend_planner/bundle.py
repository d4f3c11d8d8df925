"""The weekend planner: a recurrent network whose weights are small integers and known, so that it is exact.

Each weekend is sunny or rainy. Sunny: the activity of last weekend again. Rainy: the next one in the order museum,
movies, party, museum. With y the activity (one-hot) and x the weather:

    h_t = relu(W_activity y_{t-1} + W_weather x_t - 1)        y_t = h_t[0:3] + h_t[3:6]

The upper half of h says "the same", the lower half "the next". Since y is a linear function of h,
W_activity y_{t-1} = R h_{t-1} with R = W_activity [I I], and the planner is an Elman network with ReLU.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import onnx

from service.contract import (
    SCHEMA_VERSION,
    Labels,
    Metric,
    ModelConfig,
    Provenance,
    StateTensor,
    Tensor,
)
from training.export.bundle import Bundle, Case
from training.export.onnx_graph import OPSET, GraphBuilder
from training.export.runtime import Arrays, LoadedGraph
from training.weekend_planner.config import WeekendPlannerRun

ACTIVITIES = ("museum", "movies", "party")
WEATHER: dict[str, tuple[float, ...]] = {"sunny": (1.0, 0.0), "rainy": (0.0, 1.0)}
GOLDEN_WEEKENDS = 5
MEASURED_WEEKENDS = 10
SPLIT = f"all weather of up to {MEASURED_WEEKENDS} weekends"

W_ACTIVITY = np.array(
    [[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 1], [1, 0, 0], [0, 1, 0]], np.float32
)
W_WEATHER = np.array([[1, 0], [1, 0], [1, 0], [0, 1], [0, 1], [0, 1]], np.float32)
W_RECURRENT = W_ACTIVITY @ np.hstack([np.eye(3), np.eye(3)]).astype(np.float32)

_CARD = """The smallest model with a memory: last weekend's activity and today's weather give today's activity.
Sunny: the same activity again. Rainy: the next one in the order museum, movies, party, museum. A new session
starts after a weekend in the museum.

The weights are integers, so every answer is exact, and one lost or doubled rainy weekend changes all later
answers: the model is an example for people and a probe for tests.

## Limits

It plans nothing but this.
"""


def plan(weather: Sequence[str], activity: str = "museum") -> list[str]:
    """The rule itself: the activity of each weekend, given the one before the first."""
    place = ACTIVITIES.index(activity)
    places = itertools.accumulate((w == "rainy" for w in weather), initial=place)
    return [ACTIVITIES[p % 3] for p in itertools.islice(places, 1, None)]


def step(inputs: Arrays, state: Arrays) -> tuple[Arrays, Arrays]:
    """The network's own equations over weather (T, 2); see `Original`."""
    h = state["h"][0]
    scores = []
    for x in inputs["weather"]:
        h = np.maximum(W_ACTIVITY @ (h[:3] + h[3:]) + W_WEATHER @ x - 1, 0)
        scores.append(h[:3] + h[3:])
    return {"scores": np.stack(scores)}, {"h": h[None]}


def vectors(weather: Sequence[str]) -> Arrays:
    """Inputs (T, 2) of the network for named weather."""
    return {"weather": np.array([WEATHER[w] for w in weather], np.float32)}


def bundle(run: WeekendPlannerRun, command: str) -> Bundle:
    """The planner as an export; the command is the one that makes it."""
    config = ModelConfig(
        schema_version=SCHEMA_VERSION,
        name=run.name,
        version=run.version,
        description=run.description,
        architecture="rnn_relu",
        task=Labels(labels=ACTIVITIES, symbols=WEATHER),
        streaming=True,
        inputs=(Tensor(name="weather", dtype="float32", shape=(2,)),),
        outputs=(Tensor(name="scores", dtype="float32", shape=(3,)),),
        state=(
            StateTensor(
                input_name="h", output_name="h_out", shape=(1, 6), initial=(1, 0, 0, 0, 0, 0)
            ),
        ),
        opset=OPSET,
        files={},
        tolerance=0.0,
        provenance=Provenance(command=command),
    )
    return Bundle(
        config=config,
        model=_graph().SerializeToString(),
        original=step,
        sample=_random_weather,
        cases=tuple(
            Case(vectors(weather), (1,) * len(weather)) for weather in _all_weather(GOLDEN_WEEKENDS)
        ),
        golden_outputs=("scores",),
        measure=measure,
        card=_CARD,
    )


def _graph() -> onnx.ModelProto:
    graph = GraphBuilder()
    weather = graph.input("weather", "float32", ["B", "T", 2])
    lengths = graph.input("lengths", "int32", ["B"])
    h = graph.input("h", "float32", ["B", 1, 6])
    # The RNN operator wants time first, and its two biases in one row.
    y, h_out = graph.nodes(
        "RNN",
        graph.node("Transpose", weather, perm=[1, 0, 2]),
        graph.weight("W", W_WEATHER[None]),
        graph.weight("R", W_RECURRENT[None]),
        graph.weight("B", np.array([[-1] * 6 + [0] * 6], np.float32)),
        lengths,
        graph.node("Transpose", h, perm=[1, 0, 2]),
        outputs=2,
        hidden_size=6,
        activations=["Relu"],
    )
    rows = graph.node("Transpose", graph.node("Squeeze", y, graph.constant([1])), perm=[1, 0, 2])
    halves = graph.nodes("Split", rows, outputs=2, axis=2, num_outputs=2)
    graph.output(graph.node("Add", *halves), "scores", "float32", ["B", "T", 3])
    h_rows = graph.node("Transpose", h_out, perm=[1, 0, 2])
    graph.output(h_rows, "h_out", "float32", ["B", 1, 6])
    return graph.model("weekend_planner")


def _all_weather(weekends: int) -> Iterator[tuple[str, ...]]:
    for count in range(1, weekends + 1):
        yield from itertools.product(WEATHER, repeat=count)


def _random_weather(length: int, seed: int) -> Arrays:
    choice = np.random.default_rng(seed).integers(0, 2, length)
    return vectors([list(WEATHER)[i] for i in choice])


def measure(graph: LoadedGraph) -> tuple[Metric, ...]:
    """Share of right activities over all weather up to a number of weekends."""
    right = total = 0
    for weather in _all_weather(MEASURED_WEEKENDS):
        batch = {name: value[None] for name, value in vectors(weather).items()}
        outputs, _ = graph.run(batch, np.array([len(weather)]), graph.initial_state(1))
        named = [ACTIVITIES[i] for i in outputs["scores"][0].argmax(axis=1)]
        right += sum(a == b for a, b in zip(named, plan(weather), strict=True))
        total += len(weather)
    return (Metric(name="accuracy", split=SPLIT, value=right / total),)


def floors() -> tuple[Metric, ...]:
    """Share of right activities of one who guesses."""
    value = 1 / len(ACTIVITIES)
    return (Metric(name="accuracy", split=SPLIT, value=value, floor_name="a guess"),)
