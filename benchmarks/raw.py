"""Bare ONNX Runtime: what every figure is held against, and where the right answers come from.

Nothing of the service here but the schema of a model: no graph, arena or engine of it can make its own reference.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from service.contract import CONFIG_FILE, MODEL_FILE, ModelConfig, NextWord, decode_config

Array = npt.NDArray[Any]
Arrays = dict[str, Array]

# All that this process may use, before anything is pinned.
CORES = sorted(os.sched_getaffinity(0))
SERVER_CORE, CLIENT_CORE = CORES[0], CORES[-1]


@contextmanager
def pinned(core: int | None) -> Iterator[None]:
    """Run this thread, and what it starts, on one core; on any, if None."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, CORES if core is None else {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@dataclass(frozen=True)
class Speed:
    """Steps a second, and microseconds of CPU a step."""

    steps_s: float
    cpu_us: float


class Raw:
    """A model file in ONNX Runtime with one thread, as the service runs it.

    Args:
        directory: `<name>/<version>/` of an exported model.
        file: The graph in it.
    """

    def __init__(self, directory: Path, file: str = MODEL_FILE) -> None:
        self.config: ModelConfig = decode_config((directory / CONFIG_FILE).read_bytes())
        self.path = directory / file
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        # That an input has a default is worth a warning to it.
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = onnxruntime.InferenceSession(
            self.path, options, providers=["CPUExecutionProvider"]
        )
        spec = self.config.task
        named = tuple(output.name for output in self.config.outputs)
        # As the service: the scores of all words stay in the graph.
        self.outputs = (
            tuple(n for n in named if n != "logits") if isinstance(spec, NextWord) else named
        )
        self._states = {s.output_name: s.input_name for s in self.config.state}

    def feeds(self, batch: int, time_steps: int = 1) -> Arrays:
        """Zeros and fresh states for a batch of whole rows."""
        feeds: Arrays = {
            t.name: np.zeros((batch, time_steps, *t.shape), t.dtype) for t in self.config.inputs
        }
        feeds[self.config.lengths] = np.full(batch, time_steps, np.int32)
        for state in self.config.state:
            feeds[state.input_name] = np.stack([state.initial_array()] * batch)
        return feeds

    def step(self, feeds: Arrays) -> Arrays:
        """Run once, hand the states on inside `feeds`, and return the outputs."""
        names = [*self.outputs, *self._states]
        result = dict(zip(names, self._session.run(names, feeds), strict=True))
        for output, state in self._states.items():
            feeds[state] = result.pop(output)
        return result

    def speed(self, batch: int, inputs: Sequence[Arrays], seconds: float) -> Speed:
        """A bare loop on the server's core.

        Args:
            batch: B.
            inputs: Feeds (B, 1, *shape) to go round in.
            seconds: For how long.
        """
        feeds = self.feeds(batch)
        with pinned(SERVER_CORE):
            self.step(feeds | inputs[0])
            runs, begin, cpu = 0, time.perf_counter(), time.thread_time()
            while (now := time.perf_counter()) - begin < seconds:
                feeds |= inputs[runs % len(inputs)]
                self.step(feeds)
                runs += 1
            cpu = time.thread_time() - cpu
        return Speed(runs * batch / (now - begin), cpu / (runs * batch) * 1e6)
