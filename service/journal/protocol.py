"""What a session store promises. A session is its log; the hidden state is a cache of it.

state = fold of f_W over (model version, initial state, inputs). The journal holds the nearest snapshot, the inputs
after it, and the last reply, so that a retry is answered without applying anything twice. Whoever works on a session
first raises its epoch (`fence`); a commit by an older epoch changes nothing.

Records of which there are many are `msgspec.Struct`: made in a fifth of the time of a frozen dataclass, and nothing
that the collector of garbage has to walk through.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import msgspec
import numpy as np
import numpy.typing as npt

from service.engine.work import Priority

Array = npt.NDArray[Any]
Arrays = Mapping[str, Array]

Layout = tuple[tuple[str, np.dtype[Any], tuple[int, ...]], ...]
"""Name, dtype and shape without the first axis of some arrays whose first axes are equal."""

# One for all arrays that are alike: there are as many as inputs, outputs and states of the models.
_LAYOUTS: dict[Layout, Layout] = {}


def layout_of(arrays: Arrays) -> Layout:
    """The layout of arrays, the same object for the same layout."""
    layout = tuple([(name, array.dtype, array.shape[1:]) for name, array in arrays.items()])
    return _LAYOUTS.setdefault(layout, layout)


def in_order(arrays: Arrays) -> Arrays:
    """Arrays in the order of their names, so that the same are packed the same."""
    return arrays if len(arrays) == 1 else dict(sorted(arrays.items()))


def content_of(arrays: Arrays) -> bytes:
    """What is in arrays, one after the other."""
    if len(arrays) == 1:
        (array,) = arrays.values()
        return array.tobytes()
    return b"".join([array.tobytes() for array in arrays.values()])


def unpack(layout: Layout, content: bytes) -> dict[str, Array]:
    """Arrays from their layout and content, not to be written to."""
    sizes = [dtype.itemsize * math.prod(shape) for _, dtype, shape in layout]
    length = len(content) // sum(sizes) if content else 0
    arrays, start = {}, 0
    for (name, dtype, shape), size in zip(layout, sizes, strict=True):
        flat = np.frombuffer(content, dtype, length * math.prod(shape), start)
        arrays[name] = flat.reshape(length, *shape)
        start += length * size
    return arrays


class Identity(msgspec.Struct, frozen=True, gc=False):
    """What a session is from its first day to its last.

    Attributes:
        id: Unguessable when made by the service.
        tenant: Whose it is.
        model: Name of the model.
        version: Version it is pinned to.
        ttl_s: Idle time after which it expires.
        created_at: Unix time in seconds.
        priority: Its share of the model while there is more to do than can be done; see `scheduler.flow_of`.
    """

    id: str
    tenant: str
    model: str
    version: int
    ttl_s: float
    created_at: float
    priority: Priority = "normal"


class Reply(msgspec.Struct, frozen=True, gc=False):
    """The answer to the last request, as the model's outputs at the end of each input.

    Every session keeps one and few are ever asked for, so it is kept as bytes: a fifth of the memory of small arrays.

    Attributes:
        first: `seq` of the first input of the request.
        digest: Digest of the request's payload.
        layout: What the outputs are.
        content: What is in them.
    """

    first: int
    digest: bytes
    layout: Layout
    content: bytes

    @classmethod
    def of(cls, first: int, digest: bytes, outputs: Arrays) -> Reply:
        """The reply of some outputs, output name to (inputs, *shape)."""
        return cls(first, digest, layout_of(outputs), content_of(outputs))

    @property
    def outputs(self) -> dict[str, Array]:
        """Output name to (inputs, *shape), not to be written to."""
        return unpack(self.layout, self.content)


class Entry(msgspec.Struct, frozen=True, gc=False):
    """One request to commit.

    Attributes:
        session: Id.
        epoch: Epoch of the committer.
        seq: Inputs committed once this entry is.
        layout: What was fed to the model, (T, *shape) each, in the order of names.
        content: What is in that.
        reply: What was answered; its `first` is the number of inputs committed before, plus one.
    """

    session: str
    epoch: int
    seq: int
    layout: Layout
    content: bytes
    reply: Reply

    @classmethod
    def of(cls, session: str, epoch: int, seq: int, inputs: Arrays, reply: Reply) -> Entry:
        """The entry of some inputs, input name to (T, *shape)."""
        inputs = in_order(inputs)
        return cls(session, epoch, seq, layout_of(inputs), content_of(inputs), reply)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """State after `seq` inputs: state input name to array of the state's shape."""

    seq: int
    state: Arrays


@dataclass(slots=True)
class Stored:
    """All that is known of a session.

    Attributes:
        identity: Who it is.
        epoch: Highest epoch that took it.
        seq: Inputs committed.
        snapshot: Nearest snapshot; None is the initial state.
        log: Inputs of each commit after the snapshot.
        reply: Last reply; None before the first commit.
    """

    identity: Identity
    epoch: int = 0
    seq: int = 0
    snapshot: Snapshot | None = None
    log: list[Arrays] = field(default_factory=list)
    reply: Reply | None = None


class Tombstone(msgspec.Struct, frozen=True, gc=False):
    """What is left of an ended session.

    Attributes:
        reason: `ttl`, `evicted` or `deleted`.
        ended_at: Unix time in seconds.
        tenant: Whose it was; to others there never was such a session.
    """

    reason: str
    ended_at: float
    tenant: str = ""


class Journal(Protocol):
    """A session store. Every method is atomic; a raised error leaves the outcome unknown."""

    async def create(self, identity: Identity) -> bool:
        """Begin a session with epoch 1; False when the id is taken. Clears a tombstone of that id."""

    async def fence(self, session: str) -> Stored | None:
        """Raise the epoch by one and return the session; None when there is none. Not to be changed by the caller."""

    async def commit(self, entries: Sequence[Entry]) -> Sequence[bool]:
        """Commit a group, each entry by itself: True when epoch and seq were the stored ones."""

    def commit_now(self, entries: Sequence[Entry]) -> Sequence[bool] | None:
        """As `commit`, of a store that nobody has to wait for; None of any other, and nothing is done."""

    async def snapshot(self, session: str, epoch: int, snapshot: Snapshot) -> bool:
        """Set the snapshot and drop the log up to it; False when fenced or not at the committed seq."""

    async def end(self, session: str, tombstone: Tombstone) -> bool:
        """Forget a session but for a tombstone; False when there is none."""

    async def tombstone(self, session: str) -> Tombstone | None:
        """Why a session ended, as long as it is remembered."""

    async def close(self) -> None:
        """Release the store."""


def join_log(log: Sequence[Arrays]) -> dict[str, Array]:
    """All inputs of a log as one: input name to (T, *shape). The log is not empty."""
    return {name: np.concatenate([inputs[name] for inputs in log]) for name in log[0]}
