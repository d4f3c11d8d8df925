"""Steps served by callbacks of the HTTP protocol: the same answers as the route's, whatever the bytes come in."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from service.api.transport import HttpProtocol
from tests.integration.inside import Running

MODEL = "accumulator"
PATH = "/v1/sessions/a/steps"


class Connection:
    """A connection that a test writes bytes to and reads responses from, as RFC 9112 says."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self.writer = writer

    async def answer(self) -> tuple[int, dict[str, str], Any]:
        """The next response: status, head with names in lower case, body."""
        async with asyncio.timeout(30):
            status, *lines = (await self._reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")[:-2]
            head = {}
            for line in lines:
                name, _, value = line.partition(": ")
                assert name.lower() not in head, line
                head[name.lower()] = value
            body = await self._reader.readexactly(int(head["content-length"]))
        return int(status.split()[1]), head, json.loads(body)

    async def ended(self) -> bool:
        """Whether the service closed the connection with nothing left to read."""
        async with asyncio.timeout(30):
            return await self._reader.read() == b""


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What the service has read of its connections, piece by piece."""
    found: list[bytes] = []
    original = HttpProtocol.data_received

    def note(self: HttpProtocol, data: bytes) -> None:
        original(self, data)
        found.append(data)

    monkeypatch.setattr(HttpProtocol, "data_received", note)
    return found


async def connected(running: Running) -> Connection:
    return Connection(*await asyncio.open_connection("127.0.0.1", running.port))


async def opened(running: Running, *names: str) -> None:
    for name in names:
        answer = await running.http.put(f"/v1/sessions/{name}", json={"model": MODEL})
        assert answer.status_code == 201


def request(body: Any, path: str = PATH, version: str = "1.1", **fields: str) -> bytes:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"POST {path} HTTP/{version}", "Host: localhost", f"Content-Length: {len(data)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in fields.items()]
    return "\r\n".join([*lines, "", ""]).encode() + data


def step(value: float, seq: int | None = None) -> Any:
    return {"inputs": [value]} | ({} if seq is None else {"seq": seq})


async def exchanged(running: Running, data: bytes) -> tuple[int, dict[str, str], Any]:
    connection = await connected(running)
    connection.writer.write(data)
    answer = await connection.answer()
    connection.writer.close()
    return answer


def counted(running: Running, status: int) -> float:
    value = running.context.metrics.registry.get_sample_value(
        "seqserve_requests_total",
        {"route": "/v1/sessions/{session}/steps", "method": "POST", "status": str(status)},
    )
    return value or 0.0


async def test_the_head_is_that_of_the_route(running: Running, reads: list[bytes]) -> None:
    await opened(running, "a")
    data = request(step(1.0, 1), X_Request_Id="mine")
    connection = await connected(running)
    connection.writer.write(data)
    status, head, body = await connection.answer()
    assert (status, body["results"], body["duplicate"]) == (200, [{"total": 1.0}], False)
    # In two parts it goes the route's way.
    connection.writer.write(data[:-3])
    await running.until(lambda: data[:-3] in reads)
    connection.writer.write(data[-3:])
    again = await connection.answer()
    assert again[2]["duplicate"] is True
    assert head | {"content-length": ""} == again[1] | {"content-length": ""}
    assert head["x-request-id"] == "mine"
    assert counted(running, 200) == 2
    connection.writer.close()


async def test_every_cut_of_a_request_is_answered_the_same(
    running: Running, reads: list[bytes]
) -> None:
    await opened(running, "a")
    data = request(step(1.0, 1))
    await exchanged(running, data)
    connection = await connected(running)
    for cut in range(1, len(data)):
        reads.clear()
        connection.writer.write(data[:cut])
        await running.until(lambda cut=cut: reads == [data[:cut]])
        connection.writer.write(data[cut:])
        status, _, body = await connection.answer()
        assert (status, body["results"], body["duplicate"]) == (200, [{"total": 1.0}], True)
    connection.writer.close()


async def test_pipelined_requests_are_answered_in_order(running: Running) -> None:
    await opened(running, "a")
    connection = await connected(running)
    other = b"GET /v1/sessions/a HTTP/1.1\r\nHost: localhost\r\n\r\n"
    requests = [request(step(1.0, number)) for number in (1, 2, 3)]
    connection.writer.write(requests[0] + requests[1] + other + requests[2])
    results = [await connection.answer() for _ in range(4)]
    assert [status for status, _, _ in results] == [200] * 4
    assert [body["seq"] for _, _, body in results] == [1, 2, 2, 3]
    connection.writer.close()


async def test_a_pipelined_request_waits_for_the_step_before(
    running: Running, reads: list[bytes]
) -> None:
    await opened(running, "a", "b")
    gate = running.gate(MODEL)
    gate.shut()
    connection = await connected(running)
    connection.writer.write(request(step(1.0, 1)))
    await gate.arrival()
    other = b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n"
    connection.writer.write(other)
    await running.until(lambda: other in reads)
    gate.open()
    assert (await connection.answer())[2]["seq"] == 1
    assert (await connection.answer())[0] == 200
    connection.writer.close()


async def test_a_step_whose_connection_is_lost_is_dropped(running: Running) -> None:
    await opened(running, "a", "b")
    gate = running.gate(MODEL)
    gate.shut()
    first, second = await connected(running), await connected(running)
    first.writer.write(request(step(1.0, 1)))
    await gate.arrival()
    second.writer.write(request(step(1.0, 1), "/v1/sessions/b/steps"))
    engine = running.engine(MODEL)
    await running.until(lambda: engine.pending == 2)
    second.writer.transport.abort()
    await running.until(lambda: any(work.cancelled for work in engine._in_flight.values()))
    gate.open()
    assert (await first.answer())[2]["results"] == [{"total": 1.0}]
    session = await running.context.sessions.find("b", "default")
    await running.until(lambda: session.idle)
    assert (session.seq, gate.runs) == (0, [1])
    assert counted(running, 499) == 1
    first.writer.close()


@pytest.mark.parametrize(
    ("fields", "version"), [({"Connection": "close"}, "1.1"), ({}, "1.0")], ids=["close", "1.0"]
)
async def test_a_client_that_wants_the_connection_closed_gets_it_closed(
    running: Running, fields: dict[str, str], version: str
) -> None:
    await opened(running, "a")
    connection = await connected(running)
    connection.writer.write(request(step(1.0, 1), version=version, **fields))
    assert (await connection.answer())[2]["seq"] == 1
    assert await connection.ended()
    connection.writer.close()


async def test_a_client_that_asks_whether_to_go_on_is_told_so(running: Running) -> None:
    await opened(running, "a")
    data = request(step(1.0, 1), Expect="100-continue")
    connection = await connected(running)
    connection.writer.write(data)
    async with asyncio.timeout(30):
        assert (await connection._reader.readline()).startswith(b"HTTP/1.1 100")
        assert await connection._reader.readline() == b"\r\n"
    assert (await connection.answer())[2]["seq"] == 1
    connection.writer.close()


async def test_a_chunked_body_is_read(running: Running) -> None:
    await opened(running, "a")
    body = json.dumps(step(1.0, 1)).encode()
    head = f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n"
    assert (await exchanged(running, head + chunks))[2]["seq"] == 1


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"{", 400, "malformed"),
        ({"inputs": []}, 422, "invalid"),
        ({"inputs": ["one"]}, 422, "invalid"),
        ({"inputs": [1.0], "seq": 7}, 409, "wrong_seq"),
        ({"inputs": [1.0], "no": 7}, 422, "invalid"),
    ],
)
async def test_an_error_is_answered_counted_and_leaves_the_connection_open(
    running: Running, body: Any, status: int, code: str
) -> None:
    await opened(running, "a")
    connection = await connected(running)
    connection.writer.write(request(body, X_Request_Id="wrong"))
    found, head, problem = await connection.answer()
    assert (found, problem["code"], problem["request_id"]) == (status, code, "wrong")
    assert head["content-type"] == "application/problem+json"
    assert counted(running, status) == 1
    rejected = running.context.metrics.rejected.labels(code)._value.get()
    assert rejected == 1
    connection.writer.write(request(step(1.0, 1)))
    assert (await connection.answer())[2]["results"] == [{"total": 1.0}]
    connection.writer.close()


async def test_a_fault_of_ours_is_an_answer_and_a_log_line(
    running: Running, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    await opened(running, "a")
    task = running.context.repository.get(MODEL).task

    def fail(*_: Any) -> Any:
        raise RuntimeError("no answer")

    monkeypatch.setattr(type(task), "answers", fail)
    status, _, problem = await exchanged(running, request(step(1.0, 1)))
    assert (status, problem["code"]) == (500, "internal")
    assert "no answer" in caplog.text
    monkeypatch.undo()
    # It was applied, so the retry is answered from the journal.
    assert (await exchanged(running, request(step(1.0, 1))))[2]["duplicate"] is True


async def test_an_unexpected_error_before_the_step_is_an_answer_too(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    await opened(running, "a")
    task = running.context.repository.get(MODEL).task

    def fail(*_: Any) -> Any:
        raise RuntimeError("cannot read")

    monkeypatch.setattr(type(task), "chunk", fail)
    status, _, problem = await exchanged(running, request(step(1.0, 1)))
    assert (status, problem["code"]) == (500, "internal")
    monkeypatch.undo()
    assert (await exchanged(running, request(step(1.0, 1))))[2]["seq"] == 1


async def test_a_session_paged_out_wakes(running: Running) -> None:
    await opened(running, "a")
    await exchanged(running, request(step(1.0, 1)))
    session = await running.context.sessions.find("a", "default")
    running.context.sessions.slots.drop(session)
    assert (await exchanged(running, request(step(1.0, 2))))[2]["results"] == [{"total": 2.0}]


async def test_an_expired_session_is_gone(running: Running) -> None:
    await opened(running, "a")
    running.clock.now += 1e6
    status, _, problem = await exchanged(running, request(step(1.0)))
    assert (status, problem["code"]) == (410, "session_gone")


async def test_nothing_is_begun_once_shutting_down(running: Running) -> None:
    await opened(running, "a")
    running.context.shutdown.began.set()
    status, head, problem = await exchanged(running, request(step(1.0)))
    assert (status, problem["code"], head["retry-after"]) == (503, "draining", "1")
