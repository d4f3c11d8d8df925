"""Recurrent encoders: one class for Elman networks (tanh, ReLU), LSTM and GRU.

rnn_tanh   h' = tanh(W_xh x + W_hh h + b)                       Elman 1990; rnn_relu likewise with ReLU
lstm       i, f, o = sigmoid(...), g = tanh(...); c' = f c + i g, h' = o tanh(c')
                                                                Hochreiter, Schmidhuber 1997; Gers et al. 2000
gru        reset after the product, Cho et al. 2014 v3          (`linear_before_reset = 1` in ONNX)

Bidirectional: a second layer reads from the end (Schuster, Paliwal 1997), and each position has both halves.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from training.config import RecurrentConfig
from training.models.encoder import Encoder, SequenceDropout, State, StateSpec

GATES = {"rnn_tanh": 1, "rnn_relu": 1, "lstm": 4, "gru": 3}


class RecurrentEncoder(Encoder):
    """Layers of one kind of cell.

    The state is `h`, and `c` for an LSTM, (L, H) each; a bidirectional one has none.
    """

    def __init__(self, config: RecurrentConfig, width_in: int) -> None:
        super().__init__()
        self.config = config
        directions = 2 if config.bidirectional else 1
        self.width_in = width_in
        self.width_out = directions * config.hidden_size
        widths = [width_in] + [self.width_out] * (config.num_layers - 1)
        self.layers = nn.ModuleList(_layer(config, width) for width in widths)
        self.norms = nn.ModuleList(
            nn.LayerNorm(self.width_out) if config.layer_norm else nn.Identity() for _ in widths
        )
        self.dropout = SequenceDropout(config.dropout)
        names = ("h", "c") if config.cell == "lstm" else ("h",)
        shape = (config.num_layers, config.hidden_size)
        self.states = () if config.bidirectional else tuple(StateSpec(n, shape) for n in names)

    def forward(
        self, x: Tensor, state: State, lengths: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """See `Encoder.forward`."""
        x = self.dropout(x)
        after: list[tuple[Tensor, ...]] = []
        for i, (layer, norm) in enumerate(zip(self.layers, self.norms, strict=True)):
            before = tuple(part[:, i].unsqueeze(0).to(x.dtype).contiguous() for part in state)
            x, last = _run(layer, x, before, lengths)
            after.append(last)
            x = self.dropout(norm(x))
        if not self.states:
            return x, ()
        return x, tuple(torch.cat(parts).transpose(0, 1) for parts in zip(*after, strict=True))


def _run(
    layer: nn.Module, x: Tensor, before: State, lengths: Tensor | None
) -> tuple[Tensor, tuple[Tensor, ...]]:
    start = None if not before else before if len(before) > 1 else before[0]
    if lengths is None:
        x, last = layer(x, start)
    else:
        packed = pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
        packed, last = layer(packed, start)
        x, _ = pad_packed_sequence(packed, batch_first=True, total_length=x.shape[1])
    return x, last if isinstance(last, tuple) else (last,)


def _layer(config: RecurrentConfig, width: int) -> nn.Module:
    kind: type[nn.RNNBase]
    options: dict[str, str] = {}
    if config.cell == "lstm":
        kind = nn.LSTM
    elif config.cell == "gru":
        kind = nn.GRU
    else:
        kind, options = nn.RNN, {"nonlinearity": config.cell.removeprefix("rnn_")}
    layer = kind(
        width,
        config.hidden_size,
        batch_first=True,
        bidirectional=config.bidirectional,
        **options,
    )
    parameters = dict(layer.named_parameters())
    for direction in ("", "_reverse") if config.bidirectional else ("",):
        if config.orthogonal:
            recurrent = parameters[f"weight_hh_l0{direction}"].detach()
            for gate in recurrent.chunk(GATES[config.cell]):
                nn.init.orthogonal_(gate)
        if config.cell == "lstm":
            # The forget gate is the second of four; torch adds two biases, so only one starts at this value.
            parameters[f"bias_hh_l0{direction}"].detach().zero_()
            bias = parameters[f"bias_ih_l0{direction}"].detach().zero_()
            bias.chunk(GATES[config.cell])[1].fill_(config.forget_bias)
    return layer
