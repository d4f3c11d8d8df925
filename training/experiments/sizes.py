"""Networks of equal size."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from training.config import Cell, EncoderConfig, RecurrentConfig, TransformerConfig

CELLS: Mapping[str, Cell] = {"rnn": "rnn_tanh", "gru": "gru", "lstm": "lstm"}
_LARGEST_HIDDEN_SIZE = 1024


def sized_like(
    transformer: TransformerConfig, architecture: str, parameters: Callable[[EncoderConfig], int]
) -> EncoderConfig:
    """An architecture with as many parameters as a Transformer, as nearly as its width can be chosen.

    Args:
        transformer: What sets the size, and the number of layers.
        architecture: `transformer`, or a key of `CELLS`.
        parameters: Counts the parameters of the whole model around an encoder; grows with its width.
    """
    if architecture == "transformer":
        return transformer
    target = parameters(transformer)

    def config(hidden_size: int) -> RecurrentConfig:
        return RecurrentConfig(
            cell=CELLS[architecture],
            hidden_size=hidden_size,
            num_layers=transformer.num_layers,
        )

    low, high = 1, _LARGEST_HIDDEN_SIZE
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if parameters(config(middle)) < target else (low, middle)
    return min(config(low), config(high), key=lambda c: abs(parameters(c) - target))
