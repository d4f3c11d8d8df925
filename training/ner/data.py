"""Tagged sentences from public sets: a token and its tag on a line, an empty line after each sentence, IOB2.

A set is a folder of `SEQSERVE_DATA`, or is downloaded from its own repository, proved by digest, and brought into that
form. Kinds of entities are PER, LOC and ORG; what a set calls otherwise is renamed, and what is none of them is `O`.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from service.contract import Dataset
from service.entities import OUTSIDE
from training.data.download import DataError, Source, fetch
from training.ner.config import DataConfig, SourceName

KINDS = ("PER", "LOC", "ORG")
LABELS = (OUTSIDE, *(f"{position}-{kind}" for kind in KINDS for position in "BI"))

_GITHUB = "https://raw.githubusercontent.com"
_UNER = f"{_GITHUB}/UniversalNER/UNER_English-EWT/8ed072de2fd24022cc62458997fe96a8fe191ea4"
_BTC = (
    f"{_GITHUB}/GateNLP/broad_twitter_corpus/"
    "0c45ef7b1924a6b8115bceab388781590b1b553a/train_dev_test_conll"
)
_WNUT = f"{_GITHUB}/leondz/emerging_entities_17/e52a2d2a71ac1a051ca2d532eef28653c5c02603"


class Sentence(msgspec.Struct, frozen=True):
    """Words and the tag of each; at least one."""

    words: tuple[str, ...]
    tags: tuple[str, ...]


class Data(msgspec.Struct, frozen=True, kw_only=True):
    """What a run learns from and is measured on.

    Attributes:
        train: Sentences of each set, in their order.
        valid: Sentences of the first set's validation part.
        split: Name of that part.
        datasets: Where they come from.
    """

    train: tuple[tuple[Sentence, ...], ...]
    valid: tuple[Sentence, ...]
    split: str
    datasets: tuple[Dataset, ...]


def lines_of(content: str) -> list[str]:
    """A token, a tab and its tag on a line, from that form or from Universal NER's own.

    There a number comes before them, more columns behind, and comments between.
    """
    # Not splitlines(): tokens hold line separators of other alphabets.
    lines = content.split("\n")
    # A hashtag may be the first token of the plain form; a comment has no tag behind it.
    if not lines[0].startswith("#") or "\t" in lines[0]:
        return lines
    rows = (line.split("\t") for line in lines if not line.startswith("#"))
    return ["\t".join(row[1:3]) for row in rows]


def _as_conll(content: bytes) -> bytes:
    """The same sentences with one empty line after each."""
    kept: list[str] = []
    for line in lines_of(content.decode().replace("\r\n", "\n")):
        if line or (kept and kept[-1]):
            kept.append(line)
    return ("\n".join(kept).rstrip("\n") + "\n\n").encode()


class _Set(msgspec.Struct, frozen=True):
    """A set: its licence, how its kinds are called here, and where its splits are."""

    licence: str
    kinds: Mapping[str, str]
    public: Mapping[str, Source]


def _source(url: str, sha256: str) -> Source:
    return Source(url=url, sha256=sha256, convert=_as_conll)


_SETS: dict[SourceName, _Set] = {
    "uner-ewt": _Set(
        "CC BY-SA 4.0 (Universal NER, English Web Treebank; Mayhew et al. 2024)",
        {},
        {
            # The final file. A copy in SEQSERVE_DATA may hold the first revision.
            "train": Source(
                url=f"{_UNER}/en_ewt-ud-train.iob2",
                git_blob="b2423d72f37f2226e56cbe750da76f820e6c36a9",
            ),
            "valid": _source(
                f"{_UNER}/en_ewt-ud-dev.iob2",
                "4bc5515ab6d9b229047560840d95ccb825876a248a4c791c643f34b7b67648f1",
            ),
        },
    ),
    "btc": _Set(
        "CC BY 4.0 (Broad Twitter Corpus; Derczynski et al. 2016)",
        {},
        {
            "train": _source(
                f"{_BTC}/btc.train",
                "2117732e744d8f1692786c7ebb919c52dadd406f082b43fe1e625a51f2cadd0f",
            ),
            "valid": _source(
                f"{_BTC}/btc.dev",
                "25fccddde4541dcb0698c5b21671f3ae0e5b52c478b9945aa583a4c74d55f752",
            ),
        },
    ),
    "wnut17": _Set(
        "CC BY 4.0 (WNUT 2017 emerging entities; Derczynski et al. 2017)",
        {"person": "PER", "location": "LOC", "corporation": "ORG", "group": "ORG"},
        {
            "train": _source(
                f"{_WNUT}/wnut17train.conll",
                "707d8fbadf7ab186e7998fdcbea41470d25d0a453049f531d0c8d0c810a8d8cb",
            ),
            "valid": _source(
                f"{_WNUT}/emerging.dev.conll",
                "e053b752b8155113ca66e7db08af5f2f5f43ab993694e4774f1ec5bad42312d8",
            ),
        },
    ),
}


def parse(content: str, kinds: Mapping[str, str], where: str) -> tuple[Sentence, ...]:
    """Sentences of a file.

    Args:
        content: A token, a tab and its tag on a line, an empty line after each sentence.
        kinds: What the file calls the kinds of `KINDS`, where it does otherwise.
        where: Name of the file, for errors.

    Raises:
        DataError: A line is of another form, or a tag is not IOB2.
    """
    sentences: list[Sentence] = []
    words: list[str] = []
    tags: list[str] = []
    before = OUTSIDE
    for number, line in enumerate([*lines_of(content), ""], 1):
        if line:
            word, tab, tag = line.rpartition("\t")
            if not tab or not word:
                raise DataError(f"{where}, line {number}: not a token, a tab and a tag")
            words.append(word)
            tags.append(_renamed(tag, before, kinds, f"{where}, line {number}"))
            before = tag
        elif words:
            sentences.append(Sentence(tuple(words), tuple(tags)))
            words, tags, before = [], [], OUTSIDE
    return tuple(sentences)


def _renamed(tag: str, before: str, kinds: Mapping[str, str], where: str) -> str:
    if tag == OUTSIDE:
        return tag
    position, _, kind = tag.partition("-")
    if position not in ("B", "I") or not kind:
        raise DataError(f"{where}: {tag} is no tag in IOB2")
    if position == "I" and before[2:] != kind:
        raise DataError(f"{where}: {tag} after {before}; in IOB2 every entity begins with B-{kind}")
    kind = kinds.get(kind, kind)
    return f"{position}-{kind}" if kind in KINDS else OUTSIDE


def load(config: DataConfig, environ: Mapping[str, str] = os.environ) -> Data:
    """Read the sentences of a run, downloading those that are public in this form and not there.

    Args:
        config: Which ones.
        environ: `SEQSERVE_DATA` names a directory with one folder for each set; `SEQSERVE_CACHE` one for downloads.

    Raises:
        DataError: A file is missing or is not what it should be, or holds no sentence.
    """
    digests: dict[SourceName, dict[str, str]] = {}

    def read(name: SourceName, split: str) -> tuple[Sentence, ...]:
        path = _path(config, name, split, environ)
        try:
            content = path.read_bytes()
        except OSError as error:
            raise DataError(f"{name}, split {split}: {error}") from None
        digest = hashlib.sha256(content).hexdigest()
        digests.setdefault(name, {})[f"{split}.conll"] = digest
        kinds = _SETS[name].kinds if name in _SETS else {}
        sentences = parse(content.decode(), kinds, str(path))
        if not sentences:
            raise DataError(f"{path} holds no sentence")
        return sentences

    train = tuple(read(name, "train") for name in config.sources)
    first = config.sources[0]
    valid = read(first, "valid")
    return Data(
        train=train,
        valid=valid,
        split=f"{first} valid",
        datasets=tuple(
            Dataset(
                name=name,
                licence=_SETS[name].licence if name in _SETS else config.licence,
                sha256=sha256,
            )
            for name, sha256 in digests.items()
        ),
    )


def _path(config: DataConfig, name: SourceName, split: str, environ: Mapping[str, str]) -> Path:
    if name == "files":
        return Path(config.train if split == "train" else config.valid)
    if directory := environ.get("SEQSERVE_DATA"):
        return Path(directory, name, f"{split}.conll")
    cache = Path(environ.get("SEQSERVE_CACHE") or Path.home() / ".cache" / "seqserve")
    return fetch(_SETS[name].public[split], cache / name / f"{split}.conll")


def words_of(train: Sequence[Sequence[Sentence]]) -> list[tuple[str, ...]]:
    """The words of each sentence of each set."""
    return [sentence.words for part in train for sentence in part]
