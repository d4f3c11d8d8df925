"""What a connection may not do: come too late, say too much before it asks, stay for nothing, or read nothing."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import Any

import pytest

from service.api.transport import HttpProtocol
from tests.integration import inside
from tests.integration.inside import Running, Serve

SOON = 0.05
"""Seconds until the service gives up; a test waits for what it does, not for the time."""


class Client:
    """A connection that reads to its end."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self.writer = writer

    @classmethod
    async def connected(cls, running: Running) -> Client:
        return cls(*await asyncio.open_connection("127.0.0.1", running.port))

    async def rest(self) -> bytes:
        """All that comes until the service closes the connection."""
        async with asyncio.timeout(inside.TIMEOUT_S):
            data = await self._reader.read()
        self.writer.close()
        return data

    async def problem(self) -> tuple[int, dict[str, str], Any]:
        """Status, head and body of the only response, after which the connection is closed."""
        head, _, body = (await self.rest()).partition(b"\r\n\r\n")
        status, *lines = head.decode().split("\r\n")
        fields = dict(line.lower().split(": ", 1) for line in lines)
        assert fields["connection"] == "close"
        assert len(body) == int(fields["content-length"])
        return int(status.split()[1]), fields, json.loads(body)


def head(length: int = 0) -> bytes:
    return b"POST /no/such HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % length


def rejected(running: Running, code: str) -> float:
    labels = {"reason": code}
    registry = running.context.metrics.registry
    return registry.get_sample_value("seqserve_rejected_total", labels) or 0.0


@pytest.mark.parametrize("start", [b"P", b"POST /v1/sessions/a/steps HTTP/1.1\r\nHost: a\r\n"])
async def test_a_head_that_does_not_end_is_given_up(serve: Serve, start: bytes) -> None:
    async with serve(request_timeout_s=SOON) as running:
        client = await Client.connected(running)
        client.writer.write(start)
        status, fields, problem = await client.problem()
        assert (status, problem["code"]) == (408, "slow_head")
        assert problem["request_id"] == fields["x-request-id"]
        assert rejected(running, "slow_head") == 1


async def test_a_head_that_trickles_gains_no_time(serve: Serve) -> None:
    async with serve(request_timeout_s=SOON) as running:
        client = await Client.connected(running)
        client.writer.write(b"GET / HTTP/1.1\r\nX: ")
        ended = asyncio.create_task(client.rest())
        while not ended.done():
            client.writer.write(b"a")
            await asyncio.sleep(0)
        # A reset may overtake the answer, since it is still sending.
        with contextlib.suppress(ConnectionResetError):
            assert (await ended).startswith(b"HTTP/1.1 408 ")
        assert rejected(running, "slow_head") == 1


async def test_a_second_request_has_a_deadline_too(serve: Serve) -> None:
    async with serve(request_timeout_s=SOON) as running:
        client = await Client.connected(running)
        client.writer.write(head() + b"POST")
        answers = await client.rest()
        assert answers.startswith(b"HTTP/1.1 404 ")
        assert answers.count(b"HTTP/1.1 408 ") == 1


async def test_a_connection_that_says_nothing_is_closed(serve: Serve) -> None:
    async with serve(request_timeout_s=SOON) as running:
        assert await (await Client.connected(running)).rest() == b""


async def test_a_connection_that_asks_nothing_more_is_closed(serve: Serve) -> None:
    async with serve(keep_alive_s=SOON) as running:
        client = await Client.connected(running)
        client.writer.write(head())
        assert (await client.rest()).count(b"HTTP/1.1") == 1


async def test_a_body_nobody_waits_for_has_a_deadline(serve: Serve) -> None:
    async with serve(request_timeout_s=SOON) as running:
        client = await Client.connected(running)
        client.writer.write(head(1000) + b"{")
        assert (await client.rest()).startswith(b"HTTP/1.1 404 ")


async def test_no_deadline_runs_while_the_service_is_at_work(serve: Serve) -> None:
    async with serve(request_timeout_s=SOON, keep_alive_s=SOON) as running:
        await running.http.put("/v1/sessions/a", json={"model": "accumulator"})
        gate = running.gate("accumulator")
        gate.shut()
        client = await Client.connected(running)
        body = b'{"inputs":[1.0]}'
        start = b"POST /v1/sessions/a/steps HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n"
        client.writer.write(start % len(body) + body)
        await gate.arrival()
        # Another connection is given up meanwhile, and with it all that would have been.
        assert await (await Client.connected(running)).rest() == b""
        gate.open()
        assert (await client.rest()).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("line", [b"", b"X: "], ids=["url", "field"])
async def test_a_head_without_end_is_refused(serve: Serve, line: bytes) -> None:
    async with serve() as running:
        client = await Client.connected(running)
        start = b"GET / HTTP/1.1\r\n" + line if line else b"GET /"
        client.writer.write(start + b"a" * 66_000)
        status, _, problem = await client.problem()
        assert (status, problem["code"]) == (431, "head_too_large")
        assert rejected(running, "head_too_large") == 1


async def test_a_large_head_within_the_limit_is_read(serve: Serve) -> None:
    async with serve(keep_alive_s=SOON) as running:
        client = await Client.connected(running)
        client.writer.write(b"GET /health/live HTTP/1.1\r\nX: " + b"a" * 60_000 + b"\r\n\r\n")
        assert (await client.rest()).startswith(b"HTTP/1.1 200 ")


async def test_connections_beyond_the_limit_are_told_to_come_later(
    serve: Serve, protocols: list[HttpProtocol]
) -> None:
    async with serve(max_connections=2) as running:
        clients = [await Client.connected(running) for _ in range(2)]
        await running.until(lambda: len(protocols) == 2)
        status, fields, problem = await (await Client.connected(running)).problem()
        assert (status, problem["code"], fields["retry-after"]) == (503, "overloaded", "1")
        clients[0].writer.close()
        await running.until(lambda: len(protocols[1].connections) == 1)
        again = await Client.connected(running)
        again.writer.write(b"GET /health/live HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        assert (await again.rest()).startswith(b"HTTP/1.1 200 ")
        clients[1].writer.close()


async def test_a_client_that_reads_nothing_is_read_no_further(
    serve: Serve, protocols: list[HttpProtocol]
) -> None:
    async with serve() as running:
        client = await Client.connected(running)
        # Answers of a hundred kilobytes, more than the buffers of both ends hold.
        ask = b"GET /openapi.json HTTP/1.1\r\nHost: a\r\n\r\n"
        client.writer.write(ask * 1000)
        await running.until(lambda: protocols and protocols[0].flow.write_paused)
        (protocol,) = protocols
        assert protocol.flow.read_paused
        assert protocol.transport.get_write_buffer_size() < 1_000_000
        client.writer.transport.abort()
        await running.until(lambda: not protocol.connections)


async def test_a_client_that_reads_nothing_is_cut_off(
    serve: Serve, protocols: list[HttpProtocol]
) -> None:
    async with serve(request_timeout_s=SOON) as running:
        client = await Client.connected(running)
        client.writer.write(b"GET /openapi.json HTTP/1.1\r\nHost: a\r\n\r\n" * 1000)
        await running.until(lambda: protocols and protocols[0].flow.write_paused)
        await running.until(lambda: not protocols[0].connections)
        client.writer.transport.abort()


async def test_a_client_that_reads_late_gets_everything(
    serve: Serve, protocols: list[HttpProtocol]
) -> None:
    async with serve() as running:
        client = await Client.connected(running)
        ask = b"GET /openapi.json HTTP/1.1\r\nHost: a\r\n\r\n"
        client.writer.write(ask * 199 + ask.replace(b"Host", b"Connection: close\r\nHost"))
        await running.until(lambda: protocols and protocols[0].flow.write_paused)
        assert (await client.rest()).count(b"HTTP/1.1 200 ") == 200
