"""The words a model knows, from the files of its export."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Literal

import msgspec

from service.contract import ContractError, Ner, NextWord, Sentiment
from service.entities import with_lists


class _Added(msgspec.Struct):
    content: str
    id: int


class _Model(msgspec.Struct):
    type: Literal["WordLevel"]
    vocab: dict[str, int]


class _File(msgspec.Struct):
    """What counts here of a file of the `tokenizers` library: the library itself takes six times as long to read it."""

    model: _Model
    added_tokens: list[_Added] = []


_read = msgspec.json.Decoder(_File).decode

# Models of one kind often share a file; the same words need not be kept, nor read, for each.
_SHARED = 8


def read_vocabulary(content: bytes, spec: NextWord | Ner | Sentiment) -> Mapping[str, int]:
    """Ids of the words of a tokenizer file; the same mapping for the same file.

    Args:
        content: The file, in the format of the `tokenizers` library (WordLevel).
        spec: Its name, how many words the model has, with ids from 0 on, and which of them is the unknown one.

    Raises:
        ContractError: It cannot be read, its ids are not those, or it has no unknown word.
    """
    try:
        vocabulary = _words(content)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ContractError(f"{spec.tokenizer} cannot be read: {error}") from None
    if sorted(vocabulary.values()) != list(range(spec.vocab_size)):
        raise ContractError(
            f"{spec.tokenizer} has {len(vocabulary)} words, the model {spec.vocab_size}"
        )
    if spec.unknown_token is not None and spec.unknown_token not in vocabulary:
        raise ContractError(f"{spec.tokenizer} has no {spec.unknown_token!r}")
    return vocabulary


@functools.lru_cache(_SHARED)
def _words(content: bytes) -> dict[str, int]:
    file = _read(content)
    return file.model.vocab | {token.content: token.id for token in file.added_tokens}


def read_known(files: Mapping[str, bytes], spec: Ner) -> Mapping[str, int]:
    """Ids of the words of a tokenizer file and of lists of words, of which each has an id of its own.

    Args:
        files: Content of the files, by name.
        spec: Their names, and what else `read_vocabulary` has to know.

    Raises:
        ContractError: See `read_vocabulary`; or a list is not UTF-8.
    """
    read_vocabulary(files[spec.tokenizer], spec)
    lists = tuple((name, files[name]) for name in spec.lists)
    return _known(files[spec.tokenizer], lists)


@functools.lru_cache(_SHARED)
def _known(tokenizer: bytes, lists: tuple[tuple[str, bytes], ...]) -> Mapping[str, int]:
    return with_lists(_words(tokenizer), [_lines(*named) for named in lists])


def _lines(name: str, content: bytes) -> list[str]:
    try:
        return content.decode().removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
        raise ContractError(f"{name} cannot be read: {error}") from None
