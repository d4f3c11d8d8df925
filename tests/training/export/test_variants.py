from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from service.contract import Drift, Metric, Variant, decode_config
from training.export import package, variants
from training.export.bundle import Bundle
from training.export.runtime import LoadedGraph
from training.export.variants import VariantError, accept
from training.weekend_planner.bundle import bundle
from training.weekend_planner.config import WeekendPlannerRun

STEPS = 300
RUN = WeekendPlannerRun(name="planner", version=2, description="A test")
EXACT = (Metric(name="perplexity", split="valid", value=100.0),)


@pytest.fixture
def planner(monkeypatch: pytest.MonkeyPatch) -> Bundle:
    """Its weights are few and whole, so every variant is exact; and a session shorter than the real one shows it."""
    monkeypatch.setattr(variants, "STEPS", STEPS)
    monkeypatch.setattr(variants, "ROUND_S", 0.01)
    return msgspec.structs.replace(bundle(RUN, "command"), variants=("int8", "float16"))


def variant(value: float = 100.0, mean: float = 0.1, late: float = 0.1) -> Variant:
    return Variant(
        name="int8",
        file="model.int8.onnx",
        device="cpu",
        tolerance=0.1,
        drift=(Drift(output="logits", steps=10_000, largest=1.0, mean=mean, late=late),),
        metrics=(Metric(name="perplexity", split="valid", value=value),),
    )


def test_a_variant_of_exact_arithmetic_does_not_drift(planner: Bundle) -> None:
    graph = LoadedGraph(planner.model, planner.config)
    (drift,) = variants.drift(planner, graph, graph)
    assert (drift.output, drift.steps) == ("scores", STEPS)
    assert (drift.largest, drift.mean, drift.late) == (0, 0, 0)


@pytest.mark.parametrize("value", [100.0, 100.9, 99.1])
def test_one_within_the_limits_is_accepted(value: float) -> None:
    accept("model", variant(value), EXACT)


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (variant(101.1), "model: int8 has perplexity 101.1 on valid, exact is 100"),
        (variant(98.0), "perplexity 98"),
        (variant(float("nan")), "perplexity nan"),
        (variant(late=0.2), "by 0.1 on average and by 0.2 at the end of 10,000 steps"),
        (variant(mean=float("nan")), "wrong in logits"),
    ],
)
def test_one_beyond_the_limits_is_refused(found: Variant, message: str) -> None:
    with pytest.raises(VariantError, match=message):
        accept("model", found, EXACT)


def test_the_export_holds_each_variant_with_what_was_measured(
    planner: Bundle, tmp_path: Path
) -> None:
    directory = package.write(planner, tmp_path)
    config = decode_config((directory / "config.json").read_bytes())
    assert [(v.name, v.file, v.device) for v in config.variants] == [
        ("int8", "model.int8.onnx", "cpu"),
        ("float16", "model.float16.onnx", "cuda"),
    ]
    assert {v.file for v in config.variants} <= config.files.keys()
    assert [v.metrics for v in config.variants] == [
        tuple(Metric(name=m.name, split=m.split, value=m.value) for m in config.provenance.metrics)
    ] * 2
    timed, untimed = config.variants
    assert [part.batch_size for part in timed.speed_up] == [1, 16, 64]
    assert untimed.speed_up == ()
    card = (directory / "README.md").read_text()
    assert "## Variant int8, for a processor" in card
    assert "`SEQSERVE_VARIANT=float16`" in card
    assert "| accuracy | all weather of up to 10 weekends | 1 | 1 |" in card


def test_nothing_is_written_if_a_variant_is_refused(planner: Bundle, tmp_path: Path) -> None:
    values: Iterator[float] = iter([1.0, 0.5])

    def measure(graph: LoadedGraph) -> tuple[Metric, ...]:
        return (Metric(name="accuracy", split="valid", value=next(values)),)

    with pytest.raises(VariantError, match=r"planner: int8 has accuracy 0\.5 on valid, exact is 1"):
        package.write(msgspec.structs.replace(planner, measure=measure), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_cannot_be_stepped_has_none(planner: Bundle, tmp_path: Path) -> None:
    config = msgspec.structs.replace(planner.config, streaming=False, state=())
    whole = msgspec.structs.replace(planner, config=config)
    with pytest.raises(VariantError, match="planner cannot be stepped"):
        variants.make(whole, LoadedGraph(planner.model, planner.config), ())
