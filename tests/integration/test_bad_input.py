"""Whatever is sent, the answer is a specific error, and nobody else notices."""

from __future__ import annotations

import contextlib
import json
import math
import secrets
import socket
import struct
import time
from collections.abc import Iterator
from typing import Any

import httpx
import msgpack
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from websockets.exceptions import ConnectionClosedError

from service.settings import Settings
from tests.integration import inside, process
from tests.integration.planner import Probe
from tests.integration.process import Service
from tests.integration.wire import Socket

PROBLEM = "application/problem+json"
DEEP = "[" * 100_000 + "]" * 100_000
LIMITS = Settings()

pytestmark = pytest.mark.usefixtures("probe")


def check_problem(response: httpx.Response, status: int, code: str, path: str | None) -> Any:
    assert (response.status_code, response.headers["content-type"]) == (status, PROBLEM), (
        response.text
    )
    problem = response.json()
    check_members(problem, status, code, path)
    assert problem["request_id"] == response.headers["x-request-id"]
    return problem


def check_members(problem: dict[str, Any], status: int, code: str, path: str | None) -> None:
    found = (problem["status"], problem["code"], problem.get("path"))
    assert found == (status, code, path), problem
    assert problem["type"] == f"urn:seqserve:error:{code}"
    assert problem["title"]
    assert problem["detail"]


@pytest.fixture
def session(service: Service) -> Iterator[str]:
    """A session of the accumulator that has 1.5 so far."""
    identifier = service.http.post("/v1/sessions", json={"model": "accumulator"}).json()["session"]
    service.http.post(f"/v1/sessions/{identifier}/steps", json={"inputs": [1.0, 0.5]})
    yield identifier
    # Still there and as it was, whatever was refused meanwhile.
    answer = service.http.post(f"/v1/sessions/{identifier}/steps", json={"inputs": [1.0], "seq": 3})
    assert answer.json()["results"] == [{"total": 2.5}]
    service.http.delete(f"/v1/sessions/{identifier}")


@pytest.fixture
def words(service: Service) -> Iterator[str]:
    """A session of the language model with two inputs."""
    identifier = service.http.post("/v1/sessions", json={"model": "language"}).json()["session"]
    service.http.post(f"/v1/sessions/{identifier}/steps", json={"inputs": ["the", "cat"]})
    yield identifier
    assert service.http.get(f"/v1/sessions/{identifier}").json()["seq"] == 2
    service.http.delete(f"/v1/sessions/{identifier}")


# A model's inputs, one way or the other: what is wrong with them has the same answer everywhere.
NUMBERS = {
    "no inputs": ([], "$.inputs"),
    "a word for a number": (["one"], "$.inputs[0]"),
    "null": ([1, None], "$.inputs[1]"),
    "a truth value": ([True], "$.inputs[0]"),
    "a list for a number": ([[1.0]], "$.inputs[0]"),
    "an object for a number": ([{"y": 1}], "$.inputs[0]"),
    "a number of 400 digits": ([10**400], "$.inputs[0]"),
    "not a list": ("12", "$.inputs"),
    "nothing": (None, "$.inputs"),
}
WORDS = {
    "empty text": ([""], "$.inputs[0]"),
    "blank text": (["the", "  \n"], "$.inputs[1]"),
    "token above the vocabulary": ([12], "$.inputs[0]"),
    "token below zero": ([-1], "$.inputs[0]"),
    "token of 400 digits": ([10**400], "$.inputs[0]"),
    "a fraction for a token": ([1.5], "$.inputs[0]"),
    "a truth value": ([True], "$.inputs[0]"),
}


@pytest.mark.parametrize(("inputs", "path"), NUMBERS.values(), ids=NUMBERS)
def test_inputs_that_are_no_numbers_are_refused_by_their_path(
    service: Service, session: str, inputs: Any, path: str
) -> None:
    answer = service.http.post(f"/v1/sessions/{session}/steps", json={"inputs": inputs})
    check_problem(answer, 422, "invalid", path)
    for binary in (False, True):
        if binary and "digits" in str(inputs):
            continue
        with Socket(service.stream_url, binary=binary) as stream:
            step = {"session": session, "inputs": inputs}
            if isinstance(inputs, list) and 10**400 not in inputs:
                (reply,) = stream.step(step)
                check_members(reply["error"], 422, "invalid", path)
            elif not isinstance(inputs, list):
                answer_ = _raw_error(stream, {"op": "step", "steps": [step]})
                check_members(answer_, 422, "invalid", "$.steps[0].inputs")


def _raw_error(stream: Socket, frame: Any) -> dict[str, Any]:
    stream.send(frame)
    answer = stream.receive()
    assert answer["op"] == "error"
    problem: dict[str, Any] = answer["error"]
    return problem


@pytest.mark.parametrize(("inputs", "path"), WORDS.values(), ids=WORDS)
def test_inputs_that_are_no_words_are_refused_by_their_path(
    service: Service, words: str, inputs: Any, path: str
) -> None:
    for route in (f"/v1/sessions/{words}/steps", f"/v1/sessions/{words}/generate"):
        check_problem(service.http.post(route, json={"inputs": inputs}), 422, "invalid", path)
    nested = path.replace("$.inputs", "$.inputs[0]", 1)
    answer = service.http.post("/v1/models/language/predict", json={"inputs": [inputs]})
    check_problem(answer, 422, "invalid", nested)
    check_problem(
        service.http.post("/v1/models/language/generate", json={"inputs": inputs}),
        422,
        "invalid",
        path,
    )


REFUSED = {
    "unknown model": ("POST", "/v1/models/no/predict", {"inputs": [[1]]}, 404, "unknown_model"),
    "unknown model to show": ("GET", "/v1/models/no", None, 404, "unknown_model"),
    "unknown model to generate": (
        "POST", "/v1/models/no/generate", {"inputs": "a"}, 404, "unknown_model",
    ),
    "unknown model of a session": ("POST", "/v1/sessions", {"model": "no"}, 404, "unknown_model"),
    "unknown version": (
        "POST", "/v1/sessions", {"model": "language", "version": 9}, 404, "unknown_model",
    ),
    "version of 20 digits": (
        "POST", "/v1/sessions", {"model": "language", "version": 10**19}, 404, "unknown_model",
    ),
    "unknown session": ("GET", "/v1/sessions/nobody", None, 404, "unknown_session"),
    "unknown session to step": (
        "POST", "/v1/sessions/nobody/steps", {"inputs": [1]}, 404, "unknown_session",
    ),
    "unknown session to generate": (
        "POST", "/v1/sessions/nobody/generate", {"inputs": "a"}, 404, "unknown_session",
    ),
    "unknown session to end": ("DELETE", "/v1/sessions/nobody", None, 404, "unknown_session"),
    "session id of other bytes": ("GET", "/v1/sessions/%ff%00%0d%0a", None, 404, "unknown_session"),
    "unknown route": ("GET", "/v2/nothing", None, 404, "unknown_route"),
    "unknown route below a session": ("GET", "/v1/sessions/a/b/c", None, 404, "unknown_route"),
    "slash in a session id": ("GET", "/v1/sessions/a%2Fb", None, 404, "unknown_route"),
    "wrong method": ("GET", "/v1/models/language/predict", None, 405, "method_not_allowed"),
    "wrong method on models": ("DELETE", "/v1/models", None, 405, "method_not_allowed"),
    "model that does not generate": (
        "POST", "/v1/models/accumulator/generate", {"inputs": "a"}, 422, "not_supported",
    ),
    "too many inputs": (
        "POST", "/v1/models/accumulator/predict", {"inputs": [[0]] * 1025}, 413, "too_large",
    ),
    "too many time steps": (
        "POST", "/v1/models/accumulator/predict", {"inputs": [[0] * 65_537]}, 413, "too_large",
    ),
    "too many words": (
        "POST", "/v1/models/language/predict", {"inputs": ["a " * 65_537]}, 413, "too_large",
    ),
    "too many tokens": (
        "POST", "/v1/models/language/generate", {"inputs": "a", "max_tokens": 201}, 413, "too_large",
    ),
    "deadline that has passed": (
        "POST", "/v1/models/accumulator/predict", {"inputs": [[1]], "timeout_s": 1e-9},
        504, "deadline_exceeded",
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("method", "route", "body", "status", "code"), REFUSED.values(), ids=REFUSED
)
def test_each_error_has_its_status_and_code(
    service: Service, method: str, route: str, body: Any, status: int, code: str
) -> None:
    answer = service.http.request(method, route, json=body)
    problem = answer.json()
    check_problem(answer, status, code, problem.get("path"))


def test_a_wrong_method_is_told_the_right_ones(service: Service) -> None:
    for route, allowed in (("/v1/sessions", "GET, POST"), ("/v1/sessions/a", "DELETE, GET, PUT")):
        answer = service.http.patch(route)
        check_problem(answer, 405, "method_not_allowed", None)
        assert answer.headers["allow"] == allowed


FIELDS = {
    "unknown field": ({"inputs": ["a"], "beams": 4}, "$"),
    "missing inputs": ({}, "$"),
    "a list for an object": ([], "$"),
    "a text for an object": ("a", "$"),
    "unknown parameter": ({"inputs": ["a"], "parameters": {"top_q": 1}}, "$.parameters"),
    "top_k 0": ({"inputs": ["a"], "parameters": {"top_k": 0}}, "$.parameters.top_k"),
    "top_k too large": ({"inputs": ["a"], "parameters": {"top_k": 7}}, "$.parameters.top_k"),
    "top_k no number": ({"inputs": ["a"], "parameters": {"top_k": "2"}}, "$.parameters.top_k"),
    "timeout 0": ({"inputs": ["a"], "timeout_s": 0}, "$.timeout_s"),
    "timeout negative": ({"inputs": ["a"], "timeout_s": -1}, "$.timeout_s"),
    "timeout of 400 digits": ({"inputs": ["a"], "timeout_s": 10**400}, "$.timeout_s"),
}


@pytest.mark.parametrize(("body", "path"), FIELDS.values(), ids=FIELDS)
def test_each_field_of_a_prediction_is_checked(service: Service, body: Any, path: str) -> None:
    answer = service.http.post("/v1/models/language/predict", json=body)
    check_problem(answer, 422, "invalid", path)


OPTIONS = {
    "max_tokens 0": ({"max_tokens": 0}, "$.max_tokens"),
    "max_tokens negative": ({"max_tokens": -5}, "$.max_tokens"),
    "temperature negative": ({"temperature": -0.1}, "$.temperature"),
    "temperature too high": ({"temperature": 101}, "$.temperature"),
    "top_k negative": ({"top_k": -1}, "$.top_k"),
    "top_p 0": ({"top_p": 0}, "$.top_p"),
    "top_p above 1": ({"top_p": 1.01}, "$.top_p"),
    "seed negative": ({"seed": -1}, "$.seed"),
    "seed beyond 63 bits": ({"seed": 2**63}, "$.seed"),
    "empty stop": ({"stop": ""}, "$.stop"),
    "empty stop among others": ({"stop": [".", ""]}, "$.stop"),
    "too many stops": ({"stop": ["a"] * 17}, "$.stop"),
    "stop no text": ({"stop": [1]}, "$.stop[0]"),
    "seq 0": ({"seq": 0}, "$.seq"),
    "stream no truth value": ({"stream": "yes"}, "$.stream"),
}


@pytest.mark.parametrize(("options", "path"), OPTIONS.values(), ids=OPTIONS)
def test_each_option_of_a_generation_is_checked(
    service: Service, words: str, options: Any, path: str
) -> None:
    for stream in ({}, {"stream": True}):
        body = {"inputs": "the cat"} | stream | options
        answer = service.http.post(f"/v1/sessions/{words}/generate", json=body)
        check_problem(answer, 422, "invalid", path)
        if "seq" not in options:
            answer = service.http.post("/v1/models/language/generate", json=body)
            check_problem(answer, 422, "invalid", path)
    if "stream" not in options:
        for binary in (False, True):
            with Socket(service.stream_url, binary=binary) as socket_:
                frame = {"op": "generate", "session": words, "inputs": "the cat"} | options
                check_members(_raw_error(socket_, frame), 422, "invalid", path)


SESSIONS = {
    "ttl 0": ({"ttl_s": 0}, "$.ttl_s"),
    "ttl negative": ({"ttl_s": -1}, "$.ttl_s"),
    "ttl huge": ({"ttl_s": 1e300}, "$.ttl_s"),
    "version 0": ({"version": 0}, "$.version"),
    "empty id": ({"session": ""}, "$.session"),
    "odd id": ({"session": "a/b"}, "$.session"),
    "id of line ends": ({"session": "a\r\nSet-Cookie: b"}, "$.session"),
    "id of other letters": ({"session": "é"}, "$.session"),
    "long id": ({"session": "a" * 129}, "$.session"),
    "id no text": ({"session": 7}, "$.session"),
    "model no text": ({"model": 7}, "$.model"),
}


@pytest.mark.parametrize(("options", "path"), SESSIONS.values(), ids=SESSIONS)
def test_each_field_of_a_session_is_checked(service: Service, options: Any, path: str) -> None:
    body = {"model": "accumulator"} | options
    check_problem(service.http.post("/v1/sessions", json=body), 422, "invalid", path)
    for binary in (False, True):
        with Socket(service.stream_url, binary=binary) as stream:
            check_members(_raw_error(stream, {"op": "open", **body}), 422, "invalid", path)


MALFORMED = {
    "not JSON": b"{inputs: [1]}",
    "empty": b"",
    "cut": b'{"inputs": [1',
    "two documents": b'{"inputs": [1]}{"inputs": [1]}',
    "invalid UTF-8": b'{"inputs": ["\xff\xfe"]}',
    "lone surrogate": b'{"inputs": ["\\ud800"]}',
    "NaN": b'{"inputs": [NaN]}',
    "Infinity": b'{"inputs": [Infinity]}',
    "byte order mark": b'\xef\xbb\xbf{"inputs": [1]}',
    "100,000 open brackets": b'{"inputs": ' + b"[" * 100_000,
    "100,000 levels of lists": f'{{"inputs": {DEEP}}}'.encode(),
    "100,000 levels of objects": (
        b'{"inputs": [' + b'{"a":' * 100_000 + b"1" + b"}" * 100_000 + b"]}"
    ),
    "noise": b"\0" + secrets.token_bytes(1000),
}


@pytest.mark.parametrize("body", MALFORMED.values(), ids=MALFORMED)
def test_a_body_that_is_not_json_is_malformed(service: Service, session: str, body: bytes) -> None:
    for route in (
        f"/v1/sessions/{session}/steps",
        f"/v1/sessions/{session}/generate",
        "/v1/models/accumulator/predict",
        "/v1/models/language/generate",
    ):
        check_problem(service.http.post(route, content=body), 400, "malformed", None)
    with Socket(service.stream_url) as stream:
        with contextlib.suppress(UnicodeDecodeError):
            stream.connection.send(body.decode())
            # The first of two documents is no frame, and that may be seen first.
            assert stream.receive()["error"]["code"] in ("malformed", "invalid")
        assert stream.ask("cancel", target=0)["op"] == "cancelled"


@pytest.mark.parametrize("number", ["1e999", "-1e999", "1" + "0" * 5000])
def test_a_number_beyond_all_floats_is_refused(service: Service, session: str, number: str) -> None:
    answer = service.http.post(f"/v1/sessions/{session}/steps", content=f'{{"inputs": [{number}]}}')
    check_problem(answer, 422, "invalid", "$.inputs[0]")


MESSAGE_PACK = {
    "unused code": b"\xc1",
    "empty": b"",
    "cut": msgpack.packb({"op": "cancel", "target": 1})[:-1],
    "two documents": msgpack.packb({"op": "cancel", "target": 1}) * 2,
    "list of 4 billion": b"\xdd\xff\xff\xff\xff",
    "object of 4 billion": b"\xdf\xff\xff\xff\xff",
    "invalid UTF-8": b"\x81\xa2\xff\xfe\x01",
    "object as a key": b"\x81\x80\x01",
    "100,000 levels": b"\x91" * 100_000 + b"\x01",
    "noise": b"\xc1" + secrets.token_bytes(1000),
}


@pytest.mark.parametrize("data", MESSAGE_PACK.values(), ids=MESSAGE_PACK)
def test_a_frame_that_is_not_message_pack_is_refused_and_the_socket_goes_on(
    service: Service, data: bytes
) -> None:
    with Socket(service.stream_url, binary=True) as stream:
        for _ in range(2):
            stream.connection.send(data)
            problem = stream.receive()["error"]
            # Some of them are whole documents of another kind.
            assert (problem["status"], problem["code"]) in ((400, "malformed"), (422, "invalid"))
        inner = msgpack.packb({"op": "step", "steps": [{"session": "s", "inputs": [0]}]})[:-1]
        stream.connection.send(inner + data)
        assert stream.receive()["error"]["status"] in (400, 422)
        assert stream.ask("cancel", target=0)["op"] == "cancelled"


def test_a_key_that_is_no_text_is_refused_by_its_object(service: Service) -> None:
    with Socket(service.stream_url, binary=True) as stream:
        check_members(_raw_error(stream, {1: 2}), 422, "invalid", "$")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_refused_in_message_pack(
    service: Service, session: str, value: float
) -> None:
    with Socket(service.stream_url, binary=True) as stream:
        (reply,) = stream.step({"session": session, "inputs": [1.0, value]})
        check_members(reply["error"], 422, "invalid", "$.inputs[1]")
        for option in ("temperature", "top_p", "timeout_s"):
            frame = {"op": "generate", "session": session, option: value}
            stream.send(frame)
            problem = stream.receive()["error"]
            assert problem["status"] == 422
            if not (option == "timeout_s" and value == math.inf):
                assert problem["path"] == f"$.{option}"
        for ttl_s in (math.nan, math.inf):
            frame = {"op": "open", "model": "accumulator", "ttl_s": ttl_s}
            check_members(_raw_error(stream, frame), 422, "invalid", "$.ttl_s")


@pytest.mark.parametrize(
    "value", [b"\x01", msgpack.Timestamp(1, 0), msgpack.ExtType(5, b"\x00"), {1: 2}]
)
def test_values_only_message_pack_has_are_refused(
    service: Service, session: str, value: Any
) -> None:
    with Socket(service.stream_url, binary=True) as stream:
        (reply,) = stream.step({"session": session, "inputs": [value]})
        check_members(reply["error"], 422, "invalid", "$.inputs[0]")


FRAMES = {
    "unknown op": ({"op": "fly"}, "$.op"),
    "no op": ({"session": "a"}, "$"),
    "op no text": ({"op": 7}, "$.op"),
    "unknown field": ({"op": "cancel", "target": 1, "force": True}, "$"),
    "missing field": ({"op": "cancel"}, "$"),
    "no steps": ({"op": "step", "steps": []}, "$.steps"),
    "unknown field of a step": (
        {"op": "step", "steps": [{"session": "a", "inputs": [], "x": 1}]},
        "$.steps[0]",
    ),
    "a list": ([], "$"),
    "id a list": ({"op": "cancel", "target": 1, "id": [1]}, "$.id"),
}


@pytest.mark.parametrize(("frame", "path"), FRAMES.values(), ids=FRAMES)
@pytest.mark.parametrize("binary", [False, True], ids=["JSON", "MessagePack"])
def test_each_frame_is_checked_and_the_socket_goes_on(
    service: Service, frame: Any, path: str, binary: bool
) -> None:
    with Socket(service.stream_url, binary=binary) as stream:
        check_members(_raw_error(stream, frame), 422, "invalid", path)
        assert stream.ask("cancel", target=0)["frames"] == 0


@pytest.mark.parametrize("binary", [False, True], ids=["JSON", "MessagePack"])
@pytest.mark.parametrize("id_", [7, "mine"])
def test_a_frame_that_is_refused_is_answered_by_its_id(
    service: Service, id_: int | str, binary: bool
) -> None:
    with Socket(service.stream_url, binary=binary) as stream:
        for frame, path in FRAMES.values():
            if isinstance(frame, dict) and "id" not in frame:
                stream.send(frame | {"id": id_})
                answer = stream.receive()
                assert (answer["op"], answer["id"]) == ("error", id_)
                check_members(answer["error"], 422, "invalid", path)


def test_a_frame_number_beyond_64_bits_is_refused_since_it_could_not_be_sent_back(
    service: Service,
) -> None:
    with Socket(service.stream_url) as stream:
        frame = {"op": "cancel", "target": 1, "id": 2**63}
        check_members(_raw_error(stream, frame), 422, "invalid", "$.id")


def test_a_cancel_frame_that_names_itself_is_answered(service: Service) -> None:
    with Socket(service.stream_url) as stream:
        stream.send({"op": "cancel", "target": 5, "id": 5})
        assert stream.receive() == {"op": "cancelled", "id": 5, "frames": 0}


def test_errors_inside_a_frame_answer_only_the_steps_that_caused_them(
    service: Service, session: str, words: str
) -> None:
    mine = service.http.post("/v1/sessions", json={"model": "accumulator"}).json()["session"]
    with Socket(service.stream_url) as stream:
        replies = stream.step(
            {"session": "nobody", "inputs": [1]},
            {"session": mine, "inputs": [1, 2]},
            {"session": session, "inputs": ["x"]},
            {"session": words, "inputs": [99]},
        )
        assert [reply.get("error", {}).get("code") for reply in replies] == [
            "unknown_session",
            None,
            "invalid",
            "invalid",
        ]
        assert replies[1]["results"] == [{"total": 1.0}, {"total": 3.0}]
        twice = _raw_error(stream, {"op": "step", "steps": [{"session": mine, "inputs": [1]}] * 2})
        check_members(twice, 409, "session_busy", None)
        many = [{"session": str(i), "inputs": [1]} for i in range(LIMITS.max_inputs + 1)]
        problem = _raw_error(stream, {"op": "step", "steps": many})
        check_members(problem, 413, "too_large", problem.get("path"))
        assert stream.ask("close", session=mine)["op"] == "closed"
        check_members(
            _raw_error(stream, {"op": "close", "session": mine}), 410, "session_gone", None
        )


def test_wrong_seq_tells_the_committed_and_the_expected(service: Service, session: str) -> None:
    def steps(inputs: list[float], seq: int) -> httpx.Response:
        return service.http.post(
            f"/v1/sessions/{session}/steps", json={"inputs": inputs, "seq": seq}
        )

    for seq in (2, 4, 10**19):
        problem = check_problem(steps([9.0], seq), 409, "wrong_seq", None)
        assert (problem["committed"], problem["expected"]) == (2, 3)
        with Socket(service.stream_url) as stream:
            (reply,) = stream.step({"session": session, "inputs": [9.0], "seq": seq})
            check_members(reply["error"], 409, "wrong_seq", None)
            assert (reply["error"]["committed"], reply["error"]["expected"]) == (2, 3)
    for inputs in ([1.0], [1.0, 0.25], [1.0, 0.5, 0.0]):
        problem = check_problem(steps(inputs, 1), 422, "payload_mismatch", None)
        assert (problem["committed"], problem["expected"]) == (2, 3)
    check_problem(steps([1.0], 0), 422, "invalid", "$.seq")
    assert steps([1.0, 0.5], 1).json()["duplicate"] is True


def test_a_deleted_session_is_gone_with_its_reason_and_time(service: Service) -> None:
    before = time.time()
    service.http.put("/v1/sessions/deleted", json={"model": "accumulator"})
    service.http.delete("/v1/sessions/deleted")
    for method, route, body in (
        ("GET", "/v1/sessions/deleted", None),
        ("DELETE", "/v1/sessions/deleted", None),
        ("POST", "/v1/sessions/deleted/steps", {"inputs": [1]}),
    ):
        problem = check_problem(
            service.http.request(method, route, json=body), 410, "session_gone", None
        )
        assert problem["reason"] == "deleted"
        assert before <= problem["ended_at"] <= time.time()
    assert (
        service.http.put("/v1/sessions/deleted", json={"model": "accumulator"}).status_code == 201
    )
    service.http.delete("/v1/sessions/deleted")


async def test_an_expired_session_is_gone_with_its_reason_and_time(
    running: inside.Running,
) -> None:
    body = {"model": "accumulator", "session": "old", "ttl_s": 60}
    assert (await running.http.post("/v1/sessions", json=body)).status_code == 201
    running.clock.now += 60
    assert (await running.http.get("/v1/sessions/old")).status_code == 200
    running.clock.now += 0.5
    before = time.time()
    for method, route, sent in (
        ("POST", "/v1/sessions/old/steps", {"inputs": [1]}),
        ("GET", "/v1/sessions/old", None),
        ("POST", "/v1/sessions/old/generate", {"inputs": "a"}),
    ):
        answer = await running.http.request(method, route, json=sent)
        problem = check_problem(answer, 410, "session_gone", None)
        assert problem["reason"] == "ttl"
        assert before <= problem["ended_at"] <= time.time()
    assert (await running.http.post("/v1/sessions", json=body)).status_code == 201


def test_a_session_id_belongs_to_one_model(service: Service, session: str) -> None:
    for model in ("weekend-planner", "language"):
        answer = service.http.put(f"/v1/sessions/{session}", json={"model": model})
        check_problem(answer, 409, "session_exists", None)
    answer = service.http.put(f"/v1/sessions/{session}", json={"model": "accumulator"})
    assert (answer.status_code, answer.json()["seq"]) == (200, 2)
    assert service.http.put("/v1/sessions/a%00b", json={"model": "language"}).status_code == 422


@pytest.mark.parametrize("identifier", ["-1", "1.5", "x", "9" * 10, "²"])
def test_a_last_event_id_that_is_no_event_is_refused(
    service: Service, words: str, identifier: str
) -> None:
    headers = {"Last-Event-ID": identifier.encode("latin-1")}
    body = {"inputs": "the", "stream": True, "seed": 1, "top_k": 3}
    for route in ("/v1/models/language/generate", f"/v1/sessions/{words}/generate"):
        answer = service.http.post(route, json=body, headers=headers)
        check_problem(answer, 422, "invalid", "Last-Event-ID")


def test_a_last_event_id_of_a_generation_that_never_was_is_refused(
    service: Service, words: str
) -> None:
    headers = {"Last-Event-ID": "1"}
    body = {"inputs": "the", "stream": True, "seed": 1, "top_k": 3}
    answer = service.http.post(f"/v1/sessions/{words}/generate", json=body, headers=headers)
    check_problem(answer, 422, "invalid", "Last-Event-ID")
    # Another seed would go on with another text.
    del body["seed"]
    answer = service.http.post("/v1/models/language/generate", json=body, headers=headers)
    check_problem(answer, 422, "invalid", "$.seed")


# Bodies.


def test_a_body_of_ten_megabytes_is_too_large(service: Service) -> None:
    body = b'{"inputs": ["' + b"a" * 10_000_000 + b'"]}'

    def chunks() -> Iterator[bytes]:
        for start in range(0, len(body), 100_000):
            yield body[start : start + 100_000]

    for route in ("/v1/models/language/predict", "/v1/sessions", "/v1/sessions/x/steps"):
        for content in (body, chunks()):
            answer = service.http.post(route, content=content)
            problem = check_problem(answer, 413, "too_large", None)
            assert problem["limit"] == LIMITS.max_body_bytes


@pytest.mark.parametrize("text", [".", "a-", "a ", "1,", "a" * 100], ids=repr)
def test_four_megabytes_of_text_do_not_stop_the_service(
    service: Service, probe: Probe, text: str
) -> None:
    body = {"inputs": [text * (4_000_000 // len(text))]}
    started = time.monotonic()
    answer = service.http.post("/v1/models/language/predict", json=body)
    assert time.monotonic() - started < 3
    assert answer.status_code in (200, 413)
    probe.step()


def test_a_body_that_trickles_is_given_up(service: Service, probe: Probe) -> None:
    with socket.create_connection(("127.0.0.1", service.port), timeout=10) as connection:
        connection.sendall(
            b"POST /v1/models/accumulator/predict HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n{"
        )
        probe.step()
        connection.settimeout(0.05)
        deadline = time.monotonic() + 10
        answer = b""
        while b"\r\n\r\n{" not in answer:
            assert time.monotonic() < deadline
            connection.sendall(b" ")
            with contextlib.suppress(TimeoutError):
                answer += connection.recv(65_536)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert f"content-type: {PROBLEM}".encode() in answer
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["code"] == "slow_body"


def test_a_body_that_never_comes_costs_nothing(service: Service, probe: Probe) -> None:
    for reset in (False, True):
        connection = socket.create_connection(("127.0.0.1", service.port))
        connection.sendall(
            b"POST /v1/models/accumulator/predict HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n{"
        )
        _close(connection, reset=reset)
        probe.step()


def _close(connection: socket.socket, *, reset: bool) -> None:
    """Close a connection, by a reset if asked to."""
    if reset:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


# Sockets.


def test_a_frame_of_ten_megabytes_is_refused_and_the_socket_goes_on(
    service: Service, probe: Probe
) -> None:
    for binary in (False, True):
        with Socket(service.stream_url, binary=binary) as stream:
            stream.connection.send(b"a" * 10_000_000, text=not binary)
            error = stream.receive()["error"]
            assert (error["status"], error["code"], error["limit"]) == (413, "too_large", 4 * 2**20)
            opened = stream.ask("open", model="accumulator")
            assert stream.ask("close", session=opened["session"])["op"] == "closed"
        probe.step()


def test_a_frame_beyond_all_bounds_ends_its_socket_alone(service: Service, probe: Probe) -> None:
    for binary in (False, True):
        with Socket(service.stream_url, binary=binary) as stream:
            # The service closes before all of it is sent, so the client may not see why (code 1009).
            with contextlib.suppress(ConnectionClosedError):
                stream.connection.send(b"a" * 40_000_000, text=not binary)
            with pytest.raises(ConnectionClosedError) as closed:
                stream.connection.recv(10)
            assert closed.value.rcvd is None or closed.value.rcvd.code == 1009
        probe.step()


@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
@pytest.mark.parametrize("length", [3, 40, 126])
def test_a_socket_cut_inside_a_frame_leaves_nothing_behind(
    service: Service, probe: Probe, reset: bool, length: int
) -> None:
    before = service.metric("stream_frames_total")
    connection = socket.create_connection(("127.0.0.1", service.port), timeout=10)
    connection.sendall(
        b"GET /v1/stream HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    assert connection.recv(65_536).startswith(b"HTTP/1.1 101 ")
    service.wait_until_metric("stream_sockets", 1)
    # A masked text frame of 1,000 bytes, and only its beginning.
    frame = b"\x81\xfe" + (1000).to_bytes(2, "big") + b"\0\0\0\0" + b'{"op": "cancel"' + b" " * 1000
    connection.sendall(frame[:length])
    probe.step()
    _close(connection, reset=reset)
    service.wait_until_metric("stream_sockets", 0)
    assert service.metric("stream_frames_total") == before


def test_a_plain_request_to_the_socket_is_told_to_upgrade(service: Service) -> None:
    answer = service.http.get("/v1/stream")
    check_problem(answer, 426, "upgrade_required", None)
    assert answer.headers["upgrade"] == "websocket"
    headers = {"Upgrade": "h2c", "Connection": "Upgrade"}
    assert service.http.get("/v1/stream", headers=headers).status_code == 426
    assert service.http.post("/v1/stream", json={}).status_code == 405


def test_a_socket_on_another_path_is_refused(service: Service) -> None:
    headers = {
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Version": "13",
    }
    assert service.http.get("/v1/elsewhere", headers=headers).status_code == 403


# Anything at all.

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["accumulator", "language", "weekend-planner", "rainy", "the cat"])
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)
NAMES = [
    *("op", "id", "session", "steps", "inputs", "seq", "parameters", "top_k", "timeout_s"),
    *("model", "version", "ttl_s", "target", "max_tokens", "temperature", "top_p", "seed"),
    *("stop", "stream", "ignore_eos"),
]
OPS = st.sampled_from(["open", "step", "generate", "cancel", "close", "fly"])


def _fields(values: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.dictionaries(st.sampled_from(NAMES), values, max_size=5)


# Fields with the right names and any values; some of the values are steps.
BODIES = _fields(VALUES | st.lists(_fields(VALUES), max_size=2)) | VALUES
FUZZ = settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@FUZZ
@given(
    body=BODIES,
    route=st.sampled_from(
        [
            "/v1/models/{model}/predict",
            "/v1/models/{model}/generate",
            "/v1/sessions",
            "/v1/sessions/{session}",
            "/v1/sessions/{session}/steps",
            "/v1/sessions/{session}/generate",
        ]
    ),
    model=st.sampled_from(["accumulator", "language", "weekend-planner"]),
    method=st.sampled_from(["POST", "PUT"]),
)
def test_no_body_is_a_fault(
    service: Service, probe: Probe, body: Any, route: str, model: str, method: str
) -> None:
    service.http.put("/v1/sessions/fuzz", json={"model": model})
    path = route.format(model=model, session="fuzz")
    answer = service.http.request(method, path, content=json.dumps(body).encode())
    assert answer.status_code < 500 or answer.json()["code"] == "deadline_exceeded"
    if answer.status_code >= 400:
        check_problem(answer, answer.status_code, answer.json()["code"], answer.json().get("path"))
    probe.step()
    assert service.http.delete("/v1/sessions/fuzz").status_code == 204


@FUZZ
@given(
    frame=st.builds(lambda op, fields: {"op": op} | fields, OPS, _fields(VALUES))
    | BODIES
    | st.binary(max_size=20),
    binary=st.booleans(),
)
def test_no_frame_is_a_fault(service: Service, probe: Probe, frame: Any, binary: bool) -> None:
    with Socket(service.stream_url, binary=binary or isinstance(frame, bytes)) as stream:
        opened = stream.ask("open", model="language", session="fuzz")
        assert opened["op"] == "opened"
        if isinstance(frame, dict) and frame.get("op") == "generate":
            frame = {"session": "fuzz"} | frame
        if isinstance(frame, bytes):
            stream.connection.send(frame)
        else:
            stream.send(frame)
        answer = stream.receive()
        while answer["op"] == "token":
            answer = stream.receive()
        if answer["op"] == "error":
            assert answer["error"]["status"] < 500 or answer["error"]["status"] == 504
        stream.ask("close", session="fuzz")
    probe.step()


def test_a_service_with_nothing_left_to_give_says_when_to_come_again(
    service: Service, model_directory: Any, tmp_path: Any
) -> None:
    small = process.start(
        model_directory, tmp_path / "log", max_sessions="2", max_resident="1", max_pending="1"
    )
    try:
        for number in range(2):
            body = {"model": "accumulator", "session": str(number)}
            assert small.http.post("/v1/sessions", json=body).status_code == 201
        answer = small.http.post("/v1/sessions", json={"model": "accumulator"})
        check_problem(answer, 503, "overloaded", None)
        assert int(answer.headers["retry-after"]) > 0
        answer = small.http.post("/v1/models/accumulator/predict", json={"inputs": [[1]] * 3})
        check_problem(answer, 503, "overloaded", None)
        # The one of the three that got the slot holds it until it is dropped or done.
        small.wait_until_metric("pending_steps", 0)
        for number in (0, 1, 0, 1):
            # Each in turn in the only slot there is.
            answer = small.http.post(f"/v1/sessions/{number}/steps", json={"inputs": [1]})
            assert answer.status_code == 200
        assert answer.json()["results"] == [{"total": 2.0}]
        assert process.stop(small) == 0
    finally:
        process.kill(small)
