"""Packed inputs are taken and refused exactly as the same numbers in lists."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
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
from service.errors import Invalid
from service.tasks import packed
from service.tasks.forecast import ForecastTask
from service.tasks.next_word import NextWordTask
from service.tasks.numbers import LabelsTask, TensorsTask
from service.tasks.protocol import Parameters, Task, chunk_of, chunk_of_steps
from tests.models import WORDS, tokenizer

PATH = "$.inputs"
# Squares of the large ones add up to more than a float holds; each of them is finite.
FLOATS = st.one_of(
    st.floats(width=32),
    st.floats(-2, 2, width=32),
    st.sampled_from([0.0, -0.0, 1e20, -1e20, float(np.finfo(np.float32).max)]),
)
IDS = st.one_of(st.integers(0, len(WORDS) - 1), st.integers(-2, len(WORDS) + 1))
INTEGERS = st.integers(-(2**31), 2**31 - 1)


@pytest.fixture(scope="module")
def config(accumulator: Path) -> ModelConfig:
    return decode_config((accumulator / CONFIG_FILE).read_bytes())


def compare(task: Task, tensor: Tensor, steps: list[list[Any]]) -> None:
    """Some steps, alone and together, are what a list of the same numbers is, or the same error."""
    contents = [
        np.array(values, f"<{np.dtype(tensor.dtype).str[1:]}").tobytes() for values in steps
    ]
    assert packed.counts(task, contents, PATH) == [len(values) for values in steps]
    refused = False
    for values, content in zip(steps, contents, strict=True):
        expected = None
        try:
            due = chunk_of(task, values, PATH, Parameters())
        except Invalid as refusal:
            expected, refused = refusal, True
        if expected is not None:
            with pytest.raises(Invalid) as error:
                packed.unpack(task, [content], PATH)
            assert (error.value.detail, error.value.extra) == (expected.detail, expected.extra)
            continue
        chunk = chunk_of_steps(packed.unpack(task, [content], PATH), Parameters())
        assert chunk.digest() == due.digest()
        assert chunk.ends.tolist() == due.ends.tolist()
        (array,) = chunk.arrays.values()
        assert (array.dtype, array.shape[1:]) == (np.dtype(tensor.dtype), tensor.shape)
    if refused:
        with pytest.raises(Invalid):
            packed.unpack(task, contents, PATH)
    else:
        (array,) = packed.unpack(task, contents, PATH).values()
        assert array.tobytes() == b"".join(contents)


def steps_of(numbers: st.SearchStrategy[Any], shape: tuple[int, ...]) -> Any:
    for size in reversed(shape):
        numbers = st.lists(numbers, min_size=size, max_size=size)
    return st.lists(st.lists(numbers, min_size=1, max_size=4), min_size=1, max_size=3)


@given(
    data=st.data(),
    dtype=st.sampled_from(("float32", "float64", "int32", "int64")),
    shape=st.sampled_from([(), (1,), (3,), (2, 2)]),
)
def test_numbers(
    config: ModelConfig, data: st.DataObject, dtype: Any, shape: tuple[int, ...]
) -> None:
    tensor = Tensor(name="x", dtype=dtype, shape=shape)
    task = TensorsTask(msgspec.structs.replace(config, task=Tensors(), inputs=(tensor,)))
    numbers = FLOATS if dtype.startswith("float") else INTEGERS
    compare(task, tensor, data.draw(steps_of(numbers, shape)))


@given(steps=steps_of(FLOATS, (2,)))
def test_vectors_of_symbols(config: ModelConfig, steps: list[Any]) -> None:
    tensor = Tensor(name="x", dtype="float32", shape=(2,))
    spec = Labels(labels=("a", "b"), symbols={"sunny": (0.5, 1.0)})
    compare(
        LabelsTask(msgspec.structs.replace(config, task=spec, inputs=(tensor,)), spec),
        tensor,
        steps,
    )


@given(steps=steps_of(FLOATS, (2,)))
@example(steps=[[[np.nan, 1.0]], [[np.nan, np.nan], [2.0, 3.0]]])
@example(steps=[[[1.0, 1.0], [np.inf, 1.0]]])
def test_observations_some_of_them_missing(config: ModelConfig, steps: list[Any]) -> None:
    tensor = Tensor(name="x", dtype="float32", shape=(2,))
    spec = Forecast(columns=("a", "b"), horizon=1, quantiles=(0.5,))
    task = ForecastTask(msgspec.structs.replace(config, task=spec, inputs=(tensor,)), spec)
    compare(task, tensor, steps)


@given(steps=steps_of(IDS, ()))
def test_tokens(language: Path, steps: list[Any]) -> None:
    config = decode_config((language / CONFIG_FILE).read_bytes())
    assert isinstance(config.task, NextWord)
    compare(NextWordTask(config, config.task, tokenizer()), config.inputs[0], steps)


def test_pieces_of_inputs_do_not_add_up_to_whole_ones(config: ModelConfig) -> None:
    tensor = Tensor(name="x", dtype="float32", shape=(3,))
    task = TensorsTask(msgspec.structs.replace(config, task=Tensors(), inputs=(tensor,)))
    assert packed.counts(task, [bytes(24), bytes(12), b""], PATH) == [2, 1, 0]
    for contents in ([bytes(16), bytes(8)], [bytes(12), bytes(13)], [b"1"]):
        with pytest.raises(
            Invalid, match=r"inputs of 12 bytes: x, float32 of shape \[3\]"
        ) as error:
            packed.counts(task, contents, PATH)
        assert error.value.extra == {"path": PATH}


def test_rows_of_outputs_are_packed_as_each_of_them() -> None:
    random = np.random.default_rng(1)
    outputs = {
        "scores": random.random((5, 3, 2), np.float32),
        "ids": random.integers(0, 9, (3, 5)).T,
        "logits": np.zeros((5, 3, 9)),
    }
    rows = [{name: values[row] for name, values in outputs.items()} for row in range(5)]
    for names in (("ids", "scores"), ("ids",)):
        assert packed.pack_rows(outputs, names) == [packed.pack(row, names) for row in rows]


def test_outputs_are_little_endian_in_c_order() -> None:
    outputs = {
        "scores": np.arange(6, dtype=np.float32).reshape(3, 2).T,
        "ids": np.array([1, -2]),
        "logits": np.zeros((2, 9)),
    }
    assert packed.pack(outputs, ("scores", "ids")) == {
        "scores": bytes.fromhex("00000000 00000040 00008040 0000803f 00004040 0000a040"),
        "ids": bytes.fromhex("0100000000000000 feffffffffffffff"),
    }
