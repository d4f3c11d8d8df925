"""Next word or character: text or token ids in, the likeliest next tokens out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from service import text
from service.contract import ContractError, ModelConfig, NextWord, Tensor
from service.errors import Invalid
from service.sessions.session import Chunk
from service.tasks.generation import Writer
from service.tasks.protocol import (
    Candidates,
    Outputs,
    Parameters,
    check_top_k,
    join_pieces,
    kind,
    listed,
    top_k_of,
    words_alone,
)
from service.tasks.vocabulary import read_vocabulary

_DEFAULT_TOP_K = 5
# The first token of a text that goes on from a step is one of these.
_KEPT = 16
_INTEGERS = frozenset((int,))
_TEXTS = frozenset((str,))
# Characters of an unknown word that an error repeats.
_SHOWN = 40


class Candidate(msgspec.Struct, gc=False):
    """A token that may come next.

    Attributes:
        token: Word or character.
        id: Its number in the vocabulary.
        score: Its probability.
    """

    token: str
    id: int
    score: float


class NextWordTask:
    """A language model over words or characters.

    Args:
        config: Of a model whose task is `NextWord`.
        spec: That task.
        tokenizer: Content of its tokenizer file.

    Raises:
        ContractError: The tokenizer cannot be read, or does not fit the vocabulary.

    Attributes:
        writer: Continues texts.
    """

    outputs: tuple[str, ...] = ("top_scores", "top_indices", "logsumexp")
    every_step = False
    text = True

    def __init__(self, config: ModelConfig, spec: NextWord, tokenizer: bytes) -> None:
        vocabulary = read_vocabulary(tokenizer, spec)
        self._ids = vocabulary
        self._words = sorted(vocabulary, key=vocabulary.__getitem__)
        (self._input,) = config.inputs
        self._spec = spec
        self.candidates = Candidates(min(_DEFAULT_TOP_K, spec.top_k), min(_KEPT, spec.top_k))
        if spec.level == "character" and any(len(token) != 1 for token in vocabulary):
            raise ContractError(f"{spec.tokenizer} has tokens of several characters")
        # Those that stay whole in any text: all, unless one has a blank in it.
        whole = spec.level == "character" or " ".join(self._words).split() == self._words
        self._alone: Mapping[Any, int] = vocabulary if whole else {}
        self._unknown = self._id_of(spec.unknown_token)
        end = self._id_of(spec.end_token)
        self.writer = Writer(spec, self._words, self._unknown, end, self._input)

    def _id_of(self, word: str | None) -> int | None:
        if word is None:
            return None
        if word not in self._ids:
            raise ContractError(f"{self._spec.tokenizer} has no {word!r}")
        return self._ids[word]

    # Text to tensors.

    def check(self, parameters: Parameters) -> None:
        """See `Task.check`."""
        check_top_k(parameters, self._spec.top_k)

    def piece(self, value: Any, path: str) -> dict[str, npt.NDArray[Any]]:
        """See `Task.piece`: some text, or one token id."""
        if isinstance(value, str):
            ids = self._ids_of(value, path)
        elif isinstance(value, int) and not isinstance(value, bool):
            if not 0 <= value < self._spec.vocab_size:
                raise Invalid(
                    f"token {value} is out of range; the vocabulary has 0 to {self._spec.vocab_size - 1}",
                    path=path,
                )
            ids = [value]
        else:
            raise Invalid(f"text or a token id is due here, got {kind(value)}", path=path)
        return {self._input.name: np.array(ids, self._input.dtype)}

    def together(self, values: Sequence[Any]) -> dict[str, npt.NDArray[Any]] | None:
        """See `Task.together`: token ids, or texts of one word or character."""
        texts = _TEXTS.issuperset(map(type, values))
        ids: list[Any] = [*map(self._alone.get, values)] if texts else [*values]
        if not _INTEGERS.issuperset(map(type, ids)):
            found = words_alone(values, self._ids_if_known)
            if found is None:
                return None
            ids = found
        if not self._are_ids(ids):
            return None
        return {self._input.name: np.array(ids, self._input.dtype)}

    def _ids_if_known(self, value: str) -> list[int]:
        try:
            return self._ids_of(value, "")
        except Invalid:
            return []

    def packed_input(self, path: str) -> Tensor:
        """See `Task.packed_input`: token ids."""
        return self._input

    def takes(self, array: npt.NDArray[Any]) -> bool:
        """See `Task.takes`: ids of the vocabulary."""
        return bool(array.min() >= 0 and array.max() < self._spec.vocab_size)

    def _are_ids(self, values: Sequence[int]) -> bool:
        return min(values) >= 0 and max(values) < self._spec.vocab_size

    def _ids_of(self, value: str, path: str) -> list[int]:
        tokens = self._split(value)
        if not tokens:
            raise Invalid(f"the text has no {self._spec.level}s", path=path)
        unknown = self._unknown
        if unknown is None:
            self._refuse_unknown(tokens, path)
            return [self._ids[token] for token in tokens]
        return [self._ids.get(token, unknown) for token in tokens]

    def _split(self, value: str) -> list[str]:
        if self._spec.level == "character":
            return list(value)
        return text.words(value, self._ids.__contains__)

    def _refuse_unknown(self, tokens: list[str], path: str) -> None:
        for place, token in enumerate(tokens):
            if token not in self._ids:
                level, size = self._spec.level, self._spec.vocab_size
                raise Invalid(
                    f"{level} {place} of the text (from 0) is {token[:_SHOWN]!r}; the model knows {size} others",
                    path=path,
                )

    def whole(self, value: Any, path: str) -> Chunk:
        """See `Task.whole`: a text, or a list of texts and token ids that make one."""
        if isinstance(value, list):
            pieces = [self.piece(v, f"{path}[{i}]") for i, v in enumerate(listed(value, path))]
        else:
            pieces = [self.piece(value, path)]
        chunk = join_pieces(pieces, Parameters())
        return Chunk(chunk.arrays, chunk.ends[-1:])

    # Tensors to tokens.

    def answers(self, inputs: Sequence[Any], outputs: Outputs, parameters: Parameters) -> list[Any]:
        """See `Task.answers`: a list of `Candidate`, the likeliest first."""
        top_k = top_k_of(self.candidates, parameters)
        ids = outputs["top_indices"][:, :top_k]
        scores = outputs["top_scores"][:, :top_k].astype(np.float64)
        logs = scores - outputs["logsumexp"].astype(np.float64)[:, None]
        flat = ids.ravel().tolist()
        # One loop for all rows. Not numpy's `exp`: its last bit depends on how many numbers there are.
        tokens, likely = map(self._words.__getitem__, flat), map(math.exp, logs.ravel().tolist())
        candidates = [*map(Candidate, tokens, flat, likely)]
        width = ids.shape[1]
        return [candidates[first : first + width] for first in range(0, len(flat), width)]

    def whole_answer(self, value: Any, outputs: Outputs, parameters: Parameters) -> Any:
        """See `Task.whole_answer`: the likeliest tokens after the text."""
        return self.answers((value,), outputs, parameters)[0]
