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


@pytest.fixture
async def journal() -> CountedJournal:
    journal = CountedJournal()
    for session in "abc":
        await journal.create(Identity(session, "t", "m", 1, ttl_s=1.0, created_at=0.0))
    return journal


def entry(session: str, first: int = 1, epoch: int = 1) -> Entry:
    return Entry(session, epoch, first, {"x": np.zeros(1)}, Reply(first, b"", {}))


async def test_commits_of_one_turn_go_together(journal: CountedJournal) -> None:
    commit = GroupCommit(journal)
    await asyncio.gather(*(commit.commit(entry(session)) for session in "abc"))
    await commit.commit(entry("a", 2))
    assert journal.groups == [3, 1]


async def test_a_fenced_entry_fails_alone(journal: CountedJournal) -> None:
    commit = GroupCommit(journal)
    await journal.fence("b")
    results = await asyncio.gather(
        *(commit.commit(entry(session)) for session in "abc"), return_exceptions=True
    )
    assert [type(result) for result in results] == [type(None), SessionFenced, type(None)]


async def test_a_store_that_fails_is_reported_to_all_and_the_next_group_goes_on(
    journal: CountedJournal,
) -> None:
    commit = GroupCommit(journal)
    journal.fails = {"commit"}
    results = await asyncio.gather(
        *(commit.commit(entry(session)) for session in "abc"), return_exceptions=True
    )
    assert [type(result) for result in results] == [ConnectionError] * 3
    await commit.commit(entry("a"))


@pytest.mark.parametrize("outcome", ["right", "fenced", "failed"])
async def test_a_caller_that_left_is_passed_over(journal: CountedJournal, outcome: str) -> None:
    commit = GroupCommit(journal)
    if outcome == "fenced":
        await journal.fence("a")
    if outcome == "failed":
        journal.fails = {"commit"}
    leaving, staying = (asyncio.create_task(commit.commit(entry(session))) for session in "ab")
    await asyncio.sleep(0)
    leaving.cancel()
    (result,) = await asyncio.gather(staying, return_exceptions=True)
    assert leaving.cancelled()
    assert isinstance(result, ConnectionError if outcome == "failed" else type(None))
