"""The words a model knows, from the files of its export."""

from __future__ import annotations

from typing import Literal

import msgspec

from service.contract import ContractError, Ner, NextWord, Sentiment


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


def read_vocabulary(content: bytes, spec: NextWord | Ner | Sentiment) -> dict[str, int]:
    """Ids of the words of a tokenizer file.

    Args:
        content: The file, in the format of the `tokenizers` library (WordLevel).
        spec: Its name, how many words the model has, with ids from 0 on, and which of them is the unknown one.

    Raises:
        ContractError: It cannot be read, its ids are not those, or it has no unknown word.
    """
    try:
        file = _read(content)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ContractError(f"{spec.tokenizer} cannot be read: {error}") from None
    vocabulary = file.model.vocab | {token.content: token.id for token in file.added_tokens}
    if sorted(vocabulary.values()) != list(range(spec.vocab_size)):
        raise ContractError(
            f"{spec.tokenizer} has {len(vocabulary)} words, the model {spec.vocab_size}"
        )
    if spec.unknown_token is not None and spec.unknown_token not in vocabulary:
        raise ContractError(f"{spec.tokenizer} has no {spec.unknown_token!r}")
    return vocabulary


def read_lines(content: bytes, name: str) -> list[str]:
    """Words of a list, one on each line.

    Args:
        content: The file.
        name: Its name, for errors.

    Raises:
        ContractError: It is not UTF-8.
    """
    try:
        return content.decode().removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
        raise ContractError(f"{name} cannot be read: {error}") from None
