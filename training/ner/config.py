"""A run of the named-entity task."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from training.config import Record, TrainedRun

SourceName = Literal["uner-ewt", "btc", "wnut17", "files"]
ListName = Literal["names", "names-by-language"]


class DataConfig(Record, frozen=True, kw_only=True):
    """Which tagged sentences, and which text the word vectors come from.

    Attributes:
        sources: Sets of `training.ner.data` to learn from; quality is measured on `valid` of the first. `files` are
            two files of the user's own.
        joined: Share of the sentences that are read together with the ones after them, as they come in a text.
        longest: Words of the longest text that is learnt from; longer ones are cut.
        unlabelled: Whether WikiText-2 is read too for the word vectors.
        names: Lists of names; a name too rare for a vector of its own has that of its list. See `training.ner.names`.
        train: Path of the training sentences, for `files` only.
        valid: Path of the validation sentences, for `files` only.
        licence: Terms of the two files, for the model card.
    """

    sources: Annotated[tuple[SourceName, ...], msgspec.Meta(min_length=1)] = ("uner-ewt", "btc")
    joined: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.3
    longest: int = 120
    unlabelled: bool = True
    names: tuple[ListName, ...] = ()
    train: str = ""
    valid: str = ""
    licence: str = "not stated"


class ModelConfig(Record, frozen=True, kw_only=True):
    """Features of words around the encoder; see `training.ner.model`.

    Attributes:
        embedding_dim: E, width of the word vectors; see `training.ner.vectors`.
        min_count: How often a word has to be in the texts to have a vector.
        characters: C, characters of a word that count.
        character_dim: Width of the vector of a character.
        filters: Features that the convolution over the characters gives.
        word_dropout: Share of the words that are taken for unknown while the model learns.
    """

    embedding_dim: int
    min_count: int = 5
    characters: Annotated[int, msgspec.Meta(ge=3)] = 20
    character_dim: int = 32
    filters: int = 64
    word_dropout: float = 0.0


class NerRun(TrainedRun, frozen=True, kw_only=True, tag="ner", tag_field="task"):
    """Train and export a model of named entities. `training.batch_size` counts words."""

    data: DataConfig = DataConfig()
    model: ModelConfig
