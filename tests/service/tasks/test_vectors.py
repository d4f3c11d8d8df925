"""Many inputs at once are taken and refused exactly as each of them alone."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from service.contract import (
    CONFIG_FILE,
    Forecast,
    Labels,
    ModelConfig,
    NextWord,
    Tensor,
    Tensors,
    decode_config,
)
from service.tasks.forecast import ForecastTask
from service.tasks.next_word import NextWordTask
from service.tasks.numbers import LabelsTask, TensorsTask
from tests.models import CHARACTERS, WORDS, character_model, tokenizer
from tests.service.tasks.together import compare

DTYPES = ("float32", "float64", "int32", "int64")

# What JSON and MessagePack may bring, numbers above all.
NUMBERS = st.one_of(
    st.floats(width=32),
    st.floats(),
    st.integers(-3, 12),
    st.integers(),
    st.sampled_from([2**53 + 1, 2**63 - 1, -(2**63), 2**63, 10**310, 3.4028235e38, 3.4028236e38]),
)
ODD = st.sampled_from([True, None, "the cat", "", "sunny", "foggy", b"1", {}, {"x": 1.0}, [], [1]])
VALUES = st.one_of(NUMBERS, NUMBERS, NUMBERS, ODD)
# The largest float32, and what rounds to it.
LARGEST = (2 - 2**-23) * 2.0**127


@pytest.fixture(scope="module")
def characters(tmp_path_factory: pytest.TempPathFactory) -> NextWordTask:
    directory = character_model(tmp_path_factory.mktemp("models"))
    config = decode_config((directory / CONFIG_FILE).read_bytes())
    assert isinstance(config.task, NextWord)
    return NextWordTask(config, config.task, tokenizer(CHARACTERS))


@pytest.fixture(scope="module")
def config(accumulator: Path) -> ModelConfig:
    return decode_config((accumulator / CONFIG_FILE).read_bytes())


def shaped(shape: tuple[int, ...]) -> st.SearchStrategy[Any]:
    """Values of a shape, some of them not quite."""
    if not shape:
        return VALUES
    inner = shaped(shape[1:])
    right = st.lists(inner, min_size=shape[0], max_size=shape[0])
    return st.one_of(right, right, right, st.lists(inner, max_size=3), ODD)


@given(
    data=st.data(), dtype=st.sampled_from(DTYPES), shape=st.sampled_from([(), (1,), (3,), (2, 2)])
)
def test_tensors_are_taken_together_as_one_by_one(
    config: ModelConfig, data: st.DataObject, dtype: Any, shape: tuple[int, ...]
) -> None:
    tensor = Tensor(name="x", dtype=dtype, shape=shape)
    task = TensorsTask(msgspec.structs.replace(config, task=Tensors(), inputs=(tensor,)))
    compare(task, data.draw(st.lists(shaped(shape), min_size=1, max_size=5)))


@given(values=st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=2000))
def test_finite_numbers_are_taken_whatever_their_size(
    config: ModelConfig, values: list[float]
) -> None:
    tensor = Tensor(name="x", dtype="float32")
    task = TensorsTask(msgspec.structs.replace(config, task=Tensors(), inputs=(tensor,)))
    compare(task, [value if math.isfinite(value) else 0.0 for value in values])


@given(data=st.data(), columns=st.sampled_from([("OT",), ("a", "b", "c")]))
@example(data=None, columns=("OT",))
def test_observations_are_taken_together_as_one_by_one(
    config: ModelConfig, data: st.DataObject | None, columns: tuple[str, ...]
) -> None:
    tensor = Tensor(name="observations", dtype="float32", shape=(len(columns),))
    spec = Forecast(columns=columns, horizon=1, quantiles=(0.5,))
    task = ForecastTask(msgspec.structs.replace(config, task=spec, inputs=(tensor,)), spec)
    if data is None:
        for largest in (LARGEST, math.nextafter(LARGEST, math.inf), 3.4028235677973366e38):
            compare(task, [1.0, None, -largest, largest])
        return
    value = st.one_of(shaped((len(columns),)), VALUES)
    missing = st.lists(st.one_of(NUMBERS, st.none()), min_size=len(columns), max_size=len(columns))
    compare(task, data.draw(st.lists(st.one_of(value, missing), min_size=1, max_size=5)))


@given(data=st.data(), shape=st.sampled_from([(), (2,)]), symbols=st.booleans())
def test_symbols_are_taken_together_as_one_by_one(
    config: ModelConfig, data: st.DataObject, shape: tuple[int, ...], symbols: bool
) -> None:
    tensor = Tensor(name="x", dtype="float32", shape=shape)
    vector: Any = (0.5, 1.0) if shape else 0.5
    spec = Labels(labels=("a", "b"), symbols={"sunny": vector} if symbols else {})
    task = LabelsTask(msgspec.structs.replace(config, task=spec, inputs=(tensor,)), spec)
    value = st.one_of(shaped(shape), st.sampled_from(["sunny", "foggy"]))
    compare(task, data.draw(st.lists(value, min_size=1, max_size=5)))
    compare(task, data.draw(st.lists(st.just("sunny"), min_size=1, max_size=5)))


TEXTS = st.sampled_from(
    [*WORDS, "Foggy", "the cat", " the ", "", "x" * 65, "3-4", "don't", "e\u0301", "q", "a", "b"]
)


@given(
    values=st.lists(
        st.one_of(st.integers(-1, len(WORDS)), TEXTS, TEXTS, VALUES), min_size=1, max_size=5
    ),
)
def test_tokens_are_taken_together_as_one_by_one(language: Path, values: list[Any]) -> None:
    config = decode_config((language / CONFIG_FILE).read_bytes())
    assert isinstance(config.task, NextWord)
    compare(NextWordTask(config, config.task, tokenizer()), values)


@given(values=st.lists(st.one_of(st.sampled_from([*CHARACTERS, "\x00", "ab"]), VALUES), min_size=1))
def test_characters_are_taken_together_as_one_by_one(
    characters: NextWordTask, values: list[Any]
) -> None:
    compare(characters, values)
