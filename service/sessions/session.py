"""One session and the rules of its sequence numbers. Pure: no I/O, no asyncio."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import numpy.typing as npt

from service.engine.arena import Slot
from service.engine.work import Flow, flow_of
from service.errors import Invalid, PayloadMismatch, WrongSeq
from service.journal.protocol import Identity, Reply, Stored, content_of, in_order

if TYPE_CHECKING:
    # Tasks need `Chunk`, and with the engine come asyncio and the metrics: models begin to load before those are there.
    from service.engine.engine import Engine

_ID = re.compile(r"[A-Za-z0-9._~-]{1,128}")
# Bytes of a payload that is no longer than what would stand for it.
_SHORT = 64


class Chunk(msgspec.Struct, frozen=True, gc=False):
    """Inputs a session takes in one request.

    Attributes:
        arrays: Input name to (T, *shape).
        ends: Position of the last time step of each input, rising, the last one T-1.
        parameters: What else the reply depends on.
        every_step: Whether outputs are wanted of every time step, not of `ends` only.
    """

    arrays: Mapping[str, npt.NDArray[Any]]
    ends: npt.NDArray[np.intp]
    parameters: bytes = b""
    every_step: bool = False

    @property
    def keep(self) -> npt.NDArray[np.intp]:
        """Time steps whose outputs are wanted, rising."""
        return np.arange(self.length) if self.every_step else self.ends

    @property
    def length(self) -> int:
        """T, time steps."""
        return int(self.ends[-1]) + 1

    def digest(self) -> bytes:
        """See `digests_of`."""
        content = content_of(in_order(self.arrays))
        return digests_of(self.parameters, self.ends.tobytes(), (content,))[0]


def digests_of(parameters: bytes, ends: bytes, contents: Sequence[bytes]) -> list[bytes]:
    """The same for the same payload and for no other: a short one is its own digest, of a long one 16 bytes.

    Args:
        parameters: What else the reply depends on.
        ends: Positions of the last time step of each input.
        contents: All inputs in the order of names, one after the other; of some payloads of the same length.
    """
    if len(contents[0]) <= _SHORT:
        head = b"".join((parameters, len(ends).to_bytes(2, "little"), ends))
        return [head + content for content in contents]
    digests = []
    for content in contents:
        value = blake2b(parameters, digest_size=16)
        value.update(ends)
        value.update(content)
        digests.append(value.digest())
    return digests


@dataclass(slots=True, eq=False)
class Session:
    """A session in memory.

    Attributes:
        identity: Who it is.
        engine: What runs it.
        epoch: Epoch under which this process commits.
        seq: Inputs committed.
        reply: Answer to the last request.
        slot: Where its state is; None while it is paged out.
        log_length: Time steps committed since the last snapshot.
        busy: Whether a step is in flight.
        held: Whether one caller keeps it over several steps.
        generation: The last generation, as its task left it, to be resumed by a caller that lost its stream.
        used_at: Monotonic time of the last use.
        fresh: Whether this process made it and it never had a slot.
        flow: What its steps are part of.
    """

    identity: Identity
    engine: Engine
    epoch: int
    used_at: float
    seq: int = 0
    reply: Reply | None = None
    slot: Slot | None = None
    log_length: int = 0
    busy: bool = False
    held: bool = False
    generation: Any = None
    fresh: bool = False
    flow: Flow = field(init=False)

    def __post_init__(self) -> None:
        self.flow = flow_of(self.identity.tenant, "session", self.identity.priority)

    @property
    def labels(self) -> tuple[str, str]:
        """Model and version, as metrics name them."""
        return self.identity.model, str(self.identity.version)

    def take_over(self, stored: Stored) -> None:
        """Stand where the journal says."""
        self.epoch, self.seq, self.reply = stored.epoch, stored.seq, stored.reply
        self.log_length = sum(len(next(iter(inputs.values()))) for inputs in stored.log)

    @property
    def idle(self) -> bool:
        """Whether nobody is at work on it."""
        return not (self.busy or self.held)

    def idle_s(self, now: float) -> float:
        """Seconds since the last use; 0 while somebody is at work on it."""
        return now - self.used_at if self.idle else 0.0


def checked_id(value: str) -> str:
    """A session id chosen by a caller.

    Raises:
        Invalid: It is not 1 to 128 letters, digits, or `.`, `_`, `~`, `-`.
    """
    if not _ID.fullmatch(value):
        raise Invalid(
            "a session id is 1 to 128 letters, digits, '.', '_', '~' or '-'", path="$.session"
        )
    return value


def find_retry(session: Session, seq: int | None, chunk: Chunk) -> Reply | None:
    """Decide whether a request is the next one or a retry of the last one.

    Args:
        session: With `seq` inputs committed.
        seq: Number the caller gives to the first input of the request; None means the next.
        chunk: What the caller sends.

    Returns:
        The stored reply for a retry, None for the next request.

    Raises:
        WrongSeq: It is neither; carries the number committed and the number expected.
        PayloadMismatch: It is a retry with another payload.
    """
    if seq is None or seq == session.seq + 1:
        return None
    reply = session.reply
    if reply is None or seq != reply.first:
        raise WrongSeq(
            f"session {session.identity.id} has {session.seq} inputs committed; seq {seq} is neither the next "
            "nor the last request",
            committed=session.seq,
            expected=session.seq + 1,
        )
    if reply.digest != chunk.digest():
        raise PayloadMismatch(
            f"seq {seq} of session {session.identity.id} was committed with another payload",
            committed=session.seq,
            expected=session.seq + 1,
        )
    return reply
