from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from service.contract import CONFIG_FILE, Labels, ModelConfig, Tensor, Tensors, decode_config
from service.errors import Invalid
from service.tasks.numbers import LabelsTask, TensorsTask
from service.tasks.protocol import Parameters, join_pieces


@pytest.fixture
def labels(planner: Path) -> LabelsTask:
    config = decode_config((planner / CONFIG_FILE).read_bytes())
    assert isinstance(config.task, Labels)
    return LabelsTask(config, config.task)


def tensors(base: Path, *inputs: Tensor) -> TensorsTask:
    config: ModelConfig = decode_config((base / CONFIG_FILE).read_bytes())
    return TensorsTask(msgspec.structs.replace(config, task=Tensors(), inputs=inputs))


def of(dtype: str, *shape: int, name: str = "x") -> Tensor:
    return Tensor(name=name, dtype=dtype, shape=shape)  # type: ignore[arg-type]


# Labels.


def test_a_symbol_stands_for_its_vector(labels: LabelsTask) -> None:
    rainy, vector = (labels.piece(value, "$")["weather"] for value in ("rainy", [0, 1.0]))
    assert np.array_equal(rainy, vector)
    assert (rainy.shape, rainy.dtype) == ((1, 2), np.float32)


def test_an_unknown_symbol_is_named_with_the_known_ones(labels: LabelsTask) -> None:
    with pytest.raises(Invalid, match=r"'foggy' is not a symbol.*sunny, rainy") as error:
        labels.piece("foggy", "$.inputs[3]")
    assert error.value.extra == {"path": "$.inputs[3]"}


def test_a_model_without_symbols_says_so(planner: Path) -> None:
    config = decode_config((planner / CONFIG_FILE).read_bytes())
    with pytest.raises(Invalid, match="known: none"):
        LabelsTask(config, Labels(labels=("a", "b", "c"))).piece("sunny", "$")


def test_a_whole_input_has_an_end_for_every_step(labels: LabelsTask) -> None:
    chunk = labels.whole(["sunny", [0, 1], "rainy"], "$")
    assert chunk.arrays["weather"].tolist() == [[1, 0], [0, 1], [0, 1]]
    assert chunk.ends.tolist() == [0, 1, 2]


def test_the_best_label_is_answered_or_the_best_few(labels: LabelsTask) -> None:
    outputs = {"scores": np.array([[0.25, 0.5, 0.0], [0.0, 0.0, 1.0]], np.float32)}
    assert labels.answers((), outputs, Parameters()) == [
        {"label": "movies", "score": 0.5},
        {"label": "party", "score": 1.0},
    ]
    assert labels.whole_answer(None, outputs, Parameters(top_k=2))[0] == [
        {"label": "movies", "score": 0.5},
        {"label": "museum", "score": 0.25},
    ]


@pytest.mark.parametrize("top_k", [0, 4, -1])
def test_there_are_only_so_many_labels(labels: LabelsTask, top_k: int) -> None:
    with pytest.raises(Invalid, match="top_k is 1 to 3"):
        labels.check(Parameters(top_k=top_k))
    labels.check(Parameters(top_k=3))


# Numbers.


@pytest.mark.parametrize(
    ("tensor", "value", "message"),
    [
        (of("float64"), "1", "a number is due here, got a string"),
        (of("float64"), True, "got a boolean"),
        (of("float64"), None, "got null"),
        (of("float64"), b"1", "got binary data"),
        (of("float64"), [1.0], "got a list"),
        (of("float64"), float("nan"), "NaN or infinity"),
        (of("float64"), float("-inf"), "NaN or infinity"),
        (of("float64"), 10**400, "too large"),
        (of("float32"), 1e39, "does not fit"),
        (of("int64"), 1.5, "does not fit"),
        (of("int64"), 2**63, "too large"),
        (of("int32"), 2**31, "too large"),
        (of("int32"), float("nan"), "NaN or infinity"),
        (of("float64", 2), 1.0, "a list of 2 is due here, got a number"),
        (of("float64", 2), {"a": 1}, "got an object|object with x"),
        (of("float64", 2), [1.0], "a list of 2 is due here, got one of 1"),
        (of("float64", 2), [1.0, [2.0]], "a number is due here, got a list"),
        (of("float64", 1, 2), [[1.0, "2"]], "got a string"),
    ],
)
def test_what_is_not_such_a_number_is_refused(
    accumulator: Path, tensor: Tensor, value: Any, message: str
) -> None:
    with pytest.raises(Invalid, match=message) as error:
        tensors(accumulator, tensor).piece(value, "$.inputs[0]")
    assert error.value.extra["path"].startswith("$.inputs[0]")


def test_the_path_leads_to_the_wrong_number(accumulator: Path) -> None:
    with pytest.raises(Invalid) as error:
        tensors(accumulator, of("float64", 2, 2)).piece([[1, 2], [3, None]], "$.inputs[7]")
    assert error.value.extra["path"] == "$.inputs[7][1][1]"


def test_hostile_nesting_is_looked_into_no_deeper_than_the_shape(accumulator: Path) -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(Invalid, match="a number is due here, got a list"):
        tensors(accumulator, of("float64", 1)).piece(deep, "$")


@pytest.mark.parametrize("value", [2**53 + 1, 2**63 - 1, -(2**63), 3.0])
def test_integers_arrive_exactly(accumulator: Path, value: float) -> None:
    array = tensors(accumulator, of("int64")).piece(value, "$")["x"]
    assert (array.dtype, array.tolist()) == (np.int64, [value])


def test_several_inputs_come_as_an_object(accumulator: Path) -> None:
    task = tensors(accumulator, of("float64", name="a"), of("int64", 2, name="b"))
    chunk = task.whole([{"a": 1, "b": [2, 3]}, {"b": [4, 5], "a": 6.5}], "$")
    assert chunk.arrays["a"].tolist() == [1, 6.5]
    assert chunk.arrays["b"].tolist() == [[2, 3], [4, 5]]
    for wrong in (5, {"a": 1}, {"a": 1, "b": [2, 3], "c": 4}):
        with pytest.raises(Invalid, match="an object with a, b is due here"):
            task.piece(wrong, "$")


def test_the_path_leads_through_the_object(accumulator: Path) -> None:
    task = tensors(accumulator, of("float64", name="a"), of("int64", 2, name="b"))
    with pytest.raises(Invalid) as error:
        task.piece({"a": 1, "b": [2, "3"]}, "$.inputs[7]")
    assert error.value.extra["path"] == "$.inputs[7].b[1]"


def test_a_single_input_may_come_as_an_object_too(accumulator: Path) -> None:
    assert tensors(accumulator, of("float64")).piece({"x": 2}, "$")["x"].tolist() == [2]


@pytest.mark.parametrize(
    ("value", "message"), [([], "empty"), ("abc", "a list is due"), ({"x": 1}, "a list is due")]
)
def test_a_whole_input_is_a_list_that_is_not_empty(
    accumulator: Path, value: Any, message: str
) -> None:
    with pytest.raises(Invalid, match=message):
        tensors(accumulator, of("float64")).whole(value, "$")


def test_every_output_of_every_step_is_answered(accumulator: Path) -> None:
    task = tensors(accumulator, of("float64"))
    outputs = {"total": np.array([1.0, 2.5])}
    assert task.answers((), outputs, Parameters()) == [{"total": 1.0}, {"total": 2.5}]
    assert task.whole_answer(None, outputs, Parameters()) == [{"total": 1.0}, {"total": 2.5}]
    with pytest.raises(Invalid, match="no candidates"):
        task.check(Parameters(top_k=1))
    task.check(Parameters())


# Joining.


def test_pieces_join_to_a_chunk_with_an_end_for_each() -> None:
    pieces = [{"x": np.array([1, 2])}, {"x": np.array([3])}]
    chunk = join_pieces(pieces, Parameters())
    assert (chunk.arrays["x"].tolist(), chunk.ends.tolist()) == ([1, 2, 3], [1, 2])
    single = join_pieces(pieces[:1], Parameters())
    assert (single.arrays["x"].tolist(), single.ends.tolist()) == ([1, 2], [1])


def test_other_parameters_make_another_payload() -> None:
    pieces = [{"x": np.array([1])}]
    digests = {join_pieces(pieces, Parameters(top_k=k)).digest() for k in (None, 1, 2)}
    assert len(digests) == 3
