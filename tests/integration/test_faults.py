"""One caller's misfortune is nobody else's: cancellations, disconnects and a model that raises.

Interleaving is held in the hand: a gate before the model lets runs through one by one.
"""

from __future__ import annotations

import asyncio
import json
import random
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from websockets.asyncio.client import ClientConnection, connect

from service.settings import Settings
from tests.integration.inside import Running, serving
from tests.integration.planner import planned

ACCUMULATOR = "accumulator"
LANGUAGE = "language"


async def opened(running: Running, model: str, *names: str) -> None:
    for name in names:
        answer = await running.http.put(f"/v1/sessions/{name}", json={"model": model})
        assert answer.status_code == 201


async def steps(running: Running, name: str, inputs: list[Any], **fields: Any) -> Any:
    body = {"inputs": inputs} | fields
    return await running.http.post(f"/v1/sessions/{name}/steps", json=body)


async def total(running: Running, name: str, inputs: list[float], **fields: Any) -> Any:
    answer = await steps(running, name, inputs, **fields)
    assert answer.status_code == 200, answer.text
    return [each["total"] for each in answer.json()["results"]]


@asynccontextmanager
async def socket(running: Running) -> Any:
    async with connect(running.stream_url, compression=None, proxy=None) as connection:
        yield connection


async def ask(connection: ClientConnection, **frame: Any) -> Any:
    await connection.send(json.dumps(frame))
    return json.loads(await connection.recv())


async def batched(running: Running, *names: str) -> tuple[Any, list[asyncio.Task[Any]]]:
    """One request of each session, all queued behind a run that waits at the gate, to run as one batch."""
    gate = running.gate(ACCUMULATOR)
    gate.shut()
    engine = running.engine(ACCUMULATOR)
    first = asyncio.create_task(total(running, "first", [1.0]))
    await gate.arrival()
    tasks = []
    for name in names:
        tasks.append(asyncio.create_task(steps(running, name, [1.0], seq=1)))
        await running.until(lambda: engine.pending == 1 + len(tasks))
    return gate, [first, *tasks]


def left(running: Running) -> int:
    """Requests whose callers left before they were answered."""
    return sum(
        int(sample.value)
        for family in running.context.metrics.requests.collect()
        for sample in family.samples
        if sample.labels["status"] == "499"
    )


async def test_cancelling_one_of_three_batched_requests_leaves_the_others_right(
    running: Running,
) -> None:
    await opened(running, ACCUMULATOR, "first", "a", "b", "c")
    gate, (first, a, b, c) = await batched(running, "a", "b", "c")
    # The client's connection closes with its task.
    b.cancel()
    await asyncio.wait([b])
    session = await running.context.sessions.find("b", "default")
    await running.until(lambda: left(running) == 1)
    gate.open()
    assert await first == [1.0]
    for task in (a, c):
        assert (await task).json()["results"] == [{"total": 1.0}]
    assert gate.runs == [1, 2], "the cancelled step ran"
    await running.until(lambda: session.idle)
    assert session.seq == 0
    for retry in range(2):
        answer = (await steps(running, "b", [1.0], seq=1)).json()
        assert (answer["results"], answer["duplicate"]) == ([{"total": 1.0}], retry == 1)
    for name in ("first", "a", "b", "c"):
        assert await total(running, name, [1.0], seq=2) == [2.0]


async def test_cancelling_one_of_three_batched_predictions_leaves_the_others_right(
    running: Running,
) -> None:
    await opened(running, ACCUMULATOR, "first")
    gate, (first,) = await batched(running)

    async def predict(value: float) -> Any:
        body = {"inputs": [[value, value]]}
        return (await running.http.post(f"/v1/models/{ACCUMULATOR}/predict", json=body)).json()

    engine = running.engine(ACCUMULATOR)
    tasks = [asyncio.create_task(predict(value)) for value in (1.0, 2.0, 3.0)]
    await running.until(lambda: engine.pending == 4)
    tasks[1].cancel()
    await running.until(lambda: left(running) == 1)
    gate.open()
    assert await first == [1.0]
    assert (await tasks[0])["results"] == [[{"total": 1.0}, {"total": 2.0}]]
    assert (await tasks[2])["results"] == [[{"total": 3.0}, {"total": 6.0}]]
    assert gate.runs == [1, 2]


async def test_cancelling_a_frame_leaves_the_others_of_its_socket_right(running: Running) -> None:
    await opened(running, ACCUMULATOR, "first", "a", "b", "c")
    gate, (first,) = await batched(running)
    engine = running.engine(ACCUMULATOR)
    async with socket(running) as connection:
        for number, name in enumerate("abc"):
            frame = {"op": "step", "id": name, "steps": [{"session": name, "inputs": [1.0]}]}
            await connection.send(json.dumps(frame))
            await running.until(lambda number=number: engine.pending == 2 + number)
        answer = await ask(connection, op="cancel", target="b", id="give up")
        assert answer == {"op": "cancelled", "id": "give up", "frames": 1}
        gate.open()
        answers = {}
        while len(answers) < 2:
            answer = json.loads(await connection.recv())
            answers[answer["id"]] = answer["replies"][0]["results"]
        assert answers == {"a": [{"total": 1.0}], "c": [{"total": 1.0}]}
        await first
        assert gate.runs == [1, 2]
        session = await running.context.sessions.find("b", "default")
        await running.until(lambda: session.idle)
        steps = [{"session": name, "inputs": [1.0], "seq": 1} for name in "abc"]
        replies = (await ask(connection, op="step", steps=steps, id=1))["replies"]
        assert [reply["duplicate"] for reply in replies] == [True, False, True]
        assert [reply["results"] for reply in replies] == [[{"total": 1.0}]] * 3


async def test_a_step_that_runs_when_its_caller_leaves_is_committed_once(running: Running) -> None:
    await opened(running, ACCUMULATOR, "first")
    gate, (first,) = await batched(running)
    # It is at the gate: too late to drop.
    first.cancel()
    await asyncio.wait([first])
    await running.until(lambda: left(running) == 1)
    busy = await steps(running, "first", [1.0], seq=1)
    assert (busy.status_code, busy.json()["code"]) == (409, "session_busy")
    gate.open()
    session = await running.context.sessions.find("first", "default")
    await running.until(lambda: session.idle)
    answer = (await steps(running, "first", [1.0], seq=1)).json()
    assert (answer["results"], answer["duplicate"]) == ([{"total": 1.0}], True)
    assert await total(running, "first", [1.0], seq=2) == [2.0]


async def test_a_model_that_raises_once_fails_nobody(running: Running) -> None:
    """The batch is tried again row by row."""
    await opened(running, ACCUMULATOR, "first", "a", "b", "c")
    gate, tasks = await batched(running, "a", "b", "c")
    gate.let()
    await tasks[0]
    await gate.arrival()
    gate.raise_once(ValueError("for once"))
    gate.open()
    for task in tasks[1:]:
        assert (await task).json()["results"] == [{"total": 1.0}]
    assert gate.runs == [1, 3, 1, 1, 1]
    for name in ("first", "a", "b", "c"):
        assert await total(running, name, [1.0], seq=2) == [2.0]


async def test_a_model_that_raises_on_one_row_fails_only_that_row_and_applies_nothing(
    running: Running,
) -> None:
    await opened(running, ACCUMULATOR, "first", "a", "b", "c")
    gate, tasks = await batched(running, "a", "b", "c")
    gate.let()
    await tasks[0]
    await gate.arrival()
    gate.raise_once(ValueError("in the batch"))
    gate.let()
    await gate.arrival()
    gate.raise_once(ValueError("in the first row"))
    gate.open()
    answers = [await task for task in tasks[1:]]
    assert [answer.status_code for answer in answers] == [500, 200, 200]
    problem = answers[0].json()
    assert (problem["code"], answers[0].headers["content-type"]) == (
        "model_failed",
        "application/problem+json",
    )
    assert "in the first row" not in answers[0].text
    for retry in range(2):
        answer = (await steps(running, "a", [1.0], seq=1)).json()
        assert (answer["results"], answer["duplicate"]) == ([{"total": 1.0}], retry == 1)
    for name in ("first", "a", "b", "c"):
        assert await total(running, name, [1.0], seq=2) == [2.0]


async def test_a_model_that_raises_in_the_middle_of_a_long_input_applies_none_of_it(
    running: Running,
) -> None:
    await opened(running, ACCUMULATOR, "long", "other")
    assert await total(running, "long", [0.5], seq=1) == [0.5]
    gate = running.gate(ACCUMULATOR)
    gate.shut()
    # Chunks of 8: three runs.
    request = asyncio.create_task(steps(running, "long", [1.0] * 20, seq=2))
    await gate.arrival()
    gate.let()
    await gate.arrival()
    gate.raise_once(ValueError("in the batch"))
    gate.let()
    await gate.arrival()
    gate.raise_once(ValueError("alone"))
    gate.open()
    assert (await request).status_code == 500
    state = (await running.http.get("/v1/sessions/long")).json()
    assert (state["seq"], state["resident"], state["busy"]) == (1, False, False)
    expected = [0.5 + n for n in range(1, 21)]
    assert await total(running, "long", [1.0] * 20, seq=2) == expected
    assert await total(running, "long", [1.0] * 20, seq=2) == expected
    assert await total(running, "other", [1.0]) == [1.0]


async def test_a_number_that_overflows_the_model_quarantines_its_row_only(running: Running) -> None:
    await opened(running, ACCUMULATOR, "first", "a", "b")
    assert await total(running, "b", [1e308]) == [1e308]
    gate = running.gate(ACCUMULATOR)
    gate.shut()
    first = asyncio.create_task(total(running, "first", [1.0]))
    await gate.arrival()
    tasks = [
        asyncio.create_task(steps(running, "a", [1.0])),
        asyncio.create_task(steps(running, "b", [1e308])),
    ]
    await running.until(lambda: running.engine(ACCUMULATOR).pending == 3)
    gate.open()
    await first
    a, b = [await task for task in tasks]
    assert a.json()["results"] == [{"total": 1.0}]
    assert (b.status_code, b.json()["code"]) == (422, "non_finite")
    assert gate.runs == [1, 2]
    assert await total(running, "b", [-1e308]) == [0.0]


@pytest.mark.parametrize("path", ["/v1/models/language/generate", "/v1/sessions/writing/generate"])
async def test_a_stream_that_is_cut_disturbs_nobody_and_leaves_its_session_free(
    running: Running, path: str
) -> None:
    await opened(running, LANGUAGE, "writing", "reading")
    await opened(running, "weekend-planner", "planner")
    gate = running.gate(LANGUAGE)
    gate.shut()
    body = {"inputs": "the cat", "max_tokens": 500, "seed": 1, "top_k": 3, "stream": True}
    gate.let(4)
    async with running.http.stream("POST", path, json=body) as stream:
        lines = stream.aiter_lines()
        while not (await anext(lines)).startswith("id: 2"):
            pass
    # Left while the next run is at the gate; others share the next batch.
    engine = running.engine(LANGUAGE)
    other = asyncio.create_task(steps(running, "reading", ["the"]))
    await running.until(lambda: engine.pending >= 1)
    for weekend in range(3):
        answer = await steps(running, "planner", ["rainy"], seq=weekend + 1)
        assert answer.json()["results"][0]["label"] == planned(["rainy"] * 3)[weekend]
    gate.open()
    assert (await other).status_code == 200
    session = await running.context.sessions.find("writing", "default")
    await running.until(lambda: session.idle)
    applied = session.seq
    assert (await steps(running, "writing", ["the"], seq=applied + 1)).status_code == 200
    await running.until(lambda: engine.pending == 0)
    assert session.seq == applied + 1


async def test_a_socket_that_leaves_in_the_middle_of_a_generation_disturbs_nobody(
    running: Running,
) -> None:
    await opened(running, LANGUAGE, "writing", "reading")
    gate = running.gate(LANGUAGE)
    gate.shut()
    frame = {"op": "generate", "session": "writing", "inputs": "the", "max_tokens": 500, "seed": 1}
    async with socket(running) as leaving, socket(running) as staying:
        await leaving.send(json.dumps(frame))
        gate.let(3)
        assert json.loads(await leaving.recv())["op"] == "token"
        await leaving.close()
        # Nobody is told, so nobody frees the gate: the session is freed all the same.
        await running.until(lambda: len(running.context.shutdown.sockets) == 1)
        gate.open()
        step = [{"session": "reading", "inputs": ["the"]}]
        replies = (await ask(staying, op="step", steps=step))["replies"]
        assert replies[0]["seq"] == 1
        session = await running.context.sessions.find("writing", "default")
        await running.until(lambda: session.idle)
        step = [{"session": "writing", "inputs": ["the"], "seq": session.seq + 1}]
        assert (await ask(staying, op="step", steps=step))["replies"][0]["duplicate"] is False


async def test_cancelling_a_generation_on_a_socket_frees_its_session(running: Running) -> None:
    await opened(running, LANGUAGE, "writing")
    gate = running.gate(LANGUAGE)
    gate.shut()
    async with socket(running) as connection:
        await connection.send(
            json.dumps(
                {
                    "op": "generate",
                    "id": 1,
                    "session": "writing",
                    "inputs": "the",
                    "ignore_eos": True,
                }
            )
        )
        gate.let(2)
        assert json.loads(await connection.recv())["op"] == "token"
        busy = await ask(connection, op="close", session="writing", id=2)
        assert busy["error"]["code"] == "session_busy"
        assert (await ask(connection, op="cancel", target=1))["frames"] == 1
        gate.open()
        session = await running.context.sessions.find("writing", "default")
        await running.until(lambda: session.idle)
        answer = await ask(connection, op="close", session="writing", id=3)
        assert answer == {"op": "closed", "id": 3, "session": "writing"}


async def test_many_that_leave_at_random_leave_nothing_behind(running: Running) -> None:
    """Half of a crowd leaves at once; what stays is exact and the engine is empty afterwards."""
    names = [f"s{number}" for number in range(24)]
    await opened(running, ACCUMULATOR, "first", *names)
    gate, (first, *tasks) = await batched(running, *names)
    for task in tasks[::2]:
        task.cancel()
    gate.open()
    await first
    await asyncio.gather(*tasks, return_exceptions=True)
    for name in names:
        session = await running.context.sessions.find(name, "default")
        await running.until(lambda session=session: session.idle)
        assert await total(running, name, [1.0], seq=1) == [1.0]
        assert await total(running, name, [1.0], seq=2) == [2.0]


async def test_a_late_step_is_dropped_before_it_runs(running: Running) -> None:
    await opened(running, ACCUMULATOR, "first", "late")
    gate, (first,) = await batched(running)
    late = asyncio.create_task(steps(running, "late", [1.0], seq=1, timeout_s=5))
    await running.until(lambda: running.engine(ACCUMULATOR).pending == 2)
    running.clock.now += 6
    gate.open()
    await first
    answer = await late
    assert (answer.status_code, answer.json()["code"]) == (504, "deadline_exceeded")
    assert gate.runs == [1]
    assert await total(running, "late", [1.0], seq=1) == [1.0]


async def test_a_caller_that_runs_out_of_patience_is_no_fault(
    running: Running, caplog: pytest.LogCaptureFixture
) -> None:
    gate = running.gate(ACCUMULATOR)
    gate.shut()
    path, body = f"/v1/models/{ACCUMULATOR}/predict", {"inputs": [[1]]}
    with pytest.raises(httpx.ReadTimeout):
        await running.http.post(path, json=body, timeout=0.2)
    gate.open()
    await running.until(lambda: running.engine(ACCUMULATOR).pending == 0)
    assert [r for r in caplog.records if r.levelname == "ERROR"] == []


async def test_the_same_request_sent_many_times_at_once_is_applied_once(running: Running) -> None:
    await opened(running, ACCUMULATOR, "s")
    answers = await asyncio.gather(*(steps(running, "s", [1.0], seq=1) for _ in range(20)))
    codes = [answer.json().get("code") for answer in answers]
    assert set(codes) <= {None, "session_busy"}
    applied = [answer.json() for answer in answers if answer.status_code == 200]
    assert [answer["duplicate"] for answer in applied].count(False) == 1
    assert {answer["results"][0]["total"] for answer in applied} == {1.0}
    assert await total(running, "s", [1.0], seq=2) == [2.0]


async def test_clients_that_give_up_at_random_and_try_again_lose_and_double_nothing(
    model_directory: Path,
) -> None:
    """More sessions than slots, snapshots in between, and callers that leave at any moment."""
    settings = Settings(
        models=model_directory, port=0, log_level="error", max_resident=3, snapshot_every=5
    )
    async with serving(settings) as running:
        names = [f"s{number}" for number in range(8)]
        await opened(running, ACCUMULATOR, *names)
        given_up = 0

        async def client(name: str, chance: random.Random) -> None:
            nonlocal given_up
            expected, seq = 0.0, 1
            while seq <= 30:
                inputs = [float(chance.randint(-9, 9)) for _ in range(chance.choice([1, 1, 2, 20]))]
                sums = np.cumsum([expected, *inputs])[1:].tolist()
                while True:
                    # Some give up before the step runs, some while it does, some never.
                    patience = chance.choice([0.001, 0.003, 0.01, 30])
                    try:
                        async with asyncio.timeout(patience):
                            answer = await steps(running, name, inputs, seq=seq)
                    except TimeoutError:
                        given_up += 1
                        continue
                    if answer.status_code == 200:
                        break
                    assert answer.json()["code"] in ("session_busy", "overloaded"), answer.text
                assert [each["total"] for each in answer.json()["results"]] == sums
                expected, seq = sums[-1], seq + len(inputs)

        async with asyncio.TaskGroup() as clients:
            for number, name in enumerate(names):
                clients.create_task(client(name, random.Random(number)))
        assert given_up
