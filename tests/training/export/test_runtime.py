from __future__ import annotations

from pathlib import Path

import numpy as np

from service.contract import CONFIG_FILE, MODEL_FILE, decode_config
from tests import models
from training.export.runtime import LoadedGraph


def test_texts_side_by_side_are_answered_each_for_itself(tmp_path: Path) -> None:
    directory = models.accumulator(tmp_path)
    config = decode_config((directory / CONFIG_FILE).read_bytes())
    graph = LoadedGraph((directory / MODEL_FILE).read_bytes(), config)
    (tensor,), (output,) = config.inputs, config.outputs
    random = np.random.default_rng(1)
    # More than run at once, of many lengths.
    texts = [
        random.integers(-9, 9, (length, *tensor.shape)).astype(tensor.dtype)
        for length in random.integers(1, 12, 150)
    ]
    found = graph.whole([{tensor.name: text} for text in texts], output.name)
    for text, each in zip(texts, found, strict=True):
        np.testing.assert_array_equal(each, text.cumsum(axis=0))
