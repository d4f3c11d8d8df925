from __future__ import annotations

import itertools
import math

import pytest
import torch

from service import entities
from training.ner.chain import Chain

LABELS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")


@pytest.fixture
def chain() -> Chain:
    torch.manual_seed(1)
    chain = Chain(LABELS).double()
    torch.nn.init.normal_(chain.weight)
    return chain


def allowed(tags: tuple[int, ...]) -> bool:
    names = ["O", *(LABELS[tag] for tag in tags)]
    return all(
        not b.startswith("I-") or (a != "O" and a[2:] == b[2:])
        for a, b in itertools.pairwise(names)
    )


def score(chain: Chain, emissions: torch.Tensor, tags: tuple[int, ...]) -> float:
    """Of one way to tag a text (T, K), from the equation."""
    before = (0, *tags[:-1])
    return sum(
        float((chain.weight[a, b] + emissions[t, b]).detach())
        for t, (a, b) in enumerate(zip(before, tags, strict=True))
    )


def every_way(length: int) -> list[tuple[int, ...]]:
    return [t for t in itertools.product(range(len(LABELS)), repeat=length) if allowed(t)]


@pytest.mark.parametrize("length", [1, 2, 4])
def test_likelihood_is_a_share_of_all_allowed_ways(chain: Chain, length: int) -> None:
    emissions = torch.randn(2, length, len(LABELS), dtype=torch.float64)
    ways = every_way(length)
    for row in range(2):
        total = math.log(sum(math.exp(score(chain, emissions[row], way)) for way in ways))
        found = chain.log_likelihood(
            emissions[row].expand(len(ways), -1, -1), torch.tensor(ways)
        ).tolist()
        due = [score(chain, emissions[row], way) - total for way in ways]
        assert found == pytest.approx(due)


def test_filter_is_the_probability_of_each_tag_given_the_words_so_far(chain: Chain) -> None:
    emissions = torch.randn(1, 4, len(LABELS), dtype=torch.float64)
    start = torch.zeros(1, *chain.state.shape, dtype=torch.float64)
    found, last = chain.filter(emissions, start)
    for length in range(1, 5):
        due = [0.0] * len(LABELS)
        for way in every_way(length):
            due[way[-1]] += math.exp(score(chain, emissions[0], way))
        total = sum(due)
        assert found[0, length - 1].tolist() == pytest.approx([each / total for each in due])
    assert last[0].tolist() == found[0, -1, 1:].tolist()


def test_filter_in_parts_is_the_filter_of_the_whole(chain: Chain) -> None:
    emissions = torch.randn(3, 7, len(LABELS), dtype=torch.float64)
    state = torch.zeros(3, *chain.state.shape, dtype=torch.float64)
    due, last = chain.filter(emissions, state)
    parts = []
    for part in emissions.split([1, 4, 2], dim=1):
        scores, state = chain.filter(part, state)
        parts.append(scores)
    torch.testing.assert_close(torch.cat(parts, dim=1), due)
    torch.testing.assert_close(state, last)


def test_the_service_decodes_the_likeliest_tags_of_the_chain(chain: Chain) -> None:
    decoder = entities.Chain(LABELS, chain.factors().tolist())
    for _ in range(20):
        emissions = torch.randn(1, 4, len(LABELS), dtype=torch.float64) * 2
        start = torch.zeros(1, *chain.state.shape, dtype=torch.float64)
        filtered = chain.filter(emissions, start)[0][0].detach().numpy()
        best = max(every_way(4), key=lambda way: score(chain, emissions[0], way))
        assert tuple(decoder.tags(filtered)) == best


def test_gradients_of_forbidden_steps_are_zero(chain: Chain) -> None:
    emissions = torch.randn(2, 5, len(LABELS), dtype=torch.float64, requires_grad=True)
    tags = torch.tensor([[0, 1, 2, 0, 3], [3, 4, 1, 2, 2]])
    (-chain.log_likelihood(emissions, tags).sum()).backward()
    assert chain.weight.grad is not None
    assert torch.isfinite(chain.weight.grad).all()
    assert torch.isfinite(emissions.grad).all()
    assert (chain.weight.grad[chain.forbidden] == 0).all()
    assert (chain.weight.grad[~chain.forbidden] != 0).any()
