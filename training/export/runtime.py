"""An exported graph in ONNX Runtime, one sequence or batch at a time. The only file here that touches the runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from service.contract import ModelConfig

Array = npt.NDArray[Any]
Arrays = dict[str, Array]

_ROWS = 64


class LoadedGraph:
    """A graph on the CPU.

    Args:
        model: Content of the ONNX file.
        config: Names of its inputs, outputs and state.
        as_written: Whether the runtime leaves the nodes as they are in the file. It cannot take some float16 graphs
            otherwise: its layouts for convolutions end the process (1.31).
    """

    def __init__(self, model: bytes, config: ModelConfig, *, as_written: bool = False) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        # That an input has a default is worth a warning to it.
        options.log_severity_level = 3
        if as_written:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        self._session = onnxruntime.InferenceSession(
            model, options, providers=["CPUExecutionProvider"]
        )
        self.config = config

    def initial_state(self, batch_size: int) -> Arrays:
        """State of fresh sessions, (B, *shape) each, by input name."""
        return {
            state.input_name: np.stack([state.initial_array()] * batch_size)
            for state in self.config.state
        }

    def run(
        self, inputs: Mapping[str, Array], lengths: Array, state: Arrays, *names: str
    ) -> tuple[Arrays, Arrays]:
        """Apply the graph once.

        Args:
            inputs: (B, T, *shape) each.
            lengths: Valid time steps of each row (B,).
            state: (B, *shape) each, by input name.
            names: Outputs wanted; all of them if none is named.

        Returns:
            Outputs (B, T, *shape) by name, and the next state (B, *shape) by input name.
        """
        outputs = list(names) or [output.name for output in self.config.outputs]
        states = [part.output_name for part in self.config.state]
        feeds = {**inputs, self.config.lengths: lengths.astype(np.int32), **state}
        values = self._session.run([*outputs, *states], feeds)
        after = zip(self.config.state, values[len(outputs) :], strict=True)
        return (
            dict(zip(outputs, values, strict=False)),
            {part.input_name: value for part, value in after},
        )

    def whole(self, texts: Sequence[Mapping[str, Array]], output: str) -> list[Array]:
        """An output (T, *shape) of each of many texts, from its beginning.

        Args:
            texts: Inputs of each, (T, *shape) by name. Texts of similar length run side by side, padded with zeros.
            output: Its name.
        """
        lengths = np.array([len(next(iter(text.values()))) for text in texts])
        result: list[Array] = [np.zeros(0)] * len(texts)
        order = np.argsort(lengths, kind="stable")
        for start in range(0, len(order), _ROWS):
            rows = order[start : start + _ROWS]
            inputs = {
                name: np.zeros((len(rows), lengths[rows].max(), *values.shape[1:]), values.dtype)
                for name, values in texts[rows[0]].items()
            }
            for name, batch in inputs.items():
                for place, row in enumerate(rows):
                    batch[place, : lengths[row]] = texts[row][name]
            outputs, _ = self.run(inputs, lengths[rows], self.initial_state(len(rows)), output)
            for place, row in enumerate(rows):
                result[row] = outputs[output][place, : lengths[row]]
        return result
