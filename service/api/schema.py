"""Bodies and frames of the API, stated once: decoded from, encoded to and documented by these records."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, UnsetType

from service.contract import Arithmetic, Metric, Record, StateTensor, TaskSpec, Tensor, Variant
from service.engine.work import Priority
from service.tasks.protocol import Parameters

# Not beyond 64 bits: it is sent back, and MessagePack has no larger numbers.
FrameNumber = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
Id = FrameNumber | str | None
Timeout = Annotated[float, Meta(gt=0, description="Seconds until the request is given up.")]
Seq = Annotated[
    int,
    Meta(ge=1, description="Number of the first input; sending the same number again is a retry."),
]
Version = Annotated[int, Meta(ge=1, description="The newest that serves, if left out.")]
Share = Annotated[
    Priority,
    Meta(
        description="While there is more to do than can be done, four times the share of the one below."
    ),
]
Inputs = Annotated[list[Any], Meta(description="Inputs, as the model's task takes them.")]
_BINARY = {"contentMediaType": "application/octet-stream"}
PackedInputs = Annotated[
    bytes,
    Meta(
        description="Packed inputs: little-endian values of the model's one input, (inputs, *shape) in C order.",
        extra_json_schema=_BINARY,
    ),
]
PackedOutput = Annotated[
    bytes,
    Meta(
        description="Little-endian values of an output of the model, (inputs, *shape) in C order.",
        extra_json_schema=_BINARY,
    ),
]


class Answer(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Something the service writes."""


class PredictRequest(Record, frozen=True, kw_only=True):
    """Whole inputs, each answered by itself."""

    inputs: Inputs
    version: Version | None = None
    parameters: Parameters = Parameters()
    priority: Share = "normal"
    timeout_s: Timeout | None = None


class PredictAnswer(Answer, kw_only=True):
    """One result for each input."""

    model: str
    version: int
    results: list[Any]


class GenerateOptions(Record, frozen=True, kw_only=True):
    """How to continue a text; defaults are those of the Hugging Face pipelines where those have one."""

    max_tokens: Annotated[int, Meta(ge=1)] = 20
    temperature: Annotated[float, Meta(ge=0, le=100, description="0 is greedy.")] = 1.0
    top_k: Annotated[int, Meta(ge=0, description="0 is the whole vocabulary.")] = 50
    top_p: Annotated[float, Meta(gt=0, le=1)] = 1.0
    seed: Annotated[int, Meta(ge=0, le=2**63 - 1)] | None = None
    stop: str | tuple[str, ...] = ()
    ignore_eos: Annotated[bool, Meta(description="Go on past the end of a line.")] = False
    timeout_s: Timeout | None = None


class GenerateRequest(GenerateOptions, frozen=True, kw_only=True):
    """A text to continue."""

    version: Version | None = None
    inputs: Annotated[str | list[Any], Meta(description="Text, or a list of texts and token ids.")]
    stream: Annotated[bool, Meta(description="Answer with server-sent events.")] = False
    priority: Share = "normal"


class SessionGenerateRequest(GenerateOptions, frozen=True, kw_only=True):
    """Continue from a session's state; every generated token is an input of the session."""

    inputs: str | list[Any] | None = None
    seq: Seq | None = None
    stream: bool = False


class TokenAnswer(Answer, kw_only=True):
    """One generated token."""

    index: int
    id: int
    token: str
    text: str
    logprob: float
    seq: int | UnsetType = UNSET


class GenerateAnswer(Answer, kw_only=True):
    """A generated text; the last event or frame of a stream leaves out the tokens it has sent."""

    model: str
    version: int
    text: str
    tokens: list[TokenAnswer] | UnsetType = UNSET
    finish_reason: str
    seed: int
    session: str | UnsetType = UNSET
    seq: int | UnsetType = UNSET


class SessionOptions(Record, frozen=True, kw_only=True):
    """What a session is of."""

    model: str
    version: Version | None = None
    ttl_s: (
        Annotated[float, Meta(gt=0, description="Idle seconds until the session expires.")] | None
    ) = None
    priority: Share = "normal"


class SessionRequest(SessionOptions, frozen=True, kw_only=True):
    """A session to open; without an id of your own it gets an unguessable one."""

    session: str | None = None


class SessionAnswer(Answer, kw_only=True):
    """A session."""

    session: str
    model: str
    version: int
    seq: int
    ttl_s: float
    idle_s: float
    created_at: float
    priority: str
    resident: bool
    busy: bool


class SessionList(Answer, kw_only=True):
    """Sessions of this process, the longest unused first."""

    sessions: list[SessionAnswer]


class StepsRequest(Record, frozen=True, kw_only=True):
    """Inputs for a session, applied once and in order."""

    inputs: Inputs
    seq: Seq | None = None
    parameters: Parameters = Parameters()
    timeout_s: Timeout | None = None


class StepsAnswer(Answer, kw_only=True):
    """One result for each input; `seq` inputs are committed, the first of these was number `first`."""

    session: str
    first: int
    seq: int
    duplicate: bool
    results: list[Any]


class PackedStepsAnswer(Answer, kw_only=True):
    """As `StepsAnswer`, to packed inputs: instead of results the outputs of the model that they are made of."""

    session: str
    first: int
    seq: int
    duplicate: bool
    results: dict[str, PackedOutput]


AnyStepsAnswer = StepsAnswer | PackedStepsAnswer


class ModelAnswer(Answer, kw_only=True):
    """A model as it stands in the service."""

    name: str
    version: int
    state: str
    reason: str = ""
    description: str = ""
    architecture: str = ""
    streaming: bool | UnsetType = UNSET
    task: TaskSpec | UnsetType = UNSET
    inputs: tuple[Tensor, ...] | UnsetType = UNSET
    outputs: tuple[Tensor, ...] | UnsetType = UNSET
    state_tensors: tuple[StateTensor, ...] | UnsetType = UNSET
    state_bytes: int | UnsetType = UNSET
    metrics: tuple[Metric, ...] | UnsetType = UNSET
    variant: Arithmetic | UnsetType = UNSET
    variants: tuple[Variant, ...] | UnsetType = UNSET


class ModelList(Answer, kw_only=True):
    """Every model found."""

    models: list[ModelAnswer]


class Health(Answer, kw_only=True):
    """Whether the process lives, or may be sent requests; state of each model by `name/version`."""

    status: str
    models: dict[str, str] | UnsetType = UNSET


class Problem(Answer, kw_only=True):
    """An error, RFC 9457. Further members help to go on: `path`, `committed`, `expected`, `reason`, ..."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    request_id: str = ""


# Frames of the WebSocket, client to server.


class OpenFrame(SessionRequest, frozen=True, kw_only=True, tag="open", tag_field="op"):
    """Open a session, or find it again; answered by `opened`."""

    id: Id = None


class StepOf(Record, frozen=True, kw_only=True):
    """Inputs for one session of a step frame; packed ones in MessagePack only."""

    session: str
    inputs: Inputs | PackedInputs
    seq: Seq | None = None
    parameters: Parameters = Parameters()


class JsonStepOf(StepOf, frozen=True, kw_only=True):
    """As `StepOf` in a frame of JSON, which has no binary data."""

    inputs: Inputs


class StepFrame(Record, frozen=True, kw_only=True, tag="step", tag_field="op"):
    """Steps of any number of sessions, run side by side; answered by `stepped`, a reply for each in order."""

    steps: Sequence[StepOf]
    id: Id = None
    timeout_s: Timeout | None = None


class JsonStepFrame(StepFrame, frozen=True, kw_only=True, tag="step", tag_field="op"):
    """As `StepFrame` in JSON."""

    steps: Sequence[JsonStepOf]


class GenerateFrame(GenerateOptions, frozen=True, kw_only=True, tag="generate", tag_field="op"):
    """Continue from a session's state; answered by `token` frames and one `generated`."""

    session: str
    inputs: str | list[Any] | None = None
    seq: Seq | None = None
    id: Id = None


class CancelFrame(Record, frozen=True, kw_only=True, tag="cancel", tag_field="op"):
    """Give up the frame with the id `target`: what is not running yet is dropped."""

    target: FrameNumber | str
    id: Id = None


class CloseFrame(Record, frozen=True, kw_only=True, tag="close", tag_field="op"):
    """End a session; answered by `closed`."""

    session: str
    id: Id = None


Frame = OpenFrame | StepFrame | GenerateFrame | CancelFrame | CloseFrame
JsonFrame = OpenFrame | JsonStepFrame | GenerateFrame | CancelFrame | CloseFrame
