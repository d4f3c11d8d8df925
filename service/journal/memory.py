"""Sessions in this process's memory: durability `memory`, lost with the process."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from service.journal.protocol import Entry, Identity, Snapshot, Stored, Tombstone


class MemoryJournal:
    """A `Journal` in dictionaries.

    Args:
        max_tombstones: Ended sessions remembered; the oldest is forgotten first.
    """

    def __init__(self, max_tombstones: int) -> None:
        self._sessions: dict[str, Stored] = {}
        self._tombstones: OrderedDict[str, Tombstone] = OrderedDict()
        self._max_tombstones = max_tombstones

    async def create(self, identity: Identity) -> bool:
        """See `Journal.create`."""
        if identity.id in self._sessions:
            return False
        self._tombstones.pop(identity.id, None)
        self._sessions[identity.id] = Stored(identity, epoch=1)
        return True

    async def fence(self, session: str) -> Stored | None:
        """See `Journal.fence`."""
        stored = self._sessions.get(session)
        if stored is not None:
            stored.epoch += 1
        return stored

    async def commit(self, entries: Sequence[Entry]) -> Sequence[bool]:
        """See `Journal.commit`."""
        return [self._commit(entry) for entry in entries]

    def _commit(self, entry: Entry) -> bool:
        stored = self._sessions.get(entry.session)
        if stored is None or stored.epoch != entry.epoch or stored.seq != entry.reply.first - 1:
            return False
        stored.seq = entry.seq
        stored.log.append(entry.inputs)
        stored.reply = entry.reply
        return True

    async def snapshot(self, session: str, epoch: int, snapshot: Snapshot) -> bool:
        """See `Journal.snapshot`."""
        stored = self._sessions.get(session)
        if stored is None or stored.epoch != epoch or stored.seq != snapshot.seq:
            return False
        stored.snapshot = snapshot
        stored.log.clear()
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
