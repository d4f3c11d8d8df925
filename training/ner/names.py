"""Lists of people's names: too rare, most of them, for a vector of their own."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from service.contract import Dataset
from training.data.download import DataError
from training.ner.config import ListName

_FILES: Mapping[ListName, Sequence[str]] = {
    "names": ("train.txt", "valid.txt"),
    "names-by-language": ("train.tsv", "valid.tsv"),
}
_LICENCES: Mapping[ListName, str] = {
    "names": "MIT (given names of the US Social Security Administration; Karpathy 2022)",
    "names-by-language": "MIT (surnames in 18 languages; Robertson 2017)",
}
# Shorter ones are more often something else.
_SHORTEST = 3


class NameList(msgspec.Struct, frozen=True):
    """A list.

    Attributes:
        name: Its name.
        members: As they are written, each once.
        dataset: Where it comes from.
    """

    name: ListName
    members: tuple[str, ...]
    dataset: Dataset


def load(names: Sequence[ListName], environ: Mapping[str, str] = os.environ) -> list[NameList]:
    """Read lists of names from `SEQSERVE_DATA`; a name in several counts for the first.

    Raises:
        DataError: A file is missing.
    """
    seen: set[str] = set()
    result: list[NameList] = []
    for name in names:
        contents = {file: _read(name, file, environ) for file in _FILES[name]}
        found = [n for content in contents.values() for n in _members(name, content.decode())]
        members = tuple(n for n in dict.fromkeys(found) if n not in seen)
        seen.update(members)
        digests = {file: hashlib.sha256(content).hexdigest() for file, content in contents.items()}
        dataset = Dataset(name=name, licence=_LICENCES[name], sha256=digests)
        result.append(NameList(name, members, dataset))
    return result


def list_file(name: ListName) -> str:
    """Name of the file that a run and an export keep a list in."""
    return f"{name}.txt"


def to_lines(members: Sequence[str]) -> bytes:
    """A list as that file."""
    return "".join(f"{member}\n" for member in members).encode()


def from_lines(content: bytes) -> list[str]:
    """The members in that file."""
    return content.decode().removesuffix("\n").split("\n")


def _read(name: ListName, file: str, environ: Mapping[str, str]) -> bytes:
    directory = environ.get("SEQSERVE_DATA")
    if not directory:
        raise DataError(f"{name}: set SEQSERVE_DATA to a directory with {name}/{file}")
    try:
        return Path(directory, name, file).read_bytes()
    except OSError as error:
        raise DataError(f"{name}: {error}") from None


def _members(name: ListName, content: str) -> Iterator[str]:
    """Names of one word, with a capital."""
    lines = content.removesuffix("\n").split("\n")
    if name == "names-by-language":
        # Under a header: the language, a tab and the name.
        lines = [line.partition("\t")[2] for line in lines[1:]]
    for line in lines:
        if len(line) >= _SHORTEST and " " not in line:
            yield line[0].upper() + line[1:]
