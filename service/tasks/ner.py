"""Named entities: a text in, its persons, places and organisations out, by their place in the text.

A text keeps every character: `text[start:end]` is the word of an entity, whatever blanks and marks stand around it.
In a session each input is the next piece of a text. Its answer is the entities of that piece as all words so far have
them; an entity that began in the piece before says so by `"continues": true`. Nothing is taken back: what the next
piece tells of this one is not told.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy.typing as npt

from service.contract import ModelConfig, Ner, Tensor
from service.entities import Chain, Entity, WordNumbers, places
from service.errors import Invalid
from service.sessions.session import Chunk
from service.tasks.protocol import (
    NO_CANDIDATES,
    Outputs,
    Parameters,
    join_pieces,
    kind,
    words_alone,
)
from service.tasks.vocabulary import read_known
from service.text import composed


class NerTask:
    """Entities in the shape of Hugging Face's: `[{"entity_group", "score", "word", "start", "end"}]`.

    `start` and `end` count characters of the input (Unicode code points); `score` is the probability that exactly
    these words are one entity of that kind.

    Args:
        config: Of a model whose task is `Ner`.
        spec: That task.
        files: Content of its files, by name.

    Raises:
        ContractError: A file cannot be read, or the tokenizer does not fit the vocabulary.
    """

    outputs: tuple[str, ...] = ("scores",)
    every_step = True
    text = True
    candidates = NO_CANDIDATES

    def __init__(self, config: ModelConfig, spec: Ner, files: Mapping[str, bytes]) -> None:
        ids = read_known(files, spec)
        (width,) = next(tensor.shape for tensor in config.inputs if tensor.shape)
        self._numbers = WordNumbers(ids, ids[spec.unknown_token], spec.characters, width)
        self._chain = Chain(spec.labels, spec.transitions)

    def check(self, parameters: Parameters) -> None:
        """See `Task.check`."""
        if parameters.top_k is not None:
            raise Invalid("entities are found, not chosen from", path="$.parameters.top_k")

    def piece(self, value: Any, path: str) -> dict[str, npt.NDArray[Any]]:
        """See `Task.piece`: some words."""
        if not isinstance(value, str):
            raise Invalid(f"a text is due here, got {kind(value)}", path=path)
        words = _words(value)
        if not words:
            raise Invalid("the text has no words", path=path)
        return self._numbers(words)

    def together(self, values: Sequence[Any]) -> dict[str, npt.NDArray[Any]] | None:
        """See `Task.together`: texts of one word."""
        words = words_alone(values, _words)
        return None if words is None else self._numbers(words)

    def packed_input(self, path: str) -> Tensor:
        """See `Task.packed_input`: texts are none."""
        raise Invalid("this model takes texts; packed inputs are numbers or token ids", path=path)

    def takes(self, array: npt.NDArray[Any]) -> bool:
        """See `Task.takes`."""
        return False

    def whole(self, value: Any, path: str) -> Chunk:
        """See `Task.whole`: a text."""
        return join_pieces([self.piece(value, path)], Parameters(), every_step=True)

    def answers(self, inputs: Sequence[Any], outputs: Outputs, parameters: Parameters) -> list[Any]:
        """See `Task.answers`: the entities of each piece of a text."""
        scores = outputs["scores"]
        found, first = [], 0
        for text in inputs:
            words = places(text)
            found.append(self._entities(text, words, scores[first : first + len(words)]))
            first += len(words)
        return found

    def whole_answer(self, value: Any, outputs: Outputs, parameters: Parameters) -> Any:
        """See `Task.whole_answer`: the entities of a text."""
        return self.answers((value,), outputs, parameters)[0]

    def _entities(
        self, text: str, words: Sequence[tuple[int, int]], scores: npt.NDArray[Any]
    ) -> list[dict[str, Any]]:
        return [
            _told(text, words[entity.first][0], words[entity.end - 1][1], entity)
            for entity in self._chain.entities(scores)
        ]


def _told(text: str, start: int, end: int, entity: Entity) -> dict[str, Any]:
    told: dict[str, Any] = {
        "entity_group": entity.kind,
        "score": entity.score,
        "word": text[start:end],
        "start": start,
        "end": end,
    }
    return told | {"continues": True} if entity.continues else told


def _words(value: str) -> list[str]:
    return [composed(value[start:end]) for start, end in places(value)]
