"""What an export consists of before it is a directory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import msgspec

from service.contract import Metric, ModelConfig, VariantName
from training.export.runtime import Array, Arrays, LoadedGraph


class Original(Protocol):
    """The model that the graph must equal, as it computes one sequence."""

    def __call__(self, inputs: Arrays, state: Arrays) -> tuple[Arrays, Arrays]:
        """From inputs (T, *shape) and a state: outputs (T, *shape) by name, the last state by input name."""


class Case(msgspec.Struct, frozen=True):
    """A golden input and the chunks it is also fed in."""

    inputs: Arrays
    split: tuple[int, ...]


class Bundle(msgspec.Struct, frozen=True, kw_only=True):
    """A model ready to be checked and written.

    Attributes:
        config: All that is known before the files exist; hashes and metrics are filled in when they do.
        model: Content of model.onnx.
        original: What the graph must equal.
        sample: Makes inputs (T, *shape) of a length T from a random number, for the parity gate.
        cases: Golden inputs.
        golden_outputs: Outputs worth storing.
        files: Further files that the service reads.
        measure: Quality of the loaded graph.
        card: Sections of the model card between its title and the table of quality.
        curve: Picture of the training for the card, PNG; empty if nothing was logged.
        variants: What cheaper arithmetic it is also written in.
    """

    config: ModelConfig
    model: bytes
    original: Original
    sample: Callable[[int, int], Arrays]
    cases: tuple[Case, ...]
    golden_outputs: tuple[str, ...]
    measure: Callable[[LoadedGraph], tuple[Metric, ...]]
    card: str
    curve: bytes = b""
    variants: tuple[VariantName, ...] = ()
    files: dict[str, bytes] = {}


def initial_state(config: ModelConfig) -> dict[str, Array]:
    """State of one fresh session, by input name."""
    return {state.input_name: state.initial_array() for state in config.state}
