"""Group commit: all steps that end in one turn of the event loop go to the journal in one call."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from service.errors import SessionFenced
from service.journal.protocol import Entry, Journal

log = logging.getLogger(__name__)

OnCommit = Callable[[Exception | None], None]
OnCommits = Callable[[list[Exception | None]], None]
_Parts = list[tuple[list[Entry], OnCommits]]


class GroupCommit:
    """Collects entries and commits them together.

    Args:
        journal: Where they go.
    """

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._waiting: _Parts = []
        self._flushes: set[asyncio.Task[None]] = set()

    def add(self, entry: Entry, on_commit: OnCommit) -> None:
        """Commit an entry with all others of this turn.

        Args:
            entry: What to commit.
            on_commit: Called with None once it is committed; else with the error: `SessionFenced` when another owner
                took the session and nothing was committed, anything else when the store failed.
        """
        self.add_all([entry], lambda outcomes: on_commit(outcomes[0]))

    def add_all(self, entries: list[Entry], on_commit: OnCommits) -> None:
        """Commit entries of as many sessions; `on_commit` is called once, with the outcome of each."""
        self._waiting.append((entries, on_commit))
        if len(self._waiting) == 1:
            # Behind every step that the same wake-up resolved.
            asyncio.get_running_loop().call_soon(self._start_flush)

    def _start_flush(self) -> None:
        group, self._waiting = self._waiting, []
        entries = [entry for part, _ in group for entry in part]
        try:
            committed = self._journal.commit_now(entries)
        except Exception as error:
            self._end(group, [error] * len(entries))
            return
        if committed is not None:
            self._end(group, _outcomes(entries, committed))
            return
        flush = asyncio.create_task(self._flush(group, entries))
        self._flushes.add(flush)
        flush.add_done_callback(self._flushes.discard)

    async def _flush(self, group: _Parts, entries: list[Entry]) -> None:
        try:
            committed = await self._journal.commit(entries)
        except Exception as error:
            # The store failed: every caller of the group has to know.
            self._end(group, [error] * len(entries))
        else:
            self._end(group, _outcomes(entries, committed))

    @staticmethod
    def _end(group: _Parts, outcomes: list[Exception | None]) -> None:
        first = 0
        for part, on_commit in group:
            end = first + len(part)
            try:
                on_commit(outcomes[first:end])
            except Exception:
                # A fault of ours; the others of the group are to hear of theirs.
                log.exception("the end of a commit failed")
            first = end


def _outcomes(entries: Sequence[Entry], committed: Sequence[bool]) -> list[Exception | None]:
    return [
        None if done else SessionFenced(f"session {entry.session} was taken by another owner")
        for entry, done in zip(entries, committed, strict=True)
    ]
