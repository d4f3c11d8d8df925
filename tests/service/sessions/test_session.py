from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

from service.engine.engine import Engine, Limits
from service.errors import Invalid, PayloadMismatch, WrongSeq
from service.journal.protocol import Identity, Reply
from service.metrics import EngineMetrics, Metrics
from service.sessions.session import Chunk, Session, checked_id, find_retry
from tests.engines import chunk, load_graph

CHUNK = chunk(1.0, 2.0)


@pytest.fixture
def session(accumulator: Path) -> Session:
    """A session that took CHUNK as its inputs 4 and 5."""
    limits = Limits(capacity=1, max_pending=1, max_pending_tokens=1)
    engine = Engine(load_graph(accumulator), limits, EngineMetrics(Metrics(), "accumulator", 1))
    identity = Identity("s", "tenant", "accumulator", 1, ttl_s=1.0, created_at=0.0)
    reply = Reply.of(4, CHUNK.digest(), {})
    return Session(identity, engine, epoch=1, used_at=10.0, seq=5, reply=reply)


@pytest.mark.parametrize("seq", [None, 6])
def test_the_next_request_is_no_retry(session: Session, seq: int | None) -> None:
    assert find_retry(session, seq, CHUNK) is None


def test_the_last_request_again_is_a_retry(session: Session) -> None:
    assert find_retry(session, 4, chunk(1.0, 2.0)) is session.reply


@pytest.mark.parametrize("seq", [0, 3, 5, 7])
def test_any_other_number_is_wrong_and_the_right_one_is_told(session: Session, seq: int) -> None:
    with pytest.raises(WrongSeq) as error:
        find_retry(session, seq, CHUNK)
    assert error.value.extra == {"committed": 5, "expected": 6}
    assert error.value.status == 409


def test_a_fresh_session_expects_1(session: Session) -> None:
    session.seq, session.reply = 0, None
    assert find_retry(session, 1, CHUNK) is None
    with pytest.raises(WrongSeq):
        find_retry(session, 0, CHUNK)


@pytest.mark.parametrize(
    "other",
    [
        chunk(1.0, 3.0),
        chunk(1.0),
        Chunk(CHUNK.arrays, np.array([1])),
        replace(CHUNK, parameters=b"top_k"),
        Chunk({"x": CHUNK.arrays["x"].astype(np.float32)}, CHUNK.ends),
    ],
    ids=["value", "length", "cut", "parameters", "dtype"],
)
def test_a_retry_with_another_payload_is_refused(session: Session, other: Chunk) -> None:
    with pytest.raises(PayloadMismatch) as error:
        find_retry(session, 4, other)
    assert error.value.status == 422


def test_the_same_payload_has_the_same_digest_whatever_its_memory_looks_like() -> None:
    strided = np.array([1.0, 9.0, 2.0, 9.0])[::2]
    assert Chunk({"x": strided}, CHUNK.ends).digest() == CHUNK.digest()
    a, b = np.ones(2), np.zeros(2)
    one, other = {"a": a, "b": b}, {"b": b, "a": a}
    assert Chunk(one, CHUNK.ends).digest() == Chunk(other, CHUNK.ends).digest()


def test_a_chunk_is_as_long_as_its_last_end_says() -> None:
    assert CHUNK.length == 2


def test_a_session_at_work_is_not_idle(session: Session) -> None:
    assert session.idle_s(12.0) == 2.0
    session.held = True
    assert session.idle_s(12.0) == 0.0
    session.held, session.busy = False, True
    assert session.idle_s(12.0) == 0.0


@pytest.mark.parametrize("value", ["a", "A-z_0.9~", "x" * 128])
def test_good_ids_pass(value: str) -> None:
    assert checked_id(value) == value


@pytest.mark.parametrize("value", ["", "x" * 129, "a b", "a/b", "ä", "a\n", "../x", "a\x00"])
def test_bad_ids_are_refused(value: str) -> None:
    with pytest.raises(Invalid, match="1 to 128 letters"):
        checked_id(value)
