"""Tasks whose inputs are numbers: a label for each step, or raw tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from service.contract import Labels, ModelConfig, Tensor
from service.errors import Invalid
from service.sessions.session import Chunk
from service.tasks.protocol import (
    NO_CANDIDATES,
    Outputs,
    Parameters,
    check_top_k,
    chunk_of,
    listed,
)
from service.tasks.vectors import Array, finite, vector, vectors


class LabelsTask:
    """One label for each step, in the shape of Hugging Face's classification: `{"label", "score"}`.

    Args:
        config: Of a model whose task is `Labels`.
        spec: That task.
    """

    outputs: tuple[str, ...] = ("scores",)
    every_step = False
    text = False
    candidates = NO_CANDIDATES

    def __init__(self, config: ModelConfig, spec: Labels) -> None:
        (self._input,) = config.inputs
        self._labels = spec.labels
        self._symbols = {name: number for number, name in enumerate(spec.symbols)}
        # (symbols, *shape)
        self._vectors = np.array(list(spec.symbols.values()), self._input.dtype)

    def check(self, parameters: Parameters) -> None:
        """See `Task.check`."""
        check_top_k(parameters, len(self._labels))

    def piece(self, value: Any, path: str) -> dict[str, npt.NDArray[Any]]:
        """See `Task.piece`: the name of a symbol, or a vector."""
        if isinstance(value, str):
            if value not in self._symbols:
                known = ", ".join(self._symbols) or "none"
                raise Invalid(f"{value!r} is not a symbol of this model; known: {known}", path=path)
            return {self._input.name: self._vectors[[self._symbols[value]]]}
        return {self._input.name: vector(value, self._input, path)[None]}

    def together(self, values: Sequence[Any]) -> dict[str, Array] | None:
        """See `Task.together`: symbols, or vectors."""
        array = self._named(values) if isinstance(values[0], str) else vectors(values, self._input)
        return None if array is None else {self._input.name: array}

    def _named(self, values: Sequence[Any]) -> Array | None:
        """The vectors of symbols, (T, *shape); None when one is none."""
        try:
            return self._vectors[[self._symbols[name] for name in values]]
        except (KeyError, TypeError):
            return None

    def packed_input(self, path: str) -> Tensor:
        """See `Task.packed_input`."""
        return self._input

    def takes(self, array: Array) -> bool:
        """See `Task.takes`: finite numbers."""
        return finite(array)

    def whole(self, value: Any, path: str) -> Chunk:
        """See `Task.whole`: a list of symbols or vectors."""
        return chunk_of(self, listed(value, path), path, Parameters())

    def answers(self, inputs: Sequence[Any], outputs: Outputs, parameters: Parameters) -> list[Any]:
        """See `Task.answers`: the best label, or the `top_k` best."""
        return [self._answer(scores, parameters.top_k) for scores in outputs["scores"]]

    def whole_answer(self, value: Any, outputs: Outputs, parameters: Parameters) -> Any:
        """See `Task.whole_answer`: an answer for each step."""
        return self.answers(value, outputs, parameters)

    def _answer(self, scores: npt.NDArray[Any], top_k: int | None) -> Any:
        best = (-scores).argsort(kind="stable")[: top_k or 1].tolist()
        named = [{"label": self._labels[i], "score": float(scores[i])} for i in best]
        return named[0] if top_k is None else named


class TensorsTask:
    """Numbers in, numbers out: `{output: value}` for each step.

    Args:
        config: Of a model whose task is `Tensors`.
    """

    every_step = False
    text = False
    candidates = NO_CANDIDATES

    def __init__(self, config: ModelConfig) -> None:
        self._inputs = config.inputs
        self.outputs = tuple(tensor.name for tensor in config.outputs)

    def check(self, parameters: Parameters) -> None:
        """See `Task.check`."""
        if parameters.top_k is not None:
            raise Invalid("this model has no candidates to choose from", path="$.parameters.top_k")

    def piece(self, value: Any, path: str) -> dict[str, npt.NDArray[Any]]:
        """See `Task.piece`: a value, or an object with a value for each input when there are several."""
        if len(self._inputs) == 1 and not isinstance(value, dict):
            (tensor,) = self._inputs
            return {tensor.name: vector(value, tensor, path)[None]}
        names = {t.name for t in self._inputs}
        if not isinstance(value, dict) or value.keys() != names:
            raise Invalid(f"an object with {', '.join(sorted(names))} is due here", path=path)
        return {t.name: vector(value[t.name], t, f"{path}.{t.name}")[None] for t in self._inputs}

    def together(self, values: Sequence[Any]) -> dict[str, Array] | None:
        """See `Task.together`: of a single input."""
        if len(self._inputs) > 1:
            return None
        (tensor,) = self._inputs
        array = vectors(values, tensor)
        return None if array is None else {tensor.name: array}

    def packed_input(self, path: str) -> Tensor:
        """See `Task.packed_input`: a single input."""
        if len(self._inputs) > 1:
            names = ", ".join([tensor.name for tensor in self._inputs])
            raise Invalid(
                f"packed inputs are of one tensor; this model takes several ({names})", path=path
            )
        return self._inputs[0]

    def takes(self, array: Array) -> bool:
        """See `Task.takes`: finite numbers."""
        return finite(array)

    def whole(self, value: Any, path: str) -> Chunk:
        """See `Task.whole`: a list of values, one for each step."""
        return chunk_of(self, listed(value, path), path, Parameters())

    def answers(self, inputs: Sequence[Any], outputs: Outputs, parameters: Parameters) -> list[Any]:
        """See `Task.answers`."""
        if len(self.outputs) == 1:
            (name,) = self.outputs
            return [{name: value} for value in outputs[name].tolist()]
        columns = {name: outputs[name].tolist() for name in self.outputs}
        steps = range(len(next(iter(columns.values()))))
        return [{name: column[i] for name, column in columns.items()} for i in steps]

    def whole_answer(self, value: Any, outputs: Outputs, parameters: Parameters) -> Any:
        """See `Task.whole_answer`: an answer for each step."""
        return self.answers(value, outputs, parameters)
