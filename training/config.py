"""The parts of a training run that all tasks share, as frozen records. No torch here.

Every default of theirs stands here and nowhere else; `training.runs` reads the files.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from service.contract import VariantName

Cell = Literal["rnn_tanh", "rnn_relu", "lstm", "gru"]
Count = Annotated[int, msgspec.Meta(ge=1)]
Part = Annotated[float, msgspec.Meta(ge=0, le=1)]
Dropout = Annotated[float, msgspec.Meta(ge=0, lt=1)]


class ConfigError(ValueError):
    """A configuration that cannot be read or does not fit its data; the message says where and why."""


class Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A frozen record; a field nobody declared is an error that names it."""


class RecurrentConfig(Record, frozen=True, kw_only=True, tag="recurrent", tag_field="kind"):
    """Elman network, LSTM or GRU; see `training.models.recurrent`.

    Attributes:
        cell: Kind of recurrent layer.
        hidden_size: H, of each direction.
        num_layers: L.
        dropout: Share of the features dropped before, between and after the layers, one mask per sequence.
        layer_norm: Whether the output of each layer is normalised.
        orthogonal: Whether recurrent weights start orthogonal.
        forget_bias: Start value of the forget gate's bias (LSTM only).
        bidirectional: Whether a second layer reads each text from its end; such a model cannot be stepped.
    """

    cell: Cell
    hidden_size: Count
    num_layers: Count = 1
    dropout: Dropout = 0.0
    layer_norm: bool = False
    orthogonal: bool = True
    forget_bias: float = 1.0
    bidirectional: bool = False

    @property
    def architecture(self) -> str:
        """Its name for people."""
        return self.cell

    @property
    def in_words(self) -> str:
        """One line for people."""
        both = "bidirectional " if self.bidirectional else ""
        return f"{both}`{self.cell}`, {_layers(self.num_layers)} of {self.hidden_size}"


class TransformerConfig(Record, frozen=True, kw_only=True, tag="transformer", tag_field="kind"):
    """Transformer with attention to the last `window` positions; see `training.models.transformer`.

    Attributes:
        width: D, of the residual stream.
        heads: Attention heads; D / heads is even.
        num_layers: L.
        window: W, positions that a position attends to, itself included; the whole text when bidirectional, where
            W says only how slowly the slowest features turn.
        feedforward: Width of the hidden layer between two attentions.
        dropout: Share dropped of the input and of what each part adds to the stream.
        bidirectional: Whether each position attends to the whole text; such a model cannot be stepped.
    """

    width: Count
    heads: Count
    num_layers: Count
    window: Count = 128
    feedforward: Count
    dropout: Dropout = 0.0
    bidirectional: bool = False

    def __post_init__(self) -> None:
        """Check what the field types cannot say.

        Raises:
            ValueError: The heads do not divide the width into even parts.
        """
        if self.width % (2 * self.heads):
            raise ValueError("width must be a multiple of twice the number of heads")

    @property
    def architecture(self) -> str:
        """Its name for people."""
        return "transformer"

    @property
    def in_words(self) -> str:
        """One line for people."""
        reach = "the whole text" if self.bidirectional else f"the last {self.window} positions"
        return f"Transformer, {_layers(self.num_layers)} of {self.width}, {self.heads} heads, over {reach}"


EncoderConfig = RecurrentConfig | TransformerConfig


def _layers(count: int) -> str:
    return "1 layer" if count == 1 else f"{count} layers"


class TrainingConfig(Record, frozen=True, kw_only=True):
    """How to train.

    Attributes:
        epochs: Passes over the data.
        batch_size: Rows of a batch, over all processes: texts, windows, or the columns that one long text is cut into.
        bptt: Time steps that the gradient flows through, where one long text is learnt; else without meaning.
        optimizer: Which rule.
        lr: Peak learning rate.
        weight_decay: Decoupled weight decay of AdamW; plain L2 for SGD.
        warmup: Share of all steps in which the rate rises to its peak.
        decay: Share of the steps after the warmup, at the end, in which the rate falls.
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

    epochs: Count
    batch_size: Count
    lr: float
    bptt: Count = 35
    optimizer: Literal["adamw", "sgd"] = "adamw"
    weight_decay: float = 0.0
    warmup: Part = 0.0
    decay: Part = 1.0
    decay_shape: Literal["cosine", "linear"] = "cosine"
    final_lr: Part = 0.0
    clip_norm: float = 1.0
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    valid_every: Count = 1000
    patience: Count = 5
    checkpoint_every: Count = 200
    log_every: Count = 20
    threads: Annotated[int, msgspec.Meta(ge=0)] = 0


class ExportConfig(Record, frozen=True, kw_only=True):
    """How to write the model.

    Attributes:
        weights: Number format of the stored weights; arithmetic is float32 either way.
        tables: Number format of embeddings that are only looked up: int8 with a scale for each row, or as `weights`.
        top_k: How many of the largest scores the graph of a next-word model gives, if its vocabulary has as many.
        tolerance: Largest difference between torch and the graph.
        variants: Cheaper arithmetic that the model is also written in.
        max_batch_size: Rows of one batch of the service.
        max_chunk_length: Time steps of one row of the service.
        max_batch_tokens: Rows times time steps of one batch of the service.
    """

    weights: Literal["float32", "float16"] = "float32"
    tables: Literal["int8"] | None = None
    top_k: Count = 64
    tolerance: float = 1e-4
    variants: tuple[VariantName, ...] = ()
    max_batch_size: Count = 64
    max_chunk_length: Count = 64
    max_batch_tokens: Count = 512


class TrainedRun(Record, frozen=True, kw_only=True):
    """What every run that trains has; a task adds its data and its model.

    Attributes:
        name: Name of the exported model.
        version: Version of the exported model.
        description: One line for people.
        seed: Of everything random.
        encoder: The part with a memory.
        training: How to train.
        export: How to write the model.
        streaming_sibling: Model that can be stepped where this one cannot; named to clients that try.
    """

    name: str
    version: int
    description: str
    seed: int
    encoder: EncoderConfig
    training: TrainingConfig
    export: ExportConfig = ExportConfig()
    streaming_sibling: str = ""
