"""Sentiment: some words in, labels out, the likeliest first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from service import text
from service.contract import ModelConfig, Sentiment, Tensor
from service.errors import Invalid
from service.sessions.session import Chunk
from service.tasks.protocol import (
    NO_CANDIDATES,
    Outputs,
    Parameters,
    check_top_k,
    join_pieces,
    kind,
    words_alone,
)
from service.tasks.vocabulary import read_vocabulary


class SentimentTask:
    """Labels of a text, in the shape of Hugging Face's classification: `[{"label", "score"}]`.

    Args:
        config: Of a model whose task is `Sentiment`.
        spec: That task.
        tokenizer: Content of its tokenizer file.

    Raises:
        ContractError: The tokenizer cannot be read, or does not fit the vocabulary.
    """

    outputs: tuple[str, ...] = ("scores",)
    every_step = False
    text = True
    candidates = NO_CANDIDATES

    def __init__(self, config: ModelConfig, spec: Sentiment, tokenizer: bytes) -> None:
        vocabulary = read_vocabulary(tokenizer, spec)
        (self._input,) = config.inputs
        self._ids = vocabulary
        self._unknown = vocabulary[spec.unknown_token]
        self._labels = spec.labels

    def check(self, parameters: Parameters) -> None:
        """See `Task.check`."""
        check_top_k(parameters, len(self._labels))

    def piece(self, value: Any, path: str) -> dict[str, npt.NDArray[Any]]:
        """See `Task.piece`: some words."""
        if not isinstance(value, str):
            raise Invalid(f"a text is due here, got {kind(value)}", path=path)
        ids = self._ids_of(value)
        if not ids:
            raise Invalid("the text has no words", path=path)
        return {self._input.name: np.array(ids, self._input.dtype)}

    def _ids_of(self, value: str) -> list[int]:
        ids = [text.known_form(word, self._ids) for word in text.plain_words(value)]
        return [self._unknown if i is None else i for i in ids]

    def together(self, values: Sequence[Any]) -> dict[str, npt.NDArray[Any]] | None:
        """See `Task.together`: texts of one word."""
        ids = words_alone(values, self._ids_of)
        return None if ids is None else {self._input.name: np.array(ids, self._input.dtype)}

    def packed_input(self, path: str) -> Tensor:
        """See `Task.packed_input`: texts are none."""
        raise Invalid("this model takes texts; packed inputs are numbers or token ids", path=path)

    def takes(self, array: npt.NDArray[Any]) -> bool:
        """See `Task.takes`."""
        return False

    def whole(self, value: Any, path: str) -> Chunk:
        """See `Task.whole`: a text."""
        return join_pieces([self.piece(value, path)], Parameters())

    def answers(self, inputs: Sequence[Any], outputs: Outputs, parameters: Parameters) -> list[Any]:
        """See `Task.answers`: all labels or the `top_k` best, as of the last word of each input."""
        return [self._answer(scores, parameters.top_k) for scores in outputs["scores"].tolist()]

    def whole_answer(self, value: Any, outputs: Outputs, parameters: Parameters) -> Any:
        """See `Task.whole_answer`: all labels or the `top_k` best of the text."""
        return self.answers((value,), outputs, parameters)[0]

    def _answer(self, scores: list[float], top_k: int | None) -> list[dict[str, Any]]:
        best = sorted(range(len(scores)), key=lambda i: -scores[i])[:top_k]
        return [{"label": self._labels[i], "score": scores[i]} for i in best]
