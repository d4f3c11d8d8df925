"""Embedding and softmax over a vocabulary sorted by falling frequency, in clusters of falling width.

Frequent tokens get full-width vectors, rare ones narrow vectors and a projection. With no cutoffs there is one
cluster, and these are the plain embedding and the plain softmax.

    softmax:    Grave, Joulin, Cisse, Grangier, Jegou 2017, "Efficient softmax approximation for GPUs"
    embedding:  Baevski, Auli 2019, "Adaptive input representations for neural language modeling"
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.config import ConfigError
from training.next_word.config import ModelConfig


class Factors(nn.Module):
    """One vector of width E for each token, held as `table[i] @ projection[i]` for each cluster i.

    Attributes:
        bounds: First token id of each cluster, and V.
        tables: One (V_i, D_i) for each cluster; D_0 = E.
        projections: One (D_i, E) for each cluster but the first.

    Raises:
        ConfigError: A cutoff does not lie within the vocabulary.
    """

    def __init__(self, config: ModelConfig, vocab_size: int) -> None:
        super().__init__()
        self.bounds = (0, *config.cutoffs, vocab_size)
        if sorted(set(self.bounds)) != list(self.bounds):
            raise ConfigError(f"cutoffs {config.cutoffs} do not fit a vocabulary of {vocab_size}")
        widths = (config.embedding_dim, *config.cutoff_dims)
        sizes = [high - low for low, high in self.clusters()]
        self.tables = nn.ParameterList(
            nn.Parameter(torch.empty(size, width).uniform_(-0.1, 0.1))
            for size, width in zip(sizes, widths, strict=True)
        )
        # This scale gives the embeddings of every cluster the same variance.
        self.projections = nn.ParameterList(
            nn.Parameter(torch.randn(width, config.embedding_dim) / width**0.5)
            for width in config.cutoff_dims
        )

    def clusters(self) -> Iterator[tuple[int, int]]:
        """First token id of each cluster and the one after its last."""
        return itertools.pairwise(self.bounds)

    def forward(self, tokens: Tensor) -> Tensor:
        """Embed tokens (..., ) int64 as (..., E)."""
        flat = tokens.reshape(-1)
        embedded: Tensor = self.tables[0].new_zeros(flat.shape[0], self.tables[0].shape[1])
        for i, (low, high) in enumerate(self.clusters()):
            rows = ((flat >= low) & (flat < high)).nonzero().squeeze(1)
            vectors = functional.embedding(flat[rows] - low, self.tables[i])
            if i:
                vectors = vectors @ self.projections[i - 1]
            embedded = embedded.index_copy(0, rows, vectors.to(embedded.dtype))
        return embedded.reshape(*tokens.shape, embedded.shape[1])


class AdaptiveSoftmax(nn.Module):
    """log p(token | z): a head over the first cluster and one entry for each tail, then a softmax in that tail."""

    def __init__(self, factors: Factors) -> None:
        super().__init__()
        self.factors = factors
        tails = len(factors.projections)
        width = factors.tables[0].shape[1]
        self.tail_weight = nn.Parameter(torch.empty(tails, width).uniform_(-0.1, 0.1))
        self.tail_bias = nn.Parameter(torch.zeros(tails))
        self.biases = nn.ParameterList(
            nn.Parameter(torch.zeros(table.shape[0])) for table in factors.tables
        )

    def head(self, z: Tensor) -> Tensor:
        """Scores (..., V_0 + tails) for z (..., E)."""
        weight = torch.cat([self.factors.tables[0], self.tail_weight])
        return functional.linear(z, weight, torch.cat([self.biases[0], self.tail_bias]))

    def tail(self, i: int, z: Tensor) -> Tensor:
        """Scores (..., V_i) of tail cluster i >= 1 for z (..., E)."""
        narrow = functional.linear(z, self.factors.projections[i - 1])
        return functional.linear(narrow, self.factors.tables[i], self.biases[i])

    def forward(self, z: Tensor, targets: Tensor) -> Tensor:
        """Mean of -log p(target) in nats, without scoring tails that no target needs.

        Args:
            z: Features (N, E).
            targets: Token ids (N,) int64.
        """
        head_targets = targets
        total = z.new_zeros(())
        for i, (low, high) in enumerate(self.factors.clusters()):
            if i:
                # An empty selection keeps its parameters in the graph, as data-parallel training demands.
                rows = ((targets >= low) & (targets < high)).nonzero().squeeze(1)
                head_targets = head_targets.index_fill(0, rows, self.factors.bounds[1] + i - 1)
                total = total + functional.cross_entropy(
                    self.tail(i, z[rows]), targets[rows] - low, reduction="sum"
                )
        total = total + functional.cross_entropy(self.head(z), head_targets, reduction="sum")
        return total / targets.shape[0]

    def scores(self, z: Tensor) -> Tensor:
        """Exact log p (..., V) of every token, in nats, for z (..., E)."""
        head = functional.log_softmax(self.head(z), dim=-1)
        size = self.factors.bounds[1]
        parts = [head[..., :size]]
        for i in range(1, len(self.factors.tables)):
            gate = head[..., size + i - 1, None]
            parts.append(functional.log_softmax(self.tail(i, z), dim=-1) + gate)
        return torch.cat(parts, dim=-1)
