"""Every setting of the service, read from the environment in one place. No I/O beyond that."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from service.contract import Arithmetic

PREFIX = "SEQSERVE_"
# Read by the training package; not a mistake when the service sees it.
_FOREIGN = frozenset({"SEQSERVE_DATA"})
_LAST_PORT = 65535
_BOOLEANS = {"1": True, "true": True, "0": False, "false": False}


DeviceChoice = Literal["auto", "cpu", "cuda"]


class SettingsError(ValueError):
    """A setting that cannot be meant; the message names it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """How a GPU is used.

    Attributes:
        memory_bytes: Most memory that each model may take beside its sessions' states; 0 is all there is.
        graphs: Whether steps are captured as CUDA graphs, where they then give the same bits.
    """

    memory_bytes: int = 0
    graphs: bool = False


DEFAULT_GPU = Gpu()


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Settings of one process; `SEQSERVE_<NAME>` in the environment sets `<name>`.

    Attributes:
        models: Directory of exported models.
        host: Address to listen on.
        port: Port to listen on.
        device: Where models run; `auto` takes CUDA where runtime and driver offer it.
        variant: Arithmetic of the models; a model that has no such graph for its device runs model.onnx, `exact`.
        deterministic: Whether the same chunks of a session give the same bits whoever shares its batches.
        threads: Threads of one model run.
        gpu_memory_bytes: See `Gpu.memory_bytes`.
        gpu_graphs: See `Gpu.graphs`.
        max_body_bytes: Largest HTTP body and WebSocket frame.
        request_timeout_s: Time in which the head of a request has to arrive, and then its body.
        keep_alive_s: Time for which a connection stays open without a request; longer than a load balancer's.
        max_connections: Connections open at once, WebSockets included; more are refused.
        max_inputs: Inputs of one predict or steps request.
        max_tokens: Tokens of one generate request.
        max_input_steps: Time steps (words) of one predict or steps request.
        max_socket_frames: Frames of one socket in flight; more wait unread.
        timeout_s: Time a request may take when it names no timeout of its own.
        max_pending: Steps in flight or waiting per model; more are refused.
        max_pending_tokens: Time steps in flight or waiting per model; more are refused.
        max_queue_s: Time for which steps may wait per model beyond the next batch; more are refused.
        max_resident: Sessions per model with state in memory; others are paged out.
        max_sessions: Sessions in all.
        session_ttl_s: Idle time after which a session expires when it names none of its own.
        max_session_ttl_s: Longest time a session may name.
        evict_idle_s: When `max_sessions` is reached, the longest idle session may be evicted after this idle time.
        max_tombstones: Ended sessions remembered, to answer 410 instead of 404.
        snapshot_every: Time steps between two snapshots of a session.
        drain_delay_s: On SIGTERM, time between failing readiness and refusing work, for load balancers to notice.
        drain_timeout_s: On SIGTERM, time that steps in flight get to end.
        log_level: Level of the log.
    """

    models: Path = Path("exported")
    host: str = "127.0.0.1"
    port: int = 8000
    device: DeviceChoice = "auto"
    variant: Arithmetic = "exact"
    deterministic: bool = False
    threads: int = 1
    gpu_memory_bytes: int = 0
    gpu_graphs: bool = False
    max_body_bytes: int = 4 * 2**20
    request_timeout_s: float = 20.0
    keep_alive_s: float = 5.0
    max_connections: int = 16_384
    max_inputs: int = 1024
    max_tokens: int = 1024
    max_input_steps: int = 65536
    max_socket_frames: int = 32
    timeout_s: float = 30.0
    max_pending: int = 4096
    max_pending_tokens: int = 262_144
    max_queue_s: float = 0.05
    max_resident: int = 16384
    max_sessions: int = 100_000
    session_ttl_s: float = 900.0
    max_session_ttl_s: float = 7 * 86400.0
    evict_idle_s: float = 60.0
    max_tombstones: int = 100_000
    snapshot_every: int = 64
    drain_delay_s: float = 0.0
    drain_timeout_s: float = 10.0
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    def __post_init__(self) -> None:
        """Check what the field types cannot say.

        Raises:
            SettingsError: There is no such port; the system would take another one in its place. Or two settings
                contradict each other.
        """
        if not 0 <= self.port <= _LAST_PORT:
            raise SettingsError(f"port is 0 to {_LAST_PORT}, not {self.port}")
        if self.deterministic and self.variant == "int8":
            raise SettingsError(
                "deterministic and variant int8 exclude each other: int8 rounds a row by the numbers of its whole batch"
            )

    @property
    def gpu(self) -> Gpu:
        """How a GPU is used."""
        return Gpu(memory_bytes=self.gpu_memory_bytes, graphs=self.gpu_graphs)


def from_environ(environ: Mapping[str, str]) -> Settings:
    """Read settings from environment variables.

    Raises:
        SettingsError: A `SEQSERVE_` variable is unknown, or its value is not of the setting's type.
    """
    types = typing.get_type_hints(Settings)
    values: dict[str, Any] = {}
    for variable, text in environ.items():
        if not variable.startswith(PREFIX) or variable in _FOREIGN:
            continue
        name = variable.removeprefix(PREFIX).lower()
        if name not in types:
            known = ", ".join(
                sorted(PREFIX + field.name.upper() for field in dataclasses.fields(Settings))
            )
            raise SettingsError(f"{variable} is not a setting; known are {known}")
        values[name] = _parse(variable, text, types[name])
    return Settings(**values)


def _parse(variable: str, text: str, kind: Any) -> Any:
    choices = typing.get_args(kind)
    if choices:
        if text not in choices:
            raise SettingsError(f"{variable}={text!r} is not one of {', '.join(choices)}")
        return text
    if kind is bool:
        if text not in _BOOLEANS:
            raise SettingsError(f"{variable}={text!r} is not one of {', '.join(_BOOLEANS)}")
        return _BOOLEANS[text]
    try:
        value = kind(text)
    except ValueError:
        raise SettingsError(f"{variable}={text!r} is not of type {kind.__name__}") from None
    if isinstance(value, int | float) and not 0 <= value < float("inf"):
        raise SettingsError(f"{variable}={text!r} is negative or not finite")
    return value
