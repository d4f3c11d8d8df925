"""Trained weights on their way into an export."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from torch import Tensor

from service.contract import (
    SCHEMA_VERSION,
    Batching,
    Dataset,
    ModelConfig,
    Provenance,
    StateTensor,
    TaskSpec,
)
from service.contract import Tensor as TensorSpec
from training import checkpoint
from training.config import ExportConfig, TrainedRun
from training.export.onnx_graph import LARGEST_BYTE, OPSET, quantised
from training.models.encoder import StateSpec


class ExportError(RuntimeError):
    """A run that cannot be exported; the message says why."""


class Trained(msgspec.Struct, frozen=True):
    """The best weights of a run and where they come from.

    Attributes:
        weights: As trained, by name.
        step: Steps taken until then.
        datasets: What they were learnt from.
        git_commit: Source that trained them.
        versions: Libraries that trained them.
    """

    weights: dict[str, Tensor]
    step: int
    datasets: tuple[Dataset, ...]
    git_commit: str
    versions: dict[str, str]


def load_best(directory: Path, shape: Mapping[str, Any]) -> Trained:
    """The best weights of a run.

    Args:
        directory: Where the run lives.
        shape: What they have to fit; `Learner.shape`.

    Raises:
        ExportError: There are none, or they are of another model.
    """
    try:
        values = checkpoint.load(directory / checkpoint.BEST)
    except OSError as error:
        raise ExportError(f"{error}; run `seqtrain fit` first") from None
    if values["shape"] != msgspec.to_builtins(shape):
        raise ExportError(f"{directory} holds a model of another shape: {values['shape']}")
    return Trained(
        values["weights"],
        values["step"],
        msgspec.convert(values["datasets"], tuple[Dataset, ...]),
        values["git_commit"],
        values["versions"],
    )


def read_file(directory: Path, name: str) -> bytes:
    """A file that the run kept.

    Raises:
        ExportError: It is not there.
    """
    try:
        return (directory / name).read_bytes()
    except OSError as error:
        raise ExportError(f"{error}; run `seqtrain fit` first") from None


def as_stored(
    weights: Mapping[str, Tensor], export: ExportConfig, tables: Collection[str] = ()
) -> dict[str, Tensor]:
    """Weights as the file stores them, in float32: what the original must have too, to be compared.

    Args:
        weights: As trained, by name.
        export: How they are stored.
        tables: Names of those that are only looked up, a row at a time.

    Raises:
        ExportError: Tables are to be stored in a format of their own and the model has none.
    """
    if export.tables and not tables:
        raise ExportError("[export] tables: the model has no table that is only looked up")

    def rounded(name: str, value: Tensor) -> Tensor:
        if not value.is_floating_point():
            return value
        if export.tables == "int8" and name in tables:
            stored, scales = quantised(value.float().cpu().numpy(), LARGEST_BYTE)
            return torch.from_numpy(stored.astype(np.float32) * scales[:, None])
        return value.to(getattr(torch, export.weights)).float()

    return {name: rounded(name, value) for name, value in weights.items()}


def model_config(
    run: TrainedRun,
    trained: Trained,
    command: str,
    *,
    task: TaskSpec,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    states: tuple[StateSpec, ...],
    streaming: bool = True,
) -> ModelConfig:
    """config.json of a trained model; hashes and metrics are filled in when the files exist.

    Args:
        run: Its configuration.
        trained: Its weights.
        command: What makes it again.
        task: What the numbers mean.
        inputs: Graph inputs beside `lengths` and the state.
        outputs: Graph outputs beside the state.
        states: The state; each tensor's output is named after its input, with `_out`.
        streaming: Whether it can be stepped.
    """
    export = run.export
    return ModelConfig(
        schema_version=SCHEMA_VERSION,
        name=run.name,
        version=run.version,
        description=run.description,
        architecture=run.encoder.architecture,
        task=task,
        streaming=streaming,
        streaming_sibling=run.streaming_sibling,
        inputs=inputs,
        outputs=outputs,
        state=tuple(
            StateTensor(
                input_name=s.name, output_name=f"{s.name}_out", shape=s.shape, dtype=s.dtype
            )
            for s in states
        ),
        batching=Batching(
            max_batch_size=export.max_batch_size,
            max_chunk_length=export.max_chunk_length,
            max_batch_tokens=export.max_batch_tokens,
        ),
        opset=OPSET,
        files={},
        tolerance=export.tolerance,
        provenance=Provenance(
            command=command,
            config=msgspec.to_builtins(run),
            seed=run.seed,
            git_commit=trained.git_commit,
            datasets=trained.datasets,
            versions=trained.versions,
        ),
    )
