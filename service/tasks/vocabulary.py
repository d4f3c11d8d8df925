"""The words a model knows, from the tokenizer file of its export."""

from __future__ import annotations

from tokenizers import Tokenizer

from service.contract import ContractError


def read_vocabulary(content: bytes, name: str, size: int) -> dict[str, int]:
    """Ids of the words of a tokenizer file.

    Args:
        content: The file, in the format of the `tokenizers` library.
        name: Its name, for errors.
        size: How many words the model has; ids are 0 to size - 1.

    Raises:
        ContractError: It cannot be read, or its ids are not those.
    """
    try:
        vocabulary: dict[str, int] = Tokenizer.from_str(content.decode()).get_vocab()
    except Exception as error:
        # The tokenizers library raises plain Exception.
        raise ContractError(f"{name} cannot be read: {error}") from None
    if sorted(vocabulary.values()) != list(range(size)):
        raise ContractError(f"{name} has {len(vocabulary)} words, the model {size}")
    return vocabulary
