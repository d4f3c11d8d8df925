"""A recurrent language model: one class for Elman networks (tanh, ReLU), LSTM and GRU.

rnn_tanh   h' = tanh(W_xh x + W_hh h + b)                       Elman 1990; rnn_relu likewise with ReLU
lstm       i, f, o = sigmoid(...), g = tanh(...); c' = f c + i g, h' = o tanh(c')
                                                                Hochreiter, Schmidhuber 1997; Gers et al. 2000
gru        reset after the product, Cho et al. 2014 v3          (`linear_before_reset = 1` in ONNX)
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from training.config import ModelConfig
from training.models.adaptive import AdaptiveSoftmax, Factors

State = tuple[Tensor, ...]
GATES = {"rnn_tanh": 1, "rnn_relu": 1, "lstm": 4, "gru": 3}


class SequenceDropout(nn.Module):
    """Dropout with one mask for all time steps of a sequence (Gal, Ghahramani 2016)."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, x: Tensor) -> Tensor:
        """Drop features of x (B, T, D), the same ones at every time step of a row."""
        if not self.training or not self.share:
            return x
        keep = 1 - self.share
        return x * x.new_empty(x.shape[0], 1, x.shape[2]).bernoulli_(keep).div_(keep)


class RecurrentLanguageModel(nn.Module):
    """Next-token distribution of a text, with state carried from call to call.

    Attributes:
        state_names: `h`, and `c` for an LSTM; each is one tensor (B, L, H) of the state.
    """

    def __init__(self, config: ModelConfig, vocab_size: int) -> None:
        super().__init__()
        self.config = config
        self.vocab_size = vocab_size
        self.state_names = ("h", "c") if config.cell == "lstm" else ("h",)
        self.embedding = Factors(config, vocab_size)
        widths = [config.embedding_dim] + [config.hidden_size] * (config.num_layers - 1)
        self.layers = nn.ModuleList(_layer(config, width) for width in widths)
        self.norms = nn.ModuleList(
            nn.LayerNorm(config.hidden_size) if config.layer_norm else nn.Identity() for _ in widths
        )
        self.dropout = SequenceDropout(config.dropout)
        self.output = (
            nn.Identity()
            if config.hidden_size == config.embedding_dim
            else nn.Linear(config.hidden_size, config.embedding_dim)
        )
        factors = self.embedding if config.tied else Factors(config, vocab_size)
        self.softmax = AdaptiveSoftmax(factors)

    def initial_state(self, batch_size: int) -> State:
        """State of a fresh text: zeros, (B, L, H) each."""
        shape = (batch_size, self.config.num_layers, self.config.hidden_size)
        return tuple(self.softmax.tail_bias.new_zeros(shape) for _ in self.state_names)

    def features(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        """Run the layers.

        Args:
            tokens: Token ids (B, T) int64.
            state: State before the first token, (B, L, H) each.

        Returns:
            Features (B, T, E) and the state after the last token.
        """
        x = self.dropout(self.embedding(tokens))
        after: list[tuple[Tensor, ...]] = []
        for i, (layer, norm) in enumerate(zip(self.layers, self.norms, strict=True)):
            before = tuple(part[:, i].unsqueeze(0).to(x.dtype).contiguous() for part in state)
            x, last = layer(x, before if len(before) > 1 else before[0])
            after.append(last if isinstance(last, tuple) else (last,))
            x = self.dropout(norm(x))
        new_state = tuple(torch.cat(parts).transpose(0, 1) for parts in zip(*after, strict=True))
        return self.output(x), new_state

    def forward(self, tokens: Tensor, targets: Tensor, state: State) -> tuple[Tensor, State]:
        """Mean of -log p(target) in nats over tokens and targets (B, T), and the next state."""
        z, state = self.features(tokens, state)
        return self.softmax(z.flatten(0, 1), targets.flatten()), state

    def scores(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        """Log-probabilities (B, T, V) in nats, and the next state."""
        z, state = self.features(tokens, state)
        return self.softmax.scores(z), state


def _layer(config: ModelConfig, width: int) -> nn.Module:
    hidden_size = config.hidden_size
    layer: nn.RNNBase
    if config.cell == "lstm":
        layer = nn.LSTM(width, hidden_size, batch_first=True)
    elif config.cell == "gru":
        layer = nn.GRU(width, hidden_size, batch_first=True)
    else:
        nonlinearity = config.cell.removeprefix("rnn_")
        layer = nn.RNN(width, hidden_size, nonlinearity=nonlinearity, batch_first=True)
    parameters = dict(layer.named_parameters())
    if config.orthogonal:
        for gate in parameters["weight_hh_l0"].detach().chunk(GATES[config.cell]):
            nn.init.orthogonal_(gate)
    if config.cell == "lstm":
        # The forget gate is the second of four; torch adds two biases, so only one starts at this value.
        parameters["bias_hh_l0"].detach().zero_()
        forget = parameters["bias_ih_l0"].detach().zero_().chunk(GATES[config.cell])[1]
        forget.fill_(config.forget_bias)
    return layer
