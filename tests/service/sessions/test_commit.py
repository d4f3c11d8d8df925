from __future__ import annotations

import asyncio
from collections.abc import Sequence

import numpy as np
import pytest

from service.errors import SessionFenced
from service.journal.protocol import Entry, Identity, Reply
from service.sessions.commit import GroupCommit
from tests.engines import RemoteJournal


class CountedJournal(RemoteJournal):
    """Keeps the size of each group."""

    def __init__(self) -> None:
        super().__init__()
        self.groups: list[int] = []

    async def commit(self, entries: Sequence[Entry]) -> Sequence[bool]:
        self.groups.append(len(entries))
        return await super().commit(entries)


class JournalAtHand(CountedJournal):
    """Commits without being waited for."""

    def commit_now(self, entries: Sequence[Entry]) -> Sequence[bool]:
        self.groups.append(len(entries))
        if "commit" in self.fails:
            self.fails.discard("commit")
            raise ConnectionError
        return [self._commit(each) for each in entries]

    async def commit(self, entries: Sequence[Entry]) -> Sequence[bool]:
        raise AssertionError("nobody has to wait for it")


@pytest.fixture(params=[CountedJournal, JournalAtHand])
async def journal(request: pytest.FixtureRequest) -> CountedJournal:
    journal: CountedJournal = request.param()
    for session in "abc":
        await journal.create(Identity(session, "t", "m", 1, ttl_s=1.0, created_at=0.0))
    return journal


def entry(session: str, first: int = 1, epoch: int = 1) -> Entry:
    return Entry.of(session, epoch, first, {"x": np.zeros(1)}, Reply.of(first, b"", {}))


async def committed(commit: GroupCommit, *entries: Entry) -> list[Exception | None]:
    """Commit entries in one turn of the event loop; returns what was reported of each."""
    futures = []
    for each in entries:
        future = asyncio.get_running_loop().create_future()
        commit.add(each, future.set_result)
        futures.append(future)
    return await asyncio.gather(*futures)


async def test_commits_of_one_turn_go_together(journal: CountedJournal) -> None:
    commit = GroupCommit(journal)
    assert await committed(commit, *map(entry, "abc")) == [None] * 3
    assert await committed(commit, entry("a", 2)) == [None]
    assert journal.groups == [3, 1]


async def test_a_fenced_entry_fails_alone(journal: CountedJournal) -> None:
    await journal.fence("b")
    outcomes = await committed(GroupCommit(journal), *map(entry, "abc"))
    assert [type(outcome) for outcome in outcomes] == [type(None), SessionFenced, type(None)]


async def test_a_store_that_fails_is_reported_to_all_and_the_next_group_goes_on(
    journal: CountedJournal,
) -> None:
    commit = GroupCommit(journal)
    journal.fails = {"commit"}
    outcomes = await committed(commit, *map(entry, "abc"))
    assert [type(outcome) for outcome in outcomes] == [ConnectionError] * 3
    assert await committed(commit, entry("a")) == [None]


async def test_a_report_that_raises_does_not_keep_the_others_from_theirs(
    journal: CountedJournal, caplog: pytest.LogCaptureFixture
) -> None:
    commit = GroupCommit(journal)

    def fail(outcome: Exception | None) -> None:
        raise RuntimeError("a fault of ours")

    commit.add(entry("a"), fail)
    assert await committed(commit, entry("b")) == [None]
    assert "a fault of ours" in caplog.text
