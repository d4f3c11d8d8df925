"""ONNX Runtime is touched here, in `bound` and in `replay`, and nowhere else. Nothing of sessions or tasks."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from service.contract import ALL_SCORES, TOP_K, ContractError, ModelConfig, StateTensor
from service.engine import wrap
from service.engine.nodes import PREFIX
from service.settings import DEFAULT_GPU, Gpu

Array = npt.NDArray[Any]
Device = Literal["cpu", "cuda"]

_PROVIDERS: dict[Device, str] = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_ELEMENT_TYPES = {
    "float32": "tensor(float)",
    "float64": "tensor(double)",
    "int32": "tensor(int32)",
    "int64": "tensor(int64)",
}

# Of CUDA 13 and 12; `preload_dlls` has loaded the one that ONNX Runtime uses.
_CUDA_RUNTIMES = ("libcudart.so.13", "libcudart.so.12")
# What a model spends its time with. Not Gather and the like, which also compute shapes.
_HEAVY = frozenset(
    {
        "FusedMatMul",
        "Gelu",
        "Gemm",
        "GRU",
        "LayerNormalization",
        "LSTM",
        "MatMul",
        "RNN",
        "ScatterND",
        "Softmax",
    }
)


def choose_device(wanted: Literal["auto", "cpu", "cuda"]) -> Device:
    """The device models run on: what is asked for; with `auto` CUDA where runtime and driver offer it, else the CPU."""
    if wanted != "auto":
        return wanted
    offered = _PROVIDERS["cuda"] in ort.get_available_providers()
    return "cuda" if offered and _cuda_devices() else "cpu"


def _cuda_devices() -> int:
    """How many GPUs the driver sees. The runtime itself lists CUDA also on a machine without any."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    failed = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count))
    return 0 if failed else count.value


class DeviceMissing(RuntimeError):
    """The device that was asked for is not there, or does not compute; the message says what is amiss."""


def require_cuda() -> None:
    """Compute a sum on the GPU.

    Raises:
        DeviceMissing: It cannot be done.
    """
    if _PROVIDERS["cuda"] not in ort.get_available_providers():
        offered = ", ".join(ort.get_available_providers())
        raise DeviceMissing(
            f"the installed onnxruntime has no CUDA, only {offered}; install seqserve[gpu] in place of seqserve[cpu]"
        )
    if not _cuda_devices():
        raise DeviceMissing("the driver sees no GPU")
    try:
        session = open_session(wrap.trial_graph(), "cuda", 1)
        total = session.run(None, {"x": np.ones(2, np.float32)})[0]
    except Exception as error:
        # A missing library, a driver too old, a package not installed: each has a text of its own.
        raise DeviceMissing(str(error)) from error
    if total.tolist() != [2, 2]:
        raise DeviceMissing(f"1 + 1 is {total.tolist()} on the GPU")


def device_memory() -> tuple[int, int]:
    """Bytes of the GPU's memory that are used, by anyone, and that there are; zeros where there is no CUDA runtime."""
    free, total = ctypes.c_size_t(0), ctypes.c_size_t(0)
    for name in _CUDA_RUNTIMES:
        try:
            runtime = ctypes.CDLL(name)
        except OSError:
            continue
        if runtime.cudaMemGetInfo(ctypes.byref(free), ctypes.byref(total)) == 0:
            return total.value - free.value, total.value
    return 0, 0


def open_session(
    model: bytes, device: Device, threads: int, gpu: Gpu = DEFAULT_GPU
) -> ort.InferenceSession:
    """Load a graph where it is to run.

    Args:
        model: The graph.
        device: Where it runs. A provider other than the one asked for is an error, never a silent fallback.
        threads: Threads of one run. They do not spin, so that the web server keeps its core.
        gpu: How a GPU is used.

    Raises:
        ContractError: The graph cannot be loaded, or not there.
    """
    if device == "cuda":
        ort.preload_dlls()
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # Data outside the model's own bytes would be looked for in the working directory; nothing is below this.
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", os.devnull
    )
    if device == "cuda":
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    options.log_severity_level = 3
    try:
        session = ort.InferenceSession(model, options, providers=_providers(device, gpu))
    except Exception as error:
        # ONNX Runtime raises a dozen unrelated classes for a graph it cannot take.
        raise ContractError(f"ONNX Runtime refuses the graph: {error}") from error
    if session.get_providers()[0] != _PROVIDERS[device]:
        raise ContractError(
            f"{device} was asked for; ONNX Runtime offers {session.get_providers()}"
        )
    if device == "cuda" and (astray := _on_cpu(session)):
        raise ContractError(f"cuda was asked for; on the CPU would run: {', '.join(astray)}")
    return session


def _providers(device: Device, gpu: Gpu) -> list[Any]:
    if device == "cpu":
        return [_PROVIDERS["cpu"]]
    options = {
        # What is asked for and no more: the default doubles, and several models share the GPU.
        "arena_extend_strategy": "kSameAsRequested",
        # Products of float32 in float32; TensorFloat-32 would keep three digits.
        "use_tf32": "0",
    }
    if gpu.memory_bytes:
        options["gpu_mem_limit"] = str(gpu.memory_bytes)
    if gpu.graphs:
        options["enable_cuda_graph"] = "1"
    # The CPU computes shapes and other whole numbers that the GPU would only wait for; see `_on_cpu`.
    return [(_PROVIDERS["cuda"], options), _PROVIDERS["cpu"]]


def _on_cpu(session: ort.InferenceSession) -> list[str]:
    """Operators of a session on a GPU that compute with states or weights and would all the same run on the CPU."""
    nodes = [
        node
        for part in session.get_provider_graph_assignment_info()
        if part.ep_name == _PROVIDERS["cpu"]
        for node in part.get_nodes()
    ]
    return sorted({node.op_type for node in nodes} & _HEAVY)


class Runs(Protocol):
    """A loaded model, wherever its states are kept."""

    @property
    def config(self) -> ModelConfig:
        """What it promises."""

    @property
    def options(self) -> frozenset[str]:
        """What it can be told beside its inputs: `TOP_K`, how many of the best to give, `ALL_SCORES` or both."""

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        """Run once; see `Graph.run`."""

    def scratch_feeds(self, batch: int, time: int) -> dict[str, Array]:
        """Feeds of zeros with initial states, (batch, time)."""


class Graph:
    """A loaded ONNX graph.

    The model is given as bytes, so that what was hashed is what runs and external data cannot be reached.

    Args:
        model: Content of model.onnx.
        config: What the graph promises.
        device: Where it runs.
        threads: Threads of one run.
        gpu: How a GPU is used.

    Raises:
        ContractError: The graph cannot be loaded, or its inputs and outputs are not those of `config`.
    """

    def __init__(
        self,
        model: bytes,
        config: ModelConfig,
        device: Device = "cpu",
        threads: int = 1,
        gpu: Gpu = DEFAULT_GPU,
    ) -> None:
        self._session = open_session(model, device, threads, gpu)
        self.config = config
        check_signature(self._session, config, config.state)
        self.options = options_of(self._session, config)

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        """Run the graph once.

        Args:
            feeds: Every input of the graph by name.
            outputs: Names of the outputs wanted.

        Returns:
            The outputs by name, as new arrays.
        """
        if not outputs:
            # ONNX Runtime takes an empty list for all of them.
            return {}
        arrays: list[Array] = self._session.run(outputs, feeds)
        return dict(zip(outputs, arrays, strict=True))

    def scratch_feeds(self, batch: int, time: int) -> dict[str, Array]:
        """Feeds of zeros with initial states, (batch, time); for warm-up."""
        return scratch_feeds(self.config, batch, time)


def check_signature(
    session: ort.InferenceSession, config: ModelConfig, states: Sequence[StateTensor]
) -> None:
    """Compare names and types of a graph's inputs and outputs with those of its config.

    Args:
        session: The loaded graph.
        config: What it promises.
        states: Those that are its inputs and outputs; what else a graph has for states is of `nodes.PREFIX`.

    Raises:
        ContractError: They differ.
    """
    inputs = {t.name: t.dtype for t in config.inputs} | {config.lengths: "int32"}
    inputs |= {s.input_name: s.dtype for s in states}
    outputs = {t.name: t.dtype for t in config.outputs}
    outputs |= {s.output_name: s.dtype for s in states}
    for side, declared, found in (
        ("inputs", inputs, session.get_inputs()),
        ("outputs", outputs, session.get_outputs()),
    ):
        actual = {node.name: node.type for node in found if not node.name.startswith(PREFIX)}
        wanted = {name: _ELEMENT_TYPES[dtype] for name, dtype in declared.items()}
        if actual != wanted:
            raise ContractError(f"the graph's {side} are {actual}, config.json says {wanted}")


def options_of(session: ort.InferenceSession, config: ModelConfig) -> frozenset[str]:
    """Which inputs with a default a loaded graph has, of those that its task may have."""
    known = {TOP_K, ALL_SCORES} if config.ranked else set()
    return frozenset(
        node.name
        for node in session.get_overridable_initializers()
        if node.name in known and (node.type, node.shape) == ("tensor(int64)", [1])
    )


def scratch_feeds(config: ModelConfig, batch: int, time: int) -> dict[str, Array]:
    """Feeds of zeros with initial states, (batch, time)."""
    feeds: dict[str, Array] = {
        t.name: np.zeros((batch, time, *t.shape), t.dtype) for t in config.inputs
    }
    feeds[config.lengths] = np.full(batch, time, np.int32)
    for state in config.state:
        feeds[state.input_name] = np.stack([state.initial_array()] * batch)
    return feeds
