"""A sentiment model: words in, an encoder, features pooled over the words, a linear head.

Two forms, by the encoder. A causal one answers after every word t from its feature and what was pooled up to it,
`head([h_t, pool(h_1 .. h_t)])`, and can be stepped: what is pooled is a state. A bidirectional one answers once, from
all of the text, `head(pool(h_1 .. h_T))`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.config import EncoderConfig
from training.models.encoder import State, StateSpec, fresh
from training.models.encoders import make_encoder
from training.sentiment.config import ModelConfig, Pooling
from training.sentiment.vocabulary import UNKNOWN_ID


class MaxPooling(nn.Module):
    """Largest value of each feature, and at least 0: `m_t = max(m_{t-1}, h_t)`, `m_0 = 0`.

    Max over time: Collobert et al. 2011. The state is `largest` (D,).
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.states = (StateSpec("largest", (width,)),)

    def forward(self, x: Tensor, valid: Tensor, state: State) -> tuple[Tensor, State]:
        """Pool.

        Args:
            x: Features (B, T, D).
            valid: 1 at positions of the text, 0 beyond it; (B, T, 1).
            state: What was pooled before.

        Returns:
            What is pooled up to each position (B, T, D), and after the last valid one.
        """
        (before,) = state
        joined = torch.cat([before[:, None], x.masked_fill(valid == 0, 0)], dim=1)
        pooled = joined.cummax(dim=1).values[:, 1:]
        return pooled, (pooled[:, -1],)


class AttentionPooling(nn.Module):
    """Mean of the features, each with the weight that it earns: `sum_i exp(a_i) h_i / (1 + sum_i exp(a_i))`.

    a_i = v . tanh(W h_i + b), Yang et al. 2016; |a_i| is at most the sum of |v|, so that exp(a_i) needs no shift. The 1
    belongs to a zero vector before the first word, as the 0 of max pooling does. The state is the mean, `mean` (D,),
    and the logarithm of its weight, `log_weight` (1,): neither grows with the text as the two sums would.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.states = (StateSpec("mean", (width,)), StateSpec("log_weight", (1,)))
        self.hidden = nn.Linear(width, width)
        self.score = nn.Linear(width, 1, bias=False)

    def forward(self, x: Tensor, valid: Tensor, state: State) -> tuple[Tensor, State]:
        """See `MaxPooling.forward`."""
        mean, log_weight = state
        before = log_weight.exp()
        weights = self.score(self.hidden(x).tanh()).exp() * valid
        sums = (weights * x.masked_fill(valid == 0, 0)).cumsum(dim=1)
        totals = before[:, None] + weights.cumsum(dim=1)
        pooled = ((before * mean)[:, None] + sums) / totals
        return pooled, (pooled[:, -1], totals[:, -1].log())


def make_pooling(kind: Pooling, width: int) -> MaxPooling | AttentionPooling:
    """The pooling of a name."""
    return MaxPooling(width) if kind == "max" else AttentionPooling(width)


class SentimentModel(nn.Module):
    """Probability of each label of a text.

    Attributes:
        whole: Whether it answers for whole texts only.
        states: The state, which starts as zeros; empty for whole texts.
    """

    def __init__(
        self,
        config: ModelConfig,
        encoder: EncoderConfig,
        vocab_size: int,
        labels: int,
        *,
        exclusive: bool,
    ) -> None:
        super().__init__()
        self.config = config
        self.vocab_size = vocab_size
        self.exclusive = exclusive
        self.whole = encoder.bidirectional
        self.embedding = nn.Embedding(vocab_size, config.embedding_dim)
        nn.init.normal_(self.embedding.weight, std=0.1)
        self.encoder = make_encoder(encoder, config.embedding_dim)
        width = self.encoder.width_out
        self.pooling = make_pooling(config.pooling, width)
        self.head = nn.Linear(width if self.whole else 2 * width, labels)
        self.states: tuple[StateSpec, ...] = (
            () if self.whole else (*self.encoder.states, *self.pooling.states)
        )

    def initial_state(self, batch_size: int) -> State:
        """State before the first word, (B, *shape) each."""
        return fresh(self.states, batch_size, self.head.weight.device)

    def logits(self, tokens: Tensor, lengths: Tensor, state: State) -> tuple[Tensor, State]:
        """Scores before the softmax or sigmoid.

        Args:
            tokens: Words (B, T) int64.
            lengths: How many words each row has (B,) int64.
            state: State before the first word.

        Returns:
            Scores (B, T, labels) for the text up to each word, for whole texts (B, 1, labels), and the next state.
        """
        if self.training and self.config.word_dropout:
            hidden = torch.rand(tokens.shape, device=tokens.device) < self.config.word_dropout
            tokens = tokens.masked_fill(hidden, UNKNOWN_ID)
        count = len(self.encoder.states)
        # Rows of one length need no packing, which takes twice the time.
        ragged = None if bool((lengths == tokens.shape[1]).all()) else lengths
        x, after = self.encoder(self.embedding(tokens), state[:count], ragged)
        positions = torch.arange(x.shape[1], device=x.device)
        valid = (positions < lengths[:, None])[..., None].to(x.dtype)
        if self.whole:
            start = tuple(x.new_zeros(len(x), *s.shape) for s in self.pooling.states)
            pooled, _ = self.pooling(x, valid, start)
            return self.head(pooled[:, -1:]), ()
        pooled, last = self.pooling(x, valid, state[count:])
        return self.head(torch.cat([x, pooled], dim=-1)), (*after, *last)

    def scores(self, tokens: Tensor, lengths: Tensor, state: State) -> tuple[Tensor, State]:
        """Probabilities (B, T, labels) for the text up to each word, or at every word those of all of it."""
        logits, state = self.logits(tokens, lengths, state)
        values = logits.softmax(dim=-1) if self.exclusive else logits.sigmoid()
        return values.expand(-1, tokens.shape[1], -1), state

    def forward(
        self, tokens: Tensor, lengths: Tensor, targets: Tensor, state: State
    ) -> tuple[Tensor, State]:
        """Mean loss of the texts in nats: cross-entropy, or the mean of the labels' binary cross-entropies.

        Args:
            tokens: Words (B, T) int64.
            lengths: How many words each row has (B,) int64.
            targets: 1 where a label holds, else 0; (B, labels).
            state: Empty: every text begins afresh.
        """
        logits, _ = self.logits(tokens, lengths, self.initial_state(len(tokens)))
        losses = self._losses(logits, targets)  # (B, T), for whole texts (B, 1)
        if self.whole:
            return losses.mean(), state
        last = lengths[:, None] - 1
        loss = losses.gather(1, last).mean()
        if self.config.prefix_loss:
            valid = torch.arange(losses.shape[1], device=losses.device) <= last
            means = (losses * valid).sum(dim=1) / lengths
            loss = loss + self.config.prefix_loss * means.mean()
        return loss, state

    def _losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        aims = targets[:, None].expand_as(logits)
        if self.exclusive:
            return -(logits.log_softmax(dim=-1) * aims).sum(dim=-1)
        losses = functional.binary_cross_entropy_with_logits(logits, aims, reduction="none")
        return losses.mean(dim=-1)
