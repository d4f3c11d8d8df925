"""A language model: embedding, encoder, softmax."""

from __future__ import annotations

from torch import Tensor, nn

from training.config import EncoderConfig
from training.models.encoder import State
from training.models.encoders import make_encoder
from training.next_word.adaptive import AdaptiveSoftmax, Factors
from training.next_word.config import ModelConfig


class LanguageModel(nn.Module):
    """Next-token distribution of a text, with state carried from call to call."""

    def __init__(self, config: ModelConfig, encoder: EncoderConfig, vocab_size: int) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        self.embedding = Factors(config, vocab_size)
        self.encoder = make_encoder(encoder, config.embedding_dim)
        self.output = (
            nn.Identity()
            if self.encoder.width_out == config.embedding_dim
            else nn.Linear(self.encoder.width_out, config.embedding_dim)
        )
        factors = self.embedding if config.tied else Factors(config, vocab_size)
        self.softmax = AdaptiveSoftmax(factors)

    def features(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        """Features (B, T, E) of token ids (B, T) int64, and the state after the last token."""
        x, state = self.encoder(self.embedding(tokens), state)
        return self.output(x), state

    def forward(self, tokens: Tensor, targets: Tensor, state: State) -> tuple[Tensor, State]:
        """Mean of -log p(target) in nats over tokens and targets (B, T), and the next state."""
        z, state = self.features(tokens, state)
        return self.softmax(z.flatten(0, 1), targets.flatten()), state

    def scores(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        """Log-probabilities (B, T, V) in nats, and the next state."""
        z, state = self.features(tokens, state)
        return self.softmax.scores(z), state
