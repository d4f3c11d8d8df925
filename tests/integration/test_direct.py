"""Steps served by callbacks of the HTTP protocol: the same answers as the route's, whatever the bytes come in."""

from __future__ import annotations

import asyncio
import json
import random
from typing import Any

import pytest
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.api.direct import ROUTE
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
        {"route": ROUTE, "method": "POST", "status": str(status)},
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
    await running.until(lambda: counted(running, 499) == 1)
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

    monkeypatch.setattr(type(task), "check", fail)
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


# A head that came before is not parsed again.


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What went through the parser."""
    found: list[bytes] = []
    original = HttpToolsProtocol.data_received

    def note(self: HttpToolsProtocol, data: bytes) -> None:
        found.append(data)
        original(self, data)

    monkeypatch.setattr(HttpToolsProtocol, "data_received", note)
    return found


async def test_a_head_that_came_before_is_not_parsed(running: Running, parsed: list[bytes]) -> None:
    await opened(running, "a")
    connection = await connected(running)
    heads = []
    parsed.clear()
    for number in range(1, 9):
        connection.writer.write(request(step(1.0, number)))
        _, head, body = await connection.answer()
        assert body["results"] == [{"total": float(number)}]
        heads.append(head)
    assert len(parsed) == 1
    assert len({head.pop("x-request-id") for head in heads}) == 8
    assert all(head == heads[0] for head in heads)
    assert counted(running, 200) == 8
    connection.writer.close()


async def test_the_id_of_a_request_comes_back_each_time(running: Running) -> None:
    await opened(running, "a")
    connection = await connected(running)
    for number, name in enumerate(["mine", "mine", "yours", "mine"], 1):
        connection.writer.write(request(step(1.0, number), X_Request_Id=name))
        _, head, body = await connection.answer()
        assert (head["x-request-id"], body["seq"]) == (name, number)
    connection.writer.close()


async def test_a_known_head_is_known_for_other_sessions_too(
    running: Running, parsed: list[bytes]
) -> None:
    names = ["a", "b", "another-one"]
    await opened(running, *names)
    connection = await connected(running)
    parsed.clear()
    for name in names:
        connection.writer.write(request(step(1.0), f"/v1/sessions/{name}/steps"))
        _, _, body = await connection.answer()
        assert (body["session"], body["seq"]) == (name, 1)
    assert len(parsed) == 1
    connection.writer.write(request(step(1.0), "/v1/sessions/nobody/steps"))
    assert (await connection.answer())[0] == 404
    # A field that ends like the first line is not the end of that.
    connection.writer.write(request(step(1.0), "/v1/sessions/a/steps HTTP/1.1\r\nX: b/steps"))
    _, _, body = await connection.answer()
    assert (body["session"], body["seq"]) == ("a", 2)
    connection.writer.close()


async def test_more_heads_than_are_remembered_are_answered_all_the_same(running: Running) -> None:
    names = [f"s{number}" for number in range(20)]
    await opened(running, *names)
    connection = await connected(running)
    for turn in (1, 2, 3):
        for name in names:
            connection.writer.write(request(step(1.0, turn), f"/v1/sessions/{name}/steps"))
            _, _, body = await connection.answer()
            assert (body["session"], body["results"]) == (name, [{"total": float(turn)}])
    connection.writer.close()


async def test_a_head_too_long_to_remember_is_parsed_each_time(
    running: Running, parsed: list[bytes]
) -> None:
    await opened(running, "a")
    connection = await connected(running)
    parsed.clear()
    for number in (1, 2, 3):
        connection.writer.write(request(step(1.0, number), X="x" * 2000))
        assert (await connection.answer())[2]["seq"] == number
    assert len(parsed) == 3
    connection.writer.close()


async def test_what_a_known_head_asks_for_may_have_changed(running: Running) -> None:
    await opened(running, "a")
    connection = await connected(running)
    same = request(step(1.0))
    for seq in (1, 2):
        connection.writer.write(same)
        assert (await connection.answer())[2]["seq"] == seq
    # The same head and length, another body.
    connection.writer.write(same.replace(b"1.0", b"2.0"))
    assert (await connection.answer())[2]["results"] == [{"total": 4.0}]
    connection.writer.write(same.replace(b"1.0", b"{{{"))
    assert (await connection.answer())[0] == 400
    session = await running.context.sessions.find("a", "default")
    running.context.sessions.slots.drop(session)
    connection.writer.write(same)
    assert (await connection.answer())[2]["results"] == [{"total": 5.0}]
    await running.http.delete("/v1/sessions/a")
    connection.writer.write(same)
    assert (await connection.answer())[0] == 410
    await opened(running, "a")
    connection.writer.write(same)
    assert (await connection.answer())[2]["results"] == [{"total": 1.0}]
    running.context.shutdown.began.set()
    connection.writer.write(same)
    assert (await connection.answer())[2]["code"] == "draining"
    connection.writer.close()


async def test_a_known_head_with_a_body_that_is_too_large(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    await opened(running, "a")
    connection = await connected(running)
    data = request({"inputs": [1.0] * 1024})
    for seq in (1024, 2048):
        connection.writer.write(data)
        assert (await connection.answer())[2]["seq"] == seq
    # In pieces, since no packet of the loopback holds it.
    connection.writer.write(request({"inputs": [1.0] * 2000}))
    assert (await connection.answer())[0] == 413
    connection.writer.close()


FIELDS: tuple[dict[str, str], ...] = ({}, {}, {}, {"X_Request_Id": "mine"}, {"Accept": "*/*"})


def any_request(choose: random.Random, seq: int) -> bytes:
    """A request that adds 1 to the session as its `seq`, in one of the ways in which that may be said."""
    way = choose.randrange(8)
    body = json.dumps(step(1.0, seq)).encode() + b" " * choose.randrange(3)
    if way == 0:
        chunks = [body[: len(body) // 2], body[len(body) // 2 :]]
        coded = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)
        start = f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
        return start.encode() + coded + b"0\r\n\r\n"
    data = request(body, **choose.choice(FIELDS))
    if way == 1:
        return b"\r\n" + data
    if way == 2:
        return data.replace(b"POST", b"POST", 1).replace(b"Host: ", b"host:  ", 1)
    return data


@pytest.mark.parametrize("seed", range(12))
async def test_any_requests_in_any_cuts_are_answered_in_order(
    running: Running, reads: list[bytes], seed: int
) -> None:
    choose = random.Random(seed)
    await opened(running, "a")
    connection = await connected(running)
    requests = [any_request(choose, number) for number in range(1, 41)]
    asked = 0
    while requests:
        # One, mostly; or several in a row, before the first of them is answered.
        count = choose.choice((1, 1, 1, 2, 4))
        data, requests = b"".join(requests[:count]), requests[count:]
        count = min(count, 40 - asked)
        cuts = sorted(choose.sample(range(1, len(data)), choose.choice((0, 0, 1, 2))))
        for begin, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
            before = sum(map(len, reads))
            connection.writer.write(data[begin:end])
            if end < len(data):
                await running.until(lambda due=before + end - begin: sum(map(len, reads)) == due)
        for _ in range(count):
            asked += 1
            status, _, body = await connection.answer()
            assert (status, body["seq"], body["results"]) == (200, asked, [{"total": float(asked)}])
    assert counted(running, 200) == 40
    connection.writer.close()


async def test_a_connection_closes_after_a_known_head_when_the_server_does(
    running: Running, protocols: list[HttpProtocol]
) -> None:
    await opened(running, "a")
    gate = running.gate(MODEL)
    connection = await connected(running)
    data = request(step(1.0))
    connection.writer.write(data)
    assert (await connection.answer())[2]["seq"] == 1
    gate.shut()
    connection.writer.write(data)
    await gate.arrival()
    protocols[-1].shutdown()
    gate.open()
    _, head, body = await connection.answer()
    assert (body["seq"], head["connection"]) == (2, "close")
    assert await connection.ended()
    connection.writer.close()


# Requests of one turn of the event loop are prepared together, and steps of one batch answered together.


async def all_at_once(running: Running, bodies: dict[str, Any]) -> dict[str, tuple[int, Any]]:
    """Answers of sessions whose requests are there at the same time."""
    connections = {name: await connected(running) for name in bodies}
    for name, connection in connections.items():
        connection.writer.write(request(bodies[name], f"/v1/sessions/{name}/steps"))
    answers = {}
    for name, connection in connections.items():
        status, _, body = await connection.answer()
        answers[name] = (status, body)
        connection.writer.close()
    return answers


async def test_requests_that_come_together_are_answered_each_by_itself(running: Running) -> None:
    names = [f"s{number}" for number in range(6)]
    await opened(running, *names, "wrong", "busy", "soon", "retry")
    answer = await running.http.put("/v1/sessions/plan", json={"model": "weekend-planner"})
    assert answer.status_code == 201
    await all_at_once(running, {"retry": step(5.0, 1)})
    bodies: dict[str, Any] = {name: step(float(number)) for number, name in enumerate(names)}
    bodies |= {
        "wrong": {"inputs": ["one"]},
        "busy": step(1.0, 9),
        "soon": step(2.0) | {"timeout_s": 20},
        "retry": step(5.0, 1),
        "plan": {"inputs": ["sunny"]},
    }
    for turn in (1, 2):
        answers = await all_at_once(running, bodies)
        for number, name in enumerate(names):
            assert answers[name][0] == 200
            assert answers[name][1]["session"] == name
            assert answers[name][1]["results"] == [{"total": float(number * turn)}]
        assert (answers["wrong"][0], answers["wrong"][1]["path"]) == (422, "$.inputs[0]")
        assert (answers["busy"][0], answers["busy"][1]["expected"]) == (409, 1)
        assert answers["soon"][1]["results"] == [{"total": 2.0 * turn}]
        assert answers["retry"][1] == {
            "session": "retry",
            "first": 1,
            "seq": 1,
            "duplicate": True,
            "results": [{"total": 5.0}],
        }
        assert answers["plan"][1]["results"][0].keys() == {"label", "score"}


async def test_steps_of_a_batch_with_several_inputs_and_parameters(running: Running) -> None:
    names = ["one", "two", "three"]
    for name in names:
        await running.http.put(f"/v1/sessions/{name}", json={"model": "weekend-planner"})
    inputs = {"one": ["sunny"], "two": ["rainy", "sunny"], "three": ["sunny"]}
    bodies: dict[str, Any] = {name: {"inputs": each} for name, each in inputs.items()}
    bodies["three"]["parameters"] = {"top_k": 2}
    answers = await all_at_once(running, bodies)
    assert [len(answers[name][1]["results"]) for name in names] == [1, 2, 1]
    assert answers["one"][1]["results"][0] == answers["three"][1]["results"][0][0]
    assert len(answers["three"][1]["results"][0]) == 2


async def test_one_that_cannot_be_answered_leaves_the_others_alone(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    await opened(running, "a", "b", "c")
    task = running.context.repository.get(MODEL).task
    original = type(task).answers

    def fail(self: Any, inputs: Any, *arguments: Any) -> Any:
        if 13.0 in inputs:
            raise RuntimeError("no answer")
        return original(self, inputs, *arguments)

    monkeypatch.setattr(type(task), "answers", fail)
    bodies = {"a": step(1.0), "b": step(13.0), "c": step(3.0)}
    # First each by itself, since its state is not at hand, then as a group.
    for turn in (1, 2):
        answers = await all_at_once(running, bodies)
        assert [answers[name][0] for name in bodies] == [200, 500, 200]
        assert answers["c"][1]["results"] == [{"total": 3.0 * turn}]
        session = await running.context.sessions.find("b", "default")
        assert (session.seq, session.idle) == (turn, True)


async def test_of_steps_that_go_together_one_may_be_lost(running: Running) -> None:
    names = ["a", "b", "c"]
    await opened(running, "first", *names)
    await all_at_once(running, {name: step(1.0, 1) for name in ("first", *names)})
    gate = running.gate(MODEL)
    gate.shut()
    first = await connected(running)
    first.writer.write(request(step(1.0, 2), "/v1/sessions/first/steps"))
    await gate.arrival()
    gate.runs.clear()
    engine = running.engine(MODEL)
    connections = [await connected(running) for _ in names]
    for name, connection in zip(names, connections, strict=True):
        connection.writer.write(request(step(1.0, 2), f"/v1/sessions/{name}/steps"))
    await running.until(lambda: engine.pending == 4)
    connections[1].writer.transport.abort()
    await running.until(lambda: counted(running, 499) == 1)
    gate.open()
    for connection in (first, connections[0], connections[2]):
        assert (await connection.answer())[2]["results"] == [{"total": 2.0}]
        connection.writer.close()
    session = await running.context.sessions.find("b", "default")
    await running.until(lambda: session.idle)
    assert (session.seq, gate.runs) == (1, [2])
    again = await all_at_once(running, {"b": step(1.0, 2)})
    assert again["b"][1]["results"] == [{"total": 2.0}]
    assert again["b"][1]["duplicate"] is False


async def test_two_requests_of_a_session_at_once_are_one_step_and_one_refusal(
    running: Running,
) -> None:
    await opened(running, "a", "b")
    for turn in (1, 2, 3):
        connections = [await connected(running) for _ in range(3)]
        for connection, name in zip(connections, ("a", "b", "a"), strict=True):
            body = step(1.0 if name == "b" else 10.0)
            connection.writer.write(request(body, f"/v1/sessions/{name}/steps"))
        (one, _, _), (other, _, _), (same, _, _) = [await c.answer() for c in connections]
        for connection in connections:
            connection.writer.close()
        assert other == 200
        # Where the two came in different turns, both may have been applied.
        assert {one, same} in ({200, 409}, {200})
        session = await running.context.sessions.find("a", "default")
        assert session.idle
        assert turn <= session.seq <= 2 * turn
