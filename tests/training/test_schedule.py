from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.config import TrainingConfig
from training.schedule import lr_at

shares = st.floats(0, 1)
shapes = st.sampled_from(["cosine", "linear"])


def config(**changes: object) -> TrainingConfig:
    return TrainingConfig(epochs=1, batch_size=1, bptt=1, lr=2.0, **changes)  # type: ignore[arg-type]


@given(st.integers(1, 500), shares, shares, shapes, shares)
def test_the_rate_stays_between_zero_and_its_peak(
    total: int, warmup: float, decay: float, shape: str, final: float
) -> None:
    settings = config(warmup=warmup, decay=decay, decay_shape=shape, final_lr=final)
    rates = [lr_at(step, total, settings) for step in range(total)]
    assert all(0 <= rate <= 2.0 for rate in rates)


@given(st.integers(10, 500), shapes)
def test_it_rises_then_holds_then_falls(total: int, shape: str) -> None:
    settings = config(warmup=0.2, decay=0.5, decay_shape=shape)
    rates = [lr_at(step, total, settings) for step in range(total + 1)]
    peak = max(rates)
    first = rates.index(peak)
    last = len(rates) - 1 - rates[::-1].index(peak)
    assert rates[: first + 1] == sorted(rates[: first + 1])
    assert set(rates[first : last + 1]) == {2.0}
    assert rates[last:] == sorted(rates[last:], reverse=True)
    assert rates[-1] == 0


def test_the_last_rate_is_the_stated_share_of_the_peak() -> None:
    assert lr_at(100, 100, config(final_lr=0.1)) == pytest.approx(0.2)


def test_without_rise_and_fall_it_is_constant() -> None:
    assert {lr_at(step, 50, config(decay=0.0)) for step in range(50)} == {2.0}


def test_before_the_fall_the_length_of_the_run_does_not_matter_but_for_the_rise() -> None:
    settings = config(warmup=0.0, decay=0.5)
    assert [lr_at(s, 100, settings) for s in range(50)] == [
        lr_at(s, 200, settings) for s in range(50)
    ]
