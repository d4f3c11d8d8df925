"""Texts of one length side by side, joined and shuffled anew every epoch; validation by the spans of whole sentences.

Rows of one length need no padding, and the recurrent layers are three times as fast without it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from service import entities
from service.contract import Dataset
from training import floors
from training.models.encoder import State
from training.ner import quality
from training.ner.config import NerRun
from training.ner.data import LABELS, Data, words_of
from training.ner.model import SCALE, UNKNOWN_ID, Tagger
from training.ner.names import NameList, list_file, to_lines
from training.ner.vectors import frequent_words, word_vectors
from training.ner.words import RESERVED_CHARACTERS, UNKNOWN, alphabet_of, numbers_of, tokenizer_of
from training.trainer import Share

TOKENIZER_FILE = "tokenizer.json"
CHARACTERS_FILE = "characters.txt"
_LONGEST_JOIN = 4
_VALID_WORDS = 4000

Array = npt.NDArray[Any]
Arrays = Mapping[str, Array]


class TaggerLearner:
    """Tagged sentences and a tagger; see `Learner`.

    Args:
        run: The configuration.
        data: Tagged sentences.
        plain: Words of further texts, for the vectors; and where they come from.
        part: The share of this process.
        lists: Lists of names; those of the configuration.
    """

    criterion = f"valid/{quality.NAME}"
    maximise = True

    def __init__(
        self,
        run: NerRun,
        data: Data,
        plain: tuple[Sequence[Sequence[str]], Sequence[Dataset]],
        part: Share,
        lists: Sequence[NameList] = (),
    ) -> None:
        tagged = words_of(data.train)
        texts = [*plain[0], *tagged]
        words = [w for w in frequent_words(texts, run.model.min_count) if w != UNKNOWN]
        tokenizer, alphabet = tokenizer_of(words), alphabet_of(tagged)
        torch.manual_seed(run.seed)
        self.model: nn.Module = Tagger(
            run.model,
            run.encoder,
            len(words) + 1,
            len(lists),
            len(alphabet) + RESERVED_CHARACTERS,
            LABELS,
        )
        self._model = self.model
        vectors = word_vectors(texts, words, run.model.embedding_dim, run.seed)
        self._model.vectors.weight.data[1:] = vectors * (SCALE * run.model.embedding_dim**0.5)
        members = [frozenset(each.members) for each in lists]
        self._model.set_lists(
            [[i for i, word in enumerate(words, UNKNOWN_ID + 1) if word in m] for m in members]
        )
        self.shape: Mapping[str, Any] = shape(run)
        self.datasets: tuple[Dataset, ...] = (
            *data.datasets,
            *plain[1],
            *(each.dataset for each in lists),
        )
        self.files: Mapping[str, bytes] = {
            TOKENIZER_FILE: tokenizer.to_str().encode(),
            CHARACTERS_FILE: alphabet.encode(),
            **{list_file(each.name): to_lines(each.members) for each in lists},
        }
        self.floor = floors.in_words(floors.best(quality.NAME, data.split, self.datasets))
        self._run, self._data, self._part = run, data, part
        numbers = numbers_of(
            tokenizer, [each.members for each in lists], alphabet, run.model.characters
        )
        ids = {label: i for i, label in enumerate(LABELS)}
        self._train = [
            [
                {**numbers(s.words), "tags": np.array([ids[tag] for tag in s.tags], np.int64)}
                for s in sentences
            ]
            for sentences in data.train
        ]
        self._valid = [numbers(sentence.words) for sentence in data.valid]
        self._epoch, self._batches = 0, self._planned(0)
        self.steps_per_epoch = len(self._batches)

    def batch(self, step: int) -> tuple[Tensor, ...]:
        """Words (B, T), characters (B, T, C), tags (B, T), all int64, and weights of rows (B,)."""
        epoch, place = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            self._epoch, self._batches = epoch, self._planned(epoch)
        # Another epoch joins other sentences, so it may have a few batches more or less.
        rows = self._batches[place % len(self._batches)]
        rank, count = self._part.rank, self._part.count
        own = rows[rank::count]
        # Of a batch that does not divide, the mean over processes is still the mean over rows.
        weights = np.full(max(1, len(own)), count / len(rows) if own else 0.0, np.float32)
        own = own or rows[:1]
        tensors = [
            torch.from_numpy(np.stack([row[name] for row in own]))
            for name in ("words", "characters", "tags")
        ]
        return (*tensors, torch.from_numpy(weights))

    def _planned(self, epoch: int) -> list[list[Arrays]]:
        """Batches of an epoch."""
        random = np.random.default_rng((self._run.seed, epoch))
        by_length: dict[int, list[Arrays]] = {}
        for sentences in self._train:
            for text in self._joined(sentences, random):
                by_length.setdefault(len(text["tags"]), []).append(text)
        batches: list[list[Arrays]] = []
        for length in sorted(by_length):
            texts = by_length[length]
            size = max(1, self._run.training.batch_size // length)
            order = random.permutation(len(texts))
            batches += [
                [texts[i] for i in order[start : start + size]]
                for start in range(0, len(texts), size)
            ]
        return [batches[i] for i in random.permutation(len(batches))]

    def _joined(self, sentences: Sequence[Arrays], random: np.random.Generator) -> Iterable[Arrays]:
        """Sentences, some of them with those after them as one text, so that a text need not begin with a sentence."""
        place = 0
        while place < len(sentences):
            more = random.random() < self._run.data.joined
            count = int(random.integers(2, _LONGEST_JOIN + 1)) if more else 1
            group = sentences[place : place + count]
            place += count
            yield _cut(_concatenated(group), 0, self._run.data.longest)

    def fresh_state(self, step: int) -> State | None:
        """Empty: every text begins afresh."""
        rows = len(self._batches[step % self.steps_per_epoch % len(self._batches)])
        own = max(1, len(range(self._part.rank, rows, self._part.count)))
        return self._model.encoder.initial_state(own)

    def validate(self, model: nn.Module) -> dict[str, float]:
        """Exact spans of the validation sentences; every process measures all of them."""
        chain = entities.Chain(LABELS, self._model.chain.factors().tolist())
        filtered = filtered_by(self._model, self._valid)
        found = [[LABELS[tag] for tag in chain.tags(scores)] for scores in filtered]
        due = [sentence.tags for sentence in self._data.valid]
        measured = quality.of_tags(due, found, self._data.split)
        return {f"valid/{metric.name}": metric.value for metric in measured}


def _cut(text: Arrays, first: int, end: int) -> Arrays:
    return {name: values[first:end] for name, values in text.items()}


def _concatenated(parts: Sequence[Arrays]) -> Arrays:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


@torch.no_grad()
def filtered_by(model: Tagger, texts: Sequence[Arrays]) -> list[Array]:
    """Probabilities (T, K) of the tags of each text, of a model in evaluation mode."""
    result: list[Array] = [np.zeros(0)] * len(texts)
    by_length: dict[int, list[int]] = {}
    for i, text in enumerate(texts):
        by_length.setdefault(len(text["words"]), []).append(i)
    device = model.shared.device
    for length, places in by_length.items():
        size = max(1, _VALID_WORDS // length)
        for start in range(0, len(places), size):
            rows = places[start : start + size]
            words, characters = (
                torch.from_numpy(np.stack([texts[i][name] for i in rows])).to(device)
                for name in ("words", "characters")
            )
            scores, _ = model.scores(words, characters, model.initial_state(len(rows)))
            for i, row in zip(rows, scores.float().cpu().numpy(), strict=True):
                result[i] = row
    return result


def shape(run: NerRun) -> dict[str, Any]:
    """What the weights of a run fit."""
    parts: dict[str, Any] = msgspec.to_builtins(
        {"model": run.model, "encoder": run.encoder, "lists": run.data.names}
    )
    return parts
