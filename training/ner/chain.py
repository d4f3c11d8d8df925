"""A linear chain over tags: its likelihood, to learn from, and its forward filter, to answer with.

P(y | x) is proportional to the product over t of M(y_t-1, y_t) exp(e_t(y_t)), with M = exp(A) where a step is allowed
and 0 where not; before the first word the tag is `O`.       Lafferty, McCallum, Pereira 2001

The filter is p_t(y) = P(y_t | x_1..t) = softmax(log(p_t-1 M) + e_t). It needs one vector of the past, so it is a state
that starts as zeros: the probability of each tag but `O` at the last word.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from service.entities import OUTSIDE
from training.models.encoder import StateSpec

# log 0, without what an infinity does to gradients.
_FORBIDDEN = -1e4


class Chain(nn.Module):
    """The chain over some tags.

    Args:
        labels: Tags in IOB2; the first is `O`.
    """

    def __init__(self, labels: Sequence[str]) -> None:
        super().__init__()
        self.state = StateSpec("filter", (len(labels) - 1,))
        self.weight = nn.Parameter(torch.zeros(len(labels), len(labels)))
        forbidden = [[_forbids(a, b) for b in labels] for a in labels]
        self.register_buffer("forbidden", torch.tensor(forbidden), persistent=False)
        self.forbidden: Tensor

    def factors(self) -> Tensor:
        """M (K, K)."""
        return self.weight.exp().masked_fill(self.forbidden, 0.0)

    def log_likelihood(self, emissions: Tensor, tags: Tensor) -> Tensor:
        """Log P(y | x) in nats, (B,).

        Args:
            emissions: e (B, T, K).
            tags: y (B, T) int64, such that IOB2 allows.
        """
        steps = self.weight.masked_fill(self.forbidden, _FORBIDDEN)
        before = torch.cat([torch.zeros_like(tags[:, :1]), tags[:, :-1]], dim=1)
        said = emissions.gather(2, tags[..., None]).squeeze(2) + steps[before, tags]
        first, *rest = emissions.unbind(1)
        total = steps[0] + first
        for emission in rest:
            total = (total[:, :, None] + steps).logsumexp(1) + emission
        return said.sum(1) - total.logsumexp(1)

    def filter(self, emissions: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Probabilities p (B, T, K) from emissions (B, T, K) and the state (B, K - 1) before; and the state after."""
        factors = self.factors()
        outside = (1 - state.sum(1, keepdim=True)).clamp_min(0)
        now = torch.cat([outside, state], dim=1)
        result: list[Tensor] = []
        for emission in emissions.unbind(1):
            now = ((now @ factors).log() + emission).softmax(1)
            result.append(now)
        return torch.stack(result, dim=1), now[:, 1:]


def _forbids(before: str, after: str) -> bool:
    """Whether IOB2 forbids a tag after another: `I-` of a kind goes on with an entity of that kind only."""
    return after.startswith("I-") and (before == OUTSIDE or before[2:] != after[2:])
