"""Texts of similar length side by side, another order every epoch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from service.contract import Dataset
from training import floors
from training.data.batches import Batches
from training.models.encoder import State
from training.sentiment import quality, vocabulary
from training.sentiment.config import SentimentRun
from training.sentiment.data import Data
from training.sentiment.model import SentimentModel
from training.trainer import Share

TOKENIZER_FILE = "tokenizer.json"
_VALID_ROWS = 256

Scores = npt.NDArray[np.float32]


class SentimentLearner:
    """Labelled texts and a sentiment model; see `Learner`."""

    maximise = True

    def __init__(self, run: SentimentRun, data: Data, part: Share) -> None:
        tokenizer = vocabulary.build(data.train.words, run.data.min_count)
        ids = tokenizer.get_vocab()
        torch.manual_seed(run.seed)
        self.model: nn.Module = SentimentModel(
            run.model, run.encoder, len(ids), len(data.labels), exclusive=data.exclusive
        )
        self._model = self.model
        self.shape: Mapping[str, Any] = shape(run)
        self.datasets: tuple[Dataset, ...] = data.datasets
        self.files: Mapping[str, bytes] = {TOKENIZER_FILE: tokenizer.to_str().encode()}
        (name, split), self._data = criterion(data), data
        self.criterion = f"valid/{name} {split}"
        self.floor = floors.in_words(floors.best(name, split, data.datasets))
        self._texts = vocabulary.encode(ids, data.train.words)
        self._held = vocabulary.encode(ids, data.held.words)
        self._valid = {
            name: vocabulary.encode(ids, texts.words) for name, texts in data.valid.items()
        }
        # All of an epoch is sorted: most batches then have texts of one length, which is twice as fast.
        lengths = [len(text) for text in self._texts]
        size = run.training.batch_size
        self._batches = Batches(lengths, size, run.seed, part, pool=len(lengths))
        self.steps_per_epoch = self._batches.steps_per_epoch

    def batch(self, step: int) -> tuple[Tensor, ...]:
        """Words (B, T) int64, how many of them each row has (B,) int64, and targets (B, labels)."""
        rows = self._batches.rows(step)
        tokens, lengths = vocabulary.padded([self._texts[row] for row in rows])
        targets = torch.from_numpy(self._data.train.targets[rows])
        return torch.from_numpy(tokens), torch.from_numpy(lengths), targets

    def fresh_state(self, step: int) -> State | None:
        """Empty: every text begins afresh."""
        return ()

    def validate(self, model: nn.Module) -> dict[str, float]:
        """Macro F1 or accuracy on every validation part; every process measures all of it."""
        assert isinstance(self._model, SentimentModel)
        thresholds = thresholds_of(self._model, self._held, self._data)
        scalars: dict[str, float] = {}
        for name, texts in self._valid.items():
            due = self._data.valid[name].targets > 0
            limits = None if name in self._data.single else thresholds
            scores = scores_of(self._model, texts)
            found = quality.metrics(name, self._data.labels, scores, due, limits)
            scalars |= {f"valid/{metric.name} {metric.split}": metric.value for metric in found}
        return scalars


def criterion(data: Data) -> tuple[str, str]:
    """Name and split of the measure that says which weights are the best."""
    first = next(iter(data.valid))
    return "accuracy" if first in data.single else "macro F1", f"{first} valid"


def thresholds_of(
    model: SentimentModel, held: Sequence[vocabulary.Ids], data: Data
) -> npt.NDArray[np.float64] | None:
    """Thresholds of a model, set on the held texts; None where labels are exclusive."""
    if data.exclusive:
        return None
    return quality.best_thresholds(scores_of(model, held), data.held.targets > 0)


@torch.no_grad()
def scores_of(model: SentimentModel, texts: Sequence[vocabulary.Ids]) -> Scores:
    """Probabilities (N, labels) of whole texts, of a model in evaluation mode."""
    device = model.head.weight.device
    result = np.zeros((len(texts), model.head.out_features), np.float32)
    order = np.argsort([len(text) for text in texts], kind="stable")
    for start in range(0, len(order), _VALID_ROWS):
        rows = order[start : start + _VALID_ROWS]
        tokens, lengths = map(torch.from_numpy, vocabulary.padded([texts[row] for row in rows]))
        scores, _ = model.scores(
            tokens.to(device), lengths.to(device), model.initial_state(len(rows))
        )
        last = scores[torch.arange(len(rows)), lengths.to(device) - 1]
        result[rows] = last.float().cpu().numpy()
    return result


def shape(run: SentimentRun) -> dict[str, Any]:
    """What the weights of a run fit."""
    parts: dict[str, Any] = msgspec.to_builtins(
        {"model": run.model, "encoder": run.encoder, "labels": run.data.labels}
    )
    return parts
