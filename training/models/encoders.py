"""The encoder of a run."""

from __future__ import annotations

from training.config import EncoderConfig, RecurrentConfig
from training.models.encoder import Encoder
from training.models.recurrent import RecurrentEncoder
from training.models.transformer import TransformerEncoder


def make_encoder(config: EncoderConfig, width_in: int) -> Encoder:
    """An encoder over `width_in` features, with fresh weights."""
    if isinstance(config, RecurrentConfig):
        return RecurrentEncoder(config, width_in)
    return TransformerEncoder(config, width_in)
