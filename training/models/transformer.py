"""A Transformer that is a recurrence: its state is the last W keys and values of each layer, so a session never ends.

Causal, pre-norm, banded: a query attends to itself and to the W - 1 positions before it, whatever came in which call.

    a = x + Attention(norm(x)), y = a + FeedForward(norm(a)); a last norm above the last layer
                                                    Vaswani et al. 2017; pre-norm: Xiong et al. 2020; GELU
    keys and values of the window carried over       Transformer-XL, Dai et al. 2019
    rotary positions                                 Su et al. 2021, the two halves of a head rotated into each other

State. Each layer holds a ring of W keys and W values, (N, W, D); position p stands in slot p mod W. `count` is the
number of positions so far, folded so that it never grows.

Rotary positions for ever. Scores depend on the difference of two positions only, so a key may be rotated once, when it
is stored, by its absolute position; rotating the whole window at every step would cost W times as much. What would
go wrong is the angle: position times frequency loses its digits as the position grows. So every frequency is a whole
number k of turns in a period of P positions: the angle of position p is 2 pi ((k p) mod P) / P, computed in integers
until the last product. Positions p and p + P are then the same thing, exactly, and `count` may be folded at P.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.config import TransformerConfig
from training.models.encoder import Encoder, SequenceDropout, State, StateSpec

# P in windows. The slowest pair of features turns once in P, which within one window is next to nothing.
PERIOD_WINDOWS = 64


class TransformerEncoder(Encoder):
    """Layers of attention and feed-forward over a sequence of vectors.

    With `config.bidirectional` every position sees the whole text, there is no state and the text comes in one call.

    The state is `keys_i` and `values_i`, (N, W, D), of each layer i, and `count`, (1,) int64.

    Args:
        config: Shape.
        width_in: E; another number than `config.width` is projected.
    """

    def __init__(self, config: TransformerConfig, width_in: int) -> None:
        super().__init__()
        self.config = config
        self.width_in = width_in
        self.width_out = config.width
        self.head_size = config.width // config.heads
        self.period = PERIOD_WINDOWS * config.window
        self.states = () if config.bidirectional else self._states()
        self.input: nn.Module = (
            nn.Identity() if width_in == config.width else nn.Linear(width_in, config.width)
        )
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.norm = nn.LayerNorm(config.width)
        self.dropout = SequenceDropout(config.dropout)
        self.register_buffer("turns", turns(self.head_size, self.period), persistent=False)
        self.turns: Tensor
        self._initialise()

    def _states(self) -> tuple[StateSpec, ...]:
        ring = (self.config.heads, self.config.window, self.head_size)
        rings = [
            StateSpec(name=f"{kind}_{i}", shape=ring)
            for i in range(self.config.num_layers)
            for kind in ("keys", "values")
        ]
        return (*rings, StateSpec(name="count", shape=(1,), dtype="int64"))

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        # The variance of a sum of 2 L branches stays that of one (Radford et al. 2019).
        for name, weight in self.named_parameters():
            if name.endswith(("output.weight", "contract.weight")):
                weight.detach().mul_((2 * self.config.num_layers) ** -0.5)

    def forward(
        self, x: Tensor, state: State, lengths: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """See `Encoder.forward`; a chunk may be longer than W."""
        B, T = x.shape[:2]
        lengths = torch.full((B,), T, device=x.device) if lengths is None else lengths.long()
        # Inputs of unit variance and embeddings of variance 1 / E both come to a scale that the branches add to
        # (Vaswani et al. 2017, section 3.4).
        x = self.dropout(self.input(x * self.width_in**0.5))
        if self.config.bidirectional:
            return self._whole(x, lengths), ()
        *rings, count = state
        rotation = self._rotation(count + torch.arange(T, device=x.device))
        visible = self._visible(count, T)
        source = ring_source(count, lengths, self.config.window)
        after: list[Tensor] = []
        for block, keys, values in zip(self.blocks, rings[::2], rings[1::2], strict=True):
            x, new_keys, new_values = block(x, rotation, visible, (keys, values))
            after += [write(keys, new_keys, source), write(values, new_values, source)]
        return self.dropout(self.norm(x)), (*after, self._folded(count + lengths[:, None]))

    def _whole(self, x: Tensor, lengths: Tensor) -> Tensor:
        places = torch.arange(x.shape[1], device=x.device)
        visible = (places < lengths[:, None])[:, None, None]  # (B, 1, 1, T)
        for block in self.blocks:
            x = block(x, self._rotation(places[None]), visible, None)[0]
        features: Tensor = self.dropout(self.norm(x))
        return features

    def _rotation(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and signed sine (B, 1, T, D) for positions (B, T) int64."""
        angles = (positions[..., None] * self.turns % self.period) * (math.tau / self.period)
        angles = angles[:, None].to(self.norm.weight.dtype)
        return angles.cos(), angles.sin()

    def _visible(self, count: Tensor, T: int) -> Tensor:
        """Which of the W slots and T new keys each query sees, (B, 1, T, W + T)."""
        window = self.config.window
        place = torch.arange(T, device=count.device)
        slots = torch.arange(window, device=count.device)
        age = (count - 1 - slots) % window + 1  # (B, W): how far the slot lies before the chunk
        old = (age[:, None] + place[:, None] < window) & (age <= count)[:, None]  # (B, T, W)
        distance = place[:, None] - place
        new = (distance >= 0) & (distance < window)  # (T, T)
        return torch.cat([old, new.expand(len(count), T, T)], dim=-1)[:, None]

    def _folded(self, count: Tensor) -> Tensor:
        """The same position modulo P and modulo W, the same filling of the ring, and below P + W."""
        window = self.config.window
        return count.clamp(max=window) + (count - window).clamp(min=0) % self.period


class Block(nn.Module):
    """One layer: attention and feed-forward, each behind a norm and beside a residual."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.attention_norm = nn.LayerNorm(config.width)
        self.query_key_value = nn.Linear(config.width, 3 * config.width)
        self.output = nn.Linear(config.width, config.width)
        self.feedforward_norm = nn.LayerNorm(config.width)
        self.expand = nn.Linear(config.width, config.feedforward)
        self.contract = nn.Linear(config.feedforward, config.width)
        self.dropout = SequenceDropout(config.dropout)

    def forward(
        self,
        x: Tensor,
        rotation: tuple[Tensor, Tensor],
        visible: Tensor,
        memory: tuple[Tensor, Tensor] | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Run the layer.

        Args:
            x: (B, T, N * D).
            rotation: Cosine and signed sine of the positions, each (B, 1, T, D).
            visible: Which keys a query sees, (B, 1, T, W + T), without memory (B, 1, 1, T).
            memory: Keys, rotated, and values from before, each (B, N, W, D).

        Returns:
            y (B, T, N * D), and the rotated keys and the values of x, each (B, N, T, D).
        """
        heads = self.query_key_value(self.attention_norm(x)).unflatten(-1, (3 * self.heads, -1))
        query, key, value = heads.transpose(1, 2).chunk(3, dim=1)  # (B, N, T, D) each
        query, key = rotate(query, *rotation), rotate(key, *rotation)
        keys, values = key, value
        if memory is not None:
            keys = torch.cat([memory[0].to(key.dtype), key], dim=2)
            values = torch.cat([memory[1].to(value.dtype), value], dim=2)
        read = functional.scaled_dot_product_attention(query, keys, values, attn_mask=visible)
        x = x + self.dropout(self.output(read.transpose(1, 2).flatten(2)))
        hidden = self.dropout(functional.gelu(self.expand(self.feedforward_norm(x))))
        return x + self.dropout(self.contract(hidden)), key, value


def turns(head_size: int, period: int) -> Tensor:
    """Turns in a period of each feature pair, (D,) int64: geometric from one radian a position to one turn a period.

    The first half, which the sine enters with a minus, turns backwards.
    """
    pairs = torch.linspace(1, 0, head_size // 2, dtype=torch.float64)
    whole = torch.round((period / math.tau) ** pairs).long()
    return torch.cat([-whole, whole])


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotate the halves of x (..., D) into each other; the sine is negative in the first half."""
    first, second = x.chunk(2, dim=-1)
    return x * cosine.to(x.dtype) + torch.cat([second, first], dim=-1) * sine.to(x.dtype)


def ring_source(count: Tensor, lengths: Tensor, window: int) -> Tensor:
    """For each slot the time step (B, W) of the chunk that it takes; negative where it keeps what it has.

    Args:
        count: Positions before the chunk (B, 1).
        lengths: Time steps of the chunk (B,).
        window: W.
    """
    last = lengths[:, None] - 1
    return last - (count + last - torch.arange(window, device=count.device)) % window


def write(ring: Tensor, new: Tensor, source: Tensor) -> Tensor:
    """The ring (B, N, W, D) after new (B, N, T, D) went in; see `ring_source`."""
    place = source[:, None, :, None]
    index = place.clamp(min=0).expand(*ring.shape)
    return torch.where(place >= 0, new.gather(2, index).to(ring.dtype), ring)
