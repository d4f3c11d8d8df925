"""What is over is gone: connections, frames, texts and steps leave nothing that waits for the collector of garbage.

Python frees at once what nothing knows any more, but parts that know each other only when it comes round to them; so
memory of a service rises and falls with what came and went in between, far above what is in use.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import ClientConnection, connect

from tests.integration.inside import Running

MODEL, LANGUAGE = "accumulator", "language"
UPGRADE = (
    b"GET /v1/stream HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
TEXT = {"inputs": "the cat", "max_tokens": 3, "ignore_eos": True}


def alive() -> Counter[str]:
    """Objects of the service and of what serves its connections, by their type."""
    ours = ("service.", "uvicorn.", "websockets.server")
    return Counter(
        type(each).__qualname__
        for each in gc.get_objects()
        if str(type(each).__module__).startswith(ours)
    )


@contextlib.contextmanager
def without_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def client(running: Running) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=running.url, trust_env=False)


async def ask(connection: ClientConnection, due: str, **frame: Any) -> Any:
    await connection.send(json.dumps(frame))
    while (answer := json.loads(await connection.recv()))["op"] == "token":
        pass
    assert answer["op"] == due, answer
    return answer


async def steps_over_http(running: Running) -> None:
    async with client(running) as http:
        for name in ("a", "b"):
            await http.put(f"/v1/sessions/{name}", json={"model": MODEL})
            # The first, a retry, one out of turn, one that is no number.
            for value, seq, status in ((1.0, 1, 200), (1.0, 1, 200), (1.0, 9, 409), ("x", 2, 422)):
                body = {"inputs": [value], "seq": seq}
                answer = await http.post(f"/v1/sessions/{name}/steps", json=body)
                assert answer.status_code == status
            await http.delete(f"/v1/sessions/{name}")


async def steps_over_a_socket(running: Running) -> None:
    async with connect(running.stream_url, compression=None, proxy=None) as connection:
        for name in ("a", "b", "c"):
            await ask(connection, "opened", op="open", model=MODEL, session=name)
        # The first, a retry, one out of turn, two that go together.
        for seq in (1, 1, 9, 2, 3):
            steps = [
                {"session": name, "inputs": [1.0], "seq": seq} for name in ("a", "b", "c", "no")
            ]
            await ask(connection, "stepped", op="step", steps=steps)
        for name in ("a", "b", "c"):
            await ask(connection, "closed", op="close", session=name)


async def a_socket_after_steps_over_http(running: Running) -> None:
    await running.http.put("/v1/sessions/a", json={"model": MODEL})
    reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
    body = b'{"inputs": [1.0]}'
    writer.write(b"POST /v1/sessions/a/steps HTTP/1.1\r\nHost: a\r\n")
    writer.write(b"Content-Length: %d\r\n\r\n%b" % (len(body), body))
    assert b" 200 " in await reader.readuntil(b"\r\n\r\n")
    writer.write(UPGRADE)
    await reader.readuntil(b" 101 ")
    writer.close()
    await running.http.delete("/v1/sessions/a")


async def texts(running: Running) -> None:
    async with client(running) as http:
        await http.put("/v1/sessions/a", json={"model": LANGUAGE})
        for path in (f"/v1/models/{LANGUAGE}/generate", "/v1/sessions/a/generate"):
            for stream in (False, True):
                answer = await http.post(path, json=TEXT | {"stream": stream})
                assert answer.status_code == 200
    async with connect(running.stream_url, compression=None, proxy=None) as connection:
        await ask(connection, "generated", op="generate", session="a", **TEXT)
        await ask(connection, "closed", op="close", session="a")


async def callers_that_leave(running: Running) -> None:
    """Over HTTP and by a socket, while a step runs; before that the socket cancels a frame that is queued."""
    for name in ("a", "b", "c"):
        await running.http.put(f"/v1/sessions/{name}", json={"model": MODEL})
    gate, engine = running.gate(MODEL), running.engine(MODEL)
    gate.shut()
    async with client(running) as http:
        body = {"inputs": [1.0]}
        left = asyncio.create_task(http.post("/v1/sessions/a/steps", json=body))
        await gate.arrival()
        left.cancel()
        await asyncio.wait([left])
    async with connect(running.stream_url, compression=None, proxy=None) as connection:
        for number, name in enumerate(("b", "c")):
            steps = [{"session": name, "inputs": [1.0]}]
            await connection.send(json.dumps({"op": "step", "id": number, "steps": steps}))
        await running.until(lambda: engine.pending == 3)
        await ask(connection, "cancelled", op="cancel", target=0)
        gate.let()
        await gate.arrival()
    gate.let()
    await running.until(lambda: engine.pending == 0)
    for name in ("a", "b", "c"):
        session = await running.context.sessions.find(name, "default")
        await running.until(lambda session=session: session.idle)
        await running.http.delete(f"/v1/sessions/{name}")


@pytest.mark.parametrize(
    "use",
    [
        steps_over_http,
        steps_over_a_socket,
        a_socket_after_steps_over_http,
        texts,
        callers_that_leave,
    ],
)
async def test_what_is_over_leaves_nothing_to_the_collector(
    running: Running, use: Callable[[Running], Awaitable[None]]
) -> None:
    # What is made once and stays.
    await use(running)
    await running.http.get("/health/ready")
    with without_collector():
        before = alive()
        # Twice: something of the first may have been on its way out.
        await use(running)
        await use(running)
        with contextlib.suppress(TimeoutError):
            await running.until(lambda: not alive() - before)
        assert not alive() - before
