"""States inside the graph and states on the host are the same to the last bit, whatever happens to their slots."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.contract import CONFIG_FILE, MODEL_FILE, ModelConfig, StateTensor, decode_config
from service.engine.arena import SCRATCH, Arena, Slot
from service.engine.bound import BoundGraph
from service.engine.graph import Graph
from service.engine.host import HostStates
from tests.states import summing, tensors

CAPACITY = 5
SHIPPED = Path(__file__).parents[2] / "exported"


class Both:
    """One life of two arenas; they must agree at every turn."""

    def __init__(self, model: bytes, config: ModelConfig) -> None:
        self.config = config
        self.arenas = (
            Arena(HostStates(Graph(model, config), CAPACITY), CAPACITY),
            Arena(BoundGraph(model, config).states(CAPACITY), CAPACITY),
        )
        self.slots: list[tuple[Slot, ...]] = []

    def take(self) -> None:
        if len(self.slots) < CAPACITY:
            taken = tuple(slot for arena in self.arenas if (slot := arena.take()) is not None)
            self.slots.append(taken)

    def give_back(self, which: int) -> None:
        if self.slots:
            slots = self.slots.pop(which % len(self.slots))
            for arena, slot in zip(self.arenas, slots, strict=True):
                arena.give_back(slot)

    def move(self, source: int, target: int) -> None:
        """Overwrite a slot by what another holds."""
        if self.slots:
            count = len(self.slots)
            pairs = zip(self.slots[source % count], self.slots[target % count], strict=True)
            for arena, (a, b) in zip(self.arenas, pairs, strict=True):
                arena.write(b, arena.read(a))

    def step(
        self, chosen: set[int], padding: int, feeds: dict[str, Any], wanted: list[str]
    ) -> None:
        batch = [slots for i, slots in enumerate(self.slots) if i in chosen]
        batch += [(SCRATCH, SCRATCH)] * padding
        if not batch:
            return
        fed = {name: values[: len(batch)] for name, values in feeds.items()}
        results = [
            arena.run(arena.rows_of([slots[i] for slots in batch]), fed, wanted)
            for i, arena in enumerate(self.arenas)
        ]
        (host, host_finite), (bound, bound_finite) = results
        live = slice(0, len(batch) - padding)
        every = np.ones(len(batch), np.bool_)
        host_rows = every if host_finite is None else host_finite
        bound_rows = every if bound_finite is None else bound_finite
        assert np.array_equal(host_rows[live], bound_rows[live])
        for name in wanted:
            assert bound[name].dtype == host[name].dtype
            assert np.array_equal(host[name][live], bound[name][live], equal_nan=True)

    def check(self) -> None:
        for a, b in self.slots:
            host, bound = self.arenas[0].read(a), self.arenas[1].read(b)
            assert host.keys() == bound.keys()
            for name, values in host.items():
                assert values.dtype == bound[name].dtype
                assert np.array_equal(values, bound[name]), name


def live(both: Both, data: st.DataObject, value: st.SearchStrategy[float], most: int) -> None:
    for _ in range(data.draw(st.integers(1, 8))):
        match data.draw(st.sampled_from(["take", "take", "give", "move", "step", "step"])):
            case "take":
                both.take()
            case "give":
                both.give_back(data.draw(st.integers(0, 99)))
            case "move":
                both.move(data.draw(st.integers(0, 99)), data.draw(st.integers(0, 99)))
            case _:
                time = data.draw(st.integers(1, most))
                feeds = _feeds(both.config, data, value, time)
                names = [t.name for t in both.config.outputs]
                wanted = [name for name in names if data.draw(st.booleans())]
                chosen = data.draw(st.sets(st.integers(0, CAPACITY - 1)))
                both.step(chosen, data.draw(st.integers(0, 3)), feeds, wanted)
        both.check()


def _feeds(
    config: ModelConfig, data: st.DataObject, value: st.SearchStrategy[float], time: int
) -> dict[str, Any]:
    rows = CAPACITY + 3
    lengths = data.draw(st.lists(st.integers(1, time), min_size=rows, max_size=rows))
    feeds: dict[str, Any] = {config.lengths: np.array(lengths, np.int32)}
    random = np.random.default_rng(data.draw(st.integers(0, 999)))
    for tensor in config.inputs:
        shape = (rows, time, *tensor.shape)
        if tensor.dtype == "int64":
            feeds[tensor.name] = random.integers(2, 9, shape)
        else:
            feeds[tensor.name] = random.normal(size=shape).astype(tensor.dtype)
            feeds[tensor.name].flat[0] = data.draw(value)
    return feeds


@settings(max_examples=60, deadline=None)
@given(tensors.filter(len), st.data())
def test_of_any_states(states: tuple[StateTensor, ...], data: st.DataObject) -> None:
    floats = all(state.dtype.startswith("float") for state in states)
    odd = [np.nan, np.inf, -np.inf] if floats else []
    # Multiples of a half, so that the sum of a float32 and of a float64 state is exact.
    value = st.integers(-9, 9).map(lambda n: n / 2) | st.sampled_from([*odd, 0.0])
    live(Both(*summing(states)), data, value, 3)


@pytest.mark.parametrize(
    "name",
    ["shakespeare-gru/1", "next-word-transformer/1", "forecast-etth1-transformer/1"],
)
@settings(
    max_examples=8,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(st.data())
def test_of_a_shipped_model(both_of: Any, name: str, data: st.DataObject) -> None:
    both = both_of(name)
    value = st.sampled_from([0.0, np.nan, np.inf])
    live(both, data, value, 5)
    while both.slots:
        both.give_back(0)


@pytest.fixture(scope="module")
def both_of() -> Any:
    loaded: dict[str, Both] = {}

    def load(name: str) -> Both:
        if name not in loaded:
            directory = SHIPPED / name
            config = decode_config((directory / CONFIG_FILE).read_bytes())
            loaded[name] = Both((directory / MODEL_FILE).read_bytes(), config)
        return loaded[name]

    return load
