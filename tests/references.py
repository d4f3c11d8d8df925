"""What the models for tests ought to say, computed in one pass and by other means than the service's."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence

import numpy as np
import torch

from tests.models import EMBEDDING, HIDDEN, language_weights


@functools.cache
def torch_language_model() -> torch.nn.LSTM:
    """The recurrent layer of the test language model in PyTorch, with the same weights."""
    # So small a model is faster on one thread, and does not wait for the others to get a core.
    torch.set_num_threads(1)
    weights = language_weights()

    def gates(rows: np.ndarray) -> torch.Tensor:
        # ONNX stacks the gates as i, o, f, c; PyTorch as i, f, g (ONNX's c), o.
        i, o, f, c = np.split(rows, 4)
        return torch.from_numpy(np.concatenate([i, f, c, o]))

    lstm = torch.nn.LSTM(EMBEDDING, HIDDEN, batch_first=True)
    bias_input, bias_hidden = np.split(weights["bias"][0], 2)
    lstm.load_state_dict(
        {
            "weight_ih_l0": gates(weights["W"][0]),
            "weight_hh_l0": gates(weights["R"][0]),
            "bias_ih_l0": gates(bias_input),
            "bias_hh_l0": gates(bias_hidden),
        }
    )
    return lstm.eval()


@torch.no_grad()
def torch_logits(tokens: Sequence[int]) -> np.ndarray:
    """One offline pass of PyTorch over the test language model, (T, V)."""
    weights = language_weights()
    hidden, _ = torch_language_model()(torch.from_numpy(weights["E"][list(tokens)])[None])
    logits: np.ndarray = hidden[0].numpy() @ weights["D"]
    return logits


def plan(weather: Sequence[str]) -> list[str]:
    """The weekend planner: every rainy weekend moves on by one, every sunny one stays."""
    activities = ("museum", "movies", "party")
    moves = itertools.accumulate(each == "rainy" for each in weather)
    return [activities[moved % 3] for moved in moves]
