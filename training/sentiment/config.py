"""A run of the sentiment task."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from training.config import Record, TrainedRun

SourceName = Literal["goemotions-sentiment", "uci-sentences", "sst2"]
Label = Literal["positive", "negative", "neutral", "ambiguous"]
Pooling = Literal["max", "attention"]


class DataConfig(Record, frozen=True, kw_only=True):
    """Which texts.

    Attributes:
        sources: Sets of `training.sentiment.data` to learn from; quality is measured on `valid` of the first.
        also_valid: Further sets to report quality on.
        phrases: Whether every phrase of the training trees of sst2 is a text too.
        labels: Labels told apart. Texts with a label that is not among them are left out.
        exclusive: Whether one label holds (softmax), and texts with several are left out; else each label holds or
            not for itself (sigmoid).
        held: Share of the training texts that thresholds are set on instead of weights.
        min_count: Texts that a word has to be in to be in the vocabulary.
    """

    sources: Annotated[tuple[SourceName, ...], msgspec.Meta(min_length=1)]
    also_valid: tuple[SourceName, ...] = ()
    phrases: bool = False
    labels: Annotated[tuple[Label, ...], msgspec.Meta(min_length=2)]
    exclusive: bool
    held: Annotated[float, msgspec.Meta(ge=0, le=0.5)] = 0.0
    min_count: int = 2

    def __post_init__(self) -> None:
        """Check what the field types cannot say.

        Raises:
            ValueError: Thresholds have nothing to be set on, or nothing to be set for.
        """
        if self.exclusive == bool(self.held):
            raise ValueError("held is above 0 where labels are not exclusive, and only there")


class ModelConfig(Record, frozen=True, kw_only=True):
    """Embedding, pooling and head around the encoder; see `training.sentiment.model`.

    Attributes:
        embedding_dim: E.
        pooling: How features of many words become those of a text.
        word_dropout: Share of the words that are hidden from the model while it learns.
        prefix_loss: Weight of the mean loss after each word, beside that after the last; 0 for bidirectional models.
    """

    embedding_dim: int
    pooling: Pooling
    word_dropout: float = 0.0
    prefix_loss: float = 0.0


class SentimentRun(TrainedRun, frozen=True, kw_only=True, tag="sentiment", tag_field="task"):
    """Train and export a sentiment model."""

    data: DataConfig
    model: ModelConfig

    def __post_init__(self) -> None:
        """Check what the field types cannot say.

        Raises:
            ValueError: A loss is asked for that the model has no answers for.
        """
        if self.encoder.bidirectional and self.model.prefix_loss:
            raise ValueError("a bidirectional model has no answer after a part of the text")
