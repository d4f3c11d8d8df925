"""A tagger: vectors of words, a convolution over their characters, an encoder, and a chain over tags.

The word vectors are not learnt but come from counts (`training.ner.vectors`), so that words never tagged keep their
place beside those that were; the characters tell the rest (Ma, Hovy 2016, with vectors held fixed).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from service.entities import PADDING_CHARACTER
from training.config import EncoderConfig
from training.models.encoder import State, StateSpec, fresh
from training.models.encoders import make_encoder
from training.ner.chain import Chain
from training.ner.config import ModelConfig

UNKNOWN_ID = 0
_KERNEL = 3
# Numbers of a word vector have about this size; those of length 1 would drown beside the characters'.
SCALE = 0.5


class Tagger(nn.Module):
    """Tags of a text's words.

    Args:
        config: Shape of the features.
        encoder: Shape of the encoder.
        vocab_size: Words with a vector; id 0 is the unknown word.
        lists: Lists of words without one; the ids of the lists follow.
        alphabet_size: Ids of characters.
        labels: Tags in IOB2; the first is `O`.
    """

    def __init__(
        self,
        config: ModelConfig,
        encoder: EncoderConfig,
        vocab_size: int,
        lists: int,
        alphabet_size: int,
        labels: Sequence[str],
    ) -> None:
        super().__init__()
        self.word_dropout = config.word_dropout
        self.vectors = nn.Embedding(vocab_size, config.embedding_dim)
        self.vectors.weight.requires_grad = False
        # Of the unknown word, and of each list.
        self.shared = nn.Parameter(torch.zeros(1 + lists, config.embedding_dim))
        # What a word would be without a vector of its own: the unknown word or a list.
        self.register_buffer(
            "fallback", torch.zeros(vocab_size + lists, dtype=torch.int64), persistent=False
        )
        self.fallback: Tensor
        self.fallback[vocab_size:] = torch.arange(vocab_size, vocab_size + lists)
        self.characters = nn.Embedding(
            alphabet_size, config.character_dim, padding_idx=PADDING_CHARACTER
        )
        self.convolution = nn.Conv1d(
            config.character_dim, config.filters, _KERNEL, padding=_KERNEL // 2
        )
        self.encoder = make_encoder(encoder, config.embedding_dim + config.filters)
        self.output = nn.Linear(self.encoder.width_out, len(labels))
        self.chain = Chain(labels)
        streaming = not encoder.bidirectional
        self.states: tuple[StateSpec, ...] = (
            (*self.encoder.states, self.chain.state) if streaming else ()
        )

    def initial_state(self, batch_size: int) -> State:
        """State before the first word: zeros, (B, *shape) each."""
        return fresh(self.states, batch_size, self.shared.device)

    def table(self) -> Tensor:
        """Vectors of all words and lists (V + L, E), with that of the unknown word in its place."""
        return torch.cat([self.shared[:1], self.vectors.weight[1:], self.shared[1:]])

    def set_lists(self, members: Sequence[Sequence[int]]) -> None:
        """Say which words with a vector are in each list, too: the list begins as the mean of them."""
        for place, ids in enumerate(members, 1):
            if ids:
                self.shared.data[place] = self.vectors.weight.data[list(ids)].mean(0)
                self.fallback[list(ids)] = self.vectors.num_embeddings + place - 1

    def features(self, words: Tensor, characters: Tensor) -> Tensor:
        """Features (B, T, E + F) of words (B, T) int64 and their characters (B, T, C) int64."""
        if self.training and self.word_dropout:
            hidden = torch.rand(words.shape, device=words.device) < self.word_dropout
            words = torch.where(hidden, self.fallback[words], words)
        known = self.vectors.num_embeddings
        shares = (words == UNKNOWN_ID) | (words >= known)
        shared = self.shared[(words - known + 1).clamp_min(0)]
        vectors = torch.where(
            shares[..., None], shared, self.vectors(words.masked_fill(shares, UNKNOWN_ID))
        )
        letters = self.characters(characters.flatten(0, 1)).transpose(1, 2)  # (B T, D, C)
        spelling = self.convolution(letters).relu().amax(2)
        return torch.cat([vectors, spelling.unflatten(0, words.shape)], dim=2)

    def emissions(self, words: Tensor, characters: Tensor, state: State) -> tuple[Tensor, State]:
        """Scores e (B, T, K) of the tags, and the encoder's state after; all rows are of one length."""
        x, state = self.encoder(self.features(words, characters), state)
        return self.output(x), state

    def forward(
        self, words: Tensor, characters: Tensor, tags: Tensor, weights: Tensor, state: State
    ) -> tuple[Tensor, State]:
        """Mean of -log P(tags) in nats a word.

        Args:
            words: (B, T) int64.
            characters: (B, T, C) int64.
            tags: (B, T) int64.
            weights: (B,), how much of the mean each row is.
            state: Of the encoder before the first word.

        Returns:
            The loss, and no state: every text begins afresh.
        """
        emissions, _ = self.emissions(words, characters, state)
        loss = -self.chain.log_likelihood(emissions.float(), tags) / words.shape[1]
        return (loss * weights).sum(), ()

    def scores(self, words: Tensor, characters: Tensor, state: State) -> tuple[Tensor, State]:
        """Probabilities of the tags (B, T, K) as the words up to each have them, and the state after."""
        emissions, after = self.emissions(words, characters, state[: len(self.encoder.states)])
        before = state[-1] if state else emissions.new_zeros(len(words), *self.chain.state.shape)
        result, last = self.chain.filter(emissions, before)
        return result, (*after, last) if self.states else ()
