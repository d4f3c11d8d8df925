"""The schema of an exported model: what `training` writes and `service` reads, stated once.

An exported model is a directory `<name>/<version>/` with `config.json` (a `ModelConfig`), `model.onnx`, `golden.json`
(a `Golden`) and the files its task names. The graph computes `y, state' = f_W(state, x)`:

    inputs    one array (B, T, *shape) for each `ModelConfig.inputs`, and `lengths` (B,) int32, 1 <= lengths <= T
    state     one array (B, *shape) for each `ModelConfig.state`
    outputs   one array (B, T, *shape) for each `ModelConfig.outputs`; rows are meaningful up to their length
    state'    as state, after `lengths` time steps of each row

No I/O here: bytes in, records out.
"""

from __future__ import annotations

import hashlib
import math
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec

if TYPE_CHECKING:
    # Files are read and verified by this schema while numpy is still being imported.
    import numpy.typing as npt

SCHEMA_VERSION = 1

CONFIG_FILE = "config.json"
MODEL_FILE = "model.onnx"
GOLDEN_FILE = "golden.json"
CARD_FILE = "README.md"

DType = Literal["float32", "float64", "int32", "int64"]
ELEMENT_BYTES: dict[DType, int] = {"float32": 4, "float64": 8, "int32": 4, "int64": 8}
VariantName = Literal["int8", "float16"]
# What a model may be asked to run in; `exact` is model.onnx.
Arithmetic = Literal["exact", VariantName]
Size = Annotated[int, msgspec.Meta(ge=1)]


class ContractError(ValueError):
    """A config or golden file that this version of the product cannot accept; the message says where and why."""


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A frozen record; a field nobody declared is an error that names it."""


class Tensor(Record, frozen=True, kw_only=True):
    """An input or output of the graph.

    Attributes:
        name: Name in the graph.
        dtype: Element type.
        shape: Shape of one time step of one session, without the batch and time axes.
    """

    name: str
    dtype: DType
    shape: tuple[Size, ...] = ()


class StateTensor(Record, frozen=True, kw_only=True):
    """A tensor carried from step to step.

    Attributes:
        input_name: Graph input that takes the state, `(B, *shape)`.
        output_name: Graph output that gives the next state, `(B, *shape)`.
        shape: Shape of one session's state.
        dtype: Element type.
        initial: Value of a fresh session: one number for every element, or all elements in row-major order.
    """

    input_name: str
    output_name: str
    shape: tuple[Size, ...]
    dtype: DType = "float32"
    initial: float | tuple[float, ...] = 0.0

    def initial_array(self) -> npt.NDArray[Any]:
        """The state of a fresh session, shape `self.shape`."""
        import numpy as np

        if isinstance(self.initial, tuple):
            return np.array(self.initial, dtype=self.dtype).reshape(self.shape)
        return np.full(self.shape, self.initial, dtype=self.dtype)

    @property
    def nbytes(self) -> int:
        """Bytes of one session's state."""
        return math.prod(self.shape) * ELEMENT_BYTES[self.dtype]


class Batching(Record, frozen=True, kw_only=True):
    """Limits of one batch.

    Attributes:
        max_batch_size: Rows (sessions) of one batch.
        max_chunk_length: Time steps of one row of one batch; longer inputs are cut into chunks.
        max_batch_tokens: Rows times padded time steps of one batch.
    """

    max_batch_size: Size = 64
    max_chunk_length: Size = 64
    max_batch_tokens: Size = 2048


TOP_K = "top_k"
"""Input with a default that the graph of a `NextWord` model may have: how many of the best are to be given."""

RANKED = ("top_scores", "top_indices")

ALL_SCORES = "all_scores"
"""Another: 1, the default, for `LOGITS`; 0 leaves these empty, which spares a model of many words their copies."""

LOGITS = "logits"


class NextWord(Record, frozen=True, kw_only=True, tag="next_word", tag_field="name"):
    """A language model over a vocabulary of words or of single characters.

    The graph takes `tokens` (B, T) int64 and gives, besides `logits` (B, T, V), the `top_k` largest logits
    `top_scores` (B, T, K) in falling order with their ids `top_indices` (B, T, K), and `logsumexp` (B, T), so that
    log p(token) = score - logsumexp without shipping V numbers a row. It may take `top_k`, (1,) int64 with the default
    K, and then gives that many; and `all_scores`, (1,) int64 with the default 1, and with 0 gives logits (B, T, 0).

    Attributes:
        level: What a token is: a word with punctuation split off, as `service.text` does, or one character.
        tokenizer: File with the vocabulary, in the format of the `tokenizers` library (WordLevel).
        vocab_size: V.
        top_k: K.
        unknown_token: Stands for every token outside the vocabulary; never generated. None: such text is refused.
        end_token: Ends a line of the training text, and so a generated text. None: nothing ends a text by itself.
    """

    level: Literal["word", "character"] = "word"
    tokenizer: str = "tokenizer.json"
    vocab_size: Size
    # More than one, since the best may be the unknown word.
    top_k: Annotated[int, msgspec.Meta(ge=2)]
    unknown_token: str | None = "<unk>"
    end_token: str | None = "<eos>"


class Labels(Record, frozen=True, kw_only=True, tag="labels", tag_field="name"):
    """One label for each time step. The graph takes one float vector a step and gives `scores` (B, T, len(labels)).

    Attributes:
        labels: Name of each class, in the order of `scores`.
        symbols: Named inputs and the vector each stands for; a client may send the name or the vector.
    """

    labels: tuple[str, ...]
    symbols: dict[str, tuple[float, ...]] = {}


class Forecast(Record, frozen=True, kw_only=True, tag="forecast", tag_field="name"):
    """The next values of a few columns of numbers, after each observation.

    The graph takes one observation a step, `(B, T, len(columns))` float32 in the user's own units, and gives
    `mean` (B, T, horizon, len(columns)) and `quantiles` (B, T, len(quantiles), horizon, len(columns)) in the same
    units. NaN stands for a value that is missing; outputs and state stay finite.

    Attributes:
        columns: Name of each number of an observation.
        horizon: Steps that are forecast; the first is the one after the observation.
        quantiles: Levels, in rising order; the quantiles of a step rise with them.
    """

    columns: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)]
    horizon: Size
    quantiles: tuple[Annotated[float, msgspec.Meta(gt=0, lt=1)], ...]


class Sentiment(Record, frozen=True, kw_only=True, tag="sentiment", tag_field="name"):
    """Labels of a text.

    The graph takes `tokens` (B, T) int64, ids of the words of `service.text.plain_words`, and gives `scores`
    (B, T, len(labels)): the probability of each label for the text up to each word. A model that cannot be stepped
    gives those of the whole text at every word of it.

    Attributes:
        tokenizer: File with the vocabulary, in the format of the `tokenizers` library (WordLevel).
        vocab_size: V.
        unknown_token: Stands for every word of which the vocabulary knows no form; see `service.text.known_form`.
        labels: Name of each label, in the order of `scores`.
        exclusive: Whether one label holds and the scores add up to one; else each holds or not for itself.
        thresholds: Score from which on each label holds, where they are not exclusive; else empty.
    """

    tokenizer: str = "tokenizer.json"
    vocab_size: Size
    unknown_token: str = "<unk>"
    labels: Annotated[tuple[str, ...], msgspec.Meta(min_length=2)]
    exclusive: bool
    thresholds: tuple[float, ...] = ()


class Ner(Record, frozen=True, kw_only=True, tag="ner", tag_field="name"):
    """Entities of a text, by tags of its words in IOB2; `service.entities` splits the text and decodes the tags.

    The graph takes `words` (B, T) int64 and `characters` (B, T, C) int64 and gives `scores` (B, T, len(labels)): the
    probability of each tag of a word as the words up to it have it, in a linear chain that begins after `O`.

    Attributes:
        labels: Tags in the order of `scores`; the first is `O`, the others are `B-` and `I-` with a kind.
        transitions: Factor for going from one tag (row) to the next (column) in the chain; 0 forbids.
        tokenizer: File with the known words, in the format of the `tokenizers` library (WordLevel).
        vocab_size: How many words it has.
        unknown_token: Stands for every other word.
        lists: Files with a word on each line. A word that the tokenizer does not know has the id of the first list
            that it is in, `vocab_size` for the first, one more for each.
        characters: Known characters; the id of the first is 2, since 0 pads and 1 is any other.
    """

    labels: tuple[str, ...]
    transitions: tuple[tuple[Annotated[float, msgspec.Meta(ge=0)], ...], ...]
    tokenizer: str = "tokenizer.json"
    vocab_size: Size
    unknown_token: str = "<unk>"
    lists: tuple[str, ...] = ()
    characters: str


class Tensors(Record, frozen=True, kw_only=True, tag="tensors", tag_field="name"):
    """Numbers in, numbers out: one vector a step in, every declared output of that step back."""


TaskSpec = NextWord | Ner | Labels | Forecast | Sentiment | Tensors


class Metric(Record, frozen=True, kw_only=True):
    """A measured quality.

    Attributes:
        name: What is measured, for example `perplexity`.
        split: Named part of the data it is measured on.
        value: The number.
        floor: The same number for the best non-neural method known to us, and its name.
        floor_name: What the floor is.
    """

    name: str
    split: str
    value: float
    floor: float | None = None
    floor_name: str = ""


class Dataset(Record, frozen=True, kw_only=True):
    """Data a model was trained on: its name, licence, and the SHA-256 of each file."""

    name: str
    licence: str
    sha256: dict[str, str]


class Provenance(Record, frozen=True, kw_only=True):
    """Where the weights come from: enough to train them again."""

    command: str
    config: dict[str, Any] = {}
    seed: int | None = None
    git_commit: str = ""
    datasets: tuple[Dataset, ...] = ()
    metrics: tuple[Metric, ...] = ()
    versions: dict[str, str] = {}


class Drift(Record, frozen=True, kw_only=True):
    """How far a variant's answers are from those of model.onnx when each carries its own state through one session.

    Attributes:
        output: Which output.
        steps: Length of the session in time steps.
        largest: Largest absolute difference of one number.
        mean: Mean absolute difference, over the whole session.
        late: The same over the last tenth of the session; where it is not above `mean`, errors do not add up.
    """

    output: str
    steps: Size
    largest: float
    mean: float
    late: float


class SpeedUp(Record, frozen=True, kw_only=True):
    """Processor time of one step of model.onnx over that of the variant, one thread.

    Attributes:
        batch_size: Sessions stepped together.
        ratio: Above 1 the variant is faster.
        processor: What it was measured on.
    """

    batch_size: Size
    ratio: float
    processor: str


class Variant(Record, frozen=True, kw_only=True):
    """The same model in cheaper arithmetic: another graph with the same inputs, outputs and state.

    Attributes:
        name: Its arithmetic.
        file: The graph, beside model.onnx; `ModelConfig.files` has its hash.
        device: Where it pays. Elsewhere the service runs model.onnx.
        tolerance: Largest difference allowed between golden.json, which model.onnx answers, and this graph.
        drift: What was measured over a long session.
        speed_up: What was gained; empty if not measured.
        metrics: Quality, measured as that of model.onnx.
    """

    name: VariantName
    file: str
    device: Literal["cpu", "cuda"]
    tolerance: float
    drift: tuple[Drift, ...] = ()
    speed_up: tuple[SpeedUp, ...] = ()
    metrics: tuple[Metric, ...] = ()


class ModelConfig(Record, frozen=True, kw_only=True):
    """config.json: everything the service needs to know of a model besides its weights.

    Attributes:
        schema_version: `SCHEMA_VERSION` of the writer.
        name: Name of the model, and of its directory.
        version: Version number, and name of the directory inside.
        description: One line for people.
        architecture: For people and metrics only; the engine does not look at it.
        task: What the numbers mean.
        streaming: Whether the model can be stepped; a bidirectional one cannot. It has no state and takes a whole
            input in one run, so its longest is `batching.max_chunk_length`.
        streaming_sibling: Model of the same task that can be stepped, if this one cannot.
        inputs: Graph inputs beside `lengths` and the state.
        outputs: Graph outputs beside the state.
        state: State pairs; empty for a stateless model.
        lengths: Name of the graph input with the valid time steps of each row, (B,) int32.
        batching: Limits of a batch.
        opset: ONNX operator set of the graph.
        files: SHA-256 of every other file of the directory that the service reads.
        tolerance: Largest difference allowed between golden.json and what the loaded graph computes.
        variants: Graphs of the same model in cheaper arithmetic.
        provenance: Where the weights come from.
    """

    schema_version: int
    name: str
    version: Size
    description: str
    architecture: str
    task: TaskSpec
    streaming: bool
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    state: tuple[StateTensor, ...]
    streaming_sibling: str = ""
    lengths: str = "lengths"
    batching: Batching = Batching()
    opset: int
    files: dict[str, str]
    tolerance: float = 1e-5
    variants: tuple[Variant, ...] = ()
    provenance: Provenance

    @property
    def ranked(self) -> tuple[str, ...]:
        """Outputs with the best first, on the last axis, so that the first few say what they do without the others."""
        return RANKED if isinstance(self.task, NextWord) else ()

    @property
    def state_nbytes(self) -> int:
        """Bytes of state of one session."""
        return sum(state.nbytes for state in self.state)


class GoldenCase(Record, frozen=True, kw_only=True):
    """One input and what the trained model computed for it.

    Attributes:
        inputs: Input name to nested lists (T, *shape).
        split: Chunk lengths that add up to T; the same answer is due when the input arrives in these pieces.
        outputs: Output name to nested lists (T, *shape); outputs left out are not compared.
        state: State output name to nested lists of `shape`, after the last time step; states left out are not compared.
    """

    inputs: dict[str, list[Any]]
    split: tuple[int, ...]
    outputs: dict[str, list[Any]]
    state: dict[str, list[Any]]


class Golden(Record, frozen=True, kw_only=True):
    """golden.json: answers of the original model, checked on the serving device before a model is called ready."""

    cases: Annotated[tuple[GoldenCase, ...], msgspec.Meta(min_length=1)]


class _Versioned(msgspec.Struct):
    schema_version: int


# Made once and here: two threads that are the first to read a record of one kind at the same time crash msgspec 0.22.
_read_version = msgspec.json.Decoder(_Versioned).decode
_read_config = msgspec.json.Decoder(ModelConfig).decode
_read_golden = msgspec.json.Decoder(Golden).decode


def decode_config(data: bytes) -> ModelConfig:
    """Read config.json.

    Raises:
        ContractError: It is not JSON, of another schema version, or a field is missing, unknown or of the wrong type.
    """
    try:
        version = _read_version(data).schema_version
        if version != SCHEMA_VERSION:
            raise ContractError(
                f"schema_version {version} is unknown; this version reads {SCHEMA_VERSION}"
            )
        config = _read_config(data)
    except msgspec.MsgspecError as error:
        raise ContractError(f"{CONFIG_FILE}: {error}") from None
    for state in config.state:
        if isinstance(state.initial, tuple) and len(state.initial) != math.prod(state.shape):
            raise ContractError(
                f"{CONFIG_FILE}: state {state.input_name} of shape {state.shape} has "
                f"{len(state.initial)} initial values"
            )
    if not config.streaming and (
        config.state or config.batching.max_chunk_length > config.batching.max_batch_tokens
    ):
        raise ContractError(
            f"{CONFIG_FILE}: a model that cannot be stepped has no state, and its longest input fits one batch"
        )
    _check_variants(config)
    _check_task(config)
    return config


def _check_variants(config: ModelConfig) -> None:
    names = [variant.name for variant in config.variants]
    if len(set(names)) != len(names):
        raise ContractError(f"{CONFIG_FILE}: variants {', '.join(names)} are not all different")
    for variant in config.variants:
        if variant.file in (MODEL_FILE, GOLDEN_FILE) or variant.file not in config.files:
            raise ContractError(
                f"{CONFIG_FILE}: variant {variant.name} needs a file of its own with a hash, not {variant.file}"
            )


def _check_task(config: ModelConfig) -> None:
    """Raise `ContractError` unless the graph takes and gives what the task speaks of."""
    task = config.task
    if isinstance(task, Tensors):
        return
    if isinstance(task, Ner):
        _check_ner(config, task)
        return
    if len(config.inputs) != 1:
        raise ContractError(f"{CONFIG_FILE}: the task takes one input, not {len(config.inputs)}")
    due: dict[str, tuple[int, ...]]
    if isinstance(task, NextWord):
        due = {"logits": (task.vocab_size,), "logsumexp": ()}
        due |= dict.fromkeys(RANKED, (task.top_k,))
    elif isinstance(task, Forecast):
        due = _due_of_forecast(config, task)
    elif isinstance(task, Sentiment):
        due = {"scores": (len(task.labels),)}
        if len(task.thresholds) != (0 if task.exclusive else len(task.labels)):
            raise ContractError(
                f"{CONFIG_FILE}: {len(task.thresholds)} thresholds do not fit {len(task.labels)} labels, "
                f"exclusive {task.exclusive}"
            )
    else:
        due = {"scores": (len(task.labels),)}
        for symbol, value in task.symbols.items():
            if (len(value),) != config.inputs[0].shape:
                raise ContractError(
                    f"{CONFIG_FILE}: symbol {symbol} has {len(value)} numbers, the input shape "
                    f"{config.inputs[0].shape}"
                )
    shapes = {tensor.name: tensor.shape for tensor in config.outputs}
    for name, shape in due.items():
        if shapes.get(name) != shape:
            raise ContractError(
                f"{CONFIG_FILE}: the task needs an output {name} of shape {shape}, declared is {shapes.get(name)}"
            )


def _check_ner(config: ModelConfig, task: Ner) -> None:
    """Raise `ContractError` unless the tags make a chain and the graph takes words and gives their tags."""
    count = len(task.labels)
    kinds = [label[2:] for label in task.labels if label.startswith("B-")]
    due = {"O", *(f"{position}-{kind}" for position in "BI" for kind in kinds)}
    if task.labels[:1] != ("O",) or set(task.labels) != due or count != len(due):
        raise ContractError(f"{CONFIG_FILE}: {', '.join(task.labels)} are no tags in IOB2 after O")
    if [len(row) for row in task.transitions] != [count] * count:
        raise ContractError(
            f"{CONFIG_FILE}: {count} tags need transitions of {count} rows of {count}"
        )
    shapes = {tensor.name: (tensor.dtype, len(tensor.shape)) for tensor in config.inputs}
    if shapes != {"words": ("int64", 0), "characters": ("int64", 1)}:
        raise ContractError(f"{CONFIG_FILE}: words () and characters (C,) are due as int64 inputs")
    if {tensor.name: tensor.shape for tensor in config.outputs}.get("scores") != (count,):
        raise ContractError(
            f"{CONFIG_FILE}: {count} tags need an output scores of shape ({count},)"
        )


def _due_of_forecast(config: ModelConfig, task: Forecast) -> dict[str, tuple[int, ...]]:
    (tensor,) = config.inputs
    if (tensor.dtype, tensor.shape) != ("float32", (len(task.columns),)):
        raise ContractError(
            f"{CONFIG_FILE}: {len(task.columns)} columns are due as float32, the input is {tensor.dtype} of "
            f"shape {tensor.shape}"
        )
    if list(task.quantiles) != sorted(set(task.quantiles)):
        raise ContractError(f"{CONFIG_FILE}: quantiles do not rise")
    mean = (task.horizon, len(task.columns))
    return {"mean": mean, "quantiles": (len(task.quantiles), *mean)}


def decode_golden(data: bytes) -> Golden:
    """Read golden.json.

    Raises:
        ContractError: It is not JSON or not a `Golden`.
    """
    try:
        return _read_golden(data)
    except msgspec.MsgspecError as error:
        raise ContractError(f"{GOLDEN_FILE}: {error}") from None


def encode(record: ModelConfig | Golden, *, indent: int | None = 2) -> bytes:
    """Write a config or golden record as JSON text ending in a newline; `indent=None` writes it on one line."""
    data = msgspec.json.encode(record)
    if indent is not None:
        data = msgspec.json.format(data, indent=indent)
    return data + b"\n"


def digest(data: bytes) -> str:
    """SHA-256 of a file's content, in lower-case hexadecimal."""
    return hashlib.sha256(data).hexdigest()
