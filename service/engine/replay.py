"""A step in buffers that never move, so that a GPU can be told once what to do and then only when.

ONNX Runtime captures such a run as a CUDA graph, by an id of its own for each number of rows, and replays it. It runs
the model more than once to capture it: so the first run is of row `INITIAL` alone, whose result goes to nobody. Other
providers know no such ids, and simply run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnxruntime as ort

from service.contract import ModelConfig
from service.engine import wrap
from service.engine.arena import Array
from service.engine.graph import Device

_ID = "gpu_graph_id"


def eager() -> ort.RunOptions:
    """Options of a run that is not to be captured, in a session whose runs are."""
    options = ort.RunOptions()
    options.add_run_config_entry(_ID, "-1")
    return options


class Replay:
    """The step of a fixed number of rows, one time step each.

    Args:
        session: The wrapped graph.
        binding: Of it, with the states' buffers bound.
        config: What the model promises.
        rows: How many.
        device: Where the buffers are.
    """

    def __init__(
        self,
        session: ort.InferenceSession,
        binding: ort.IOBinding,
        config: ModelConfig,
        rows: int,
        device: Device,
    ) -> None:
        self._session, self._binding, self._rows = session, binding, rows
        self._options = ort.RunOptions()
        # 0 is the id of all that has none.
        self._options.add_run_config_entry(_ID, str(rows))
        self._initial = {t.name: np.zeros((rows, 1, *t.shape), t.dtype) for t in config.inputs}
        self._initial[config.lengths] = np.ones(rows, np.int32)
        self._initial[wrap.ROWS] = np.full(rows, wrap.INITIAL)
        self._initial[wrap.ASKED] = np.zeros(len(config.outputs), np.bool_)
        self._inputs = {
            name: ort.OrtValue.ortvalue_from_numpy(array.copy(), device)
            for name, array in self._initial.items()
        }
        self._outputs = {
            t.name: _empty((rows, 1, *t.shape), t.dtype, device) for t in config.outputs
        }
        self._outputs[wrap.FINITE] = _empty((rows,), "bool", device)
        for name, value in self._inputs.items():
            binding.bind_ortvalue_input(name, value)
        for name, value in self._outputs.items():
            binding.bind_ortvalue_output(name, value)
        self.run({}, [])

    def run(self, feeds: Mapping[str, Array], wanted: Sequence[str]) -> dict[str, Array]:
        """Run once; of fewer rows the last ones are filled up with `INITIAL`."""
        count = len(feeds[wrap.ROWS]) if feeds else 0
        for name, held in self._inputs.items():
            values = self._initial[name]
            if name == wrap.ASKED and feeds:
                values = feeds[name]
            elif count:
                values = np.concatenate([feeds[name], values[count:]])
            held.update_inplace(np.ascontiguousarray(values))
        # The copies may still be on their way; a replay does not wait for them.
        self._binding.synchronize_inputs()
        self._session.run_with_iobinding(self._binding, self._options)
        return {name: self._outputs[name].numpy()[:count] for name in wanted}


def _empty(shape: tuple[int, ...], dtype: str, device: Device) -> ort.OrtValue:
    return ort.OrtValue.ortvalue_from_numpy(np.zeros(shape, dtype), device)
