"""A training run as TOML, read into frozen records. No torch here.

A file starts with `task`, which says which record the rest must fit. Every default stands here and nowhere else.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, Literal, get_args

import msgspec

Cell = Literal["rnn_tanh", "rnn_relu", "lstm", "gru"]


class ConfigError(ValueError):
    """A configuration file that cannot be read; the message says where and why."""


class Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A frozen record; a field nobody declared is an error that names it."""


class DataConfig(Record, frozen=True, kw_only=True):
    """Which text.

    Attributes:
        name: A corpus of `training.data.corpora`, or `files` for two plain text files of the user's own.
        train: Path of the training text, for `files` only.
        valid: Path of the validation text, for `files` only.
        licence: Terms of the two files, for the model card.
    """

    name: str = "wikitext-2"
    train: str = ""
    valid: str = ""
    licence: str = "not stated"


class ModelConfig(Record, frozen=True, kw_only=True):
    """A recurrent language model; see `training.models.recurrent`.

    Attributes:
        cell: Kind of recurrent layer.
        embedding_dim: E, width of the embedding and of the output layer.
        hidden_size: H.
        num_layers: L.
        cutoffs: First token id of each tail cluster of the adaptive softmax; empty for the full softmax.
        cutoff_dims: Width of each tail cluster.
        tied: Whether embedding and output layer share their factors.
        dropout: Share of the features dropped between layers, one mask per sequence.
        layer_norm: Whether the output of each layer is normalised.
        orthogonal: Whether recurrent weights start orthogonal.
        forget_bias: Start value of the forget gate's bias (LSTM only).
    """

    cell: Cell
    embedding_dim: int
    hidden_size: int
    num_layers: int = 1
    cutoffs: tuple[int, ...] = ()
    cutoff_dims: tuple[int, ...] = ()
    tied: bool = True
    dropout: float = 0.0
    layer_norm: bool = False
    orthogonal: bool = True
    forget_bias: float = 1.0

    def __post_init__(self) -> None:
        """Check what the field types cannot say.

        Raises:
            ValueError: The clusters are not described in full and in order.
        """
        if len(self.cutoffs) != len(self.cutoff_dims) or list(self.cutoffs) != sorted(
            set(self.cutoffs)
        ):
            raise ValueError("cutoffs must rise and have one width each in cutoff_dims")


class TrainingConfig(Record, frozen=True, kw_only=True):
    """How to train.

    Attributes:
        epochs: Passes over the text.
        batch_size: Columns that the text is cut into, over all processes.
        bptt: Time steps that the gradient flows through.
        optimizer: Which rule.
        lr: Peak learning rate.
        weight_decay: Decoupled weight decay of AdamW; plain L2 for SGD.
        warmup: Share of all steps in which the rate rises to its peak.
        decay: Share of all steps, at the end, in which the rate falls.
        decay_shape: Form of the fall.
        final_lr: Rate after the last step, as a share of the peak.
        clip_norm: Largest gradient norm.
        precision: Arithmetic of the forward and backward pass.
        valid_every: Steps between validations.
        patience: Validations without improvement after which training stops.
        checkpoint_every: Steps between checkpoints.
        log_every: Steps between logged scalars.
        threads: Processor threads of each process; 0 leaves it to torch.
    """

    epochs: int
    batch_size: int
    bptt: int
    lr: float
    optimizer: Literal["adamw", "sgd"] = "adamw"
    weight_decay: float = 0.0
    warmup: float = 0.0
    decay: float = 1.0
    decay_shape: Literal["cosine", "linear"] = "cosine"
    final_lr: float = 0.0
    clip_norm: float = 1.0
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    valid_every: int = 1000
    patience: int = 5
    checkpoint_every: int = 200
    log_every: int = 20
    threads: int = 0


class ExportConfig(Record, frozen=True, kw_only=True):
    """How to write the model.

    Attributes:
        weights: Number format of the stored weights; arithmetic is float32 either way.
        top_k: How many of the largest scores the graph gives.
        tolerance: Largest difference between torch and the graph.
        max_batch_size: Rows of one batch of the service.
        max_chunk_length: Time steps of one row of the service.
        max_batch_tokens: Rows times time steps of one batch of the service.
    """

    weights: Literal["float32", "float16"] = "float32"
    top_k: int = 64
    tolerance: float = 1e-4
    max_batch_size: int = 64
    max_chunk_length: int = 64
    max_batch_tokens: int = 512


class NextWordRun(Record, frozen=True, kw_only=True, tag="next_word", tag_field="task"):
    """Train and export a next-word model."""

    name: str
    version: int
    description: str
    seed: int
    data: DataConfig
    model: ModelConfig
    training: TrainingConfig
    export: ExportConfig = ExportConfig()


class WeekendPlannerRun(Record, frozen=True, kw_only=True, tag="weekend_planner", tag_field="task"):
    """Export the weekend planner, whose weights are known and need no training."""

    name: str
    version: int
    description: str


Run = NextWordRun | WeekendPlannerRun


def load(path: Path) -> Run:
    """Read a run.

    Raises:
        ConfigError: The file is missing or not TOML, a key is unknown, missing, or of the wrong type.
    """
    try:
        table = tomllib.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: {error}") from None
    try:
        return parse(table)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def parse(table: dict[str, Any]) -> Run:
    """Fit a TOML table to its record.

    Raises:
        ConfigError: A key is unknown, missing, or of the wrong type.
    """
    tasks = {run.__struct_config__.tag: run for run in get_args(Run)}
    task = table.get("task")
    if task not in tasks:
        raise ConfigError(f"task must be one of {', '.join(map(str, tasks))}, not {task!r}")
    _refuse_unknown_keys(table, tasks[task], "")
    try:
        run: Run = msgspec.convert(table, Run)
    except msgspec.ValidationError as error:
        raise ConfigError(str(error)) from None
    return run


def _refuse_unknown_keys(table: dict[str, Any], record: type[msgspec.Struct], path: str) -> None:
    known = {field.name: field.type for field in msgspec.structs.fields(record)}
    for key, value in table.items():
        if key not in known and not (key == "task" and not path):
            raise ConfigError(f"unknown key {path}{key}; known keys are {', '.join(known)}")
        inner = known.get(key)
        if (
            isinstance(value, dict)
            and isinstance(inner, type)
            and issubclass(inner, msgspec.Struct)
        ):
            _refuse_unknown_keys(value, inner, f"{path}{key}.")
