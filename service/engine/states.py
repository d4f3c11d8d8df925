"""Where the states of a model are kept: on the host beside its graph, or inside it on the device that computes."""

from __future__ import annotations

import logging

from service.contract import ContractError, ModelConfig
from service.engine.arena import States
from service.engine.bound import BoundGraph
from service.engine.graph import Device, Graph, Runs
from service.engine.host import HostStates
from service.settings import DEFAULT_GPU, Gpu

log = logging.getLogger(__name__)

BOUND_BYTES = 32 * 1024
"""State of a session from which on the CPU keeps it inside the graph; measured, see docs/decisions/0014."""


def load(
    model: bytes, config: ModelConfig, device: Device, threads: int, gpu: Gpu = DEFAULT_GPU
) -> Graph | BoundGraph:
    """Load a model so that it will keep its states where a step is fastest.

    On a GPU that is always inside the graph: a state never crosses the bus. On the CPU it is so for large states,
    where the `onnx` package is installed.

    Args:
        model: Content of model.onnx.
        config: What the graph promises.
        device: Where it runs.
        threads: Threads of one run.
        gpu: How a GPU is used.

    Raises:
        ContractError: The graph cannot be loaded, or not on the device, or is not what `config` says.
    """
    if not config.state or (device == "cpu" and config.state_nbytes < BOUND_BYTES):
        return Graph(model, config, device, threads, gpu)
    try:
        return BoundGraph(model, config, device, threads, gpu, cells=device == "cuda")
    except (ContractError, ImportError) as error:
        if device != "cpu":
            raise ContractError(f"states cannot be kept on {device}: {error}") from error
        # No onnx; or an operator set too old for what is added. A graph that is no good says so below.
        log.info("model %s keeps its states on the host: %s", config.name, error)
        return Graph(model, config, device, threads, gpu)


def states_of(graph: Runs, capacity: int) -> States:
    """Rows of state for a loaded model, `capacity` and a scratch row."""
    if isinstance(graph, BoundGraph):
        return graph.states(capacity)
    return HostStates(graph, capacity)
