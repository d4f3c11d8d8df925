"""Texts that are written token by token: choosing the next ones of many at once, and joining each to its text.

No asyncio here, and no idea how the model is fed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from service import text
from service.contract import RANKED, NextWord, Tensor
from service.engine.sampling import Sampling, choose, choose_of_all
from service.errors import Invalid
from service.sessions.session import Chunk
from service.tasks.protocol import Outputs

_FULL = ("logits",)
_SCORES, _INDICES = RANKED
# Stands before a text whose past is not known.
_SOME_WORD = "word"
_FIRST = np.zeros(1, np.intp)


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


class Token(msgspec.Struct, frozen=True, gc=False):
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


class Running(msgspec.Struct, frozen=True, gc=False):
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
        if seq is not None:
            token = msgspec.structs.replace(token, seq=seq)
        self.tokens.append(token)
        return token

    @property
    def finished(self) -> bool:
        """Whether its last token is there."""
        return bool(self.tokens) and self.tokens[-1].finish is not None

    @property
    def text(self) -> str:
        """All text so far."""
        return "".join([token.text for token in self.tokens])


class Writer:
    """Continues texts over one vocabulary.

    Args:
        spec: The task.
        words: Every token, in order of its id.
        unknown: Id that is never generated, if there is one.
        end: Id that ends a line, if there is one.
        tokens: The model's input.

    Attributes:
        vocab_size: V.
    """

    def __init__(
        self,
        spec: NextWord,
        words: Sequence[str],
        unknown: int | None,
        end: int | None,
        tokens: Tensor,
    ) -> None:
        self.vocab_size = spec.vocab_size
        self._characters = spec.level == "character"
        self._top_k = spec.top_k
        self._words = words
        self._unknown = unknown
        self._end = end
        self._input = tokens

    def passing(self, sampling: Sampling) -> tuple[str, ...]:
        """Outputs that choosing takes beside the task's own."""
        # One more than top_k, since the unknown token may be among the best and is never chosen.
        candidates = sampling.temperature == 0 or 0 < sampling.top_k < self._top_k
        return () if candidates else _FULL

    def check(self, outputs: Outputs, sampling: Sampling) -> None:
        """Check that there is what to choose from.

        Raises:
            Invalid: All of the vocabulary is to be sampled, and the outputs to go on from do not hold it.
        """
        if any(name not in outputs for name in self.passing(sampling)):
            raise Invalid(
                f"going on without inputs needs top_k 1 to {self._top_k - 1}", path="$.top_k"
            )

    def end_of(self, first: Chunk | None) -> Running:
        """Where a text stands before its first token: after a prompt, or after some word or other."""
        if first is None:
            return Running(_SOME_WORD)
        last = int(first.arrays[self._input.name][-1])
        return Running(None if last == self._end else self._words[last])

    def choose(
        self,
        outputs: Sequence[Outputs],
        how: Sequence[Sampling],
        uniform: npt.NDArray[np.float64],
        passing: tuple[str, ...],
    ) -> list[tuple[int, float]]:
        """Choose the next token of each of R texts.

        Args:
            outputs: Of each text, as `check` passed them; the last time step counts.
            how: Settings of each.
            uniform: One number in [0, 1) for each, (R,).
            passing: What `passing` says of the settings, the same for all.

        Returns:
            Id of the token of each text, and its log-probability under the model.
        """
        rows = np.arange(len(how))
        if passing:
            logits = _last(outputs, "logits")
            ids = choose_of_all(logits, how, uniform, self._unknown)
            scores = logits[rows, ids]
        else:
            # Those of a step may be fewer; what is never chosen makes them up.
            width = max(each[_INDICES].shape[-1] for each in outputs)
            candidates = _last(_widened(outputs, _INDICES, width, -1), _INDICES)
            best = _last(_widened(outputs, _SCORES, width, -np.inf), _SCORES)
            banned = None if self._unknown is None else candidates == self._unknown
            at = choose(best, how, uniform, banned)
            ids, scores = candidates[rows, at], best[rows, at]
        logprobs = scores.astype(np.float64) - _last(outputs, "logsumexp").astype(np.float64)
        return list(zip(ids.tolist(), logprobs.tolist(), strict=True))

    def add(self, written: Written, wanted: Generation, chosen: int, logprob: float) -> Token:
        """Put a chosen token on its way: it is `written.pending` until it is settled."""
        index = len(written.tokens)
        finish = "length" if index + 1 == wanted.max_tokens else None
        if chosen == self._end and not wanted.ignore_eos:
            finish = "eos"
        assert written.running is not None, "`end_of` says where the text stands"
        delta, previous = self._write(written.running, chosen)
        held = ""
        if wanted.stop:
            delta, held, stopped = _until_stop(delta, wanted.stop, last=finish is not None)
            finish = "stop" if stopped else finish
        token = Token(index, chosen, self._words[chosen], logprob, delta, finish)
        written.pending = (token, Running(previous, held))
        return token

    def chunk(self, token: Token) -> Chunk:
        """A token as the model takes it."""
        return Chunk({self._input.name: np.array([token.id], self._input.dtype)}, _FIRST)

    def _write(self, running: Running, chosen: int) -> tuple[str, str | None]:
        """Text with a token added that is not sent yet, and the token before the next one."""
        if chosen == self._end:
            # A line ends here, and the next word begins one.
            return running.unsent + "\n", None
        word = self._words[chosen]
        if self._characters:
            return running.unsent + word, word
        addition = text.separator(running.previous, word) + text.surface(word)
        return running.unsent + addition, word


def _last(outputs: Sequence[Outputs], name: str) -> npt.NDArray[Any]:
    """An output at the last time step of each text, (R, *shape)."""
    return np.concatenate([each[name][-1:] for each in outputs])


def _widened(outputs: Sequence[Outputs], name: str, width: int, filler: float) -> Sequence[Outputs]:
    """The same with so many candidates at the last time step of each text."""
    if all(each[name].shape[-1] == width for each in outputs):
        return outputs
    rows = [each[name][-1:] for each in outputs]
    return [
        {name: np.pad(row, ((0, 0), (0, width - row.shape[-1])), constant_values=filler)}
        for row in rows
    ]


def _until_stop(pending: str, stop: tuple[str, ...], *, last: bool) -> tuple[str, str, bool]:
    """What of a text may be sent now, what is held back, and whether a stop string was met."""
    cuts = [at for s in stop if (at := pending.find(s)) >= 0]
    if cuts:
        return pending[: min(cuts)], "", True
    held = 0 if last else max(_overlap(pending, s) for s in stop)
    return pending[: len(pending) - held], pending[len(pending) - held :], False


def _overlap(text_: str, stop: str) -> int:
    """Length of the longest end of the text that a stop string may still continue."""
    for length in range(min(len(text_), len(stop) - 1), 0, -1):
        if stop.startswith(text_[-length:]):
            return length
    return 0
