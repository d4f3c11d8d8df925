"""States on the device that computes, in one buffer per state tensor, which the model itself reads and writes.

The buffers are bound as input and as output of the wrapped graph (`wrap`), so a step writes the rows it steps in
place, and no state comes to the host but by `read`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from service.contract import ContractError, ModelConfig
from service.engine import wrap
from service.engine.arena import Array, Finite
from service.engine.decompose import step_cells
from service.engine.graph import (
    Device,
    check_signature,
    open_session,
    options_of,
    scratch_feeds,
)
from service.engine.replay import Replay, eager
from service.settings import DEFAULT_GPU, Gpu

log = logging.getLogger(__name__)

Rows = npt.NDArray[np.int64]


class BoundGraph:
    """A loaded model that holds the states it steps; it can be run like a `Graph` too, for checks and trials.

    Args:
        model: Content of model.onnx.
        config: What the graph promises; it has at least one state.
        device: Where graph and states are.
        threads: Threads of one run.
        gpu: How a GPU is used.
        cells: Whether single time steps are computed by cells taken apart (`decompose`).

    Raises:
        ContractError: The graph cannot be loaded, or not on the device, or is not what `config` says.
    """

    def __init__(
        self,
        model: bytes,
        config: ModelConfig,
        device: Device = "cpu",
        threads: int = 1,
        gpu: Gpu = DEFAULT_GPU,
        *,
        cells: bool = False,
    ) -> None:
        self.config = config
        self.device = device
        # Capture is for single steps: in longer chunks the lengths differ, and some operators take them on the host.
        self.replays = gpu.graphs

        def load(content: bytes, *, graphs: bool = False) -> ort.InferenceSession:
            return open_session(content, device, threads, replace(gpu, graphs=graphs))

        wrapped = wrap.step_graph(model, config)
        self.step = load(wrapped)
        check_signature(self.step, config, ())
        # What is captured on a GPU, or takes its number from there, is of one shape.
        self.options = options_of(self.step, config) if device == "cpu" else frozenset()
        apart = step_cells(model) if cells else None
        single = wrap.step_graph(apart, config) if apart else wrapped
        self.single = load(single) if apart and not gpu.graphs else self.step
        if gpu.graphs:
            try:
                self.single = load(single, graphs=True)
            except ContractError as error:
                log.warning("model %s runs without CUDA graphs: %s", config.name, error)
                self.replays, self.single = False, load(single)
        self.read = load(wrap.read_graph(config))
        self.write = load(wrap.write_graph(config))
        self.reset = load(wrap.reset_graph(config))
        self._trial: BoundStates | None = None

    def states(self, capacity: int) -> BoundStates:
        """New rows for the model, `capacity` and a scratch row."""
        # Checks and trials are over.
        self._trial = None
        return BoundStates(self, capacity)

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        """Run once on states that are given and taken back; see `Graph.run`.

        A row that does not come out finite keeps its state.
        """
        config = self.config
        count = len(feeds[config.lengths])
        if self._trial is None or self._trial.capacity < count:
            self._trial = BoundStates(self, count)
        rows = np.arange(1, count + 1)
        self._trial.write_rows(rows, feeds)
        names = {s.input_name for s in config.state}
        inputs = {name: values for name, values in feeds.items() if name not in names}
        wanted = [t.name for t in config.outputs if t.name in outputs]
        result, _ = self._trial.run(rows, inputs, wanted)
        after = self._trial.read_rows(rows)
        result |= {s.output_name: after[s.input_name] for s in config.state}
        return {name: result[name] for name in outputs}

    def scratch_feeds(self, batch: int, time: int) -> dict[str, Array]:
        """Feeds of zeros with initial states, (batch, time); for warm-up."""
        return scratch_feeds(self.config, batch, time)


class BoundStates:
    """Rows of state inside the graph that steps them.

    Args:
        graph: The loaded model.
        capacity: Rows beside the scratch row.

    Attributes:
        buffers: All rows of each state, by input name.
        replays: Steps in buffers that never move, by their number of rows; empty unless captured steps are asked for.

    Raises:
        ContractError: The device has no room for so many rows.
    """

    def __init__(self, graph: BoundGraph, capacity: int) -> None:
        self.graph = graph
        self.capacity = capacity
        self.row_bytes = graph.config.state_nbytes
        self._states = graph.config.state
        self._outputs = graph.config.outputs
        count = capacity + wrap.FIRST
        self.buffers = {
            s.input_name: _buffer((count, *s.shape), s.dtype, graph.device) for s in self._states
        }
        captured = graph.single if graph.replays else None
        self._step, self._single, self._read, self._write, self._reset = (
            _Bound(session, graph.config, self.buffers, captured=session is captured)
            for session in (graph.step, graph.single, graph.read, graph.write, graph.reset)
        )
        # Rows to be set to the initial state before they are next stepped: many at once, and not on the event loop.
        self._fresh = np.zeros(count, np.bool_)
        initial = {s.input_name: s.initial_array()[None] for s in self._states}
        self._put(np.array([wrap.INITIAL]), initial)
        self._time_input = graph.config.inputs[0].name
        self.replays = self._prove_replays() if graph.replays else {}

    def reset(self, row: int) -> None:
        """Set a row to the initial state."""
        self._fresh[row + wrap.FIRST - 1] = True

    def read(self, row: int) -> dict[str, Array]:
        """A copy of a row by input name, each of the tensor's shape."""
        return {name: rows[0] for name, rows in self.read_rows(np.array([row])).items()}

    def read_rows(self, rows: Rows) -> dict[str, Array]:
        """A copy of several rows by input name, each (B, *shape)."""
        at = _held(rows)
        names = [wrap.given(s) for s in self._states]
        values = self._read.run({wrap.ROWS: np.where(self._fresh[at], wrap.INITIAL, at)}, names)
        return {s.input_name: values[wrap.given(s)] for s in self._states}

    def write(self, row: int, state: Mapping[str, Array]) -> None:
        """Set a row; `state` as given by `read`."""
        self.write_rows(np.array([row]), {name: np.asarray(v)[None] for name, v in state.items()})

    def write_rows(self, rows: Rows, state: Mapping[str, Array]) -> None:
        """Set several rows; `state` as given by `read_rows`."""
        at = _held(rows)
        self._put(at, state)
        self._fresh[at] = False

    def run(
        self, rows: Rows, feeds: Mapping[str, Array], wanted: Sequence[str]
    ) -> tuple[dict[str, Array], Finite]:
        """Step rows once; see `Arena.run`."""
        at = _held(rows)
        fresh = at[self._fresh[at]]
        if len(fresh):
            self._reset.run({wrap.ROWS: fresh}, [])
            self._fresh[fresh] = False
        asked = np.array([t.name in wanted for t in self._outputs])
        given = {**feeds, wrap.ROWS: at, wrap.ASKED: asked}
        result = self._for(feeds, len(at)).run(given, [wrap.FINITE, *wanted])
        finite = result.pop(wrap.FINITE)
        return result, None if finite.all() else finite

    def _for(self, feeds: Mapping[str, Array], count: int) -> _Bound | Replay:
        if feeds[self._time_input].shape[1] > 1:
            return self._step
        return self.replays.get(1 << (count - 1).bit_length(), self._single)

    def _prove_replays(self) -> dict[int, Replay]:
        """Replays by their number of rows: powers of two up to the largest batch. None unless all give the right bits.

        Tried in an order that mixes the sizes: what is known to go wrong is a replay after a run of another shape.
        """
        config = self.graph.config
        most = min(config.batching.max_batch_size, self.capacity)
        sizes = [1 << k for k in range(most.bit_length())]
        replays = {
            n: Replay(self.graph.single, self._single.bind(), config, n, self.graph.device)
            for n in sizes
        }
        random = np.random.default_rng(0)
        for n in random.permutation([*sizes, *sizes]):
            rows = np.arange(1, n + 1)
            state = {
                s.input_name: (s.initial_array() + random.normal(size=(n, *s.shape)))
                for s in self._states
            }
            results = []
            for step in (self._single, replays[n]):
                self.write_rows(rows, state)
                results.append(self._trial(step, rows) | self.read_rows(rows))
            if any(
                values.tobytes() != results[1][name].tobytes()
                for name, values in results[0].items()
            ):
                log.warning("model %s runs without CUDA graphs: %d rows differ", config.name, n)
                return {}
        return replays

    def _trial(self, step: _Bound | Replay, rows: Rows) -> dict[str, Array]:
        config = self.graph.config
        feeds = scratch_feeds(config, len(rows), 1)
        for state in config.state:
            del feeds[state.input_name]
        asked = np.ones(len(config.outputs), np.bool_)
        names = [t.name for t in config.outputs]
        return step.run({**feeds, wrap.ROWS: _held(rows), wrap.ASKED: asked}, [wrap.FINITE, *names])

    def _put(self, at: Rows, state: Mapping[str, Array]) -> None:
        feeds = {wrap.given(s): np.asarray(state[s.input_name], s.dtype) for s in self._states}
        self._write.run({wrap.ROWS: at, **feeds}, [])


class _Bound:
    """A graph with buffers as its inputs, and as its outputs where it gives them."""

    def __init__(
        self,
        session: ort.InferenceSession,
        config: ModelConfig,
        buffers: Mapping[str, ort.OrtValue],
        *,
        captured: bool = False,
    ) -> None:
        self._session = session
        self._options = eager() if captured else None
        outputs = {node.name for node in session.get_outputs()}
        self._defaults = options_of(session, config)
        self._inputs = {wrap.held(s): buffers[s.input_name] for s in config.state}
        self._outputs = {
            wrap.kept(s): buffers[s.input_name] for s in config.state if wrap.kept(s) in outputs
        }
        # One for each choice of outputs: what is bound once stays bound.
        self._bindings: dict[tuple[str, ...], ort.IOBinding] = {}

    def run(self, feeds: Mapping[str, Array], wanted: Sequence[str]) -> dict[str, Array]:
        """Run once on the buffers; the outputs wanted come to the host, as new arrays."""
        key = tuple(wanted)
        binding = self._bindings.get(key)
        if binding is None:
            binding = self._bindings[key] = self.bind()
        for name, array in feeds.items():
            if name in self._defaults:
                # What has a default is bound as a value only.
                binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array))
            else:
                binding.bind_cpu_input(name, np.ascontiguousarray(array))
        for name in wanted:
            # Anew each time: else the run would be given the array of the run before, of perhaps another shape.
            binding.bind_output(name, "cpu")
        self._session.run_with_iobinding(binding, self._options)
        values = binding.get_outputs_as_ortvaluevector()
        first = len(self._outputs)
        return {name: values[first + i].numpy() for i, name in enumerate(wanted)}

    def bind(self) -> ort.IOBinding:
        """The buffers bound; what else goes in and out is still to be."""
        binding = self._session.io_binding()
        for name, buffer in self._inputs.items():
            binding.bind_ortvalue_input(name, buffer)
        for name, buffer in self._outputs.items():
            binding.bind_ortvalue_output(name, buffer)
        return binding


def _buffer(shape: tuple[int, ...], dtype: str, device: Device) -> ort.OrtValue:
    """All rows of a state; what is in them does not matter, since each is set before it is read."""
    if device == "cpu":
        # np.zeros asks for pages that cost nothing until a row in them is written.
        return ort.OrtValue.ortvalue_from_numpy(np.zeros(shape, dtype))
    try:
        return ort.OrtValue.ortvalue_from_shape_and_type(shape, np.dtype(dtype).type, device)
    except Exception as error:
        # ONNX Runtime's own class, by no name that it exports.
        raise ContractError(
            f"{device} has no room for {shape[0]} rows of state; fewer is SEQSERVE_MAX_RESIDENT: {error}"
        ) from error


def _held(rows: Rows) -> Rows:
    """Where rows of the arena are in the buffers."""
    return np.where(rows, rows + (wrap.FIRST - 1), wrap.INITIAL)
