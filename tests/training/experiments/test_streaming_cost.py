from __future__ import annotations

import numpy as np
import pytest

from training.config import TransformerConfig
from training.experiments import streaming_cost
from training.experiments.streaming_cost import Findings, Graph, Settings, Stream
from training.models.encoders import make_encoder

TINY = Settings(
    contexts=(1, 4, 9),
    recomputed=(1, 4),
    width_in=4,
    transformer=TransformerConfig(width=8, heads=2, num_layers=2, feedforward=8, window=4),
    repeats=5,
)


def test_states_have_the_bytes_of_their_architecture_at_every_context() -> None:
    findings = streaming_cost.measure(TINY)
    streams = {stream.architecture: stream for stream in findings.streams}
    # Two layers of keys and values in the window, and the position.
    assert streams["transformer"].state_bytes == 2 * 2 * 8 * 4 * 4 + 8
    assert streams["lstm"].state_bytes % (2 * 2 * 4) == 0
    assert findings.cache_bytes == tuple(2 * 2 * 8 * 4 * context for context in TINY.contexts)
    for stream in findings.streams:
        assert len(stream.step_us) == len(TINY.contexts)
        assert min(stream.step_us) > 0
    assert len(findings.recompute_us) == len(TINY.recomputed)


def test_a_timed_step_is_taken_after_so_many_and_leaves_no_trace() -> None:
    graph = Graph(make_encoder(TINY.transformer, TINY.width_in).eval())
    graph.run(np.zeros((1, 3, TINY.width_in), np.float32))
    before = [part.copy() for part in graph.state]
    assert streaming_cost._median_us(graph, np.ones((1, 1, TINY.width_in), np.float32), 5) > 0
    for part, due in zip(graph.state, before, strict=True):
        np.testing.assert_array_equal(part, due)


@pytest.mark.parametrize(("last", "said"), [(10.0, "and Transformer."), (90.0, "the others vary")])
def test_a_cost_is_called_flat_only_if_it_is(last: float, said: str) -> None:
    streams = tuple(
        Stream(
            architecture=name,
            parameters=1,
            state_bytes=64,
            step_us=(10.0, 10.0, last if name == "transformer" else 10.0),
        )
        for name in ("rnn", "gru", "lstm", "transformer")
    )
    findings = Findings(streams=streams, recompute_us=(1.0, 20.0), cache_bytes=(1, 2, 3))
    assert said in streaming_cost.describe(TINY, findings)
