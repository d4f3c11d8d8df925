"""Many texts and single steps at once on a model whose words are exact: no token is lost or mixed up."""

from __future__ import annotations

import asyncio
import random
import socket as sockets
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest

from service.api.schema import SessionGenerateRequest
from service.api.writing import AHEAD, Writing
from service.engine.sampling import Sampling
from service.settings import Settings
from tests import ledger, models
from tests.integration import inside
from tests.integration.inside import Running
from tests.integration.wire import Event, events

MODEL = ledger.MODEL
MOST = 1500
MIXED = (
    Sampling(temperature=0),
    Sampling(top_k=3),
    Sampling(temperature=2.0, top_k=0),
    Sampling(temperature=0.7, top_k=5, top_p=0.9),
    Sampling(top_k=0, top_p=0.7),
)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    ledger.write(root)
    models.accumulator(root)
    return root


@pytest.fixture
async def running(directory: Path) -> AsyncIterator[Running]:
    settings = Settings(models=directory, port=0, log_level="warning", max_tokens=MOST)
    async with inside.serving(settings) as running:
        yield running


def body(prompt: list[int], count: int, how: Sampling, seed: int) -> dict[str, Any]:
    return {
        "inputs": prompt,
        "max_tokens": count,
        "temperature": how.temperature,
        "top_k": how.top_k,
        "top_p": how.top_p,
        "seed": seed,
        "ignore_eos": True,
    }


async def opened(running: Running, *names: str) -> None:
    for name in names:
        answer = await running.http.put(f"/v1/sessions/{name}", json={"model": MODEL})
        assert answer.status_code == 201


async def one_shot(running: Running, *what: Any) -> list[int]:
    answer = await running.http.post(f"/v1/models/{MODEL}/generate", json=body(*what))
    assert answer.status_code == 200, answer.text
    return [token["id"] for token in answer.json()["tokens"]]


async def streamed(running: Running, path: str, *what: Any) -> list[int]:
    answer = await running.http.post(path, json=body(*what) | {"stream": True})
    assert answer.status_code == 200, answer.text
    return ids_of(list(events(answer.text.splitlines())))


def ids_of(stream: list[Event]) -> list[int]:
    assert (stream[0].name, stream[-1].name) == ("start", "done")
    tokens = [event.data for event in stream[1:-1]]
    assert [token["index"] for token in tokens] == list(range(len(tokens)))
    return [token["id"] for token in tokens]


async def stepped(running: Running, name: str, tokens: list[int]) -> None:
    """Single steps of a session, each answered with the best word."""
    for seq, (token, page) in enumerate(zip(tokens, ledger.pages(tokens), strict=True), 1):
        step = {"inputs": [token], "seq": seq, "parameters": {"top_k": 1}}
        answer = await running.http.post(f"/v1/sessions/{name}/steps", json=step)
        assert answer.status_code == 200, answer.text
        ((best,),) = answer.json()["results"]
        assert best["id"] == ledger.TABLE[page].argmax()


def prompts(count: int, seed: int) -> list[list[int]]:
    chance = random.Random(seed)
    return [chance.choices(range(1, 12), k=chance.randint(1, 6)) for _ in range(count)]


@pytest.mark.parametrize("seed", [1, 2])
async def test_texts_of_all_kinds_and_single_steps_at_once_are_each_as_alone(
    running: Running, seed: int
) -> None:
    chance = random.Random(seed)
    names = [f"s{number}" for number in range(24)]
    await opened(running, *names)
    jobs: list[Any] = []
    due: list[Any] = []
    for number, prompt in enumerate(prompts(72, seed)):
        how = chance.choice(MIXED)
        count = chance.randint(1, 40)
        what = (prompt, count, how, number)
        if number < 12:
            jobs.append(stepped(running, names[number], prompt * 4))
            due.append(None)
            continue
        if number < 24:
            jobs.append(streamed(running, f"/v1/sessions/{names[number]}/generate", *what))
        elif number < 48:
            jobs.append(streamed(running, f"/v1/models/{MODEL}/generate", *what))
        else:
            jobs.append(one_shot(running, *what))
        due.append(ledger.text(*what))
    assert await asyncio.gather(*jobs) == due


async def test_sixty_four_texts_and_single_steps_share_batches(running: Running) -> None:
    names = [f"s{number}" for number in range(16)]
    await opened(running, *names, "first")
    engine, gate = running.engine(MODEL), running.gate(MODEL)
    gate.shut()
    first = asyncio.create_task(stepped(running, "first", [2]))
    await gate.arrival()
    texts = [
        asyncio.create_task(one_shot(running, [3], 12, MIXED[number % len(MIXED)], number))
        for number in range(64)
    ]
    steps = [asyncio.create_task(stepped(running, name, [4] * 12)) for name in names]
    await running.until(lambda: engine.pending == 81)
    before = await batches(running)
    gate.open()
    await asyncio.gather(first, *steps)
    for number, each in enumerate(texts):
        what = ([3], 12, MIXED[number % len(MIXED)], number)
        assert await each == ledger.text(*what)
    rows, runs = [now - then for now, then in zip(await batches(running), before, strict=True)]
    assert rows == sum(gate.runs) == 1 + 64 * 12 + 16 * 12
    assert gate.runs[:2] == [1, 80]
    # Later ones have what arrived while the one before ran: how many is up to the machine.
    assert rows / runs > 4


async def test_texts_go_on_together_from_few_candidates_and_from_many(
    running: Running,
) -> None:
    few, many = ["f0", "f1", "f2"], ["m0", "m1"]
    await opened(running, *few, *many)
    how = Sampling(top_k=3)

    async def go_on(name: str, **changes: Any) -> Any:
        what = body([], 6, how, 7) | changes
        del what["inputs"]
        return await running.http.post(f"/v1/sessions/{name}/generate", json=what)

    for names, top_k in ((few, 4), (many, models.TOP_K)):
        step = {"inputs": [5], "parameters": {"top_k": top_k}}
        answers = await asyncio.gather(
            *[running.http.post(f"/v1/sessions/{name}/steps", json=step) for name in names]
        )
        assert [len(each.json()["results"][0]) for each in answers] == [top_k] * len(names)
    refused = await go_on("f0", top_k=0)
    assert (refused.status_code, refused.json()["code"]) == (422, "invalid")
    written = await asyncio.gather(*[go_on(name) for name in [*few, *many]])
    due = ledger.text([5], 6, how, 7)
    assert [[token["id"] for token in each.json()["tokens"]] for each in written] == [due] * 5


async def test_a_retry_has_as_many_candidates_as_the_step_had(running: Running) -> None:
    await opened(running, "a")
    step = {"inputs": [5], "seq": 1, "parameters": {"top_k": 2}}
    first, again = [
        (await running.http.post("/v1/sessions/a/steps", json=step)).json() for _ in range(2)
    ]
    assert first | {"duplicate": True} == again
    assert len(again["results"][0]) == 2
    other = step | {"parameters": {"top_k": 3}}
    answer = await running.http.post("/v1/sessions/a/steps", json=other)
    assert answer.json()["code"] == "payload_mismatch"


async def batches(running: Running) -> tuple[float, float]:
    """Rows and runs of the model so far, as its metrics have them."""
    page = (await running.http.get("/metrics")).text.splitlines()
    return tuple(
        float(line.split()[-1])
        for name in ("sum", "count")
        for line in page
        if line.startswith(f"seqserve_batch_size_{name}{{") and MODEL in line
    )  # type: ignore[return-value]


async def test_texts_join_and_leave_the_batch_from_token_to_token(running: Running) -> None:
    gate, engine = running.gate(MODEL), running.engine(MODEL)
    gate.shut()
    tasks = []

    async def join(*counts: int) -> None:
        tasks.extend(
            asyncio.create_task(one_shot(running, [count], count, MIXED[1], count))
            for count in counts
        )
        pending = engine.pending + len(counts)
        await running.until(lambda: engine.pending >= pending)

    await join(8)
    await gate.arrival()
    # These wait while the first prompt is at the gate, and go with its second token.
    await join(2, 4)
    for _ in range(2):
        gate.let()
        await gate.arrival()
    await join(6)
    gate.open()
    texts = await asyncio.gather(*tasks)
    for count, text in zip((8, 2, 4, 6), texts, strict=True):
        assert text == ledger.text([count], count, MIXED[1], count)
    # One run for the prompt and one for each token but the last.
    assert sum(gate.runs) == 8 + 2 + 4 + 6
    assert max(gate.runs) >= 3


@pytest.mark.parametrize("how", [MIXED[0], MIXED[1], MIXED[3]], ids=str)
@pytest.mark.parametrize("received", [1, 4, 7])
async def test_a_resumed_text_is_the_one_it_would_have_been(
    running: Running, how: Sampling, received: int
) -> None:
    await opened(running, "s")
    session = await running.context.sessions.find("s", "default")
    what = ([5, 3], 12, how, 9)
    due = ledger.text(*what)
    request = msgspec.convert(body(*what), SessionGenerateRequest)
    writing = write(running, session, request)
    with closing(writing):
        tokens = []
        while len(tokens) < received:
            tokens += await writing.some()
    await running.until(lambda: session.idle)
    again = Writing(running.context, running.context.repository.get(MODEL), request)
    again.from_session(session, request.inputs, None, received - 1)
    with closing(again):
        rest = []
        while some := await again.some():
            rest += some
    assert [token.id for token in tokens[:received] + rest] == due
    # All of the prompt is one input.
    assert session.seq == 1 + 12


def write(running: Running, session: Any, request: SessionGenerateRequest) -> Writing:
    writing = Writing(running.context, running.context.repository.get(MODEL), request)
    writing.from_session(session, request.inputs, request.seq, None)
    return writing


async def test_a_text_waits_for_a_reader_that_does_not_read(running: Running) -> None:
    await opened(running, "slow", "other")
    session = await running.context.sessions.find("slow", "default")
    what = ([7], 100, MIXED[1], 3)
    writing = write(running, session, msgspec.convert(body(*what), SessionGenerateRequest))
    with closing(writing):
        tokens = await writing.some()
        await running.until(lambda: len(writing.written.tokens) >= len(tokens) + AHEAD)
        # Others go on meanwhile, for long enough to see that this one does not.
        await stepped(running, "other", [4] * 50)
        assert not session.idle
        assert len(writing.written.tokens) <= len(tokens) + AHEAD + 1
        assert session.seq == 1 + len(writing.written.tokens)
        while some := await writing.some():
            tokens += some
    assert [token.id for token in tokens] == ledger.text(*what)


async def test_a_stream_nobody_reads_goes_no_further_than_its_buffers(running: Running) -> None:
    await opened(running, "unread", "other")
    session = await running.context.sessions.find("unread", "default")
    what = ([7], MOST, MIXED[1], 3)
    content = msgspec.json.encode(body(*what) | {"stream": True})
    head = (
        "POST /v1/sessions/unread/generate HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
        f"Content-Length: {len(content)}\r\n\r\n"
    )
    # What the system keeps for a reader is to be little.
    assert running.listening is not None
    running.listening.setsockopt(sockets.SOL_SOCKET, sockets.SO_SNDBUF, 16384)
    with sockets.socket() as narrow:
        narrow.setsockopt(sockets.SOL_SOCKET, sockets.SO_RCVBUF, 4096)
        narrow.setblocking(False)
        await asyncio.get_running_loop().sock_connect(narrow, ("127.0.0.1", running.port))
        reader, writer = await asyncio.open_connection(sock=narrow, limit=1024)
        writer.write(head.encode() + content)
        await running.until(lambda: session.seq > 100)
        before = -1
        while session.seq > before:
            before = session.seq
            await stepped_on(running, "other", 20)
        assert session.seq < MOST
        assert not session.idle
        # Then it is read, and all of it comes.
        narrow.setsockopt(sockets.SOL_SOCKET, sockets.SO_RCVBUF, 2**20)
        received = await reader.read()
        writer.close()
    ids = [int(part.split(b",")[0]) for part in received.split(b'"id":')[1:]]
    assert ids == ledger.text(*what)
    await running.until(lambda: session.idle)
    assert session.seq == 1 + MOST


async def stepped_on(running: Running, name: str, count: int) -> None:
    for _ in range(count):
        answer = await running.http.post(f"/v1/sessions/{name}/steps", json={"inputs": [4]})
        assert answer.status_code == 200


async def test_streams_end_at_shutdown_with_all_that_their_session_holds(running: Running) -> None:
    """The hint where to go on is the seq that is committed, and nothing is fed after it."""
    await opened(running, "s")
    session = await running.context.sessions.find("s", "default")
    gate = running.gate(MODEL)
    gate.shut()
    content = body([5], 50, MIXED[1], 3) | {"stream": True}
    stream = asyncio.create_task(running.http.post("/v1/sessions/s/generate", json=content))
    for _ in range(4):
        await gate.arrival()
        gate.let()
    # The fourth token is at the gate.
    await gate.arrival()
    running.context.shutdown.began.set()
    gate.open()
    start, *tokens, hint = events((await stream).text.splitlines())
    assert (start.name, hint.name) == ("start", "draining")
    assert [token.data["id"] for token in tokens] == ledger.text([5], 4, MIXED[1], 3)
    assert hint.data["last_event_id"] == 3
    await running.until(lambda: session.idle)
    assert hint.data["seq"] == session.seq == 5
    assert sum(gate.runs) == 5
    running.context.shutdown.began.clear()
