"""The texts a model may be trained on: two splits of plain text, cut into words or characters."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

import msgspec

from service.contract import Dataset
from training.data.download import DataError, Source, fetch
from training.next_word.config import DataConfig, Level

END_OF_LINE = "<eos>"
SPLITS = ("train", "valid")

_GITHUB = "https://raw.githubusercontent.com"
_WIKITEXT_2 = (
    f"{_GITHUB}/pytorch/examples/"
    "77f55b912142e11fcfdf5b530231fb9c52f181e8/word_language_model/data/wikitext-2/"
)
# The training file is proved by its git blob id, which the commit in the address fixes; nobody has
# published its SHA-256. A copy in SEQSERVE_DATA may hold the same articles in another order (then its
# digest differs and its perplexities do not), so copies are recorded by digest and not refused.
WIKITEXT_2 = {
    "train": Source(
        url=_WIKITEXT_2 + "train.txt", git_blob="2d84b35af79e411d73ea7cae83c73964c6ac83b4"
    ),
    "valid": Source(
        url=_WIKITEXT_2 + "valid.txt",
        sha256="f0737ed31fc1329026e95cb8b98e19c2a182c39c240ab909dc31abf2f8af58e8",
    ),
}
TINY_SHAKESPEARE = Source(
    url=f"{_GITHUB}/karpathy/char-rnn/"
    "6f9487a6fe5b420b7ca9afb0d7c078e37c1d1b4e/data/tinyshakespeare/input.txt",
    sha256="86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
)
LICENCES = {
    "wikitext-2": "CC BY-SA 4.0 (text of English Wikipedia; Merity et al. 2016)",
    "tinyshakespeare": "public domain (William Shakespeare; carrier repository MIT)",
}


class Corpus(msgspec.Struct, frozen=True, kw_only=True):
    """A text in two splits.

    Attributes:
        level: What its tokens are.
        train: Tokens to learn from.
        valid: Tokens to measure on.
        dataset: Name, licence and digests, for the provenance of a model.
    """

    level: Level
    train: list[str]
    valid: list[str]
    dataset: Dataset


def words(text: str) -> list[str]:
    """Words between blanks, and `<eos>` after each line, also an empty one."""
    # Not splitlines(): WikiText has line separators of other alphabets inside its lines.
    lines = text.removesuffix("\n").split("\n")
    return [word for line in lines for word in (*line.split(), END_OF_LINE)]


def load(config: DataConfig, environ: Mapping[str, str] = os.environ) -> Corpus:
    """Read a corpus, downloading it where it is public and not there.

    Args:
        config: Which corpus.
        environ: `SEQSERVE_DATA` names a directory with one folder for each corpus; `SEQSERVE_CACHE` one for downloads.

    Raises:
        DataError: A file is missing, is no UTF-8, or is not what it should be.
    """
    content = _content(config, environ)
    tokens = list if config.level == "character" else words
    try:
        train, valid = (tokens(content[split].decode()) for split in SPLITS)
    except UnicodeDecodeError as error:
        raise DataError(f"{config.name}: {error}") from None
    return Corpus(
        level=config.level,
        train=train,
        valid=valid,
        dataset=Dataset(
            name=config.name,
            licence=LICENCES.get(config.name, config.licence),
            sha256={f"{split}.txt": hashlib.sha256(content[split]).hexdigest() for split in SPLITS},
        ),
    )


def _content(config: DataConfig, environ: Mapping[str, str]) -> dict[str, bytes]:
    """The two splits as they are in files."""
    if config.name == "files":
        return _read(config, {"train": Path(config.train), "valid": Path(config.valid)})
    if config.name not in LICENCES:
        raise DataError(f"unknown corpus {config.name}; known are {', '.join(LICENCES)} and files")
    if directory := environ.get("SEQSERVE_DATA"):
        folder = Path(directory, config.name)
        return _read(config, {split: folder / f"{split}.txt" for split in SPLITS})
    cache = Path(environ.get("SEQSERVE_CACHE") or Path.home() / ".cache" / "seqserve", config.name)
    if config.name == "tinyshakespeare":
        return cut(fetch(TINY_SHAKESPEARE, cache / "input.txt").read_bytes())
    paths = {split: fetch(source, cache / f"{split}.txt") for split, source in WIKITEXT_2.items()}
    return _read(config, paths)


def _read(config: DataConfig, paths: Mapping[str, Path]) -> dict[str, bytes]:
    content: dict[str, bytes] = {}
    for split, path in paths.items():
        try:
            content[split] = path.read_bytes()
        except OSError as error:
            raise DataError(f"{config.name}, split {split}: {error}") from None
    return content


def cut(text: bytes) -> dict[str, bytes]:
    """Tiny Shakespeare, a character a byte: 80 % to learn from and the next 10 %; the rest is nobody's to tune on."""
    first, second = len(text) * 8 // 10, len(text) * 9 // 10
    return {"train": text[:first], "valid": text[first:second]}
