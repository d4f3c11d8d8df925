"""SIGTERM in the middle of everything: readiness fails, streams say where to go on, the process ends with status 0."""

from __future__ import annotations

import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import takewhile
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.exceptions import ConnectionClosed

from tests.integration import process
from tests.integration.process import Service
from tests.integration.wire import Event, Socket, events

GENERATE = {"inputs": "the cat", "max_tokens": 100_000, "seed": 3, "top_k": 4, "ignore_eos": True}


@pytest.fixture
def leaving(model_directory: Path, tmp_path: Path) -> Any:
    """A service of its own, to be ended."""
    service = process.start(
        model_directory,
        tmp_path / "log",
        drain_delay_s="0.3",
        max_tokens="100000",
        max_inputs="100000",
        max_input_steps="200000",
        snapshot_every="1000000",
    )
    yield service
    process.kill(service)


def read_stream(service: Service, path: str, started: threading.Barrier) -> list[Event]:
    with (
        httpx.Client(base_url=service.url, timeout=30, trust_env=False) as client,
        client.stream("POST", path, json=GENERATE | {"stream": True}) as answer,
    ):
        assert answer.status_code == 200
        found = []
        for event in events(answer.iter_lines()):
            found.append(event)
            if len(found) == 3:
                started.wait(30)
    return found


def test_on_sigterm_streams_say_where_to_go_on_and_the_process_ends_well(leaving: Service) -> None:
    for name, model in (("told", "language"), ("silent", "accumulator"), ("http", "language")):
        leaving.http.put(f"/v1/sessions/{name}", json={"model": model})
    with ThreadPoolExecutor() as pool, Socket(leaving.stream_url) as socket:
        started = threading.Barrier(3)
        one_shot = pool.submit(read_stream, leaving, "/v1/models/language/generate", started)
        session = pool.submit(read_stream, leaving, "/v1/sessions/http/generate", started)
        (reply,) = socket.step({"session": "silent", "inputs": [1.0, 2.0]})
        assert reply["seq"] == 2
        socket.send({"op": "generate", "id": "g", "session": "told"} | GENERATE)
        assert socket.receive()["op"] == "token"
        started.wait(30)

        began = time.monotonic()
        leaving.process.send_signal(signal.SIGTERM)
        # For a while readiness fails and requests are still served.
        deadline = began + 10
        while (ready := leaving.http.get("/health/ready")).status_code == 200:
            assert time.monotonic() < deadline
        assert (ready.status_code, ready.json()["status"]) == (503, "draining")
        answer = leaving.http.post("/v1/models/accumulator/predict", json={"inputs": [[1]]})
        assert answer.status_code == 200

        frames = list(takewhile(lambda f: f["op"] == "token", iter(socket.receive, None)))
        with pytest.raises(ConnectionClosed) as closed:
            socket.receive()
        streams = [one_shot.result(30), session.result(30)]
    assert leaving.process.wait(20) == 0
    # The delay, and ten seconds to drain at most.
    assert time.monotonic() - began < 10.3

    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1012
    for stream in streams:
        assert [stream[0].name, stream[-1].name] == ["start", "draining"]
        assert {event.name for event in stream[1:-1]} == {"token"}
        last, hint = stream[-2].data, stream[-1].data
        assert (hint["seed"], hint["last_event_id"]) == (3, last["index"])
        assert hint.get("seq") == last.get("seq")
        assert hint["retry_after_s"] > 0
    assert "seq" in streams[1][-1].data
    assert frames


def test_on_sigterm_a_socket_is_told_how_far_its_sessions_came(leaving: Service) -> None:
    with Socket(leaving.stream_url) as idle, Socket(leaving.stream_url, binary=True) as busy:
        idle.ask("open", model="accumulator", session="a")
        idle.ask("open", model="accumulator", session="b")
        idle.step({"session": "a", "inputs": [1, 2, 3]})
        busy.ask("open", model="accumulator", session="long")
        # Still at work when the drain begins.
        steps = [{"session": "long", "inputs": [1] * 20_000}]
        busy.send({"op": "step", "id": "long", "steps": steps})
        leaving.wait_until_metric("pending_steps", 1, model="accumulator")
        leaving.process.send_signal(signal.SIGTERM)
        farewell = idle.receive()
        assert (farewell["op"], farewell["sessions"]) == ("draining", {"a": 3, "b": 0})
        assert (farewell["error"]["code"], farewell["error"]["status"]) == ("draining", 503)
        reply = busy.receive()
        assert (reply["id"], reply["replies"][0]["seq"]) == ("long", 20_000)
        assert reply["replies"][0]["results"][-1] == {"total": 20_000.0}
        assert busy.receive()["sessions"] == {"long": 20_000}
        with pytest.raises(ConnectionClosed) as closed:
            idle.receive()
        assert closed.value.rcvd is not None
        assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (1012, "draining")
    assert leaving.process.wait(20) == 0
    assert leaving.faults(0) == []


def test_on_sigterm_an_idle_service_ends_at_once(leaving: Service) -> None:
    assert process.stop(leaving) == 0


def test_every_line_of_the_log_is_json_with_the_ids_at_hand(
    model_directory: Path, tmp_path: Path
) -> None:
    leaving = process.start(model_directory, tmp_path / "log", log_level="debug")
    headers = {"X-Request-Id": "mine-1"}
    leaving.http.put("/v1/sessions/logged", json={"model": "accumulator"}, headers=headers)
    answer = leaving.http.post(
        "/v1/sessions/logged/steps", json={"inputs": [1]}, headers={"X-Request-Id": "mine-2"}
    )
    assert answer.headers["x-request-id"] == "mine-2"
    answer = leaving.http.get("/v1/sessions/nobody", headers={"X-Request-Id": 'a "b'})
    made = answer.headers["x-request-id"]
    assert made == answer.json()["request_id"] != 'a "b'
    assert process.stop(leaving) == 0
    requests = {line["request_id"]: line for line in leaving.log() if line["message"] == "request"}
    step = requests["mine-2"]
    assert step["session"] == "logged"
    assert (step["method"], step["path"]) == ("POST", "/v1/sessions/logged/steps")
    assert (step["status"], step["level"]) == (200, "debug")
    assert step["duration_ms"] > 0
    assert (requests["mine-1"]["status"], requests[made]["status"]) == (201, 404)
    assert requests[made]["level"] == "info"
    for line in leaving.log():
        assert {"time", "level", "logger", "message"} <= line.keys()
