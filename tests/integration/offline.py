"""One offline pass of the test language model in PyTorch, and what the API would say of it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from tests.models import EMBEDDING, HIDDEN, WORDS, language_weights

Array = npt.NDArray[np.float64]


def _network() -> torch.nn.LSTM:
    weights = {name: torch.from_numpy(value) for name, value in language_weights().items()}

    def gates(rows: torch.Tensor) -> torch.Tensor:
        # ONNX orders them input, output, forget, cell; PyTorch input, forget, cell, output.
        i, o, f, c = rows.chunk(4)
        return torch.cat([i, f, c, o])

    network = torch.nn.LSTM(EMBEDDING, HIDDEN, batch_first=True)
    w_bias, r_bias = weights["bias"][0].chunk(2)
    network.load_state_dict(
        {
            "weight_ih_l0": gates(weights["W"][0]),
            "weight_hh_l0": gates(weights["R"][0]),
            "bias_ih_l0": gates(w_bias),
            "bias_hh_l0": gates(r_bias),
        }
    )
    return network


_NETWORK = _network()
_E, _D = (torch.from_numpy(language_weights()[name]) for name in "ED")


def log_probabilities(tokens: list[int]) -> Array:
    """log p(next token) after each token, (T, V)."""
    with torch.no_grad():
        hidden, _ = _NETWORK(_E[torch.tensor([tokens])])
        scores = torch.log_softmax((hidden[0] @ _D).double(), dim=1)
    result: Array = scores.numpy()
    return result


def ids(words: str) -> list[int]:
    """Token ids of words that are all in the vocabulary."""
    return [WORDS.index(word) for word in words.split()]


def compare(answer: list[dict[str, object]], expected: Array, tolerance: float = 1e-5) -> None:
    """Compare the likeliest words of one answer with log-probabilities (V,)."""
    probabilities = np.exp(expected)
    best = np.argsort(-probabilities)[: len(answer)]
    for each, i in zip(answer, best, strict=True):
        assert each["token"] == WORDS[each["id"]]  # type: ignore[index]
        # Two words of nearly the same probability may change places.
        assert abs(probabilities[each["id"]] - probabilities[i]) <= tolerance
        assert abs(each["score"] - probabilities[each["id"]]) <= tolerance  # type: ignore[operator]
