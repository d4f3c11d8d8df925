"""The exported graph against torch, over streams longer than the window; the matrix test has every architecture."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import onnxruntime
import pytest
import torch

from service.contract import (
    CONFIG_FILE,
    Batching,
    ModelConfig,
    StateTensor,
    Tensor,
    decode_config,
)
from tests.training.forecast.conftest import waves
from tests.training.forecast.test_model import model_of
from training.export.runtime import LoadedGraph
from training.forecast.bundle import original
from training.forecast.config import ForecastRun
from training.forecast.data import Series
from training.forecast.floors import measured
from training.forecast.graph import INPUT, step_graph
from training.forecast.learner import ForecastLearner
from training.forecast.measure import quality, with_gaps
from training.forecast.model import ForecastModel
from training.trainer import Share


def state_of(model: ForecastModel, rows: int) -> dict[str, np.ndarray]:
    return {
        spec.name: part.numpy()
        for spec, part in zip(model.states, model.initial_state(rows), strict=True)
    }


def test_ragged_rows_with_gaps_stream_as_torch_reads_them(
    run: Callable[..., ForecastRun],
) -> None:
    model = model_of(run())
    session = onnxruntime.InferenceSession(step_graph(model, "float32").SerializeToString())
    values = waves(gaps=0.3).values.astype(np.float32)
    texts = [values[start : start + 60] for start in (0, 50, 100)]
    texts[1][:5] = np.nan  # nothing is known yet
    state, done = state_of(model, 3), np.zeros(3, int)
    found: list[list[np.ndarray]] = [[], [], []]
    for lengths in ([1, 5, 20], [20, 13, 1], [2, 25, 30], [37, 17, 9]):
        x = np.full((3, max(lengths), 2), 5.0, np.float32)
        for row, length in enumerate(lengths):
            x[row, :length] = texts[row][done[row] : done[row] + length]
        feeds = {INPUT: x, "lengths": np.array(lengths, np.int32), **state}
        names = ["mean", "quantiles", *(f"{spec.name}_out" for spec in model.states)]
        mean, quantiles, *after = session.run(names, feeds)
        for row, length in enumerate(lengths):
            found[row].append(
                np.concatenate([mean[row, :length, None], quantiles[row, :length]], axis=1)
            )
        state = {spec.name: part for spec, part in zip(model.states, after, strict=True)}
        done += lengths
    assert done.tolist() == [60, 60, 60]
    answer = original(model)
    for row, text in enumerate(texts):
        due, last = answer({INPUT: text}, {k: v[0] for k, v in state_of(model, 1).items()})
        parts = np.concatenate(found[row])
        np.testing.assert_allclose(parts[:, 0], due["mean"], rtol=1e-5, atol=1e-3)
        np.testing.assert_allclose(parts[:, 1:], due["quantiles"], rtol=1e-5, atol=1e-3)
        for name, value in last.items():
            np.testing.assert_allclose(state[name][row], value, atol=1e-4)


@pytest.fixture
def learner(run: Callable[..., ForecastRun], series: Series) -> ForecastLearner:
    return ForecastLearner(run(), series, Share())


def loaded(learner: ForecastLearner, config: ModelConfig) -> LoadedGraph:
    assert isinstance(learner.model, ForecastModel)
    graph = step_graph(learner.model.eval(), "float32").SerializeToString()
    return LoadedGraph(graph, config)


@pytest.fixture
def config(learner: ForecastLearner, accumulator: Path) -> ModelConfig:
    """What a loaded graph has to know: names, and how long a chunk may be."""
    assert isinstance(learner.model, ForecastModel)
    return msgspec.structs.replace(
        decode_config((accumulator / CONFIG_FILE).read_bytes()),
        inputs=(Tensor(name=INPUT, dtype="float32", shape=(2,)),),
        outputs=(
            Tensor(name="mean", dtype="float32", shape=(5, 2)),
            Tensor(name="quantiles", dtype="float32", shape=(3, 5, 2)),
        ),
        state=tuple(
            StateTensor(input_name=s.name, output_name=f"{s.name}_out", shape=s.shape)
            for s in learner.model.states
        ),
        batching=Batching(max_chunk_length=10),
    )


@pytest.mark.parametrize("part", ["valid", "test"])
def test_a_fresh_model_measures_as_its_linear_part(
    run: Callable[..., ForecastRun],
    series: Series,
    learner: ForecastLearner,
    config: ModelConfig,
    part: str,
) -> None:
    assert isinstance(learner.model, ForecastModel)
    weights = learner.model.linear.numpy()
    due = measured(lambda column, x: x @ weights[column].T, run(), series, part)
    found = quality(run(), loaded(learner, config), series, part)
    assert found.errors.mse == pytest.approx(due.mse, rel=1e-4)
    assert found.errors.mae == pytest.approx(due.mae, rel=1e-4)
    # The widths are those of the train part, of which the waves are a fair sample.
    assert found.coverage == pytest.approx(0.8, abs=0.06)


def test_gaps_are_hidden_from_the_model_and_not_from_the_measure(
    run: Callable[..., ForecastRun], series: Series, learner: ForecastLearner, config: ModelConfig
) -> None:
    graph = loaded(learner, config)
    lost = with_gaps(series)
    assert lost.told is not None
    assert np.isnan(lost.told).mean() == pytest.approx(0.1, abs=0.03)
    plain, gappy = (quality(run(), graph, s, "test") for s in (series, lost))
    assert plain.errors.mse < gappy.errors.mse < 2 * plain.errors.mse


@pytest.mark.parametrize("gaps", [0.0, 0.3])
def test_validation_measures_the_same(
    run: Callable[..., ForecastRun], config: ModelConfig, gaps: float
) -> None:
    # More than what is measured at once.
    series = waves(rows=2000, gaps=gaps)
    learner = ForecastLearner(run(), series, Share())
    learner.model.eval()
    with torch.no_grad():
        scalars = learner.validate(learner.model)
    found = quality(run(), loaded(learner, config), series, "valid")
    assert scalars["valid/mse"] == pytest.approx(found.errors.mse, rel=1e-4)
    assert scalars["valid/mae"] == pytest.approx(found.errors.mae, rel=1e-4)
    assert scalars["valid/pinball"] == pytest.approx(found.pinball, rel=1e-4)
