"""Next word or character: text or token ids in, the likeliest next tokens out; and a text continued one by one."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from service import text
from service.contract import ContractError, ModelConfig, NextWord
from service.engine.sampling import Sampling, choose, uniforms
from service.errors import Invalid
from service.sessions.session import Chunk
from service.tasks.protocol import (
    Outputs,
    Parameters,
    check_top_k,
    chunk_of_steps,
    join_pieces,
    kind,
    listed,
)
from service.tasks.vocabulary import read_vocabulary

_DEFAULT_TOP_K = 5
_FULL = ("logits",)
# Stands before a text whose past is not known.
_SOME_WORD = "word"
_NO_ID = -1
_INTEGERS = frozenset((int,))
# Characters of an unknown word that an error repeats.
_SHOWN = 40


@dataclass(frozen=True, slots=True)
class Generation:
    """What to generate.

    Attributes:
        sampling: How each token is chosen.
        max_tokens: Most tokens.
        seed: The same seed and model give the same tokens.
        stop: The text ends before the first of these.
        ignore_eos: Go on past the end-of-line token instead of ending there.
    """

    sampling: Sampling
    max_tokens: int
    seed: int
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False


@dataclass(frozen=True, slots=True)
class Token:
    """One generated token.

    Attributes:
        index: Its number, from 0.
        id: Its id in the vocabulary.
        token: The word or character.
        logprob: Its log-probability under the model, before sampling settings.
        text: What it adds to the running text; empty while it may be part of a stop string.
        finish: `length`, `stop` or `eos` on the last token.
        seq: Inputs of the session committed with it, where there is a session.
    """

    index: int
    id: int
    token: str
    logprob: float
    text: str
    finish: str | None = None
    seq: int | None = None


@dataclass(frozen=True, slots=True)
class Running:
    """Running text at its end.

    Attributes:
        previous: The last token; None at the start of a line.
        unsent: Text held back, since it may begin a stop string.
    """

    previous: str | None = None
    unsent: str = ""


@dataclass(slots=True)
class Written:
    """A text as far as it is generated; enough to go on from.

    Attributes:
        tokens: Tokens given out.
        running: The end of their text.
        pending: A token chosen and on its way into the model, and the end of the text with it.
    """

    tokens: list[Token] = field(default_factory=list)
    running: Running | None = None
    pending: tuple[Token, Running] | None = None

    def settle(self, seq: int | None) -> Token:
        """The pending token has been applied: it belongs to the text now."""
        assert self.pending is not None
        token, self.running = self.pending
        self.pending = None
        self.tokens.append(replace(token, seq=seq))
        return self.tokens[-1]

    @property
    def text(self) -> str:
        """All text so far."""
        return "".join(token.text for token in self.tokens)


Step = Callable[[Chunk, tuple[str, ...]], Awaitable[tuple[Outputs, int | None]]]
"""Feeds a chunk; takes the outputs wanted beside the task's own; gives outputs and the session's seq, if any."""


class NextWordTask:
    """A language model over words or characters.

    Args:
        config: Of a model whose task is `NextWord`.
        spec: That task.
        tokenizer: Content of its tokenizer file.

    Raises:
        ContractError: The tokenizer cannot be read, or does not fit the vocabulary.
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
        if spec.level == "character" and any(len(token) != 1 for token in vocabulary):
            raise ContractError(f"{spec.tokenizer} has tokens of several characters")
        self._unknown = self._id_of(spec.unknown_token)
        self._end = self._id_of(spec.end_token)

    def _id_of(self, word: str | None) -> int:
        if word is None:
            return _NO_ID
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

    def chunk(self, values: Sequence[Any], path: str, parameters: Parameters) -> Chunk:
        """See `Task.chunk`."""
        if _INTEGERS.issuperset(map(type, values)) and self._are_ids(values):
            return chunk_of_steps(
                {self._input.name: np.array(values, self._input.dtype)}, parameters
            )
        pieces = [self.piece(value, f"{path}[{i}]") for i, value in enumerate(values)]
        return join_pieces(pieces, parameters)

    def _are_ids(self, values: Sequence[int]) -> bool:
        return min(values) >= 0 and max(values) < self._spec.vocab_size

    def _ids_of(self, value: str, path: str) -> list[int]:
        tokens = self._split(value)
        if not tokens:
            raise Invalid(f"the text has no {self._spec.level}s", path=path)
        if self._spec.unknown_token is None:
            self._refuse_unknown(tokens, path)
            return [self._ids[token] for token in tokens]
        return [self._ids.get(token, self._unknown) for token in tokens]

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
        """See `Task.answers`: `[{"token", "id", "score"}]`, the likeliest first; score is a probability."""
        top_k = parameters.top_k or _DEFAULT_TOP_K
        words, exp = self._words, math.exp
        # Numbers of Python: for a handful of candidates an operation of numpy takes longer than all of this.
        rows = zip(
            outputs["top_indices"][:, :top_k].tolist(),
            outputs["top_scores"][:, :top_k].tolist(),
            outputs["logsumexp"].tolist(),
            strict=True,
        )
        return [
            [
                {"token": words[i], "id": i, "score": exp(score - logsumexp)}
                for i, score in zip(indices, scores, strict=True)
            ]
            for indices, scores, logsumexp in rows
        ]

    def whole_answer(self, value: Any, outputs: Outputs, parameters: Parameters) -> Any:
        """See `Task.whole_answer`: the likeliest tokens after the text."""
        return self.answers((value,), outputs, parameters)[0]

    # Generation.

    async def generate(
        self,
        step: Step,
        first: Chunk | Outputs,
        wanted: Generation,
        written: Written,
        *,
        feed_last: bool,
    ) -> AsyncGenerator[Token]:
        """Continue a text.

        Args:
            step: Feeds the model.
            first: A prompt to feed, or the outputs to go on from.
            wanted: What to generate.
            written: Filled with every token; what it already holds is not generated again.
            feed_last: Whether the last token is fed too, so that a session holds all of the text.

        Yields:
            Tokens, the last one with `finish` set. A token is fed before it is given out, but the last one where
            `feed_last` is false.

        Raises:
            Invalid: All of the vocabulary is to be sampled, and the outputs to go on from do not hold it.
        """
        passing = _FULL if self._needs_all(wanted.sampling) else ()
        if written.running is None:
            written.running = self._end_of(first)
        outputs = (await step(first, passing))[0] if isinstance(first, Chunk) else first
        random = uniforms(wanted.seed, wanted.max_tokens)
        while len(written.tokens) < wanted.max_tokens:
            token, running = self._next(outputs, wanted, written, random)
            written.pending = (token, running)
            seq = None
            if token.finish is None or feed_last:
                chunk = Chunk(
                    {self._input.name: np.array([token.id], self._input.dtype)},
                    np.zeros(1, np.intp),
                )
                outputs, seq = await step(chunk, passing)
            yield written.settle(seq)
            if token.finish is not None:
                return

    def _end_of(self, first: Chunk | Outputs) -> Running:
        """Where the text stands before the first token; some word or other when it is not known."""
        if not isinstance(first, Chunk):
            return Running(_SOME_WORD)
        last = int(first.arrays[self._input.name][-1])
        return Running(None if last == self._end else self._words[last])

    def _next(
        self, outputs: Outputs, wanted: Generation, written: Written, random: npt.NDArray[Any]
    ) -> tuple[Token, Running]:
        index = len(written.tokens)
        chosen, logprob = self._choose(outputs, wanted.sampling, random[index])
        finish = "length" if index + 1 == wanted.max_tokens else None
        if chosen == self._end and not wanted.ignore_eos:
            finish = "eos"
        assert written.running is not None, "`generate` says where the text stands"
        delta, running = self._write(written.running, chosen)
        delta, held, stopped = _until_stop(delta, wanted.stop, last=finish is not None)
        token = Token(
            index, chosen, self._words[chosen], logprob, delta, "stop" if stopped else finish
        )
        return token, replace(running, unsent=held)

    def _needs_all(self, sampling: Sampling) -> bool:
        # One more than top_k, since the unknown token may be among the best and is never chosen.
        return sampling.temperature > 0 and not 0 < sampling.top_k < self._spec.top_k

    def _choose(self, outputs: Outputs, sampling: Sampling, uniform: float) -> tuple[int, float]:
        logsumexp = float(outputs["logsumexp"][-1])
        if self._needs_all(sampling):
            if "logits" not in outputs:
                raise Invalid(
                    f"going on without inputs needs top_k 1 to {self._spec.top_k - 1}",
                    path="$.top_k",
                )
            logits = outputs["logits"][-1]
            ids = np.argsort(-logits, kind="stable")
            scores = logits[ids]
        else:
            ids, scores = outputs["top_indices"][-1], outputs["top_scores"][-1]
        banned = (ids == self._unknown)[None]
        at = int(choose(scores[None], sampling, np.array([uniform]), banned)[0])
        return int(ids[at]), float(scores[at]) - logsumexp

    def _write(self, running: Running, chosen: int) -> tuple[str, Running]:
        """Text with a token added that is not sent yet, and its new end."""
        if chosen == self._end:
            # A line ends here, and the next word begins one.
            return running.unsent + "\n", Running()
        word = self._words[chosen]
        if self._spec.level == "character":
            return running.unsent + word, Running(word)
        addition = text.separator(running.previous, word) + text.surface(word)
        return running.unsent + addition, Running(word)


def _until_stop(pending: str, stop: tuple[str, ...], *, last: bool) -> tuple[str, str, bool]:
    """What of a text may be sent now, what is held back, and whether a stop string was met."""
    cuts = [at for s in stop if (at := pending.find(s)) >= 0]
    if cuts:
        return pending[: min(cuts)], "", True
    held = 0 if last else max((_overlap(pending, s) for s in stop), default=0)
    return pending[: len(pending) - held], pending[len(pending) - held :], False


def _overlap(text_: str, stop: str) -> int:
    """Length of the longest end of the text that a stop string may still continue."""
    for length in range(min(len(text_), len(stop) - 1), 0, -1):
        if stop.startswith(text_[-length:]):
            return length
    return 0
