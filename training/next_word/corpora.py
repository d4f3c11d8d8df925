"""The texts a model may be trained on: two splits of plain text, tokens between blanks, one `<eos>` a line."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

import msgspec

from service.contract import Dataset
from training.data.download import DataError, Source, fetch
from training.next_word.config import DataConfig

END_OF_LINE = "<eos>"


class Floor(msgspec.Struct, frozen=True, kw_only=True):
    """What a model must beat to be worth its size."""

    name: str
    perplexity: float


_WIKITEXT_2 = (
    "https://raw.githubusercontent.com/pytorch/examples/"
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
# Valid perplexity of the best count-based model we know, over the same 33,278 words.
KNESER_NEY_5 = Floor(name="modified Kneser-Ney 5-gram", perplexity=232.5)
LICENCE = "CC BY-SA 4.0 (text of English Wikipedia; Merity et al. 2016)"


class Corpus(msgspec.Struct, frozen=True, kw_only=True):
    """A text in two splits.

    Attributes:
        train: Tokens to learn from.
        valid: Tokens to measure on.
        dataset: Name, licence and digests, for the provenance of a model.
        floor: Perplexity on `valid` without a neural network, where it is known.
    """

    train: list[str]
    valid: list[str]
    dataset: Dataset
    floor: Floor | None = None


def tokens(text: str) -> list[str]:
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
        DataError: A file is missing or is not what it should be.
    """
    paths = _paths(config, environ)
    content: dict[str, bytes] = {}
    for split, path in paths.items():
        try:
            content[split] = path.read_bytes()
        except OSError as error:
            raise DataError(f"{config.name}, split {split}: {error}") from None
    known = config.name == "wikitext-2"
    return Corpus(
        train=tokens(content["train"].decode()),
        valid=tokens(content["valid"].decode()),
        dataset=Dataset(
            name=config.name,
            licence=LICENCE if known else config.licence,
            sha256={
                f"{split}.txt": hashlib.sha256(data).hexdigest() for split, data in content.items()
            },
        ),
        floor=KNESER_NEY_5 if known else None,
    )


def _paths(config: DataConfig, environ: Mapping[str, str]) -> dict[str, Path]:
    if config.name == "files":
        return {"train": Path(config.train), "valid": Path(config.valid)}
    if config.name != "wikitext-2":
        raise DataError(f"unknown corpus {config.name}; known are wikitext-2 and files")
    if directory := environ.get("SEQSERVE_DATA"):
        return {split: Path(directory, config.name, f"{split}.txt") for split in WIKITEXT_2}
    cache = Path(environ.get("SEQSERVE_CACHE") or Path.home() / ".cache" / "seqserve")
    return {
        split: fetch(source, cache / config.name / f"{split}.txt")
        for split, source in WIKITEXT_2.items()
    }
