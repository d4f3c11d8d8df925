"""Truncated backpropagation through time over one long text.

The text is cut into columns; a step reads the next window of every column, with the state that the last window
left behind, and sends the gradient back through this window only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import torch
from torch import Tensor, nn

from service.contract import Dataset
from training import floors
from training.models.encoder import State
from training.next_word import vocabulary
from training.next_word.columns import columns, share, window, window_count
from training.next_word.config import NextWordRun
from training.next_word.corpora import Corpus
from training.next_word.model import LanguageModel
from training.next_word.perplexity import metric
from training.trainer import Share

TOKENIZER_FILE = "tokenizer.json"


class TextLearner:
    """A corpus and a language model; see `Learner`."""

    maximise = False

    def __init__(self, run: NextWordRun, corpus: Corpus, part: Share) -> None:
        tokenizer = vocabulary.build(corpus.train, corpus.level)
        vocab_size = tokenizer.get_vocab_size()
        torch.manual_seed(run.seed)
        self.model: nn.Module = LanguageModel(run.model, run.encoder, vocab_size)
        self._model = self.model
        self.shape: Mapping[str, Any] = shape(run)
        self.datasets: tuple[Dataset, ...] = (corpus.dataset,)
        self.files: Mapping[str, bytes] = {TOKENIZER_FILE: tokenizer.to_str().encode()}
        self._corpus = corpus
        measured = metric(corpus, 0.0)
        self.criterion = f"valid/{measured.name}"
        self.floor = floors.in_words(floors.best(measured.name, measured.split, self.datasets))
        self._bptt = run.training.bptt
        train, self.valid_text = (
            columns(vocabulary.encode(tokenizer, text), run.training.batch_size)
            for text in (corpus.train, corpus.valid)
        )
        self.train_text = share(train, part.rank, part.count)
        self.steps_per_epoch = window_count(self.train_text, self._bptt)

    def batch(self, step: int) -> tuple[Tensor, ...]:
        """Tokens and their successors, (B, T) each."""
        return window(self.train_text, step % self.steps_per_epoch, self._bptt)

    def fresh_state(self, step: int) -> State | None:
        """Zeros at the start of the text."""
        if step % self.steps_per_epoch:
            return None
        return self._initial_state(self.train_text)

    def validate(self, model: nn.Module) -> dict[str, float]:
        """Loss in nats a token and the metric made of it, state carried along each column.

        Every process measures all of them: a perplexity is not the mean of those of parts.
        """
        state, total, count = self._initial_state(self.valid_text), 0.0, 0
        device = next(model.parameters()).device
        for i in range(window_count(self.valid_text, self._bptt)):
            tokens, targets = (part.to(device) for part in window(self.valid_text, i, self._bptt))
            loss, state = model(tokens, targets, state)
            total, count = total + float(loss) * targets.numel(), count + targets.numel()
        loss = total / count
        return {"valid/loss": loss, self.criterion: metric(self._corpus, loss).value}

    def _initial_state(self, text: Tensor) -> State:
        assert isinstance(self._model, LanguageModel)
        return self._model.encoder.initial_state(text.shape[0])


def shape(run: NextWordRun) -> dict[str, Any]:
    """What the weights of a run fit."""
    parts: dict[str, Any] = msgspec.to_builtins({"model": run.model, "encoder": run.encoder})
    return parts
