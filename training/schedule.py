"""The learning rate as a pure function of the step."""

from __future__ import annotations

import math

from training.config import TrainingConfig


def lr_at(step: int, total_steps: int, config: TrainingConfig) -> float:
    """Learning rate of a step: a linear rise, a plateau, and a fall to `final_lr` times the peak.

    Args:
        step: Steps taken so far, from 0.
        total_steps: Steps of the whole run.
        config: Peak, shares of the rise and the fall, and the form of the fall.
    """
    warmup_steps = config.warmup * total_steps
    decay_steps = config.decay * (total_steps - warmup_steps)
    rise = min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0
    left = min(1.0, (total_steps - step) / decay_steps) if decay_steps else 1.0
    fall = left if config.decay_shape == "linear" else (1 - math.cos(math.pi * left)) / 2
    return config.lr * min(rise, config.final_lr + (1 - config.final_lr) * fall)
