"""A model with no room for more says so at the door, and those let in are served as ever."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from service.api import direct
from service.api.transport import HttpProtocol
from tests.integration.inside import Running, Serve

MODEL = "accumulator"


class Client:
    """One session on a connection of its own."""

    def __init__(
        self, name: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._name = name
        self._reader = reader
        self.writer = writer

    @classmethod
    async def opened(cls, running: Running, name: str) -> Client:
        answer = await running.http.put(f"/v1/sessions/{name}", json={"model": MODEL})
        assert answer.status_code == 201
        client = cls(name, *await asyncio.open_connection("127.0.0.1", running.port))
        # So that its state is at hand.
        assert (await client.asked(step(0.0)))[0] == 200
        return client

    def send(self, body: bytes) -> None:
        head = f"POST /v1/sessions/{self._name}/steps HTTP/1.1\r\nHost: a\r\n"
        self.writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)

    async def answer(self) -> tuple[int, dict[str, str], Any]:
        async with asyncio.timeout(30):
            status, *lines = (await self._reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")[:-2]
            fields = dict(line.lower().split(": ", 1) for line in lines)
            body = await self._reader.readexactly(int(fields["content-length"]))
        return int(status.split()[1]), fields, json.loads(body)

    async def asked(self, body: bytes) -> tuple[int, dict[str, str], Any]:
        self.send(body)
        return await self.answer()


def step(value: float) -> bytes:
    return json.dumps({"inputs": [value]}).encode()


async def filled(running: Running, count: int) -> list[Client]:
    """Clients whose steps fill the queue of the model, which is held back."""
    clients = [await Client.opened(running, f"in-{number}") for number in range(count)]
    running.gate(MODEL).shut()
    for client in clients:
        client.send(step(1.0))
    await running.until(lambda: running.engine(MODEL).pending == count)
    return clients


def sample(running: Running, name: str, **labels: str) -> float:
    registry = running.context.metrics.registry
    return registry.get_sample_value(f"seqserve_{name}_total", labels) or 0.0


def answered(running: Running, status: int) -> float:
    return sample(running, "requests", route=direct.ROUTE, method="POST", status=str(status))


async def test_who_finds_no_room_is_told_so_before_its_body_is_read(serve: Serve) -> None:
    async with serve(max_pending=2) as running:
        late = [await Client.opened(running, f"late-{number}") for number in range(5)]
        inside = await filled(running, 2)
        for number, client in enumerate(late):
            client.send(b"{" if number else step(1.0))
        identifiers = set()
        for client in late:
            status, fields, problem = await client.answer()
            assert (status, problem["code"]) == (503, "overloaded")
            assert fields["retry-after"] == str(problem["retry_after_s"]) == "1"
            assert fields["content-type"] == "application/problem+json"
            assert problem["request_id"] == fields["x-request-id"]
            assert "2 steps" in problem["detail"]
            identifiers.add(problem["request_id"])
        assert len(identifiers) == 5
        assert answered(running, 503) == sample(running, "rejected", reason="overloaded") == 5
        running.gate(MODEL).open()
        for client in inside:
            assert (await client.answer())[2]["results"] == [{"total": 1.0}]
        # Nothing of it was applied, and the connections go on.
        for client in late:
            assert (await client.asked(step(2.0)))[2]["results"] == [{"total": 2.0}]
            client.writer.close()
        for client in inside:
            client.writer.close()


async def test_who_comes_back_at_once_waits_for_its_answer(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(direct, "REFUSED_AFTER_S", 0.0)
    async with serve(max_pending=1) as running:
        late = await Client.opened(running, "late")
        (first,) = await filled(running, 1)
        for _ in range(3):
            assert (await late.asked(step(1.0)))[0] == 503
        running.gate(MODEL).open()
        assert (await first.answer())[0] == 200
        assert (await late.asked(step(1.0)))[2]["results"] == [{"total": 1.0}]
        late.writer.close()
        first.writer.close()


async def test_one_that_is_refused_may_leave_before_it_knows(
    serve: Serve, protocols: list[HttpProtocol]
) -> None:
    async with serve(max_pending=1) as running:
        late = [await Client.opened(running, f"late-{number}") for number in range(2)]
        (first,) = await filled(running, 1)
        for client in late:
            client.send(step(1.0))
        await running.until(
            lambda: [c.cycle.response_complete for c in protocols[1:3]] == [False] * 2
        )
        late[0].writer.transport.abort()
        assert (await late[1].answer())[0] == 503
        assert (answered(running, 499), answered(running, 503)) == (1, 1)
        running.gate(MODEL).open()
        assert (await first.answer())[0] == 200
        for client in (first, late[1]):
            client.writer.close()


async def test_a_request_behind_a_refused_one_is_answered_after_it(serve: Serve) -> None:
    async with serve(max_pending=1) as running:
        late = await Client.opened(running, "late")
        (first,) = await filled(running, 1)
        late.send(step(1.0))
        late.writer.write(b"GET /health/live HTTP/1.1\r\nHost: a\r\n\r\n")
        assert (await late.answer())[0] == 503
        assert (await late.answer())[2] == {"status": "live"}
        running.gate(MODEL).open()
        assert (await first.answer())[0] == 200
        for client in (first, late):
            client.writer.close()


async def test_every_way_in_is_refused_with_a_time_to_come_back(serve: Serve) -> None:
    async with serve(max_pending=1) as running:
        (first,) = await filled(running, 1)
        answer = await running.http.post(f"/v1/models/{MODEL}/predict", json={"inputs": [[1.0]]})
        assert (answer.status_code, answer.json()["code"]) == (503, "overloaded")
        assert int(answer.headers["retry-after"]) >= 1
        running.gate(MODEL).open()
        assert (await first.answer())[0] == 200
        first.writer.close()


async def test_of_those_that_come_at_once_as_many_are_let_in_as_there_is_room_for(
    serve: Serve,
) -> None:
    async with serve(max_pending=2) as running:
        clients = [await Client.opened(running, f"s{number}") for number in range(6)]
        gate = running.gate(MODEL)
        gate.shut()
        for client in clients:
            client.send(step(1.0))
        await gate.arrival()
        gate.open()
        statuses = [(await client.answer())[0] for client in clients]
        assert sorted(statuses) == [200] * 2 + [503] * 4
        for client in clients:
            client.writer.close()
