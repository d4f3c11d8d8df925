"""Sessions in this process's memory: durability `memory`, lost with the process."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence

import msgspec

from service.journal.protocol import (
    Arrays,
    Entry,
    Identity,
    Layout,
    Reply,
    Snapshot,
    Stored,
    Tombstone,
    content_of,
    layout_of,
    unpack,
)

_LENGTH_BYTES = 4


class _Kept(msgspec.Struct, gc=False):
    """A session, in as little memory as it will go into: most of all sessions are idle.

    Attributes:
        identity: See `Stored`; so are `epoch`, `seq` and `reply`.
        log: Of each commit after the snapshot the length in bytes and the inputs.
        inputs: Layout of those; a model takes no other.
        snapshot: The state; None is the initial one.
        states: Layout of that, with a first axis of one.
        snapshot_seq: Inputs committed before it.
    """

    identity: Identity
    epoch: int
    seq: int = 0
    reply: Reply | None = None
    log: bytes = b""
    inputs: Layout = ()
    snapshot: bytes | None = None
    states: Layout = ()
    snapshot_seq: int = 0


class MemoryJournal:
    """A `Journal` in dictionaries.

    Args:
        max_tombstones: Ended sessions remembered; the oldest is forgotten first.
    """

    def __init__(self, max_tombstones: int) -> None:
        self._sessions: dict[str, _Kept] = {}
        self._tombstones: OrderedDict[str, Tombstone] = OrderedDict()
        self._max_tombstones = max_tombstones

    async def create(self, identity: Identity) -> bool:
        """See `Journal.create`."""
        if identity.id in self._sessions:
            return False
        self._tombstones.pop(identity.id, None)
        self._sessions[identity.id] = _Kept(identity, epoch=1)
        return True

    async def fence(self, session: str) -> Stored | None:
        """See `Journal.fence`."""
        kept = self._sessions.get(session)
        if kept is None:
            return None
        kept.epoch += 1
        snapshot = None
        if kept.snapshot is not None:
            rows = unpack(kept.states, kept.snapshot)
            snapshot = Snapshot(kept.snapshot_seq, {name: row[0] for name, row in rows.items()})
        log = list(_commits(kept))
        return Stored(kept.identity, kept.epoch, kept.seq, snapshot, log, kept.reply)

    async def commit(self, entries: Sequence[Entry]) -> Sequence[bool]:
        """See `Journal.commit`."""
        return [self._commit(entry) for entry in entries]

    def commit_now(self, entries: Sequence[Entry]) -> Sequence[bool] | None:
        """See `Journal.commit_now`."""
        return [self._commit(entry) for entry in entries]

    def _commit(self, entry: Entry) -> bool:
        kept = self._sessions.get(entry.session)
        if kept is None or kept.epoch != entry.epoch or kept.seq != entry.reply.first - 1:
            return False
        content = entry.content
        kept.log += len(content).to_bytes(_LENGTH_BYTES, "little") + content
        kept.inputs = entry.layout
        kept.seq = entry.seq
        kept.reply = entry.reply
        return True

    async def snapshot(self, session: str, epoch: int, snapshot: Snapshot) -> bool:
        """See `Journal.snapshot`."""
        kept = self._sessions.get(session)
        if kept is None or kept.epoch != epoch or kept.seq != snapshot.seq:
            return False
        state = {name: row[None] for name, row in snapshot.state.items()}
        kept.states, kept.snapshot = layout_of(state), content_of(state)
        kept.snapshot_seq = snapshot.seq
        kept.log = b""
        return True

    async def end(self, session: str, tombstone: Tombstone) -> bool:
        """See `Journal.end`."""
        if self._sessions.pop(session, None) is None:
            return False
        self._tombstones[session] = tombstone
        while len(self._tombstones) > self._max_tombstones:
            self._tombstones.popitem(last=False)
        return True

    async def tombstone(self, session: str) -> Tombstone | None:
        """See `Journal.tombstone`."""
        return self._tombstones.get(session)

    async def close(self) -> None:
        """See `Journal.close`."""


def _commits(kept: _Kept) -> Iterator[Arrays]:
    start = 0
    while start < len(kept.log):
        first = start + _LENGTH_BYTES
        length = int.from_bytes(kept.log[start:first], "little")
        start = first + length
        yield unpack(kept.inputs, kept.log[first:start])
