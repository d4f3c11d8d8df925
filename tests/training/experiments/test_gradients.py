from __future__ import annotations

import msgspec
import numpy as np
import pytest
import torch
from torch.nn import functional

from training.experiments import gradients
from training.experiments.gradients import Settings, Variant

TINY = Settings(
    steps=8,
    width_in=3,
    hidden_size=6,
    classes=4,
    batch_size=5,
    seeds=(1, 2),
    windows=(3, 4),
    spectral_radii=(0.5, 3.0),
)
PLAIN = Variant(architecture="rnn")


@pytest.fixture(scope="module")
def findings() -> gradients.Findings:
    torch.set_num_threads(1)
    return gradients.measure(TINY)


def test_the_norms_are_those_of_the_chain_of_jacobians() -> None:
    network, x, labels = gradients._start(TINY, PLAIN, seed=1)
    weights = {name: value.detach().numpy() for name, value in network.named_parameters()}
    w_in, w_hidden = (weights[f"step.layers.0.weight_{part}_l0"] for part in ("ih", "hh"))
    bias = sum(weights[f"step.layers.0.bias_{part}_l0"] for part in ("ih", "hh"))
    expected = np.zeros((TINY.batch_size, TINY.steps))
    for row in range(TINY.batch_size):
        states, h = [], np.zeros(TINY.hidden_size)
        for step in x[row].numpy():
            h = np.tanh(w_in @ step + w_hidden @ h + bias)
            states.append(h)
        scores = torch.from_numpy(weights["output.weight"] @ h + weights["output.bias"])
        chance = functional.softmax(scores, dim=0).numpy()
        gradient = (chance - np.eye(TINY.classes)[labels[row]]) @ weights["output.weight"]
        for back, state in enumerate(reversed(states)):
            expected[row, back] = np.linalg.norm(gradient)
            gradient = (gradient * (1 - state**2)) @ w_hidden
    found = gradients._norms(TINY, PLAIN, window=0, seed=1)
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_a_window_ends_the_gradient_and_changes_nothing_within(
    findings: gradients.Findings,
) -> None:
    *cut, full = findings.windows
    for curve in cut:
        assert curve.norms[: curve.window] == full.norms[: curve.window]
        assert not any(curve.norms[curve.window :])
    assert all(full.norms)


def test_clipping_bounds_what_is_applied_and_leaves_the_rest_alone(
    findings: gradients.Findings,
) -> None:
    settings = msgspec.structs.replace(TINY, clip_norm=1e3)
    free = gradients.measure(settings).clipping
    for clipped, loose in zip(findings.clipping, free, strict=True):
        assert clipped.norm == loose.norm
        assert clipped.applied <= TINY.clip_norm
        assert loose.applied == pytest.approx(min(loose.norm, 1e3), rel=1e-3)


def test_clipping_is_said_to_act_where_it_does(findings: gradients.Findings) -> None:
    parts = [
        gradients.Clipping(spectral_radius=1.0, norm=0.5, applied=0.5),
        gradients.Clipping(spectral_radius=1.1, norm=0.9, applied=0.8),
        gradients.Clipping(spectral_radius=1.2, norm=7.0, applied=1.0),
    ]
    some = msgspec.structs.replace(findings, clipping=tuple(parts))
    assert "acts from a radius of 1.1 on" in gradients.describe(TINY, some)
    none = msgspec.structs.replace(findings, clipping=tuple(parts[:1]))
    assert "acts never" in gradients.describe(TINY, none)


def test_every_remedy_is_measured_off_and_on(findings: gradients.Findings) -> None:
    on = {remedy for curve in findings.curves for remedy in curve.variant.remedies}
    assert on == set(gradients.REMEDIES)
    plain = [c.variant.architecture for c in findings.curves if not c.variant.remedies]
    assert plain == ["rnn", "gru", "lstm"]
    assert gradients.measure(TINY) == findings


def test_layer_norm_after_the_layer_does_not_act_on_the_way_back(
    findings: gradients.Findings,
) -> None:
    by_remedy = {c.variant.remedies: c for c in findings.curves if c.variant.architecture == "rnn"}
    # The same weights and inputs; only the gradient that sets out differs.
    assert by_remedy[("norm_between",)].rate == pytest.approx(by_remedy[()].rate, rel=0.1)
    assert by_remedy[("norm_between",)].last != by_remedy[()].last
