"""Group commit: all steps that end in one turn of the event loop go to the journal in one call."""

from __future__ import annotations

import asyncio

from service.errors import SessionFenced
from service.journal.protocol import Entry, Journal


class GroupCommit:
    """Collects entries and commits them together.

    Args:
        journal: Where they go.
    """

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._waiting: list[tuple[Entry, asyncio.Future[None]]] = []
        self._flushes: set[asyncio.Task[None]] = set()

    async def commit(self, entry: Entry) -> None:
        """Return once the entry is committed.

        Raises:
            SessionFenced: Another owner took the session; nothing was committed.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        self._waiting.append((entry, future))
        if len(self._waiting) == 1:
            # Behind every step that the same wake-up resolved.
            loop.call_soon(self._start_flush)
        await future

    def _start_flush(self) -> None:
        group, self._waiting = self._waiting, []
        flush = asyncio.create_task(self._flush(group))
        self._flushes.add(flush)
        flush.add_done_callback(self._flushes.discard)

    async def _flush(self, group: list[tuple[Entry, asyncio.Future[None]]]) -> None:
        try:
            committed = await self._journal.commit([entry for entry, _ in group])
        except Exception as error:
            # The store failed: every caller of the group has to know.
            for _, future in group:
                if not future.done():
                    future.set_exception(error)
            return
        for (entry, future), done in zip(group, committed, strict=True):
            if future.done():
                continue
            if done:
                future.set_result(None)
            else:
                future.set_exception(
                    SessionFenced(f"session {entry.session} was taken by another owner")
                )
