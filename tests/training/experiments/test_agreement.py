from __future__ import annotations

import msgspec
import pytest
import torch

from training.config import TransformerConfig
from training.experiments import agreement
from training.experiments.agreement import Settings
from training.experiments.sizes import CELLS, sized_like

TINY = Settings(
    train_distances=(0, 3),
    test_distances=(0, 3, 4),
    train_sentences=40,
    test_sentences=20,
    embedding_dim=8,
    transformer=TransformerConfig(width=8, heads=2, num_layers=1, feedforward=8, window=16),
    seeds=(1, 2),
    steps=4,
    batch_size=4,
)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def test_the_same_settings_give_the_same_numbers_for_every_architecture_and_seed() -> None:
    first, second = agreement.measure(TINY), agreement.measure(TINY)
    timeless = [
        [msgspec.structs.replace(training, cpu_s=0) for training in findings.trainings]
        for findings in (first, second)
    ]
    assert timeless[0] == timeless[1]
    made = [(training.seed, training.architecture) for training in first.trainings]
    assert sorted(made) == sorted((s, a) for s in TINY.seeds for a in agreement.MODELS)


def test_a_short_distance_is_learnt() -> None:
    settings = msgspec.structs.replace(
        TINY,
        test_distances=(0,),
        seeds=(1,),
        steps=120,
        batch_size=16,
        train_sentences=400,
        lr=1e-2,
    )
    for training in agreement.measure(settings).trainings:
        assert training.accuracy[0] > 0.9, training.architecture


@pytest.mark.parametrize("architecture", CELLS)
def test_networks_of_equal_size_differ_by_less_than_one_unit_would_add(architecture: str) -> None:
    settings = Settings()

    def count(config: agreement.EncoderConfig) -> int:
        return agreement.parameters_of(settings, config)

    target = count(settings.transformer)
    config = sized_like(settings.transformer, architecture, count)
    assert abs(count(config) - target) < 0.02 * target


def test_what_is_said_follows_the_numbers() -> None:
    findings = agreement.measure(TINY)
    best = msgspec.structs.replace(
        findings,
        trainings=tuple(
            msgspec.structs.replace(t, accuracy=(1.0, 1.0, 0.6 if t.architecture == "rnn" else 0.9))
            for t in findings.trainings
        ),
    )
    text = agreement.describe(TINY, best)
    assert "At 3 words the gated cells are within 2% of the RNN" in text
    assert "At 4 words the gated cells are right on 30% more of the verbs than the RNN" in text
    assert "the RNN loses most: 40% of the verbs" in text
