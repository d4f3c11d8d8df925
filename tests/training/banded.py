"""The Transformer written out from its equations, for a whole sequence at once: numpy, float64, no ring, no state.

Positions are plain numbers that grow without end, and the band is a mask over all pairs of them.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from training.models.transformer import TransformerEncoder

Array = Any


def features(encoder: TransformerEncoder, x: Array) -> Array:
    """Features (T, D) of one sequence x (T, E)."""
    config = encoder.config
    weights = {name: value.double().numpy() for name, value in encoder.state_dict().items()}
    h = x.astype(np.float64) * math.sqrt(x.shape[1])
    if "input.weight" in weights:
        h = _linear(weights, "input", h)
    places = np.arange(len(x))
    distance = places[:, None] - places
    seen = (distance >= 0) & (distance < config.window) | config.bidirectional
    for i in range(config.num_layers):
        name = f"blocks.{i}"
        h = h + _attention(weights, name, h, seen, config)
        z = _linear(weights, f"{name}.expand", _norm(weights, f"{name}.feedforward_norm", h))
        h = h + _linear(weights, f"{name}.contract", z * _normal_distribution(z))
    return _norm(weights, "norm", h)


def _attention(weights: Any, name: str, h: Array, seen: Array, config: Any) -> Array:
    size = config.width // config.heads
    z = _linear(weights, f"{name}.query_key_value", _norm(weights, f"{name}.attention_norm", h))
    heads = []
    for n in range(config.heads):
        query, key, value = (
            z[:, (part * config.heads + n) * size :][:, :size] for part in range(3)
        )
        turned = _rotary(key, config.window)
        scores = _rotary(query, config.window) @ turned.conj().T
        weight = np.where(seen, np.exp(scores.real / math.sqrt(size)), 0)
        heads.append(weight / weight.sum(axis=1, keepdims=True) @ value)
    return _linear(weights, f"{name}.output", np.concatenate(heads, axis=1))


def _rotary(x: Array, window: int) -> Array:
    """Pairs of features as complex numbers, feature j with feature j + D/2, turned by the position."""
    pairs = x.shape[1] // 2
    period = 64 * window
    turns = np.round((period / math.tau) ** np.linspace(1, 0, pairs))
    angles = np.arange(len(x))[:, None] * (math.tau * turns / period)
    return (x[:, :pairs] + 1j * x[:, pairs:]) * np.exp(1j * angles)


def _linear(weights: Any, name: str, x: Array) -> Array:
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def _norm(weights: Any, name: str, x: Array) -> Array:
    centred = x - x.mean(axis=1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(axis=1, keepdims=True) + 1e-5)
    return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def _normal_distribution(x: Array) -> Array:
    return (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2
