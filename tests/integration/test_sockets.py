"""Frames as bytes: whole ones are read by hand, all others by the parser, and nobody can tell which."""

from __future__ import annotations

import asyncio
import json
import os
import random
import struct
from typing import Any

import pytest
from websockets.frames import Frame

from service.api import sockets
from service.api.sockets import SocketProtocol
from tests.integration.inside import TIMEOUT_S, Running

TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10


class Raw:
    """A WebSocket that a test writes bytes to."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self.writer = writer

    async def frame(self) -> tuple[int, bytes]:
        """The next frame of the server: its opcode and content."""
        async with asyncio.timeout(TIMEOUT_S):
            head, size = await self._reader.readexactly(2)
            assert head & 0xF0 == 0x80, "a server's messages are whole"
            if size == 126:
                (size,) = struct.unpack("!H", await self._reader.readexactly(2))
            return head & 0x0F, await self._reader.readexactly(size)

    async def answer(self) -> Any:
        opcode, content = await self.frame()
        assert opcode == TEXT
        return json.loads(content)

    async def closed(self) -> int:
        """Code with which the server closes."""
        opcode, content = await self.frame()
        assert opcode == CLOSE
        return int.from_bytes(content[:2], "big")

    async def __aenter__(self) -> Raw:
        return self

    async def __aexit__(self, *error: object) -> None:
        self.writer.close()


async def connected(running: Running) -> Raw:
    reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
    writer.write(
        b"GET /v1/stream HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 101"), head
    return Raw(reader, writer)


def masked(
    opcode: int, content: bytes, *, fin: int = 0x80, reserved: int = 0, mask: bytes | None = None
) -> bytes:
    """A client's frame, as RFC 6455 says (section 5.2)."""
    key = os.urandom(4) if mask is None else mask
    size = len(content)
    if size < 126:
        length = struct.pack("!B", 0x80 | size)
    elif size < 65536:
        length = struct.pack("!BH", 0x80 | 126, size)
    else:
        length = struct.pack("!BQ", 0x80 | 127, size)
    body = bytes(byte ^ key[at % 4] for at, byte in enumerate(content))
    return bytes([fin | reserved | opcode]) + length + key + body


def asked(identifier: int, padding: int = 0) -> bytes:
    """A frame that is answered by one with the same id."""
    frame = {"op": "cancel", "target": "nobody", "id": identifier}
    return json.dumps(frame).encode() + b" " * padding


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Opcodes of the frames that the parser took."""
    found: list[int] = []
    parse = Frame.parse.__func__  # type: ignore[attr-defined]

    def note(cls: type[Frame], *arguments: Any, **options: Any) -> Any:
        frame = yield from parse(cls, *arguments, **options)
        found.append(int(frame.opcode))
        return frame

    monkeypatch.setattr(Frame, "parse", classmethod(note))
    return found


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What the service has read of its sockets, piece by piece; first the request that opens one."""
    found: list[bytes] = []
    original = SocketProtocol.data_received

    def note(self: SocketProtocol, data: bytes) -> None:
        original(self, data)
        found.append(data)

    monkeypatch.setattr(SocketProtocol, "data_received", note)
    return found


@pytest.mark.parametrize("padding", [0, 60, 100, 1000, 60_000])
async def test_a_message_that_comes_whole_is_not_parsed(
    running: Running, parsed: list[int], padding: int
) -> None:
    async with await connected(running) as raw:
        for number in range(4):
            raw.writer.write(masked(TEXT, asked(number, padding)))
            assert (await raw.answer())["id"] == number
    assert CLOSE not in parsed
    # The first may come before anybody reads.
    assert parsed.count(TEXT) <= 1


async def test_every_cut_of_messages_gives_the_same_answers(
    running: Running, reads: list[bytes]
) -> None:
    """Whatever comes in pieces, or together, goes to the parser; and what comes whole after it does not."""
    frames = [
        masked(TEXT, asked(1)),
        masked(PING, b"are you there"),
        masked(TEXT, asked(2), fin=0),
        masked(0, b" "),
        masked(TEXT, asked(3, 200)),
    ]
    data = b"".join(frames)
    chance = random.Random(5)
    async with await connected(running) as raw:
        await running.until(lambda: len(reads) == 1)
        reads.clear()
        pieces = 0
        for _ in range(60):
            cuts = sorted(chance.sample(range(1, len(data)), chance.randint(0, 4)))
            for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
                raw.writer.write(data[start:end])
                pieces += 1
                # Else the next piece may come with it.
                await running.until(lambda due=pieces: len(reads) == due)
            found = [await raw.frame() for _ in range(4)]
            assert [content for opcode, content in found if opcode == PONG] == [b"are you there"]
            ids = [json.loads(content)["id"] for opcode, content in found if opcode == TEXT]
            assert ids == [1, 2, 3]


async def test_a_whole_frame_inside_a_message_in_parts_is_a_part_of_it(running: Running) -> None:
    """A message may not begin within another (section 5.4)."""
    async with await connected(running) as raw:
        raw.writer.write(masked(TEXT, asked(1)))
        assert (await raw.answer())["id"] == 1
        raw.writer.write(masked(TEXT, asked(2)[:9], fin=0))
        raw.writer.write(masked(PING, b""))
        assert await raw.frame() == (PONG, b"")
        raw.writer.write(masked(TEXT, asked(3)))
        assert await raw.closed() == 1002


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        (masked(TEXT, b"\xff\xfe"), 1007),
        (masked(TEXT, asked(2), reserved=0x40), 1002),
        (masked(3, b"what"), 1002),
        (b"\x81\x02{}", 1002),
        (masked(CLOSE, struct.pack("!H", 1000)), 1000),
    ],
    ids=["no UTF-8", "an extension", "no opcode", "not masked", "close"],
)
@pytest.mark.parametrize("before", [0, 1])
async def test_what_is_no_message_closes_the_socket_as_ever(
    running: Running, before: int, frame: bytes, code: int
) -> None:
    async with await connected(running) as raw:
        for number in range(before):
            raw.writer.write(masked(TEXT, asked(number)))
            assert (await raw.answer())["id"] == number
        raw.writer.write(frame)
        assert await raw.closed() == code


async def test_what_comes_after_a_close_is_not_served(running: Running) -> None:
    async with await connected(running) as raw:
        raw.writer.write(masked(TEXT, asked(1)))
        assert (await raw.answer())["id"] == 1
        raw.writer.write(masked(CLOSE, struct.pack("!H", 1000)))
        raw.writer.write(masked(TEXT, asked(2)))
        assert await raw.closed() == 1000


async def test_binary_messages_come_as_they_are(running: Running) -> None:
    async with await connected(running) as raw:
        for mask in (b"\0\0\0\0", b"\xff\xff\xff\xff", None):
            raw.writer.write(masked(BINARY, b"\x81\xa2op\xa4none", mask=mask))
            opcode, content = await raw.frame()
            assert opcode == BINARY
            assert b"error" in content


@pytest.mark.parametrize("sizes", [(0,), (1, 125, 126), (65_535, 65_536), (5, 70_000, 3)])
def test_what_is_missing_of_the_last_frame_is_known_whatever_the_cut(
    sizes: tuple[int, ...],
) -> None:
    frames = [masked(TEXT, bytes(size)) for size in sizes]
    data = b"".join(frames)
    ends = [sum(map(len, frames[: number + 1])) for number in range(len(frames))]
    places = {0, len(data), *ends, *(end - 1 for end in ends), *(end - 3 for end in ends)}
    for cut in sorted(place for place in places if 0 <= place <= len(data)):
        missing = sockets._missing_after(data[:cut], 0)
        # In a head nothing is known, which is right as well.
        if missing != sockets._UNKNOWN:
            assert cut + missing in (0, *ends)
            assert sockets._missing_after(data[cut:], missing) == 0
    assert sockets._missing_after(data, 0) == 0
