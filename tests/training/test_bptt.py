"""Backpropagation through three steps of an Elman network by hand, against torch.

a_t = x_t W_xh^T + h_{t-1} W_hh^T + b,  h_t = s(a_t),  y_t = h_t W_oh^T,  L = sum_t 1/2 |y_t - d_t|^2,  e_t = y_t - d_t

dL/dW_oh = sum_t e_t h_t^T
dL/dh_t  = e_t W_oh + (dL/dh_{t+1} * s'(a_{t+1})) W_hh          nothing comes from beyond the last step
dL/dW_hh = sum_t (dL/dh_t * s'(a_t)) h_{t-1}^T                  dL/dW_xh with x_t, dL/db with 1 for h_{t-1}
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

STEPS, INPUTS, HIDDEN, OUTPUTS = 3, 2, 4, 3
SHAPES = {
    "x": (STEPS, INPUTS),
    "due": (STEPS, OUTPUTS),
    "start": (HIDDEN,),
    "W_xh": (HIDDEN, INPUTS),
    "W_hh": (HIDDEN, HIDDEN),
    "b": (HIDDEN,),
    "W_oh": (OUTPUTS, HIDDEN),
}
LEARNT = ("W_xh", "W_hh", "b", "W_oh")

Arrays = dict[str, np.ndarray]


def numbers(seed: int) -> Arrays:
    random = np.random.default_rng(seed)
    return {name: random.normal(size=shape) for name, shape in SHAPES.items()}


def activation(name: str, a: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The activation and its derivative."""
    if name == "tanh":
        return np.tanh(a), 1 - np.tanh(a) ** 2
    return np.maximum(a, 0), (a > 0).astype(float)


def closed_form(name: str, n: Arrays) -> tuple[Arrays, np.ndarray]:
    """The three steps written out: the gradient of each weight, and that of each h (3, H)."""
    h0 = n["start"]
    h1, s1 = activation(name, n["W_xh"] @ n["x"][0] + n["W_hh"] @ h0 + n["b"])
    h2, s2 = activation(name, n["W_xh"] @ n["x"][1] + n["W_hh"] @ h1 + n["b"])
    h3, s3 = activation(name, n["W_xh"] @ n["x"][2] + n["W_hh"] @ h2 + n["b"])
    e1, e2, e3 = (n["W_oh"] @ h - due for h, due in zip((h1, h2, h3), n["due"], strict=True))
    d3 = e3 @ n["W_oh"]
    d2 = e2 @ n["W_oh"] + (d3 * s3) @ n["W_hh"]
    d1 = e1 @ n["W_oh"] + (d2 * s2) @ n["W_hh"]
    gradients = {
        "W_oh": np.outer(e1, h1) + np.outer(e2, h2) + np.outer(e3, h3),
        "W_hh": np.outer(d1 * s1, h0) + np.outer(d2 * s2, h1) + np.outer(d3 * s3, h2),
        "W_xh": sum(
            np.outer(d * s, x) for d, s, x in zip((d1, d2, d3), (s1, s2, s3), n["x"], strict=True)
        ),
        "b": d1 * s1 + d2 * s2 + d3 * s3,
    }
    return gradients, np.stack([d1, d2, d3])


def run(name: str, n: Arrays, window: int) -> tuple[dict[str, Tensor], list[Tensor]]:
    """The same in torch, the gradient cut every `window` steps; gives the weights and every h, with gradients."""
    values = {key: torch.tensor(value, requires_grad=key in LEARNT) for key, value in n.items()}
    layer = torch.nn.RNN(INPUTS, HIDDEN, nonlinearity=name, dtype=torch.float64)
    names = {"weight_ih_l0": "W_xh", "weight_hh_l0": "W_hh", "bias_ih_l0": "b"}
    weights = {key: values[value] for key, value in names.items()}
    weights["bias_hh_l0"] = torch.zeros(HIDDEN, dtype=torch.float64)
    h, loss, states = values["start"][None], torch.zeros((), dtype=torch.float64), []
    for t in range(STEPS):
        h = h.detach() if t and t % window == 0 else h
        _, h = torch.func.functional_call(layer, weights, (values["x"][t][None], h))
        h.retain_grad()
        states.append(h)
        loss = loss + ((h[0] @ values["W_oh"].T - values["due"][t]) ** 2).sum() / 2
    loss.backward()
    return values, states


@pytest.mark.parametrize("name", ["tanh", "relu"])
@pytest.mark.parametrize("seed", range(5))
def test_three_steps_by_hand_equal_autograd(name: str, seed: int) -> None:
    n = numbers(seed)
    expected, hidden = closed_form(name, n)
    values, states = run(name, n, window=STEPS)
    for key in LEARNT:
        assert values[key].grad is not None
        np.testing.assert_allclose(values[key].grad, expected[key], rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose([h.grad[0].numpy() for h in states], hidden, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["tanh", "relu"])
def test_truncation_leaves_out_exactly_the_terms_that_cross_the_window(name: str) -> None:
    n = numbers(0)
    (full, _), (values, _) = closed_form(name, n), run(name, n, window=1)
    # With a window of one step each step learns from its own error alone.
    expected = np.zeros((HIDDEN, HIDDEN))
    h = n["start"]
    for x, due in zip(n["x"], n["due"], strict=True):
        before = h
        h, slope = activation(name, n["W_xh"] @ x + n["W_hh"] @ before + n["b"])
        expected += np.outer(((n["W_oh"] @ h - due) @ n["W_oh"]) * slope, before)
    np.testing.assert_allclose(values["W_hh"].grad, expected, rtol=1e-12, atol=1e-12)
    assert not np.allclose(expected, full["W_hh"])
    np.testing.assert_allclose(values["W_oh"].grad, full["W_oh"], rtol=1e-12, atol=1e-12)
