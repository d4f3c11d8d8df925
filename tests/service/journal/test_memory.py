"""The suite every `Journal` has to pass: a new store is one more entry of `STORES`."""

from __future__ import annotations

import tracemalloc
from collections.abc import AsyncIterator, Callable

import numpy as np
import pytest

from service.journal.memory import MemoryJournal
from service.journal.protocol import (
    Entry,
    Identity,
    Journal,
    Reply,
    Snapshot,
    Stored,
    Tombstone,
    join_log,
    layout_of,
)

MAX_TOMBSTONES = 3
STORES: dict[str, Callable[[], Journal]] = {"memory": lambda: MemoryJournal(MAX_TOMBSTONES)}


@pytest.fixture(params=STORES)
async def journal(request: pytest.FixtureRequest) -> AsyncIterator[Journal]:
    store = STORES[request.param]()
    yield store
    await store.close()


def identity(session: str = "s") -> Identity:
    return Identity(session, "tenant", "model", 1, ttl_s=10.0, created_at=5.0)


def entry(
    first: int, *values: float, session: str = "s", epoch: int = 1, inputs: int | None = None
) -> Entry:
    reply = Reply.of(first, bytes([first]), {"y": np.array(values) * 10})
    seq = first - 1 + (len(values) if inputs is None else inputs)
    return Entry.of(session, epoch, seq, {"x": np.array(values)}, reply)


async def stored(journal: Journal, session: str = "s") -> Stored:
    found = await journal.fence(session)
    assert found is not None
    return found


async def test_a_new_session_has_epoch_1_and_nothing_else(journal: Journal) -> None:
    assert await journal.create(identity())
    found = await stored(journal)
    assert found.identity == identity()
    assert (found.epoch, found.seq, found.snapshot, found.log, found.reply) == (
        2,
        0,
        None,
        [],
        None,
    )


async def test_an_id_is_taken_once(journal: Journal) -> None:
    assert await journal.create(identity())
    await journal.commit([entry(1, 1.0)])
    assert not await journal.create(identity())
    assert (await stored(journal)).seq == 1


async def test_an_unknown_session_is_nowhere(journal: Journal) -> None:
    assert await journal.fence("s") is None
    assert await journal.commit([entry(1, 1.0)]) == [False]
    assert not await journal.snapshot("s", 1, Snapshot(0, {}))
    assert not await journal.end("s", Tombstone("deleted", 1.0))
    assert await journal.tombstone("s") is None


async def test_what_is_committed_comes_back_in_order(journal: Journal) -> None:
    await journal.create(identity())
    assert await journal.commit([entry(1, 1.0, 2.0)]) == [True]
    assert await journal.commit([entry(3, 3.0)]) == [True]
    found = await stored(journal)
    assert found.seq == 3
    assert join_log(found.log)["x"].tolist() == [1, 2, 3]
    assert found.reply is not None
    assert (found.reply.first, found.reply.digest) == (3, bytes([3]))
    assert found.reply.outputs["y"].tolist() == [30]


async def test_an_input_may_be_several_time_steps(journal: Journal) -> None:
    await journal.create(identity())
    assert await journal.commit([entry(1, 1.0, 2.0, 3.0, inputs=1)]) == [True]
    found = await stored(journal)
    assert found.seq == 1
    assert len(found.log[0]["x"]) == 3


async def test_what_comes_back_is_of_the_same_dtype_and_shape(journal: Journal) -> None:
    await journal.create(identity())
    inputs = {"t": np.array([1, 2], np.int64), "v": np.ones((2, 3), np.float32)}
    outputs = {"y": np.zeros((1, 2), np.float32), "i": np.zeros((1,), np.int32)}
    state = {"h": np.full((1, 4), 0.1, np.float32), "n": np.array(3, np.int64)}
    await journal.commit([Entry.of("s", 1, 1, inputs, Reply.of(1, b"d", outputs))])
    found = await stored(journal)
    assert found.reply is not None
    pairs = [(inputs, found.log[0]), (outputs, found.reply.outputs)]
    assert await journal.snapshot("s", found.epoch, Snapshot(1, state))
    found = await stored(journal)
    assert found.snapshot is not None
    for given, back in [*pairs, (state, found.snapshot.state)]:
        assert given.keys() == back.keys()
        for name, array in given.items():
            assert (back[name].dtype, back[name].shape) == (array.dtype, array.shape)
            assert np.array_equal(back[name], array)


async def test_a_commit_that_is_not_the_next_changes_nothing(journal: Journal) -> None:
    await journal.create(identity())
    assert await journal.commit([entry(1, 1.0)]) == [True]
    for wrong in (entry(1, 9.0), entry(3, 9.0)):
        assert await journal.commit([wrong]) == [False]
    found = await stored(journal)
    assert found.seq == 1
    assert join_log(found.log)["x"].tolist() == [1]


async def test_each_entry_of_a_group_stands_for_itself(journal: Journal) -> None:
    for session in "ab":
        await journal.create(identity(session))
    group = [entry(1, 1.0, session="a"), entry(2, 1.0, session="b"), entry(1, 2.0, session="b")]
    assert list(await journal.commit([*group, entry(1, 1.0, session="c")])) == [
        True,
        False,
        True,
        False,
    ]
    assert (await stored(journal, "b")).seq == 1


async def test_an_empty_group_is_nothing(journal: Journal) -> None:
    assert list(await journal.commit([])) == []


async def test_an_older_epoch_commits_and_snapshots_nothing(journal: Journal) -> None:
    await journal.create(identity())
    epoch = (await stored(journal)).epoch
    assert await journal.commit([entry(1, 1.0, epoch=epoch - 1)]) == [False]
    assert not await journal.snapshot("s", epoch - 1, Snapshot(0, {}))
    assert await journal.commit([entry(1, 1.0, epoch=epoch)]) == [True]
    assert (await stored(journal)).epoch == epoch + 1


async def test_a_snapshot_replaces_the_log(journal: Journal) -> None:
    await journal.create(identity())
    await journal.commit([entry(1, 1.0, 2.0)])
    assert await journal.snapshot("s", 1, Snapshot(2, {"h": np.array([3.0])}))
    await journal.commit([entry(3, 4.0)])
    found = await stored(journal)
    assert found.snapshot is not None
    assert (found.snapshot.seq, found.snapshot.state["h"].tolist()) == (2, [3.0])
    assert join_log(found.log)["x"].tolist() == [4]
    assert (found.seq, found.reply is not None) == (3, True)


async def test_a_snapshot_at_another_seq_is_not_taken(journal: Journal) -> None:
    await journal.create(identity())
    await journal.commit([entry(1, 1.0, 2.0)])
    for seq in (1, 3):
        assert not await journal.snapshot("s", 1, Snapshot(seq, {}))
    found = await stored(journal)
    assert found.snapshot is None
    assert len(found.log) == 1


async def test_an_ended_session_leaves_a_tombstone(journal: Journal) -> None:
    await journal.create(identity())
    assert await journal.end("s", Tombstone("ttl", 7.0))
    assert await journal.tombstone("s") == Tombstone("ttl", 7.0)
    assert await journal.fence("s") is None
    assert await journal.commit([entry(1, 1.0)]) == [False]
    assert not await journal.end("s", Tombstone("deleted", 8.0))
    assert await journal.tombstone("s") == Tombstone("ttl", 7.0)


async def test_a_session_begun_anew_clears_its_tombstone_and_is_empty(journal: Journal) -> None:
    await journal.create(identity())
    await journal.commit([entry(1, 1.0)])
    await journal.end("s", Tombstone("ttl", 7.0))
    assert await journal.create(identity())
    assert await journal.tombstone("s") is None
    found = await stored(journal)
    assert (found.seq, found.log, found.reply) == (0, [], None)


async def test_the_oldest_tombstones_are_forgotten(journal: Journal) -> None:
    for number in range(MAX_TOMBSTONES + 2):
        await journal.create(identity(str(number)))
        await journal.end(str(number), Tombstone("ttl", float(number)))
    known = [await journal.tombstone(str(n)) is not None for n in range(MAX_TOMBSTONES + 2)]
    assert known == [False, False] + [True] * MAX_TOMBSTONES


async def test_a_step_is_kept_in_little_more_than_its_numbers() -> None:
    store = MemoryJournal(MAX_TOMBSTONES)
    sessions = [f"s{number}" for number in range(100)]
    for session in sessions:
        await store.create(identity(session))
    vector = np.ones((1, 7), np.float32)
    tracemalloc.start()
    for seq in range(1, 51):
        entries = [
            Entry.of(s, 1, seq, {"x": vector + seq}, Reply.of(seq, b"d", {"y": vector + seq}))
            for s in sessions
        ]
        assert all(await store.commit(entries))
    del entries
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < 100 * 50 * 2 * vector.nbytes
    found = await stored(store, "s7")
    assert join_log(found.log)["x"][:, 0].tolist() == list(range(2, 52))


def test_a_reply_has_the_outputs_it_was_made_of() -> None:
    outputs = {
        "scores": np.arange(6, dtype=np.float32).reshape(2, 3),
        "ids": np.array([[2**40], [-1]], np.int64),
        "sum": np.array([0.1, np.nan]),
    }
    back = Reply.of(1, b"d", outputs).outputs
    assert list(back) == list(outputs)
    for name, array in outputs.items():
        assert (back[name].dtype, back[name].shape) == (array.dtype, array.shape)
        assert back[name].tobytes() == array.tobytes()


def test_a_reply_may_have_no_outputs_or_empty_ones() -> None:
    nothing: dict[str, np.ndarray] = {}
    empty = {"x": np.zeros((0, 3)), "y": np.zeros((0,), np.int32)}
    for outputs in (nothing, empty):
        back = Reply.of(1, b"d", outputs).outputs
        assert {n: a.shape for n, a in back.items()} == {n: a.shape for n, a in outputs.items()}


def test_arrays_that_are_alike_share_a_layout() -> None:
    one, other = ({"x": np.zeros((length, 3))} for length in (1, 5))
    assert layout_of(one) is layout_of(other)
    assert layout_of(one) is not layout_of({"x": np.zeros((1, 3), np.float32)})


async def test_inputs_keep_their_names_whatever_their_order(journal: Journal) -> None:
    await journal.create(identity())
    a, b = np.array([1, 2]), np.array([[0.5], [1.5]])
    for first, inputs in ((1, {"a": a, "b": b}), (3, {"b": b, "a": a})):
        each = Entry.of("s", 1, first + 1, inputs, Reply.of(first, b"", {"y": a}))
        assert await journal.commit([each]) == [True]
    for found in (await stored(journal)).log:
        np.testing.assert_array_equal(found["a"], a)
        np.testing.assert_array_equal(found["b"], b)
