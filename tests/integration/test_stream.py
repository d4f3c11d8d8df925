"""Frames of the WebSocket: steps of many sessions together, each with its own reply; who waits, who is dropped."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection, connect

from service.api.sockets import SocketProtocol
from service.api.step_frames import Steps
from service.settings import Settings
from service.tasks.numbers import TensorsTask
from tests.integration import planner
from tests.integration.inside import TIMEOUT_S, Running, serving

MODEL = "accumulator"


@pytest.fixture
async def narrow(model_directory: Path) -> AsyncIterator[Running]:
    """A service that works on two frames of a socket at once."""
    settings = Settings(models=model_directory, port=0, log_level="warning", max_socket_frames=2)
    async with serving(settings) as running:
        yield running


@asynccontextmanager
async def connected(running: Running, **options: Any) -> AsyncIterator[ClientConnection]:
    async with connect(running.stream_url, compression=None, proxy=None, **options) as connection:
        yield connection


async def opened(running: Running, *names: str, model: str = MODEL) -> None:
    for name in names:
        answer = await running.http.put(f"/v1/sessions/{name}", json={"model": model})
        assert answer.status_code == 201


async def received(connection: ClientConnection) -> Any:
    async with asyncio.timeout(TIMEOUT_S):
        return json.loads(await connection.recv())


async def ask(connection: ClientConnection, **frame: Any) -> Any:
    await connection.send(json.dumps(frame))
    return await received(connection)


def step(name: str, *inputs: Any, **fields: Any) -> dict[str, Any]:
    return {"session": name, "inputs": list(inputs)} | fields


def frame(identifier: Any, *steps: dict[str, Any]) -> str:
    return json.dumps({"op": "step", "id": identifier, "steps": list(steps)})


async def stepped(connection: ClientConnection, *steps: dict[str, Any]) -> list[Any]:
    answer = await ask(connection, op="step", id=1, steps=list(steps))
    assert answer["op"] == "stepped", answer
    replies: list[Any] = answer["replies"]
    return replies


def totals(reply: Any) -> list[float]:
    return [each["total"] for each in reply["results"]]


# Together.


async def test_steps_of_many_sessions_are_each_answered_for_themselves(running: Running) -> None:
    names = [f"s{number}" for number in range(40)]
    await opened(running, *names)
    async with connected(running) as connection:
        for turn in range(3):
            steps = [step(name, *range(number % 5 + 1)) for number, name in enumerate(names)]
            replies = await stepped(connection, *steps)
            for number, (name, reply) in enumerate(zip(names, replies, strict=True)):
                count = number % 5 + 1
                before = turn * sum(range(count))
                assert reply["session"] == name
                assert (reply["first"], reply["seq"]) == (turn * count + 1, (turn + 1) * count)
                assert totals(reply) == [before + sum(range(n + 1)) for n in range(count)]


async def test_one_that_fails_in_a_frame_fails_alone(running: Running) -> None:
    await opened(running, "a", "b", "c", "d", "gone")
    await opened(running, "words", model="language")
    assert (await running.http.delete("/v1/sessions/gone")).status_code == 204
    bad = {
        "not a number": (step("b", 1.0, "x"), "invalid", "$.inputs[1]"),
        "no inputs": (step("b"), "invalid", "$.inputs"),
        "no such choice": (
            step("b", 1.0, parameters={"top_k": 3}),
            "invalid",
            "$.parameters.top_k",
        ),
        "wrong seq": (step("b", 1.0, seq=7), "wrong_seq", None),
        "not there": (step("nobody", 1.0), "unknown_session", None),
        "ended": (step("gone", 1.0), "session_gone", None),
    }
    async with connected(running) as connection:
        for turn, (wrong, code, path) in enumerate(bad.values(), 1):
            steps = [
                step("a", 1.0),
                wrong,
                step("words", "the", 3),
                step("c", 1.0, 1.0, seq=2 * turn - 1),
            ]
            a, failed, words, c = await stepped(connection, *steps)
            assert (failed["session"], failed["error"]["code"]) == (wrong["session"], code)
            assert failed["error"].get("path") == path
            assert failed["error"]["request_id"]
            assert (totals(a), totals(c)) == ([turn], [2.0 * turn - 1, 2.0 * turn])
            assert (words["seq"], len(words["results"])) == (2 * turn, 2)
    assert (await running.http.get("/v1/sessions/b")).json()["seq"] == 0


async def test_parameters_are_those_of_each_step(running: Running) -> None:
    await opened(running, "a", "b", "c", model="language")
    async with connected(running) as connection:
        replies = await stepped(
            connection,
            step("a", 3, parameters={"top_k": 2}),
            step("b", 3),
            step("c", 3, 4, parameters={"top_k": 2}),
        )
    a, b, c = (reply["results"] for reply in replies)
    assert [len(answer) for answer in (*a, *b, *c)] == [2, 5, 2, 2]
    assert a[0] == b[0][:2] == c[0]


async def test_a_frame_sent_again_is_applied_once(running: Running) -> None:
    await opened(running, "a", "b")
    steps = [step("a", 1.0, 2.0, seq=1), step("b", 5.0, seq=1)]
    async with connected(running) as connection:
        first = await stepped(connection, *steps)
        again = await stepped(connection, *steps)
        assert [reply["duplicate"] for reply in (*first, *again)] == [False, False, True, True]
        assert [totals(reply) for reply in again] == [totals(reply) for reply in first]
        mixed = await stepped(connection, steps[0], step("b", 5.0, seq=2))
        assert [(reply["duplicate"], totals(reply)) for reply in mixed] == [
            (True, [1.0, 3.0]),
            (False, [10.0]),
        ]


async def test_sessions_that_expired_or_were_paged_out_are_found(model_directory: Path) -> None:
    settings = Settings(models=model_directory, port=0, log_level="warning", max_resident=2)
    async with serving(settings) as running:
        await opened(running, "a", "b", "c", "d")
        await running.http.put("/v1/sessions/short", json={"model": MODEL, "ttl_s": 5})
        async with connected(running) as connection:
            for turn in range(1, 3):
                for pair in (("a", "b"), ("c", "d")):
                    replies = await stepped(connection, *(step(name, 1.0) for name in pair))
                    assert [totals(reply) for reply in replies] == [[turn], [turn]]
            running.clock.now += 10
            gone, a = await stepped(connection, step("short", 1.0), step("a", 1.0))
            assert (gone["error"]["code"], gone["error"]["reason"]) == ("session_gone", "ttl")
            assert totals(a) == [3.0]


async def test_a_fault_in_one_answer_is_told_to_its_session_alone(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    await opened(running, "a", "b")
    original = TensorsTask.answers

    def answers(self: Any, inputs: Any, outputs: Any, parameters: Any) -> Any:
        if 13.0 in inputs:
            raise RuntimeError("a fault of ours")
        return original(self, inputs, outputs, parameters)

    monkeypatch.setattr(TensorsTask, "answers", answers)
    async with connected(running) as connection:
        a, b = await stepped(connection, step("a", 13.0), step("b", 1.0))
        assert (a["error"]["status"], a["error"]["code"]) == (500, "internal")
        assert "a fault of ours" not in json.dumps(a)
        assert totals(b) == [1.0]
        # It was applied all the same.
        assert totals((await stepped(connection, step("a", 1.0, seq=2)))[0]) == [14.0]


async def test_a_fault_in_a_frame_answers_that_frame(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    await opened(running, "a")

    def begin(self: Steps) -> None:
        raise RuntimeError("a fault of ours")

    async with connected(running) as connection:
        with monkeypatch.context() as patched:
            patched.setattr(Steps, "start", begin)
            answer = await ask(connection, op="step", id="mine", steps=[step("a", 1.0)])
        assert (answer["op"], answer["id"], answer["error"]["status"]) == ("error", "mine", 500)
        assert totals((await stepped(connection, step("a", 1.0)))[0]) == [1.0]


# Who waits.


async def test_frames_beyond_the_limit_wait_and_are_all_answered(narrow: Running) -> None:
    names = [f"s{number}" for number in range(30)]
    await opened(narrow, *names)
    gate = narrow.gate(MODEL)
    gate.shut()
    async with connected(narrow) as connection:
        for name in names:
            await connection.send(frame(name, step(name, 1.0)))
        await gate.arrival()
        await narrow.until(lambda: narrow.engine(MODEL).pending == 2)
        gate.open()
        answers = [await received(connection) for _ in names]
    assert [answer["id"] for answer in answers] == names
    assert max(gate.runs) <= 2


async def test_a_frame_is_cancelled_while_as_many_as_there_may_be_are_on_their_way(
    narrow: Running,
) -> None:
    await opened(narrow, "a", "b", "c", "d")
    gate = narrow.gate(MODEL)
    gate.shut()
    async with connected(narrow) as connection:
        await connection.send(frame("a", step("a", 1.0, seq=1)))
        await gate.arrival()
        for name in ("b", "c", "d"):
            await connection.send(frame(name, step(name, 1.0, seq=1)))
        # One that is queued, and one that has not begun.
        for target in ("b", "c"):
            answer = await ask(connection, op="cancel", id=1, target=target)
            assert answer == {"op": "cancelled", "id": 1, "frames": 1}
        gate.open()
        answers = {answer["id"]: answer for answer in [await received(connection) for _ in "ad"]}
        assert {name: totals(answer["replies"][0]) for name, answer in answers.items()} == {
            "a": [1.0],
            "d": [1.0],
        }
        replies = await stepped(connection, *(step(name, 1.0, seq=1) for name in "abcd"))
    assert [reply["duplicate"] for reply in replies] == [True, False, False, True]


async def test_many_frames_that_are_none_are_answered_in_order(narrow: Running) -> None:
    await opened(narrow, "a")
    async with connected(narrow) as connection:
        for number in range(200):
            await connection.send(json.dumps({"op": "fly", "id": number}))
        await connection.send(frame("last", step("a", 1.0)))
        answers = [await received(connection) for _ in range(201)]
    assert [answer["id"] for answer in answers] == [*range(200), "last"]
    assert {answer["op"] for answer in answers[:-1]} == {"error"}
    assert answers[-1]["op"] == "stepped"


async def test_a_client_that_does_not_read_is_not_read_either(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is kept for it does not grow, and once it reads it gets every answer."""
    found: list[SocketProtocol] = []
    original = SocketProtocol.read

    def read(self: SocketProtocol, *callbacks: Any) -> None:
        found.append(self)
        original(self, *callbacks)

    monkeypatch.setattr(SocketProtocol, "read", read)
    names = [f"s{number}" for number in range(64)]
    await opened(running, *names, model=planner.MODEL)
    small = socket.socket()
    small.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16_384)
    small.setblocking(False)
    await asyncio.get_running_loop().sock_connect(small, ("127.0.0.1", running.port))
    # Answers of 90 kB each, and more of them than the system's own buffers take.
    count, inputs, choice = 80, ["rainy"] * 1000, {"top_k": 3}
    async with connected(running, sock=small, max_queue=1, ping_interval=None) as connection:
        for number in range(count):
            each = step(names[number % 64], *inputs, parameters=choice)
            await connection.send(frame(number, each))
        (protocol,) = found
        transport: Any = protocol.transport
        engine = running.engine(planner.MODEL)
        await running.until(lambda: not protocol.writable.is_set() and engine.pending == 0)
        assert not transport.is_reading()
        # The answers of the frames that were on their way.
        assert transport.get_write_buffer_size() < 32 * 100_000
        small.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**22)
        answers = [await received(connection) for _ in range(count)]
    assert sorted(answer["id"] for answer in answers) == list(range(count))
    assert {answer["op"] for answer in answers} == {"stepped"}
    assert min(len(json.dumps(answer)) for answer in answers) > 80_000


# Who is dropped.


async def test_steps_of_a_socket_that_closes_are_dropped(running: Running) -> None:
    await opened(running, "a", "b")
    gate = running.gate(MODEL)
    gate.shut()
    engine = running.engine(MODEL)
    async with connected(running) as connection:
        await connection.send(frame(1, step("a", 1.0, seq=1)))
        await gate.arrival()
        await connection.send(frame(2, step("b", 1.0, seq=1)))
        await running.until(lambda: engine.pending == 2)
    await running.until(lambda: not running.context.shutdown.sockets)
    gate.open()
    await running.until(lambda: engine.pending == 0)
    sessions = [await running.context.sessions.find(name, "default") for name in "ab"]
    for session in sessions:
        await running.until(lambda session=session: session.idle)
    # The first ran when the client left, and was committed; the second was not.
    assert [session.seq for session in sessions] == [1, 0]
    async with connected(running) as connection:
        replies = await stepped(connection, step("a", 1.0, seq=1), step("b", 1.0, seq=1))
        assert [reply["duplicate"] for reply in replies] == [True, False]


async def test_frames_that_come_in_one_piece_are_each_answered(running: Running) -> None:
    await opened(running, "a", "b")
    texts = [frame(name, step(name, 1.0)).encode() for name in "ab"]
    head = bytes([0x81, 0x80 | len(texts[0])]) + b"\0\0\0\0"
    reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
    writer.write(
        b"GET /v1/stream HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    async with asyncio.timeout(TIMEOUT_S):
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
        writer.write(b"".join(head + text for text in texts))
        for name in "ab":
            assert await reader.readexactly(1) == b"\x81"
            (size,) = await reader.readexactly(1)
            if size == 126:
                size = int.from_bytes(await reader.readexactly(2), "big")
            answer = json.loads(await reader.readexactly(size))
            assert (answer["id"], totals(answer["replies"][0])) == (name, [1.0])
    writer.close()
    await writer.wait_closed()
