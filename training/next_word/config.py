"""A run of the next-word task."""

from __future__ import annotations

from typing import Literal

from training.config import Count, Record, TrainedRun

Level = Literal["word", "character"]


class DataConfig(Record, frozen=True, kw_only=True):
    """Which text.

    Attributes:
        name: A corpus of `training.next_word.corpora`, or `files` for two plain text files of the user's own.
        level: What a token is: what stands between blanks, or a character.
        train: Path of the training text, for `files` only.
        valid: Path of the validation text, for `files` only.
        licence: Terms of the two files, for the model card.
    """

    name: str = "wikitext-2"
    level: Level = "word"
    train: str = ""
    valid: str = ""
    licence: str = "not stated"


class ModelConfig(Record, frozen=True, kw_only=True):
    """Embedding and softmax around the encoder; see `training.next_word.adaptive`.

    Attributes:
        embedding_dim: E, width of the embedding and of the output layer.
        cutoffs: First token id of each tail cluster of the adaptive softmax; empty for the full softmax.
        cutoff_dims: Width of each tail cluster.
        tied: Whether embedding and output layer share their factors.
    """

    embedding_dim: Count
    cutoffs: tuple[int, ...] = ()
    cutoff_dims: tuple[Count, ...] = ()
    tied: bool = True

    def __post_init__(self) -> None:
        """Check what the field types cannot say.

        Raises:
            ValueError: The clusters are not described in full and in order.
        """
        if len(self.cutoffs) != len(self.cutoff_dims) or list(self.cutoffs) != sorted(
            set(self.cutoffs)
        ):
            raise ValueError("cutoffs must rise and have one width each in cutoff_dims")


class NextWordRun(TrainedRun, frozen=True, kw_only=True, tag="next_word", tag_field="task"):
    """Train and export a next-word model."""

    data: DataConfig = DataConfig()
    model: ModelConfig

    def __post_init__(self) -> None:
        """Check what the field types cannot say.

        Raises:
            ValueError: The encoder would read the very tokens that are to be predicted.
        """
        if self.encoder.bidirectional:
            raise ValueError("a bidirectional encoder has seen the next token")
