"""A loaded model held against the answers of the one that was trained."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from service.contract import ContractError, Golden
from service.engine.graph import Array, Runs


def check_golden(graph: Runs, golden: Golden) -> None:
    """Compare the loaded graph with the answers of the original model, in one pass and in steps.

    Raises:
        ContractError: A number differs by more than `config.tolerance`; says which and by how much.
    """
    names = {tensor.name for tensor in graph.config.inputs}
    for number, case in enumerate(golden.cases):
        total = sum(case.split)
        if case.inputs.keys() != names:
            raise ContractError(f"golden.json case {number}: inputs are {', '.join(case.inputs)}")
        if {len(values) for values in case.inputs.values()} != {total} or min(case.split) < 1:
            raise ContractError(
                f"golden.json case {number}: split {case.split} does not add up to the inputs"
            )
        # A model that cannot be stepped gives no other answer to the parts of a text.
        for split in ((total,), case.split) if graph.config.streaming else ((total,),):
            outputs, state = _fold(graph, case.inputs, split)
            for expected, actual in ((case.outputs, outputs), (case.state, state)):
                for name, values in expected.items():
                    _compare(f"case {number}, chunks {split}, {name}", values, actual, name, graph)


def _compare(
    where: str, values: list[Any], actual: dict[str, Array], name: str, graph: Runs
) -> None:
    if name not in actual:
        raise ContractError(f"golden.json {where}: the model has no such output")
    expected = np.asarray(values, dtype=np.float64)
    if expected.shape != actual[name].shape:
        raise ContractError(
            f"golden.json {where}: shape {actual[name].shape}, expected {expected.shape}"
        )
    difference = float(np.max(np.abs(actual[name] - expected), initial=0.0))
    if not difference <= graph.config.tolerance or math.isnan(difference):
        raise ContractError(
            f"golden.json {where}: differs by {difference:.3g}, tolerance {graph.config.tolerance:.3g}"
        )


def _fold(
    graph: Runs, inputs: Mapping[str, list[Any]], split: Sequence[int]
) -> tuple[dict[str, Array], dict[str, Array]]:
    """Feed one sequence in chunks; returns all outputs (T, ...) and the last state by output name."""
    config = graph.config
    feeds = graph.scratch_feeds(1, 1)
    arrays = {t.name: np.asarray(inputs[t.name], t.dtype) for t in config.inputs}
    outputs = [t.name for t in config.outputs]
    states = [s.output_name for s in config.state]
    collected: list[dict[str, Array]] = []
    start = 0
    for length in split:
        feeds |= {name: array[None, start : start + length] for name, array in arrays.items()}
        feeds[config.lengths] = np.array([length], np.int32)
        result = graph.run(feeds, outputs + states)
        feeds |= {s.input_name: result[s.output_name] for s in config.state}
        collected.append(result)
        start += length
    joined = {name: np.concatenate([part[name][0] for part in collected]) for name in outputs}
    return joined, {name: collected[-1][name][0] for name in states}
