"""golden.json: what the original model answers, rounded to what float32 can tell apart."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from service.contract import Golden, GoldenCase
from training.export.bundle import Bundle, Case, initial_state
from training.export.runtime import Array

SIGNIFICANT_DIGITS = 7
# Values of the largest state tensor worth writing down: a ring of keys would be megabytes of text. Whether it is
# right shows in what the next chunk answers.
LARGEST_STATE = 4096


def golden(bundle: Bundle) -> Golden:
    """The original's outputs and last state for every case of a bundle."""
    return Golden(cases=tuple(_answer(bundle, case) for case in bundle.cases))


def _answer(bundle: Bundle, case: Case) -> GoldenCase:
    outputs, state = bundle.original(case.inputs, initial_state(bundle.config))
    return GoldenCase(
        inputs={name: value.tolist() for name, value in case.inputs.items()},
        split=case.split,
        outputs={name: rounded(outputs[name]) for name in bundle.golden_outputs},
        state={
            part.output_name: rounded(state[part.input_name])
            for part in bundle.config.state
            if math.prod(part.shape) <= LARGEST_STATE
        },
    )


def rounded(values: Array) -> list[Any]:
    """Nested lists of an array, floats with seven significant digits."""
    if not np.issubdtype(values.dtype, np.floating):
        return _nested(values)
    short = [float(f"{value:.{SIGNIFICANT_DIGITS}g}") for value in values.ravel().tolist()]
    return _nested(np.array(short, dtype=np.float64).reshape(values.shape))


def _nested(values: Array) -> list[Any]:
    lists: list[Any] = values.tolist()
    return lists
